"""The templates that have names: the strings of each, and the Jinja that writes with them."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files

from lapilli.messages import IMAGE_MARK, Conversation
from lapilli.processor.templates import Segment, Template, jinja_template


@dataclass(frozen=True, kw_only=True)
class Turns:
    """What a template puts around what is said. What begins a text ("<s>") is the tokenizer's.

    Attributes:
        system: said where a conversation has no system message; empty for none.
        before_system: ahead of the system message.
        after_system: behind the system message.
        before_user: ahead of what a user says.
        after_user: behind what a user says.
        before_answer: ahead of an answer. A space at its end is the answer's first character, and
            is left to the model when an answer is asked for.
        after_answer: behind an answer: the end of turn, and white space around it.
        begin: ahead of everything; where there is one, user and assistant must take turns.
        between: ahead of every user's turn but the first.
        trims: white space around what is said is dropped.
    """

    system: str = ""
    before_system: str
    after_system: str
    before_user: str
    after_user: str
    before_answer: str
    after_answer: str
    begin: str = ""
    between: str = ""
    trims: bool = False

    @property
    def jinja(self) -> str:
        """The source that writes these turns, for any program that reads chat templates."""
        values = {field.name: json.dumps(getattr(self, field.name)) for field in fields(self)}
        head = "".join(f"{{%- set {name} = {value} -%}}\n" for name, value in values.items())
        return head + files("lapilli").joinpath("assets/turns.jinja").read_text(encoding="utf-8")

    def template(self, name: str) -> Template:
        """Return these turns as a template, which is compiled when it is first used."""
        end_of_turn = self.after_answer.strip()
        compiled = cache(lambda: jinja_template(self.jinja, end_of_turn=end_of_turn, name=name))

        def write(conversation: Conversation, add_generation_prompt: bool) -> list[Segment]:
            return compiled().write(conversation, add_generation_prompt)

        return Template(name, end_of_turn, write)


def _by_header(header: str, end: str, *, system: str, trims: bool = False) -> Turns:
    """Turns of every role that begin and end alike, but for the role's name."""
    return Turns(
        system=system,
        before_system=header.format("system"),
        after_system=end,
        before_user=header.format("user"),
        after_user=end,
        before_answer=header.format("assistant"),
        after_answer=end,
        trims=trims,
    )


_VICUNA = Turns(
    system="A chat between a curious user and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the user's questions.",
    before_system="",
    after_system=" ",
    before_user="USER: ",
    after_user=" ",
    before_answer="ASSISTANT: ",
    after_answer="</s>",
)
_MISTRAL = Turns(
    before_system="<<SYS>>\n",
    after_system="\n<</SYS>>\n\n",
    before_user="",
    after_user=" [/INST]",
    before_answer=" ",
    after_answer=" </s>",
    begin="[INST] ",
    between="[INST] ",
)
_LLAVA_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)

_TURNS = {
    "vicuna_v1": _VICUNA,
    "llava_v1": replace(_VICUNA, system=_VICUNA.system.replace("user", "human")),
    "llava_llama_2": replace(_MISTRAL, system=_LLAVA_SYSTEM, between="<s>[INST] "),
    "mistral_instruct": _MISTRAL,
    "chatml_direct": _by_header(
        "<|im_start|>{}\n", "<|im_end|>", system="Answer the questions."
    ),
    "qwen": _by_header(
        "<|im_start|>{}\n", "<|im_end|>\n", system="You are a helpful assistant."
    ),
    "llama_3": _by_header(
        "<|start_header_id|>{}<|end_header_id|>\n\n",
        "<|eot_id|>",
        system=_LLAVA_SYSTEM,
        trims=True,
    ),
}  # fmt: skip


def _write_plain(conversation: Conversation, add_generation_prompt: bool) -> list[Segment]:
    """Pictures and their captions; what the user asked is dropped, as LLaVA's first stage does."""
    segments = []
    for turn in conversation:
        segments += [Segment(IMAGE_MARK, "image") for _ in turn.images]
        if turn.role == "assistant":
            segments += [Segment(turn.text, "text", True), Segment("\n", "special", True)]
    return segments


TEMPLATES: dict[str, Template] = {
    "plain": Template("plain", "", _write_plain),
    **{name: turns.template(name) for name, turns in _TURNS.items()},
}
"""The templates that need no model folder, by their exact names.

Source: `llava/conversation.py` of haotian-liu/LLaVA and LLaVA-VL/LLaVA-NeXT, where `qwen` is called
`qwen_1_5` and `llama_3` is called `llava_llama_3`; `plain` and the place of pictures: `train.py`.
"""


def jinja_source(name: str) -> str | None:
    """Return the Jinja text that writes what a built-in template writes.

    None for one that has no such form: `plain` drops what the user said, which a model folder's
    own template may not.
    """
    return _TURNS[name].jinja if name in _TURNS else None
