"""Words to ids and back, with special tokens read only where a template wrote them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from lapilli.errors import CheckpointError

SPECIALS = ("<pad>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<image>")
"""Ids 0 to 5 of a new tokenizer."""

# The words of GPT-2, but one digit at a time is left to the merges; known to llama.cpp as "gpt-2".
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer with SPECIALS; any text can be written and read back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_GPT2_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(word, special=True, normalized=False) for word in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Read `tokenizer.json`.

    Raises:
        CheckpointError: missing or damaged.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: missing; copy it beside config.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path}: damaged ({error})") from error
    # Some files keep the settings of their last use.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class Words:
    """A tokenizer that keeps literal text literal.

    Args:
        tokenizer: the library's object.
        controls: words that are special here though the tokenizer may not call them so; those
            that it does not know are passed over.
    """

    def __init__(self, tokenizer: Tokenizer, controls: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self._literal = Tokenizer.from_str(tokenizer.to_str())
        known = [word for word in controls if tokenizer.token_to_id(word) is not None]
        self._literal.add_special_tokens(
            [AddedToken(word, special=True, normalized=False) for word in known]
        )
        # Under this setting the words of special tokens are split like any other.
        self._literal.encode_special_tokens = True
        added = self._literal.get_added_tokens_decoder()
        self._special_ids = {id for id, token in added.items() if token.special}

    def encode(self, text: str, *, with_specials: bool) -> list[int]:
        """Return ids; special tokens' words become their ids only `with_specials`."""
        chosen = self.tokenizer if with_specials else self._literal
        return list(chosen.encode(text, add_special_tokens=False).ids)

    def encode_parts(self, parts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Return the ids of each part of one text.

        The parts are tokenized as one: a tokenizer may join characters of neighbors, or mark where
        a text begins. A token that reaches into several parts belongs to the last of them.

        Args:
            parts: words, and whether special tokens' words become their ids in them.
        """
        encoding = self.tokenizer.encode(
            "".join(text for text, _ in parts), add_special_tokens=False
        )
        ends = list(accumulate(len(text) for text, _ in parts))
        ids: list[list[int]] = [[] for _ in parts]
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            index = bisect_right(ends, max(start, end - 1))
            if token in self._special_ids:
                text, is_read = parts[index]
                if not is_read or start < ends[index] - len(text):  # it was typed, wholly or partly
                    return [self.encode(text, with_specials=is_read) for text, is_read in parts]
            ids[index].append(token)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return text without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def word(self, token: int) -> str:
        """Return the text of one id, special or not; what is part of a character, as it is kept."""
        return str(self.tokenizer.decode([token], skip_special_tokens=False))

    def id(self, word: str) -> int:
        """Return the id of a special token.

        Raises:
            CheckpointError: the tokenizer has no such token.
        """
        found = self.tokenizer.token_to_id(word)
        if found is None:
            raise CheckpointError(f"tokenizer.json: has no token {word!r}")
        return int(found)
