"""What the documents say is so: code runs, commands exist, links lead somewhere, tables hold."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from lapilli.app.cli.main import app
from lapilli.checkpoints.loading import embedded_folder
from lapilli.config import from_dict
from lapilli.data.records import Records
from lapilli.eval.tasks import TASKS
from lapilli.eval.tasks.folder import SCORERS
from lapilli.messages import ImagePart, Message, Piece, Question, Role, TextPart
from lapilli.processor.builtin import TEMPLATES
from lapilli.synth.questions import KINDS, MEASURED
from lapilli.synth.scenes import draw_scene
from lapilli.synth.symbols import COLORS, SHAPES, UNSEEN_PAIRS
from lapilli.synth.words import plural
from lapilli.train import recipe as recipes

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCS += sorted((ROOT / "docs").glob("*.md"))
MADE_WITH_THE_MODEL = {
    f"docs/{name}" for name in ("answering.png", "curves.svg", "first-model.md", "gallery.png")
}
EXAMPLE_SEED = 30_000_136
"""Draws examples/shapes.png; no training and no measuring draws from it."""

HAS_MODEL = (embedded_folder() / "model.safetensors").exists()
needs_model = pytest.mark.skipif(
    not HAS_MODEL, reason=f"this checkout has no weights in {embedded_folder()}"
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    doc: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.doc.relative_to(ROOT)}:{self.line}"


def blocks(doc: Path) -> Iterator[Block]:
    """The fenced blocks of a document; those without a language are shell, output is "text"."""
    text = doc.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(doc, line, match[1] or "shell", match[2])


def commands(block: Block) -> Iterator[list[str]]:
    """The commands of a shell block as words, without comments."""
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield words[:end]
            words = words[end + 1 :]


ALL = [block for doc in DOCS for block in blocks(doc)]
PYTHON = [block for block in ALL if block.language == "python"]
SHELL = [block for block in ALL if block.language == "shell"]
TOML = [block for block in ALL if block.language == "toml"]


def rows(doc: str, head: str) -> list[list[str]]:
    """The rows of the table whose first cell is `head`, as cells."""
    lines = (ROOT / doc).read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {head} |"))
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def verbs() -> dict[str, Any]:
    """Every verb of the command line as the help names it, with its click command."""
    found = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", {})
        found |= {f"{name} {k}": c for k, c in inner.items()}
        if not inner or command.invoke_without_command:
            found[name] = command
    return found


def parse(words: list[str]) -> None:
    """Parse a call of `lapilli` as the entry point would, without doing it.

    Raises:
        Exception: click's usage error, where there is no such verb, option or value.
    """
    name = next(verb for verb in verbs() if words[1 : 1 + len(verb.split())] == verb.split())
    verbs()[name].make_context(name, words[1 + len(name.split()) :])


# Blocks


def test_there_are_blocks_of_every_kind() -> None:
    known = {"python", "shell", "toml", "json"}
    assert {block.language for block in ALL} - {"text"} == known


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_in_documents_exist_with_their_options(
    block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LAPILLI_MODEL", raising=False)
    for words in commands(block):
        match words:
            case ["lapilli", *_]:
                parse(words)
            case ["python", script, *options] if script.endswith(".py"):
                source = (ROOT / script).read_text(encoding="utf-8")
                assert all(f'"{word}"' in source for word in options if word.startswith("--"))
            case [".ci/run"]:
                assert (ROOT / words[0]).exists()
            case _:
                assert words[0] in ("python", ".", "pip", "pre-commit", "pytest"), words
        named = [word for word in words if word.startswith(("examples/", "recipes/", "docs/"))]
        assert all((ROOT / word).exists() for word in named), named


@pytest.mark.parametrize("verb", list(verbs()))
def test_examples_of_the_help_can_be_called(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAPILLI_MODEL", raising=False)
    lines = [line.strip() for line in verbs()[verb].epilog.splitlines()[2:]]
    assert lines
    for line in lines:
        words = shlex.split(line.rpartition(" | ")[2].partition(" > ")[0])
        assert words[1 : 1 + len(verb.split())] == verb.split()
        parse(words)
        named = [word for word in words if word.startswith("recipes/")]
        assert all((ROOT / word).exists() for word in named), named


@needs_model
@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_in_documents_runs(
    block: Block, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_in_documents_can_be_compiled(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", TOML, ids=str)
def test_recipes_in_documents_are_recipes(block: Block) -> None:
    from_dict(recipes.Recipe, tomllib.loads(block.text), str(block))


def test_the_record_in_documents_is_a_record(tmp_path: Path) -> None:
    (block,) = [block for block in ALL if block.language == "json" and block.doc.name == "data.md"]
    path = tmp_path / "records.json"
    path.write_text(json.dumps([json.loads(block.text)]))
    (sample,) = Records(path)
    assert [message.role for message in sample.conversation] == ["user", "assistant"]
    assert {thing["name"] for thing in sample.objects} == {"diamond", "star"}


# Links


def links() -> list[tuple[Path, str]]:
    found = []
    for doc in DOCS:
        text = re.sub(r"^```.*?^```$", "", doc.read_text(encoding="utf-8"), flags=re.M | re.S)
        targets = re.findall(r"\]\(([^)\s]+)\)", text)
        found += [(doc, target) for target in targets if not target.startswith("https://")]
    return found


@pytest.mark.parametrize(
    ("doc", "target"), links(), ids=lambda x: x if isinstance(x, str) else x.name
)
def test_links_lead_somewhere(doc: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (doc.parent / path).resolve() if path else doc
    name = str(file.relative_to(ROOT))
    if name in MADE_WITH_THE_MODEL and not file.exists() and not HAS_MODEL:
        pytest.skip(f"{name} is made with the embedded model, which is not here")
    assert file.exists()
    if anchor:
        heads = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in heads}


# Tables and lists


def test_readme_lists_every_verb_in_the_words_of_its_help() -> None:
    shown = {}
    for cell, what in rows("README.md", "verb"):
        words = [w for w in cell.strip("`").split() if w.islower()]
        shown[" ".join(words[1:])] = what
    assert shown == {name: command.get_short_help_str(200) for name, command in verbs().items()}


def test_readme_and_ci_test_in_the_same_way() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    lines = [line.partition("  #")[0] for line in lines]
    (command,) = [
        line for b in SHELL if b.doc.name == "README.md" for line in b.text.splitlines()
        if line.endswith("pytest")
    ]  # fmt: skip
    assert all(part in lines for part in command.split(" && "))
    install = command.split(" && ")[0]
    assert install in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_measured_kind_is_explained() -> None:
    assert [row[0] for row in rows("docs/evaluation.md", "kind")] == list(MEASURED)


def test_every_benchmark_is_explained() -> None:
    cells = [row[0] for row in rows("docs/evaluation.md", "benchmark")]
    told = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert sorted(told) == sorted({"folder", *TASKS} - {"drawn"})


def test_every_scorer_of_folders_is_told() -> None:
    (row,) = [row for row in rows("docs/evaluation.md", "benchmark") if row[0] == "`folder`"]
    assert set(SCORERS) <= set(re.findall(r"`([^`]+)`", row[2]))


def test_what_is_drawn_is_told() -> None:
    text = " ".join((ROOT / "docs" / "data.md").read_text(encoding="utf-8").split())
    assert ", ".join(SHAPES) in text
    assert ", ".join(COLORS) in text
    assert all(f" {color} {plural(shape)}" in text for color, shape in UNSEEN_PAIRS)
    assert [kind for kind in KINDS if kind != "what" and f" {kind}" not in text] == []


def test_every_template_is_shown_as_it_writes() -> None:
    (block,) = [block for block in ALL if block.doc.name == "templates.md"]
    shown = dict(line.split(maxsplit=1) for line in block.text.splitlines())
    said: list[tuple[Role, str]] = [
        ("system", "S"),
        ("user", "Q"),
        ("assistant", "A"),
        ("user", "Q2"),
    ]
    turns = [Message(role, (TextPart(text),)) for role, text in said]
    turns[1] = Message("user", (ImagePart(), *turns[1].parts))
    written = {
        name: "".join(s.text for s in template.render(tuple(turns), add_generation_prompt=True))
        for name, template in TEMPLATES.items()
    }
    assert shown == {name: text.replace("\n", "\\n") for name, text in written.items()}
    assert [row[0].strip("`") for row in rows("docs/templates.md", "name")] == list(shown)


def test_every_key_of_a_recipe_is_explained() -> None:
    parts = {"model": recipes.ModelRecipe, "data": recipes.DataRecipe, "stage": recipes.StageRecipe,
             "optimizer": recipes.OptimizerRecipe, "run": recipes.RunRecipe}  # fmt: skip
    keys = {f"{part}.{field.name}" for part, cls in parts.items() for field in fields(cls)}
    keys |= {field.name for field in fields(recipes.SourceRecipe)}
    cells = [row[0] for row in rows("docs/training.md", "key")]
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    second = text[text.index("A source has these keys") :]
    cells += re.findall(r"^\| (`[^|]*`) \|", second.partition("\n\n`--set`")[0], re.MULTILINE)
    assert {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)} == keys


def test_every_stage_of_the_embedded_model_is_explained() -> None:
    stages = sorted(path.stem for path in (ROOT / "recipes" / "tiny").glob("[0-9]*.toml"))
    assert [row[0].strip("`") for row in rows("docs/training.md", "stage")] == stages


# The example and what is drawn for the documents


def test_the_example_picture_is_drawn_by_this_package() -> None:
    drawn = draw_scene(np.random.default_rng(EXAMPLE_SEED), "plain", size_px=512)
    with Image.open(ROOT / "examples" / "shapes.png") as opened:
        difference = np.abs(np.asarray(opened, float) - np.asarray(drawn.image, float))
    assert difference.mean() < 1


@needs_model
def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    source = ROOT / "examples" / "ask.py"
    exec(
        compile(source.read_text(), str(source), "exec"),
        {"__name__": "__main__", "__file__": str(source)},
    )
    assert len(capsys.readouterr().out.splitlines()) >= 5


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    yield __import__("cards")
    for name in ("cards", "make_gallery", "make_answering"):
        sys.modules.pop(name, None)


def test_a_wrong_card_is_red_and_tells_the_truth(cards: Any) -> None:
    picture = Image.new("RGB", (8, 8), "white")
    right = cards.draw_card(cards.Card(picture, "How many?", "2"), 120)
    wrong = cards.draw_card(cards.Card(picture, "How many?", "3", truth="2"), 120)
    assert wrong.height > right.height
    assert [f"#{''.join(f'{v:02x}' for v in c.getpixel((60, 1)))}" for c in (right, wrong)] == [
        cards.RIGHT,
        cards.WRONG,
    ]


def test_boxes_are_drawn_where_they_belong(cards: Any) -> None:
    picture = Image.new("RGB", (64, 64), "white")
    boxes = ((0.1, 0.1, 0.4, 0.4), (0.5, 0.5, 0.9, 0.9))
    card = cards.Card(picture, "Where?", "[...]", "[...]", boxes)
    image = np.asarray(cards.draw_card(card, 116), int)[8:108, 8:108]
    assert (image[10:41, 10:41] != 255).any() and (image[50:91, 50:91] != 255).any()
    assert (image[:9] == 255).all() and (image[92:] == 255).all()


def test_long_words_and_texts_stay_inside_their_card(cards: Any) -> None:
    lines = cards.wrap("one two three four five six seven eight", 13, 60)
    assert " ".join(lines) == "one two three four five six seven eight"
    assert all(cards.font(13).getlength(line) <= 60 for line in lines)


def test_a_gallery_row_shows_wrong_answers_before_right_ones(cards: Any) -> None:
    import make_gallery

    class Responder:
        def respond(self, conversations: Any, sampling: Any = None) -> Iterator[Piece]:
            for index, (message,) in enumerate(conversations):
                yield Piece(index, "2" if int(message.text) % 10 else "3")

    picture = Image.new("RGB", (8, 8))
    questions = [Question(str(n), picture, str(n), "2", "count") for n in range(50)]
    ((heading, shown),) = make_gallery.make_rows(questions, Responder())
    assert heading == "count: 0.90 of 50 questions, 5 not wholly right"
    assert [card.truth for card in shown] == ["2", "2", "2", None, None, None]
    sheet = cards.draw_sheet("title", [(heading, shown)])
    assert sheet.width > 6 * 170


def test_a_script_without_its_model_says_so_in_one_line(
    cards: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import make_answering
    import make_gallery

    for script in (make_answering, make_gallery):
        out = tmp_path / "out.png"
        assert script.main(["--model", str(tmp_path / "gone"), "--out", str(out)]) == 1
        assert capsys.readouterr().err.count("\n") == 1
        assert not out.exists()
