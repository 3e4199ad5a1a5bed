"""Runs of the version before fields, judges and stages, by the `config.json` that it wrote."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data.alphabets import Bytes
from genjax.evals import judges
from genjax.modes import runs
from genjax.train_state import TrainState
from genjax.training import older, workdir
from genjax.training.checkpoint import Checkpoints

STORED = json.loads((Path(__file__).parents[1] / "golden" / "older_configs.json").read_text())


def read(name, folder):
    (folder / "config.json").write_text(json.dumps(STORED[name]))
    return workdir.read_config(folder), workdir.read_spec(folder)


def test_images_with_labels_and_their_judges(tmp_path):
    config, spec = read("cgan", tmp_path)
    assert {name: (f.kind, f.shape, str(f.dtype)) for name, f in spec.fields.items()} == {
        "image": ("image", (8, 8, 1), "uint8"),
        "label": ("label", (), "int32"),
    }
    assert spec.target == "image"
    assert spec.fields["label"].facts == {"num_classes": 10}
    assert spec.sizes == {"train": 1617, "test": 180}
    assert config.evals.judges == ()
    assert config.dataset.image_size == ()
    judged = json.loads(json.dumps(STORED["cgan"]))
    judged["config"]["evals"] |= {"features": ["inception"], "generated": 77}
    evals = older.current(judged)["config"]["evals"]
    assert evals["judges"] == ["fidelity"]
    assert evals["fidelity"]["features"] == ["inception"]
    assert evals["fidelity"]["generated"] == 77
    assert "features" not in evals
    configs.validate(config)


def test_codes_and_the_first_stage_that_they_are_of(tmp_path):
    config, spec = read("prior", tmp_path)
    assert config.stages.to_dict() == {"autoencoder": "runs/vq"}
    assert config.dataset.codes == "autoencoder"
    assert "first_stage" not in config
    assert spec.target == "code"
    assert spec.generated.shape == (4, 4, 1)
    assert spec.generated.facts == {"vocabulary_size": 32}
    assert spec.fields["log_likelihood"].kind == "real"
    (tmp_path / "first_stage").mkdir()
    assert older.stage_folder(tmp_path, tmp_path / "stages" / "autoencoder").name == "first_stage"


def test_a_text_has_its_tokenizer_again(tmp_path):
    text = Bytes({"eos": 256}).to_json()
    (tmp_path / "tokenizer.json").write_text(text)
    config, spec = read("gpt", tmp_path)
    assert config.evals.judges == ("diversity",)
    assert spec.target == "token"
    assert spec.generated.facts["tokenizer"] == Bytes({"eos": 256})
    assert spec.generated.facts["special"] == {"start": 256, "eos": 256}
    assert spec.fields["bytes"].kind == "real"


def test_a_text_is_gone_on_with(tmp_path):
    """Its judge has settings now, which the stored config does not have."""
    (tmp_path / "tokenizer.json").write_text(Bytes({"eos": 256}).to_json())
    config, _ = read("gpt", tmp_path)
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    given = judges.with_sections(config, {})
    workdir.check_same_config(tmp_path, given, False, judges.with_sections)
    given.evals.diversity.generated = 7
    with pytest.raises(ConfigError, match=r"evals\.diversity\.generated: 0 -> 7"):
        workdir.check_same_config(tmp_path, given, False, judges.with_sections)


def test_what_is_of_today_stays_as_it_is(tmp_path):
    content = {"config": configs.to_json(configs.load("configs/ddpm.py:tiny")), "data": {}}
    assert older.current(content) == content


@pytest.mark.parametrize("named", [True, False])
def test_the_networks_of_a_stage_are_found_where_they_stood(named, tmp_path):
    def state(value):
        whole = jnp.full(3, value, jnp.float32)
        params = {"autoencoder": {"autoencoder": {"a": whole}}, "prior": {"b": 2 * whole}}
        mutable = {"autoencoder": {"autoencoder": {"c": 3 * whole}}, "prior": {}}
        key = jax.random.key(int(value))
        return TrainState(jnp.int32(7), params, {"prior": whole}, mutable, {}, key)

    made = state(5.0)
    config = configs.base()
    checkpoints = Checkpoints(tmp_path, config)
    checkpoints.save(made if named else older.without_name(made), 7, {})
    checkpoints.close()
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0.0)
    )
    with config.unlocked():
        config.stages = {"autoencoder": "runs/vq"}
    run = SimpleNamespace(config=config, state=shapes)
    found = runs.restore(run, Checkpoints(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, found.params, made.params)
    jax.tree.map(np.testing.assert_array_equal, found.mutable, made.mutable)
    assert int(found.step) == 7
