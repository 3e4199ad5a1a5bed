"""Models of flax that transformers wrote (make_flax_models.py), and files made by hand."""

import json
import pathlib

import flax.serialization
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from test_huggingface import network

from genjax.config import ConfigError
from genjax.interop import flax_file, huggingface

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "flax_models.npz")
# The names and shapes of the same models' modules for PyTorch.
BERT = "bert.encoder.layer.0."
SHAPES = {
    "bert": {
        "bert.embeddings.word_embeddings.weight": (5, 2),
        "bert.embeddings.LayerNorm.weight": (2,),
        f"{BERT}attention.self.query.weight": (2, 2),
        f"{BERT}intermediate.dense.weight": (3, 2),
        f"{BERT}intermediate.dense.bias": (3,),
        f"{BERT}output.dense.weight": (2, 3),
        "cls.predictions.bias": (5,),
    },
    "t5": {
        "shared.weight": (5, 2),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 1),
        "encoder.block.0.layer.0.layer_norm.weight": (2,),
        "decoder.block.0.layer.2.DenseReluDense.wi.weight": (3, 2),
    },
}


def fetch(name, folder):
    """The files that transformers wrote."""
    for key in GOLDEN.files:
        if key.startswith(f"{name}/files/"):
            (folder / key.rsplit("/", 1)[1]).write_bytes(GOLDEN[key].tobytes())
    return folder


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_network_computes_what_flax_did(name, tmp_path):
    model = huggingface.read(fetch(name, tmp_path))
    built = network(model.options, model.vocabulary_size, model.length)
    (found, _), _ = built.apply(model.params, {}, jnp.asarray(GOLDEN["tokens"]))
    np.testing.assert_allclose(found, GOLDEN[f"{name}/logits"], atol=1e-4, rtol=0)


def test_several_files_are_one_model(tmp_path):
    for name in ("gpt2", "gpt2_sharded"):
        (tmp_path / name).mkdir()
    whole = flax_file.read(fetch("gpt2", tmp_path / "gpt2") / "flax_model.msgpack")
    index = fetch("gpt2_sharded", tmp_path / "gpt2_sharded") / "flax_model.msgpack.index.json"
    parts = flax_file.read(index)
    assert len({*json.loads(index.read_text())["weight_map"].values()}) == 3
    assert whole.keys() == parts.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array, err_msg=name, strict=True)
    values = json.loads(index.read_text())
    for changed, message in (
        ({"a/b": "flax_model-00001-of-00003.msgpack"}, "'a/b' is not in flax_model-00001-of"),
        ({"a": "../flax_model.msgpack"}, "does not name a .msgpack file of its folder"),
        ({"a": "flax_model-00009-of-00003.msgpack"}, "no file flax_model-00009-of-00003.msgpack"),
    ):
        index.write_text(json.dumps({"weight_map": values["weight_map"] | changed}))
        with pytest.raises(ConfigError, match=message):
            flax_file.read(index)


@pytest.mark.parametrize("name", SHAPES)
def test_names_are_those_of_pytorch(name, tmp_path):
    """For the readers of other types of models, too."""
    found = flax_file.read(fetch(name, tmp_path) / "flax_model.msgpack")
    assert {key: found[key].shape for key in SHAPES[name] if key in found} == SHAPES[name]


def written(folder, content):
    path = folder / "flax_model.msgpack"
    path.write_bytes(
        content if isinstance(content, bytes) else flax.serialization.to_bytes(content)
    )
    return path


def test_arrays_of_every_kind(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    tree = {
        "conv": {"kernel": rng.normal(size=(2, 3, 4, 5)).astype(np.float32)},
        "conv1": {"kernel": rng.normal(size=(2, 3, 4)).astype(np.float16)},
        "linear": {"kernel": rng.normal(size=(2, 3)), "bias": np.arange(3)},
        "norm": {
            "scale": jnp.ones(3, jnp.bfloat16),
            "bias": np.float32(2),
            "bool": np.array([True]),
        },
        "empty": {"embedding": np.zeros((0, 4), np.int8)},
    }
    statistics = {"norm": {"mean": np.ones(3, np.float32), "var": np.zeros(3, np.float32)}}
    expected = {
        "conv.weight": tree["conv"]["kernel"].transpose(3, 2, 0, 1),
        "conv1.weight": tree["conv1"]["kernel"].transpose(2, 1, 0),
        "linear.weight": tree["linear"]["kernel"].T,
        "linear.bias": tree["linear"]["bias"],
        "norm.weight": np.asarray(tree["norm"]["scale"]),
        "norm.bias": np.array(2, np.float32),
        "norm.bool": tree["norm"]["bool"],
        "empty.weight": tree["empty"]["embedding"],
    }
    running = {"norm.running_mean": np.ones(3, np.float32)}
    running["norm.running_var"] = np.zeros(3, np.float32)
    for most in (2**30, 16):  # in pieces of so many bytes
        monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", most)
        for content, wanted in (
            (tree, expected),
            ({"params": tree, "batch_stats": statistics}, expected | running),
        ):
            found = flax_file.read(written(tmp_path, content))
            assert found.keys() == wanted.keys()
            for name, array in wanted.items():
                np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)


def extension(shape, dtype, values, kind=1):
    return msgpack.packb({"a": msgpack.ExtType(kind, msgpack.packb((shape, dtype, values)))})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a model of flax"),
        (b"\x81", "cannot be read as a model of flax"),
        (msgpack.packb(3), "it has 3: expected a tree of arrays"),
        (msgpack.packb({"a": 3}), "'a' is 3: expected arrays"),
        (msgpack.packb({1: 3}), "int is not allowed for map key"),
        (extension((2,), "float32", b"1234"), r"shape \[2\], has 4 bytes: expected 8"),
        (extension((-1,), "float32", b"1234"), "has the shape .*expected integers from 0 on"),
        (extension((1,), "object", b"12345678"), "dtype 'object': expected bool, uint8"),
        (extension((1,), "float32", "text"), "not a shape, a dtype and bytes"),
        (extension((1,), "float32", b"1234", 2), "an extension of type 2: expected only arrays"),
        (b"\x81\xa1a" * 600 + b"\xc0", "cannot be read as a model of flax"),
        (b"\x81\xa1a\xdd\x7f\xff\xff\xff", "exceeds max_array_len"),
        (
            flax.serialization.to_bytes({"a": {"scale": np.ones(1), "embedding": np.ones(1)}}),
            "two arrays have the name 'a.weight'",
        ),
        (msgpack.packb({"a": {flax_file.CHUNKED: True, "shape": {}, "chunks": 1}}), "a list is 1"),
    ],
)
def test_a_damaged_file_is_one_clear_error(content, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        flax_file.read(written(tmp_path, content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no file .*flax_model.msgpack: expected a model of fl"):
        flax_file.read(tmp_path / "flax_model.msgpack")
