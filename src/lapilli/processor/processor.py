"""Conversations and pictures in, model inputs out; the only place where places are kept."""

# B conversations, T tokens

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from lapilli.errors import CheckpointError, ConfigError, TooLongError
from lapilli.inputs import IGNORE, Inputs, Views
from lapilli.messages import Conversation
from lapilli.processor.builtin import TEMPLATES
from lapilli.processor.conversations import as_conversation
from lapilli.processor.images import ImageSettings, to_views
from lapilli.processor.opening import image_size, open_image
from lapilli.processor.templates import Segment, Template, jinja_template
from lapilli.processor.tokenizer import Words
from lapilli.tiling import Size


@dataclass(frozen=True)
class PromptSettings:
    """How words are prepared, as `processor.json` keeps it beside the image settings.

    Attributes:
        features_per_image: places that a picture takes in the prompt; where pictures are cut,
            those of a single tile.
        image_token: the word of the id that keeps a place.
        end_of_turn: the word after which an answer is complete.
        bos_token: written before every conversation; empty for none.
        template: a name in `TEMPLATES`, whose turns end with `end_of_turn`; empty where a chat
            template in Jinja stands beside, which wins over a name.
        max_tokens: context length, pictures included.
        splits_at_images: words behind a picture are tokenized as a text that begins there, as by
            the code that LLaVA was published with; else all words as one text.

    Raises:
        ConfigError: a count is not positive.
    """

    features_per_image: int
    image_token: str = "<image>"
    end_of_turn: str = "<|end|>"
    bos_token: str = ""
    template: str = ""
    max_tokens: int = 2048
    splits_at_images: bool = False

    def __post_init__(self) -> None:
        if min(self.features_per_image, self.max_tokens) < 1:
            raise ConfigError("features_per_image and max_tokens must be positive. Raise them.")


@dataclass(frozen=True)
class Picture:
    """A picture in its conversation.

    Attributes:
        source: what `lapilli.processor.opening.open_image` takes.
        is_cut: it is seen in tiles, too, not as a whole alone.
    """

    source: Any
    is_cut: bool = False

    def __str__(self) -> str:
        return str(self.source)


@dataclass
class Encoded:
    """One conversation as tokens.

    Attributes:
        ids: with the image token's id at each of the places of a picture.
        labels: `ids` where the loss falls, IGNORE elsewhere.
        images: the pictures, in reading order.
        places: how many of `ids` each picture takes.
    """

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    images: list[Picture] = field(default_factory=list)
    places: list[int] = field(default_factory=list)


class Processor:
    """Turns conversations into `Inputs`.

    Args:
        chat_template: Jinja source; None for the built-in template that `prompt` names.

    Raises:
        CheckpointError: the tokenizer lacks a token that `prompt` names, there is no such
            template, its turns end with another token, or `images` and `prompt` disagree.
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
        tiling = images.tiling
        if tiling is not None and tiling.tile_features**2 != prompt.features_per_image:
            raise CheckpointError(
                f"processor.json: features_per_image is {prompt.features_per_image}, a tile makes "
                f"{tiling.tile_features**2}; copy the whole model folder"
            )

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
            raise CheckpointError(
                f"processor.json: template {self.prompt.template!r}; use {known}, or add a chat "
                "template"
            )
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
        pictures = (picture for row in encoded for picture in row.images)
        opened = ((self.open(picture), picture.is_cut) for picture in pictures)
        return self.with_pictures(Inputs(ids, positions, groups), opened)

    def with_pictures(self, inputs: Inputs, pictures: Iterable[tuple[Image.Image, bool]]) -> Inputs:
        """Return inputs that hold pictures.

        Args:
            pictures: in the order of their places; and whether each is cut.
        """
        shown = list(pictures)
        return replace(inputs, **self.see(shown)._asdict()) if shown else inputs

    def see(self, pictures: Sequence[tuple[Image.Image, bool]]) -> Views:
        """Return what the vision tower sees of pictures.

        Args:
            pictures: RGB, one or more; and whether each is cut.
        """
        views = [to_views(image, self.images, is_cut=is_cut) for image, is_cut in pictures]
        pixels = torch.from_numpy(np.concatenate(views))
        if self.images.tiling is None:
            return Views(pixels)
        sizes = [(image.height, image.width) for image, _ in pictures]
        return Views(pixels, torch.tensor(sizes), torch.tensor([len(part) for part in views]))

    def encode(self, conversation: Conversation, *, is_answering: bool = False) -> Encoded:
        """Return tokens, and the labels that a loss would use.

        Of pictures, the size is read where the places that they take depend on it.

        Raises:
            PromptError: the template does not take the conversation.
            TooLongError: more tokens than the context holds.
            ImageError: a picture's size cannot be read.
        """
        pictures = self._pictures(conversation)
        encoded = Encoded(images=pictures, places=[self.num_places(part) for part in pictures])
        places = iter(encoded.places)
        segments = self.template.render(conversation, add_generation_prompt=is_answering)
        if self.prompt.bos_token and not self._starts_with_bos(segments):
            encoded.ids.append(self.words.id(self.prompt.bos_token))
            encoded.labels.append(IGNORE)
        parts = [(segment.text, segment.kind != "text") for segment in segments]
        for segment, ids in zip(segments, self._tokens(parts, segments), strict=True):
            if segment.kind == "image":
                ids = [self.image_token_id] * next(places)
            encoded.ids += ids
            encoded.labels += ids if segment.supervised else [IGNORE] * len(ids)
        if len(encoded.ids) > self.prompt.max_tokens:
            raise TooLongError(
                f"the conversation takes {len(encoded.ids)} tokens, the model holds "
                f"{self.prompt.max_tokens}. Shorten it or use fewer pictures."
            )
        return encoded

    def _tokens(self, parts: list[tuple[str, bool]], segments: list[Segment]) -> list[list[int]]:
        """The ids of each segment."""
        if not self.prompt.splits_at_images:
            return self.words.encode_parts(parts)
        ids: list[list[int]] = []
        pairs = zip(segments, parts, strict=True)
        for is_image, group in groupby(pairs, lambda pair: pair[0].kind == "image"):
            stretch = [part for _, part in group]
            ids += [[]] * len(stretch) if is_image else self.words.encode_parts(stretch)
        return ids

    def encode_beginning(self, text: str) -> Encoded:
        """Return running text as tokens that are to be continued.

        Raises:
            TooLongError: more tokens than the context holds.
        """
        ids = self.words.encode(text, with_specials=False)
        if self.prompt.bos_token:
            ids.insert(0, self.words.id(self.prompt.bos_token))
        if len(ids) > self.prompt.max_tokens:
            raise TooLongError(
                f"the text takes {len(ids)} tokens, the model holds {self.prompt.max_tokens}. "
                "Shorten it."
            )
        return Encoded(ids, [IGNORE] * len(ids))

    def encode_text(self, text: str) -> Encoded:
        """Return running text as tokens that are all learned, cut at the context length."""
        ids = self.words.encode(text, with_specials=False)[: self.prompt.max_tokens]
        return Encoded(ids, list(ids))

    def _starts_with_bos(self, segments: list[Segment]) -> bool:
        first = segments[0] if segments else Segment("", "special")
        return first.kind == "special" and first.text.startswith(self.prompt.bos_token)

    def _pictures(self, conversation: Conversation) -> list[Picture]:
        sources = [source for message in conversation for source in message.images]
        tiling = self.images.tiling
        is_cut = tiling is not None and (tiling.tiles_several or len(sources) == 1)
        return [Picture(source, is_cut) for source in sources]

    def num_places(self, picture: Picture, size: Size | None = None) -> int:
        """Return how many tokens a picture takes.

        Args:
            size: its height and width in pixels; None to read them where it matters.

        Raises:
            ImageError: its size cannot be read.
        """
        tiling, limits = self.images.tiling, self.images
        if tiling is None:
            return self.prompt.features_per_image
        if not picture.is_cut:
            return tiling.num_whole_features
        return tiling.num_features(
            size
            or image_size(picture.source, max_bytes=limits.max_bytes, max_pixels=limits.max_pixels)
        )

    def open(self, picture: Picture) -> Image.Image:
        """Return a picture as RGB, upright.

        Raises:
            ImageError: it cannot be opened.
        """
        limits = self.images
        return open_image(picture.source, max_bytes=limits.max_bytes, max_pixels=limits.max_pixels)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer's ids."""
        return self.words.decode(list(ids))
