"""Function calls, for models that were not trained on them.

The functions are described in words at the start of the conversation. A call is an answer of one
form, JSON with a name and arguments; where one is required, the form is forced. What a function
returned is told to the model as a user would tell it.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any

from lapilli.app.serve.refusals import Refusal
from lapilli.app.serve.requests import ChatRequest, Function, ToolChoice
from lapilli.messages import Format

_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}

_HEAD = (
    "You can call functions. To call one, answer with nothing but JSON of this form: "
    '{"name": "the function", "arguments": {...}}. You are told then what it returned.'
)


@dataclass(frozen=True, slots=True)
class Call:
    """A call that the model wants made.

    Attributes:
        id: for the message that brings the result.
        arguments: JSON.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions of a request that may be called.

    Attributes:
        functions: none where none was given, or none is wanted.
        is_forced: one of them must be called.
    """

    functions: tuple[Function, ...] = ()
    is_forced: bool = False

    @classmethod
    def of(cls, request: ChatRequest) -> Tools:
        """Return the functions that a request lets the model call.

        Raises:
            Refusal: the one that must be called is not among them, or there is none to choose.
        """
        functions = tuple(tool.function for tool in request.tools or ())
        choice = request.tool_choice
        if len({function.name for function in functions}) < len(functions):
            raise Refusal("invalid_value", "tools")
        if choice is not None and choice != "none" and not functions:
            raise Refusal("invalid_value", "tool_choice")
        if choice == "none":
            return cls()
        if isinstance(choice, ToolChoice):
            functions = tuple(f for f in functions if f.name == choice.function.name)
            if not functions:
                raise Refusal("invalid_value", "tool_choice")
            return cls(functions, is_forced=True)
        return cls(functions, is_forced=choice == "required")

    @property
    def description(self) -> str:
        """What the model is told; empty without functions."""
        if not self.functions:
            return ""
        lines = [_HEAD]
        for function in self.functions:
            about = f": {function.description}" if function.description else ""
            schema = json.dumps(_parameters(function), ensure_ascii=False)
            lines.append(f"Function {function.name}{about}\nArguments, as a JSON schema: {schema}")
        if self.is_forced:
            lines.append("You must call one now.")
        return "\n".join(lines)

    @property
    def form(self) -> Format | None:
        """What an answer must look like; None for anything."""
        if not self.is_forced:
            return None
        calls = [
            _call_schema(function, f"#/anyOf/{index}")
            for index, function in enumerate(self.functions)
        ]
        return Format("json_schema", json.dumps({"anyOf": calls}))

    def call_in(self, text: str) -> Call | None:
        """Return the call that an answer makes; None where it is something else."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(found, dict) or found.keys() != {"name", "arguments"}:
            return None
        names = [function.name for function in self.functions]
        if found["name"] not in names or not isinstance(found["arguments"], dict):
            return None
        return Call(
            f"call_{secrets.token_hex(12)}",
            found["name"],
            json.dumps(found["arguments"], ensure_ascii=False),
        )


def as_said(name: str, arguments: str) -> str:
    """Return the words in which the model made a call, as `Tools.description` asks for them.

    Raises:
        Refusal: the arguments are not JSON.
    """
    try:
        return json.dumps({"name": name, "arguments": json.loads(arguments)}, ensure_ascii=False)
    except (ValueError, RecursionError) as error:
        raise Refusal("invalid_value", "messages") from error


def as_told(name: str, result: str) -> str:
    """Return the words in which the model is told what a function returned."""
    return f"The function {name} returned: {result}"


class Listener:
    """Listens to an answer that may be a call, and holds back what may be one.

    Args:
        tools: without functions nothing is held back.
    """

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._held = ""
        self._is_open = not tools.functions

    def add(self, text: str) -> str:
        """Return what can be told now that `text` has come."""
        if self._is_open:
            return text
        self._held += text
        start = self._held.lstrip()[:1]
        if self._tools.is_forced or start in ("", "{"):
            return ""
        self._is_open, held = True, self._held
        self._held = ""
        return held

    def finish(self) -> tuple[str, Call | None]:
        """Return what was held back, as text or as a call."""
        call = self._tools.call_in(self._held) if self._held else None
        return ("", call) if call is not None else (self._held, None)


def _parameters(function: Function) -> dict[str, Any]:
    return _NO_ARGUMENTS if function.parameters is None else function.parameters


def _call_schema(function: Function, place: str) -> dict[str, Any]:
    """The schema of a call; what the function's own schema calls its root is elsewhere now."""
    arguments = _moved(_parameters(function), f"{place}/properties/arguments")
    return {
        "type": "object",
        "properties": {"name": {"const": function.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str) -> Any:
    if isinstance(schema, dict):
        return {
            key: place + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, place)
            for key, value in schema.items()
        }
    if isinstance(schema, list):
        return [_moved(value, place) for value in schema]
    return schema
