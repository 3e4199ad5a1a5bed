"""CIDEr-D: agreement of a picture's caption with several correct ones (Vedantam et al. 2015)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

ORDER = 4  # the longest n-grams
SIGMA = 6.0  # of the penalty of other lengths

Grams = list[Counter]  # n-gram counts by order


def words(text: str) -> list[str]:
    """The words of a caption: runs of letters, digits and apostrophes, in lower case."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Float[np.ndarray, " N"]:
    """CIDEr-D of each caption, 10 times the score of Vedantam et al. 2015, section 5, as is usual.

    Each caption is compared with all correct ones of its picture: for each order n the cosine of
    counts of n-grams, weighted by how rare they are among the pictures, where a count above the
    correct one's does not help (equation 3 and the two changes of CIDEr-D); the mean over orders
    and references. The score of a corpus is the mean over captions. A word counts by its rarity in
    these references, so only scores on the same pictures can be compared. With one picture all
    scores are 0.

    Args:
      captions: the captions to judge, one for each picture.
      references: one or more correct captions of each picture.

    Returns:
      Numbers from 0 to 10.

    Raises:
      ValueError: there is no caption, or a picture without correct ones.
    """
    if not captions or len(captions) != len(references):
        raise ValueError(
            f"{len(captions)} captions and references of {len(references)} pictures: expected one "
            "or more, and the same number of both."
        )
    if any(isinstance(texts, str) or not texts for texts in references):
        raise ValueError("references: expected a list of one or more texts for each picture.")
    ours = [_grams(text) for text in captions]
    theirs = [[_grams(text) for text in texts] for texts in references]
    pictures_with = Counter()
    for grams in theirs:
        pictures_with.update({gram for one in grams for counts in one for gram in counts})
    log_count = math.log(len(references))

    def weighted(grams: Grams) -> list[dict[tuple[str, ...], float]]:
        """Counts times the logarithm of pictures / pictures with the n-gram (equation 1)."""
        return [
            {gram: n * (log_count - math.log(max(pictures_with[gram], 1))) for gram, n in c.items()}
            for c in grams
        ]

    def score(mine: Grams, correct: Grams) -> float:
        gap = mine[1].total() - correct[1].total()
        pairs = zip(weighted(mine), weighted(correct), strict=True)
        penalty = math.exp(-(gap**2) / (2 * SIGMA**2))
        return penalty * sum(_clipped_cosine(a, b) for a, b in pairs) / ORDER

    scores = [
        10 * sum(score(mine, one) for one in correct) / len(correct)
        for mine, correct in zip(ours, theirs, strict=True)
    ]
    return np.array(scores)


def _grams(text: str) -> Grams:
    tokens = words(text)
    return [
        Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        for n in range(1, ORDER + 1)
    ]


def _clipped_cosine(mine: dict, correct: dict) -> float:
    """The cosine of two vectors, where no element of the first counts for more than the second's.

    0 if one of them is 0.
    """
    lengths = (math.sqrt(sum(x * x for x in vector.values())) for vector in (mine, correct))
    product = math.prod(lengths)
    common = sum(min(x, correct[g]) * correct[g] for g, x in mine.items() if g in correct)
    return common / product if product else 0.0
