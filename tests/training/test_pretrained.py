"""Networks that a run begins with: their shapes, and what takes their place."""

import jax
import numpy as np
import pytest

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data.alphabets import Characters
from genjax.method import DataSpec, Field
from genjax.methods import lm
from genjax.training.assemble import assemble, put_pretrained, read_pretrained


def run_with(change):
    """A run whose pretrained network is its own with ones, after `change`."""
    tokenizer = Characters("".join(map(chr, range(65, 115))), {})
    facts = {"vocabulary_size": 50, "special": {"start": 0}, "tokenizer": tokenizer}
    token = Field("text", (33,), np.dtype(np.int32), facts)
    spec = DataSpec("made", {"token": token}, "token", {"train": 64})
    config = configs.load("configs/gpt_char.py:tiny", {"ema.decay": (0.5,)})
    method = lm.build(config, spec)
    shapes = jax.eval_shape(lambda key: method.init(key, None)[0]["lm"], jax.random.key(0))
    given = change(jax.tree.map(lambda s: np.ones(s.shape, s.dtype), shapes))
    return assemble(config, spec, method._replace(pretrained=lambda: ({"lm": given}, {})))


def test_they_take_the_place_of_parameters_and_averages():
    run = run_with(lambda params: params)
    state = put_pretrained(run.init(), *read_pretrained(run))
    (average,) = state.ema.values()
    for params in (state.params["lm"], average["lm"]):
        leaves = jax.tree.leaves(params)
        assert all((np.asarray(leaf) == 1).all() for leaf in leaves)
        wanted = jax.tree.leaves(run.state.params["lm"])
        assert [leaf.sharding for leaf in leaves] == [leaf.sharding for leaf in wanted]
    held = jax.tree.leaves(state.params), jax.tree.leaves(average)
    shards = ([leaf.addressable_shards[0].data for leaf in leaves] for leaves in held)
    places = [{shard.unsafe_buffer_pointer() for shard in own} for own in shards]
    assert not places[0] & places[1]  # the step gives its arguments away


def test_what_does_not_fit_is_told_in_a_table_before_the_run_is_allocated():
    def change(params):
        params["positions"] = params["positions"][:7]
        params["other"] = params["body"].pop("norm")["scale"]
        return params

    with pytest.raises(ConfigError) as error:
        read_pretrained(run_with(change))
    message = str(error.value)
    for line in (
        "lm/positions: (7, 32) -> (32, 32)",
        "lm/other: (32,) -> absent",
        "lm/body/norm/scale: absent -> (32,)",
    ):
        assert line in message
    assert "embedding" not in message
