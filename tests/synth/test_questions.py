"""Questions are checked against the boxes by other code, and against the rules of measuring."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from types import SimpleNamespace

import pytest

from lapilli.errors import DataError
from lapilli.synth import questions as q
from lapilli.synth.names import GROUPS
from lapilli.synth.symbols import COLORS, SHAPES, SIZES, UNSEEN_PAIRS, Symbols, Thing
from lapilli.synth.wordings import FORMS, spread
from lapilli.synth.words import article, counted, describe_in_words, noun, plural

CELLS = ["top left", "top", "top right", "left", "center", "right"]
CELLS += ["bottom left", "bottom", "bottom right"]
PLURALS = {plural(name): name for name in SHAPES} | {name: name for name in SHAPES}
SCENES = 500


def make_scene(rng: random.Random, unseen: bool = False) -> Symbols:
    things: list[Thing] = []
    for _ in range(rng.randint(1, 6)):
        color, name = rng.choice(COLORS), rng.choice(SHAPES)
        if things and rng.random() < 0.5:
            echo = rng.choice(things)
            color, name = rng.choice([(color, echo.name), (str(echo.color), name)])
        if (color, name) in UNSEEN_PAIRS and not unseen:
            continue
        size = rng.choice(SIZES)
        side = rng.uniform(0.12, 0.16) if size == "small" else rng.uniform(0.24, 0.34)
        x, y = rng.uniform(0, 1 - side), rng.uniform(0, 1 - side)
        things.append(Thing(name, (x, y, x + side, y + side), color, size))
    return Symbols(tuple(things), background=rng.choice((*COLORS, None)))


def scenes(count: int = SCENES, unseen: bool = False) -> list[Symbols]:
    rng = random.Random(1)
    return [s for s in (make_scene(rng, unseen) for _ in range(count)) if s.things]


def asked(kind: str, held_out: bool = False, unseen: bool = False) -> list[tuple[Symbols, q.Turn]]:
    rng, found = random.Random(2), []
    for symbols in scenes(unseen=unseen):
        turns = q.ask(rng, symbols, [kind], held_out=held_out)
        if turns:
            found.append((symbols, turns[0]))
    assert len(found) > SCENES / 5, kind
    return found


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z-]+", text.lower())


def matching(symbols: Symbols, words: list[str]) -> list[Thing]:
    """The things that a phrase's words may mean."""
    colors = [w for w in words if w in COLORS]
    names = [PLURALS[w] for w in words if w in PLURALS]
    sizes = [w for w in words if w in SIZES]
    return [
        t
        for t in symbols.things
        if (not colors or t.color in colors)
        and (not names or t.name in names)
        and (not sizes or t.size in sizes)
    ]


def referred(symbols: Symbols, text: str) -> list[Thing]:
    """The things that "the red star"-like phrases of a question mean, each exactly one."""
    body = text.lower().split("answer")[0]
    nouns = "|".join([*SHAPES, "object", "thing"])
    that = r"(?: that is (?:" + "|".join(COLORS) + "))?"
    attributes = "|".join((*COLORS, *SIZES))
    phrase = rf"the (?:(?:{attributes}) )*(?:{nouns})\b{that}"
    things = []
    for match in re.findall(phrase, body):
        if match in ("the object", "the thing"):
            continue
        meant = matching(symbols, words_of(match))
        assert len(meant) == 1, (text, match, symbols)
        things.append(meant[0])
    return things


def test_every_kind_can_be_asked_of_scenes_or_photographs() -> None:
    rng, kinds = random.Random(0), set()
    photo = Symbols((Thing("apple", (0, 0, 1, 1)),), "photo", extra={"fine": "Pink Lady"})
    for symbols in [*scenes(100), photo]:
        kinds |= {turns[0].kind for turns in q.ask_many(rng, symbols, 12)}
    assert kinds == set(q.KINDS)


def test_relations_follow_the_boxes() -> None:
    for symbols, turn in asked("relation"):
        a, b = referred(symbols, turn.question)
        text = turn.question.lower()
        if re.match(r"compared|seen from|(on )?which side of", text):
            a, b = b, a
        dx = (a.box[0] + a.box[2] - b.box[0] - b.box[2]) / 2
        dy = (a.box[1] + a.box[3] - b.box[1] - b.box[3]) / 2
        sides = {"left": dx < -0.12, "right": dx > 0.12, "above": dy < -0.12, "below": dy > 0.12}
        if turn.answer in sides:
            assert sides[turn.answer], (turn, symbols)
            continue
        said = text.split("is it right that")[-1]
        side = next(
            s for s in ("left", "right", "above", "below") if s in said.replace("under", "below")
        )
        assert turn.answer == ("yes" if sides[side] else "no"), (turn, symbols)


def test_bigger_follows_the_areas() -> None:
    for symbols, turn in asked("bigger"):
        text = turn.question.lower()
        a, b = referred(symbols, turn.question)[:2]
        area = [(t.box[2] - t.box[0]) * (t.box[3] - t.box[1]) for t in (a, b)]
        assert max(area) > 1.8 * min(area)
        if turn.answer in ("yes", "no", "bigger", "smaller"):
            if text.startswith("compared"):
                area.reverse()
            a_bigger = area[0] > area[1]
            if turn.answer in ("bigger", "smaller"):
                assert turn.answer == ("bigger" if a_bigger else "smaller"), turn
            else:
                assert (turn.answer == "yes") == (a_bigger != ("smaller" in text)), turn
        else:
            wanted = min(area) if "smaller" in text else max(area)
            answer = matching(symbols, words_of(turn.answer))
            assert answer == [(a, b)[area.index(wanted)]], turn


def test_where_is_well_inside_its_region() -> None:
    for symbols, turn in asked("where"):
        (thing,) = set(referred(symbols, turn.question))
        row, column = divmod(CELLS.index(turn.answer), 3)
        x, y = (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2
        for value, cell in ((x, column), (y, row)):
            assert cell == 0 or value > cell / 3 + 0.029
            assert cell == 2 or value < (cell + 1) / 3 - 0.029


def test_boxes_are_those_of_the_thing_with_two_decimals() -> None:
    for symbols, turn in asked("box"):
        (thing,) = set(referred(symbols, turn.question))
        assert re.fullmatch(r"\[\d\.\d\d, \d\.\d\d, \d\.\d\d, \d\.\d\d\]", turn.answer)
        numbers = [float(n) for n in turn.answer[1:-1].split(", ")]
        assert numbers == pytest.approx(thing.box, abs=0.0051)
        assert turn.extra["box"] == list(thing.box)


def test_shapes_and_colors_are_not_given_away_and_right() -> None:
    for symbols, turn in asked("shape"):
        (thing,) = set(referred(symbols, turn.question))
        assert turn.answer == thing.name
        assert not set(words_of(turn.question)) & set(SHAPES)
    for symbols, turn in asked("colour"):
        (thing,) = set(referred(symbols, turn.question))
        assert turn.answer == thing.color
        assert not set(words_of(turn.question)) & set(COLORS)


@pytest.mark.parametrize("held_out", [False, True])
def test_existence_is_right_and_balanced(held_out: bool) -> None:
    answers = Counter[str]()
    near = 0
    for symbols, turn in asked("existence", held_out, unseen=held_out):
        said = words_of(turn.question.split("Yes or")[0])
        attributes = [w for w in said if w in COLORS or w in PLURALS or w in SIZES]
        there = bool(attributes) and bool(matching(symbols, attributes))
        assert turn.answer == ("yes" if there else "no"), (turn, symbols)
        answers[turn.answer] += 1
        if turn.answer == "no":
            halves = [[w] for w in attributes if matching(symbols, [w])]
            near += bool(halves)
    assert 0.43 < answers["yes"] / answers.total() < 0.57
    assert near > 0.5 * answers["no"]


@pytest.mark.parametrize("kind", ["existence", "check", "relation", "bigger", "reasoning"])
def test_yes_and_no_are_about_as_frequent(kind: str) -> None:
    rng, answers = random.Random(5), Counter[str]()
    for symbols in scenes() * 8:
        for turn in q.ask(rng, symbols, [kind]) or ():
            answers[turn.answer] += 1
    assert answers["yes"] > 200
    assert 0.45 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.55, answers


def test_counts_are_exact_and_spread() -> None:
    answers = Counter[str]()
    for symbols, turn in asked("count"):
        body = words_of(turn.question.split("nswer")[0])
        attributes = [w for w in body if w in COLORS or w in PLURALS]
        found = matching(symbols, attributes) if attributes else list(symbols.things)
        assert turn.answer == str(len(found)), (turn, symbols)
        answers[turn.answer] += 1
    shares = {n: answers[n] / answers.total() for n in "0123456"}
    assert 0.04 < shares["0"] < 0.2
    assert shares["1"] < 0.6
    assert all(shares[n] > 0.01 for n in "23456"), shares


def test_captions_name_everything_once_in_the_same_way() -> None:
    for symbols, turn in asked("caption"):
        expected = Counter(
            counted(n, f"{color} {name}")
            for (color, name), n in Counter((t.color, t.name) for t in symbols.things).items()
        )
        told = turn.answer[0].lower() + turn.answer[1:].rstrip(".")
        assert Counter(re.split(", | and ", told)) == expected
        again = q.ask(random.Random(9), symbols, ["caption"])
        assert again is not None and again[0].answer == turn.answer


def test_follow_ups_have_two_or_three_turns() -> None:
    rng = random.Random(4)
    lengths = Counter(len(q.ask(rng, s, ["follow_up"]) or ()) for s in scenes())
    assert set(lengths) <= {0, 2, 3} and lengths[2] > 50 and lengths[3] > 50


def test_training_text_never_names_an_unseen_pair() -> None:
    rng = random.Random(6)
    phrases = [f"{color} {name}|{name} that is {color}" for color, name in UNSEEN_PAIRS]
    named_pair = re.compile("|".join(phrases))
    for symbols in scenes():
        texts = [describe_in_words(rng, symbols)]
        for turn in itertools.chain.from_iterable(q.ask_many(rng, symbols, 16)):
            texts += [turn.question, turn.answer]
            assert not turn.extra["unseen"]
            if turn.kind == "check":
                said = words_of(turn.question)
                named = {
                    (c, PLURALS[n]) for c in said for n in said if c in COLORS and n in PLURALS
                }
                assert not named & UNSEEN_PAIRS or turn.answer == "yes", turn
        for text in texts:
            assert not named_pair.search(text.lower()), text


def test_unseen_is_marked_when_measuring_and_balanced() -> None:
    marked = [t for _, t in asked("existence", held_out=True, unseen=True) if t.extra["unseen"]]
    rng = random.Random(8)
    pair = sorted(UNSEEN_PAIRS)[0]
    answers = Counter[str]()
    for symbols in scenes():
        rare = Thing(pair[1], (0.1, 0.1, 0.2, 0.2), pair[0], "small")
        turns = q.ask(rng, Symbols((*symbols.things, rare)), ["existence"], held_out=True)
        if turns and turns[0].extra["unseen"]:
            answers[turns[0].answer] += 1
    assert marked
    assert 0.35 < answers["yes"] / answers.total() < 0.65, answers


def test_held_out_wordings_are_new_and_use_known_words() -> None:
    def vocabulary(wordings: tuple[str, ...]) -> set[str]:
        return {w.strip("?.,:").lower() for text in wordings for w in text.split() if "{" not in w}

    for name, form in FORMS.items():
        assert len(form.held_out) >= 4, name
        trained = {w.lower().rstrip("?.") for w in form.train}
        assert not trained & {w.lower().rstrip("?.") for w in form.held_out}, name
        assert vocabulary(form.held_out) <= vocabulary(form.train), name


def test_measured_kinds_have_many_training_wordings() -> None:
    for name in ("existence", "shape", "colour", "count", "where", "box", "caption", "bigger_of"):
        assert len(set(FORMS[name].train)) >= 20, name


def test_questions_about_one_picture_differ() -> None:
    rng = random.Random(3)
    for symbols in scenes(100):
        many = q.ask_many(rng, symbols, 12)
        assert len(many) >= 8
        assert len({tuple(turn.question for turn in turns) for turns in many}) == len(many)


def test_same_seed_asks_the_same() -> None:
    symbols = scenes(1)[0]
    first, second = (q.ask_many(random.Random(7), symbols, 8) for _ in range(2))
    assert first == second


def test_photographs_are_asked_what_they_show() -> None:
    photo = Symbols((Thing("pants", (0, 0, 1, 1)),), "photo")
    flag = Symbols((Thing("flag", (0, 0, 1, 1)),), "flag", extra={"fine": "Peru"})
    rng = random.Random(0)
    turns = [
        turn
        for t in (q.ask(rng, photo, ["what", "existence"]) for _ in range(300))
        for turn in t or ()
    ]
    assert {t.answer for t in turns} == {"pants", "a pair of pants", "clothing", "yes", "no"}
    for turn in turns:
        if turn.answer in ("yes", "no"):
            assert (
                "pair of pants" in turn.question.lower()
                or "pairs of pants" in turn.question.lower()
            ) == (turn.answer == "yes")
    about_flag = [
        turn for t in (q.ask(rng, flag, ["what", "caption"]) for _ in range(99)) for turn in t or ()
    ]
    assert {t.answer for t in about_flag} == {"Peru", "flag", "The flag of Peru."}


def test_the_plain_question_about_a_photograph_is_answered_by_its_name() -> None:
    fruit = Symbols((Thing("apple", (0, 0, 1, 1)),), "photo", extra={"fine": "Pink Lady"})
    flag = Symbols((Thing("flag", (0, 0, 1, 1)),), "flag", extra={"fine": "Peru"})
    rng = random.Random(0)
    for symbols, name in ((fruit, "apple"), (flag, "Peru")):
        turns = [q.ask_name(rng, symbols) for _ in range(30)]
        assert {(turn.kind, turn.answer) for turn in turns} == {("what", name)}
        assert not any(name.lower() in turn.question.lower() for turn in turns)
        assert len({turn.question for turn in turns}) > 5


def test_a_kind_that_does_not_fit_gives_none() -> None:
    alone = Symbols((Thing("star", (0.1, 0.1, 0.3, 0.3), "blue", "large"),))
    assert q.ask(random.Random(0), alone, ["relation"]) is None
    assert q.ask(random.Random(0), alone, ["what"]) is None
    assert q.ask(random.Random(0), Symbols(()), ["caption"]) is None


def test_suite_yields_as_many_of_each_kind_as_asked() -> None:
    def draw(seed: int) -> SimpleNamespace:
        symbols = make_scene(random.Random(seed), unseen=True)
        return SimpleNamespace(image=f"picture {seed}", symbols=symbols)

    first, second = (list(q.suite(0, 15, draw=draw)) for _ in range(2))
    assert Counter(x.category for x in first) == dict.fromkeys(q.MEASURED, 15)
    assert first == second
    assert len({x.id for x in first}) == len(first)
    assert any(x.extra["unseen"] for x in first)


def test_suite_passes_over_what_is_not_kept_and_still_yields_as_many() -> None:
    def draw(seed: int) -> SimpleNamespace:
        return SimpleNamespace(image=None, symbols=make_scene(random.Random(seed), unseen=True))

    kept = list(q.suite(0, 15, draw=draw, keep=lambda turn: not turn.extra["unseen"]))
    assert Counter(x.category for x in kept) == dict.fromkeys(q.MEASURED, 15)
    assert not any(x.extra["unseen"] for x in kept)


def test_suite_says_which_kind_cannot_be_asked() -> None:
    empty = SimpleNamespace(image=None, symbols=Symbols(()))
    with pytest.raises(DataError, match="too few pictures allow relation"):
        list(q.suite(0, 2, draw=lambda seed: empty, kinds=["relation"]))


def test_words_tell_every_thing_with_its_box() -> None:
    rng = random.Random(0)
    for symbols in scenes(200):
        text = describe_in_words(rng, symbols)
        for thing in symbols.things:
            assert "[{:.2f}, {:.2f}, {:.2f}, {:.2f}]".format(*thing.box) in text
            assert str(thing.color) in text.lower() and thing.name in text.lower()


def test_words_tell_the_region_in_about_half_of_the_descriptions_and_never_another() -> None:
    rng = random.Random(0)
    symbols = Symbols((Thing("star", (0.7, 0.1, 0.9, 0.3), "blue", "large"),))
    texts = [describe_in_words(rng, symbols) for _ in range(200)]
    assert 60 < sum("top right" in text for text in texts) < 140
    assert not {"left", "bottom", "center"} & set(words_of(" ".join(texts)))


def test_noun_phrases() -> None:
    assert article("orange star") == "an orange star"
    assert counted(2, noun("pants")) == "two pairs of pants"
    assert [plural(w) for w in ("cross", "pack of milk", "tomato", "cherry")] == [
        "crosses",
        "packs of milk",
        "tomatoes",
        "cherries",
    ]


def test_alternatives_are_spread_out() -> None:
    assert spread("Is it (red|blue) (now|)?") == [
        "Is it red now?",
        "Is it red?",
        "Is it blue now?",
        "Is it blue?",
    ]


def test_nothing_is_counted_that_a_photograph_may_show_several_of() -> None:
    apple, jacket = Thing("apple", (0.1, 0.1, 0.4, 0.4)), Thing("jacket", (0.5, 0.5, 0.9, 0.9))
    symbols, rng = Symbols((apple, jacket), kind="collage"), random.Random(0)
    asked = [q.ask(rng, symbols, [kind]) for kind in ("count", "reasoning") * 200]
    texts = [turn.question.lower() for turns in asked for turn in turns or ()]
    assert any("jacket" in text for text in texts)
    several = (*GROUPS["fruit"], *GROUPS["vegetable"])
    assert not any(plural(noun(name)) in text for name in several for text in texts)
    assert not any(f"{words} are" in text for words in ("objects", "things") for text in texts)
