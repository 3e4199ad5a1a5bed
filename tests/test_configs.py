"""Every config and every preset is assembled, and its step traced, without data or devices."""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from genjax import config as configs
from genjax import main, method
from genjax.data import catalogue, rolls
from genjax.methods.lm import NEW
from genjax.training import first_stage, optim
from genjax.training.assemble import assemble

FOLDER = Path(__file__).parent.parent / "configs"


def presets(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return ["", *getattr(module, "PRESETS", {})]


ALL = [
    f"{path}:{preset}" if preset else str(path)
    for path in sorted(FOLDER.glob("*.py"))
    for preset in presets(path)
]


@pytest.fixture(autouse=True)
def no_data(tmp_path, monkeypatch):
    """An empty cache: shapes must be known without the data."""
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "nothing"))


def text_spec(config):
    """What a config's text or rolls look like, which only the data tell; None of images."""
    if config.method != "lm":
        return None
    text, sizes = config.dataset.text, {"train": 1000}
    row = jax.ShapeDtypeStruct((text.length + 1,), np.int32)
    if config.dataset.name in rolls.NAMES:
        frame = jax.ShapeDtypeStruct((text.length + 1, 88), np.uint8)
        return method.DataSpec("rolls", "roll", {"frame": frame, "segment": row}, sizes)
    features = {"token": row, "bytes": jax.ShapeDtypeStruct((), np.float32)}
    if text.documents != "stream":
        features["segment"] = row
    special = {"start": 0, "eos": 1}
    values = text.vocabulary_size or 100
    return method.DataSpec("text", "text", features, sizes, 0, values, special)


def gpt2(folder):
    """A folder of Hugging Face that says what a model is."""
    keys = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 50257, "n_positions": 32}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **keys}))
    return str(folder)


def prepared(location, folder):
    """(the run of a config, what its samples look like); on the default VQ-VAE if on any."""
    given = {"weights": gpt2(folder)} if Path(location).stem == "import_lm" else {}
    config = configs.load(location, given)
    if "first_stage" not in config:
        run = assemble(config, text_spec(config), devices=jax.devices()[:4])
        return run, next(iter(run.spec.features.values())).shape
    first = configs.load(f"{FOLDER / 'vqvae.py'}")
    spec = catalogue.spec(first.dataset)
    stage = first_stage.Stage(first, spec, method.build(first, spec), "")
    run = main.build(config, first_stage.code_spec(stage), stage)
    return run, spec.features["image"].shape


@pytest.mark.parametrize("location", ALL, ids=lambda text: Path(text).name)
def test_init_step_evaluation_and_samples_have_shapes(location, tmp_path):
    run, shape = prepared(location, tmp_path)
    assert run.total_steps > 0 or run.config.get("weights")
    state, output = jax.eval_shape(run.step, run.state, run.batch)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, run.state)
    assert all(jax.tree.leaves(same))
    assert all(value.shape == (2,) for value in output.metrics.values())
    values = jax.eval_shape(run.method.evaluate, state.params, state.mutable, run.batch, state.key)
    each = ((), (run.examples_per_step,))
    assert all(v.shape in each for v in jax.tree.leaves(values))
    assert any(v.shape for v in jax.tree.leaves(values))

    def draw(params, mutable, key):
        return run.method.sample(params, mutable, key, 3, None)

    if not run.config.evals.samples:  # no generative model, such as the classifier
        with pytest.raises(configs.ConfigError, match="does not sample"):
            jax.eval_shape(draw, state.params, state.mutable, state.key)
        return
    samples = jax.eval_shape(draw, state.params, state.mutable, state.key)
    if run.spec.modality == "text":
        shape = (1 + NEW,)
    assert samples.shape == (3, *shape)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_optimizer_fits_a_real_method(name):
    overrides = {"optimizer.name": name, "optimizer.weight_decay": 0.1}
    overrides["optimizer.freeze"] = ("/time1/",)
    run = assemble(configs.load(f"{FOLDER / 'ddpm.py'}:tiny", overrides))
    jax.eval_shape(run.step, run.state, run.batch)


def test_no_two_sections_of_a_config_are_one_object():
    """Else setting a key of one would set it in the other."""

    def sections(config, name=""):
        for key, value in config.items():
            if isinstance(value, ConfigDict):
                yield f"{name}{key}", value
                yield from sections(value, f"{name}{key}.")

    for path in FOLDER.glob("*.py"):
        seen = {}
        for name, section in sections(configs.read_module(path).get_config()):
            assert seen.setdefault(id(section), name) == name, path


def test_every_config_has_a_tiny_preset_and_says_how_to_run_it():
    for path in FOLDER.glob("*.py"):
        assert "tiny" in presets(path), path
        text = path.read_text()
        for word in ("command", "hardware", "time", "score"):
            assert word in text.split('"""')[1], f"{path}: the docstring does not give the {word}"


def test_the_cifar10_preset_is_of_the_papers_size():
    """Ho et al. 2020, appendix B: "Our CIFAR10 model has 35.7 million parameters"."""
    run = assemble(configs.load(f"{FOLDER / 'ddpm.py'}:cifar10"))
    count = sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    assert count == pytest.approx(35.7e6, rel=0.005)
