"""Reads the files of data sets: what is missing or malformed is said in one line.

What a file says is not trusted: pictures must lie inside the data set's folder, and pictures
inside a file are measured before they are decoded.
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lapilli.errors import DataError

MAX_PICTURE_BYTES = 64 * 1024**2
"""A larger picture inside a file is refused, unread."""


class Row(dict[str, Any]):
    """A record that says where it stands when a key is asked for that it lacks."""

    def __init__(self, where: str, content: Any) -> None:
        if not isinstance(content, dict):
            raise DataError(f"{where}: not an object with keys. Fetch the file again.")
        super().__init__(content)
        self.where = where

    def __missing__(self, key: str) -> Any:
        raise DataError(f"{self.where}: no {key!r}. Fetch the file again, or add the key.")


def find(folder: Path, *names: str, source: str) -> Path:
    """The first of these files that is in the folder.

    Args:
        source: where the data set is to be had.

    Raises:
        DataError: there is none of them.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: no {' or '.join(names)}. Get it from {source}.")


def picture(folder: Path, name: Any) -> Path:
    """The path of a picture that a file names; it stays inside the folder.

    The folder may hold links to others: who may place them there may name any picture.

    Raises:
        DataError: the name is none, or leads out of the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError(f"{folder}: {name!r} names no picture. Fetch the file again.")
    parts = PurePosixPath(name.replace("\\", "/")).parts
    is_absolute = parts[:1] == ("/",) or bool(PureWindowsPath(name).drive)
    if is_absolute or ".." in parts:
        raise DataError(f"{folder}: picture {name!r} lies outside the folder. Use a path inside.")
    return folder.joinpath(*parts)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}). Fetch it again.") from error


def read_records(path: Path, *keys: str) -> list[Row]:
    """The records of a JSON file: the list that it is, or that stands under these keys.

    Raises:
        DataError: it is not JSON, or there is no such list.
    """
    content = read_json(path)
    for key in keys:
        content = Row(str(path), content)[key]
    if not isinstance(content, list):
        raise DataError(f"{path}: no list of records. Fetch it again.")
    return [Row(f"{path}, record {n}", record) for n, record in enumerate(content, 1)]


def read_jsonl(path: Path, end: int | None = None) -> Iterator[Row]:
    """The records of a file with one JSON object a line, whatever its suffix.

    Args:
        end: where to stop, in bytes.

    Raises:
        DataError: a line is not JSON.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if end is not None and file.tell() > end:
                return
            try:
                row = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: not JSON ({error}). Fetch it again.") from error
            if row is not None:
                yield Row(f"{path}:{number}", row)


def read_tsv(path: Path) -> list[Row]:
    """The rows of a table with tabs, whose fields may hold pictures.

    Raises:
        DataError: a field is too long, or the file is not text.
    """
    # The limit of `csv` is one for the whole process.
    limit = csv.field_size_limit(4 * MAX_PICTURE_BYTES // 3 + 4)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, delimiter="\t")
            return [Row(f"{path}, row {n}", row) for n, row in enumerate(table, 1)]
    except (csv.Error, ValueError) as error:
        raise DataError(f"{path}: not a table with tabs ({error}). Fetch it again.") from error
    finally:
        csv.field_size_limit(limit)


def decode_picture(text: str, where: str) -> bytes:
    """A picture in base64 as bytes.

    Raises:
        DataError: it is too large or damaged.
    """
    if len(text) > 4 * MAX_PICTURE_BYTES // 3 + 4:
        raise DataError(
            f"{where}: a picture of more than {MAX_PICTURE_BYTES >> 20} MiB. Leave it out."
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where}: damaged picture ({error}). Fetch the file again.") from error
