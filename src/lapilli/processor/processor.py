"""Conversations and pictures in, model inputs out; the only place where places are kept."""

# B conversations, T tokens, N pictures, P features of a picture, S side in pixels

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from lapilli.errors import CheckpointError, ConfigError, PromptError
from lapilli.inputs import IGNORE, Inputs
from lapilli.messages import Conversation
from lapilli.processor.builtin import TEMPLATES
from lapilli.processor.conversations import as_conversation
from lapilli.processor.images import ImageSettings, to_pixels
from lapilli.processor.opening import open_image
from lapilli.processor.templates import Segment, Template, jinja_template
from lapilli.processor.tokenizer import Words


@dataclass(frozen=True)
class PromptSettings:
    """How words are prepared, as `processor.json` keeps it beside the image settings.

    Attributes:
        features_per_image: places that a picture takes in the prompt.
        image_token: the word of the id that keeps a place.
        end_of_turn: the word after which an answer is complete.
        bos_token: written before every conversation; empty for none.
        template: a name in `TEMPLATES`; a chat template in Jinja wins.
        max_tokens: context length, pictures included.

    Raises:
        ConfigError: a count is not positive.
    """

    features_per_image: int
    image_token: str = "<image>"
    end_of_turn: str = "<|end|>"
    bos_token: str = ""
    template: str = "vicuna_v1"
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        if min(self.features_per_image, self.max_tokens) < 1:
            raise ConfigError("features_per_image and max_tokens must be positive. Raise them.")


@dataclass
class Encoded:
    """One conversation as tokens.

    Attributes:
        ids: with the image token's id at each of the P places of a picture.
        labels: `ids` where the loss falls, IGNORE elsewhere.
        images: the sources of the pictures, in reading order.
    """

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)


class Processor:
    """Turns conversations into `Inputs`.

    Args:
        chat_template: Jinja source; None for the built-in template that `prompt` names.

    Raises:
        CheckpointError: the tokenizer lacks a token that `prompt` names, there is no such
            template, or its turns end with another token.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        images: ImageSettings,
        prompt: PromptSettings,
        chat_template: str | None = None,
    ) -> None:
        self.words = Words(tokenizer, (prompt.image_token, prompt.end_of_turn, prompt.bos_token))
        self.images = images
        self.prompt = prompt
        self.chat_template = chat_template
        self.image_token_id = self.words.id(prompt.image_token)
        self.end_id = self.words.id(prompt.end_of_turn)
        self.template = self._make_template()

    def _make_template(self) -> Template:
        if self.chat_template is not None:
            return jinja_template(
                self.chat_template,
                end_of_turn=self.prompt.end_of_turn,
                bos_token=self.prompt.bos_token,
                eos_token=self.prompt.end_of_turn,
                image_mark=self.prompt.image_token,
            )
        if self.prompt.template not in TEMPLATES:
            known = ", ".join(TEMPLATES)
            raise CheckpointError(f"processor.json: template {self.prompt.template!r}; use {known}")
        template = TEMPLATES[self.prompt.template]
        if template.end_of_turn not in ("", self.prompt.end_of_turn):
            raise CheckpointError(
                f"processor.json: end_of_turn {self.prompt.end_of_turn!r}; the turns of template "
                f"{template.name} end with {template.end_of_turn!r}. Write that."
            )
        return template

    def __call__(
        self, messages: Any, images: Sequence[Any] | None = None, *, is_answering: bool = True
    ) -> Inputs:
        """Return the inputs of one conversation.

        Args:
            messages: in the OpenAI form, or `Message` objects.
            images: stand at the `<image>` marks of string contents, in order.
            is_answering: end with the prompt for an answer.

        Raises:
            PromptError: malformed messages, or more tokens than the context holds.
            ImageError: a picture cannot be opened.
        """
        return self.batch([as_conversation(messages, images)], is_answering=is_answering)

    def batch(self, conversations: Sequence[Conversation], *, is_answering: bool = True) -> Inputs:
        """Return the inputs of several conversations, padded on the left."""
        return self.pad([self.encode(c, is_answering=is_answering) for c in conversations])

    def pad(self, encoded: Sequence[Encoded]) -> Inputs:
        """Return the inputs of conversations that were encoded, padded on the left; their pictures
        are opened here."""
        longest = max(len(row.ids) for row in encoded)
        size = len(encoded), longest
        ids, groups = torch.zeros(size, dtype=torch.long), torch.full(size, -1)
        positions = torch.zeros(size, dtype=torch.long)
        for index, row in enumerate(encoded):
            start = longest - len(row.ids)
            ids[index, start:] = torch.tensor(row.ids)
            groups[index, start:] = 0
            positions[index, start:] = torch.arange(len(row.ids))
        pictures = [self.pixels(source) for row in encoded for source in row.images]
        pixel_values = torch.from_numpy(np.stack(pictures)) if pictures else None
        return Inputs(ids, positions, groups, pixel_values=pixel_values)

    def encode(self, conversation: Conversation, *, is_answering: bool = False) -> Encoded:
        """Return tokens, and the labels that a loss would use.

        Raises:
            PromptError: more tokens than the context holds.
        """
        encoded = Encoded()
        segments = self.template.render(conversation, add_generation_prompt=is_answering)
        if self.prompt.bos_token and not self._starts_with_bos(segments):
            encoded.ids.append(self.words.id(self.prompt.bos_token))
            encoded.labels.append(IGNORE)
        parts = [(segment.text, segment.kind != "text") for segment in segments]
        for segment, ids in zip(segments, self.words.encode_parts(parts), strict=True):
            if segment.kind == "image":
                ids = [self.image_token_id] * self.prompt.features_per_image
            encoded.ids += ids
            encoded.labels += ids if segment.supervised else [IGNORE] * len(ids)
        encoded.images = [image for message in conversation for image in message.images]
        if len(encoded.ids) > self.prompt.max_tokens:
            raise PromptError(
                f"the conversation takes {len(encoded.ids)} tokens, the model holds "
                f"{self.prompt.max_tokens}. Shorten it or use fewer pictures."
            )
        return encoded

    def encode_text(self, text: str) -> Encoded:
        """Return running text as tokens that are all learned, cut at the context length."""
        ids = self.words.encode(text, with_specials=False)[: self.prompt.max_tokens]
        return Encoded(ids, list(ids))

    def _starts_with_bos(self, segments: list[Segment]) -> bool:
        first = segments[0] if segments else Segment("", "special")
        return first.kind == "special" and first.text.startswith(self.prompt.bos_token)

    def pixels(self, source: Any) -> np.ndarray:
        """Return one picture as (3, S, S) fp32."""
        image = open_image(
            source, max_bytes=self.images.max_bytes, max_pixels=self.images.max_pixels
        )
        return to_pixels(image, self.images)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer's ids."""
        return self.words.decode(list(ids))
