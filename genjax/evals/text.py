"""How texts compare with references and with each other: BLEU, chrF, distinct-n, repetition.

Pure functions. BLEU and chrF take whole texts and are sacrebleu's numbers (Post 2018), from 0 to
100. The others take sequences of any tokens: `words` makes them of a text in a language that puts
spaces between its words, `list` cuts it into characters. Take tokens that do not depend on the
model's tokenizer, or models cannot be compared.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import reduce
from operator import or_

import numpy as np
from jaxtyping import Int

ORDER = 4  # the longest n-grams of BLEU
CHARACTERS = 6  # the longest n-grams of chrF in characters
BETA = 2  # how much more recall counts than precision in chrF

ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
APART = re.compile("([" + re.escape("".join(set(string.punctuation) - set("'-,."))) + "])")
POINT_AFTER = re.compile("([^0-9])([.,])")
POINT_BEFORE = re.compile("([.,])([^0-9])")
DASH_AFTER = re.compile("([0-9])(-)")

Tokens = Sequence[Hashable]


def words(text: str) -> list[str]:
    """The words and punctuation marks of a text, as NIST's mteval-v13a cuts it.

    Marks stand alone, except apostrophes, dashes that follow no digit, and a point or comma
    between digits; the four entities of XML are read.
    """
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, mark in ENTITIES:
        text = text.replace(entity, mark)
    text = APART.sub(r" \1 ", f" {text} ")
    text = POINT_AFTER.sub(r"\1 \2 ", text)
    text = POINT_BEFORE.sub(r" \1 \2", text)
    return DASH_AFTER.sub(r"\1 \2 ", text).split()


def _ngrams(tokens: Tokens, n: int) -> Counter:
    """How often each run of n tokens occurs; a key is a piece of the string or a tuple."""
    tokens = tokens if isinstance(tokens, str) else tuple(tokens)
    return Counter(tokens[start : start + n] for start in range(len(tokens) - n + 1))


def _pairs(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> Iterator[tuple[str, Sequence[str]]]:
    """Each hypothesis with its references.

    Raises:
      ValueError: there is no hypothesis, or not a list of references for each.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} hypotheses and {len(references)} lists of references: expected one "
            "list for each of one or more hypotheses."
        )
    for index, given in enumerate(references):
        if isinstance(given, str) or not given:
            raise ValueError(f"references[{index}] is {given!r}: expected a list of texts.")
    return zip(hypotheses, references, strict=True)


def _nearest(length: int, lengths: Iterable[int]) -> int:
    """That of `lengths` which is nearest to `length`; of two the shorter."""
    return min(lengths, key=lambda other: (abs(other - length), other))


def _bleu(
    matches: Int[np.ndarray, "order"],
    totals: Int[np.ndarray, "order"],
    length: int,
    reference: int,
    effective: bool = False,
) -> float:
    """BLEU of counted n-grams of orders 1, 2, ... and lengths in tokens.

    The k-th order of which nothing matches counts as 2^-k matches (Chen and Cherry 2014, method
    3). An order of which the hypotheses have no n-gram makes BLEU 0, or is left out if `effective`.
    """
    orders = np.count_nonzero(totals) if effective else len(totals)
    matches, totals = matches[:orders], totals[:orders]
    if not matches.any() or not totals.all():
        return 0.0
    missing = matches == 0
    smoothed = np.where(missing, 0.5 ** np.cumsum(missing), matches)
    brevity = min(0.0, 1.0 - reference / length)
    return 100.0 * math.exp(brevity + np.log(smoothed / totals).mean())


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 of a corpus (Papineni et al. 2002, section 2.3), as sacrebleu's defaults have it.

    Args:
      hypotheses: the texts to judge.
      references: for each hypothesis one or more right texts (sacrebleu wants the transpose).

    Returns:
      From 0 to 100; 0 if no word matches.

    Raises:
      ValueError: there is no hypothesis, or one without references.
    """
    matches, totals = np.zeros((2, ORDER), np.int64)
    length = reference = 0
    for hypothesis, given in _pairs(hypotheses, references):
        tokens, others = words(hypothesis), [words(text) for text in given]
        length += len(tokens)
        reference += _nearest(len(tokens), map(len, others))
        for n in range(ORDER):
            counts = _ngrams(tokens, n + 1)
            most = reduce(or_, (_ngrams(other, n + 1) for other in others))
            matches[n] += (counts & most).total()
            totals[n] += counts.total()
    return _bleu(matches, totals, length, reference)


def _split(text: str) -> list[str]:
    """The words of a text as chrF++ has them: a mark at the end or the start is a word too."""
    found = []
    for word in text.split():
        if len(word) > 1 and word[-1] in string.punctuation:
            found += [word[:-1], word[-1]]
        elif len(word) > 1 and word[0] in string.punctuation:
            found += [word[0], word[1:]]
        else:
            found.append(word)
    return found


def _chrf_ngrams(text: str, word_order: int) -> list[Counter]:
    """The n-grams of characters but white space, then those of words, by order."""
    characters, split = "".join(text.split()), _split(text)
    found = [_ngrams(characters, n + 1) for n in range(CHARACTERS)]
    return found + [_ngrams(split, n + 1) for n in range(word_order)]


def _f_score(counts: Int[np.ndarray, "orders 3"]) -> float:
    """F of mean precision and recall, 0 to 100 (Popović 2015, eq. 1).

    Args:
      counts: n-grams that match, of the hypotheses, and of the references. An order of which one
        side has none is left out.
    """
    matches, ours, theirs = counts[(counts[:, 1:] > 0).all(axis=1)].T
    if not matches.any():
        return 0.0
    precision, recall = (matches / ours).mean(), (matches / theirs).mean()
    return float(100 * ((1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)))


def chrf(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, word_order: int = 0
) -> float:
    """chrF2 of a corpus (Popović 2015), as sacrebleu's defaults have it.

    Of several references that counts which gives the hypothesis the largest score.

    Args:
      hypotheses: the texts to judge.
      references: for each hypothesis one or more right texts (sacrebleu wants the transpose).
      word_order: longest n-grams of words that count beside those of characters; 2 gives chrF2++
        (Popović 2017).

    Returns:
      From 0 to 100.

    Raises:
      ValueError: there is no hypothesis, or one without references.
    """
    total = np.zeros((CHARACTERS + word_order, 3), np.int64)
    for hypothesis, given in _pairs(hypotheses, references):
        ours = _chrf_ngrams(hypothesis, word_order)
        found = []
        for text in given:
            both = zip(ours, _chrf_ngrams(text, word_order), strict=True)
            # Our n-grams of an order that the reference is too short for do not count against us.
            rows = [((a & b).total(), a.total() if b else 0, b.total()) for a, b in both]
            found.append(np.array(rows))
        total += max(found, key=_f_score)
    return _f_score(total)


def distinct(sequences: Sequence[Tokens], n: int) -> float:
    """Distinct-n: different n-grams of all sequences over their tokens (Li et al. 2016, section 5).

    From 0 to 1; 0 if there are no tokens. It falls with the number of tokens: compare equal ones.
    """
    different = set().union(*(_ngrams(tokens, n) for tokens in sequences))
    return len(different) / max(sum(map(len, sequences)), 1)


def repetition(sequences: Sequence[Tokens], n: int = 4) -> float:
    """The share of a sequence's n-grams that it had before (Welleck et al. 2020, seq-rep-n).

    The mean over the sequences of n tokens or more of 1 - different n-grams / n-grams: from 0 to 1,
    and 0 if there is no such sequence.
    """
    counts = [_ngrams(tokens, n) for tokens in sequences]
    shares = [1 - len(count) / count.total() for count in counts if count]
    return float(np.mean(shares)) if shares else 0.0


def _matches(counts: Sequence[Counter]) -> list[int]:
    """How many n-grams of each sequence match: each up to its largest count in another one."""
    most, second, owner = Counter(), Counter(), {}
    for index, count in enumerate(counts):
        for ngram, times in count.items():
            if times > most[ngram]:
                second[ngram], most[ngram], owner[ngram] = most[ngram], times, index
            elif times > second[ngram]:
                second[ngram] = times
    return [
        sum(
            min(times, (second if owner[ngram] == index else most)[ngram])
            for ngram, times in count.items()
        )
        for index, count in enumerate(counts)
    ]


def self_bleu(sequences: Sequence[Tokens], order: int = 4) -> float:
    """How much alike the sequences are: each one's BLEU against all others (Zhu et al. 2018).

    The mean of sacrebleu's sentence BLEU (smoothed; without the orders that the sequence is too
    short for), in time linear in the tokens.

    Args:
      sequences: two or more, of tokens.
      order: the longest n-grams that count.

    Returns:
      From 0 to 100, which means that each is there twice.

    Raises:
      ValueError: there are fewer than two sequences.
    """
    if len(sequences) < 2:
        raise ValueError(f"{len(sequences)} sequences: expected two or more to compare.")
    counts = [[_ngrams(tokens, n + 1) for tokens in sequences] for n in range(order)]
    matches = np.array([_matches(count) for count in counts])
    totals = np.array([[count.total() for count in row] for row in counts])
    lengths = Counter(map(len, sequences))
    scores = []
    for index, tokens in enumerate(sequences):
        others = lengths - Counter([len(tokens)])
        reference = _nearest(len(tokens), others)
        scores.append(
            _bleu(matches[:, index], totals[:, index], len(tokens), reference, effective=True)
        )
    return float(np.mean(scores))


def has_spaces(texts: Sequence[str]) -> bool:
    """Whether the texts are of a script that puts spaces between words: 1 % of them or more."""
    return sum(text.count(" ") for text in texts) > 0.01 * sum(map(len, texts))


def units(texts: Sequence[str], spaced: bool) -> list[Sequence[str]]:
    """What the texts are counted in: words, or characters of a script without spaces.

    Not the tokens of a model, which differ from one model to another; and the script is that of
    texts by people (`has_spaces`), or else a model that learns to use spaces changes the unit.
    """
    return [words(text) if spaced else text for text in texts]


def judge(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`bleu`, `chrf` and the `diversity` of texts that have one reference each.

    Raises:
      ValueError: there is no hypothesis, or not as many references.
    """
    given = [[reference] for reference in references]
    found = {"bleu": bleu(hypotheses, given), "chrf": chrf(hypotheses, given)}
    return found | diversity(units(hypotheses, has_spaces(references)))


def diversity(sequences: Sequence[Tokens]) -> dict[str, float]:
    """`distinct_1` to `distinct_3`, `repetition_4` and, of two or more sequences, `self_bleu`."""
    found = {f"distinct_{n}": distinct(sequences, n) for n in (1, 2, 3)}
    found["repetition_4"] = repetition(sequences)
    if len(sequences) > 1:
        found["self_bleu"] = self_bleu(sequences)
    return found
