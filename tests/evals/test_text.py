"""Text metrics against sacrebleu (tests/golden/make_text_metrics.py) and by hand."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from genjax.evals import text

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "text_metrics.npz")
CASES, ALIKE = (json.loads(GOLDEN[name].item()) for name in ("cases", "alike"))


def test_words_are_those_of_13a():
    for line, expected in json.loads(GOLDEN["words"].item()):
        assert text.words(line) == expected, repr(line)


@pytest.mark.parametrize("name", CASES)
def test_bleu_and_chrf_are_sacrebleus(name):
    case = CASES[name]
    given = case["hypotheses"], case["references"]
    found = [text.bleu(*given), *(text.chrf(*given, word_order=n) for n in (0, 1, 2))]
    expected = [case[key] for key in ("bleu", "chrf_0", "chrf_1", "chrf_2")]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_rouge_is_that_of_rouge_score(name):
    case = CASES[name]
    found = text.rouge(case["hypotheses"], case["references"])
    assert list(found) == ["rouge_1", "rouge_2", "rouge_l"]
    np.testing.assert_allclose(list(found.values()), 100 * np.array(case["rouge"]), rtol=1e-9)


@pytest.mark.parametrize("name", ALIKE)
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_self_bleu_is_sacrebleus_sentence_bleu_against_all_others(name, order):
    case = ALIKE[name]
    found = text.self_bleu([text.words(line) for line in case["texts"]], order)
    np.testing.assert_allclose(found, case["bleu"][str(order)], rtol=1e-9, atol=1e-9)


def test_the_golden_cases_are_of_all_kinds():
    """So that equality above says something: zeros, hundreds and much between."""
    scores = [case["bleu"] for case in CASES.values()]
    assert min(scores) == 0
    assert max(scores) > 99.999
    assert sum(1 < score < 90 for score in scores) >= 8
    assert any(not all(case["hypotheses"]) for case in CASES.values())


def test_distinct_and_repetition_by_hand():
    # a b a b a: ab ba ab ba; c d: cd. 7 tokens, 4 unigrams, 3 bigrams, 2 trigrams (aba bab aba).
    sequences = [list("ababa"), ["c", "d"], []]
    assert text.distinct(sequences, 1) == 4 / 7
    assert text.distinct(sequences, 2) == 3 / 7
    assert text.distinct(sequences, 3) == 2 / 7
    assert text.repetition(sequences, 1) == pytest.approx((3 / 5 + 0) / 2)
    assert text.repetition(sequences, 2) == pytest.approx((2 / 4 + 0) / 2)
    assert text.repetition(sequences, 3) == pytest.approx(1 / 3)  # only one is that long
    assert text.repetition(sequences, 9) == text.distinct([[], []], 1) == 0


def test_distinct_and_repetition_of_a_long_sequence():
    """Two periods of random symbols: each n-gram of the first comes back, and none else."""
    half = np.random.default_rng(0).permutation(50).tolist()
    grams, n = 2 * len(half) - 3, 4
    assert text.repetition([half + half], n) == pytest.approx(1 - len(half) / grams)
    assert text.distinct([half + half], n) == len(half) / (2 * len(half))


def test_tokens_may_be_ids_of_any_kind_or_characters():
    lines = ["abcabcabd", "abcdabcd"]
    as_ids = [np.frombuffer(line.encode(), np.uint8).astype(np.int32) for line in lines]
    expected = text.diversity([list(line) for line in lines])
    assert text.diversity(lines) == text.diversity(as_ids) == expected
    assert set(expected) == {"distinct_1", "distinct_2", "distinct_3", "repetition_4", "self_bleu"}
    assert "self_bleu" not in text.diversity(lines[:1])


@pytest.mark.parametrize("score", [text.bleu, text.chrf])
@pytest.mark.parametrize(
    ("hypotheses", "references", "words"),
    [
        ([], [], "0 hypotheses"),
        (["a", "b"], [["a", "b"]], "2 hypotheses and 1 lists"),
        (["a"], ["a"], r"references\[0\] is 'a'"),
        (["a", "b"], [["a"], []], r"references\[1\] is \[\]"),
    ],
)
def test_references_that_do_not_fit(score, hypotheses, references, words):
    with pytest.raises(ValueError, match=words):
        score(hypotheses, references)


def test_self_bleu_of_one():
    with pytest.raises(ValueError, match="two or more"):
        text.self_bleu([["a"]])


def test_texts_are_counted_in_words_or_in_characters():
    spaced, plain = ["To be, or", "not"], ["床前明月光", "疑是地上霜"]
    assert text.units(spaced, text.has_spaces(spaced)) == [["To", "be", ",", "or"], ["not"]]
    assert text.units(plain, text.has_spaces(plain)) == plain
