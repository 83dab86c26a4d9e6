"""Text files of a model folder, read with every fault named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lapilli.errors import CheckpointError


def read_text(path: Path) -> str:
    """Return what a file says.

    Raises:
        CheckpointError: the file is missing, cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; copy the whole model folder") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; make it readable") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 text; copy it again") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: as `read_text`; or the text is not JSON, or holds no object.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no JSON object; copy it again")
    return content
