"""Text out of tokens, as they come."""

from __future__ import annotations

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

    def add(self, token: int) -> str:
        """Return the characters that `token` completes: none for a special token or a part."""
        self.waiting.append(token)
        text = self._new_text()
        if not text or text.endswith(_INCOMPLETE):
            return ""
        self.before, self.waiting = self.waiting, []
        return text

    def finish(self) -> str:
        """Return what was held back, without a character that will stay unfinished."""
        return self._new_text().rstrip(_INCOMPLETE)

    def _new_text(self) -> str:
        known = self.words.decode(self.before)
        return self.words.decode(self.before + self.waiting)[len(known) :]
