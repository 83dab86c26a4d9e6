"""Answers conversations, many at a time, and tells the answers as they are made."""

# B answers, V vocabulary

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lapilli.engine.answer import Answer, Told
from lapilli.engine.blocks import BLOCK_TOKENS, BlockPool
from lapilli.engine.pictures import Opened, digest
from lapilli.engine.prompt import Content
from lapilli.engine.runner import Chunk, Runner
from lapilli.engine.sampling import check_sampling, choose, logprobs
from lapilli.engine.scheduler import Counts, Scheduler
from lapilli.errors import ConfigError, EngineError, ImageError, LapilliError
from lapilli.messages import Conversation, Piece, Request, Sampling
from lapilli.model.llava import Llava
from lapilli.model.small_cache import KEPT, Kept, bytes_per_token
from lapilli.processor.conversations import as_conversation
from lapilli.processor.processor import Processor

_GREEDY = Sampling()
_CPU_CACHE_BYTES = 2**29
_GPU_CACHE_SHARE = 0.6
"""Of the memory that is free once the weights are there."""
_PICTURE_BYTES = 2**27


@dataclass(frozen=True)
class EngineSettings:
    """How an engine works; `None` chooses by the machine.

    Attributes:
        max_batch: conversations answered at once.
        max_waiting: further ones that may wait; None for any number.
        cache_tokens: tokens that the cache holds, of all conversations together.
        chunk_tokens: tokens of prompts that are read between two steps of the others' answers.
        reuses: a beginning that was read before, picture or words, is not read again.
        picture_bytes: what the features of pictures may take that were seen before.
        cache_dtype: how keys and values are kept; None for the type that the model computes in.

    Raises:
        ConfigError: a value is out of range.
    """

    max_batch: int = 16
    max_waiting: int | None = None
    cache_tokens: int | None = None
    chunk_tokens: int = 1024
    reuses: bool = True
    picture_bytes: int = _PICTURE_BYTES
    cache_dtype: Kept | None = None

    def __post_init__(self) -> None:
        for name in ("max_batch", "chunk_tokens", "cache_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; give 1 or more")
        for name in ("max_waiting", "picture_bytes"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name} is {value}; give 0 or more")
        if self.cache_dtype is not None and self.cache_dtype not in KEPT:
            raise ConfigError(
                f"cache_dtype is {self.cache_dtype!r}; give {' or '.join(KEPT)}, or None for the "
                "model's own type"
            )


@dataclass(frozen=True)
class State:
    """What an engine does at this moment, and has done.

    Attributes:
        counts: of tokens and answers so far.
        waiting: answers that have not begun.
        running: answers on their way.
        cache_tokens: tokens that the cache can hold.
        cache_bytes: what it takes.
        held_tokens: tokens of the cache that running answers hold.
        known_tokens: tokens of the cache that a later prompt may use again.
        pictures: encoded so far.
        kept_pictures: whose features are kept.
    """

    counts: Counts
    waiting: int
    running: int
    cache_tokens: int
    cache_bytes: int
    held_tokens: int
    known_tokens: int
    pictures: int
    kept_pictures: int


class Engine:
    """A `lapilli.messages.Responder` on a model of ours; after training, make a new one.

    It has no thread of its own: whoever waits for an answer moves all of them on. Several threads
    may wait at a time.

    Args:
        max_batch: conversations answered at once.
        settings: all else.

    Raises:
        ConfigError: a setting is out of range, or the cache is too small for a block.
    """

    def __init__(
        self,
        model: Llava,
        processor: Processor,
        *,
        max_batch: int | None = None,
        settings: EngineSettings | None = None,
    ) -> None:
        settings = settings or EngineSettings()
        if max_batch is not None:
            settings = replace(settings, max_batch=max_batch)
        self.settings = settings
        self.model = model
        self.processor = processor
        self.context = min(processor.prompt.max_tokens, model.spec.decoder.max_positions)
        num_blocks = -(-self._cache_tokens() // BLOCK_TOKENS)
        self._pool = BlockPool(num_blocks)
        self._runner = Runner(
            model,
            processor,
            capacity=num_blocks * BLOCK_TOKENS,
            max_position=self.context,
            picture_bytes=settings.picture_bytes,
            kept=settings.cache_dtype,
        )
        self._scheduler = Scheduler(
            self._pool,
            self._open,
            max_batch=settings.max_batch,
            chunk_tokens=settings.chunk_tokens,
            reuses=settings.reuses,
        )
        self._pictures_seen_as = f"{processor.images} {processor.prompt.features_per_image}"
        self._moving = threading.Lock()

    def _cache_tokens(self) -> int:
        """As many as were asked for; or else what all answers at once may need, within bounds, and
        what one needs at least."""
        if self.settings.cache_tokens is not None:
            return self.settings.cache_tokens
        model = self.model
        if model.device.type == "cuda":
            num_bytes = int(torch.cuda.mem_get_info(model.device)[0] * _GPU_CACHE_SHARE)
        else:
            num_bytes = _CPU_CACHE_BYTES
        kept = self.settings.cache_dtype
        affordable = num_bytes // bytes_per_token(model.spec.decoder, model.dtype, kept)
        return max(self.context, min(self.context * self.settings.max_batch, affordable))

    # Asking

    def submit(self, request: Request) -> Stream:
        """Take a request; its pieces are had by iterating over what is returned.

        Pictures are opened when the request's turn comes, words and settings are checked at once.

        Raises:
            EngineError: a setting is out of range, a prompt leaves no room for an answer or does
                not fit the cache, or too many requests wait.
            PromptError: the conversation is empty, or fits no context.
            ImageError: a picture's size cannot be read.
        """
        check_sampling(request.sampling)
        if request.num_answers < 1:
            raise EngineError(f"num_answers is {request.num_answers}; give 1 or more")
        limit = self.settings.max_waiting
        if limit is not None and len(self._scheduler.waiting) + request.num_answers > limit:
            raise EngineError(f"{limit} requests wait already; ask again later")
        told: deque[Told] = deque()
        answers = self._answers(request, "the conversation", told.append)
        self._scheduler.waiting.extend(answers)
        return Stream(self, answers, told)

    def _answers(self, request: Request, name: str, tell: Callable[[Told], None]) -> list[Answer]:
        encoded = self.processor.encode(as_conversation(request.conversation), is_answering=True)
        num_prompt = len(encoded.ids)
        if num_prompt >= self.context:
            raise EngineError(
                f"{name}: its {num_prompt} tokens leave no room for an answer in a context of "
                f"{self.context}; shorten it or use fewer pictures"
            )
        max_new = min(request.sampling.max_new_tokens, self.context - num_prompt)
        answers = [
            Answer(
                index,
                encoded,
                replace(request.sampling, seed=request.sampling.seed + index),
                max_new,
                self.processor.words,
                frozenset((self.processor.end_id, *request.sampling.stop_tokens)),
                tell,
            )
            for index in range(request.num_answers)
        ]
        if answers[0].num_blocks > self._pool.num_blocks:
            raise EngineError(
                f"{name}: {num_prompt} tokens and {max_new} of an answer; the cache holds "
                f"{self._pool.num_blocks * BLOCK_TOKENS}. Ask for a shorter answer, or give more "
                "cache_tokens"
            )
        return answers

    def respond(
        self, conversations: Sequence[Conversation], sampling: Sampling = _GREEDY
    ) -> Iterator[Piece]:
        """Yield pieces of all answers, interleaved as they are made.

        An answer depends on its own conversation and on `sampling` alone, not on what else is
        asked in the same call. The call checks settings and words, and reads the sizes of pictures
        that the model cuts; pictures are opened as their turn comes.

        Raises:
            EngineError: a setting is out of range, or a prompt leaves no room for an answer.
            PromptError: a conversation is empty, or fits no context.
            ImageError: a picture cannot be opened.
        """
        check_sampling(sampling)
        told: deque[Told] = deque()
        answers: list[Answer] = []
        for index, conversation in enumerate(conversations):
            name = f"conversation {index + 1}"
            (answer,) = self._answers(Request(conversation, sampling), name, told.append)
            answer.index = index
            answers.append(answer)
        return self._respond(answers, told)

    def _respond(self, answers: list[Answer], told: deque[Told]) -> Iterator[Piece]:
        self._scheduler.waiting.extend(answers)
        yield from Stream(self, answers, told)

    # Moving on

    def step(self) -> bool:
        """Move all answers on by one step; return whether there was anything to do.

        An answer that fails ends alone, and its reader is told.
        """
        with self._moving:
            return self._step()

    def _step(self) -> bool:
        scheduler = self._scheduler
        scheduler.drop_cancelled()
        scheduler.admit()
        chunks, stepping = scheduler.chunks(), scheduler.steppers()
        for read, logits in self._run(self._runner.read, chunks):
            for answer, num_new in read:
                scheduler.has_read(answer, num_new)
            whole = [row for row, (answer, _) in enumerate(read) if answer.num_unread == 0]
            if whole:
                self._draw([read[row].answer for row in whole], logits[whole])
        for made, logits in self._run(self._runner.step, [Chunk(answer, 1) for answer in stepping]):
            for answer, _ in made:
                scheduler.has_read(answer, 1)
            self._draw([answer for answer, _ in made], logits)
        return bool(chunks or stepping or scheduler.waiting)

    def _run(
        self, work: Callable[[list[Chunk]], Tensor], chunks: list[Chunk]
    ) -> list[tuple[list[Chunk], Tensor]]:
        """Work on all at once; if that fails, one by one, so that who is at fault ends alone."""
        if not chunks:
            return []
        try:
            return [(chunks, work(chunks))]
        except Exception as error:
            if len(chunks) > 1:
                return [done for chunk in chunks for done in self._run(work, [chunk])]
            (answer, _) = chunks[0]
            answer.fail(_as_ours(error))
            self._scheduler.end(answer)
            return []

    def _draw(self, answers: list[Answer], logits: Tensor) -> None:
        tokens = choose(logits, [answer.drawing for answer in answers])
        for row, (answer, token) in enumerate(zip(answers, tokens.tolist(), strict=True)):
            num_logprobs = answer.sampling.num_logprobs
            about = None
            if num_logprobs is not None:
                about = logprobs(logits[row], token, num_logprobs, self.processor.words.word)
            answer.take(token, about)
            if answer.finish_reason is not None:
                self._scheduler.end(answer)

    def _open(self, answer: Answer) -> Content:
        """Open an answer's pictures."""
        ids, pictures, start = answer.encoded.ids, [], 0
        image_token = self.processor.image_token_id
        for picture, count in zip(answer.encoded.images, answer.encoded.places, strict=True):
            start = ids.index(image_token, start)
            image = self.processor.open(picture)
            if self.processor.num_places(picture, (image.height, image.width)) != count:
                raise ImageError(f"{picture}: has changed since its size was read; ask again")
            about = f"{self._pictures_seen_as} {picture.is_cut}"
            key = digest(image, about)
            pictures.append(Opened(image, picture.is_cut, key, start, count))
            start += count
        return Content(ids, pictures)

    # Looking at it

    def state(self) -> State:
        """Return what is being done, and what was done so far."""
        scheduler, pool, cache = self._scheduler, self._pool, self._runner.cache
        return State(
            counts=replace(scheduler.counts),
            waiting=len(scheduler.waiting),
            running=len(scheduler.running),
            cache_tokens=pool.num_blocks * BLOCK_TOKENS,
            cache_bytes=cache.num_bytes,
            held_tokens=(pool.num_blocks - pool.num_free) * BLOCK_TOKENS,
            known_tokens=pool.num_known * BLOCK_TOKENS,
            pictures=self._runner.num_encoded,
            kept_pictures=len(self._runner.features),
        )

    def forget(self) -> None:
        """Forget all prompts and pictures that were read."""
        with self._moving:
            self._pool.forget()
            self._runner.features.forget()


class Stream(Iterator[Piece]):
    """The pieces of a request's answers, as they are made.

    To iterate moves the engine on. What is not read to its end is cancelled when it is dropped.
    """

    def __init__(self, engine: Engine, answers: Sequence[Answer], told: deque[Told]) -> None:
        self._engine = engine
        self._answers = answers
        self._told = told

    def __next__(self) -> Piece:
        """Return the next piece.

        Raises:
            LapilliError: an answer failed; the request's others are cancelled.
        """
        while True:
            # Asked first: another thread may tell the last piece after it was looked for.
            is_over = all(answer.finish_reason is not None for answer in self._answers)
            if self._told:
                break
            if is_over:
                raise StopIteration
            self._engine.step()
        told = self._told.popleft()
        if isinstance(told, LapilliError):
            self.cancel()
            raise told
        return told

    def cancel(self) -> None:
        """End the answers at the next step of the engine."""
        for answer in self._answers:
            answer.is_cancelled = True

    def __del__(self) -> None:
        self.cancel()


def _as_ours(error: Exception) -> LapilliError:
    if isinstance(error, LapilliError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return EngineError("out of memory; ask with fewer or smaller pictures, or a shorter text")
    return EngineError(f"the model failed ({type(error).__name__}: {error})".splitlines()[0])
