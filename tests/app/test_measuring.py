"""What is asked in a measurement, and what becomes of the answers; the models are fakes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import lapilli.app.measuring as measuring
from lapilli.app.measuring import SEED_STEP, SEEDS, drawn_questions, eval_drawn, eval_photos
from lapilli.errors import CheckpointError, DataError
from lapilli.messages import Conversation, Piece, Question, Sampling
from lapilli.synth.symbols import UNSEEN_PAIRS
from lapilli.synth.wordings import FORMS

KINDS = ("existence", "shape", "colour", "count", "relation", "bigger", "where", "box", "caption")


class FakeAssistant:
    """Knows the answers, if its name is "knowing"; otherwise it says yes to everything."""

    made: list[FakeAssistant]
    truth: dict[tuple[Any, str], str]

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        device: str = "auto",
        quantize: str | None = None,
    ) -> None:
        self.model, self.device, self.engine = model, device, self
        self.quantize = quantize
        self.asked: list[Conversation] = []
        self.samplings: set[Sampling] = set()
        FakeAssistant.made.append(self)

    def respond(self, conversations: Sequence[Conversation], sampling: Sampling) -> Iterator[Piece]:
        self.asked += conversations
        self.samplings.add(sampling)
        for index, (message,) in enumerate(conversations):
            known = (
                FakeAssistant.truth.get((id(message.images[0]), message.text))
                if self.model == "knowing"
                else None
            )
            yield Piece(index, known or "yes")


@pytest.fixture(autouse=True)
def assistant(monkeypatch: pytest.MonkeyPatch) -> type[FakeAssistant]:
    """Put the fake in the place of the assistant, and let it hear the truth as it is asked."""
    FakeAssistant.made, FakeAssistant.truth = [], {}

    def run(questions: Sequence[Question], *args: Any, **kwargs: Any) -> Any:
        FakeAssistant.truth |= {(id(q.image), q.text): q.answer for q in questions}
        return honest(questions, *args, **kwargs)

    honest = measuring.run
    monkeypatch.setattr(measuring, "run", run)
    monkeypatch.setattr(measuring, "MultimodalAssistant", FakeAssistant)
    return FakeAssistant


# Which questions


def test_a_split_has_questions_of_every_kind() -> None:
    asked = drawn_questions("plain", 4, "validation", 0, unseen=False)
    assert {kind: sum(q.category == kind for q in asked) for kind in KINDS} == dict.fromkeys(
        KINDS, 4
    )
    assert len({q.id for q in asked}) == len(asked)


def test_the_same_seed_asks_the_same_and_another_does_not() -> None:
    first, again, other = (
        drawn_questions("plain", 2, "validation", seed, unseen=False) for seed in (0, 0, 1)
    )
    assert [(q.text, q.answer) for q in first] == [(q.text, q.answer) for q in again]
    assert [q.image.tobytes() for q in first] == [q.image.tobytes() for q in again]
    assert [q.image.tobytes() for q in first] != [q.image.tobytes() for q in other]


def test_the_splits_show_different_pictures() -> None:
    assert abs(SEEDS["validation"] - SEEDS["held-out"]) > 1_000_000
    validation, held_out = (
        {q.image.tobytes() for q in drawn_questions("plain", 3, split, 0, unseen=False)}
        for split in ("validation", "held-out")
    )
    assert not validation & held_out


def test_no_seed_of_one_split_reaches_into_another() -> None:
    first, second = sorted(SEEDS.values())
    assert second - first >= 10 * SEED_STEP  # the command line takes seeds up to 9


def test_held_out_questions_are_put_in_words_kept_for_measuring() -> None:
    def opening(wordings: Sequence[str]) -> set[str]:
        return {wording.split("{")[0] for wording in wordings if "{" in wording}

    form = FORMS["existence"]
    only_held_out = tuple(opening(form.held_out) - opening(form.train))
    asked = drawn_questions("plain", 20, "held-out", 0, unseen=False)
    assert any(q.text.startswith(only_held_out) for q in asked if q.category == "existence")
    asked = drawn_questions("plain", 20, "validation", 0, unseen=False)
    assert not any(q.text.startswith(only_held_out) for q in asked if q.category == "existence")


@pytest.mark.parametrize(("unseen", "per_kind"), [(False, 20), (True, 8)])
def test_held_out_has_as_many_questions_of_each_kind_as_asked_for(
    unseen: bool, per_kind: int
) -> None:
    # Of the first questions of this seed, some are about unseen pairs that are not in the picture.
    asked = drawn_questions("plain", per_kind, "held-out", 1, unseen=unseen)
    assert Counter(q.category for q in asked) == dict.fromkeys(KINDS, per_kind)
    assert {q.extra["unseen"] for q in asked} == {unseen}
    assert len({q.id for q in asked}) == len(asked)


def test_questions_about_known_pairs_name_no_unseen_one() -> None:
    known = drawn_questions("plain", 10, "held-out", 0, unseen=False)
    told = [f"{q.text} {q.answer}" for q in known]
    assert not [text for text in told for color, name in UNSEEN_PAIRS if f"{color} {name}" in text]


# What becomes of the answers


def test_a_knowing_model_scores_one_everywhere(assistant: type[FakeAssistant]) -> None:
    figures = eval_drawn("knowing", per_kind=2, device="cpu")
    categories = figures["score"]["categories"]
    assert {kind: categories[kind]["mean"] for kind in KINDS} == dict.fromkeys(KINDS, 1.0)
    assert set(figures) == {"title", "model", "grade", "split", "seed", "versions", "score"}
    (made,) = assistant.made
    assert (made.model, made.device) == ("knowing", "cpu")
    assert made.samplings == {Sampling(max_new_tokens=measuring.LONGEST_ANSWER)}


def test_figures_tell_of_smaller_weights(assistant: type[FakeAssistant]) -> None:
    figures = eval_drawn("knowing", per_kind=1, quantize="int4", blind="blind")
    assert figures["quantize"] == "int4"
    # What a model without pictures answers is no matter of its bits.
    assert [made.quantize for made in assistant.made] == ["int4", None]


def test_held_out_has_columns_for_unseen_pairs_and_a_blind_model(
    assistant: type[FakeAssistant], capsys: pytest.CaptureFixture[str]
) -> None:
    figures = eval_drawn("knowing", per_kind=2, split="held-out", blind="unseeing")
    assert {"score", "unseen pairs", "trained blind"} < set(figures)
    assert (figures["model"], figures["blind"]) == ("knowing", "unseeing")
    assert figures["score"]["mean"] == figures["unseen pairs"]["mean"] == 1
    assert figures["trained blind"]["mean"] < 0.5
    seeing, blind = assistant.made
    assert (seeing.model, blind.model) == ("knowing", "unseeing")
    assert all(message.images for (message,) in seeing.asked)
    assert not any(message.images for (message,) in blind.asked)
    assert [c[0].text for c in blind.asked] == [c[0].text for c in seeing.asked[: len(blind.asked)]]
    out, err = capsys.readouterr()
    heads, *table = [[cell.strip() for cell in re.split("[┃│]", line)[1:-1]]
                     for line in out.splitlines() if re.search("[┃│]", line)]  # fmt: skip
    assert heads == ["kind", "count", "score", "95% interval", "unseen pairs", "trained blind"]
    assert [row[0] for row in table] == list(KINDS)
    assert {tuple(row[1:5]) for row in table} == {("2", "1.000", "1.000-1.000", "1.000")}
    assert "┃" not in err


def test_a_blind_model_that_is_not_there_is_refused_before_anything_is_asked(
    assistant: type[FakeAssistant], monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(
        model: str | None = None, *, device: str = "auto", quantize: str | None = None
    ) -> FakeAssistant:
        if model == "gone":
            raise CheckpointError("gone: no such model folder")
        return assistant(model, device=device)

    monkeypatch.setattr(measuring, "MultimodalAssistant", made)
    with pytest.raises(CheckpointError):
        eval_drawn("knowing", per_kind=1, blind="gone")
    assert not any(one.asked for one in assistant.made)


def test_no_progress_is_shown_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    eval_drawn("knowing", per_kind=1)
    assert capsys.readouterr().err == ""


def test_figures_are_written_as_json(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    figures = eval_drawn(None, grade="hard", per_kind=1, seed=3, json_path=path)
    written = json.loads(path.read_text())
    assert written == figures
    told = {"model": "lapilli-tiny", "grade": "hard", "split": "validation", "seed": 3}
    assert told.items() <= written.items()
    assert "torch" in written["versions"]


def test_the_gallery_shows_the_model_that_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    eval_drawn("knowing", per_kind=1, gallery_path=path, blind="unseeing")
    html = path.read_text()
    assert html.count("<h3>Right: 1</h3>") == len(KINDS)
    assert "Wrong:" not in html
    assert html.count("<img ") == len(KINDS)


# Photographs


def photographs(root: Path, *labels: str) -> Path:
    """A folder with one validation photograph of each of these clothes, and one for training."""
    folder = root / "photos" / "clothing"
    folder.mkdir(parents=True)
    rows = [(label, "validation") for label in labels] + [("hat", "train")]
    with (folder / "labels.jsonl").open("w") as file:
        for number, (label, split) in enumerate(rows):
            Image.new("RGB", (20, 20), (number, 0, 0)).save(folder / f"{number}.png")
            row = {"image": f"{number}.png", "label": label, "split": split}
            file.write(json.dumps(row) + "\n")
    return root


def test_photographs_are_scored_by_set(
    assistant: type[FakeAssistant], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = eval_photos("knowing", photos=photographs(tmp_path, "dress", "outwear", "shoes"))
    clothing = figures["score"]["categories"]["clothing"]
    assert (clothing["count"], clothing["mean"]) == (3, 1.0)
    asked = [Path(message.images[0]).name for (message,) in assistant.made[0].asked]
    assert asked == ["0.png", "1.png", "2.png"]
    assert "photographs" in capsys.readouterr().out


def test_a_photograph_is_asked_for_its_name_alone(
    assistant: type[FakeAssistant], tmp_path: Path
) -> None:
    eval_photos("knowing", photos=photographs(tmp_path, *["dress"] * 20))
    assert list(assistant.truth.values()) == ["dress"] * 20


def test_a_folder_without_photographs_is_refused_before_a_model_is_loaded(
    assistant: type[FakeAssistant], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no labelled photographs"):
        eval_photos(None, photos=tmp_path)
    assert not assistant.made


def test_photographs_of_the_shared_data_can_all_be_asked_about(
    assistant: type[FakeAssistant], shared_data: Path
) -> None:
    figures = eval_photos(None, photos=shared_data)
    counts = {name: c["count"] for name, c in figures["score"]["categories"].items()}
    assert counts.keys() == {"clothing", "grocery", "pets", "flags"}
    assert min(counts.values()) > 30
