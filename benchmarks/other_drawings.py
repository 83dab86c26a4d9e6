"""How well a model reads drawings that another program made: matplotlib's instead of ours.

    python benchmarks/other_drawings.py                      # the embedded model
    python benchmarks/other_drawings.py --model runs/tiny/longer/model --shape wide

What the numbers mean: the questions and the scorer are those of `lapilli eval drawn`, in training's
wordings, so a score beside that of the plain grade tells what is lost when shapes, tones, edges and
sizes of the picture are another program's. "wide" pictures are 4 by 3. The last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import patches
from matplotlib.figure import Figure
from PIL import Image
from timing import circumstances

from lapilli.assistant import MultimodalAssistant
from lapilli.eval.runner import report, run
from lapilli.eval.tasks.drawn import DRAWN, score
from lapilli.messages import Sampling
from lapilli.synth.questions import suite
from lapilli.synth.symbols import COLORS, SHAPES, UNSEEN_PAIRS, Symbols, Thing

TONES = {
    "red": ("red", "#d62728", "crimson"), "green": ("green", "#2ca02c", "limegreen"),
    "blue": ("blue", "#1f77b4", "royalblue"), "yellow": ("yellow", "gold"),
    "purple": ("purple", "#9467bd", "darkviolet"), "orange": ("orange", "#ff7f0e"),
    "pink": ("pink", "hotpink"), "brown": ("brown", "saddlebrown", "#8c564b"),
    "black": ("black",), "white": ("white",), "gray": ("gray", "#7f7f7f"),
}  # fmt: skip
GROUNDS = {"white": 6, "lightgray": 1, "beige": 1, "lightblue": 1, "#222222": 1}
CLASHES = {
    "white": ("white",), "beige": ("white", "yellow", "pink"), "lightgray": ("white", "gray"),
    "lightblue": ("white", "gray", "blue"), "#222222": ("black", "brown", "gray", "purple"),
}  # fmt: skip
SIDES_PX = {"square": (480, 480), "wide": (640, 480)}


@dataclass
class Drawn:
    """A picture with its symbols."""

    image: Image.Image
    symbols: Symbols


def outline(name: str, rng: np.random.Generator) -> np.ndarray:
    """Return a shape's corners (N, 2) around 0, y upwards, at most 1 away along an axis."""
    if name == "heart":
        t = np.linspace(0, 2 * np.pi, 80)
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        points = np.stack([16 * np.sin(t) ** 3, y], 1)
    elif name == "star":
        angles = np.pi / 2 + np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2, rng.uniform(0.36, 0.5), 1.0)
        points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)
    elif name == "cross":
        a = rng.uniform(0.25, 0.4)
        points = np.array(
            [(-a, 1), (a, 1), (a, a), (1, a), (1, -a), (a, -a),
             (a, -1), (-a, -1), (-a, -a), (-1, -a), (-1, a), (-a, a)]
        )  # fmt: skip
    elif name == "triangle":
        points = np.array([(0, 1), (-1, -0.8), (1, -0.8)])
    elif name == "diamond":
        points = np.array([(0, 1), (rng.uniform(0.7, 1), 0), (0, -1), (-1, 0)])
        points[3, 0] = -points[1, 0]
    elif name == "square":
        points = np.array([(-1, 1), (1, 1), (1, -1), (-1, -1)])
    else:
        t = np.linspace(0, 2 * np.pi, 90)
        points = np.stack([np.cos(t), np.sin(t)], 1)
    return points / np.abs(points).max()


def draw(seed: int, shape: str) -> Drawn:
    """Draw 1 to 6 things that do not touch."""
    rng = np.random.default_rng(seed)
    width, height = SIDES_PX[shape]
    ground = str(rng.choice(list(GROUNDS), p=np.array(list(GROUNDS.values())) / 10))
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor=ground)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    has_edges = rng.random() < 0.3
    things: list[Thing] = []
    taken: list[tuple[float, float, float]] = []
    allowed = [
        (c, s) for c in COLORS for s in SHAPES
        if c not in CLASHES[ground] and (c, s) not in UNSEEN_PAIRS
    ]  # fmt: skip
    for _ in range(int(rng.integers(1, 7))):
        color, name = allowed[int(rng.integers(len(allowed)))]
        is_large = rng.random() < 0.5
        radius = height * float(rng.uniform(0.13, 0.17) if is_large else rng.uniform(0.06, 0.08))
        for _ in range(40):
            x = float(rng.uniform(radius + 4, width - radius - 4))
            y = float(rng.uniform(radius + 4, height - radius - 4))
            if all(np.hypot(x - u, y - v) > 1.45 * (radius + r) for u, v, r in taken):
                break
        else:
            continue
        taken.append((x, y, radius))
        tone = str(rng.choice(TONES[color]))
        points = outline(name, rng) * (radius, -radius) + (x, y)
        edge = {"edgecolor": "black", "linewidth": 1.5} if has_edges else {"linewidth": 0}
        if name == "ring":
            share = float(rng.uniform(0.3, 0.45))
            axes.add_patch(patches.Annulus((x, y), radius, radius * share, facecolor=tone, **edge))
        else:
            axes.add_patch(patches.Polygon(points, closed=True, facecolor=tone, **edge))
        low, high = points.min(0) / (width, height), points.max(0) / (width, height)
        box = float(low[0]), float(low[1]), float(high[0]), float(high[1])
        things.append(Thing(name, box, color, "large" if is_large else "small"))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=ground)
    image = Image.open(buffer).convert("RGB")
    return Drawn(image, Symbols(tuple(things)))


def main() -> None:
    """Ask, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a name or a model folder; the embedded one if left out")
    parser.add_argument("--count", type=int, default=100, help="questions a kind")
    parser.add_argument("--shape", choices=SIDES_PX, default="square")
    parser.add_argument("--show", type=int, default=0, help="print so many wrong answers a kind")
    options = parser.parse_args()
    questions = list(
        suite(0, options.count, draw=lambda seed: draw(seed, options.shape), held_out=False)
    )
    engine = MultimodalAssistant(options.model, device="cpu").engine
    answers = run(questions, engine, sampling=Sampling(max_new_tokens=96))
    found = report(DRAWN, questions, answers)
    for kind, category in found.categories.items():
        print(f"{kind:12s} {category.mean:.3f}  ({category.low:.3f}-{category.high:.3f})")
    shown: Counter[str] = Counter()
    for question, answer in zip(questions, answers, strict=True):
        if score(question, answer.text) < 0.5 and shown[question.category] < options.show:
            shown[question.category] += 1
            print(f"{question.text!r}: {answer.text!r}, not {question.answer!r}")
    result: dict[str, Any] = {
        "benchmark": "other_drawings", "model": options.model or "lapilli-tiny",
        "shape": options.shape, "count": options.count, "matplotlib": mpl.__version__,
        "scores": {kind: round(c.mean, 3) for kind, c in found.categories.items()},
        **circumstances(),
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
