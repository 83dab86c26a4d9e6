"""Text out of tokens, as they come."""

from __future__ import annotations

from collections.abc import Sequence

from lapilli.processor.tokenizer import Words

_INCOMPLETE = "\ufffd"


class TextStream:
    """Turns one answer's ids into text, a few whole characters at a time.

    A character may take several tokens, and some tokenizers drop the space of a token that stands
    first: what is new is the difference between the last few tokens' text with and without it.
    """

    def __init__(self, words: Words) -> None:
        self.words = words
        self.waiting: list[int] = []
        self.before: list[int] = []
        self._known = ""  # the text of `before`

    def add(self, token: int) -> str:
        """Return the characters that `token` completes: none for a special token or a part."""
        self.waiting.append(token)
        text = self._new_text()
        if not text or text.endswith(_INCOMPLETE):
            return ""
        self.before, self.waiting = self.waiting, []
        self._known = self.words.decode(self.before)
        return text

    def finish(self) -> str:
        """Return what was held back, without a character that will stay unfinished."""
        return self._new_text().rstrip(_INCOMPLETE)

    def _new_text(self) -> str:
        return self.words.decode(self.before + self.waiting)[len(self._known) :]


class StopTexts:
    """Holds back text that may become one of the texts at which an answer ends.

    Attributes:
        is_met: one of them came; what follows is dropped.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.is_met = False
        self._held = ""

    def add(self, text: str) -> str:
        """Return what can be told now that `text` has come."""
        if not self.stops or self.is_met:
            return "" if self.is_met else text
        text = self._held + text
        found = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if found:
            self.is_met, self._held = True, ""
            return text[: min(found)]
        num_held = max(_overlap(text, stop) for stop in self.stops)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def finish(self) -> str:
        """Return what was held back, when nothing more comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
