"""Data that were replaced, and weights that are not finite: a run says so and does nothing."""

import numpy as np
import pytest

from genjax.main import main

FAMILY = """
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from genjax import config as base
from genjax.method import Aux, Method, Phase

def get_config():
    config = base.base()
    config.method, config.dataset.name = "mean", "npz"
    config.dataset.validation = "25_percent"
    config.batch_size, config.evals.batch_size, config.duration = 8, 8, "2_steps"
    config.evals.samples = 0
    with config.unlocked():
        config.start = '0'
    return config

def build(config, spec):
    def init(key, batch):
        return {"mean": {"x": jnp.full(spec.generated.shape, float(config.start))}}, {"mean": {}}
    def error(params, batch):
        return jnp.square(params["mean"]["x"] - batch["x"]).mean(-1)
    def loss(params, mutable, batch, key, step):
        return error(params, batch).mean(), Aux({}, {})
    def evaluate(params, mutable, batch, key):
        return {"mse": error(params, batch)}
    def sample(params, mutable, key, num, condition):
        return jnp.broadcast_to(params["mean"]["x"], (num, *spec.generated.shape))
    rules = ((r".*", PartitionSpec()),)
    return Method(init=init, phases=(Phase("mean", loss),), evaluate=evaluate, sample=sample,
                  rules=rules)
"""


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    (tmp_path / "mean.py").write_text(FAMILY)
    monkeypatch.chdir(tmp_path)
    numbers = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=numbers)

    def call(*arguments, code=0):
        given = [f"--config={tmp_path / 'mean.py'}", f"--workdir={tmp_path / 'run'}"]
        given += [f"--config.dataset.path={tmp_path / 'data.npz'}"]
        given += ['--config.dataset.fields=(("x","real"),)', "--config.dataset.target=x"]
        assert main([*given, *arguments]) == code
        return capsys.readouterr().err

    return call


def test_data_that_were_replaced_are_refused_on_resume(run, tmp_path):
    run()
    np.savez(tmp_path / "data.npz", x=np.load(tmp_path / "data.npz")["x"][::-1])
    for mode in ("train", "eval"):
        said = run("--config.duration=4_steps", f"--mode={mode}", code=1)
        assert "the content of train: sha256" in said
        assert "--allow_config_change" in said
        assert "Traceback" not in said
    np.savez(tmp_path / "data.npz", x=np.load(tmp_path / "data.npz")["x"][::-1])
    run("--config.duration=4_steps")
    # What is wanted is done, and is what counts from then on.
    np.savez(tmp_path / "data.npz", x=np.load(tmp_path / "data.npz")["x"] + 1)
    run("--config.duration=6_steps", "--allow_config_change")
    run("--config.duration=8_steps")


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_nothing_is_drawn_from_weights_that_are_not_finite(run, tmp_path, number):
    run(f"--config.start={number}", "--config.duration=1_steps")
    said = run(f"--config.start={number}", "--mode=sample", code=1)
    assert "is not finite: 1 of its 1 arrays" in said
    assert "params/mean/x" in said
    assert not (tmp_path / "run" / "generated").exists()
