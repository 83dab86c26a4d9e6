"""Calls of functions, as models without training for them make them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lapilli.app.serve.refusals import Refusal
from lapilli.app.serve.requests import ChatRequest
from lapilli.app.serve.tools import Listener, Tools

CALL = '{"name": "weather", "arguments": {"city": "R\u00f6m"}}'


def tools(*names: str, choice: Any = None) -> Tools:
    functions = [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": f"Tells the {name}.",
                "parameters": {"properties": {"city": {"$ref": "#/$defs/city"}}, "$defs": {}},
            },
        }
        for name in names
    ]
    body = {
        "model": "small",
        "messages": [{"role": "user", "content": "?"}],
        "tools": functions,
        "tool_choice": choice,
    }
    return Tools.of(ChatRequest.model_validate(body))


def listen(given: Tools, text: str) -> tuple[list[str], Any]:
    """What is told of a text that comes letter by letter, and the call in it."""
    listener = Listener(given)
    told = [listener.add(letter) for letter in text]
    rest, call = listener.finish()
    return [*filter(None, told), *filter(None, [rest])], call


def test_a_call_is_told_as_a_call_alone() -> None:
    told, call = listen(tools("weather", "clock"), CALL)
    assert told == []
    assert call.name == "weather"
    assert json.loads(call.arguments) == {"city": "R\u00f6m"}
    assert call.id.startswith("call_")


def test_words_are_told_as_they_come() -> None:
    told, call = listen(tools("weather"), " It {rains}.")
    assert (told[0], "".join(told), call) == (" I", " It {rains}.", None)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "nothing", "arguments": {}}',
        '{"name": "weather", "arguments": "Rome"}',
        '{"name": ["weather"], "arguments": {}}',
        '{"name": "weather"}',
        '{"name": "weather", "arguments": {}',
        "{}",
        "{" * 5000,
    ],
)
def test_what_is_no_call_is_words(text: str) -> None:
    assert listen(tools("weather"), text) == ([text], None)


def test_without_functions_json_is_words() -> None:
    told, call = listen(tools("weather", choice="none"), CALL)
    assert ("".join(told), call) == (CALL, None)


def test_functions_are_described_in_words_with_their_schema() -> None:
    text = tools("weather", "clock").description
    assert "Function weather: Tells the weather." in text
    assert '"$ref": "#/$defs/city"' in text
    assert "must" not in text
    chosen: Any = {"type": "function", "function": {"name": "clock"}}
    text = tools("weather", "clock", choice=chosen).description
    assert "weather" not in text and "You must call one now." in text


def test_references_of_a_functions_schema_follow_it_to_its_place() -> None:
    form = tools("weather", "clock", choice="required").form
    assert form is not None
    calls = json.loads(form.text)["anyOf"]
    places = [call["properties"]["arguments"]["properties"]["city"]["$ref"] for call in calls]
    assert places == [f"#/anyOf/{i}/properties/arguments/$defs/city" for i in range(2)]


def test_a_name_that_is_not_there_or_there_twice_is_refused() -> None:
    chosen: Any = {"type": "function", "function": {"name": "clock"}}
    for names, choice in ((["weather"], chosen), (["clock", "clock"], None), ([], "auto")):
        with pytest.raises(Refusal) as caught:
            tools(*names, choice=choice)
        assert caught.value.code == "invalid_value"
