"""Time contestants fairly, and say where it was done."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from lapilli.runtime import versions

K = TypeVar("K")
T = TypeVar("T")

REST = 0.3
"""Seconds before a turn: some libraries' threads stay awake for a while after their work, and would
take the processor from whoever comes next."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and range of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def times(self, factor: float) -> Spread:
        """Return it in another unit."""
        return Spread(self.median * factor, self.low * factor, self.high * factor)


def in_turns(contestants: Mapping[K, Callable[[], T]], repeats: int) -> dict[K, list[T]]:
    """Return what each contestant returns, by its name, once for every repeat.

    Each runs once to warm up; then all take turns, so that a machine that slows down or speeds up
    meanwhile does so for everyone.
    """
    for run in contestants.values():
        run()
    found: dict[K, list[T]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            time.sleep(REST)
            found[name].append(run())
    return found


def interleaved(contestants: Mapping[K, Callable[[], object]], repeats: int) -> dict[K, Spread]:
    """Return the seconds that each contestant takes, by its name; they take turns."""
    timed = {name: partial(seconds, run) for name, run in contestants.items()}
    return {name: Spread.of(values) for name, values in in_turns(timed, repeats).items()}


def seconds(run: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def circumstances() -> dict[str, str | int | dict[str, str]]:
    """What a result needs to be compared with another: commit, versions, machine, threads."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "commit": done.stdout.strip() or "unknown",
        "versions": versions(),
        "processor": _processor_name(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
