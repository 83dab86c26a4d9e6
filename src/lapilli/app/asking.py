"""`lapilli ask --questions`: a file of questions, answered into a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lapilli.app.measuring import ask, model_name
from lapilli.assistant import MultimodalAssistant
from lapilli.errors import DataError
from lapilli.eval.answers import Keeper
from lapilli.eval.questions import read_asked
from lapilli.messages import Sampling

MAX_NEW_TOKENS = 256


def ask_file(
    questions: Path,
    out: Path,
    *,
    images: Path | None = None,
    model: str | None = None,
    device: str = "auto",
    base: str | None = None,
    quantize: str | None = None,
) -> int:
    """Answer the questions of a file, and return how many were answered now.

    Answers are appended as they come, in the form of LLaVA's own evaluation; a second call asks
    only what is missing.

    Args:
        questions: JSON lines with `question_id`, `text` and `image`, a path or a list of them.
        images: the folder of the pictures; that of the file if left out.

    Raises:
        DataError: a file is missing or malformed, or `out` holds answers of another model.
        ImageError: a picture cannot be opened; answers that came before are kept.
    """
    asked = read_asked(questions, images or questions.parent)
    if not asked:
        raise DataError(f"{questions}: holds no question; write one a line")
    settings: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS}
    if quantize is not None:
        settings["quantize"] = quantize
    keeper = Keeper(out, model_name(model), settings)
    known = keeper.resume(asked)
    if len(known) == len(asked):
        return 0
    responder = MultimodalAssistant(model, device=device, base=base, quantize=quantize).engine
    ask(responder, asked, Sampling(MAX_NEW_TOKENS), known=known, keep=keeper.keep)
    return len(asked) - len(known)
