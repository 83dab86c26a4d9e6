"""Captions compared by runs of words: BLEU and CIDEr.

Sources: Papineni et al. 2002, "BLEU"; Vedantam et al. 2015, "CIDEr" (the variant CIDEr-D).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

LONGEST_RUN = 4
SIGMA = 6.0
"""Width of CIDEr-D's penalty on lengths that differ, in words."""

Runs = Counter[tuple[str, ...]]
Vectors = list[dict[tuple[str, ...], float]]
"""Weights of the runs of one word, of two words, and so on."""

_TOKEN = re.compile(r"\d+(?:[.,:]\d+)*|\w+(?:[-'/]\w+)*|[^\s\w]")
_PART = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))$")
_DROPPED = frozenset("'`\".?!,:-;()[]{}")


def tokenize(text: str) -> list[str]:
    """Words in lower case without marks, near to what the Penn Treebank's tokenizer gives.

    "it's" is two words and "don't" is "do" and "n't"; words with hyphens stay whole.
    """
    tokens: list[str] = []
    for token in _TOKEN.findall(text.lower()):
        if token not in _DROPPED:
            tokens += _PART.sub(r" \1", token).split()
    return tokens


def runs(words: Sequence[str]) -> Runs:
    """How often each run of one to four words occurs."""
    return Counter(
        tuple(words[at : at + length])
        for length in range(1, LONGEST_RUN + 1)
        for at in range(len(words) - length + 1)
    )


def bleu_counts(references: Sequence[Sequence[str]], words: Sequence[str]) -> list[float]:
    """What one caption adds to the sums that BLEU is made of.

    Returns:
        (10,) runs of one to four words that a reference has too, runs of one to four words,
        words, and words of the reference nearest in length.
    """
    most: Runs = Counter()
    for reference in references:
        most |= runs(reference)
    ours = runs(words)
    shared, total = [0.0] * LONGEST_RUN, [0.0] * LONGEST_RUN
    for run, count in ours.items():
        shared[len(run) - 1] += min(count, most[run])
        total[len(run) - 1] += count
    nearest = min((abs(len(one) - len(words)), len(one)) for one in references)[1]
    return [*shared, *total, float(len(words)), float(nearest)]


def bleu(sums: Sequence[float], longest: int) -> float:
    """BLEU of sums of `bleu_counts` with runs of at most so many words, 0-1."""
    shared, total = sums[:longest], sums[LONGEST_RUN : LONGEST_RUN + longest]
    if not min(shared) or not sums[-1]:
        return 0.0
    precision = math.exp(sum(math.log(s / t) for s, t in zip(shared, total, strict=True)) / longest)
    return precision * math.exp(min(0.0, 1 - sums[-1] / sums[-2]))


def cider(
    references: Sequence[Sequence[Sequence[str]]], words: Sequence[Sequence[str]]
) -> list[float]:
    """CIDEr-D of each picture's caption; their mean is that of the whole, 1 being 100.

    A run weighs the more, the fewer pictures have it in their references, so that the score of
    a caption depends on all pictures that are scored with it.

    Args:
        references: the words of each picture's references.
        words: of each picture's caption.
    """
    counted = [[runs(one) for one in several] for several in references]
    pictures: Runs = Counter(run for several in counted for run in set().union(*several))
    log_count = math.log(len(references)) if references else 0.0

    def vectors(counts: Runs) -> Vectors:
        weights: Vectors = [{} for _ in range(LONGEST_RUN)]
        for run, count in counts.items():
            rarity = log_count - math.log(max(1, pictures[run]))
            weights[len(run) - 1][run] = count * rarity
        return weights

    scores = []
    for several, texts, said in zip(counted, references, words, strict=True):
        ours = vectors(runs(said))
        total = sum(
            _alike(ours, vectors(theirs)) * math.exp(-((_gap(said, text)) ** 2) / (2 * SIGMA**2))
            for theirs, text in zip(several, texts, strict=True)
        )
        scores.append(10 * total / len(several))
    return scores


def _gap(a: Sequence[str], b: Sequence[str]) -> int:
    """How much texts differ in length, counted in runs of two words."""
    return max(0, len(a) - 1) - max(0, len(b) - 1)


def _alike(ours: Vectors, theirs: Vectors) -> float:
    """The mean over lengths of the cosines, in which no run counts more than the reference's."""
    total = 0.0
    for mine, reference in zip(ours, theirs, strict=True):
        norms = math.hypot(*mine.values()) * math.hypot(*reference.values())
        if norms:
            inner = sum(min(w, reference.get(run, 0.0)) * reference.get(run, 0.0)
                        for run, w in mine.items())  # fmt: skip
            total += inner / norms
    return total / LONGEST_RUN
