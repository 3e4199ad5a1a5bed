"""Texts without a model, to compare those of a model with.

A baseline learns from training pairs: (sources, targets) -> function from a source to its text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from genjax.evals.text import words

MOST_WORDS = 64  # of a text that a dictionary is learned from; longer ones are left out
LEAST = 3  # occurrences of a word in a dictionary


def lead(sources: Sequence[str], targets: Sequence[str]) -> Callable[[str], str]:
    """The first words of the source, as many as targets have at the median."""
    del sources
    count = round(float(np.median([len(target.split()) for target in targets])))
    return lambda source: " ".join(source.split()[:count])


def dictionary(sources: Sequence[str], targets: Sequence[str]) -> Callable[[str], str]:
    """Word by word: each word's partner in the pairs; words without one stay as they are.

    The partner of s is the t with the largest Dice coefficient 2 n(s, t) / (n(s) + n(t)), where n
    counts the pairs in which a word occurs, or both do (Melamed 2000, section 3).
    """
    pairs = [(set(words(s)), set(words(t))) for s, t in zip(sources, targets, strict=True)]
    pairs = [pair for pair in pairs if max(map(len, pair)) <= MOST_WORDS]
    counts = [Counter(word for pair in pairs for word in pair[side]) for side in (0, 1)]
    known = [sorted(word for word, n in count.items() if n >= LEAST) for count in counts]
    index = [{word: i for i, word in enumerate(listed)} for listed in known]
    width = max(len(known[1]), 1)
    cells = [np.zeros(0, np.int64)]
    for pair in pairs:
        rows, columns = (
            np.array([index[side][w] for w in pair[side] if w in index[side]], np.int64)
            for side in (0, 1)
        )
        cells.append((rows[:, None] * width + columns).ravel())
    cell, both = np.unique(np.concatenate(cells), return_counts=True)
    row, column = cell // width, cell % width
    own, other = (
        np.array([count[word] for word in listed], np.float64)
        for count, listed in zip(counts, known, strict=True)
    )
    dice = 2 * both / (own[row] + other[column])
    best = np.lexsort((column, -dice, row))  # by row, the largest first, then the first word
    first = best[np.unique(row[best], return_index=True)[1]]
    partner = {known[0][r]: known[1][c] for r, c in zip(row[first], column[first], strict=True)}
    return lambda source: " ".join(partner.get(word, word) for word in words(source))


BASELINES = {"lead": lead, "dictionary": dictionary}
