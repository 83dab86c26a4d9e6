"""Two processes learn as one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lapilli.train.optimizers import orthogonalize

SCRIPT = Path(__file__).with_name("sharing.py")
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def data(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations about pictures and about scenes in words, in turn."""
    folder = tmp_path_factory.mktemp("mixed")
    shutil.copytree(drawn / "scenes", folder / "scenes")
    pictures, words = (
        (drawn / name).read_text().splitlines(keepends=True)
        for name in ("scenes-questions.jsonl", "text.jsonl")
    )
    groups = [(*pictures[i * 14 :][:14], *words[i * 8 :][:8]) for i in range(6)]
    (folder / "mixed.jsonl").write_text("".join(line for group in groups for line in group))
    return folder


@pytest.fixture(scope="module")
def results(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    """What one process alone came to, and what each of two did."""
    out = tmp_path_factory.mktemp("results")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    two = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environments = {"alone": {}, "0": {"RANK": "0", **two}, "1": {"RANK": "1", **two}}
    with ExitStack() as stack:
        processes = []
        for name, environment in environments.items():
            folder = out / ("alone" if name == "alone" else "two")
            folder.mkdir(exist_ok=True)
            process = subprocess.Popen(
                [sys.executable, SCRIPT, data, folder],
                env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE,
                text=True,
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
    return {path.stem: load_file(path) for path in out.glob("*/*.safetensors")}


@pytest.fixture
def alone(results: dict[str, Weights]) -> Weights:
    return results["rank-alone"]


@pytest.fixture(params=["rank-0", "rank-1"])
def shared(request: pytest.FixtureRequest, results: dict[str, Weights]) -> Weights:
    return results[request.param]


@pytest.mark.parametrize(("name", "tolerance"), [("muon", 0.2), ("adamw", 1e-3)])
def test_steps_of_two_processes_equal_those_of_one(
    alone: Weights, shared: Weights, name: str, tolerance: float
) -> None:
    moved = 0
    for key, first in alone.items():
        part = key.removeprefix("first/")
        if part == key or torch.equal(alone[f"{name}/{part}"], first):
            continue
        moved += 1
        way, other_way = (weights[f"{name}/{part}"] - first for weights in (alone, shared))
        # Muon's bf16 makes more of what differs by rounding alone.
        assert (way - other_way).norm() / way.norm() < tolerance, part
    assert moved == 4 + 2 * 9 + 2  # projector, layers, embeddings and norm


def test_processes_hold_the_same_weights_bit_for_bit(results: dict[str, Weights]) -> None:
    first, second = results["rank-0"], results["rank-1"]
    keys = [key for key in first if key.startswith(("muon/", "adamw/")) and "/weight" not in key]
    assert len(keys) > 40
    assert all(torch.equal(first[key], second[key]) for key in keys)


def test_processes_share_the_work_of_a_step(results: dict[str, Weights]) -> None:
    first, second, whole = (results[f"rank-{n}"]["muon/weight"] for n in ("0", "1", "alone"))
    torch.testing.assert_close(first + second, whole)
    assert (first != second).any(), "uneven shares are the case that needs weights"


def test_work_is_shared_out_without_a_difference(alone: Weights, shared: Weights) -> None:
    rows = torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(alone["shared_out"], orthogonalize(rows).float())
    torch.testing.assert_close(shared["shared_out"], alone["shared_out"], atol=1e-2, rtol=0)


def test_totals_and_means_are_over_all_processes(alone: Weights, shared: Weights) -> None:
    assert (alone["total"], shared["total"]) == (0.5, 2.0)
    assert alone["touched"].tolist() == [1, 1, 1]
    assert shared["touched"].tolist() == [1.5, 1.5, 1.5]
    assert shared["untouched"].tolist() == [2, 3]
