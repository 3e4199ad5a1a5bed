"""The folder of a run: what was stored by older versions, and its lock."""

import json
import logging

import numpy as np
import pytest

from genjax import config as configs
from genjax.config import ConfigError
from genjax.method import DataSpec, Field
from genjax.training import workdir

IMAGE = Field("image", (8, 8, 1), np.dtype(np.uint8))
SPEC = DataSpec("digits", {"image": IMAGE}, "image", {"train": 9})


def older(folder, *keys):
    """A run of a version that did not have these keys."""
    workdir.write_config(folder, configs.load("configs/ddpm.py:tiny"), SPEC, ["main"], 300)
    content = json.loads((folder / "config.json").read_text())
    for key in keys:
        *path, leaf = key.split(".")
        section = content["config"]
        for name in path:
            section = section[name]
        del section[leaf]
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "checkpoints" / "3").mkdir(parents=True)


def test_keys_that_an_older_run_lacks_have_their_defaults_and_are_named_once(tmp_path, caplog):
    older(tmp_path, "optimizer.max_skipped", "ema.networks", "diffusion.weighting")
    with caplog.at_level(logging.INFO, "genjax"):
        config = workdir.read_config(tmp_path)
        assert workdir.read_spec(tmp_path) == SPEC
    assert config.optimizer.max_skipped == configs.base().optimizer.max_skipped
    assert config.ema.networks == ()
    (said,) = caplog.messages
    assert "older than the keys ema.networks, optimizer.max_skipped:" in said
    configs.validate(config)


def test_an_older_run_resumes_unless_a_new_key_has_another_value(tmp_path):
    older(tmp_path, "optimizer.max_skipped", "diffusion.weighting")
    given = configs.load("configs/ddpm.py:tiny")
    workdir.check_same_config(tmp_path, given, allow_change=False)
    for key, value in (("optimizer.max_skipped", 99), ("diffusion.weighting", "variational")):
        changed = configs.override(given, {key: value})
        with pytest.raises(ConfigError, match=rf"config\.{key}: .* -> {value!r}\n"):
            workdir.check_same_config(tmp_path, changed, allow_change=False)


def test_a_config_that_is_none_is_damaged(tmp_path):
    (tmp_path / "config.json").write_text('{"config": {}, "data": {}}')
    with pytest.raises(ConfigError, match=r"damaged or of another version .'dataset'"):
        workdir.read_config(tmp_path)


def test_the_lock_is_held_by_one_and_says_by_whom(tmp_path):
    with workdir.locked(tmp_path):
        with workdir.lock(tmp_path) as holder:
            assert holder.startswith("pid ")
        message = r"in use by another run \(pid \d+ on "
        with pytest.raises(ConfigError, match=message), workdir.locked(tmp_path):
            raise AssertionError("two hold it")
    with workdir.lock(tmp_path) as holder:
        assert holder == ""
