"""Answers conversations, several at a time, and tells the answers as they are made."""

# B rows, T tokens of the longest prompt, V vocabulary

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from lapilli.engine.sampling import check_sampling, choose
from lapilli.engine.text import TextStream
from lapilli.errors import ConfigError, EngineError
from lapilli.inputs import Inputs
from lapilli.messages import Conversation, Piece, Sampling
from lapilli.model.llava import Llava
from lapilli.model.masks import packed_mask
from lapilli.model.step import Steps
from lapilli.processor.conversations import as_conversation
from lapilli.processor.processor import Encoded, Processor

_GREEDY = Sampling()


class Engine:
    """A `lapilli.messages.Responder` on a model of ours; after training, make a new one.

    Args:
        max_batch: conversations answered at once.

    Raises:
        ConfigError: `max_batch` is no positive number.
    """

    def __init__(self, model: Llava, processor: Processor, *, max_batch: int = 16) -> None:
        if max_batch < 1:
            raise ConfigError(f"max_batch is {max_batch}; give 1 or more")
        self.model = model
        self.processor = processor
        self.max_batch = max_batch
        self.context = min(processor.prompt.max_tokens, model.spec.decoder.max_positions)

    @cached_property
    def _new_steps(self) -> Callable[[Any, Tensor, Tensor | None], Steps]:
        return self.model.new_steps()

    def respond(
        self, conversations: Sequence[Conversation], sampling: Sampling = _GREEDY
    ) -> Iterator[Piece]:
        """Yield pieces of all answers, interleaved as they are made.

        An answer depends on its own conversation and on `sampling` alone, not on what else is
        asked in the same call. The call checks settings and words, and reads the sizes of pictures
        that the model cuts; pictures are opened batch by batch, as the pieces are taken.

        Raises:
            EngineError: a setting is out of range, or a prompt leaves no room for an answer.
            PromptError: a conversation is empty, or fits no context.
            ImageError: a picture cannot be opened.
        """
        check_sampling(sampling)
        checked = [as_conversation(conversation) for conversation in conversations]
        prompts = [self._encode(index, asked) for index, asked in enumerate(checked)]
        # Neighbors of like length need little padding.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids))
        starts = range(0, len(order), self.max_batch)
        batches = (order[start : start + self.max_batch] for start in starts)
        return (
            piece
            for batch in batches
            for piece in self._answer(
                [prompts[index] for index in batch],
                [self._new_row(index, len(prompts[index].ids), sampling) for index in batch],
                sampling,
            )
        )

    def _encode(self, index: int, conversation: Conversation) -> Encoded:
        prompt = self.processor.encode(conversation, is_answering=True)
        if len(prompt.ids) >= self.context:
            raise EngineError(
                f"conversation {index + 1}: its {len(prompt.ids)} tokens leave no room for an "
                f"answer in a context of {self.context}; shorten it or use fewer pictures"
            )
        return prompt

    def _new_row(self, index: int, num_prompt: int, sampling: Sampling) -> _Row:
        return _Row(
            index,
            min(sampling.max_new_tokens, self.context - num_prompt),
            random.Random(sampling.seed),
            TextStream(self.processor.words),
        )

    def _answer(
        self, prompts: list[Encoded], rows: list[_Row], sampling: Sampling
    ) -> Iterator[Piece]:
        inputs = self.processor.pad(prompts)
        stepper, logits = self._read_prompts(inputs, max(row.max_new for row in rows))
        while True:
            tokens = choose(logits, sampling, [row.die for row in rows])
            for row, token in zip(rows, tokens.tolist(), strict=True):
                piece = row.take(token, self.processor.end_id)
                if piece is not None:
                    yield piece
            unfinished = [place for place, row in enumerate(rows) if row.finish_reason is None]
            if not unfinished:
                return
            # To drop a row is to copy the others' cache, so it waits until half are finished.
            if 2 * len(unfinished) <= len(rows):
                rows = [rows[place] for place in unfinished]
                kept = torch.tensor(unfinished, device=tokens.device)
                tokens = tokens[kept]
                stepper.keep(kept)
            logits = self._step(stepper, tokens)

    # Inference mode is entered call by call: held over a `yield`, it would reach the caller's code.

    @torch.inference_mode()
    def _read_prompts(self, inputs: Inputs, max_new: int) -> tuple[Steps, Tensor]:
        """Return what continues the prompts, and the (B, V) logits of the first new tokens."""
        model, decoder = self.model, self.model.language_model
        inputs = inputs.to(model.device, model.dtype)
        num_rows, num_tokens = inputs.input_ids.shape
        is_token = inputs.groups >= 0
        is_padded = not bool(is_token.all())
        cache = model.new_cache(num_rows, num_tokens + max_new)
        hidden = decoder(
            model.embed(
                inputs.input_ids, inputs.pixel_values, inputs.image_sizes, inputs.num_views
            ),
            inputs.positions,
            packed_mask(inputs.groups) if is_padded else None,
            cache,
        )
        next_positions = inputs.positions[:, -1] + 1
        stepper = self._new_steps(cache, next_positions, is_token if is_padded else None)
        return stepper, decoder.lm_head(hidden[:, -1])

    @torch.inference_mode()
    def _step(self, stepper: Steps, tokens: Tensor) -> Tensor:
        return stepper(tokens)


@dataclass(slots=True)
class _Row:
    """One conversation on its way.

    Attributes:
        index: its place in the call.
        max_new: tokens that the answer may take.
        die: thrown once a token; unused when greedy.
        text: what the tokens spell.
        num_new: tokens made.
        num_untold: those of them not yet told in a piece.
    """

    index: int
    max_new: int
    die: random.Random
    text: TextStream
    num_new: int = 0
    num_untold: int = 0
    finish_reason: Literal["stop", "length"] | None = None

    def take(self, token: int, end_id: int) -> Piece | None:
        """Add a token; return a piece where there is something to tell."""
        if self.finish_reason is not None:
            return None
        self.num_new += 1
        self.num_untold += 1
        text = ""
        if token == end_id:
            self.finish_reason = "stop"
        else:
            text = self.text.add(token)
            if self.num_new == self.max_new:
                self.finish_reason = "length"
        if self.finish_reason is not None:
            text += self.text.finish()
        elif not text:
            return None
        piece = Piece(self.index, text, self.finish_reason, self.num_untold)
        self.num_untold = 0
        return piece
