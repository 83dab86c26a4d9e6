"""Answers of a forced form: by a JSON schema or a regular expression, through llguidance."""

# V vocabulary

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lapilli.errors import EngineError, FormatError
from lapilli.messages import Format
from lapilli.processor.tokenizer import Words

MAX_CHARACTERS = 2**16
"""Of a schema or an expression."""

_JSON = {"whitespace_pattern": " ?"}
"""JSON allows white space without end, and models that were not trained on it write just that."""


class Formats:
    """Makes guides for the answers of a model.

    Args:
        words: the model's tokenizer.
        end_id: of the token that ends an answer.

    Raises:
        EngineError: llguidance is not installed.
    """

    def __init__(self, words: Words, end_id: int) -> None:
        try:
            from llguidance import LLTokenizer
        except ImportError as error:
            raise EngineError(
                "forced formats need llguidance: pip install lapilli[serve]"
            ) from error
        self._tokenizer = LLTokenizer(words.tokenizer.to_str(), eos_token=end_id)

    def guide(self, form: Format) -> Guide:
        """Return what keeps one answer to a form.

        Raises:
            FormatError: the schema or the expression is too long, broken or not supported.
        """
        from llguidance import LLMatcher

        if len(form.text) > MAX_CHARACTERS:
            raise FormatError(
                f"{form.kind}: {len(form.text)} characters; shorten it to {MAX_CHARACTERS}"
            )
        try:
            grammar = _GRAMMARS[form.kind](LLMatcher, form.text)
        except ValueError as error:
            raise FormatError(f"{form.kind}: {_first_line(str(error))}; correct it") from error
        matcher = LLMatcher(self._tokenizer, grammar)
        if matcher.is_error():
            raise FormatError(f"{form.kind}: {_first_line(matcher.get_error())}; correct it")
        return Guide(matcher, form.kind)


def _by_schema(matcher: Any, text: str) -> str:
    json.loads(text)  # its message is the clearer one
    return str(matcher.grammar_from_json_schema(text, overrides=_JSON))


_GRAMMARS = {
    "json_schema": _by_schema,
    "regex": lambda matcher, text: str(matcher.grammar_from_regex(text)),
}


class Guide:
    """What may come next in one answer."""

    def __init__(self, matcher: Any, kind: str) -> None:
        self._matcher = matcher
        self._kind = kind

    def restrict(self, logits: Tensor) -> Tensor:
        """Return (V,) logits in which all that breaks the form is impossible.

        Raises:
            FormatError: the form has become too costly to follow.
        """
        mask = self._matcher.compute_bitmask()
        self._check()
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
        is_allowed = torch.zeros(len(logits), dtype=torch.bool)
        count = min(len(bits), len(logits))
        is_allowed[:count] = torch.from_numpy(bits[:count]).bool()
        return logits.masked_fill(~is_allowed.to(logits.device), -torch.inf)

    def advance(self, token: int) -> None:
        """Take note of the token that was drawn.

        Raises:
            FormatError: the form has become too costly to follow.
        """
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise FormatError(f"{self._kind}: {_first_line(self._matcher.get_error())}")


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "not understood"
