"""Who is timed: a model of ours, and the same weights with `transformers` and with llama.cpp.

The decoders' sizes are those of the embedded model and of Qwen2-0.5B; random weights will do, since
a product takes as long whatever it multiplies.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw
from timing import Spread, circumstances
from tokenizers import Tokenizer

from lapilli import load
from lapilli.checkpoints import gguf, hf
from lapilli.engine.engine import Engine
from lapilli.messages import Conversation, ImagePart, Message, Request, Sampling, TextPart
from lapilli.model.llava import Llava
from lapilli.model.spec import DecoderSpec, LlavaSpec, VisionSpec
from lapilli.processor.images import ImageSettings
from lapilli.processor.processor import Processor, PromptSettings
from lapilli.processor.tokenizer import Words, train_tokenizer

if TYPE_CHECKING:
    from llamacpp import LlamaCppChat

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIZES = {
    "tiny": (
        VisionSpec(128, 16, 256, 7, 4, 1024, "gelu"),
        DecoderSpec(4096, 256, 6, 4, 4, 64, 704, is_tied=True, max_positions=2048),
    ),
    "0.5b": (
        VisionSpec(),  # CLIP-L of 336 pixels
        DecoderSpec(
            32000, 896, 24, 14, 2, 64, 4864,
            is_tied=True, has_qkv_bias=True, max_positions=2048,
        ),
    ),
}  # fmt: skip
CACHES = {"dynamic": None, "static": "static"}
"""Of `transformers`, and what it calls them."""
GGUF_KINDS = ("f16", "q8_0", "q4_0")
"""The last is made from the first by llama.cpp's own quantizer."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return what reads the options that all comparisons share."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--model", help="a name or a model folder; the embedded one if left out")
    made.add_argument(
        "--random", nargs="?", const="tiny", choices=SIZES, help="random weights of a size instead"
    )
    made.add_argument("--dtype", choices=DTYPES, help="fp32, but bf16 for random weights of 0.5b")
    made.add_argument("--repeats", type=int, default=7, help="timed runs of each contestant")
    made.add_argument("--threads", type=int, default=0, help="torch's own choice if left out")
    made.add_argument("--gguf", nargs="*", choices=GGUF_KINDS, default=GGUF_KINDS, metavar="KIND",
                      help="files of llama.cpp; none leaves it out")  # fmt: skip
    return made


@dataclass(frozen=True)
class Subject:
    """A model that never stops by itself.

    Attributes:
        name: for the result.
        dtype: a name in `DTYPES`.
        processor: its end of turn is none of the tokens.
        own: the model's true processor, for its files.
    """

    name: str
    dtype: str
    model: Llava
    processor: Processor
    own: Processor

    @property
    def ours(self) -> str:
        """What our side is called."""
        return f"lapilli {self.dtype}"


def subject(options: argparse.Namespace) -> Subject:
    """Return the model that the options name."""
    if options.repeats < 1:
        raise SystemExit("--repeats needs 1 or more")
    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = options.dtype or ("bf16" if options.random == "0.5b" else "fp32")
    made = random_model(options.random) if options.random else load(options.model, device="cpu")
    model, own = made
    model = model.to(DTYPES[dtype])
    processor = copy.copy(own)
    processor.end_id = -1
    name = f"random {options.random}" if options.random else options.model or "lapilli-tiny"
    return Subject(name, dtype, model, processor, own)


def random_model(size: str) -> tuple[Llava, Processor]:
    """Random weights of a size; words come from the standard library's sources."""
    torch.manual_seed(0)
    vision, decoder = SIZES[size]
    sources = sorted(Path(os.__file__).parent.glob("*.py"))[:60]
    tokenizer = train_tokenizer((path.read_text(encoding="utf-8") for path in sources), 4096)
    processor = Processor(
        _with_words(tokenizer, decoder.vocab_size),
        ImageSettings(vision.image_size, "pad", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        PromptSettings(features_per_image=vision.num_features),
        files("lapilli").joinpath("assets/tiny/chat_template.jinja").read_text(encoding="utf-8"),
    )
    model = Llava(LlavaSpec(vision, decoder, image_token_id=processor.image_token_id)).eval()
    for name, parameter in model.named_parameters():
        # Small embeddings and strong layers: or else each token would be followed by itself.
        if "embed" in name:
            torch.nn.init.normal_(parameter, std=0.02)
        elif "proj" in name:
            torch.nn.init.normal_(parameter, std=1.6 * decoder.width**-0.5)
    return model, processor


def _with_words(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """Add words that no text has, so that every id has one."""
    spelled = json.loads(tokenizer.to_str())
    known = spelled["model"]["vocab"]
    known.update({f"word{index}": index for index in range(len(known), vocab_size)})
    return Tokenizer.from_str(json.dumps(spelled))


# What is asked


def picture(index: int) -> bytes:
    """Return a drawing as a PNG file; each index another."""
    image = Image.new("RGB", (320, 240), (255, 255, 255 - index % 256))
    draw = ImageDraw.Draw(image)
    draw.ellipse((40 + index % 40, 60, 130 + index % 40, 150), fill="red")
    draw.rectangle((190, 90, 270, 170), fill="blue")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def question(text: str, shown: bytes | None = None) -> Message:
    """Return a user's turn."""
    parts = [ImagePart(shown)] if shown else []
    return Message("user", (*parts, TextPart(text)))


def mixed(count: int) -> list[Conversation]:
    """Return questions of mixed length, every fourth about a picture of its own."""
    asked: list[Conversation] = []
    for index in range(count):
        words = f"Number {index}. " + "Here is one more sentence to read. " * (index * 7 % 16)
        shown = picture(index) if index % 4 == 0 else None
        asked.append((question(words + "Describe what you see.", shown),))
    return asked


# Ours


class _Spelled(Words):
    """Words whose text is their ids."""

    def decode(self, ids: list[int]) -> str:
        return "".join(f"{token} " for token in ids)


def tokens_of_ours(
    asked: Subject, conversations: Sequence[Conversation], counts: Sequence[int]
) -> list[list[int]]:
    """Return the ids of answers of so many tokens each, as our engine makes them."""
    spelling = copy.copy(asked.processor)
    spelling.words = _Spelled(asked.processor.words.tokenizer)
    texts = answers(Engine(asked.model, spelling), conversations, counts)
    return [[int(word) for word in text.split()] for text in texts]


def answers(
    engine: Engine, conversations: Sequence[Conversation], counts: Sequence[int]
) -> list[str]:
    """Return answers of so many tokens each, made together."""
    streams = [
        engine.submit(Request(conversation, Sampling(count)))
        for conversation, count in zip(conversations, counts, strict=True)
    ]
    return ["".join(piece.text for piece in stream) for stream in streams]


# transformers


@dataclass(frozen=True)
class Made:
    """Answers of `transformers`.

    Attributes:
        ids: of each, all equally long.
        first: seconds to the first token.
        whole: seconds to the last.
    """

    ids: list[list[int]]
    first: float
    whole: float


class Transformers:
    """`LlavaForConditionalGeneration` on the same weights, greedy; it never stops by itself.

    Args:
        folder: what `lapilli.checkpoints.hf` wrote.
        dtype: a name in `DTYPES`.
    """

    def __init__(self, folder: Path, processor: Processor, dtype: str) -> None:
        from transformers import LlavaForConditionalGeneration

        self.dtype = DTYPES[dtype]
        self.processor = processor
        self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=self.dtype).eval()
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0

    def prepare(self, conversations: Sequence[Conversation]) -> dict[str, torch.Tensor]:
        """Return conversations as tensors, padded on the left."""
        inputs = self.processor.batch(conversations)
        ready = {"input_ids": inputs.input_ids, "attention_mask": (inputs.groups >= 0).long()}
        if inputs.pixel_values is not None:
            ready["pixel_values"] = inputs.pixel_values.to(self.dtype)
        return ready

    @torch.inference_mode()
    def generate(
        self, ready: dict[str, torch.Tensor], count: int, cache: str | None = None
    ) -> Made:
        """Return answers of `count` tokens.

        Args:
            cache: its implementation; None for the dynamic one.
        """
        settings: dict[str, Any] = {"cache_implementation": cache} if cache else {}
        moments: list[float] = []

        def note(ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            moments.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool)

        start = time.perf_counter()
        ids = self.model.generate(
            **ready, max_new_tokens=count, do_sample=False, stopping_criteria=[note], **settings
        )
        end = time.perf_counter()
        new = ids[:, ready["input_ids"].shape[1] :].tolist()
        return Made(new, moments[0] - start, end - start)


@contextmanager
def transformers_peers(asked: Subject) -> Iterator[dict[str, Transformers]]:
    """Give the peers by the names of their types: our type, and bf16."""
    with TemporaryDirectory() as folder:
        hf.save(Path(folder), asked.model, asked.own)
        kinds = dict.fromkeys([asked.dtype, "bf16"])
        yield {kind: Transformers(Path(folder), asked.processor, kind) for kind in kinds}


def is_exact(asked: Subject, kind: str) -> bool:
    """Whether both make the same tokens; in bf16, rounding may part them."""
    return asked.dtype == kind == "fp32"


def check_tokens(theirs: Sequence[list[int]], ours: Sequence[list[int]]) -> None:
    """Refuse to compare answers that are not the same.

    Args:
        theirs: ids of answers; what is beyond the length of ours is left aside.
    """
    for index, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        if their[: len(our)] != our:
            raise SystemExit(f"answer {index} has other tokens than ours; figures mean nothing")


# llama.cpp


@contextmanager
def gguf_files(asked: Subject, kinds: Sequence[str]) -> Iterator[dict[str, tuple[Path, Path]]]:
    """Give the two files of each kind, the model's and its tower's; none where llama.cpp is not
    installed to read them."""
    if kinds and importlib.util.find_spec("llama_cpp") is None:
        print("llama.cpp is left out: llama-cpp-python is not installed")
        kinds = ()
    with TemporaryDirectory() as name:
        folder = Path(name)
        found: dict[str, tuple[Path, Path]] = {}
        for kind in dict.fromkeys(["f16" if kind == "q4_0" else kind for kind in kinds]):
            gguf.save(folder / kind, asked.model, asked.own, kind=kind)
            tower, model = sorted((folder / kind).glob("*.gguf"))
            found[kind] = model, tower
        if "q4_0" in kinds:
            from llamacpp import quantize

            found["q4_0"] = folder / "model-q4_0.gguf", found["f16"][1]
            quantize(found["f16"][0], found["q4_0"][0])
        yield {kind: found[kind] for kind in kinds}


@contextmanager
def llama_cpp_chats(
    asked: Subject, options: argparse.Namespace
) -> Iterator[dict[str, LlamaCppChat]]:
    """Give chats with llama-cpp-python by name; none where it is not installed."""
    with gguf_files(asked, options.gguf) as files:
        if files:
            from llamacpp import LlamaCppChat
        threads = torch.get_num_threads()
        yield {
            f"llama-cpp-python {kind}": LlamaCppChat(*pair, threads=threads)
            for kind, pair in files.items()
        }


# What came out


def ratios(asked: Subject, spreads: dict[str, Spread], *, is_time: bool) -> dict[str, float]:
    """Return how many times as fast ours is as the best of each kind of peer: `transformers` in
    any type, in ours, and llama.cpp.

    Args:
        is_time: less is better.
    """
    ours, found = spreads[asked.ours].median, {}
    for kind in dict.fromkeys(["transformers", f"transformers {asked.dtype}", "llama"]):
        medians = [s.median for name, s in spreads.items() if name.startswith(kind)]
        if medians:
            ratio = min(medians) / ours if is_time else ours / max(medians)
            found[kind] = round(ratio, 2)
    return found


def tell(found: dict[str, float]) -> None:
    """Print ratios."""
    for kind, ratio in found.items():
        print(f"ours is {ratio} times as fast as the best of {kind}")


def table(title: str, rows: dict[str, dict[str, Spread]], digits: int) -> None:
    """Print medians and ranges."""
    columns = list(next(iter(rows.values())))
    print(f"{title + ', median (range)':34s}" + "".join(f"{name:>26s}" for name in columns))
    for name, row in rows.items():
        cells = [
            f"{s.median:.{digits}f} ({s.low:.{digits}f}-{s.high:.{digits}f})" for s in row.values()
        ]
        print(f"{name:34s}" + "".join(f"{cell:>26s}" for cell in cells))


def result(
    benchmark: str,
    asked: Subject,
    options: argparse.Namespace,
    rows: dict[str, dict[str, Spread]],
    **more: Any,
) -> str:
    """Return the line of JSON."""
    figures = {
        name: {
            column: {key: float(f"{value:.4g}") for key, value in asdict(spread).items()}
            for column, spread in row.items()
        }
        for name, row in rows.items()
    }
    return json.dumps(
        {
            "benchmark": benchmark, "model": asked.name, "dtype": asked.dtype,
            "repeats": options.repeats, **more, "figures": figures,
            **circumstances(),
        }
    )  # fmt: skip
