"""CLIP's towers and loss: transformers' with the same weights; padding changes nothing."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genjax.methods import clip
from genjax.networks import text_tower, vit
from genjax.nn.functional import functional
from genjax.nn.heads import grouped

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "clip.npz")
END, PAD, VALUES, LENGTH = 1, 0, 14, 7
TEXTS = jnp.array([[5, 6, 7, 8, 1], [5, 1, 0, 0, 0], [9, 9, 2, 1, 0]])
PEER = {"causal": True, "depth": 2, "heads": 2, "hidden": 24, "width": 16}
PEER |= {"activation": "gelu_exact"}


def text_network(features=6, **options):
    options = {"width": 8, "depth": 2, "heads": 2, "init_std": 0.5} | options

    def build(rngs: nnx.Rngs):
        return text_tower.Network(VALUES, LENGTH, features, end=END, pad=PAD, rngs=rngs, **options)

    return functional(build)


def image_network(**options):
    return functional(lambda rngs: vit.Network((12, 12, 3), 10, rngs=rngs, **options))


def blocks(tower, depth):
    """The peer's blocks, stacked, in our names."""

    def one(i):
        def get(name, end="weight"):
            return GOLDEN[f"weights/{tower}.encoder.layers.{i}.{name}.{end}"]

        def linear(name):
            return {"kernel": get(name).T, "bias": get(name, "bias")}

        parts = [f"self_attn.{x}_proj" for x in "qkv"]
        heads, width = (2, 16) if tower == "text_model" else (3, 12)
        kernel = np.concatenate([get(x).T for x in parts], axis=1)
        bias = np.concatenate([get(x, "bias") for x in parts])
        norms = {
            f"norm{n}": {"scale": get(f"layer_norm{n}"), "bias": get(f"layer_norm{n}", "bias")}
            for n in (1, 2)
        }
        qkv = {"kernel": grouped(kernel, heads, width), "bias": grouped(bias, heads, width)}
        return {
            **norms,
            "qkv": qkv,
            "merge": linear("self_attn.out_proj"),
            "up": linear("mlp.fc1"),
            "down": linear("mlp.fc2"),
        }

    return jax.tree.map(lambda *x: np.stack(x), *map(one, range(depth)))


def norm(name):
    return {"scale": GOLDEN[f"weights/{name}.weight"], "bias": GOLDEN[f"weights/{name}.bias"]}


def of_text():
    embeddings = "weights/text_model.embeddings"
    return {
        "embed": {"embedding": GOLDEN[f"{embeddings}.token_embedding.weight"]},
        "positions": GOLDEN[f"{embeddings}.position_embedding.weight"],
        "body": {
            "blocks": blocks("text_model", 2),
            "norm": norm("text_model.final_layer_norm"),
        },
        "out": {"kernel": GOLDEN["weights/text_projection.weight"].T},
    }


def of_image():
    embeddings = "weights/vision_model.embeddings"
    patch = GOLDEN[f"{embeddings}.patch_embedding.weight"]
    return {
        "patch": {"kernel": patch.transpose(2, 3, 1, 0).reshape(-1, len(patch))},
        "class_token": GOLDEN[f"{embeddings}.class_embedding"],
        "positions": GOLDEN[f"{embeddings}.position_embedding.weight"],
        "norm": norm("vision_model.pre_layrnorm"),
        "body": {
            "blocks": blocks("vision_model", 3),
            "norm": norm("vision_model.post_layernorm"),
        },
        "out": {"kernel": GOLDEN["weights/visual_projection.weight"].T},
    }


def test_vectors_and_loss_are_the_peers():
    options = {"width": 12, "depth": 3, "heads": 3, "hidden": 20, "activation": "gelu_exact"}
    found = {}
    for name, net, params, x in (
        ("image", image_network(**options), of_image(), GOLDEN["image"]),
        ("text", text_network(10, **PEER), of_text(), GOLDEN["tokens"]),
    ):
        expected = jax.eval_shape(net.init, jax.random.key(0))[0]
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
        found[name] = clip.unit(jax.jit(lambda p, x, net=net: net.apply(p, {}, x)[0])(params, x))
        np.testing.assert_allclose(found[name], GOLDEN[f"{name}_vectors"], atol=2e-5, err_msg=name)
    similarity = {"scale": jnp.float32(GOLDEN["weights/logit_scale"])}
    logits = jnp.exp(similarity["scale"]) * clip.cosines(found)
    np.testing.assert_allclose(logits, GOLDEN["logits"], atol=2e-4)
    losses = clip.pair_losses(clip.Options(), found, similarity)
    np.testing.assert_allclose(losses.mean(), GOLDEN["loss"], atol=2e-4)


def test_which_tokens_are_seen():
    x = jnp.array([[5, 1, 3, 1], [5, 6, 7, 8], [1, 5, 1, 0], [5, 0, 0, 0]])
    expected = [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]
    np.testing.assert_array_equal(text_tower.seen(x, END, PAD), np.array(expected, bool))
    filled = text_tower.seen(jnp.array([[5, 1, 1, 1]]), END, END)  # no token of its own for that
    np.testing.assert_array_equal(filled, [[True, True, False, False]])


def test_a_text_that_was_cut_ends_nevertheless():
    x = jnp.array([[5, 6, 7, 8], [1, 5, 6, 7], [5, 6, 1, 4], [5, 6, 7, 1], [5, 6, 0, 0]])
    expected = [[5, 6, 7, 1], [1, 5, 6, 1], [5, 6, 1, 4], [5, 6, 7, 1], [5, 6, 0, 0]]
    np.testing.assert_array_equal(text_tower.ended(x, END, PAD), expected)
    net = text_network(depth=1)
    params, mutable = net.init(jax.random.key(0))
    of_cut, of_ended = (net.apply(params, mutable, jnp.array([t]))[0] for t in (x[0], expected[0]))
    np.testing.assert_array_equal(of_cut, of_ended)


@pytest.mark.parametrize(("pool", "causal"), [("end", False), ("end", True), ("mean", False)])
def test_padding_changes_nothing_and_order_does(pool, causal):
    net = text_network(pool=pool, causal=causal)
    params, mutable = net.init(jax.random.key(0))
    apply = jax.jit(lambda x: net.apply(params, mutable, x)[0])
    plain = np.asarray(apply(TEXTS))
    longer = apply(jnp.pad(TEXTS, ((0, 0), (0, 2)), constant_values=PAD))
    np.testing.assert_allclose(longer, plain, atol=1e-5)
    other = apply(TEXTS.at[1, 2:].set(jnp.array([4, 1, 3])))
    np.testing.assert_allclose(other, plain, atol=1e-5)
    changed = np.asarray(apply(TEXTS.at[1, 0].set(4)))
    assert np.abs(changed[1] - plain[1]).max() > 0.05
    np.testing.assert_allclose(changed[::2], plain[::2], atol=1e-5)
    assert np.abs(apply(TEXTS[:, jnp.array([1, 0, 2, 3, 4])])[0] - plain[0]).max() > 0.05


def test_a_mean_of_patches_has_no_token_of_its_own():
    net = image_network(width=8, depth=1, heads=2, pool="mean", patch_size=6)
    params, _ = net.init(jax.random.key(0))
    assert "class_token" not in params
    assert params["positions"].shape == (4, 8)
    assert net.apply(params, {}, jnp.zeros((2, 12, 12, 3)))[0].shape == (2, 10)
