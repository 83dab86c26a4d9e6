"""Frozen dataclasses from TOML and back; whatever does not fit is named by file and key."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lapilli.errors import ConfigError

T = TypeVar("T")


def load_toml(path: str | Path, cls: type[T]) -> T:
    """Read the dataclass `cls` from a TOML file.

    Raises:
        ConfigError: the file cannot be read, or does not fit `cls`.
    """
    return from_dict(cls, read_toml(path), str(path))


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file as plain tables.

    Raises:
        ConfigError: no such file, or not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a TOML file that is there") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text; TOML files are") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def from_dict(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """Build the dataclass `cls` out of plain tables.

    Args:
        cls: a dataclass; its fields are scalars, paths, `Literal`, tuples, lists, dictionaries,
            other dataclasses, and unions of these.
        data: keys are field names; a field with a default may be left out.
        where: the file, for messages.

    Raises:
        ConfigError: a key is unknown, missing or of the wrong type, or `cls` refuses a value.
    """
    return _build(cls, data, where, "")


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a dataclass into plain tables as TOML knows them; what is None is left out."""
    return {
        field.name: _plain(value)
        for field in dataclasses.fields(config)
        if field.init and (value := getattr(config, field.name)) is not None
    }


def override(data: Mapping[str, Any], setting: str) -> dict[str, Any]:
    """Return a copy of `data` with one setting replaced.

    Args:
        data: plain tables; left as they are.
        setting: "stage.steps=100". The value is read as TOML; `none` turns a part off; what is
            not TOML is taken as text.

    Raises:
        ConfigError: there is no key or no "=", or the path leads through a value.
    """
    key, equals, text = setting.partition("=")
    names = [name.strip() for name in key.split(".")]
    if not equals or not all(names):
        raise ConfigError(f"setting {setting!r}: write it as key=value, such as stage.steps=100")
    changed = dict(data)
    table = changed
    for depth, name in enumerate(names[:-1], start=1):
        inner = table.get(name, {})
        if not isinstance(inner, Mapping):
            raise ConfigError(f"setting {setting!r}: {'.'.join(names[:depth])} is not a table")
        table[name] = table = dict(inner)
    table[names[-1]] = _parse_value(text.strip())
    return changed


def dump_toml(config: Any) -> str:
    """Write a dataclass, or plain tables, as TOML; what is None is left out."""
    data = to_dict(config) if dataclasses.is_dataclass(config) else _plain(config)
    return "\n".join(_table_lines(data, ())).lstrip("\n") + "\n"


# Reading


def _build(cls: type[T], data: Any, where: str, path: str) -> T:
    if not isinstance(data, Mapping):
        raise _wrong(where, path, "a table", data)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for name in data:
        if name not in fields:
            raise ConfigError(_unknown(where, _join(path, name), name, list(fields), path))
    hints = get_type_hints(cls)
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], where, _join(path, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: {_join(path, name)} is missing; give it a value")
    try:
        return cls(**values)
    except ConfigError as error:
        place = f"{where}: {path}" if path else where
        raise ConfigError(f"{place}: {error}") from error


def _convert(wanted: Any, value: Any, where: str, path: str) -> Any:
    origin, args = get_origin(wanted), get_args(wanted)
    if wanted is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, where, path)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in args):
            raise _wrong(where, path, _describe(wanted), value)
        return value
    if origin in (tuple, list, Sequence):
        return _convert_sequence(wanted, value, where, path)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(where, path, "a table", value)
        return {k: _convert(args[1], v, where, _join(path, k)) for k, v in value.items()}
    if dataclasses.is_dataclass(wanted):
        return value if isinstance(value, wanted) else _build(wanted, value, where, path)  # type: ignore[arg-type]
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is Path and isinstance(value, str):
        return Path(value)
    if wanted is type(None) and value is None:
        return None
    # bool is an int to Python, never to the writer of a recipe.
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise _wrong(where, path, _describe(wanted), value)
    return value


def _convert_union(members: tuple[Any, ...], value: Any, where: str, path: str) -> Any:
    if value is None and type(None) in members:
        return None
    solid = [member for member in members if member is not type(None)]
    if isinstance(value, Mapping) and all(map(dataclasses.is_dataclass, solid)):
        # Of several tables, the one that knows most of the keys: its own message is the precise one
        solid = [max(solid, key=lambda table: len(value.keys() & _field_names(table)))]
    if len(solid) == 1:  # an optional part: its own message is the precise one
        return _convert(solid[0], value, where, path)
    for member in solid:
        try:
            return _convert(member, value, where, path)
        except ConfigError:
            continue
    raise _wrong(where, path, " or ".join(_describe(member) for member in solid), value)


def _field_names(cls: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _convert_sequence(wanted: Any, value: Any, where: str, path: str) -> Any:
    args = get_args(wanted)
    if not isinstance(value, list | tuple):
        raise _wrong(where, path, "a list", value)
    has_fixed_length = get_origin(wanted) is tuple and args[-1] is not Ellipsis
    if has_fixed_length and len(args) != len(value):
        raise ConfigError(f"{where}: {path} has {len(value)} items; it takes {len(args)}")
    kinds = args if has_fixed_length else (args[0],) * len(value)
    items = [
        _convert(kind, item, where, f"{path}[{index}]")
        for index, (kind, item) in enumerate(zip(kinds, value, strict=True))
    ]
    return items if get_origin(wanted) is list else tuple(items)


def _parse_value(text: str) -> Any:
    if text == "none":
        return None
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


# What went wrong, in words

_WORDS = {
    str: "text",
    Path: "a path (text)",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    tuple: "a list",
    dict: "a table",
}


def _describe(wanted: Any) -> str:
    if get_origin(wanted) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(wanted))
    if dataclasses.is_dataclass(wanted):
        return "a table"
    return _WORDS.get(get_origin(wanted) or wanted, str(wanted))


def _wrong(where: str, path: str, wanted: str, got: Any) -> ConfigError:
    return ConfigError(f"{where}: {path or 'the whole'} must be {wanted}, not {got!r}")


def _unknown(where: str, path: str, name: str, known: list[str], table: str) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"{where}: unknown key {path}; did you mean {_join(table, near[0])}?"
    return f"{where}: unknown key {path}; known here: {', '.join(known) or 'none'}"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


# Writing


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _table_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    values = {k: v for k, v in table.items() if not isinstance(v, dict)}
    lines = [f"{_key(k)} = {_value(v)}" for k, v in values.items()]
    if path and (lines or not table):
        lines = ["", f"[{'.'.join(map(_key, path))}]", *lines]
    for name, inner in table.items():
        if isinstance(inner, dict):
            lines += _table_lines(inner, (*path, name))
    return lines


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            # JSON escapes all that TOML asks for but DEL.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list():
            return f"[{', '.join(map(_value, value))}]"
        case dict():
            return f"{{{', '.join(f'{_key(k)} = {_value(v)}' for k, v in value.items())}}}"
    raise ConfigError(f"{value!r} has no TOML form; use text, numbers, lists and tables")
