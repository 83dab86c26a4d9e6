"""Tokenizers that are built as those of the language models that LLaVA uses."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = [
    "USER: what is this? ASSISTANT: a circle",
    "How many red circles are there?\n\nThere are two.\n",
    "What is left of the blue star?",
]
SPECIALS = (
    "</s>", "<image>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>",
)  # fmt: skip
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def with_specials(tokenizer: Tokenizer, specials: Sequence[str], bos_token: str) -> Tokenizer:
    tokens = [AddedToken(word, special=True, normalized=False) for word in specials]
    tokenizer.add_special_tokens(tokens)
    if bos_token:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos_token} $A",
            pair=f"{bos_token} $A {bos_token} $B",
            special_tokens=[(bos_token, tokenizer.token_to_id(bos_token))],
        )
    return tokenizer


def make_sentence_pieces(where: str) -> Tokenizer:
    """A tokenizer that puts a space before words, in the older or the newer way."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first")  # no piece goes beyond a word
    letters = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(vocab_size=150, show_progress=False, initial_alphabet=letters)
    learner.train_from_iterator(TEXTS, trainer)
    learned = json.loads(learner.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {piece: index for index, piece in enumerate([*pieces, *learned["vocab"]])}
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>"))
    if where == "before every stretch":
        spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(spaces)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return with_specials(tokenizer, ["<unk>", "<s>", *SPECIALS], "<s>")


def make_bytes(bos_token: str) -> Tokenizer:
    """A tokenizer of bytes, as Qwen's (nothing begins a text) and Llama 3's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return with_specials(tokenizer, ["<s>", *SPECIALS, *[bos_token] * bool(bos_token)], bos_token)


@pytest.fixture(params=["before every stretch", "before the first"])
def sentence_pieces(request: pytest.FixtureRequest) -> Tokenizer:
    return make_sentence_pieces(request.param)


TOKENIZERS = {
    "llama, older": (lambda: make_sentence_pieces("before every stretch"), "<s>"),
    "llama, newer": (lambda: make_sentence_pieces("before the first"), "<s>"),
    "llama 3": (lambda: make_bytes("<|begin_of_text|>"), "<|begin_of_text|>"),
    "qwen": (lambda: make_bytes(""), ""),
}


@pytest.fixture(params=TOKENIZERS, scope="session")
def tokenizer(request: pytest.FixtureRequest) -> tuple[Tokenizer, str]:
    """A tokenizer, and the word that it puts before every text."""
    make, bos_token = TOKENIZERS[request.param]
    return make(), bos_token
