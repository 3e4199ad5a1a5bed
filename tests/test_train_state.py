"""The root key of a seed, and its streams."""

import jax
import numpy as np
import pytest

from genjax.train_state import seeded_key, stream


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_seeds_of_32_bits_have_the_keys_of_jax(seed):
    data = jax.random.key_data(seeded_key(seed))
    assert data.tolist() == [0, seed]
    np.testing.assert_array_equal(data, jax.random.key_data(jax.random.key(seed)))


def test_other_seeds_have_other_keys():
    seeds = [0, 1, -1, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**62 + 1, 2**63 - 1, -(2**32)]
    keys = {tuple(jax.random.key_data(stream(seeded_key(s), "init")).tolist()) for s in seeds}
    assert len(keys) == len(seeds)
