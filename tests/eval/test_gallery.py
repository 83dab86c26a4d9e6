"""The page of right and wrong answers: complete, escaped, and honest about what it leaves out."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from lapilli.errors import DataError
from lapilli.eval.gallery import PICTURE_PX, SHOWN, write_gallery
from lapilli.eval.runner import Answer
from lapilli.eval.tasks.drawn import score
from lapilli.messages import Question

VOID = {"meta", "img", "rect"}
LEFT_OPEN = {"th", "td", "tr", "dt", "dd"}


class Page(HTMLParser):
    """Tags in order with their attributes, text without the style, and what was left open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text, self.open = "", []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID | LEFT_OPEN:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]


def picture(width: int = 8, height: int = 8, color: str = "red") -> Image.Image:
    return Image.new("RGB", (width, height), color)


def question(number: int, kind: str = "count", answer: str = "2", **extra: object) -> Question:
    return Question(f"q{number}", picture(), "How many?", answer, kind, dict(extra))


def page_of(path: Path, questions: list[Question], texts: list[str], title: str = "drawn") -> Page:
    answers = [Answer(q.id, text) for q, text in zip(questions, texts, strict=True)]
    write_gallery(path / "page.html", title, questions, answers, score)
    return Page((path / "page.html").read_text(encoding="utf-8"))


def embedded(page: Page) -> Image.Image:
    (image,) = page.all("img")
    return Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))


def test_page_is_complete_in_itself(tmp_path: Path) -> None:
    page = page_of(tmp_path, [question(1), question(2, "where", "top")], ["2", "left"])
    assert not page.open
    assert {"script", "link", "iframe"}.isdisjoint(tag for tag, _ in page.tags)
    addresses = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href")]
    assert len(addresses) == 4
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert all(attrs["href"][1:] in targets for attrs in page.all("a"))


def test_page_is_made_for_light_dark_and_narrow_screens(tmp_path: Path) -> None:
    page_of(tmp_path, [question(1)], ["2"])
    html = (tmp_path / "page.html").read_text()
    assert 'name="viewport" content="width=device-width' in html
    assert "color-scheme: light dark" in html
    assert "prefers-color-scheme: dark" in html
    assert "minmax(min(100%, 13rem), 1fr)" in html


def test_wrong_answers_come_first_and_the_rest_is_counted(tmp_path: Path) -> None:
    questions = [question(n) for n in range(40)]
    texts = ["2" if n % 2 else "5" for n in range(38)] + ["2", "2"]
    page = page_of(tmp_path, questions, texts)
    cards = [attrs["class"] for attrs in page.all("li")]
    assert cards == ["wrong"] * SHOWN + ["right"] * SHOWN
    assert f"Wrong: {SHOWN} of 19" in page.text
    assert f"Right: {SHOWN} of 21" in page.text
    assert "0.525" in page.text


def test_a_kind_without_mistakes_has_no_wrong_part(tmp_path: Path) -> None:
    page = page_of(tmp_path, [question(1), question(2)], ["2", "two"])
    assert "Right: 2\n" in page.text
    assert "Wrong:" not in page.text


def test_what_people_and_models_write_is_escaped(tmp_path: Path) -> None:
    evil = '<img src=x onerror="alert(1)">&'
    asked = Question("1", picture(), evil, evil, evil)
    page = page_of(tmp_path, [asked], [f"{evil}no"], title=evil)
    assert len(page.all("img")) == 1
    assert page.text.count(evil) == 7  # title twice, table, heading, question, answer, truth
    assert page.all("img")[0]["alt"].endswith(evil)


def test_boxes_of_truth_and_answer_lie_where_they_belong(tmp_path: Path) -> None:
    asked = question(1, "box", "[0.10, 0.20, 0.50, 0.80]", box=[0.1, 0.2, 0.5, 0.8])
    page = page_of(tmp_path, [asked], ["[0.6, 0.2, 0.9, 0.3]"])
    corners = {
        attrs["class"]: [float(attrs[k]) for k in ("x", "y", "width", "height")]
        for attrs in page.all("rect")
    }
    assert corners["truth"] == pytest.approx([0.1, 0.2, 0.4, 0.6])
    assert corners["said"] == pytest.approx([0.6, 0.2, 0.3, 0.1])
    assert "the true box and the answered one" in page.all("img")[0]["alt"]


def test_an_answer_without_a_box_leaves_the_true_one_alone(tmp_path: Path) -> None:
    asked = question(1, "box", "[0.10, 0.20, 0.50, 0.80]", box=[0.1, 0.2, 0.5, 0.8])
    page = page_of(tmp_path, [asked], ["There is none."])
    assert [attrs["class"] for attrs in page.all("rect")] == ["halo", "truth"]
    assert not page_of(tmp_path, [question(2)], ["2"]).all("svg")


def test_partly_right_answers_show_their_score(tmp_path: Path) -> None:
    truth = {"things": [["red", "star"], ["blue", "ring"]], "names": {"star": "star"}}
    asked = question(1, "caption", "A red star and a blue ring.", colors=["red"], **truth)
    page = page_of(tmp_path, [asked], ["A red star."])
    assert page.all("li")[0]["class"] == "wrong"
    assert re.search(r"score\s*0\.67", page.text)


def test_every_picture_has_an_alternative_text(tmp_path: Path) -> None:
    page = page_of(tmp_path, [question(n) for n in range(4)], ["1", "2", "3", "2"])
    assert all(attrs["alt"].strip() for attrs in page.all("img"))


def test_a_blind_question_has_no_picture(tmp_path: Path) -> None:
    page = page_of(tmp_path, [Question("1", None, "How many?", "2", "count")], [""])
    assert not page.all("img")
    assert "No picture was shown." in page.text
    assert "(nothing)" in page.text


def test_a_drawn_picture_is_kept_to_the_pixel(tmp_path: Path) -> None:
    page = page_of(tmp_path, [Question("1", picture(7, 5), "?", "2", "count")], ["2"])
    kept = embedded(page)
    assert (kept.format, kept.size, kept.getpixel((3, 3))) == ("PNG", (7, 5), (255, 0, 0))


def test_a_photograph_is_turned_upright_and_reduced(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(1000, 500).save(tmp_path / "photo.jpg", exif=exif)
    asked = Question("1", tmp_path / "photo.jpg", "What?", "apple", "grocery")
    kept = embedded(page_of(tmp_path, [asked], ["apple"]))
    assert (kept.format, kept.size) == ("JPEG", (PICTURE_PX // 2, PICTURE_PX))


def test_clear_parts_are_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    asked = Question("1", tmp_path / "clear.png", "What?", "flag", "flags")
    assert embedded(page_of(tmp_path, [asked], ["flag"])).getpixel((1, 1)) == (255, 255, 255)


def test_the_questions_pictures_are_left_as_they_are(tmp_path: Path) -> None:
    large = picture(1000, 500)
    page_of(tmp_path, [Question("1", large, "?", "2", "count")], ["2"])
    assert large.size == (1000, 500)


def test_a_picture_that_is_gone_is_named(tmp_path: Path) -> None:
    asked = Question("q7", tmp_path / "gone.jpg", "What?", "apple", "grocery")
    with pytest.raises(DataError, match=r"question q7: .*gone\.jpg cannot be opened"):
        page_of(tmp_path, [asked], ["apple"])


def test_a_missing_answer_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="question q1: no answer"):
        write_gallery(tmp_path / "page.html", "drawn", [question(1)], [], score)
