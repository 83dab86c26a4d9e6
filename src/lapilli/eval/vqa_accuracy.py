"""The accuracy of the VQA challenge: ten people's answers, evened out, and how many agree.

Source: Antol et al. 2015, "VQA: Visual Question Answering", and the challenge's evaluation page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = frozenset({"a", "an", "the"})
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,+\d")

_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't
shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _writings(word: str) -> set[str]:
    """A contraction with one apostrophe or all of them left out."""
    places = [at for at, letter in enumerate(word) if letter == "'"]
    return {word[:at] + word[at + 1 :] for at in places} | {
        word.replace("'", "", 1) if len(places) > 1 else word.replace("'", "")
    }


_WHOLE = {written: word for word in _CONTRACTIONS.split() for written in _writings(word)}


def normalize(text: str) -> str:
    """Lower case; marks, full stops and articles dropped; figures; contractions whole.

    A mark is dropped where it stands beside a space, or where a number has a comma; elsewhere it
    becomes a space.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    evened = text
    for mark in _MARKS:
        beside = f"{mark} " in text or f" {mark}" in text
        evened = evened.replace(mark, "" if beside or _COMMA_IN_NUMBER.search(text) else " ")
    words = [_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", evened).split()]
    return " ".join(_WHOLE.get(word, word) for word in words if word not in _ARTICLES)


def accuracy(references: Sequence[str], answer: str) -> float:
    """The mean over references of how far the others agree: a third for each, at most 1.

    Args:
        references: what people answered, ten of them as a rule.
        answer: what is scored.
    """
    said, agreed = normalize(answer), [normalize(reference) for reference in references]
    total = agreed.count(said)
    return sum(min(1.0, (total - (one == said)) / 3) for one in agreed) / len(agreed)
