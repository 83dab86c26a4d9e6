"""A tokenizer as llama.cpp keeps it: token lists and flags instead of `tokenizer.json`.

llama.cpp has programs of its own in the place of a normalizer and a pre-tokenizer, and a file only
names one. A tokenizer is therefore recognized by what its parts say exactly; of another one the ids
would come out differently, and it is refused.

Source: llama.cpp, `src/llama-vocab.cpp`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby
from typing import Any

from lapilli.errors import CheckpointError
from lapilli.processor.builtin import jinja_source
from lapilli.processor.processor import Processor

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

# What splits a text into words, and whether whole words are looked up before merging: a name there.
_PRE_TOKENIZERS = {
    (_GPT2, False): "gpt-2",
    (_LLAMA3, True): "llama-bpe",
    (_QWEN2, False): "qwen2",
}
_SPACE = "▁"  # how SentencePiece writes a space
_BYTES = {f"<0x{byte:02X}>" for byte in range(256)}
_REMEDY = "use --to hf"


class _Type(IntEnum):
    """What llama.cpp does with a token; the numbers are its file format's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3  # read in templates alone, never shown
    USER_DEFINED = 4  # read wherever it stands
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class GgufWords:
    """What a file says of words.

    Attributes:
        model: "gpt2" for bytes that are merged, "llama" for SentencePiece's pieces.
        pre: the name of what splits a text into words.
        tokens: by id, as many as there are embeddings.
        types: of each token.
        scores: of each token, the higher the earlier it is merged; None where `merges` say it.
        merges: pairs with a space between, in order; None where `scores` say it.
        eos_id, bos_id, pad_id: None for no such token.
        chat_template: in Jinja; None for none.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    eos_id: int
    bos_id: int | None
    pad_id: int | None
    chat_template: str | None


def gguf_words(processor: Processor, vocab_size: int) -> GgufWords:
    """Return the processor's tokenizer and template in llama.cpp's form.

    Args:
        vocab_size: rows of the embedding table; ids without a word are named and never used.

    Raises:
        CheckpointError: llama.cpp would split some text into other ids.
    """
    content = json.loads(processor.words.tokenizer.to_str())
    model = content["model"]
    if model.get("type") != "BPE":
        raise _no_form(f"a {model.get('type')} model")
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    tokens, types = _tokens(content, processor, vocab_size)
    is_pieces = model.get("byte_fallback", False)
    if is_pieces:
        _check_pieces(content)
    prompt, words = processor.prompt, processor.words
    return GgufWords(
        model="llama" if is_pieces else "gpt2",
        pre="default" if is_pieces else _pre_tokenizer(content),
        tokens=tokens,
        types=types,
        scores=_scores(merges, model["vocab"], tokens) if is_pieces else None,
        merges=None if is_pieces else [" ".join(pair) for pair in merges],
        eos_id=processor.end_id,
        bos_id=words.id(prompt.bos_token) if prompt.bos_token else None,
        pad_id=words.tokenizer.token_to_id("<pad>"),
        chat_template=processor.chat_template or jinja_source(prompt.template),
    )


def _tokens(
    content: Mapping[str, Any], processor: Processor, vocab_size: int
) -> tuple[list[str], list[int]]:
    """Words and types by id."""
    tokens = [f"[PAD{number}]" for number in range(vocab_size)]
    types: list[int] = [_Type.UNUSED] * vocab_size
    unknown = content["model"].get("unk_token")
    entries = {word: (id, _type(word, unknown)) for word, id in content["model"]["vocab"].items()}
    prompt = processor.prompt
    controls = {prompt.image_token, prompt.end_of_turn, prompt.bos_token}
    for added in content["added_tokens"]:
        word = added["content"]
        is_control = added["special"] or word in controls
        kind = _Type.CONTROL if is_control else _Type.USER_DEFINED
        entries[word] = (added["id"], _Type.UNKNOWN if word == unknown else kind)
    for word, (id, kind) in entries.items():
        if id < vocab_size:
            tokens[id], types[id] = word, kind
        elif id != processor.image_token_id:  # which is never embedded
            raise _no_form(f"id {id} of {word!r} beyond {vocab_size} embeddings")
    return tokens, types


def _type(word: str, unknown: str | None) -> _Type:
    if word == unknown:
        return _Type.UNKNOWN
    return _Type.BYTE if word in _BYTES else _Type.NORMAL


# Bytes that are merged


def _pre_tokenizer(content: Mapping[str, Any]) -> str:
    """The name of the program that splits as this tokenizer does."""
    normalizer = content["normalizer"]
    if normalizer not in (None, {"type": "NFC"}):  # llama.cpp expects text that is composed
        raise _no_form(f"normalizer {normalizer['type']}")
    pre = content["pre_tokenizer"] or {"type": None}
    steps = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    pattern = _GPT2
    match steps:
        case [{"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:
            pass
        case [
            {
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": False,
            },
            {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
        ]:
            pass
        case _:
            raise _no_form(f"pre-tokenizer {' and '.join(str(step['type']) for step in steps)}")
    looks_up_first = bool(content["model"].get("ignore_merges"))
    if (pattern, looks_up_first) not in _PRE_TOKENIZERS:
        raise _no_form(f"words by {pattern!r}")
    return _PRE_TOKENIZERS[pattern, looks_up_first]


# SentencePiece's pieces


def _check_pieces(content: Mapping[str, Any]) -> None:
    """Refuse what does not begin each stretch of text with a space, and write spaces as "▁"."""
    normalizer, pre = content["normalizer"] or {}, content["pre_tokenizer"]
    steps = normalizer.get("normalizers", [normalizer])
    as_normalizer = [
        {"type": "Prepend", "prepend": _SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
    ]
    if steps == as_normalizer and pre is None:
        return
    as_pre = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "always"}
    if not normalizer and pre is not None and pre | as_pre == pre and not pre.get("split"):
        return
    raise _no_form("pieces that do not begin with a space as Llama's do")


def _scores(merges: list[list[str]], vocab: Mapping[str, int], tokens: list[str]) -> list[float]:
    """A score for each token, in the order of the merges that make it.

    llama.cpp merges the two neighbors whose union scores highest, whichever they are. That is the
    merges' order where all pairs with one union stand together and none is left out.
    """
    unions = [first + second for first, second in merges]
    order = [union for union, _ in groupby(unions)]
    pairs = {(first, second) for first, second in merges}
    possible = sum(
        token[:cut] in vocab and token[cut:] in vocab
        for token in order
        for cut in range(1, len(token))
    )
    if len(order) != len(set(order)) or len(pairs) != possible:
        raise _no_form("merges that no score of their unions orders")
    ranks = {union: rank for rank, union in enumerate(order)}
    return [-float(ranks.get(token, len(order))) for token in tokens]


def _no_form(what: str) -> CheckpointError:
    return CheckpointError(f"tokenizer: {what}: llama.cpp has no form for it; {_REMEDY}")
