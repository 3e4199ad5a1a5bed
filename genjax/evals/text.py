"""Metrics of texts against references and each other: BLEU, chrF, ROUGE, distinct-n, repetition.

Pure functions. BLEU and chrF take whole texts and give sacrebleu's numbers (Post 2018), ROUGE takes
them and gives those of the package rouge-score; all are from 0 to 100. The others take sequences of
any tokens: `words` splits a text in a language that puts spaces between its words, `list` splits it
into characters. Use tokens that do not depend on the model's tokenizer; otherwise models cannot be
compared.
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
    """The words and punctuation marks of a text, as NIST's mteval-v13a splits it.

    Every mark is a token, except apostrophes, dashes that follow no digit, and a point or comma
    between digits. Four XML entities are decoded.
    """
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, mark in ENTITIES:
        text = text.replace(entity, mark)
    text = APART.sub(r" \1 ", f" {text} ")
    text = POINT_AFTER.sub(r"\1 \2 ", text)
    text = POINT_BEFORE.sub(r" \1 \2", text)
    return DASH_AFTER.sub(r"\1 \2 ", text).split()


def _ngrams(tokens: Tokens, n: int) -> Counter:
    """How often each run of n tokens occurs; keys are substrings or tuples."""
    tokens = tokens if isinstance(tokens, str) else tuple(tokens)
    return Counter(tokens[start : start + n] for start in range(len(tokens) - n + 1))


def _pairs(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> Iterator[tuple[str, Sequence[str]]]:
    """Each hypothesis with its references.

    Raises:
      ValueError: there is no hypothesis, or one has no list of references.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} hypotheses and {len(references)} lists of references: expected one "
            "list for each of one or more hypotheses."
        )
    for index, texts in enumerate(references):
        if isinstance(texts, str) or not texts:
            raise ValueError(f"references[{index}] is {texts!r}: expected a list of texts.")
    return zip(hypotheses, references, strict=True)


def _nearest(length: int, lengths: Iterable[int]) -> int:
    """The entry of `lengths` nearest to `length`; in a tie, the shorter one."""
    return min(lengths, key=lambda other: (abs(other - length), other))


def _bleu(
    matches: Int[np.ndarray, "order"],
    totals: Int[np.ndarray, "order"],
    length: int,
    reference: int,
    effective: bool = False,
) -> float:
    """BLEU from n-gram counts of orders 1, 2, ... and from lengths in tokens.

    The k-th order without a match counts as 2^-k matches (Chen and Cherry 2014, method 3). An order
    in which the hypotheses have no n-gram makes BLEU 0, or is left out if `effective`.
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
    """BLEU-4 of a corpus (Papineni et al. 2002, section 2.3), with sacrebleu's defaults.

    Args:
      hypotheses: the texts to judge.
      references: one or more correct texts per hypothesis (sacrebleu takes the transpose).

    Returns:
      From 0 to 100; 0 if no word matches.

    Raises:
      ValueError: there is no hypothesis, or one without references.
    """
    matches, totals = np.zeros((2, ORDER), np.int64)
    length = reference = 0
    for hypothesis, texts in _pairs(hypotheses, references):
        tokens, others = words(hypothesis), [words(text) for text in texts]
        length += len(tokens)
        reference += _nearest(len(tokens), map(len, others))
        for n in range(ORDER):
            counts = _ngrams(tokens, n + 1)
            most = reduce(or_, (_ngrams(other, n + 1) for other in others))
            matches[n] += (counts & most).total()
            totals[n] += counts.total()
    return _bleu(matches, totals, length, reference)


def _split(text: str) -> list[str]:
    """The words of a text for chrF++: a mark at the end or the start is a word of its own."""
    tokens = []
    for word in text.split():
        if len(word) > 1 and word[-1] in string.punctuation:
            tokens += [word[:-1], word[-1]]
        elif len(word) > 1 and word[0] in string.punctuation:
            tokens += [word[0], word[1:]]
        else:
            tokens.append(word)
    return tokens


def _chrf_ngrams(text: str, word_order: int) -> list[Counter]:
    """N-gram counts of the characters without white space, then of the words, by order."""
    characters, words_and_marks = "".join(text.split()), _split(text)
    counts = [_ngrams(characters, n + 1) for n in range(CHARACTERS)]
    return counts + [_ngrams(words_and_marks, n + 1) for n in range(word_order)]


def _f_score(counts: Int[np.ndarray, "orders 3"]) -> float:
    """F score of mean precision and mean recall, 0 to 100 (Popović 2015, eq. 1).

    Args:
      counts: per order, the n-grams that match, those of the hypotheses and those of the
        references. An order in which one side has no n-gram is left out.
    """
    matches, ours, theirs = counts[(counts[:, 1:] > 0).all(axis=1)].T
    if not matches.any():
        return 0.0
    precision, recall = (matches / ours).mean(), (matches / theirs).mean()
    return float(100 * ((1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)))


def chrf(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, word_order: int = 0
) -> float:
    """chrF2 of a corpus (Popović 2015), with sacrebleu's defaults.

    If a hypothesis has several references, the one with the largest score counts.

    Args:
      hypotheses: the texts to judge.
      references: one or more correct texts per hypothesis (sacrebleu takes the transpose).
      word_order: longest word n-grams that count in addition to character n-grams; 2 gives chrF2++
        (Popović 2017).

    Returns:
      From 0 to 100.

    Raises:
      ValueError: there is no hypothesis, or one without references.
    """
    total = np.zeros((CHARACTERS + word_order, 3), np.int64)
    for hypothesis, texts in _pairs(hypotheses, references):
        ours = _chrf_ngrams(hypothesis, word_order)
        candidates = []
        for text in texts:
            pairs = zip(ours, _chrf_ngrams(text, word_order), strict=True)
            # Orders for which the reference is too short do not count against the hypothesis.
            rows = [((a & b).total(), a.total() if b else 0, b.total()) for a, b in pairs]
            candidates.append(np.array(rows))
        total += max(candidates, key=_f_score)
    return _f_score(total)


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b):
            before, row[j + 1] = row[j + 1], before + 1 if x == y else max(row[j + 1], row[j])
    return row[-1]


def _f1(matches: int, ours: int, theirs: int) -> float:
    """The harmonic mean of precision and recall, 0 to 100."""
    return 200 * matches / (ours + theirs) if matches else 0.0


def rouge(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), with the numbers of rouge-score without stemming.

    Words are runs of the letters a to z and digits, in lower case. Each score is the F1 score of
    n-grams, or of the longest common subsequence, and the mean over the hypotheses; if one has
    several references, the best counts.

    Args:
      hypotheses: the texts to judge.
      references: one or more correct texts per hypothesis.

    Returns:
      `rouge_1`, `rouge_2` and `rouge_l`, from 0 to 100.

    Raises:
      ValueError: there is no hypothesis, or one without references.
    """
    scores = []
    for hypothesis, texts in _pairs(hypotheses, references):
        ours = re.findall("[a-z0-9]+", hypothesis.lower())
        each = []
        for text in texts:
            theirs = re.findall("[a-z0-9]+", text.lower())
            grams = [(_ngrams(ours, n), _ngrams(theirs, n)) for n in (1, 2)]
            f1 = [_f1((a & b).total(), a.total(), b.total()) for a, b in grams]
            each.append([*f1, _f1(_common(ours, theirs), len(ours), len(theirs))])
        scores.append(np.max(each, axis=0))
    means = np.mean(scores, axis=0)
    return {f"rouge_{n}": float(mean) for n, mean in zip("12l", means, strict=True)}


def distinct(sequences: Sequence[Tokens], n: int) -> float:
    """Distinct-n: distinct n-grams of all sequences per token (Li et al. 2016, section 5).

    From 0 to 1; 0 if there are no tokens. It falls as the number of tokens grows, so only compare
    equal numbers of tokens.
    """
    different = set().union(*(_ngrams(tokens, n) for tokens in sequences))
    return len(different) / max(sum(map(len, sequences)), 1)


def repetition(sequences: Sequence[Tokens], n: int = 4) -> float:
    """The share of a sequence's n-grams that repeat earlier ones (Welleck et al. 2020, seq-rep-n).

    The mean of 1 - distinct n-grams / n-grams over the sequences of n tokens or more. From 0 to 1;
    0 if there is no such sequence.
    """
    counts = [_ngrams(tokens, n) for tokens in sequences]
    shares = [1 - len(count) / count.total() for count in counts if count]
    return float(np.mean(shares)) if shares else 0.0


def _matches(counts: Sequence[Counter]) -> list[int]:
    """Matching n-grams per sequence: each counts up to its largest count in another sequence."""
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
    """How similar the sequences are: each one's BLEU against all others (Zhu et al. 2018).

    The mean of sacrebleu's sentence BLEU (smoothed; orders for which a sequence is too short are
    left out). Takes time linear in the tokens.

    Args:
      sequences: two or more, of tokens.
      order: the longest n-grams that count.

    Returns:
      From 0 to 100; 100 if every sequence occurs at least twice.

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
    """Whether the script puts spaces between words: more than 1 % of the characters are spaces."""
    return sum(text.count(" ") for text in texts) > 0.01 * sum(map(len, texts))


def units(texts: Sequence[str], spaced: bool) -> list[Sequence[str]]:
    """The texts as sequences of units: words, or characters if the script has no spaces.

    The units are not a model's tokens, which differ between models. Take `spaced` from human texts
    (`has_spaces`); otherwise a model that learns to use spaces changes the unit.
    """
    return [words(text) if spaced else text for text in texts]


def judge(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`agreement` and `diversity` of texts that have one reference each.

    Raises:
      ValueError: there is no hypothesis, or the number of references differs.
    """
    metrics = agreement(hypotheses, references)
    return metrics | diversity(units(hypotheses, has_spaces(references)))


def agreement(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`bleu`, `chrf` and the three of `rouge`, of texts that have one reference each.

    Raises:
      ValueError: there is no hypothesis, or the number of references differs.
    """
    lists = [[reference] for reference in references]
    metrics = {"bleu": bleu(hypotheses, lists), "chrf": chrf(hypotheses, lists)}
    return metrics | rouge(hypotheses, lists)


def diversity(sequences: Sequence[Tokens]) -> dict[str, float]:
    """`distinct_1` to `distinct_3`, `repetition_4` and, of two or more sequences, `self_bleu`."""
    metrics = {f"distinct_{n}": distinct(sequences, n) for n in (1, 2, 3)}
    metrics["repetition_4"] = repetition(sequences)
    if len(sequences) > 1:
        metrics["self_bleu"] = self_bleu(sequences)
    return metrics
