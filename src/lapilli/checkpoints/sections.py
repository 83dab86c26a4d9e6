"""Configurations of others, whose values are judged as they are taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lapilli.errors import CheckpointError, ConfigError

T = TypeVar("T")

_MAX_INTEGER = 2**31 - 1
"""Beyond any true value, and still what every library can count to."""


class Section:
    """A table of a configuration.

    Args:
        values: what is written in it.
        defaults: what is meant where a key is left out.
        where: the file, for messages.
        path: of the table in its file, for messages; with a dot at the end.

    Raises:
        CheckpointError: it names code to run; and from each method, a value is not supported.
    """

    def __init__(
        self, values: Mapping[str, Any], defaults: Mapping[str, Any], where: str, path: str = ""
    ) -> None:
        self.values = values
        self.defaults = defaults
        self.where = where
        self.path = path
        if "auto_map" in values:
            raise CheckpointError(
                f"{where}: {path}auto_map names code to run; only numbers are read from a model "
                "folder. Use a model without code of its own"
            )

    def __getitem__(self, key: str) -> Any:
        return self.values[key] if key in self.values else self.defaults.get(key)

    def section(self, key: str) -> Section:
        values = self.values.get(key)
        if not isinstance(values, Mapping):
            raise CheckpointError(f"{self.where}: {key} is missing; copy config.json again")
        return Section(values, {}, self.where, f"{key}.")

    def choose_defaults(self, defaults: Mapping[str, Mapping[str, Any]], usual: str) -> str:
        """Take the defaults of this section's `model_type`, and return its name."""
        kind = self.values.get("model_type", usual)
        expect(f"{self.path}model_type", kind, tuple(defaults), self.where)
        self.defaults = defaults[kind]
        return str(kind)

    def build(self, make: Callable[..., T], *values: object) -> T:
        """Return `make(self, *values)`; what it refuses is named with this section."""
        try:
            return make(self, *values)
        except ConfigError as error:
            section = f"{self.path.removesuffix('.')}: " if self.path else ""
            raise CheckpointError(f"{self.where}: {section}{error}") from error

    def expect(self, key: str, *supported: Any) -> None:
        expect(self.path + key, self[key], supported, self.where)

    def integer(self, key: str) -> int:
        number = int(self._checked(key, int, "an integer"))
        if abs(number) > _MAX_INTEGER:
            raise CheckpointError(
                f"{self.where}: {self.path}{key} is {number}; supported is up to {_MAX_INTEGER}"
            )
        return number

    def count(self, key: str) -> int:
        number = self.integer(key)
        if number < 1:
            raise CheckpointError(f"{self.where}: {self.path}{key} is {number}; give 1 or more")
        return number

    def number(self, key: str) -> float:
        number = float(self._checked(key, (int, float), "a number"))
        if not math.isfinite(number):
            raise CheckpointError(f"{self.where}: {self.path}{key} is {number}; give a number")
        return number

    def _checked(self, key: str, types: Any, wanted: str) -> Any:
        value = self[key]
        if isinstance(value, bool) or not isinstance(value, types):
            raise CheckpointError(
                f"{self.where}: {self.path}{key} is {value!r}, where {wanted} is supported"
            )
        return value


def expect(key: str, value: Any, supported: tuple[Any, ...], where: str) -> None:
    """Refuse a value that is none of those supported.

    Raises:
        CheckpointError: it is another.
    """
    if value not in supported:
        known = " or ".join(repr(choice) for choice in supported)
        raise CheckpointError(f"{where}: {key} is {value!r}; supported is {known}")
