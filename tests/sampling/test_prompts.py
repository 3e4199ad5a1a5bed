"""Options of decoding as the command line gives them: read by what the method says of each."""

import inspect

import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.data import tokenizers
from genjax.data.alphabets import Bytes
from genjax.method import DataSpec, Field
from genjax.methods import lm
from genjax.networks import decoder
from genjax.nn.functional import functional
from genjax.sampling import prompts
from genjax.sampling.draw import parse_options
from genjax.sampling.stopping import automaton


def method(tokenizer):
    """A language model of this tokenizer."""
    facts = {
        "vocabulary_size": tokenizer.vocabulary_size,
        "special": tokenizers.special_tokens(tokenizer),
        "tokenizer": tokenizer,
    }
    field = Field("text", (9,), np.dtype(np.int32), facts)
    spec = DataSpec("made", {"token": field}, "token", {})

    def network(rngs):
        size = tokenizer.vocabulary_size
        return decoder.Network(size, 8, width=8, depth=1, heads=1, rngs=rngs)

    return lm.from_network(functional(network), lm.Options(), spec, 8, decoder.RULES)


def test_readers_are_of_options_that_a_language_model_has():
    own = method(Bytes({"eos": 256}))
    assert set(prompts.readers(Bytes({}))) == set(own.options) == {"stop", "banned", "allowed"}
    assert set(own.options) < set(inspect.signature(own.sample).parameters)


def test_options_of_a_language_model_are_read_as_texts():
    tokenizer = Bytes({"eos": 256})
    given = {"stop": ["7"], "banned": ["('a', 'bc')"], "allowed": ["ab"], "top_k": ["7"]}
    found = parse_options(method(tokenizer), given)
    np.testing.assert_array_equal(found["stop"], automaton([b"7"], tokenizer.spelling))
    assert found["banned"] == ((97,), (32, 97), (98, 99), (32, 98, 99))
    assert found["allowed"] == (97, 98, 256)
    assert found["top_k"] == 7  # one without a reader is a Python value


def test_an_option_is_given_once():
    with pytest.raises(ConfigError, match="--stop is given 2 times: give it once"):
        parse_options(method(Bytes({})), {"stop": ["a", "b"]})


def test_functions_cannot_be_given():
    with pytest.raises(ConfigError, match="--decode=print: this run has no such condition or"):
        parse_options(method(Bytes({})), {"decode": ["print"]})
