"""One answer on its way: what was asked, what was made, and where it lies in the cache."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lapilli.engine.blocks import BLOCK_TOKENS
from lapilli.engine.formats import Guide
from lapilli.engine.prompt import Content, Prompt
from lapilli.engine.sampling import Drawing
from lapilli.engine.text import StopTexts, TextStream
from lapilli.errors import LapilliError
from lapilli.messages import FinishReason, Piece, Sampling, TokenLogprob, Usage
from lapilli.model.cache import Stretch
from lapilli.processor.tokenizer import Words

Told = Piece | LapilliError
"""What a reader is told: a piece of the answer, or why there is none."""


@dataclass(eq=False)
class Answer:
    """One answer on its way.

    Attributes:
        index: told with every piece.
        prompt: its pictures not yet opened.
        max_new: tokens that the answer may take.
        tell: called with every piece, and with an error if one ends the answer.
        guide: keeps the answer to its form; None for free text.
        content: prompt and answer; None until the pictures are opened.
        blocks: of the cache, in the order of the tokens; with room for all that may come.
        stretches: where these blocks lie.
        num_read: tokens whose keys and values are in the cache.
        num_reused: those of them that earlier work had left there.
        is_cancelled: nobody wants it any more.
        finish_reason: None while it goes on.
    """

    index: int
    prompt: Prompt
    sampling: Sampling
    max_new: int
    words: Words
    end_ids: frozenset[int]
    tell: Callable[[Told], None]
    guide: Guide | None = None
    content: Content | None = None
    blocks: list[int] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)
    num_read: int = 0
    num_reused: int = 0
    is_cancelled: bool = False
    finish_reason: FinishReason | None = None
    num_new: int = 0

    def __post_init__(self) -> None:
        self.num_prompt = len(self.prompt.ids)
        die = random.Random(self.sampling.seed)
        self.drawing = Drawing(self.sampling, die, guide=self.guide)
        if self.sampling.repetition_penalty != 1:
            self.drawing.seen.update(self.prompt.ids)
        self._text = TextStream(self.words)
        self._stops = StopTexts(self.sampling.stop)
        self._untold: list[TokenLogprob] = []
        self._num_untold = 0

    @property
    def num_blocks(self) -> int:
        """Blocks that prompt and answer may take; the last token's keys are never read."""
        return -(-(self.num_prompt + self.max_new - 1) // BLOCK_TOKENS)

    @property
    def num_unread(self) -> int:
        """Tokens of the prompt, or the last of the answer, that the model is to read next."""
        return 0 if self.content is None else len(self.content) - self.num_read

    def take(self, token: int, logprob: TokenLogprob | None = None) -> None:
        """Add a token that was drawn, and tell what can be told."""
        assert self.content is not None
        self.num_new += 1
        self._num_untold += 1
        if logprob is not None:
            self._untold.append(logprob)
        text = ""
        if token in self.end_ids:
            self.finish_reason = "stop"
        else:
            text = self._stops.add(self._text.add(token))
            if self._stops.is_met:
                self.finish_reason = "stop"
            elif self.num_new == self.max_new:
                self.finish_reason = "length"
        if self.finish_reason is None:
            self.content.extend([token])
            self.drawing.take(token)
            if text:
                self._tell(text)
            return
        if not self._stops.is_met:
            text += self._stops.add(self._text.finish())
            text += self._stops.finish()
            if self._stops.is_met:
                self.finish_reason = "stop"
        self._tell(text)

    def cancel(self) -> None:
        """End as cancelled."""
        self.finish_reason = "cancelled"
        self._tell("")

    def fail(self, error: LapilliError) -> None:
        """End with an error."""
        self.finish_reason = "cancelled"
        self.tell(error)

    def _tell(self, text: str) -> None:
        usage = None
        if self.finish_reason is not None:
            usage = Usage(self.num_prompt, self.num_reused, self.num_new)
        self.tell(
            Piece(
                self.index,
                text,
                self.finish_reason,
                self._num_untold,
                tuple(self._untold),
                usage,
            )
        )
        self._num_untold = 0
        self._untold.clear()


def stretches_of(blocks: Sequence[int]) -> list[Stretch]:
    """Return where blocks lie in the cache, those that follow each other as one."""
    stretches: list[Stretch] = []
    for block in blocks:
        start, stop = block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS
        if stretches and stretches[-1][1] == start:
            stretches[-1] = stretches[-1][0], stop
        else:
            stretches.append((start, stop))
    return stretches
