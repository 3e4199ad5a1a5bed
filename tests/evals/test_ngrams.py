"""Baselines of n-grams: by hand, by enumeration, and on a Markov chain whose entropy is known."""

import numpy as np
import pytest
from test_sentences import built

from genjax.data import sources
from genjax.data.alphabets import Characters
from genjax.data.catalogue import Dataset
from genjax.evals.judges import ngrams
from genjax.method import DataSpec, Field

TOKENS = np.array([[0, 1, 0, 1, 2, 1], [1, 0, 2, 2, 1, 0]])


def test_pairs_and_gaps_are_of_tokens_that_belong_together():
    before, token = ngrams.pairs_of(np.array([[0, 1, -1, 2, 3]]))
    np.testing.assert_array_equal([before, token], [[0, 2], [1, 3]])
    counts = np.array([[True, True, False, True]])
    before, token = ngrams.pairs_of(np.array([[0, 1, 2, 3, 4]]), counts)
    np.testing.assert_array_equal([before, token], [[0, 1, 3], [1, 2, 4]])
    found = ngrams.gaps_of(np.array([[0, 1, 2, 3, 4]]), counts)
    np.testing.assert_array_equal(found, [[0], [1], [2]])


def test_counts_and_probabilities_by_hand():
    found = ngrams.counted([ngrams.pairs_of(row[None]) for row in TOKENS], 4)
    # Pairs: 01 10 01 12 21, and 10 02 22 21 10.
    np.testing.assert_array_equal(found.unigrams, [3, 4, 3, 0])
    np.testing.assert_array_equal(found.pairs, [1, 2, 4, 6, 9, 10])
    np.testing.assert_array_equal(found.counts, [2, 1, 3, 1, 2, 1])
    np.testing.assert_array_equal(found.best, [1, 0, 1, 1])  # 3 never occurs: the most frequent
    plain = np.array([4, 5, 4, 1]) / 14
    expected = [
        (np.array([0, 2, 1, 0]) + 2 * plain) / 5,
        (np.array([3, 0, 1, 0]) + 2 * plain) / 6,
        (np.array([0, 2, 1, 0]) + 2 * plain) / 5,
        plain,
    ]
    np.testing.assert_allclose(found.table(), expected, rtol=1e-6)
    np.testing.assert_allclose(found.table().sum(1), 1, rtol=1e-6)
    before, token = np.divmod(np.arange(16), 4)
    np.testing.assert_allclose(found.nll(before, token), -np.log(np.ravel(expected)), rtol=1e-12)
    np.testing.assert_allclose(np.exp(-found.unigram_nll()), plain, rtol=1e-12)


def test_what_fills_a_gap_is_conditioned_on_both_sides():
    found = ngrams.counted([ngrams.pairs_of(TOKENS)], 4)
    table, gaps = found.table(), ngrams.gaps_of(TOKENS)
    p, right = [], 0
    for a, x, b in zip(*gaps, strict=True):
        joint = [table[a, y] * table[y, b] for y in range(4)]
        p.append(joint[x] / sum(joint))
        right += max(range(4), key=lambda y: joint[y]) == x
    scores = ngrams.gap_scores(found, *gaps)
    assert scores["bigram_gap_accuracy"] == right / 8
    assert scores["bigram_gap_loss"] == pytest.approx(-np.log(p).mean(), rel=1e-6)


CHAIN = np.array([[0.8, 0.15, 0.05], [0.1, 0.1, 0.8], [0.5, 0.25, 0.25]])
LETTERS = Characters("abc", {})


def drawn(rng, rows, length):
    token = np.zeros((rows, length), np.int32)
    for t in range(1, length):
        token[:, t] = (rng.random(rows)[:, None] > CHAIN[token[:, t - 1]].cumsum(1)).sum(1)
    return token


@pytest.fixture(scope="module")
def chain():
    """Texts of a Markov chain, whose beginnings are left out so that it is stationary."""
    token = drawn(np.random.default_rng(0), 3000, 72)[:, 32:]
    facts = {"vocabulary_size": 3, "special": {"start": 0}, "tokenizer": LETTERS}
    field = Field("text", (40,), np.dtype(np.int32), facts)
    spec = DataSpec("chain", {"token": field}, "token", {"train": 2500, "validation": 500})
    parts = {"train": token[:2500], "validation": token[2500:]}
    return Dataset(spec, {n: sources.Columns({"token": t}) for n, t in parts.items()}, "memory")


def test_losses_of_a_markov_chain_are_its_entropies(chain):
    judge = built("ngrams", chain)
    metrics = judge.judge(np.full((2, 5), 0), None, {})
    assert set(metrics) == set(judge.metrics)
    values, vectors = np.linalg.eig(CHAIN.T)
    share = np.real(vectors[:, np.argmax(values.real)])
    share = share / share.sum()
    gap = share[:, None, None] * CHAIN[:, :, None] * CHAIN[None]  # p(a, x, b)
    expected = {
        "unigram_loss": -(share * np.log(share)).sum(),
        "unigram_accuracy": share.max(),
        "bigram_loss": -(share[:, None] * CHAIN * np.log(CHAIN)).sum(),
        "bigram_accuracy": (share * CHAIN.max(1)).sum(),
        "bigram_gap_loss": -(gap * np.log(gap / gap.sum(1, keepdims=True))).sum(),
        "bigram_gap_accuracy": gap.max(1).sum(),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=0.02), name
    assert (
        expected["bigram_gap_loss"] < expected["bigram_loss"] - 0.1 < expected["unigram_loss"] - 0.2
    )
    assert metrics["bigram_loss_samples"] == pytest.approx(-np.log(0.8), abs=0.01)
    assert ngrams.SAMPLES not in judge.judge(np.full((2, 1), 0), None, {})


def test_texts_of_one_row_do_not_follow_each_other(chain):
    """Pairs across segments, and of what does not count, are left out."""
    token = np.array([[0, 1, 2, 0, 1, 1]] * 8, np.int32)
    columns = {"token": token, "segment": np.array([[1, 1, 1, 2, 2, 0]] * 8, np.int32)}
    columns["loss_mask"] = np.array([[1, 1, 1, 1, 0, 1]] * 8, bool)
    data = chain._replace(splits=dict.fromkeys(("train", "validation"), sources.Columns(columns)))
    metrics = built("ngrams", data).judge(token, None, {})
    # What counts: 0 1 2, that is 1 after 0 and 2 after 1; all others are never seen.
    assert metrics["bigram_accuracy"] == 1
    assert metrics["unigram_accuracy"] == 0.5
    assert metrics["bigram_gap_accuracy"] == 1


def test_large_vocabularies_have_no_gaps(chain, monkeypatch):
    monkeypatch.setattr(ngrams, "DENSE", 2)
    found = built("ngrams", chain, train=100, held_out=10).judge(np.zeros((1, 3), int), None, {})
    assert set(found) == {*ngrams.METRICS, ngrams.SAMPLES}
