"""Who is answered next: first come, first served, as far as the cache has room."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from lapilli.engine.answer import Answer, stretches_of
from lapilli.engine.blocks import BLOCK_TOKENS, BlockPool, Key
from lapilli.engine.prompt import Content
from lapilli.engine.runner import Chunk
from lapilli.errors import LapilliError


@dataclass
class Counts:
    """What was done so far.

    Attributes:
        prompt_tokens: of prompts that were begun.
        reused_tokens: those of them that the cache held already.
        answer_tokens: made.
        answers: ended, for whatever reason.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    answer_tokens: int = 0
    answers: int = 0


class Scheduler:
    """Waiting and running answers, and the blocks that they hold.

    A running answer holds blocks for all that it may become, so that none ever has to stop for
    want of memory.

    Args:
        open_prompt: opens the pictures of an answer.
        reuses: beginnings that the cache holds are not read again.
    """

    def __init__(
        self,
        pool: BlockPool,
        open_prompt: Callable[[Answer], Content],
        *,
        max_batch: int,
        chunk_tokens: int,
        reuses: bool,
    ) -> None:
        self.pool = pool
        self.open_prompt = open_prompt
        self.max_batch = max_batch
        self.chunk_tokens = chunk_tokens
        self.reuses = reuses
        self.waiting: deque[Answer] = deque()
        self.running: list[Answer] = []
        self.counts = Counts()
        self._being_read: dict[Key, Answer] = {}

    def drop_cancelled(self) -> None:
        """End the answers that nobody wants any more."""
        for answer in [a for a in (*self.waiting, *self.running) if a.is_cancelled]:
            answer.cancel()
            self.end(answer)

    def admit(self) -> None:
        """Let waiting answers run, in their order, while there is room.

        One whose beginning another is reading right now waits for that, and those behind it may
        pass.
        """
        held_up: list[Answer] = []
        while self.waiting and len(self.running) < self.max_batch:
            answer = self.waiting.popleft()
            if not self._open(answer):
                continue
            if self._is_being_read(answer):
                held_up.append(answer)
            elif not self._give_blocks(answer):
                self.waiting.appendleft(answer)
                break
            else:
                self.running.append(answer)
        self.waiting.extendleft(reversed(held_up))

    def _open(self, answer: Answer) -> bool:
        """Open an answer's pictures; an answer whose pictures cannot be opened ends."""
        if answer.content is None:
            try:
                answer.content = self.open_prompt(answer)
            except LapilliError as error:
                answer.fail(error)
                self.counts.answers += 1
        return answer.content is not None

    def _useful_keys(self, answer: Answer) -> list[Key]:
        """Keys of beginnings that need not be read; the last token must, to know what follows."""
        assert answer.content is not None
        return answer.content.keys[: (answer.num_prompt - 1) // BLOCK_TOKENS]

    def _is_being_read(self, answer: Answer) -> bool:
        if not self.reuses:
            return False
        keys = self._useful_keys(answer)
        num_found = len(self.pool.find(keys))
        return num_found < len(keys) and keys[num_found] in self._being_read

    def _give_blocks(self, answer: Answer) -> bool:
        keys = self._useful_keys(answer) if self.reuses else []
        found = self.pool.find(keys)
        self.pool.hold(found)
        num_more = answer.num_blocks - len(found)
        if num_more > self.pool.num_free:
            self.pool.let_go(found)
            return False
        answer.blocks = found + self.pool.take(num_more, after=found[-1] if found else None)
        answer.stretches = stretches_of(answer.blocks)
        answer.num_read = answer.num_reused = len(found) * BLOCK_TOKENS
        self._being_read |= dict.fromkeys(keys[len(found) :], answer)
        self.counts.prompt_tokens += answer.num_prompt
        self.counts.reused_tokens += answer.num_reused
        return True

    def chunks(self) -> list[Chunk]:
        """Return the parts of prompts that are read next, in the order in which they came."""
        left, chosen = self.chunk_tokens, []
        for answer in self.running:
            num_unread = answer.num_unread
            if left > 0 and answer.num_new == 0:
                chosen.append(Chunk(answer, min(num_unread, left)))
                left -= chosen[-1].num_new
        return chosen

    def steppers(self) -> list[Answer]:
        """Return the answers of which a token was made that the model has not read."""
        return [answer for answer in self.running if answer.num_new > 0]

    def has_read(self, answer: Answer, num_new: int) -> None:
        """Take note that the cache now holds more of an answer; full blocks become known."""
        assert answer.content is not None
        first = answer.num_read // BLOCK_TOKENS
        answer.num_read += num_new
        if not self.reuses:
            return
        for block in range(first, answer.num_read // BLOCK_TOKENS):
            key = answer.content.keys[block]
            self.pool.name(answer.blocks[block], key)
            if self._being_read.get(key) is answer:
                del self._being_read[key]

    def end(self, answer: Answer) -> None:
        """Let go what an answer holds."""
        if answer in self.running:
            self.running.remove(answer)
        elif answer in self.waiting:
            self.waiting.remove(answer)
        self.pool.let_go(answer.blocks)
        answer.blocks = []
        unread = [key for key, reader in self._being_read.items() if reader is answer]
        for key in unread:
            del self._being_read[key]
        self.counts.answers += 1
        self.counts.answer_tokens += answer.num_new
