"""A run put together: what its processes compare before they compute anything together."""

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data.digest import content_digests
from genjax.modes import runs
from genjax.parallel import distributed


def test_processes_compare_their_data_before_anything_is_made_of_them(tmp_path, monkeypatch):
    """In every mode, and before the stages are looked for: this one is not there."""
    np.savez(
        tmp_path / "a.npz",
        image_train=np.zeros((4, 8, 8, 1), np.uint8),
        image_test=np.ones((2, 8, 8, 1), np.uint8),
    )
    config = configs.base()
    config.dataset.name, config.dataset.path = "npz", str(tmp_path / "a.npz")
    config.dataset.codes = "absent"
    compared = {}

    def agree(values):
        compared.update(values)
        raise ConfigError("the processes of this run disagree")

    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(distributed, "agree", agree)
    with pytest.raises(ConfigError, match="disagree"):
        runs.prepare(config, epath.Path(tmp_path / "run"))
    contents = content_digests(runs.catalogue.load(config.dataset))
    assert compared == {f"the data ({split})": digest for split, digest in contents.items()}
    assert set(contents) == {"train", "test"}


def test_weights_that_are_not_finite_are_found_by_one_program(tmp_path):
    runs._all_finite.clear_cache()
    weights = {f"{index}": jnp.full(index + 1, float(index)) for index in range(4)}
    runs.check_finite(weights | {"count": jnp.int32(1)}, tmp_path, 5)
    assert runs._all_finite._cache_size() == 1
    weights["2"] = weights["2"].at[1].set(jnp.nan)
    weights["3"] = weights["3"].at[0].set(jnp.inf)
    with pytest.raises(ConfigError, match=r"step 5 of .*: 2 of its 4 arrays .* the first is 2\."):
        runs.check_finite(weights | {"count": jnp.int32(1)}, tmp_path, 5)
