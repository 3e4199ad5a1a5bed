"""Llama-likes that transformers made (make_llamalikes.py), read, run and written back.

What is written here is what transformers loaded when it made the golden file. To let it load
folders of ours itself:

    python tests/interop/test_llamalikes.py FOLDER
    /path/to/parity/bin/python tests/golden/make_llamalikes.py FOLDER
"""

from __future__ import annotations

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_huggingface import change, fresh, network

from genjax.config import ConfigError
from genjax.interop import architectures, huggingface, huggingface_config, safetensors
from genjax.networks.transformer import unstacked

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "llamalikes.npz")
TOKENS = jnp.asarray(GOLDEN["tokens"])
MODELS = [name.removesuffix("/logits") for name in GOLDEN.files if name.endswith("/logits")]
TYPES = [name.removeprefix("defaults/") for name in GOLDEN.files if name.startswith("defaults/")]


def fetch(name, folder):
    """The files that transformers wrote."""
    for key in GOLDEN.files:
        if key.startswith(f"{name}/files/"):
            (folder / key.rsplit("/", 1)[1]).write_bytes(GOLDEN[key].tobytes())
    return folder


def tensors(folder):
    index = folder / "model.safetensors.index.json"
    return safetensors.read(index if index.exists() else folder / "model.safetensors")


@pytest.mark.parametrize("name", MODELS)
def test_the_network_computes_what_transformers_does(name, tmp_path):
    model = huggingface.read(fetch(name, tmp_path))
    built = network(model.options, model.vocabulary_size, model.length)
    shapes, _ = jax.eval_shape(built.init, jax.random.key(0))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), model.params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    (found, _), _ = jax.jit(built.apply)(model.params, {}, TOKENS)
    np.testing.assert_allclose(found, GOLDEN[f"{name}/logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["mistral", "qwen3_bias", "gpt_neox", "gemma"])
def test_what_is_cached_is_computed_as_at_once(name, tmp_path):
    """Of a prompt longer than the window, of several tokens more, and of one token."""
    model = huggingface.read(fetch(name, tmp_path))
    built = network(model.options, model.vocabulary_size, model.length)
    params = unstacked(model.params)

    @jax.jit
    def run(params, tokens):
        at, logits = 6, []
        (_, cache), _ = built.apply(params, {}, tokens[:, :at], capacity=11)
        for count in (1, 3, 1):
            step = tokens[:, at : at + count]
            (found, cache), _ = built.apply(params, {}, step, cache=cache)
            at, logits = at + count, [*logits, found]
        return jnp.concatenate(logits, axis=1)

    expected = GOLDEN[f"{name}/logits"][:, 6:]
    np.testing.assert_allclose(run(params, TOKENS), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_what_transformers_loaded(name, tmp_path):
    model = huggingface.read(fetch(name, tmp_path))
    expected = json.loads(str(GOLDEN[f"{name}/exported"]))
    ids = expected["eos_token_id"] or []
    special = {("eos" if i == 0 else f"eos_{i + 1}"): token for i, token in enumerate(ids)}
    again = tmp_path / "again"
    huggingface.write(again, *model[:4], special_tokens=special)
    assert json.loads((again / "config.json").read_text()) == expected
    theirs, ours = tensors(tmp_path), tensors(again)
    assert theirs.keys() == ours.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key].astype(np.float32), err_msg=key)
    second = huggingface.read(again)
    assert second[:3] == model[:3]
    jax.tree.map(np.testing.assert_array_equal, second.params, model.params)


def test_files_are_of_every_kind(tmp_path):
    """Float16, bfloat16, and several with an index: the tests above are of these."""
    kinds = {
        name: {str(array.dtype) for array in tensors(fetch(name, tmp_path / name)).values()}
        for name in ("mistral", "qwen2", "phi")
        if not (tmp_path / name).mkdir()
    }
    assert kinds == {"mistral": {"float32"}, "qwen2": {"bfloat16"}, "phi": {"float16"}}
    assert "qwen3/files/model.safetensors.index.json" in GOLDEN.files


def test_buffers_that_older_files_have_are_no_parameters(tmp_path):
    expected = huggingface.read(fetch("gpt_neox", tmp_path))
    path = tmp_path / "model.safetensors"
    arrays = {key: np.array(array) for key, array in safetensors.read(path).items()}
    attention = "gpt_neox.layers.0.attention."
    arrays[f"{attention}bias"] = np.ones((1, 1, 32, 32), bool)
    arrays[f"{attention}masked_bias"] = np.array(-1e9, np.float32)
    arrays[f"{attention}rotary_emb.inv_freq"] = np.ones(1, np.float32)
    safetensors.write(path, arrays)
    found = huggingface.read(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


@pytest.mark.parametrize("name", TYPES)
def test_absent_keys_have_the_defaults_of_transformers(name):
    whole = json.loads(str(GOLDEN[f"defaults/{name}"]))
    found = huggingface_config.read("config.json", {"model_type": name})
    assert found == huggingface_config.read("config.json", whole)
    assert found.options["width"] == whole["hidden_size"]


def test_every_type_is_tested():
    assert {*TYPES, "gpt2", "llama"} == {*architectures.names()}


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ({"norm": "layer", "rotary_share": 0.5}, {"bias": True}),
        (
            {"norm": "layer", "residual": "parallel_shared", "rotary_share": 0.5, "kv_heads": 1},
            {"bias": True, "head_bias": True},
        ),
    ],
)
def test_biases_that_a_type_always_has_are_zeros(options, added, tmp_path):
    options = {"width": 8, "depth": 1, "heads": 2, "positions": "rotary", **options}
    options |= {"tied": False, "bias": False}
    params = fresh(options)
    huggingface.write(tmp_path, options, 61, 12, params)
    found = huggingface.read(tmp_path)
    assert {key: found.options[key] for key in added} == added
    tokens = jnp.asarray([[5, 9, 60, 2]])
    (expected, _), _ = network(options, 61, 12).apply(params, {}, tokens)
    (computed, _), _ = network(found.options, 61, 12).apply(found.params, {}, tokens)
    np.testing.assert_allclose(computed, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("mistral", {"sliding_window": 0}, "sliding_window=0: expected a positive integer"),
        ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, "one type of attent"),
        ("qwen2_window", {"max_window_layers": 1}, "^"),
        (
            "qwen2_window",
            {"max_window_layers": 1, "layer_types": None},
            "layer_types=.*expected one type of attention in all layers",
        ),
        ("qwen3_bias", {"layer_types": ["chunked"]}, "layer_types='chunked': expected one of full"),
        (
            "gemma",
            {"use_bidirectional_attention": True},
            "bidirectional_attention=True: expected",
        ),
        ("gemma", {"hidden_act": "relu"}, "hidden_act='relu': expected one of gelu_new"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm=True: expected False"),
        (
            "phi",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.5}},
            r"partial_rotary_factor=1\.5: expected above 0, at most 1",
        ),
        (
            "gpt_neox",
            {"num_attention_heads": 3},
            "num_attention_heads=3: expected a divisor",
        ),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused(name, values, message, tmp_path):
    change(fetch(name, tmp_path), **values)
    if message == "^":  # layer_types come first, as in transformers
        assert huggingface.describe(tmp_path).options["window"] == 4
        return
    with pytest.raises(ConfigError, match=rf"config\.json: .*{message}"):
        huggingface.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "options"),
    [
        ("mistral", {"sliding_window": None}, {"window": 0}),
        ("mistral", {"sliding_window": 32}, {"window": 0}),  # as many as the model has
        ("qwen2_window", {"use_sliding_window": False}, {"window": 0}),
        ("qwen2_window", {"layer_types": None, "max_window_layers": 2}, {"window": 0}),
        ("gpt_neox", {"rope_parameters": None, "rotary_pct": 0.5}, {"rotary_share": 0.5}),
        ("gpt_neox", {"rope_parameters": None, "rotary_emb_base": 7}, {"rope_base": 7.0}),
        ("phi", {"rope_parameters": None, "partial_rotary_factor": 0.4}, {"rotary_share": 0.4}),
        ("gemma", {"hidden_act": "gelu"}, {"activation": "geglu_exact"}),
        (
            "gemma",
            {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"},
            {"activation": "geglu"},
        ),
    ],
)
def test_what_configs_say_otherwise(name, values, options, tmp_path):
    found = huggingface.describe(change(fetch(name, tmp_path), **values)).options
    assert {key: found[key] for key in options} == options


def export(folder):
    """Folders for transformers to load: see the top."""
    for name in MODELS:
        place = folder / name
        place.mkdir(parents=True)
        model = huggingface.read(fetch(name, place))[:4]
        for path in place.iterdir():
            path.unlink()
        huggingface.write(place, *model)
        (out, _), _ = network(*model[:3]).apply(model[3], {}, TOKENS)
        np.save(place / "logits.npy", out)


if __name__ == "__main__":
    export(pathlib.Path(sys.argv[1]))
