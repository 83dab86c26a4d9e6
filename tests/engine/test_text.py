from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapilli.engine.text import StopTexts, TextStream
from lapilli.processor.processor import Processor


@pytest.mark.parametrize("text", ["plain words", "naïve 画像 🙂🙂", "a\ufffdb 🙂"])
def test_streamed_text_is_whole_characters_and_loses_none(processor: Processor, text: str) -> None:
    stream = TextStream(processor.words)
    ids = processor.words.encode(text, with_specials=False)
    told = [stream.add(token) for token in ids]
    assert "".join(told) + stream.finish() == text
    assert all(piece in text for piece in told)


def test_unfinished_character_is_never_told(processor: Processor) -> None:
    stream = TextStream(processor.words)
    ids = processor.words.encode("🙂", with_specials=False)
    assert len(ids) > 1
    assert [stream.add(token) for token in ids[:-1]] == [""] * (len(ids) - 1)
    assert stream.finish() == ""


def test_special_tokens_are_never_told(processor: Processor) -> None:
    stream = TextStream(processor.words)
    assert stream.add(processor.words.id("<|user|>")) + stream.add(processor.end_id) == ""
    ids = processor.words.encode("red", with_specials=False)
    assert "".join(stream.add(token) for token in ids) == "red"


def told(stops: tuple[str, ...], pieces: list[str]) -> tuple[list[str], bool]:
    texts = StopTexts(stops)
    out = [texts.add(piece) for piece in pieces]
    return [*out, texts.finish()], texts.is_met


def test_text_up_to_a_stop_is_told_and_nothing_after() -> None:
    pieces, is_met = told(("END",), ["a E", "N", "D b", "c"])
    assert "".join(pieces) == "a "
    assert is_met


def test_what_may_become_a_stop_is_held_back_until_it_cannot() -> None:
    assert told(("END",), ["a EN", "x"]) == (["a ", "ENx", ""], False)
    assert told(("END",), ["a EN"]) == (["a ", "EN"], False)


def test_the_first_of_several_stops_counts() -> None:
    assert told(("cd", "b"), ["abcd"]) == (["a", ""], True)


@given(
    st.lists(st.text("ab", max_size=4), max_size=8), st.lists(st.text("ab", min_size=1), max_size=3)
)
def test_pieces_give_what_the_whole_text_gives(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    found = [text.find(stop) for stop in stops if stop in text]
    out, is_met = told(tuple(stops), pieces)
    assert is_met == bool(found)
    if found:
        # A stop that is whole earlier may begin later than one that becomes whole with it.
        assert text.startswith("".join(out))
        assert not any(stop in "".join(out) for stop in stops)
    else:
        assert "".join(out) == text
