"""Benchmarks that need what is not installed here still run, up to what they need."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_comparison_with_llama_cpp_names_the_missing_package(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise ModuleNotFoundError(name='llama_cpp')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, str(BENCHMARKS / "gguf_answers.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: llama_cpp is not installed; run pip install llama-cpp-python==0.3.36\n"
    )


@pytest.fixture
def comparison(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, without llama.cpp."""
    for name in ("llama_cpp", "llama_cpp.llama_chat_format"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("gguf_answers")
    for name in ("gguf_answers", "llamacpp", "timing"):
        sys.modules.pop(name, None)


def test_the_comparison_with_llama_cpp_counts_what_is_alike(
    comparison: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lapilli.assistant import MultimodalAssistant

    (question,) = comparison.choose(1)
    engine = MultimodalAssistant(device="cpu").engine

    class Peer:
        """What says the very same."""

        def __init__(self, model: Path, mmproj: Path, context: int) -> None:
            assert (model.name, mmproj.name) == ("model-f16.gguf", "mmproj-f16.gguf")

        def ask(self, parts: list[str], pictures: list[Any], max_new_tokens: int) -> Any:
            _, ids = comparison.prompt_of(question, engine.processor)
            features = comparison.features_of(engine, question)
            (text,) = comparison.answers(engine, [question])
            return comparison.Reply(ids, features, np.zeros(1), text)

        def close(self) -> None:
            pass

    monkeypatch.setattr(comparison, "LlamaCpp", Peer)
    monkeypatch.setattr(comparison.metadata, "version", lambda name: "0.0")
    found = comparison.main(["--count", "1"])
    assert (
        json.loads(capsys.readouterr().out.splitlines()[-1]) == found | comparison.circumstances()
    )
    assert (found["same_prompt_ids"], found["same_answers"], found["cosine"]) == (1, 1, 1.0)
    assert found["cosine_in_its_order"] < 0.99
