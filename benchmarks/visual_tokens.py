"""What is lost, and what time is won, when the language model sees fewer of a picture's features.

    python benchmarks/visual_tokens.py                        # the embedded model, 64 features
    python benchmarks/visual_tokens.py --kept 32 8 --count 20

What the numbers mean: the questions and the scorer are those of `lapilli eval drawn`, plain grade,
validation. "diverse" is the engine's choice; "uniform" and "random" are there to be compared with.
"seconds" is what the questions took, each picture and prompt read anew; the tower sees the whole
picture in every case, so that only the language model has less to do. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from timing import circumstances

from lapilli import load
from lapilli.app.measuring import LONGEST_ANSWER, drawn_questions
from lapilli.engine.engine import Engine
from lapilli.engine.settings import EngineSettings
from lapilli.eval.runner import report, run
from lapilli.eval.tasks.drawn import DRAWN
from lapilli.messages import Sampling
from lapilli.model.visual_tokens import CHOICES


def main() -> None:
    """Measure, print a table and a line of JSON."""
    options = parse_options()
    model, processor = load(options.model, device="cpu")
    num_all = model.spec.vision.num_features
    questions = drawn_questions("plain", options.count, "validation", 0, unseen=False)
    cases = [(num_all, "diverse")]
    cases += [(kept, choice) for kept in options.kept if kept < num_all for choice in CHOICES]
    rows: list[dict[str, Any]] = []
    for kept, choice in cases:
        settings = EngineSettings(
            visual_tokens=kept, visual_choice=choice, reuses=False, picture_bytes=0
        )
        engine = Engine(model, processor, settings=settings)
        begin = time.perf_counter()
        answers = run(questions, engine, sampling=Sampling(LONGEST_ANSWER))
        seconds = time.perf_counter() - begin
        found = report(DRAWN, questions, answers)
        scores = {name: round(part.mean, 3) for name, part in found.categories.items()}
        if not rows:
            print(f"{'kept':>4s} {'choice':8s} {'seconds':>8s} {'mean':>6s}", *scores)
        rows.append(
            {
                "kept": kept,
                "choice": "all" if kept == num_all else choice,
                "seconds": round(seconds, 1),
                "mean": round(found.mean, 3),
                "scores": scores,
            }
        )
        values = " ".join(f"{value:.2f}".rjust(len(name)) for name, value in scores.items())
        last = rows[-1]
        print(
            f"{kept:4d} {last['choice']:8s} {seconds:8.1f} {found.mean:6.3f} {values}", flush=True
        )
    result = {
        "benchmark": "visual_tokens",
        "model": options.model or "lapilli-tiny",
        "count": options.count,
        "rows": rows,
        **circumstances(),
    }
    print(json.dumps(result))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a name or a model folder; the embedded one if left out")
    parser.add_argument("--kept", type=int, nargs="+", default=[48, 32, 16, 8], help="features")
    parser.add_argument("--count", type=int, default=50, help="questions of each kind")
    options = parser.parse_args()
    if min(options.kept) < 1 or options.count < 1:
        parser.error("--kept and --count need 1 or more")
    return options


if __name__ == "__main__":
    main()
