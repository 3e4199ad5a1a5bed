"""Decoding against loops by hand over whole forwards, and against the distribution drawn from."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_networks
from jax.tree_util import Partial
from scipy import stats

from genjax.config import ConfigError
from genjax.sampling import logits as lg
from genjax.sampling.decode import generate, stream
from genjax.sampling.stopping import automaton

KEY = jax.random.key(0)
NET = toy_networks.memory()  # eleven tokens
PROMPT = np.array([[3, 1, 4], [-1, 5, 9], [-1, -1, 2], [6, 5, 3]])
NEW = 12
BYTES = [bytes([i]) for i in range(11)]
whole = jax.jit(lambda x: NET(x)[0])


def as_characters(tokens):
    return "".join(map(chr, tokens))


def by_hand(prompt, new, context):
    """Greedy, by a whole forward for each token: the window slides as `generate` says."""
    tokens, start = list(prompt), 0
    for _ in range(new):
        if len(tokens) - start > context:
            start = len(tokens) - max(context // 2, 1)
        window = np.zeros((1, len(prompt) + new), np.int32)  # one shape; what comes after is unseen
        window[0, : len(tokens) - start] = tokens[start:]
        tokens.append(int(whole(window)[0, len(tokens) - start - 1].argmax()))
    return tokens


@pytest.fixture(scope="module")
def greedy():
    return np.asarray(generate(NET, PROMPT, max_new_tokens=NEW, context=32))


def test_greedy_is_the_most_probable_token_of_whole_forwards(greedy):
    assert greedy.dtype == np.int32
    np.testing.assert_array_equal(greedy[:, :3], PROMPT)
    for row, prompt in zip(greedy, PROMPT, strict=True):
        alone = prompt[prompt >= 0].tolist()
        assert row[row >= 0].tolist() == by_hand(alone, NEW, 32)
    assert len(np.unique(greedy[:, 3:])) > 5  # a text that says something


def test_padding_on_the_left_changes_nothing(greedy):
    alone = generate(NET, PROMPT[1:2, 1:], max_new_tokens=NEW, context=32)
    np.testing.assert_array_equal(alone, greedy[1:2, 1:])


@pytest.mark.parametrize("context", [3, 7, 14])
def test_the_window_slides(context, greedy):
    slid = np.asarray(generate(NET, PROMPT, max_new_tokens=NEW, context=context))
    for row in (0, 3):
        assert slid[row].tolist() == by_hand(PROMPT[row].tolist(), NEW, context)
    np.testing.assert_array_equal(slid[:, : context + 1], greedy[:, : context + 1])
    if context == 14:  # the last token is not fed: all fits
        np.testing.assert_array_equal(slid, greedy)
    else:
        assert (slid != greedy).any()


def test_rows_that_have_ended_stay_empty(greedy):
    eos = tuple(int(t) for t in greedy[(0, 1), (6, 9)])  # both end early, and maybe others
    ended = np.asarray(generate(NET, PROMPT, max_new_tokens=NEW, context=32, eos=eos))
    hit = np.isin(greedy, eos) & (np.arange(greedy.shape[1]) >= 3)
    after = np.cumsum(hit, 1) - hit > 0
    np.testing.assert_array_equal(ended, np.where(after, -1, greedy))
    assert after[0, 7:].all()
    assert len(set(after.sum(1))) > 1  # not all at once


def test_a_sequence_of_new_tokens_stops(greedy):
    pairs = [list(itertools.pairwise(row.tolist())) for row in greedy]
    stop = [pairs[0][5], pairs[0][2], (0, 0, 0)]  # in the second the prompt has a part
    table = automaton([bytes(sequence) for sequence in stop], BYTES)
    stopped = generate(NET, PROMPT, max_new_tokens=NEW, context=32, stop=table)
    cuts = []
    for row in pairs:
        ends = [i + 2 for i in range(3, len(row)) if row[i] in stop]
        cuts.append(min(ends, default=len(row) + 1))
    kept = np.arange(greedy.shape[1]) < np.array(cuts)[:, None]
    np.testing.assert_array_equal(stopped, np.where(kept, greedy, -1))
    assert cuts[0] == 7
    assert len(set(cuts)) > 2


def test_a_text_ends_where_no_token_may_come(greedy):
    """Two tokens are all that is left of the vocabulary, and neither may come again."""
    limits = (lg.allowed([3, 7]), lg.no_repeat_ngram(1))
    made = generate(NET, PROMPT[[0, 2]], max_new_tokens=NEW, context=32, processors=limits)
    made = np.asarray(made)[:, 3:]
    assert made[0].tolist() == [7] + [-1] * (NEW - 1)
    assert sorted(made[1, :2]) == [3, 7]
    assert (made[1, 2:] == -1).all()
    said = stream(
        *(NET, PROMPT[0]),
        decode=as_characters,
        processors=limits,
        max_new_tokens=NEW,
        context=32,
    )
    assert "".join(said) == chr(7)


def test_it_stops_when_all_rows_have_ended():
    calls = []

    def counting(x, **named):
        jax.debug.callback(lambda: calls.append(x.shape[1]))
        return NET(x, **named)

    expected = by_hand(PROMPT[0].tolist(), NEW, 4)
    end = expected.index(expected[8], 3) + 1
    ended = generate(counting, PROMPT[:1], max_new_tokens=NEW, context=4, eos=expected[8])
    jax.effects_barrier()
    assert np.asarray(ended)[0].tolist() == [*expected[:end], *[-1] * (NEW + 3 - end)]
    assert len(calls) == end - 3 > 2


def test_processors_see_all_that_came(greedy):
    ngram = (lg.no_repeat_ngram(2), lg.banned([greedy[0, 3:5].tolist()]))
    made = generate(NET, PROMPT, max_new_tokens=NEW, context=4, processors=ngram)  # past the window
    for row in np.asarray(made):
        pairs = list(itertools.pairwise(row[row >= 0].tolist()))
        assert len(set(pairs)) == len(pairs)
        assert tuple(greedy[0, 3:5].tolist()) not in pairs[2:]
    pairs = list(itertools.pairwise(greedy[2, 2:].tolist()))
    assert len(set(pairs)) < len(pairs)


def test_within_jit_it_is_the_same(greedy):
    jitted = jax.jit(
        lambda net, x, key: generate(net, x, key, max_new_tokens=NEW, context=32),
    )
    np.testing.assert_array_equal(jitted(NET, PROMPT, None), greedy)


def test_tokens_are_drawn_from_the_processed_distribution():
    rows, values = 4096, 7
    net = toy_networks.table(values)
    processors = lg.chain(lg.Options(temperature=0.8, top_k=5, top_p=0.95))
    draw = partial(generate, net, max_new_tokens=2, context=8, processors=processors)
    tokens = np.asarray(draw(np.full((rows, 1), 2), KEY))
    table = np.asarray(net.args[0], np.float64) / 0.8
    for before, after in ((tokens[:, 0], tokens[:, 1]), (tokens[:, 1], tokens[:, 2])):
        for token in np.unique(before):
            order = np.argsort(-table[token])[:5]
            p = np.exp(table[token][order] - table[token].max())
            p /= p.sum()
            p = p[: np.searchsorted(np.cumsum(p), 0.95) + 1]
            counts = np.bincount(after[before == token], minlength=values)
            assert counts.sum() == counts[order[: len(p)]].sum()
            if counts.sum() > 100 and len(p) > 1:
                expected = p / p.sum() * counts.sum()
                assert stats.chisquare(counts[order[: len(p)]], expected).pvalue > 1e-3
    np.testing.assert_array_equal(draw(np.full((rows, 1), 2), KEY), tokens)
    assert (np.asarray(draw(np.full((rows, 1), 2), jax.random.key(1))) != tokens).any()


def test_what_a_row_draws_does_not_depend_on_the_others():
    options = {"key": KEY, "max_new_tokens": NEW, "context": 32}
    many = np.asarray(generate(NET, np.repeat(PROMPT[:1], 4, 0), **options))
    assert len(np.unique(many, axis=0)) == 4
    said = "".join(stream(NET, PROMPT[0], decode=as_characters, **options))
    assert [ord(c) for c in said] == many[0, 3:].tolist()


class TestStream:
    TEXT = "aé€𝄞"  # no byte twice

    def cycle(self):
        """A model of bytes that goes round the text."""
        table = np.zeros((256, 256), np.float32)
        data = list(self.TEXT.encode())
        table[data, [*data[1:], data[0]]] = 1
        return Partial(toy_networks.markov, jnp.asarray(table))

    def say(self, prompt, **options):
        return list(
            stream(
                self.cycle(),
                np.array(list(prompt.encode())),
                decode=lambda ids: bytes(ids).decode("utf-8", "replace"),
                context=4,
                **options,
            )
        )

    def test_it_never_tells_half_a_character(self):
        assert self.say("a", max_new_tokens=13) == ["é", "€", "𝄞", "a", "é", "\ufffd"]  # cut short

    def test_the_end_is_not_told(self):
        said = self.say("a", max_new_tokens=40, eos=ord("a"))
        assert said == ["é", "€", "𝄞"]

    def test_it_slides_and_stops_as_generate(self):
        expected = by_hand(PROMPT[0].tolist(), NEW, 6)[3:]
        stop = tuple(expected[6:10])
        table = automaton([bytes((7, 2)), bytes(stop)], BYTES)
        options = {"max_new_tokens": NEW, "context": 6, "stop": table}
        said = list(stream(NET, PROMPT[0], decode=as_characters, **options))
        assert [ord(piece) for piece in said] == expected[:10]

    def test_a_hidden_token_takes_no_space_away(self):
        """Of the cycle 0, 1, 2 the 1 is told as nothing."""

        def decode(ids):
            return " ".join(f"w{i}" for i in ids if i != 1)

        net = Partial(
            lambda x, *, segment=None, cache=None, capacity=0: (
                10.0 * jax.nn.one_hot((x + 1) % 3, 3),
                (),
            )
        )
        made = stream(net, np.array([0]), decode=decode, max_new_tokens=5, context=8)
        assert "".join(made) == " w2 w0 w2"

    def test_a_start_that_a_tokenizer_treats_specially(self, greedy):
        """The space before a word is left out where a text begins."""
        made = stream(
            NET,
            PROMPT[0],
            decode=lambda ids: " ".join(f"w{i}" for i in ids),
            max_new_tokens=NEW,
            context=32,
        )
        assert "".join(made) == "".join(f" w{i}" for i in greedy[0, 3:])


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ([[1] * 9], {}, "The prompt has 9 tokens, but the model takes 8 positions"),
        ([[1, 11]], {}, "the token 11, but the model knows the tokens 0 to 10"),
        ([[1, -2]], {}, "the token -2"),
        ([[1, -1]], {}, "pad on the left"),
        ([[1, 2], [-1, -1]], {}, "at least one token"),
        ([[3, -1, 2]], {}, "pad on the left"),
        (np.zeros((1, 0), int), {}, "at least one row, and one token"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ([[1]], {"max_new_tokens": 10**12}, "a whole number from 1 to"),
    ],
)
def test_what_cannot_be_is_refused(prompt, options, words):
    with pytest.raises(ConfigError) as error:
        generate(NET, np.array(prompt), **{"max_new_tokens": 2, "context": 8, **options})
    assert words in str(error.value)
