"""What holds of the code as a whole: who imports whom, how long a file is, what an import costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lapilli

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MAX_LINES = 400


def loaded_after(statement: str) -> set[str]:
    """Names of the top-level modules that a fresh interpreter holds after `statement`."""
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_rooms_import_only_what_the_contracts_allow() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as f; f()"]
    done = subprocess.run(
        [*command, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_file_is_read_in_one_sitting(path: Path) -> None:
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_LINES, f"{num_lines} lines: give part of it a file of its own"


def test_sources_were_found() -> None:
    assert ROOT / "src/lapilli/errors.py" in SOURCES


@pytest.mark.parametrize(
    "statement",
    [
        "import lapilli",
        "import lapilli.config, lapilli.messages, lapilli.runtime, lapilli.inputs",
        "import lapilli.app.cli.main",
    ],
)
def test_import_loads_neither_torch_nor_transformers(statement: str) -> None:
    assert not loaded_after(statement) & {"torch", "transformers", "numpy", "PIL"}


def test_every_public_name_is_there() -> None:
    assert all(getattr(lapilli, name) for name in lapilli.__all__)
    assert set(lapilli.__all__) <= set(dir(lapilli))


def test_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'MultimodalAsistant'"):
        _ = lapilli.MultimodalAsistant
