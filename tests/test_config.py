from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapilli.config import dump_toml, from_dict, load_toml, override, to_dict
from lapilli.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    steps: int = 10
    rate: float = 1e-3
    mode: Literal["align", "instruct"] = "align"
    is_packed: bool = False
    clip: float | None = 1.0


@dataclass(frozen=True)
class Recipe:
    stage: Stage
    learn: dict[str, float] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    size: tuple[int, int] = (96, 96)
    steps: list[int] = field(default_factory=list)
    parts: tuple[Stage, ...] = ()
    extra: Stage | None = None
    limit: int | str = 3
    anything: Any = None


@dataclass(frozen=True)
class Positive:
    value: int = 1

    def __post_init__(self) -> None:
        if self.value < 1:
            raise ConfigError("value must be positive")


@dataclass(frozen=True)
class Outer:
    inner: Positive


FULL = Recipe(
    stage=Stage(name='a "quoted"\nname \x7f', steps=3, mode="instruct", clip=None),
    learn={"projector": 1e-3, "a key": 2.0},
    files=(Path("a/b.json"),),
    size=(336, 224),
    steps=[1, 2],
    parts=(Stage("one"), Stage("two", is_packed=True)),
    extra=Stage("extra"),
    limit="none",
    anything={"deep": {"deeper": [1, {"x": "y"}]}, "empty": {}},
)


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_kind_of_field_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        size = [336, 224]
        files = ["a.json", "b.json"]
        limit = "many"
        learn = { projector = 1, decoder = 2e-5 }
        [stage]
        name = "align"
        rate = 1
        is_packed = true
        [[parts]]
        name = "first"
        """,
    )
    recipe = load_toml(path, Recipe)
    assert recipe == Recipe(
        stage=Stage("align", rate=1.0, is_packed=True),
        learn={"projector": 1.0, "decoder": 2e-5},
        files=(Path("a.json"), Path("b.json")),
        size=(336, 224),
        limit="many",
        parts=(Stage("first"),),
    )
    assert type(recipe.stage.rate) is float
    assert type(recipe.learn["projector"]) is float


def test_written_config_reads_back_equal(tmp_path: Path) -> None:
    # TOML has no null, so a part that is off is left out; it reads back only if off by default.
    config = from_dict(Recipe, override(to_dict(FULL), "stage.clip=0.5"), "here")
    assert load_toml(write(tmp_path, dump_toml(config)), Recipe) == config


def test_what_is_none_is_left_out_of_toml() -> None:
    assert "clip" not in dump_toml(Stage("a", clip=None))
    assert to_dict(FULL)["stage"].keys() == {"name", "steps", "rate", "mode", "is_packed"}


keys = st.text(min_size=1, max_size=5)
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
)


@given(st.dictionaries(keys, values, max_size=4))
def test_any_tables_survive_the_writer(data: dict[str, Any]) -> None:
    assert tomllib.loads(dump_toml(data)) == data


def test_unknown_key_names_file_path_and_nearest_key(tmp_path: Path) -> None:
    path = write(tmp_path, '[stage]\nname = "a"\nstpes = 5\n')
    with pytest.raises(ConfigError) as caught:
        load_toml(path, Recipe)
    assert str(caught.value) == f"{path}: unknown key stage.stpes; did you mean stage.steps?"


def test_unknown_key_far_from_all_lists_what_is_known() -> None:
    with pytest.raises(ConfigError, match=r"unknown key qqq; known here: inner$"):
        from_dict(Outer, {"qqq": 1}, "r.toml")


def test_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^r\.toml: stage\.name is missing"):
        from_dict(Recipe, {"stage": {}}, "r.toml")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": "ten"}, "stage.steps must be an integer, not 'ten'"),
        ({"steps": 1.5}, "stage.steps must be an integer, not 1.5"),
        ({"steps": True}, "stage.steps must be an integer, not True"),
        ({"rate": False}, "stage.rate must be a number, not False"),
        ({"rate": "1e-3"}, "stage.rate must be a number, not '1e-3'"),
        ({"is_packed": 1}, "stage.is_packed must be true or false, not 1"),
        ({"name": 3}, "stage.name must be text, not 3"),
        ({"mode": "alin"}, "stage.mode must be one of 'align', 'instruct', not 'alin'"),
        ({"clip": "x"}, "stage.clip must be a number, not 'x'"),
    ],
)
def test_wrong_type_names_key_wanted_and_got(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Recipe, {"stage": {"name": "a", **setting}}, "r.toml")
    assert str(caught.value) == f"r.toml: {message}"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"stage": 3}, "stage must be a table, not 3"),
        ({"learn": {"projector": "x"}}, "learn.projector must be a number, not 'x'"),
        ({"learn": [1]}, r"learn must be a table, not \[1\]"),
        ({"files": "a.json"}, "files must be a list, not 'a.json'"),
        ({"files": ["a", 2]}, r"files\[1\] must be a path \(text\), not 2"),
        ({"size": [1, 2, 3]}, "size has 3 items; it takes 2"),
        ({"parts": [{"nam": "x"}]}, r"unknown key parts\[0\]\.nam; did you mean parts\[0\]\.name"),
        ({"limit": 1.5}, "limit must be an integer or text, not 1.5"),
    ],
)
def test_wrong_shape_names_the_place(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^r.toml: {message}"):
        from_dict(Recipe, {"stage": {"name": "a"}, **setting}, "r.toml")


def test_refusal_of_a_dataclass_gains_file_and_table() -> None:
    with pytest.raises(ConfigError, match=r"^r\.toml: inner: value must be positive$"):
        from_dict(Outer, {"inner": {"value": 0}}, "r.toml")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"a = ", "not valid TOML"), (b"a = '\xff'", "not UTF-8")],
)
def test_unreadable_file_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "r.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_toml(path, Stage)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("steps=100", 100),
        ("steps = 1e-3", 1e-3),
        ("steps=true", True),
        ('steps="7"', "7"),
        ("steps=fast", "fast"),
        ("steps=runs/a=b", "runs/a=b"),
        ("steps=[1, 2]", [1, 2]),
        ("steps={ a = 1 }", {"a": 1}),
        ("steps=none", None),
        ("steps=", ""),
        ("steps=1\nother=2", "1\nother=2"),
    ],
)
def test_override_reads_the_value_as_toml_or_as_text(setting: str, value: Any) -> None:
    assert override({"steps": 1}, setting) == {"steps": value}


def test_override_reaches_into_tables_and_leaves_the_original() -> None:
    data = {"stage": {"steps": 1, "name": "a"}, "learn": {}}
    changed = override(override(data, "stage.steps=2"), "run.out.path=x")
    assert changed == {
        "stage": {"steps": 2, "name": "a"},
        "learn": {},
        "run": {"out": {"path": "x"}},
    }
    assert data == {"stage": {"steps": 1, "name": "a"}, "learn": {}}


def test_override_turns_an_optional_part_off() -> None:
    data = override({"name": "a", "clip": 1.0}, "clip=none")
    assert from_dict(Stage, data, "here").clip is None


@pytest.mark.parametrize("setting", ["steps", "=3", "stage..steps=3", "steps.deeper=3"])
def test_override_refuses_what_it_cannot_place(setting: str) -> None:
    with pytest.raises(ConfigError, match="setting"):
        override({"steps": 1}, setting)
