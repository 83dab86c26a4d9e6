"""Reading LLaVA JSON and JSONL, checked row by row.

A record is `{"id", "image"?, "conversations": [{"from": "human"|"gpt", "value"}]}`. Beyond the
published form, a record may have `objects` (what is in the picture), `group` (neighbours of one
group share their prefix in a packed row), or `text` in the place of conversations.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lapilli.errors import DataError
from lapilli.messages import IMAGE_MARK, Message, Role, Sample
from lapilli.processor.conversations import parse_marks

ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}


class Records:
    """A file of records, held as lines and parsed when asked for.

    Args:
        path: a `.json` list or a `.jsonl` file.
        images: the folder that image names are relative to; the file's own by default.

    Raises:
        DataError: no such file, or it is neither a list nor lines of JSON.
    """

    def __init__(self, path: Path, images: Path | None = None) -> None:
        self.path = path
        self.images = (images or path.parent).resolve()
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        if path.suffix == ".json":
            self._rows = self._split_list(content)
        else:
            self._rows = [line for line in content.splitlines() if line.strip()]
        if not self._rows:
            raise DataError(f"{path}: no records")

    def _split_list(self, content: bytes) -> list[bytes]:
        try:
            rows = json.loads(content)
        except ValueError as error:
            raise DataError(f"{self.path}: not JSON ({error})") from error
        if not isinstance(rows, list):
            raise DataError(f"{self.path}: holds a {type(rows).__name__}, not a list of records")
        return [json.dumps(row).encode() for row in rows]

    def __len__(self) -> int:
        return len(self._rows)

    def raw(self, index: int) -> dict[str, Any]:
        """Return row `index` as it stands in the file."""
        try:
            row = json.loads(self._rows[index])
        except ValueError as error:
            raise DataError(f"{self.path}, row {index}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{self.path}, row {index}: a {type(row).__name__}, not a record")
        return row

    def __getitem__(self, index: int) -> Sample:
        row = self.raw(index)
        where = f"{self.path.name}, row {index}, id {row.get('id', '?')}"
        paths = [self._image_path(name, where) for name in _image_names(row, where)]
        text = row.get("text") or ""
        if not isinstance(text, str):
            raise DataError(f"{where}: text is {text!r}; give words")
        turns = [] if text else row.get("conversations", [])
        if not isinstance(turns, list):
            raise DataError(f"{where}: conversations is not a list")
        return Sample(
            id=str(row.get("id", index)),
            conversation=tuple(self._messages(turns, paths, where)),
            images=tuple(paths),
            group=_group(row),
            objects=tuple(row.get("objects") or ()),
            text=text,
            kind=str(row.get("kind", "")),
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def group(self, index: int) -> str:
        """Return what row `index` shares with neighbours of the same group: its pictures, or the
        text that it names; unique for a row that shares nothing."""
        return _group(self.raw(index)) or f"row {index}"

    def _image_path(self, name: str, where: str) -> Path:
        path = (self.images / name).resolve()
        if not path.is_relative_to(self.images):
            raise DataError(f"{where}: image {name!r} lies outside of {self.images}")
        return path

    def _messages(
        self, turns: list[dict[str, str]], paths: list[Path], where: str
    ) -> Iterator[Message]:
        if not all(isinstance(turn, dict) for turn in turns):
            raise DataError(f'{where}: a turn is no object; write {{"from": ..., "value": ...}}')
        marks = sum(str(turn.get("value", "")).count(IMAGE_MARK) for turn in turns)
        if turns and marks != len(paths):
            remedy = "Add an image or remove a mark." if marks > len(paths) else (
                "Add a mark or remove an image."
            )  # fmt: skip
            raise DataError(f"{where}: {marks} {IMAGE_MARK} marks, {len(paths)} images. {remedy}")
        rest = list(paths)
        for turn in turns:
            role = ROLES.get(str(turn.get("from")))
            if role is None:
                raise DataError(f"{where}: unknown speaker {turn.get('from')!r}; use human or gpt")
            value = str(turn.get("value", ""))
            here = [rest.pop(0) for _ in range(value.count(IMAGE_MARK))]
            yield Message(role, parse_marks(value, here))


def _image_names(row: dict[str, Any], where: str) -> list[str]:
    image = row.get("image") or []
    names = [image] if isinstance(image, str) else image
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: image is {image!r}; give a file name, or a list of them")
    return names


def _group(row: dict[str, Any]) -> str:
    return str(row.get("group") or row.get("image") or "")
