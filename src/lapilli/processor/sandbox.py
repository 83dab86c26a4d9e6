"""Jinja for templates that strangers wrote: sandboxed, and limited in time, memory and size.

Jinja's own sandbox keeps a template away from Python; it does not keep it from counting to ten
billion or doubling a string sixty times. Here every loop, macro and call spends from a budget, and
so does every value that is made or written: a list counts as long as its text would be.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import ChainMap
from collections.abc import Callable, Mapping, MutableMapping
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from lapilli.errors import CheckpointError, PromptError

MAX_SOURCE_CHARS = 50_000  # a few seconds to compile at worst
MAX_OUTPUT_CHARS = 1_000_000
MAX_STEPS = 500_000
MAX_SECONDS = 2.0
_MAX_CHARS = 20_000_000
_MAX_VALUE_CHARS = 1_000_000
_MAX_COUNT = 10_000
_MAX_PRODUCT = 10_000_000
_WIDE_FIELD = re.compile(r"\d{5}|\*|\{[^}]*\{")


class LimitError(SecurityError):
    """A template asked for more time or memory than it may have."""


class _RefusedError(TemplateError):
    """The template itself refused the conversation (`raise_exception`)."""


class _Budget:
    """What one rendering has spent.

    Args:
        values: what it is given, measured once.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.sizes: dict[int, int] = {}
        self.given = values  # as long as they live, their ids are theirs
        for value in values.values():
            _size(value, self.sizes)
        self.num_steps = 0
        self.num_chars = 0
        self.deadline = time.monotonic() + MAX_SECONDS

    def spend(self, *, steps: int = 0, chars: int = 0) -> None:
        self.num_steps += steps
        self.num_chars += chars
        if self.num_steps > MAX_STEPS:
            raise LimitError(f"it takes more than {MAX_STEPS:,} steps")
        if self.num_chars > _MAX_CHARS:
            raise LimitError(f"it makes more than {_MAX_CHARS:,} characters")
        if time.monotonic() > self.deadline:
            raise LimitError(f"it takes more than {MAX_SECONDS:g} s")


_budget: ContextVar[_Budget] = ContextVar("_budget")


class _Generation(Extension):
    """`{% generation %}` marks what a model says; we know that from elsewhere and pass it on."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it as a plain class attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Meter(NodeTransformer):
    """Put a step at the head of each loop and macro, and measure what `~` joins and lists hold."""

    def _step_first(self, node: Any) -> Any:
        num_chars = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("step", nodes.Const(num_chars))))
        return node

    visit_For = visit_Macro = visit_CallBlock = _step_first  # noqa: N815 - Jinja's names

    def _measure(self, node: Any) -> Any:
        self.generic_visit(node)
        is_target = getattr(node, "ctx", "load") != "load"  # `for a, b in ...`
        return node if is_target else _call("keep", node)

    visit_List = visit_Tuple = visit_Dict = _measure  # noqa: N815 - Jinja's names

    def visit_Concat(self, node: nodes.Concat) -> Any:  # noqa: N802 - Jinja's name
        self.generic_visit(node)
        return _call("join", nodes.List(node.nodes))


def _call(method: str, argument: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), [argument], [], None, None)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, LoopControlExtension],
            finalize=_check,
        )
        self.filters["tojson"] = _to_json
        for name in ("pprint", "striptags", "urlize", "xmlattr"):  # slow, and of no use here
            del self.filters[name]
        self.filters = {name: _measured(function) for name, function in self.filters.items()}
        del self.globals["lipsum"]
        self.globals.update(raise_exception=_refuse, strftime_now=_strftime_now)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Meter().visit(super()._parse(source, name, filename))
        return tree.set_environment(self)  # type: ignore[return-value]

    def step(self, num_chars: int) -> None:
        """Pay for the template's own text between here and the next step."""
        _budget.get().spend(chars=num_chars)

    def keep(self, value: Any) -> Any:
        """Return `value`, which `call` measures like any other result."""
        return value

    def join(self, values: list[Any]) -> str:
        """What `~` does, measured."""
        return "".join(map(str, _check(values)))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and not (_is_number(left) and _is_number(right)):
            _check_arguments(left, right)
            sized, times = (right, left) if _is_number(left) else (left, right)
            if _is_number(times) and times * len(sized) > _MAX_VALUE_CHARS:
                raise LimitError("it makes a value that is too long")
        if operator == "**" and (abs(left) > _MAX_COUNT or abs(right) > 16):
            raise LimitError("it raises a number to too high a power")
        if operator == "%" and isinstance(left, str):
            _check_arguments(left, right, has_counts=False)
            if _WIDE_FIELD.search(left):
                raise LimitError("it formats a field that is too wide")
        return _check(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        _budget.get().spend(steps=1)
        # `str.format` arrives wrapped by the sandbox, with the original behind `__wrapped__`.
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if isinstance(owner, str):
            is_format = getattr(__obj, "__name__", "") in ("format", "format_map")
            _check_arguments(owner, *args, *kwargs.values(), has_counts=not is_format)
            if is_format and _WIDE_FIELD.search(owner):
                raise LimitError("it formats a field that is too wide")
        result = super().call(__context, __obj, *args, **kwargs)
        return result if isinstance(result, Namespace) else _check(result)


def compile_template(source: str, *, name: str) -> Callable[[Mapping[str, Any]], str]:
    """Compile a template that is not trusted.

    Args:
        source: the text of `chat_template.jinja`.
        name: how messages call it.

    Returns:
        A function from variables to the rendered text. It raises CheckpointError where the
        template tries to leave the sandbox, exceeds a limit or fails, and PromptError where the
        template itself refuses the conversation.

    Raises:
        CheckpointError: the template is too long or is not Jinja.
    """
    if len(source) > MAX_SOURCE_CHARS:
        raise CheckpointError(
            f"template {name}: {len(source):,} characters, more than {MAX_SOURCE_CHARS:,}. "
            "Use another template."
        )
    try:
        template = _Sandbox().from_string(source)
    except (TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
        # Jinja writes Python, which can be nested too deeply for Python's own compiler.
        reason = _reason(error) or type(error).__name__
        raise CheckpointError(
            f"template {name}: not a Jinja template ({reason}). Correct it."
        ) from error

    def run(values: Mapping[str, Any]) -> str:
        token = _budget.set(_Budget(values))
        pieces: list[str] = []
        num_chars = 0
        try:
            for piece in template.generate(values):
                num_chars += len(piece)
                if num_chars > MAX_OUTPUT_CHARS:
                    raise LimitError(f"it writes more than {MAX_OUTPUT_CHARS:,} characters")
                pieces.append(piece)
        except _RefusedError as error:
            raise PromptError(
                f"template {name}: refuses the conversation: {_reason(error)}. Change the messages."
            ) from error
        except SecurityError as error:
            raise CheckpointError(
                f"template {name}: not allowed: {_reason(error)}. Use a template you trust."
            ) from error
        except Exception as error:  # a template can raise any error of any Python operation
            raise CheckpointError(
                f"template {name}: fails ({type(error).__name__}: {_reason(error)}). Correct it."
            ) from error
        finally:
            _budget.reset(token)
        return "".join(pieces)

    return run


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _refuse(message: object) -> None:
    raise _RefusedError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own escapes HTML, which no model was trained on.
    pieces: list[str] = []
    num_chars = 0
    for piece in json.JSONEncoder(ensure_ascii=False, indent=indent).iterencode(value):
        num_chars += len(piece)
        if num_chars > _MAX_VALUE_CHARS:
            raise LimitError("it makes a value that is too long")
        pieces.append(piece)
    return "".join(pieces)


def _measured(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def measured(*args: Any, **kwargs: Any) -> Any:
        _check_arguments(*args, *kwargs.values())
        return _check(function(*args, **kwargs))

    return measured


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _check_arguments(*arguments: Any, has_counts: bool = True) -> None:
    """Refuse counts and lengths that together could make something huge.

    Args:
        has_counts: a number among them may say how often or how wide.
    """
    sizes = []
    for value in arguments:
        if _is_number(value):
            if has_counts and abs(value) > _MAX_COUNT:
                raise LimitError(f"it asks for a count of more than {_MAX_COUNT:,}")
            sizes.append(abs(value) if has_counts else 1)
            continue
        if isinstance(value, str) and _WIDE_FIELD.search(value) and "%" in value:
            raise LimitError("it formats a field that is too wide")
        sizes.append(_size(value, ChainMap({}, _budget.get().sizes)))
    if math.prod(max(1, size) for size in sizes) > _MAX_PRODUCT:
        raise LimitError("it combines values that are too long")


def _check(value: Any) -> Any:
    """Pay for a value that was made or is written, and return it."""
    budget = _budget.get()
    size = _size(value, ChainMap({}, budget.sizes))
    if size > _MAX_VALUE_CHARS:
        raise LimitError("it makes a value that is too long")
    budget.spend(chars=size)
    return value


def _size(value: Any, sizes: MutableMapping[int, int]) -> int:
    """Characters and items of a value as its text would hold them, however often it holds them.

    Args:
        sizes: of containers by their ids; those that are measured here are added.
    """
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list | tuple | dict):
        size = sizes.get(id(value))
        if size is None:
            items = [*value, *value.values()] if isinstance(value, dict) else value
            size = len(items) + sum(_size(item, sizes) for item in items)
            sizes[id(value)] = size
        return size
    is_huge = isinstance(value, int) and abs(value) >= 2**63
    # A namespace can hold others, or itself.
    return _MAX_PRODUCT + 1 if is_huge or isinstance(value, Namespace) else 0
