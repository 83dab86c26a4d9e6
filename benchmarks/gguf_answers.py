"""Whether llama.cpp answers as we do: a model as GGUF, asked about drawn pictures.

    pip install 'lapilli[gguf]' llama-cpp-python==0.3.36     # builds llama.cpp: some minutes
    python benchmarks/gguf_answers.py --type f32             # the embedded model
    python benchmarks/gguf_answers.py --type q8_0 --count 54

What the numbers mean: of so many questions, each about another picture, how many have the same ids
as their prompt, the same picture features, and the same answer, letter by letter, both greedy. A
tower with a class token is asked twice: llama.cpp since May 2025 gives the features of the second
patch to the last and then the class token's, where those of the first to the last belong (its issue
25814), so "in its order" is our model with its features in that order. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import circumstances

from lapilli.app.converting import KINDS, convert
from lapilli.app.measuring import drawn_questions
from lapilli.assistant import MultimodalAssistant
from lapilli.engine.engine import Engine
from lapilli.eval.runner import conversation, run
from lapilli.messages import Question, Sampling
from lapilli.processor.processor import Processor

try:
    from llamacpp import LlamaCpp, Reply, around_pictures
except ModuleNotFoundError as error:
    raise SystemExit(
        f"error: {error.name} is not installed; run pip install llama-cpp-python==0.3.36"
    ) from error

LONGEST_ANSWER = 96


def choose(count: int) -> list[Question]:
    """Return questions of all kinds in turn, each about a picture of its own."""
    by_kind: dict[str, list[Question]] = {}
    for question in drawn_questions("plain", -(-count // 5), "validation", 0, unseen=False):
        by_kind.setdefault(question.category, []).append(question)
    mixed = [q for row in zip_longest(*by_kind.values()) for q in row if q is not None]
    return mixed[:count]


def prompt_of(question: Question, processor: Processor) -> tuple[list[str], list[int]]:
    """Return a question's prompt as words around its picture, and as ids without its places."""
    asked = conversation(question)
    ids = processor.encode(asked, is_answering=True).ids
    return around_pictures(processor, asked), [id for id in ids if id != processor.image_token_id]


def answers(engine: Engine, questions: Sequence[Question]) -> list[str]:
    """Return our greedy answers."""
    asked = run(questions, engine, sampling=Sampling(max_new_tokens=LONGEST_ANSWER))
    return [answer.text for answer in asked]


@torch.inference_mode()
def features_of(engine: Engine, question: Question) -> np.ndarray:
    """Return (1, P, D), what our model makes of a question's picture."""
    pixels = engine.processor.batch([conversation(question)]).pixel_values
    assert pixels is not None
    return engine.model.encode_images(pixels.to(engine.model.dtype)).float().numpy()


def put_class_token_last(engine: Engine) -> None:
    """Make our tower hand its features on in llama.cpp's order."""
    tower = engine.model.vision_tower
    tower.patches = lambda x: torch.cat([x[:, 2:], x[:, :1]], 1)  # type: ignore[method-assign]
    engine.forget()


def cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the mean likeness of features, 1 for the same directions."""
    norms = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    return float(((ours * theirs).sum(-1) / norms).mean())


def ask_llama_cpp(
    files: Sequence[Path], questions: Sequence[Question], processor: Processor
) -> tuple[list[Reply], int]:
    """Return replies, and the number of prompts that have the same ids."""
    mmproj, model = sorted(files)
    peer = LlamaCpp(model, mmproj, processor.prompt.max_tokens)
    replies, num_same = [], 0
    for question in questions:
        parts, ids = prompt_of(question, processor)
        replies.append(peer.ask(parts, [question.image], LONGEST_ANSWER))
        num_same += replies[-1].prompt_ids == ids
    peer.close()
    return replies, num_same


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Ask both, print where they differ, and return the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="lapilli-tiny", help="a name or a model folder")
    parser.add_argument("--count", type=int, default=20, help="questions")
    parser.add_argument("--type", choices=KINDS, default="f16", help="how GGUF holds numbers")
    options = parser.parse_args(arguments)
    questions = choose(options.count)
    engine = MultimodalAssistant(options.model, device="cpu").engine
    with tempfile.TemporaryDirectory() as folder:
        written = convert(options.model, Path(folder) / "gguf", "gguf", kind=options.type)
        files = [path for path in written if path.suffix == ".gguf"]
        replies, same_ids = ask_llama_cpp(files, questions, engine.processor)
    theirs = [reply.text for reply in replies]
    ours = answers(engine, questions)
    figures: dict[str, Any] = {
        "benchmark": "gguf_answers", "model": options.model, "type": options.type,
        "llama_cpp_python": metadata.version("llama-cpp-python"), "count": len(questions),
        "same_prompt_ids": same_ids,
        "cosine": round(cosine(features_of(engine, questions[0]), replies[0].features), 6),
        "same_answers": sum(a == b for a, b in zip(ours, theirs, strict=True)),
    }  # fmt: skip
    for question, our, their in zip(questions, ours, theirs, strict=True):
        if our != their:
            print(f"{question.category}: {question.text!r}\n  ours {our!r}, llama.cpp {their!r}")
    if engine.model.spec.vision.has_class_token:
        put_class_token_last(engine)
        likeness = cosine(features_of(engine, questions[0]), replies[0].features)
        same = sum(a == b for a, b in zip(answers(engine, questions), theirs, strict=True))
        figures |= {"cosine_in_its_order": round(likeness, 6), "same_answers_in_its_order": same}
    print(json.dumps(figures | circumstances()))
    return figures


if __name__ == "__main__":
    main()
