"""What is refused before a stage is trained, and what of the data is read for that."""

from pathlib import Path

import chex
import jax
import pytest
from etils import epath

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data import catalogue
from genjax.modes import train
from genjax.training.assemble import assemble
from genjax.training.checkpoint import Checkpoints

LOCATION = f"{Path(__file__).parent.parent.parent / 'configs' / 'vqvae_prior.py'}:tiny"


def test_the_split_of_evaluations_is_checked_without_the_data(tmp_path, monkeypatch):
    monkeypatch.delattr(catalogue, "load")
    train.check(configs.load(LOCATION), tmp_path)
    missing = configs.load(LOCATION, {"dataset.validation": "", "evals.split": "validation"})
    with pytest.raises(ConfigError, match=r"config\.evals\.split='validation': digits has"):
        train.check(missing, tmp_path)


def test_where_no_stage_will_be_trained_nothing_of_the_data_is_read(tmp_path, monkeypatch):
    """They are checked once they are loaded."""
    monkeypatch.delattr(catalogue, "load")
    monkeypatch.delattr(catalogue, "spec")
    trained = configs.load(LOCATION, {"stages.autoencoder": str(tmp_path / "other")})
    train.check(trained, tmp_path)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    train.check(configs.load(LOCATION), tmp_path)


def test_a_run_may_start_from_a_stage(tmp_path):
    """Here the weights of `lm` are the stage's, and there is nothing else to take."""
    keys = {"checkpoint.init_from": "reference", "stages.reference": "arithmetic.py:tiny"}
    place = f"{LOCATION.rpartition('/')[0]}/arithmetic.py:tiny"
    stage = assemble(configs.load(place, {"seed": 1}), devices=jax.devices()[:1])
    run = assemble(configs.load(place, keys), devices=jax.devices()[:1])
    trained = stage.init()
    folder = epath.Path(tmp_path) / "stages" / "reference"
    saved = Checkpoints(folder, stage.config)
    saved.save(trained, 0, {})
    saved.wait()
    state = train.first_state(run, Checkpoints(tmp_path))
    chex.assert_trees_all_equal(state.params, trained.params)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(run.init().params, trained.params)
