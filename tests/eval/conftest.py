"""Small data sets in their own form, and questions and answers that others published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Write = Callable[[str, Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file of a data set: text as it is, a list under *.jsonl line by line, else JSON."""

    def write_file(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jsonl"):
            content = "".join(json.dumps(row) + "\n" for row in content)
        elif not isinstance(content, str):
            content = json.dumps(content)
        path.write_text(content, encoding="utf-8")
        return tmp_path

    return write_file


@pytest.fixture(scope="session")
def published(shared_data: Path) -> Path:
    """The folder of published questions and answers; the test is skipped where there is none."""
    folder = shared_data / "benchmarks"
    if not folder.is_dir():
        pytest.skip(f"no published answers at {folder}")
    return folder
