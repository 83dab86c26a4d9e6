"""What docs/serve.md says is so."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from asking import Serve, Served

from lapilli.app.cli.main import app
from lapilli.app.serve.application import Settings
from lapilli.app.serve.limits import Limits
from lapilli.app.serve.prompts import CHAT_TOKENS, TEXT_TOKENS
from lapilli.app.serve.refusals import REFUSALS

ROOT = Path(__file__).parents[3]
DOC = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```text\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)


def rows(head: str) -> list[list[str]]:
    """The rows of the table whose first cell is `head`, as cells."""
    _, _, below = DOC.partition(f"\n| {head} |")
    table = below.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table]


@pytest.fixture(scope="module")
def tiny(serve: Serve) -> Iterator[Served]:
    """A server under the name that the examples give."""
    with serve(Settings("lapilli-tiny")) as found:
        yield found


def example(begin: str, served: Served) -> str:
    (text,) = [text for text in EXAMPLES if text.startswith(begin)]
    assert "http://127.0.0.1:8000" in text
    return text.replace("http://127.0.0.1:8000", served.url)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_example_for_curl_runs(tiny: Served) -> None:
    command = ["bash", "-c", example("curl", tiny).replace("curl", "curl --silent", 1)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert '"object":"chat.completion"' in done.stdout


def test_the_example_for_the_client_runs(
    tiny: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    made: dict[str, object] = {"__name__": "__main__"}
    exec(compile(example("import base64", tiny), "docs/serve.md", "exec"), made)
    assert capsys.readouterr().out.strip()
    made["client"].close()  # type: ignore[attr-defined]


def test_every_code_is_told_with_its_status() -> None:
    assert {code: int(status) for code, status in rows("code")} == {
        code: status for code, (status, _) in REFUSALS.items()
    }


def test_limits_are_told_as_they_are() -> None:
    told = {row[4]: row[1] for row in rows("limit")}
    limits = Limits()
    assert told["body_too_large"] == f"{limits.body_bytes >> 20} MiB"
    assert told["overloaded"] == f"{limits.held_bytes >> 20} MiB"
    assert told["too_many_images"] == str(limits.images)
    assert told["image_too_large"] == f"{limits.pixels // 10**6} million"
    assert f"{limits.characters:,}" in DOC
    assert told["invalid_value"] == str(limits.answers)
    assert told["queue_full"] == str(limits.waiting)
    assert told["timeout"] == f"{limits.answer_seconds:g}"
    assert told["slow_client"] == f"{limits.client_seconds:g}"
    assert f"come in\n{limits.fetch_seconds:g} seconds" in DOC
    assert f"{CHAT_TOKENS}\n  tokens ({TEXT_TOKENS} in" in DOC
    statuses = {row[4]: int(row[3]) for row in rows("limit")}
    assert all(REFUSALS[code][0] == status for code, status in statuses.items())


def test_options_have_the_limits_own_values() -> None:
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    default = {parameter.name: parameter.default for parameter in command.params}
    limits = Limits()
    assert default["max_body_mb"] << 20 == limits.body_bytes
    assert default["max_held_mb"] << 20 == limits.held_bytes
    assert default["max_images"] == limits.images
    assert default["max_megapixels"] * 10**6 == limits.pixels
    assert default["max_waiting"] == limits.waiting
    assert default["max_seconds"] == limits.answer_seconds
    named = {row[2] for row in rows("limit") if row[2]}
    assert named <= {option for parameter in command.params for option in parameter.opts}


def test_every_figure_is_told(tiny: Served) -> None:
    import httpx

    text = httpx.get(f"{tiny.url}/metrics").text
    names = set(re.findall(r"^# TYPE lapilli_(\w+) ", text, re.MULTILINE))
    told = set(re.findall(r"`(\w+)`", DOC[DOC.index("## Figures") :])) - {"lapilli_"}
    assert {name for name in names if not name.endswith("_created")} == told
