"""From a conversation to text in segments: what is template, what was said, what is learned.

What people and models say never passes through a template. A place is kept for it, and the words
are put in afterwards as segments of their own, so `</s>` typed by a user stays four characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lapilli.errors import CheckpointError, LapilliError, PromptError
from lapilli.messages import IMAGE_MARK, Conversation, ImagePart
from lapilli.processor.sandbox import compile_template

# Private-use characters survive `trim`, `upper` and `split`, and no template writes them.
_SENTINEL = "\ue0f0{}\ue0f1"
_SENTINEL_PATTERN = re.compile("\ue0f0(\\d+)\ue0f1")


@dataclass(frozen=True)
class Segment:
    """A stretch of rendered text.

    Attributes:
        text: the characters; for an image, the mark that the template wrote.
        kind: "special" is template text, in which special tokens are read as such; "text" was
            said by someone and is tokenized literally; "image" is the place of one picture.
        supervised: the loss falls on it: assistant words and the end of turn after them.
    """

    text: str
    kind: Literal["special", "text", "image"]
    supervised: bool = False


@dataclass(frozen=True)
class Template:
    """A way to write a conversation down for a model.

    Attributes:
        name: for people.
        end_of_turn: the token that the model writes when it has finished; empty where the template
            has none.
        write: from (conversation, add_generation_prompt) to segments.
    """

    name: str
    end_of_turn: str
    write: Callable[[Conversation, bool], list[Segment]]

    def render(self, conversation: Conversation, *, add_generation_prompt: bool) -> list[Segment]:
        """Write a conversation as segments, none of them empty.

        A space between template text and words belongs to the words: tokenizers join them into
        one token, and a model that is asked after "ASSISTANT:" must produce that space itself.

        Args:
            conversation: the turns, pictures standing in reading order.
            add_generation_prompt: end with what precedes an answer.

        Raises:
            PromptError: the conversation does not fit the template.
            CheckpointError: the template is broken or not allowed.
        """
        return _tidy(self.write(conversation, add_generation_prompt))


def jinja_template(
    source: str,
    *,
    end_of_turn: str,
    bos_token: str = "",
    eos_token: str = "",
    image_mark: str = IMAGE_MARK,
    name: str = "jinja",
) -> Template:
    """A model folder's own `chat_template.jinja`, as a template that is not trusted.

    Args:
        source: the Jinja text.
        end_of_turn: supervised where it follows an answer ("<|im_end|>", "</s>").
        bos_token: what the template calls `bos_token`.
        eos_token: what the template calls `eos_token`.
        image_mark: what the template writes for a picture.
        name: for messages to people.

    Raises:
        CheckpointError: the source is too long or is not Jinja.
    """
    run = compile_template(source, name=name)
    tokens = {"bos_token": bos_token, "eos_token": eos_token}

    def write(conversation: Conversation, add_generation_prompt: bool) -> list[Segment]:
        first_error: LapilliError | None = None
        for as_content in (_content_parts, lambda parts: _content_string(parts, image_mark)):
            messages, words = _keep_places(conversation, as_content)
            values = {"messages": messages, "add_generation_prompt": add_generation_prompt}
            try:
                text = run(values | tokens)
                return _fill_places(text, words, conversation, image_mark, end_of_turn, name)
            except (CheckpointError, PromptError) as error:
                first_error = first_error or error
        assert first_error is not None
        raise first_error

    return Template(name, end_of_turn, write)


def _tidy(segments: list[Segment]) -> list[Segment]:
    """Merge neighbors that are alike, drop empty ones, and give words the space before them."""
    tidy: list[Segment] = []
    for segment in segments:
        last = tidy[-1] if tidy else None
        if not segment.text:
            continue
        if last and segment.kind == "text" and last.kind == "special" and last.text[-1] == " ":
            tidy.pop()
            if last.text != " ":
                tidy.append(Segment(last.text[:-1], "special", last.supervised))
            segment = Segment(" " + segment.text, "text", segment.supervised)
            last = tidy[-1] if tidy else None
        mergeable = last and segment.kind != "image" and last.kind == segment.kind
        if last and mergeable and last.supervised == segment.supervised:
            tidy[-1] = Segment(last.text + segment.text, segment.kind, segment.supervised)
        else:
            tidy.append(segment)
    return tidy


@dataclass(frozen=True)
class _Words:
    """What a sentinel stands for, and the white space that the template saw around it."""

    text: str
    before: str
    after: str
    supervised: bool


def _keep_places(
    conversation: Conversation, as_content: Callable[[list[str | None]], Any]
) -> tuple[list[dict[str, Any]], list[_Words]]:
    """Messages for Jinja in which each text is a sentinel, and the words that belong there.

    White space at the ends stays outside the sentinel, so that a template's `trim` acts on it.
    """
    words: list[_Words] = []
    messages = []
    for turn in conversation:
        parts: list[str | None] = []  # None stands for a picture
        for part in turn.parts:
            if isinstance(part, ImagePart):
                parts.append(None)
                continue
            core = part.text.strip()
            before, _, after = part.text.partition(core) if core else (part.text, "", "")
            parts.append(f"{before}{_SENTINEL.format(len(words))}{after}")
            words.append(_Words(core, before, after, turn.role == "assistant"))
        messages.append({"role": turn.role, "content": as_content(parts)})
    return messages, words


def _content_parts(parts: list[str | None]) -> list[dict[str, str]]:
    return [{"type": "image"} if p is None else {"type": "text", "text": p} for p in parts]


def _content_string(parts: list[str | None], image_mark: str) -> str:
    return "".join(f"{image_mark}\n" if part is None else part for part in parts)


def _fill_places(
    rendered: str,
    words: list[_Words],
    conversation: Conversation,
    image_mark: str,
    end_of_turn: str,
    name: str,
) -> list[Segment]:
    """Put the words where their sentinels came out, and find marks and ends of turns between."""
    literals = _SENTINEL_PATTERN.split(rendered)  # literal, index, literal, index, ..., literal
    if [int(index) for index in literals[1::2]] != list(range(len(words))):
        raise PromptError(
            f"template {name}: does not place every message once and in order. "
            "Change the messages or the template."
        )
    num_marks = sum(literal.count(image_mark) for literal in literals[::2])
    num_images = sum(len(turn.images) for turn in conversation)
    if num_marks != num_images:
        raise PromptError(
            f"template {name}: writes {num_marks} of {num_images} pictures. "
            "Use a template for pictures."
        )
    literals[1::2] = [""] * len(words)
    segments: list[Segment] = []
    for index, said in enumerate(words):
        here, there = 2 * index, 2 * index + 2
        text = said.text
        if said.before and literals[here].endswith(said.before):
            literals[here] = literals[here].removesuffix(said.before)
            text = said.before + text
        if said.after and literals[there].startswith(said.after):
            literals[there] = literals[there].removeprefix(said.after)
            text += said.after
        segments += _split_literal(literals[here], image_mark)
        segments.append(Segment(text, "text", said.supervised))
        end = re.match(rf"\s*{re.escape(end_of_turn)}", literals[there]) if end_of_turn else None
        if said.supervised and end:
            segments.append(Segment(end.group(), "special", True))
            literals[there] = literals[there][end.end() :]
    return segments + _split_literal(literals[-1], image_mark)


def _split_literal(literal: str, image_mark: str) -> list[Segment]:
    first, *rest = literal.split(image_mark)
    segments = [Segment(first, "special")]
    for piece in rest:
        segments += [Segment(image_mark, "image"), Segment(piece, "special")]
    return segments
