"""Scores of drawn questions, and the way from questions to a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from lapilli.errors import DataError
from lapilli.eval.metrics import bootstrap, exact, f1, iou, normalize, parse_box
from lapilli.eval.runner import Answer, run, summarize
from lapilli.eval.tasks.drawn import objects_named, score
from lapilli.messages import Conversation, ImagePart, Piece, Question, Sampling

NAMES = {"star": "star", "stars": "star", "circle": "circle", "circles": "circle"}
NAMES |= {"oat milk": "oat milk", "packs of oat milk": "oat milk", "milk": "milk"}
COLORS = ["red", "blue", "gray"]


def question(category: str, answer: str, number: int = 0, **extra: object) -> Question:
    return Question(f"q{number}", "picture", "What?", answer, category, dict(extra))


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("3", "Three."),
        ("gray", "Grey"),
        ("the red star", "Red star."),
        ("a red star", "the red star"),
        ("top left", "Top  left."),
        ("0", "none"),
    ],
)
def test_same_answers_in_other_writing_are_right(reference: str, answer: str) -> None:
    assert exact(reference, answer) == 1.0


def test_other_answers_are_wrong() -> None:
    assert exact("left", "top left") == 0.0
    assert exact("3", "13") == 0.0
    assert exact("yes", "") == 0.0
    assert normalize("The a an") == ""


def test_boxes_count_above_half_overlap() -> None:
    truth = question("box", "[0.00, 0.00, 0.40, 0.40]", box=[0.0, 0.0, 0.4, 0.4])
    assert score(truth, "[0.00, 0.00, 0.40, 0.40]") == 1.0
    assert score(truth, "It is at [0.0, 0.0, 0.4, 0.21].") == 1.0
    assert score(truth, "[0.0, 0.0, 0.4, 0.19]") == 0.0
    assert score(truth, "[0.4, 0.4, 0.0, 0.0]") == 0.0
    assert score(truth, "top left") == 0.0
    assert iou((0, 0, 1, 1), (0.5, 0, 1.5, 1)) == pytest.approx(1 / 3)
    assert parse_box("0.1 0.2 0.3") is None


def test_a_box_without_its_truth_is_refused() -> None:
    with pytest.raises(DataError, match="q0: no 'box'"):
        score(question("box", "[0, 0, 1, 1]"), "[0, 0, 1, 1]")


def test_captions_are_read_as_multisets() -> None:
    text = "Two small red stars, a packs of oat milk, 3 circles and one large grey circle."
    assert sorted(objects_named(text, NAMES, COLORS), key=str) == sorted(
        [("red", "star")] * 2
        + [(None, "oat milk")]
        + [(None, "circle")] * 3
        + [("gray", "circle")],
        key=str,
    )
    assert objects_named("Nothing that I know.", NAMES, COLORS) == []
    assert objects_named("", {}, COLORS) == []


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("Two red circles and circles", [("red", "circle")] * 2 + [(None, "circle")]),
        ("2 objects: a red star; a circle (blue star)",
         [("red", "star"), (None, "circle"), ("blue", "star")]),
        ("A star and 0 red circles", [(None, "star")]),
        ("Red, a blue circle", [("blue", "circle")]),
        ("Two red ones and a circle", [(None, "circle")]),
        ("99999 stars", [(None, "star")] * 20),
    ],
)  # fmt: skip
def test_numbers_and_colors_belong_to_the_next_name(
    text: str, pairs: list[tuple[str | None, str]]
) -> None:
    assert objects_named(text, NAMES, COLORS) == pairs


def test_a_color_that_is_a_fruit_as_well_is_a_color_before_a_name() -> None:
    names, colors = NAMES | {"orange": "orange", "oranges": "orange"}, [*COLORS, "orange"]
    found = objects_named("Two orange stars, an orange and 3 oranges", names, colors)
    assert found == [("orange", "star")] * 2 + [(None, "orange")] * 4


def test_captions_score_f1_of_colors_with_names() -> None:
    truth = question(
        "caption",
        "Two red stars and a blue circle.",
        things=[["red", "star"], ["red", "star"], ["blue", "circle"]],
        names=NAMES,
        colors=COLORS,
    )
    assert score(truth, "a blue circle and two red stars") == 1.0
    assert score(truth, "A red circle and two blue stars.") == 0.0
    assert score(truth, "A red star.") == pytest.approx(0.5)
    assert f1([], []) == 1.0


def test_unsure_accepts_any_way_of_saying_so() -> None:
    unsure = question("unsure", "I am not sure.", answers=["I am not sure."])
    assert score(unsure, "I can't tell from the picture.") == 1.0
    assert score(unsure, "Rembrandt.") == 0.0


class Echo:
    """Answers "yes" in two interleaved pieces, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Conversation] = []

    def respond(
        self, conversations: Sequence[Conversation], sampling: Sampling | None = None
    ) -> Iterator[Piece]:
        self.asked += conversations
        for text in ("ye", "s"):
            for index in reversed(range(len(conversations))):
                yield Piece(index, text)


def test_run_asks_all_in_order_with_the_picture_first() -> None:
    echo = Echo()
    seen: list[int] = []
    questions = [question("existence", "yes", n) for n in range(150)]
    answers = run(questions, echo, progress=seen.append)
    assert [a.question_id for a in answers] == [q.id for q in questions]
    assert {a.text for a in answers} == {"yes"}
    assert seen[-1] == 150
    (message,) = echo.asked[0]
    assert isinstance(message.parts[0], ImagePart) and message.text == "What?"


def test_a_blind_question_has_no_picture() -> None:
    echo = Echo()
    run([Question("1", None, "What?", "")], echo)
    (message,) = echo.asked[0]
    assert not message.images and message.text == "What?"


def test_report_sums_up_by_category() -> None:
    questions = [
        question("existence", "yes", 1),
        question("existence", "no", 2),
        question("existence", "yes", 3),
        question("count", "2", 4),
    ]
    answers = [
        Answer(f"q{n}", text) for n, text in ((4, "two"), (3, "yes"), (2, "yes"), (1, "yes"))
    ]
    report = summarize(questions, answers, score)
    existence, count = report.categories["existence"], report.categories["count"]
    assert list(report.categories) == ["existence", "count"]
    assert existence.mean == pytest.approx(2 / 3)
    assert existence.low < existence.mean < existence.high
    assert (count.mean, count.count, count.low, count.high) == (1.0, 1, 1.0, 1.0)
    assert report.mean == pytest.approx(5 / 6)
    assert report.to_json()["categories"]["count"]["count"] == 1


def test_a_missing_answer_is_not_passed_over() -> None:
    with pytest.raises(DataError, match="question q1: no answer"):
        summarize([question("count", "2", 1)], [], score)


def test_interval_is_that_of_the_binomial() -> None:
    low, high = bootstrap([1.0] * 80 + [0.0] * 20)
    assert low == pytest.approx(0.72, abs=0.03) and high == pytest.approx(0.88, abs=0.03)
    assert bootstrap([]) == (0.0, 0.0)
