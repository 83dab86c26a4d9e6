"""Answers conversations, many at a time, and tells the answers as they are made."""

# B answers, V vocabulary

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from lapilli.engine.answer import Answer, Told
from lapilli.engine.blocks import BLOCK_TOKENS, BlockPool
from lapilli.engine.formats import Formats
from lapilli.engine.pictures import Opened, digest
from lapilli.engine.prompt import Content, Prompt
from lapilli.engine.runner import Chunk, Runner
from lapilli.engine.sampling import check_sampling, choose, logprobs
from lapilli.engine.scheduler import Scheduler
from lapilli.engine.settings import EngineSettings, State
from lapilli.engine.stream import Stream
from lapilli.errors import BusyError, EngineError, ImageError, LapilliError, TooLongError
from lapilli.messages import Conversation, Piece, Request, Sampling
from lapilli.model.llava import Llava
from lapilli.model.small_cache import bytes_per_token
from lapilli.model.spec import ForeignSpec
from lapilli.processor.conversations import as_conversation
from lapilli.processor.processor import Processor

_GREEDY = Sampling()
_CPU_CACHE_BYTES = 2**29
_GPU_CACHE_SHARE = 0.6
"""Of the memory that is free once the weights are there."""


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
            visual_choice=settings.visual_choice,
            kept=settings.cache_dtype,
        )
        self._scheduler = Scheduler(
            self._pool,
            self._open,
            max_batch=settings.max_batch,
            chunk_tokens=settings.chunk_tokens,
            reuses=settings.reuses,
        )
        # All that decides what is seen of a picture, beside its pixels
        self._seen_as = (
            f"{processor.images} {processor.prompt.features_per_image} "
            f"{settings.visual_tokens} {settings.visual_choice}"
        )
        self._moving = threading.Lock()

    @cached_property
    def _formats(self) -> Formats:
        return Formats(self.processor.words, self.processor.end_id)

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
        affordable = num_bytes // self._bytes_per_token()
        return max(self.context, min(self.context * self.settings.max_batch, affordable))

    def _bytes_per_token(self) -> int:
        spec, dtype = self.model.spec.decoder, self.model.dtype
        if isinstance(spec, ForeignSpec):
            return 2 * spec.num_layers * spec.width * dtype.itemsize  # at most
        return bytes_per_token(spec, dtype, self.settings.cache_dtype)

    # Asking

    def submit(self, request: Request) -> Stream:
        """Take a request; its pieces are had by iterating over what is returned.

        Pictures are opened when the request's turn comes, words and settings are checked at once.

        Raises:
            EngineError: a setting is out of range.
            FormatError: the form of the answer cannot be followed.
            BusyError: too many requests wait.
            PromptError: the conversation is empty.
            TooLongError: it leaves no room for an answer, in the context or in the cache.
            ImageError: a picture's size cannot be read.
        """
        told: deque[Told] = deque()
        answers = self.prepare(request, told.append)
        self.begin(answers)
        return Stream(answers, told, self.step)

    def prepare(self, request: Request, tell: Callable[[Told], None]) -> list[Answer]:
        """Check a request, and return its answers for `begin`.

        Args:
            tell: called with every piece, or with the error that ends an answer, by whoever moves
                the engine on.

        Raises: as `submit`.
        """
        check_sampling(request.sampling)
        if request.num_answers < 1:
            raise EngineError(f"num_answers is {request.num_answers}; give 1 or more")
        return self._answers(request, "the conversation", tell)

    def begin(self, answers: Sequence[Answer]) -> None:
        """Let answers wait for their turn.

        Raises:
            BusyError: too many wait already.
        """
        limit = self.settings.max_waiting
        if limit is not None and len(self._scheduler.waiting) + len(answers) > limit:
            raise BusyError(f"{limit} requests wait already; ask again later")
        self._scheduler.waiting.extend(answers)

    def _answers(self, request: Request, name: str, tell: Callable[[Told], None]) -> list[Answer]:
        if request.text:
            encoded = self.processor.encode_beginning(request.text)
        else:
            conversation = as_conversation(request.conversation)
            encoded = self.processor.encode(conversation, is_answering=True)
        num_left = self.context - len(encoded.ids)  # features that are not shown keep positions
        if num_left < 1:
            raise TooLongError(
                f"{name}: its {len(encoded.ids)} tokens leave no room for an answer in a context "
                f"of {self.context}; shorten it or use fewer pictures"
            )
        prompt = Prompt.of(encoded, self.processor.image_token_id, self.settings.visual_tokens)
        max_new = min(request.sampling.max_new_tokens, num_left)
        form = request.sampling.form
        answers = [
            Answer(
                index,
                prompt,
                replace(request.sampling, seed=request.sampling.seed + index),
                max_new,
                self.processor.words,
                frozenset((self.processor.end_id, *request.sampling.stop_tokens)),
                tell,
                None if form is None else self._formats.guide(form),
            )
            for index in range(request.num_answers)
        ]
        if answers[0].num_blocks > self._pool.num_blocks:
            raise TooLongError(
                f"{name}: {len(prompt.ids)} tokens and {max_new} of an answer; the cache holds "
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
            EngineError: a setting is out of range.
            PromptError: a conversation is empty.
            TooLongError: it leaves no room for an answer.
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
        yield from Stream(answers, told, self.step)

    # Moving on

    @property
    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._scheduler.waiting or self._scheduler.running)

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
        """Draw the next token of each answer, and tell it."""
        tokens = choose(logits, [answer.drawing for answer in answers])
        for answer, token, row in zip(answers, tokens, logits, strict=True):
            try:
                self._take(answer, token, row)
            except Exception as error:
                answer.fail(_as_ours(error))
            if answer.finish_reason is not None:
                self._scheduler.end(answer)

    def _take(self, answer: Answer, token: int | EngineError, logits: Tensor) -> None:
        if isinstance(token, EngineError):
            raise token
        count = answer.sampling.num_logprobs
        word = self.processor.words.word
        answer.take(token, None if count is None else logprobs(logits, token, count, word))

    def _open(self, answer: Answer) -> Content:
        """Open an answer's pictures."""
        try:
            return self._opened(answer)
        except Exception as error:
            raise _as_ours(error) from error

    def _opened(self, answer: Answer) -> Content:
        pictures = []
        for picture, start, num_places, num_features in answer.prompt.places:
            image = self.processor.open(picture)
            if self.processor.num_places(picture, (image.height, image.width)) != num_features:
                raise ImageError(f"{picture}: has changed since its size was read; ask again")
            key = digest(image, f"{self._seen_as} {picture.is_cut}")
            pictures.append(Opened(image, picture.is_cut, key, start, num_places, num_features))
        return Content(answer.prompt.ids, pictures)

    def end_all(self, error: Exception) -> None:
        """End all answers with an error, and forget what was read, after a step that failed."""
        with self._moving:
            for answer in (*self._scheduler.waiting, *self._scheduler.running):
                answer.fail(_as_ours(error))
                self._scheduler.end(answer)
        self.forget()

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


def _as_ours(error: Exception) -> LapilliError:
    if isinstance(error, LapilliError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return EngineError("out of memory; ask with fewer or smaller pictures, or a shorter text")
    return EngineError(f"the model failed ({type(error).__name__}: {error})".splitlines()[0])
