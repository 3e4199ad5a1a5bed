"""Pairs out of plain text: nothing is lost, and every way of taking spans out is as likely."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.methods import corruption

FIRST, END = 100, 99
ROW = jnp.arange(20, dtype=jnp.int32)


@pytest.fixture(scope="module")
def spanned():
    corrupt = jax.vmap(lambda key: corruption.corrupt_spans(key, ROW, 6, 3, FIRST, END))
    return [np.asarray(x) for x in jax.jit(corrupt)(jax.random.split(jax.random.key(0), 500))]


@pytest.fixture(scope="module")
def infilled():
    corrupt = jax.vmap(lambda key: corruption.infill(key, ROW, 6, 2.0, FIRST, END))
    return [np.asarray(x) for x in jax.jit(corrupt)(jax.random.split(jax.random.key(0), 500))]


def test_source_and_target_of_spans_make_up_the_row(spanned):
    for source, target in zip(*spanned, strict=True):
        assert (len(source), len(target)) == (20 - 6 + 3 + 1, 6 + 3 + 1)
        assert source[-1] == target[-1] == END
        borders = [*np.flatnonzero(target >= FIRST), 9]
        assert target[borders[:-1]].tolist() == [FIRST, FIRST + 1, FIRST + 2]
        spans = [target[a + 1 : b].tolist() for a, b in itertools.pairwise(borders)]
        assert all(spans)
        row = [[t] if t < FIRST else spans[t - FIRST] for t in source[:-1].tolist()]
        assert list(itertools.chain(*row)) == ROW.tolist()
        assert source[0] == 0
        assert not ((source[:-1] >= FIRST) & (source[1:] >= FIRST)).any()


def test_every_division_is_equally_probable():
    keys = jax.random.split(jax.random.key(1), 6000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: corruption._parts(key, 5, 3)))(keys))
    counts = collections.Counter(map(tuple, drawn.tolist()))
    ways = [w for w in itertools.product(range(1, 4), repeat=3) if sum(w) == 5]
    assert set(counts) == set(ways)
    assert len(ways) == 6
    expected = 6000 / 6
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 20.5  # 0.1 % of chi2(5)


def test_infilled_rows_lose_no_more_than_asked_and_keep_the_order(infilled):
    removed, masks = [], []
    for source, target in zip(*infilled, strict=True):
        assert target.tolist() == [*range(20), END]
        text = source[: source.tolist().index(END)]
        assert (source[len(text) :] == END).all()
        kept = text[text < FIRST]
        if len(text) == 20:  # it may have been cut
            continue
        assert (np.diff(kept) > 0).all()
        assert not ((text[:-1] == FIRST) & (text[1:] == FIRST)).any()
        removed.append(20 - len(kept))
        masks.append((text == FIRST).sum())
        # Where tokens are missing there is a mask.
        at = [i for i, t in enumerate(text) if t < FIRST]
        for (i, a), (j, b) in itertools.pairwise(zip(at, kept, strict=True)):
            assert b == a + 1 or j == i + 2
    assert len(removed) > 440
    assert max(removed) == 6
    assert np.mean(removed) > 5.9
    # The spans are Poisson numbers until their sum is 6: simulated here by numpy.
    rng, simulated = np.random.default_rng(0), []
    for _ in range(4000):
        total = number = 0
        while total < 6 and number < 6:
            total, number = total + rng.poisson(2.0), number + 1
        simulated += [number] if number < min(total, 6) else []
    assert abs(np.mean(masks) - np.mean(simulated)) < 4 * np.std(simulated) / np.sqrt(500)


def test_where_the_masks_are(infilled):
    """Each of the gaps has a mask as often as the others: at the first, at the last, between."""
    source = infilled[0]
    begins = (source[:, 0] == FIRST).mean()
    text_ends = [row[: row.tolist().index(END)][-1] == FIRST for row in source]
    assert abs(begins - np.mean(text_ends)) < 0.1
    assert 0.1 < begins < 0.3  # about 3 masks in 15 gaps


def test_spans_must_fit():
    assert corruption.spans(512, 0.15, 3.0) == (77, 26)
    with pytest.raises(ConfigError, match=r"density, mean_span=\(0.1, 3.0\): expected spans that"):
        corruption.spans(4, 0.1, 3.0)
    with pytest.raises(ConfigError, match="fit into 10 tokens"):
        corruption.spans(10, 0.5, 0.2)
