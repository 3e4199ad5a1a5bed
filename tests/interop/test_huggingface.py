"""Models that transformers made (make_huggingface.py), read, run and written back.

What is written here is what transformers loaded when it made the golden file: the same config.json
and the same bytes. To let it load a folder of ours itself, with a tokenizer too:

    python tests/interop/test_huggingface.py FOLDER
    /path/to/parity/bin/python tests/golden/make_huggingface.py FOLDER
"""

from __future__ import annotations

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from genjax.config import ConfigError
from genjax.data import tokenizers
from genjax.interop import huggingface, huggingface_config, safetensors
from genjax.networks import decoder, transformer
from genjax.nn.functional import functional

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "huggingface.npz")
TOKENS = GOLDEN["tokens"]
MODELS = [name.removesuffix("/logits") for name in GOLDEN.files if name.endswith("/logits")]
TINY = {  # another of each family, with options at their defaults
    "gpt2": {"width": 8, "depth": 1, "heads": 2, "activation": "relu"},
    "llama": {
        **{"width": 8, "depth": 2, "heads": 2, "head_size": 6, "norm": "rms", "bias": False},
        **{"positions": "rotary", "activation": "swiglu", "rope_scaling": ("linear", 2.0)},
    },
}


def fetch(name, folder):
    """The files that transformers wrote."""
    for key in GOLDEN.files:
        if key.startswith(f"{name}/files/"):
            (folder / key.rsplit("/", 1)[1]).write_bytes(GOLDEN[key].tobytes())
    return folder


def change(folder, **values):
    """Changes keys of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def network(options, vocabulary_size, length):
    return functional(lambda rngs: decoder.Network(vocabulary_size, length, **options, rngs=rngs))


def logits(options, vocabulary_size, length, params):
    (out, _), _ = network(options, vocabulary_size, length).apply(params, {}, jnp.asarray(TOKENS))
    return np.asarray(out)


def fresh(options, vocabulary_size=61, length=12):
    """Parameters of a network, none of them 0 or 1."""
    shapes, _ = jax.eval_shape(network(options, vocabulary_size, length).init, jax.random.key(0))
    draw = np.random.default_rng(0).standard_normal
    return jax.tree.map(lambda leaf: 0.3 * draw(leaf.shape, np.float32), shapes)


@pytest.mark.parametrize("name", MODELS)
def test_the_network_computes_what_transformers_does(name, tmp_path):
    model = huggingface.read(fetch(name, tmp_path))
    built = network(model.options, model.vocabulary_size, model.length)
    shapes, _ = jax.eval_shape(built.init, jax.random.key(0))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), model.params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    (found, _), _ = built.apply(model.params, {}, jnp.asarray(TOKENS))
    np.testing.assert_allclose(found, GOLDEN[f"{name}/logits"], atol=1e-4, rtol=0)
    assert model.tokenizer is None


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_what_transformers_loaded(name, tmp_path):
    model = huggingface.read(fetch(name, tmp_path))
    again = tmp_path / "new" / "folder"
    expected = json.loads(str(GOLDEN[f"{name}/exported"]))
    roles = {"start": "bos_token_id", "eos": "eos_token_id", "pad": "pad_token_id"}
    special = {k: expected[key] for k, key in roles.items() if expected[key] is not None}
    huggingface.write(again, *model[:4], special_tokens=special)
    assert json.loads((again / "config.json").read_text()) == expected
    assert sorted(path.name for path in again.iterdir()) == ["config.json", "model.safetensors"]
    if f"{name}/files/model.safetensors" in GOLDEN:
        written = (again / "model.safetensors").read_bytes()
        assert written == GOLDEN[f"{name}/files/model.safetensors"].tobytes()
    else:
        index = tmp_path / "model.safetensors.index.json"
        path = index if index.exists() else tmp_path / "model.safetensors"
        theirs, ours = safetensors.read(path), safetensors.read(again / "model.safetensors")
        for key, value in ours.items():
            np.testing.assert_array_equal(value, theirs[key], err_msg=key, strict=True)
        assert theirs.keys() == ours.keys()
    second = huggingface.read(again)
    assert second[:3] == model[:3]
    jax.tree.map(np.testing.assert_array_equal, second.params, model.params)


@pytest.mark.parametrize("name", ["gpt2", "llama_gelu"])
def test_names_without_prefix_buffers_and_a_copied_head(name, tmp_path):
    expected = huggingface.read(fetch(name, tmp_path))
    prefix = "transformer." if name == "gpt2" else "model."
    path = tmp_path / "model.safetensors"
    tensors = {key.removeprefix(prefix): np.array(a) for key, a in safetensors.read(path).items()}
    if name == "gpt2":
        tensors["lm_head.weight"] = tensors["wte.weight"]
        tensors["h.0.attn.bias"] = np.ones((1, 1, 12, 12), bool)
        tensors["h.1.attn.masked_bias"] = np.array(-1e4, np.float32)
    else:
        tensors["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
        tensors["rotary_emb.inv_freq"] = np.ones(2, np.float32)
    # The weights were made to be short, so nothing is lost.
    half = {key: a.astype(ml_dtypes.bfloat16) for key, a in tensors.items()}
    for written in (tensors, half):
        safetensors.write(path, written)
        found = huggingface.read(tmp_path)
        assert found[:3] == expected[:3]
        jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_a_tied_head_that_is_another_is_refused(tmp_path):
    fetch("gpt2_inner", tmp_path)
    with pytest.raises(ConfigError, match="tie_word_embeddings=True: expected false: they differ"):
        huggingface.read(change(tmp_path, tie_word_embeddings=True))


def test_configs_of_older_versions_say_the_same(tmp_path):
    folder = fetch("llama_llama3", tmp_path)
    expected = huggingface.read(folder).options
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    base = rope.pop("rope_theta")
    for kind in ("rope_type", "type"):
        older = {kind: rope["rope_type"], **{k: v for k, v in rope.items() if k != "rope_type"}}
        (folder / "config.json").write_text(
            json.dumps(config | {"rope_theta": base, "rope_scaling": older})
        )
        assert huggingface.read(folder).options == expected
    change(folder, rope_scaling=None)
    options = huggingface.read(folder).options
    assert options == {**expected, "rope_scaling": ()}
    assert options["rope_base"] == 100.0


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_absent_keys_have_the_defaults_of_transformers(family):
    whole = json.loads(str(GOLDEN[f"defaults/{family}"]))
    assert len(whole) > 20
    found = huggingface_config.read("config.json", {"model_type": family})
    assert found == huggingface_config.read("config.json", whole)
    nulls = {key: None for key in whole if not key.endswith("_token_id")}
    assert found == huggingface_config.read("config.json", nulls | {"model_type": family})
    assert found.options["depth"] == (12 if family == "gpt2" else 32)


@pytest.mark.parametrize("name", [n[12:] for n in GOLDEN.files if n.startswith("activations/")])
def test_activations_of_any_name_are_theirs(name):
    def option(key, family):
        values = {"model_type": family, key: name}
        return huggingface_config.read("config.json", values).options["activation"]

    expected = GOLDEN[f"activations/{name}"]
    plain = transformer.ACTIVATIONS[option("activation_function", "gpt2")]
    np.testing.assert_allclose(plain(GOLDEN["x"]), expected, atol=2e-6)
    if name != "relu":
        gated = transformer.GATED[option("hidden_act", "llama")]
        np.testing.assert_allclose(gated(GOLDEN["x"]), expected, atol=2e-6)


def test_what_does_not_fit_is_a_table(tmp_path):
    folder = fetch("gpt2", tmp_path)
    path = folder / "model.safetensors"
    tensors = dict(safetensors.read(path))
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    tensors["score.weight"] = np.zeros((2, 24), np.float32)
    tensors["transformer.wpe.weight"] = np.zeros((11, 24), np.float32)
    tensors["transformer.ln_f.bias"] = np.zeros(24, np.int8)
    safetensors.write(path.with_name("changed"), tensors)
    path.with_name("changed").rename(path)
    with pytest.raises(ConfigError) as error:
        huggingface.read(folder)
    assert str(error.value).splitlines() == [
        f"the tensors in {folder} do not fit its config.json (1 missing, 1 unexpected, "
        "2 mismatched):",
        "  missing     h.1.mlp.c_fc.weight  [24, 96]",
        "  unexpected  score.weight  [2, 24]",
        "  mismatched  ln_f.bias  int8[24], expected [24]",
        "  mismatched  wpe.weight  float32[11, 24], expected [12, 24]",
    ]
    change(folder, n_layer=4)
    with pytest.raises(ConfigError, match=r"25 missing(.*\n){9}  missing     and 17 more\n"):
        huggingface.read(folder)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (
            "gpt2",
            {"model_type": "gemma2"},
            r"model_type='gemma2': expected one of gemma, gpt2, gpt_",
        ),
        ("gpt2", {"model_type": None}, r"model_type='none'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx=True: expected Fal"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False: expected True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True: expected False"),
        ("gpt2", {"activation_function": "mish"}, "activation_function='mish': expected one of"),
        ("gpt2", {"n_head": 5}, "n_head=5: expected a divisor of n_embd=24"),
        ("gpt2", {"n_embd": 0}, "n_embd=0: expected a positive integer"),
        ("gpt2", {"n_embd": 24.0}, r"n_embd=24\.0: expected a positive integer"),
        ("gpt2", {"n_layer": True}, "n_layer=True: expected a positive integer"),
        ("gpt2", {"n_layer": 10**9}, "layers=1000000000: expected at most 28, as many as tensors"),
        ("gpt2", {"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon=nan: expected a number"),
        ("gpt2", {"layer_norm_epsilon": 10**400}, "layer_norm_epsilon=1000.*expected a number"),
        ("gpt2", {"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes': expected true or f"),
        ("gpt2", {"quantization_config": {"bits": 4}}, "quantization_config=.*expected float"),
        ("llama", {"hidden_act": "relu"}, "hidden_act='relu': expected one of"),
        ("llama", {"num_key_value_heads": 3}, "expected a divisor of num_attention_heads=4"),
        ("llama", {"rope_scaling": {"rope_type": "yarn"}}, "rope_type='yarn': expected one of def"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope=.*expected numbers above 0.*factor"),
        ("llama", {"rope_scaling": {"full": {"type": "yarn"}}}, "rope=.*expected an object of num"),
        ("llama", {"rope_scaling": [2]}, "rope=.*expected an object of numbers"),
        ("llama", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor=0\.5: expected 1\.0"),
        (
            "llama",
            {
                "rope_scaling": {
                    **{"type": "llama3", "factor": 8, "low_freq_factor": 4},
                    **{"high_freq_factor": 1, "original_max_position_embeddings": 64},
                }
            },
            "rope=.*the low factor below the high one",
        ),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused(name, values, message, tmp_path):
    change(fetch(name, tmp_path), **values)
    with pytest.raises(ConfigError, match=rf"config\.json: .*{message}"):
        huggingface.read(tmp_path)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no such folder.*config\.json"):
        huggingface.read(tmp_path / "nothing")
    (tmp_path / "model.pth").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"model\.pth'.*pickles.*model\.safetensors"):
        huggingface.describe(tmp_path / "model.pth")
    fetch("gpt2", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"no model\.safetensors and no .*pickles"):
        huggingface.read(tmp_path)
    (tmp_path / "config.json").write_bytes(b'{"model_type": "gpt2", "model_type": "llama"}')
    with pytest.raises(ConfigError, match=r"config\.json cannot be read as JSON: the key 'model_"):
        huggingface.read(tmp_path)


def test_a_gpt2_without_biases_has_zeros_for_them(tmp_path):
    name = "gpt2_bare"
    model = huggingface.read(fetch(name, tmp_path))
    paths = jax.tree_util.tree_leaves_with_path(model.params)
    params = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in paths
        if path[-1].key != "bias"
    }
    params, options = unflatten_dict(params, sep="/"), {**model.options, "bias": False}
    np.testing.assert_allclose(
        logits(options, *model[1:3], params), GOLDEN[f"{name}/logits"], atol=1e-4, rtol=0
    )
    huggingface.write(tmp_path / "new", options, *model[1:3], params)
    written = (tmp_path / "new" / "model.safetensors").read_bytes()
    assert written == GOLDEN[f"{name}/files/model.safetensors"].tobytes()
    config = (tmp_path / "new" / "config.json").read_text()
    assert json.loads(config) == json.loads(str(GOLDEN[f"{name}/exported"]))
    with pytest.raises(ConfigError, match=r"unexpected  body/blocks/down/bias"):
        huggingface.write(tmp_path / "other", options, *model[1:4])


@pytest.mark.parametrize("name", TINY)
def test_a_network_of_ours_comes_back(name, tmp_path):
    params = fresh(TINY[name])
    huggingface.write(tmp_path, TINY[name], 61, 12, jax.tree.map(jnp.asarray, params))
    found = huggingface.read(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    np.testing.assert_array_equal(
        logits(found.options, found.vocabulary_size, found.length, found.params),
        logits(TINY[name], 61, 12, params),
    )


def test_what_their_formats_do_not_describe_is_not_written(tmp_path):
    for options, message in (
        ({"positions": "sinusoidal"}, r"gpt2 needs positions='learned' \(it is 'sinusoidal'\)"),
        ({"norm_first": False}, r"gpt2 needs norm_first=True \(it is False\); gpt_neox needs norm"),
        ({"frames": True}, "gpt2 needs frames=False"),
        ({"kv_heads": 1}, r"gpt2 needs kv_heads=2 \(it is 1\)"),
        ({"head_size": 3}, r"gpt2 needs head_size=4 \(it is 3\)"),
        ({"heads": 3}, r"gpt2 needs width=6 \(it is 8\)"),
        ({"heades": 3}, "option of networks.decoder='heades'.*Nearest: heads"),
    ):
        with pytest.raises(ConfigError, match=message):
            huggingface.write(tmp_path / "new", TINY["gpt2"] | options, 61, 12, {})
    with pytest.raises(ConfigError, match=r"the parameters do not fit the options \(17 missing"):
        huggingface.write(tmp_path / "new", {**TINY["gpt2"], "tied": False}, 61, 12, {})
    params = fresh(TINY["gpt2"])
    with pytest.raises(ConfigError, match=r"mismatched  positions  float32\[12, 8\], expected \[9"):
        huggingface.write(tmp_path / "new", TINY["gpt2"], 61, 9, params)
    assert not (tmp_path / "new").exists()


def tokenizer():
    """A tokenizer.json of words, with a token that ends a text."""
    words = {word: i for i, word in enumerate(["<end>", "the", "naïve", "bear", "."])}
    token = {"id": 0, "content": "<end>", "special": True, "single_word": False}
    token |= {"lstrip": False, "rstrip": False, "normalized": False}
    return {
        **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": [token]},
        **{"normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None},
        **{"decoder": None, "model": {"type": "WordLevel", "vocab": words, "unk_token": "<end>"}},
    }


def test_the_tokenizer_goes_along(tmp_path):
    params, special = fresh(TINY["gpt2"]), {"start": 0, "eos": 0}
    several = special | {"eos_2": 3}
    huggingface.write(tmp_path, TINY["gpt2"], 61, 12, params, special_tokens=several)
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == [0, 3]
    wrapped = {"kind": "huggingface", "special": {"eos": 0}, "tokenizer": tokenizer()}
    for text in (json.dumps(tokenizer()), json.dumps(wrapped)):
        huggingface.write(tmp_path, TINY["gpt2"], 61, 12, params, text, special)
        found = huggingface.read(tmp_path)
        assert tokenizers.special_tokens(tokenizers.read(tmp_path)) == special
        assert found.tokenizer == str(tmp_path / "tokenizer.json")
        assert json.loads(pathlib.Path(found.tokenizer).read_text("utf-8")) == tokenizer()
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        assert config.pop("tokenizer_class") == "PreTrainedTokenizerFast"
        assert config.pop("clean_up_tokenization_spaces") is False
        assert config == {"bos_token": "<end>", "eos_token": "<end>", "model_max_length": 12}
    (tmp_path / "tokenizer_config.json").unlink()
    plain = {"kind": "bytes", "special": {"eos": 256}}
    huggingface.write(tmp_path, TINY["gpt2"], 61, 12, params, json.dumps(plain), special)
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == plain
    assert not (tmp_path / "tokenizer_config.json").exists()


def export(folder):
    """Folders for transformers to load: see the top."""
    text = json.dumps({"text": "the bear . naïve", "tokens": [1, 3, 4, 2]})
    for name in (*MODELS, *(f"tiny_{name}" for name in TINY)):
        place = folder / name
        place.mkdir(parents=True)
        if name in MODELS:
            model = huggingface.read(fetch(name, place))[:4]
            for path in place.iterdir():
                path.unlink()
        else:
            options = TINY[name.removeprefix("tiny_")]
            model = options, 61, 12, fresh(options)
        huggingface.write(place, *model, json.dumps(tokenizer()), {"start": 0, "eos": 0})
        np.save(place / "logits.npy", logits(*model))
        (place / "text.json").write_text(text)


if __name__ == "__main__":
    export(pathlib.Path(sys.argv[1]))
