"""Beam search: wide enough it is brute force; what stops it. The peer is in test_generation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_networks

from genjax.config import ConfigError
from genjax.sampling import beam
from genjax.sampling import logits as lg
from genjax.sampling.beam import beam_search
from genjax.sampling.decode import generate

V, NEW, EOS = 3, 5, 1
NET = toy_networks.memory(values=V, seed=3)
PROMPT = np.array([[2, 0, 1, 2], [-1, -1, 2, 1]])
WIDE = V * (V - 1) ** (NEW - 1)  # all that has not ended before the last token


whole = jax.jit(lambda x: jax.nn.log_softmax(NET(x)[0]))


def every_text(prompt, penalty, eos=EOS):
    """(score, tokens) of all texts that can follow, best first."""
    alone = prompt[prompt >= 0]
    new = np.array(list(itertools.product(range(V), repeat=NEW)))
    x = np.concatenate([np.tile(alone, (len(new), 1)), new], 1)
    log_p = np.asarray(whole(np.pad(x, ((0, 0), (0, 4 - len(alone))))), np.float64)
    log_p = log_p[:, len(alone) - 1 :][:, :NEW]  # what was padded on the right is unseen
    each = np.take_along_axis(log_p, new[..., None], -1)[..., 0]
    texts = {}
    for tokens, values in zip(new.tolist(), each, strict=True):
        count = tokens.index(eos) + 1 if eos in tokens else NEW
        text = (*tokens[:count], *[-1] * (NEW - count))
        texts[text] = values[:count].sum() / count**penalty
    return sorted(((score, text) for text, score in texts.items()), reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5, -1.0])
def test_a_wide_beam_is_brute_force(penalty):
    tokens, scores = beam_search(
        NET,
        PROMPT,
        beams=WIDE,
        max_new_tokens=NEW,
        context=8,
        length_penalty=penalty,
        early_stopping="never",
        eos=EOS,
    )
    assert tokens.shape == (2, WIDE, 9)
    for row in range(2):
        expected = every_text(PROMPT[row], penalty)[:WIDE]
        np.testing.assert_allclose(scores[row], [score for score, _ in expected], rtol=1e-5)
        assert tokens[row, :, 4:].tolist() == [list(text) for _, text in expected]
        np.testing.assert_array_equal(tokens[row, :, :4], np.tile(PROMPT[row], (WIDE, 1)))


def test_one_beam_without_an_end_is_greedy():
    tokens, scores = beam_search(NET, PROMPT, beams=1, max_new_tokens=NEW, context=8)
    greedy = generate(NET, PROMPT, max_new_tokens=NEW, context=8)
    np.testing.assert_array_equal(tokens[:, 0], greedy)
    for row in range(2):
        new = (*np.asarray(greedy)[row, 4:].tolist(),)
        score = dict((text, score) for score, text in every_text(PROMPT[row], 1.0, eos=None))[new]
        assert float(scores[row, 0]) == pytest.approx(score, rel=1e-5)


def test_early_stopping_stops_early():
    calls = []

    def counting(x, **named):
        jax.debug.callback(lambda: calls.append(x.shape))
        return toy_networks.memory()(x, **named)

    counts = {}
    for early in (True, False, "never"):
        found = beam_search(
            counting,
            np.array([[3, 1, 4]]),
            beams=3,
            max_new_tokens=20,
            context=64,
            length_penalty=1.5,
            early_stopping=early,
            eos=EOS,
        )
        jax.block_until_ready(found)
        jax.effects_barrier()
        counts[early] = len(calls)
        calls.clear()
    assert counts[True] < counts[False] < counts["never"] == 20


def test_where_there_are_fewer_ways_than_beams_none_is_taken_twice():
    tokens, scores = beam_search(
        NET,
        PROMPT,
        beams=4,
        max_new_tokens=2,
        context=8,
        early_stopping=True,
        processors=(lg.allowed((0,)),),
    )
    assert np.isfinite(scores).tolist() == 2 * [[True, False, False, False]]
    np.testing.assert_array_equal(tokens[:, 0, 4:], 0)
    np.testing.assert_array_equal(tokens[:, 1:, 4:], -1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beams": 0}, "beams=0: expected a whole number from 1 to 1,024"),
        ({"beams": 2000}, "beams=2000: expected a whole number from 1 to 1,024"),
        (
            {"early_stopping": "always"},
            "early_stopping='always': expected True, False or \"never\"",
        ),
        ({"early_stopping": 1}, "early_stopping=1"),
        ({"length_penalty": "long"}, "length_penalty='long'"),
        ({"max_new_tokens": 6}, "max_new_tokens=6: expected at most 5"),
        ({"context": 3}, "The prompt has 4 tokens"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(ConfigError) as error:
        beam_search(NET, PROMPT, **{"beams": 2, "max_new_tokens": 2, "context": 8, **options})
    assert words in str(error.value)


def test_rows_of_a_cache_move_to_their_beams():
    """Of whatever type it is; scalars stay. A row that is read is in its place."""
    source = jnp.array([0, 0, 2, 0, 4, 2])
    rng = np.random.default_rng(0)
    cache = {
        "key": jnp.asarray(rng.normal(size=(2, 6, 5)), jnp.bfloat16),
        "value": jnp.asarray(rng.normal(size=(2, 6, 5)), jnp.float32),
        "place": jnp.arange(6)[None],
        "length": jnp.int32(3),
    }
    moved = jax.jit(beam._moved)(cache, source)
    for name in ("key", "value", "place"):
        assert moved[name].dtype == cache[name].dtype
        np.testing.assert_array_equal(moved[name], cache[name][:, source])
    assert moved["length"] == 3
