"""Encoders that transformers made (make_bert.py), read, run and written back.

What is written here is what transformers loaded when it made the golden file: the same config.json
and the same bytes. To let it load a folder of ours itself, with a tokenizer too:

    python tests/interop/test_bert.py FOLDER
    /path/to/parity/bin/python tests/golden/make_bert.py FOLDER
"""

from __future__ import annotations

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config as base
from genjax.config import ConfigError
from genjax.data import alphabets, captions, subwords, tokenizers
from genjax.interop import bert, safetensors
from genjax.method import DataSpec
from genjax.methods import masked_lm
from genjax.networks import encoder
from genjax.nn.functional import functional

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "bert.npz")
MODELS = [name.removesuffix("/hidden") for name in GOLDEN.files if name.endswith("/hidden")]
WRITTEN = [name.removesuffix("/exported") for name in GOLDEN.files if name.endswith("/exported")]


def fetch(name, folder):
    """The files that transformers wrote."""
    for file in ("config.json", "model.safetensors"):
        (folder / file).write_bytes(GOLDEN[f"{name}/files/{file}"].tobytes())
    return folder


def change(folder, **values):
    """Changes keys of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def tensors(folder):
    return {name: np.array(a) for name, a in safetensors.read(folder / "model.safetensors").items()}


def network(model, head):
    sizes = model.vocabulary_size, model.length
    return functional(lambda rngs: encoder.Network(*sizes, head=head, **model.options, rngs=rngs))


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("name", MODELS)
def test_the_network_computes_what_transformers_does(name, tmp_path):
    head = f"{name}/logits" in GOLDEN
    model = bert.read(fetch(name, tmp_path), head)
    built = network(model, "tokens" if head else "none")
    shapes, _ = jax.eval_shape(built.init, jax.random.key(0))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), model.params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    ids, mask, types = (
        jnp.asarray(GOLDEN[f"{name}/{key}"])
        for key in ("input_ids", "attention_mask", "token_type_ids")
    )
    run = jax.jit(lambda params: built.apply(params, {}, ids, token_type=types, segment=mask)[0])
    out, seen = run(model.params), np.asarray(mask) > 0
    np.testing.assert_allclose(out.hidden[seen], GOLDEN[f"{name}/hidden"][seen], atol=2e-5)
    if head:
        np.testing.assert_allclose(out.logits[seen], GOLDEN[f"{name}/logits"][seen], atol=1e-4)
        without = bert.read(tmp_path, head=False)
        assert set(model.params) - set(without.params) == {"transform", "head_norm", "head"}
        same(without.params, {k: model.params[k] for k in without.params})


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_is_what_transformers_loaded(name, tmp_path):
    model = bert.read(fetch(name, tmp_path))
    again, expected = tmp_path / "new" / "folder", json.loads(str(GOLDEN[f"{name}/exported"]))
    bert.write(again, *model[:4], special_tokens={"pad": expected["pad_token_id"]})
    assert json.loads((again / "config.json").read_text()) == expected
    assert sorted(path.name for path in again.iterdir()) == ["config.json", "model.safetensors"]
    written = (again / "model.safetensors").read_bytes()
    assert written == GOLDEN[f"{name}/files/model.safetensors"].tobytes()
    second = bert.read(again)
    assert second[:3] == model[:3]
    same(second.params, model.params)


@pytest.mark.parametrize("name", ["roberta", "bert_bare"])
def test_others_are_written_as_bert(name, tmp_path):
    head = name == "roberta"
    model = bert.read(fetch(name, tmp_path), head)
    bert.write(tmp_path / "new", *model[:4])
    again = bert.read(tmp_path / "new", head)
    assert again[:3] == model[:3]
    same(again.params, model.params)
    kind = json.loads((tmp_path / "new" / "config.json").read_text())["architectures"]
    assert kind == ["BertForMaskedLM" if head else "BertModel"]


def test_older_names_buffers_and_what_repeats_the_embedding(tmp_path):
    expected = bert.read(fetch("bert", tmp_path))
    found = tensors(tmp_path)
    names = {n: n.replace("LayerNorm.weight", "LayerNorm.gamma") for n in found}
    names = {n: o.replace("LayerNorm.bias", "LayerNorm.beta") for n, o in names.items()}
    older = {names[n].removeprefix("bert."): a for n, a in found.items()}
    older["cls.predictions.decoder.weight"] = older["embeddings.word_embeddings.weight"]
    older["cls.predictions.decoder.bias"] = older["cls.predictions.bias"]
    older["cls.seq_relationship.weight"] = older["pooler.dense.bias"] = np.ones(3, np.float32)
    older["embeddings.position_ids"] = np.arange(12)
    path = tmp_path / "model.safetensors"
    safetensors.write(path, older)
    same(bert.read(tmp_path).params, expected.params)
    older["cls.predictions.decoder.weight"] = older["cls.predictions.decoder.weight"] + 1
    safetensors.write(path, older)
    with pytest.raises(ConfigError, match=r"decoder\.weight.*they are tied"):
        bert.read(tmp_path)


def test_a_network_without_types_is_written_with_one_of_zeros(tmp_path):
    model = bert.read(fetch("bert_other", tmp_path))
    params = {name: tree for name, tree in model.params.items() if name != "types"}
    bert.write(tmp_path / "new", model.options | {"token_types": 0}, *model[1:3], params)
    again = bert.read(tmp_path / "new")
    assert again.options["token_types"] == 1
    assert not again.params["types"]["embedding"].any()
    same(again.params | {"types": 0}, params | {"types": 0})


def test_a_mask_is_added_to_a_tokenizer_without_one(tmp_path):
    made = subwords.train("wordpiece", ["the theme of the thesis " * 20], 300, end=True)
    model = bert.read(fetch("bert", tmp_path))
    size = made.vocabulary_size
    special = {"mask": size, **made.special}
    bert.write(tmp_path / "a", *model[:4], made.to_json(), special)
    found = tokenizers.read(tmp_path / "a")
    assert found.vocabulary_size == size + 1
    assert found.special == {"eos": made.special["eos"], "mask": size}
    assert found.encode("the theme").tolist() == made.encode("the theme").tolist()
    bert.write(tmp_path / "b", *model[:4], found.to_json(), found.special)
    again = tokenizers.read(tmp_path / "b")
    assert again == found


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"hidden_act": "gelu_square"}, "hidden_act"),
        ({"num_attention_heads": 5}, "a divisor of hidden_size=24"),
        ({"num_hidden_layers": 90_000}, "num_hidden_layers"),
        ({"num_hidden_layers": 1}, r"16 unexpected"),
        ({"vocab_size": 60}, r"2 mismatched"),
        ({"model_type": "roberta", "max_position_embeddings": 2}, "positions"),
    ],
)
def test_what_cannot_be_read_is_refused(values, expected, tmp_path):
    with pytest.raises(ConfigError, match=expected):
        bert.read(change(fetch("bert", tmp_path), **values))


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("electra_generator", {"hidden_act": "relu"}, "hidden_act.*gelu, as in the head"),
        ("distilbert", {"tie_weights_": False}, "tie_weights_"),
        ("distilbert", {"n_heads": 5}, "n_heads=5.*dim=24"),
        ("distilbert", {"n_layers": 1}, "16 unexpected"),
    ],
)
def test_what_other_types_cannot_be_is_refused(name, values, expected, tmp_path):
    with pytest.raises(ConfigError, match=expected):
        bert.read(change(fetch(name, tmp_path), **values))


def test_a_model_that_only_embeds_gets_a_new_head_and_keeps_its_vectors(tmp_path, caplog):
    folder = fetch("bert_bare", tmp_path)
    model = bert.read(folder)
    assert "no head that predicts tokens" in caplog.text
    same(model.params, bert.read(folder, head=False).params)
    own = alphabets.Characters("abcdefgh", {"eos": 8})
    (folder / "tokenizer.json").write_text(own.to_json())
    config = base.load("configs/import_bert.py", {"weights": str(folder)})
    field = captions.field(own, 6)
    method = masked_lm.build(config, DataSpec("toy", {"token": field}, "token", {"train": 1}))
    params = method.pretrained()[0]
    shapes = jax.eval_shape(method.init, jax.random.key(0), {})[0]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    text = jnp.asarray([[0, 3, 8, 8, 8, 8], [1, 2, 4, 0, 7, 8]])
    vectors, seen = method.text_encoder.encode(params, {"encoder": {}}, text)
    np.testing.assert_array_equal(seen.sum(1), [3, 6])
    plain = network(model, "none").apply(model.params, {}, text, segment=seen.astype(int))[0]
    np.testing.assert_allclose(vectors[seen], plain.hidden[seen], atol=1e-5)
    assert method.text_encoder.field == field
    with pytest.raises(ConfigError, match="no such folder"):
        bert.describe(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"norm_first": True}, "norm_first=False"),
        ({"positions": "rotary"}, "positions='learned'"),
        ({"activation": "geglu"}, "activation="),
        ({"embedding_width": 8}, "embedding_width=0 or 24"),
        ({"widths": 8}, "widths"),
        ({"hidden": 44}, "do not fit the options"),
    ],
)
def test_what_cannot_be_written_is_refused(options, expected, tmp_path):
    model = bert.read(fetch("bert", tmp_path))
    with pytest.raises(ConfigError, match=expected):
        bert.write(tmp_path / "new", model.options | options, *model[1:4])
    assert not (tmp_path / "new").exists()


def main(folder: pathlib.Path) -> None:
    """Writes a model with a tokenizer for transformers to load."""
    made = subwords.train("wordpiece", ["the theme of the thesis " * 20], 300, end=True)
    place = folder / "ours"
    (place / "golden").mkdir(parents=True)
    model = bert.read(fetch("bert", place / "golden"))
    size = made.vocabulary_size + 1
    net = model._replace(vocabulary_size=size)
    params, _ = network(net, "tokens").init(jax.random.key(0))
    bert.write(place, *net[:3], params, made.to_json(), {"mask": size - 1, **made.special})
    ids, mask = (jnp.asarray(GOLDEN[f"bert/{n}"]) for n in ("input_ids", "attention_mask"))
    ids = ids % size
    out, _ = network(net, "tokens").apply(params, {}, ids, segment=mask)
    zeros = np.zeros_like(mask)
    np.savez(place / "inputs.npz", input_ids=ids, attention_mask=mask, token_type_ids=zeros)
    np.save(place / "logits.npy", out.logits)
    text = "the theme of a thesis"
    tokens = made.encode(text).tolist()
    (place / "text.json").write_text(json.dumps({"text": text, "tokens": tokens}))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
