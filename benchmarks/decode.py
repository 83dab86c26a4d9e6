"""How fast one conversation is answered, beside `transformers.generate` on the same weights.

    python benchmarks/decode.py                   # the embedded model
    python benchmarks/decode.py --random          # the same architecture with random weights

What the numbers mean: one conversation with one picture, greedy, on the CPU; both sides make
exactly `--tokens` new tokens and may use the same number of threads. "answer" is new tokens by
seconds for the whole answer, from the picture to the last token; ours opens the picture and writes
the text in that time, while `transformers` is given tensors and returns ids. "after the first" is
new tokens by seconds without the first token, that is without the reading of picture and prompt.
`transformers` runs with its dynamic and its static cache, in fp32 and bf16, and its best counts.
In fp32 both must make the same tokens, or the benchmark fails. The last line is JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from timing import Spread, circumstances, interleaved

from lapilli import load
from lapilli.checkpoints import hf
from lapilli.engine.engine import Engine
from lapilli.messages import Conversation, ImagePart, Message, Sampling, TextPart
from lapilli.model.llava import Llava
from lapilli.model.spec import DecoderSpec, LlavaSpec, VisionSpec
from lapilli.processor.images import ImageSettings
from lapilli.processor.processor import Processor, PromptSettings
from lapilli.processor.tokenizer import Words, train_tokenizer

OURS = "lapilli fp32"
PEERS = {
    f"transformers {kind} {cache or 'dynamic'}": (kind, cache)
    for kind in ("fp32", "bf16")
    for cache in (None, "static")
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Measure, print a table and a line of JSON."""
    options = parse_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    model, processor = random_model() if options.random else load(options.model, device="cpu")
    # Neither side stops before its tokens are made.
    processor.end_id = -1
    peers = load_peers(model, processor)
    wanted = tokens_of_ours(model, processor, options.tokens)
    for name in peers:
        if "fp32" in name and peers[name](options.tokens) != wanted:
            raise SystemExit(f"{name}: makes other tokens than {OURS}; the figures mean nothing")

    ours = partial(answer, Engine(model, processor))
    contestants: dict[str, Callable[[int], object]] = {OURS: ours, **peers}
    runs = {
        (name, count): partial(run, count)
        for name, run in contestants.items()
        for count in (1, options.tokens)
    }
    seconds = interleaved(runs, options.repeats)
    rows = {name: rates(seconds, name, options.tokens) for name in contestants}
    report(rows, options)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a name or a model folder; the embedded one if left out")
    parser.add_argument("--random", action="store_true", help="random weights instead of a model")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of an answer")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each contestant")
    parser.add_argument("--threads", type=int, default=0, help="torch's own choice if left out")
    options = parser.parse_args()
    if options.tokens < 2 or options.repeats < 1:
        parser.error("--tokens needs 2 or more, --repeats 1 or more")
    return options


def random_model() -> tuple[Llava, Processor]:
    """The embedded model's architecture; words come from the standard library's sources."""
    torch.manual_seed(0)
    sources = sorted(Path(os.__file__).parent.glob("*.py"))[:60]
    tokenizer = train_tokenizer((path.read_text(encoding="utf-8") for path in sources), 4096)
    processor = Processor(
        tokenizer,
        ImageSettings(128, "pad", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        PromptSettings(features_per_image=64),
        files("lapilli").joinpath("assets/tiny/chat_template.jinja").read_text(),
    )
    spec = LlavaSpec(
        VisionSpec(128, 16, 256, 7, 4, 1024, "gelu"),
        DecoderSpec(4096, 256, 6, 4, 4, 64, 704, is_tied=True, max_positions=2048),
        image_token_id=processor.image_token_id,
    )
    model = Llava(spec).eval()
    for name, parameter in model.named_parameters():
        # Small embeddings and strong layers: or else each token would be followed by itself.
        if "embed" in name:
            torch.nn.init.normal_(parameter, std=0.02)
        elif "proj" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model, processor


def conversation() -> Conversation:
    """A question about a drawn picture."""
    picture = Image.new("RGB", (320, 240), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((40, 60, 130, 150), fill="red")
    draw.rectangle((190, 90, 270, 170), fill="blue")
    return (Message("user", (ImagePart(picture), TextPart("Describe the picture in detail."))),)


def answer(engine: Engine, count: int) -> str:
    """Return an answer of `count` tokens, as we make it."""
    return "".join(piece.text for piece in engine.respond([conversation()], Sampling(count)))


class _Spelled(Words):
    """Words whose text is their ids."""

    def decode(self, ids: list[int]) -> str:
        return "".join(f"{token} " for token in ids)


def tokens_of_ours(model: Llava, processor: Processor, count: int) -> list[int]:
    """Return the ids of an answer of `count` tokens, as we make it."""
    spelling = copy.copy(processor)
    spelling.words = _Spelled(processor.words.tokenizer)
    return [int(word) for word in answer(Engine(model, spelling), count).split()]


def load_peers(model: Llava, processor: Processor) -> dict[str, Callable[[int], list[int]]]:
    """Return what makes an answer's ids with `transformers`, by name, from the same weights."""
    from transformers import LlavaForConditionalGeneration

    inputs = processor.batch([conversation()])
    assert inputs.pixel_values is not None
    pixels = {kind: inputs.pixel_values.to(dtype) for kind, dtype in DTYPES.items()}
    with tempfile.TemporaryDirectory() as folder:
        hf.save(Path(folder), model, processor)
        peers = {
            kind: LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
            for kind, dtype in DTYPES.items()
        }
    for peer in peers.values():
        peer.generation_config.eos_token_id = None
        peer.generation_config.pad_token_id = 0

    def generate(kind: str, cache: str | None, count: int) -> list[int]:
        settings: dict[str, Any] = {"cache_implementation": cache} if cache else {}
        with torch.inference_mode():
            ids = peers[kind].generate(
                input_ids=inputs.input_ids,
                attention_mask=torch.ones_like(inputs.input_ids),
                pixel_values=pixels[kind],
                max_new_tokens=count,
                do_sample=False,
                **settings,
            )
        return ids[0, inputs.input_ids.shape[1] :].tolist()

    return {name: partial(generate, kind, cache) for name, (kind, cache) in PEERS.items()}


def rates(
    seconds: dict[tuple[str, int], Spread], name: str, count: int
) -> dict[str, dict[str, float]]:
    """Return tokens per second of one contestant: the whole answer, and after the first token."""
    whole, first = seconds[name, count], seconds[name, 1].median
    return {
        "answer": _inverse(count, whole, 0.0),
        "after_first": _inverse(count - 1, whole, first),
    }


def _inverse(count: int, seconds: Spread, less: float) -> dict[str, float]:
    # Where little is timed, noise may leave nothing of the difference.
    median, low, high = (max(s - less, 1e-9) for s in (seconds.median, seconds.low, seconds.high))
    spread = Spread(count / median, count / high, count / low)
    return {key: round(value, 1) for key, value in asdict(spread).items()}


def report(rows: dict[str, dict[str, dict[str, float]]], options: argparse.Namespace) -> None:
    """Print the table, the ratios to the best peer, and the line of JSON."""
    print(f"{'tokens/s, median (range)':32s} {'answer':>22s} {'after the first':>22s}")
    for name, row in rows.items():
        cells = [f"{r['median']:.0f} ({r['low']:.0f}-{r['high']:.0f})" for r in row.values()]
        print(f"{name:32s} {cells[0]:>22s} {cells[1]:>22s}")
    ratios = {
        measure: rows[OURS][measure]["median"]
        / max(rows[peer][measure]["median"] for peer in PEERS)
        for measure in ("answer", "after_first")
    }
    ratios = {measure: round(ratio, 2) for measure, ratio in ratios.items()}
    print(f"ours to the best of transformers: {ratios['answer']} and {ratios['after_first']} times")
    result = {
        "benchmark": "decode",
        "model": "random" if options.random else options.model or "lapilli-tiny",
        "tokens": options.tokens,
        "repeats": options.repeats,
        "ratio": ratios,
        "tokens_per_s": rows,
        **circumstances(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="transformers")
    main()
