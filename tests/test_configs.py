"""Every config and every preset is assembled, and its step traced, without data or devices."""

import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal
from ml_collections import ConfigDict

from genjax import config as configs
from genjax import method
from genjax.data import catalogue, pairs, preferences, problems, rolls
from genjax.data import text as texts
from genjax.data.alphabets import Bytes, Characters
from genjax.evals import judges
from genjax.interop import safetensors
from genjax.method import Field
from genjax.methods.lm import NEW
from genjax.modes import runs
from genjax.parallel import rules
from genjax.sampling import draw
from genjax.training import codes, optim, stages
from genjax.training.assemble import assemble
from genjax.training.stages import network_shapes

FOLDER = Path(__file__).parent.parent / "configs"


def presets(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return ["", *getattr(module, "PRESETS", {})]


# Of the largest presets, which take long to trace, only the parameters are looked at.
LARGEST = ("256", "celeba64", "imagenet", "f8", "paper", "rlhf", "medium", "7b", "70b", "cifar10")
# Stages of that size take longer still. These are loaded only, by the test of splits.
OVER_STAGES = ("dalle1.py:paper", "dalle2_decoder.py:paper", "dalle2_upsampler.py:paper")
OVER_STAGES += ("dit.py:imagenet256-latent", "maskgit.py:paper", "text2image.py:sd3-medium")
WRITERS = ("lm", "rl_lm", "preference")  # their texts have any length
ALL = [
    f"{path}:{preset}" if preset else str(path)
    for path in sorted(FOLDER.glob("*.py"))
    for preset in presets(path)
]


@pytest.fixture(autouse=True)
def no_data(tmp_path, monkeypatch):
    """An empty cache: shapes must be known without the data."""
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "nothing"))


def of_sequences(config):
    """Whether a config is of text or rolls."""
    return config.dataset.name in (*texts.NAMES, *rolls.NAMES, *pairs.NAMES)


def described(config):
    """What a config's data look like, of which only the data tell texts, rolls, captions."""
    if config.dataset.name in (*problems.NAMES, *preferences.NAMES):  # they need no file
        return catalogue.spec(config.dataset)
    if not of_sequences(config):
        plain = config.dataset.copy_and_resolve_references()
        plain.text.tokenizer = "bytes"  # others are trained on the captions
        return catalogue.spec(plain)
    text, sizes = config.dataset.text, {"train": 1000}
    row = Field("real", (text.length + 1,), np.dtype(np.int32))
    if config.dataset.name in rolls.NAMES:
        frame = Field("roll", (text.length + 1, 88), np.dtype(np.uint8))
        return method.DataSpec("rolls", {"frame": frame, "segment": row}, "frame", sizes)
    facts = {"vocabulary_size": text.vocabulary_size or 100, "special": {"start": 0, "eos": 1}}
    facts["tokenizer"] = Characters("abc", {})
    if config.dataset.name in pairs.NAMES:
        facts["tokenizer"] = Bytes({"eos": 256})  # which knows the letters of a template
        lengths = {"source": text.source_length or text.length, "target": text.length}
        fields = {name: Field("text", (n,), row.dtype, facts) for name, n in lengths.items()}
        return method.DataSpec("pairs", fields, "target", sizes)
    token = Field("text", row.shape, row.dtype, facts)
    fields = {"token": token, "bytes": Field("real", (), np.dtype(np.float32))}
    if text.documents != "stream":
        fields["segment"] = row
    return method.DataSpec(config.dataset.name, fields, "token", sizes)


def gpt2(folder):
    """A folder of Hugging Face that says what a model is."""
    keys = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 50257, "n_positions": 2048}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **keys}))
    return str(folder)


def bert(folder):
    """The same of an encoder; its tokenizer is one of genjax."""
    keys = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **keys}))
    (folder / "tokenizer.json").write_text(Characters("abc", {}).to_json())
    return str(folder)


def t5(folder):
    """The same of an encoder and decoder, with a tokenizer and a table of weights."""
    keys = {"d_model": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 300}
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", **keys}))
    table = {"shared.weight": np.zeros((300, 16), np.float32)}
    safetensors.write(folder / "model.safetensors", table, {})
    (folder / "tokenizer.json").write_text(Bytes({"eos": 256}).to_json())
    return str(folder)


def clip(folder):
    """The same of a CLIP."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 257, "max_position_embeddings": 16}
    vision = {**sizes, "image_size": 16, "patch_size": 8}
    keys = {"text_config": text, "vision_config": vision, "projection_dim": 8}
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", **keys}))
    (folder / "tokenizer.json").write_text(Bytes({"eos": 256}).to_json())
    return str(folder)


IMPORTED = {"import_lm": gpt2, "import_bert": bert, "import_seq2seq": t5, "import_clip": clip}
IMPORTED |= {"finetune": gpt2}


def weights(location, folder):
    """The overrides of a config that imports a model."""
    own = location.endswith("finetune.py:tiny")  # which has no weights
    model = None if own else IMPORTED.get(Path(location).stem)
    return {"weights": model(folder)} if model else {}


@functools.cache
def staged(name, place):
    """The stage that a config names, with the stages that it has itself."""
    config = configs.load(f"{FOLDER / place}")
    spec = described(config)
    found = {inner: staged(inner, own) for inner, own in config.stages.items()}
    made = stages.build(config, spec, found)
    networks = made.codec.networks if made.codec else tuple(network_shapes(made, spec)[0])
    return method.Stage(name, config, spec, made, networks)


def prepared(location, folder):
    """(the run of a config, what its samples look like), with the stage that it names, if any."""
    given = weights(location, folder)
    config = configs.load(location, given, judges.with_sections)
    if not config.stages:
        run = assemble(config, described(config), devices=jax.devices()[:4])
        return run, run.spec.generated.shape
    found, spec = {name: staged(name, place) for name, place in config.stages.items()}, None
    if not config.dataset.codes:
        spec = described(config)
        run = runs.build(config, spec, found, folder, spec)
        return run, (run.method.output or spec.generated).shape
    (stage,) = found.values()
    spec = stage.spec
    own = codes.code_spec(stage, spec)
    run = runs.build(config, own, found, folder, spec)
    return run, spec.generated.shape


TRACED = [location for location in ALL if not location.endswith(OVER_STAGES)]


@pytest.mark.parametrize("location", TRACED, ids=lambda text: Path(text).name)
def test_init_step_evaluation_and_samples_have_shapes(location, tmp_path):
    _, _, preset = Path(location).name.partition(":")
    largest = any(word in preset for word in LARGEST)
    run, shape = prepared(location, tmp_path)
    assert run.total_steps > 0 or run.config.get("weights")
    if largest:
        assert jax.tree.leaves(run.state.params)
        return
    state, output = jax.eval_shape(run.step, run.state, run.batch)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, run.state)
    assert all(jax.tree.leaves(same))
    assert all(value.shape == (2,) for value in output.metrics.values())
    if preset:
        return  # the default is evaluated and sampled from
    values = jax.eval_shape(run.method.evaluate, state.params, state.mutable, run.batch, state.key)
    each = ((), (run.examples_per_step,))
    assert all(v.shape in each for v in jax.tree.leaves(values))
    assert any(v.shape for v in jax.tree.leaves(values))

    def samples(params, mutable, key):
        fixed, arrays = draw.planned(run.method, {})
        own = "diffusion" if run.config.method == "embedding_prior" else run.config.method
        names = run.config.get(own, {}).get("conditions", ())
        if run.config.method == "seq2seq" or run.spec.target == "target":
            return run.method.sample(params, mutable, key, 3, given_source(run), **fixed, **arrays)
        fields = {name: run.spec.fields[name] for name in names}
        given = {name: jnp.zeros((3, *f.shape), f.dtype) for name, f in fields.items()}
        return run.method.sample(params, mutable, key, 3, given, **fixed, **arrays)

    if not run.config.evals.samples:  # no generative model, such as the classifier
        with pytest.raises(configs.ConfigError, match="does not sample"):
            jax.eval_shape(samples, state.params, state.mutable, state.key)
        return
    drawn = jax.eval_shape(samples, state.params, state.mutable, state.key)
    if run.config.method in WRITERS and run.spec.target in ("token", "chosen"):
        shape = (1 + NEW,)
    if run.config.method == "seq2seq":
        shape = (1 + min(run.method.sample.args[0].context, NEW),)
    assert drawn.shape == (3, *shape)


TINY = [location for location in TRACED if location.endswith("tiny")]
# The bias of a critic's output: it is the same for both sides of a difference.
UNTRAINED = {
    "wgan": {"discriminator/head/linear/bias"},
    "wgan_gp": {"discriminator/head/linear/bias"},
    "wgan_gp_text": {"discriminator/out/bias"},
}


def reached(function, *arguments):
    """Names of all outputs, and of those that depend on an argument: gradients not cut off."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    names = [rules.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(shape)]
    depend = depending(closed.jaxpr, [True] * len(closed.jaxpr.invars))
    return set(names), {name for name, depends in zip(names, depend, strict=True) if depends}


def depending(jaxpr, inputs):
    """Which outputs of a program depend on inputs that do; it looks into scans and calls."""
    known = {v for v, depends in zip(jaxpr.invars, inputs, strict=True) if depends}
    for equation in jaxpr.eqns:
        given = [not isinstance(v, Literal) and v in known for v in equation.invars]
        inner = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
        inner = getattr(inner, "jaxpr", inner)
        outputs = [any(given)] * len(equation.outvars)
        if equation.primitive.name == "scan":
            first, count = equation.params["num_consts"], equation.params["num_carry"]
            outputs = depending(inner, given)
            while given[first : first + count] != (
                carry := [a or b for a, b in zip(given[first:], outputs[:count], strict=False)]
            ):
                given[first : first + count] = carry
                outputs = depending(inner, given)
        elif inner is not None and len(inner.invars) == len(given):
            outputs = depending(inner, given)
        known.update(v for v, depends in zip(equation.outvars, outputs, strict=True) if depends)
    return [not isinstance(v, Literal) and v in known for v in jaxpr.outvars]


@pytest.mark.parametrize("location", TINY, ids=lambda text: Path(text).name)
def test_a_gradient_reaches_every_parameter_that_is_trained(location, tmp_path):
    run, _ = prepared(location, tmp_path)
    params, mutable, key = run.state.params, run.state.mutable, jax.random.key(0)
    batch = run.batch
    if run.method.prepare:
        batch = jax.eval_shape(run.method.prepare, params, mutable, batch, key, 0)
    every, found = set(), set()
    for phase in run.method.phases:

        def gradient(own, params, mutable, batch, phase=phase):
            def loss(own):
                return phase.loss({**params, **own}, mutable, batch, key, jnp.int32(0))[0]

            return jax.grad(loss)(own)

        own = {name: params[name] for name in phase.networks}
        names, with_gradient = reached(gradient, own, params, mutable, batch)
        every, found = every | names, found | with_gradient
    assert every - found == UNTRAINED.get(Path(location).stem, set())


def given_source(run):
    """Sources of three samples, of as many tokens as the network takes."""
    ((name, field),) = run.method.conditions.items()
    return {name: jnp.zeros((3, *field.shape), field.dtype)}


@pytest.mark.parametrize("location", ALL, ids=lambda text: Path(text).name)
def test_training_looks_at_a_split_that_is_there_and_not_at_the_test_split(location, tmp_path):
    """But where a paper's network is trained on all of train."""
    config = configs.load(location, weights(location, tmp_path))
    data = config.dataset
    expected = "test" if location.endswith("ddpm.py:cifar10") else "validation"
    assert config.evals.split == expected
    if of_sequences(config):
        assert data.validation or data.name in (*rolls.NAMES, texts.TOKENIZER)
    else:
        assert described(config).sizes[expected] > 100


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
