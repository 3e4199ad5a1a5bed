"""Models that transformers made (make_encoder_decoders.py): read, run, decoded, written back.

To let transformers load folders of ours:

    python tests/interop/test_encoder_decoders.py FOLDER
    /path/to/parity/bin/python tests/golden/make_encoder_decoders.py FOLDER
"""

from __future__ import annotations

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.data.alphabets import Characters
from genjax.interop import encoder_decoder, safetensors
from genjax.method import DataSpec, Field
from genjax.methods import seq2seq
from genjax.networks import encoder_decoder as network
from genjax.nn.functional import functional
from genjax.nn.positions import relative_bucket
from genjax.sampling import logits as processors
from genjax.sampling.beam import beam_search

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "encoder_decoders.npz")
MODELS = [name.removesuffix("/logits") for name in GOLDEN.files if name.endswith("/logits")]
SEARCHED = [name.removesuffix("/greedy") for name in GOLDEN.files if name.endswith("/greedy")]
SOURCE, TARGET = (jnp.asarray(GOLDEN[name], jnp.int32) for name in ("source", "target"))
SEEN = jnp.arange(SOURCE.shape[1]) < GOLDEN["lengths"][:, None]
V, PAD, EOS, NEW = 23, 0, 1, 8


def fetch(name, folder):
    """The folder that transformers wrote."""
    folder.mkdir(exist_ok=True)
    for key in GOLDEN.files:
        if key.startswith(f"{name}/files/"):
            (folder / key.rsplit("/", 1)[1]).write_bytes(GOLDEN[key].tobytes())
    return folder


def built(model):
    sizes = (model.vocabulary_size, model.length, model.length)
    return functional(lambda rngs: network.Network(*sizes, **model.options, rngs=rngs))


def logits(model):
    net = built(model)
    return jax.jit(lambda p: net.apply(p, {}, TARGET, source=SOURCE, seen=SEEN)[0][0])(model.params)


@pytest.fixture(scope="module", params=MODELS)
def imported(request, tmp_path_factory):
    """(name, model, folder, logits)."""
    folder = fetch(request.param, tmp_path_factory.mktemp(request.param) / "folder")
    model = encoder_decoder.read(folder)
    return request.param, model, folder, logits(model)


def test_the_network_computes_what_transformers_does(imported):
    name, model, folder, found = imported
    shapes, _ = jax.eval_shape(built(model).init, jax.random.key(0))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), model.params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    np.testing.assert_allclose(found, GOLDEN[f"{name}/logits"], atol=1e-4, rtol=0)
    assert model.options["tied"] == encoder_decoder.tied(folder) == (name != "t5_untied")
    assert model.start == (EOS if name == "bart" else PAD)


def test_what_is_written_has_the_same_tensors_and_is_read_back(imported, tmp_path):
    _, model, folder, _ = imported
    special = {"eos": EOS, "pad": PAD}
    sizes = (model.vocabulary_size, (model.length, model.length), model.start)
    encoder_decoder.write(tmp_path, model.options, *sizes, model.params, special)
    theirs, ours = (safetensors.read(path / "model.safetensors") for path in (folder, tmp_path))
    assert theirs.keys() == ours.keys()
    for key, value in ours.items():
        expected = np.array(theirs[key])
        if "embed_positions" in key:
            expected[: encoder_decoder.OFFSET] = 0  # rows that are never used
        np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=key)
    again = encoder_decoder.read(tmp_path)
    same = again.options, again.vocabulary_size, again.length, again.start
    assert same == (model.options, model.vocabulary_size, model.length, model.start)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again.params, model.params
    )


def test_buckets_of_offsets_are_those_of_transformers():
    offsets = jnp.arange(-300, 301)
    for both in (True, False):
        found = relative_bucket(offsets, 32, 128, both)
        np.testing.assert_array_equal(found, GOLDEN[f"buckets/{both}"])


def model_of(name, folder):
    """The imported model for `sample`: the method, and its parameters."""
    imported = encoder_decoder.read(fetch(name, folder / name))
    special = {"start": EOS, "eos": EOS, "pad": PAD}
    facts = {"vocabulary_size": V, "special": special, "tokenizer": Characters("ab", special)}
    fields = {
        key: Field("text", (length,), np.dtype(np.int32), facts)
        for key, length in (("source", 9), ("target", NEW))
    }
    spec = DataSpec("made", fields, "target", {})
    pairs = seq2seq.Pairs(spec, "source", None)
    options = seq2seq.Options(start=imported.start)
    method = seq2seq.from_network(built(imported), options, pairs, imported.length, network.RULES)
    return method, {"seq2seq": imported.params}


@pytest.mark.parametrize("name", SEARCHED)
def test_greedy_and_beam_search_find_what_transformers_does(name, tmp_path):
    method, params = model_of(name, tmp_path)
    found = method.sample(params, {"seq2seq": {}}, None, 3, {"source": SOURCE}, max_new_tokens=NEW)
    np.testing.assert_array_equal(found, GOLDEN[f"{name}/greedy"])
    model = method.sample.args[0]
    apply, prompt = model.start(params, {"seq2seq": {}}, 3, {"source": SOURCE}, 3)
    chain = processors.chain(processors.Options(banned=((PAD,),)), eos=(EOS,), prompt=1)
    for case, options in (("stop", {"early_stopping": True}), ("long", {"length_penalty": 2.0})):
        tokens, scores = beam_search(
            *(apply, prompt),
            beams=3,
            max_new_tokens=NEW,
            context=model.context,
            eos=EOS,
            processors=chain,
            **options,
        )
        np.testing.assert_allclose(scores, GOLDEN[f"{name}/{case}/scores"], atol=1e-4)
        np.testing.assert_array_equal(tokens, GOLDEN[f"{name}/{case}/tokens"])


def test_tensors_that_do_not_fit(tmp_path):
    folder = fetch("bart", tmp_path / "bart")
    path = folder / "model.safetensors"
    tensors = {key: np.array(value) for key, value in safetensors.read(path).items()}
    kernel = tensors.pop("model.decoder.layers.1.encoder_attn.k_proj.weight")
    safetensors.write(path, {**tensors, "extra": kernel}, {})
    with pytest.raises(ConfigError, match=r"\(1 missing, 1 unexpected, 0 mismatched\)") as caught:
        encoder_decoder.read(folder)
    assert "decoder.layers.1.encoder_attn.k_proj.weight  [16, 16]" in str(caught.value)
    tensors["model.encoder.embed_tokens.weight"] = tensors["model.shared.weight"] + 1
    safetensors.write(path, tensors, {})
    with pytest.raises(ConfigError, match=r"embed_tokens.weight=.* expected that of shared.weight"):
        encoder_decoder.read(folder)


@pytest.mark.parametrize(
    ("name", "values", "match"),
    [
        ("bart", {"model_type": "pegasus"}, "model_type='pegasus': expected one of t5, mt5, bart"),
        ("bart", {"decoder_attention_heads": 4}, "decoder_attention_heads=4: expected 2"),
        ("bart", {"normalize_before": True}, "normalize_before=True: expected False"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings"),
        ("t5", {"feed_forward_proj": "gated-tanh"}, "feed_forward_proj='gated-tanh'"),
        ("t5", {"decoder_start_token_id": 99}, "decoder_start_token_id=99: expected 0 to 22"),
        ("t5", {"num_layers": 9999}, "depth=9999: expected at most"),
        ("t5", {"quantization_config": {}}, "quantization_config={}: expected float weights"),
    ],
)
def test_models_that_the_network_does_not_compute(tmp_path, name, values, match):
    folder = fetch(name, tmp_path / name)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(ConfigError, match=match):
        encoder_decoder.read(folder)


def test_networks_that_no_format_describes(tmp_path):
    with pytest.raises(ConfigError, match=r"t5 needs norm='rms' \(it is 'layer'\).*bart needs"):
        encoder_decoder.write(tmp_path, {"norm": "layer"}, V, (8, 8), 0, {}, {})
    with pytest.raises(ConfigError, match=r"there is no config\.json"):
        encoder_decoder.read(tmp_path)


def write_all(folder):
    """Folders for transformers to load, with logits of ours."""
    for name in MODELS:
        model = encoder_decoder.read(fetch(name, folder / "theirs"))
        sizes = (model.vocabulary_size, (model.length, model.length), model.start)
        special = {"eos": EOS, "pad": PAD}
        encoder_decoder.write(folder / name, model.options, *sizes, model.params, special)
        np.save(folder / name / "logits.npy", logits(model))
    for path in (folder / "theirs").iterdir():
        path.unlink()
    (folder / "theirs").rmdir()


if __name__ == "__main__":
    write_all(pathlib.Path(sys.argv[1]))
