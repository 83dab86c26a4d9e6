"""Draw the curves of a run.

    python docs/make_curves.py docs/first-model docs/curves.svg    # the run of the embedded model
    python docs/make_curves.py runs/tiny curves.svg

A stage's metrics (`STAGE/metrics.jsonl` or `STAGE.jsonl`) give two panels: the loss of every
twentieth step, smoothed, and the figures on validation data.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

INSTRUCT = (
    "scenes-questions/existence", "scenes-questions/shape", "scenes-questions/colour",
    "scenes-questions/count", "scenes-questions/relation", "scenes-questions/bigger",
    "scenes-questions/where", "photos-questions/what",
)  # fmt: skip
SHOWN = {
    "1-vision": ("validation-scenes/name", "validation-scenes/color", "validation-scenes/iou",
                 "validation-photos/name", "validation-photos/picture"),
    "2-language": ("text/existence", "text/colour", "text/count", "text/relation", "text/where"),
    "3-align": ("scenes/caption",),
    "4-instruct": INSTRUCT, "longer": INSTRUCT,
}  # fmt: skip
"""The validation figures of a stage that say most; all are in its metrics.jsonl."""


def main() -> None:
    """Read the run's metrics and write one picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run, or of kept metrics")
    parser.add_argument("out", type=Path, help="picture to write (.svg or .png)")
    arguments = parser.parse_args()
    files = {stage: path for stage in SHOWN for path in _metrics(arguments.run, stage)}
    if not files:
        parser.error(f"{arguments.run}: no metrics of a stage")
    plt.rcParams |= {"svg.hashsalt": "lapilli", "svg.fonttype": "none", "font.size": 9}
    figure, axes = plt.subplots(
        len(files), 2, figsize=(10, 2.6 * len(files)), squeeze=False, layout="constrained"
    )
    for (stage, path), (left, right) in zip(files.items(), axes, strict=True):
        lines = path.read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        _draw_loss(left, stage, [row for row in rows if "loss" in row])
        _draw_figures(right, SHOWN[stage], [row for row in rows if "loss" not in row])
    figure.savefig(arguments.out, metadata={"Date": None})


def _metrics(run: Path, stage: str) -> list[Path]:
    places = (run / stage / "metrics.jsonl", run / f"{stage}.jsonl")
    return [path for path in places if path.exists()][:1]


def _draw_loss(axes: Axes, stage: str, rows: list[dict[str, float]]) -> None:
    smooth: list[float] = []
    for row in rows:
        smooth.append(0.8 * smooth[-1] + 0.2 * row["loss"] if smooth else row["loss"])
    steps = [row["step"] for row in rows]
    axes.plot(steps, [row["loss"] for row in rows], color="0.8")
    axes.plot(steps, smooth, color="tab:blue")
    axes.set(title=stage, xlabel="step", ylabel="training loss")
    axes.set_ylim(bottom=0)


def _draw_figures(axes: Axes, shown: tuple[str, ...], rows: list[dict[str, float]]) -> None:
    for name in shown:
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
    axes.set(ylim=(0, 1), xlabel="step", ylabel="validation")
    axes.grid(color="0.9")
    axes.legend(fontsize=7, loc="lower right")


if __name__ == "__main__":
    main()
