"""What all tests share: the time limit, slow tests last, and where shared data lies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# No test waits for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

LIMIT_S = float(os.environ.get("LAPILLI_TEST_LIMIT", "10"))
"""Seconds that a test not marked slow may take; 0 lifts the limit."""


def pytest_configure() -> None:
    # A shell's background job ignores interrupts, and so would every program that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    is_limited = LIMIT_S > 0 and item.get_closest_marker("slow") is None
    if call.when == "call" and report.passed and is_limited and call.duration > LIMIT_S:
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} took {call.duration:.1f} s; the limit is {LIMIT_S:g} s. "
            "Make it faster or mark it slow."
        )
    return report


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared data sets; the test is skipped where there is none."""
    root = Path(__file__).parents[1]
    folder = Path(os.environ.get("LAPILLI_SHARED", root.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set LAPILLI_SHARED")
    return folder
