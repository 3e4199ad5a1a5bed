"""CLIPs that transformers and open_clip made (make_clip_import.py): read, and run on bytes."""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data import captions, tokenizers
from genjax.data.alphabets import Bytes
from genjax.interop import clip as imported
from genjax.interop import safetensors
from genjax.method import DataSpec, Field
from genjax.methods import clip
from genjax.networks import text_tower, vit
from genjax.nn.functional import functional
from genjax.training.assemble import assemble, read_pretrained

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "clip_import.npz")
MODELS = ("quick_gelu", "gelu", "open_clip", "open_clip_siglip")


def fetch(name, folder):
    """The files that the peer wrote."""
    for key in GOLDEN.files:
        if key.startswith(f"{name}/files/"):
            (folder / key.rpartition("/")[2]).write_bytes(GOLDEN[key].tobytes())
    return folder


def change(folder, file, *path, **values):
    """Changes keys of an object in a JSON file."""
    whole = json.loads((folder / file).read_text())
    at = whole
    for key in path:
        at = at[key]
    at |= values
    (folder / file).write_text(json.dumps(whole))
    return folder


def field(folder, length=40):
    return captions.field(tokenizers.read(folder), length)


def towers(model, caption):
    """The networks of a description."""
    special = caption.facts["special"]
    ends = {"end": special["eos"], "pad": special["pad"]}
    sizes = model.vocabulary_size, caption.shape[0], model.features
    return clip.Towers(
        functional(lambda rngs: vit.Network((*model.size, 3), sizes[2], rngs=rngs, **model.image)),
        functional(lambda rngs: text_tower.Network(*sizes, rngs=rngs, **ends, **model.text)),
        clip.Options(loss=model.loss),
        1,
    )


def embedded(folder, caption, *fields, length=0):
    """The vectors of golden pictures or texts, the parameters and the towers."""
    made, params = towers(imported.describe(folder), caption), imported.read(folder, length)
    tokens = captions.rows(list(GOLDEN["texts"]), caption, "golden", "train")
    batch = {"image": jnp.asarray(GOLDEN["images"]), "text": jnp.asarray(tokens)}
    batch = {name: batch[name] for name in fields}
    run = jax.jit(lambda params: clip.embed(made, params, {"image": {}, "text": {}}, batch))
    return run(params), params, made


@pytest.mark.parametrize("name", MODELS)
def test_towers_and_loss_are_the_peers_from_bytes_and_strings(name, tmp_path):
    caption = field(fetch(name, tmp_path))
    vectors, params, made = embedded(tmp_path, caption, "image", "text")
    for tower in ("image", "text"):
        shapes = jax.eval_shape(getattr(made, tower).init, jax.random.key(0))[0]
        assert jax.tree.map(jnp.shape, params[tower]) == jax.tree.map(jnp.shape, shapes)
        np.testing.assert_allclose(vectors[tower], GOLDEN[f"{name}/{tower}_vectors"], atol=2e-5)
    logits = np.exp(params["similarity"]["scale"]) * clip.cosines(vectors)
    logits = logits + params["similarity"].get("bias", 0.0)
    np.testing.assert_allclose(logits, GOLDEN[f"{name}/logits"], atol=1e-4)
    loss = clip.pair_losses(made.options, vectors, params["similarity"]).mean()
    np.testing.assert_allclose(loss, GOLDEN[f"{name}/loss"], atol=1e-4)
    assert np.abs(np.diff(GOLDEN[f"{name}/logits"], axis=0)).max() > 0.5


@pytest.mark.parametrize("name", ["quick_gelu", "gelu"])
def test_the_vectors_of_tokens_are_the_peers_up_to_the_end_of_a_text(name, tmp_path):
    caption = field(fetch(name, tmp_path))
    made, params = towers(imported.describe(tmp_path), caption), imported.read(tmp_path, 0)
    tokens = jnp.asarray(captions.rows(list(GOLDEN["texts"]), caption, "golden", "train"))
    vectors, seen = clip.encode_text(made, params, {"text": {}}, tokens)
    end, theirs = caption.facts["special"]["eos"], GOLDEN[f"{name}/token_vectors"]
    lengths = [row.index(end, 1) + 1 for row in np.asarray(tokens).tolist()]
    assert len(set(lengths)) > 2
    np.testing.assert_array_equal(seen.sum(1), lengths)
    np.testing.assert_allclose(vectors[seen], theirs[np.asarray(seen)], atol=5e-5)


def test_activations_and_normalisation_matter(tmp_path):
    caption = field(fetch("quick_gelu", tmp_path))
    change(tmp_path, "config.json", "text_config", hidden_act="gelu")
    vectors = embedded(tmp_path, caption, "text")[0]
    assert np.abs(vectors["text"] - GOLDEN["quick_gelu/text_vectors"]).max() > 1e-3
    fetch("quick_gelu", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()  # then CLIP's own
    vectors = embedded(tmp_path, caption, "image")[0]
    assert np.abs(vectors["image"] - GOLDEN["quick_gelu/image_vectors"]).max() > 1e-3
    assert imported.describe(tmp_path).mean == imported.MEAN


def test_shorter_texts_need_fewer_positions(tmp_path):
    caption = field(fetch("quick_gelu", tmp_path), 25)
    vectors = embedded(tmp_path, caption, "text", length=25)[0]
    np.testing.assert_allclose(vectors["text"], GOLDEN["quick_gelu/text_vectors"], atol=2e-5)


def test_the_tokenizer_encodes_and_decodes_as_the_peers(tmp_path):
    caption = field(fetch("quick_gelu", tmp_path))
    own = caption.facts["tokenizer"]
    assert (own.special["bos"], own.special["eos"], own.special["pad"]) == (518, 519, 519)
    rows = captions.rows(list(GOLDEN["texts"]), caption, "golden", "train")
    np.testing.assert_array_equal(rows, GOLDEN["tokens"])
    assert [own.decode(row) for row in rows] == list(GOLDEN["read"])
    cat = own.encode("cat")
    assert b"".join(own.spelling[i] for i in cat) == b"cat "


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("gelu", (("config.json",), {"model_type": "siglip"}), r"model_type.*expected .*clip"),
        ("gelu", (("config.json", "text_config"), {"layer_norm_eps": 1e-6}), "layer_norm_eps"),
        ("gelu", (("config.json", "vision_config"), {"hidden_act": "mish"}), "hidden_act"),
        ("gelu", (("config.json", "vision_config"), {"num_hidden_layers": 4}), "3 missing|missing"),
        ("gelu", (("preprocessor_config.json",), {"image_std": [0, 1, 1]}), "image_std"),
        (
            "open_clip",
            (("open_clip_config.json", "model_cfg", "vision_cfg"), {"timm_model_name": "vit"}),
            r"vision_cfg\.timm_model_name.*our towers do not compute that",
        ),
        (
            "open_clip",
            (("open_clip_config.json", "model_cfg", "vision_cfg"), {"layers": [3, 4, 6, 3]}),
            r"layers.*a positive integer",
        ),
        ("open_clip", (("open_clip_config.json", "model_cfg"), {"init_logit_bias": -1}), "bias"),
    ],
)
def test_what_cannot_be_read_is_refused(name, changes, says, tmp_path):
    change(fetch(name, tmp_path), *changes[0], **changes[1])
    with pytest.raises(ConfigError, match=says):
        imported.read(tmp_path)


def spec(folder, **changes):
    """Data of the golden pictures and texts."""
    image = Field("image", (12, 12, 3), np.dtype(np.uint8))
    fields = {"image": image, "text": field(folder)} | changes
    return DataSpec("toy", fields, "image", {"train": 64, "validation": 64})


@pytest.mark.parametrize("name", ["gelu", "open_clip_siglip"])
def test_a_config_takes_everything_from_the_weights(name, tmp_path):
    config = configs.load("configs/import_clip.py", {"weights": str(fetch(name, tmp_path))})
    assert (config.dataset.image_size, config.dataset.text.length) == ((12, 12), 40)
    assert config.dataset.text.tokenizer == str(tmp_path / "tokenizer.json")
    run = assemble(config, spec(tmp_path), devices=jax.devices()[:1])
    assert run.total_steps == 0
    params, _ = read_pretrained(run)
    jax.tree.map(np.testing.assert_array_equal, params, imported.read(tmp_path))


@pytest.mark.parametrize(
    ("keys", "changes", "says"),
    [
        ({}, {"image": Field("image", (8, 8, 3), np.dtype(np.uint8))}, r"images of shape=.*12, 12"),
        ({}, {"text": captions.field(Bytes({"eos": 256}), 40)}, r"vocabulary of the cap.*520 tok"),
        ({"clip.loss": "siglip"}, {}, r"clip\.loss='siglip': expected infonce"),
        ({"dataset.text.length": 41}, {}, r"text\.length=41: expected at most 40"),
    ],
)
def test_data_that_the_weights_are_not_for_are_refused(keys, changes, says, tmp_path):
    given = {"weights": str(fetch("gelu", tmp_path)), **keys}
    config = configs.load("configs/import_clip.py", given)
    with_length = {"text": field(tmp_path, config.dataset.text.length)}
    method = clip.build(config, spec(tmp_path, **{**with_length, **changes}))
    with pytest.raises(ConfigError, match=says):
        method.pretrained()


def test_a_run_of_imported_weights_outlives_their_folder(tmp_path):
    config = configs.load("configs/import_clip.py", {"weights": str(fetch("gelu", tmp_path))})
    text = {"text": field(tmp_path, config.dataset.text.length)}
    described = spec(tmp_path, **text)
    config.weights = str(tmp_path / "moved")
    method = clip.build(config, described)
    with pytest.raises(ConfigError, match="there is no such folder"):
        method.pretrained()


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no such folder"):
        imported.describe(tmp_path / "none")
    fetch("open_clip", tmp_path)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no open_clip_model\.safetensors and no open_clip_pyt"):
        imported.read(tmp_path)


def test_half_precision_is_read(tmp_path):
    path = fetch("gelu", tmp_path) / "model.safetensors"
    found = {name: np.asarray(a, np.float16) for name, a in safetensors.read(path).items()}
    whole = imported.read(tmp_path)
    safetensors.write(path, found)
    for a, b in zip(*map(jax.tree.leaves, (imported.read(tmp_path), whole)), strict=True):
        assert np.asarray(a).dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=5e-3)
