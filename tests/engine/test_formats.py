from __future__ import annotations

import json
import re

import pytest
import torch

from lapilli.engine.engine import Engine
from lapilli.engine.formats import Formats, Guide
from lapilli.errors import EngineError
from lapilli.messages import Format, Message, Request, Sampling, TextPart
from lapilli.processor.processor import Processor

SCHEMA = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["circle", "square"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["shape", "count"],
    "additionalProperties": False,
}
QUESTION = (Message("user", (TextPart("What is this?"),)),)


def answer(engine: Engine, form: Format, **settings: float) -> tuple[str, str | None]:
    sampling = Sampling(100, form=form, **settings)  # type: ignore[arg-type]
    *_, last = pieces = list(engine.submit(Request(QUESTION, sampling)))
    return "".join(piece.text for piece in pieces), last.finish_reason


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_answers_keep_to_a_schema(engine: Engine, temperature: float) -> None:
    text, reason = answer(
        engine, Format("json_schema", json.dumps(SCHEMA)), temperature=temperature
    )
    made = json.loads(text)
    assert reason == "stop"
    assert made["shape"] in ("circle", "square")
    assert 0 <= made["count"] <= 99


def test_a_model_that_wants_nothing_but_white_space_still_ends(processor: Processor) -> None:
    words = processor.words
    guide = Formats(words, processor.end_id).guide(Format("json_schema", json.dumps(SCHEMA)))
    logits = torch.zeros(words.tokenizer.get_vocab_size())
    logits[[i for i in range(len(logits)) if i > 5 and not words.decode([i]).strip()]] = 9.0
    made: list[int] = []
    while len(made) < 60 and processor.end_id not in made:
        made.append(int(guide.restrict(logits).argmax()))
        guide.advance(made[-1])
    text = words.decode(made)
    assert json.loads(text)["shape"] in ("circle", "square")
    assert " " in text and "  " not in text and "\n" not in text


@pytest.mark.parametrize("seed", range(4))
def test_answers_keep_to_an_expression(engine: Engine, seed: int) -> None:
    pattern = r"(yes|no), [0-9]{1,3} (red|blue) stars?"
    text, reason = answer(engine, Format("regex", pattern), temperature=2.0, seed=seed)
    assert reason == "stop"
    assert re.fullmatch(pattern, text)


def test_forced_and_free_answers_share_a_batch(engine: Engine) -> None:
    free = Request(QUESTION, Sampling(12))
    alone = "".join(piece.text for piece in engine.submit(free))
    forced = engine.submit(Request(QUESTION, Sampling(50, form=Format("regex", "[ab]{5}"))))
    beside = engine.submit(free)
    assert re.fullmatch("[ab]{5}", "".join(piece.text for piece in forced))
    assert "".join(piece.text for piece in beside) == alone


def test_a_form_that_cannot_be_followed_any_more_ends_its_answer_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Guide, logits: torch.Tensor) -> torch.Tensor:
        raise EngineError("regex: too costly")

    free = engine.submit(Request(QUESTION, Sampling(12)))
    forced = engine.submit(Request(QUESTION, Sampling(50, form=Format("regex", "[ab]{5}"))))
    monkeypatch.setattr(Guide, "restrict", broken)
    assert sum(piece.num_tokens for piece in free) == 12
    with pytest.raises(EngineError, match="too costly"):
        next(forced)
    assert engine.state().held_tokens == 0


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (Format("json_schema", "{"), "json_schema: Expecting property name"),
        (Format("json_schema", '{"type": "nothing"}'), "json_schema: "),
        (Format("regex", "(unclosed"), "regex: "),
        (Format("regex", "a" * 70000), "regex: 70000 characters"),
    ],
)
def test_broken_forms_are_refused_at_once_in_one_line(
    engine: Engine, form: Format, message: str
) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        engine.submit(Request(QUESTION, Sampling(form=form)))
    assert "\n" not in str(caught.value)
