"""What every network over sequences promises: see `networks/sequence.py`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.networks import decoder, recurrent, tcn
from genjax.nn.functional import functional
from genjax.sampling.decode import generate, stream

V, T = 11, 12
LLAMA = {
    "kv_heads": 2,
    "head_size": 6,
    "activation": "swiglu",
    "norm": "rms",
    "positions": "rotary",
    "bias": False,
    "tied": False,
}
# What Mistral, Qwen 3, GPT-NeoX, Phi and Gemma have, at once.
OTHERS = {"window": 3, "qk_norm": True, "norm_offset": 1.0, "residual": "parallel_shared"}
OTHERS |= {"rotary_share": 0.7, "embed_scale": 4.0, "head_bias": True}
NETWORKS = {
    "gpt": (decoder, {"width": 16, "depth": 2, "heads": 4}),
    "llama": (decoder, {"width": 16, "depth": 2, "heads": 4, **LLAMA, **OTHERS}),
    "vaswani": (
        decoder,
        {"width": 16, "depth": 2, "heads": 2, "norm_first": False, "positions": "sinusoidal"},
    ),
    "rnn": (recurrent, {"width": 16, "depth": 2, "cell": "rnn"}),
    "gru": (recurrent, {"width": 16, "depth": 1, "cell": "gru"}),
    "lstm": (recurrent, {"width": 16, "depth": 2, "cell": "lstm"}),
    "tcn": (tcn, {"width": 16, "depth": 2, "kernel_size": 2}),
}


@pytest.fixture(scope="module", params=NETWORKS)
def networks(request):
    """(apply over tokens, apply over frames): jitted, with random parameters."""
    module, options = NETWORKS[request.param]

    def bound(frames):
        given = {**options, "tied": False} if frames and module is decoder else options
        net = functional(lambda rngs: module.Network(V, T, frames=frames, **given, rngs=rngs))
        params, mutable = net.init(jax.random.key(0))
        noise = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
        params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(next(noise), p.shape), params)

        def apply(x, segment=None, cache=None, capacity=0):
            return net.apply(params, mutable, x, segment=segment, cache=cache, capacity=capacity)[0]

        return jax.jit(apply, static_argnames="capacity")

    return bound(False), bound(True)


def test_step_by_step_equals_all_at_once(networks):
    """Also of a row that is padded on the left, and of several positions a step."""
    apply, _ = networks
    x = jax.random.randint(jax.random.key(2), (2, T), 0, V)
    segment = jnp.ones((2, T), jnp.int32).at[0, :3].set(0)
    whole, _ = apply(x, segment)
    alone, _ = apply(x[:1, 3:])
    chex.assert_trees_all_close(whole[:1, 3:], alone, atol=1e-5, rtol=1e-5)
    first, cache = apply(x[:, :5], segment[:, :5], capacity=T)
    parts = [first]
    for start, stop in ((5, 6), (6, 7), (7, 10), (10, T)):
        logits, cache = apply(x[:, start:stop], cache=cache)
        parts.append(logits)
    found = jnp.concatenate(parts, axis=1)
    chex.assert_trees_all_close(found, whole[:, 4:], atol=1e-5, rtol=1e-5)
    assert bool(jnp.isfinite(whole).all())


def test_decoding_past_the_window_equals_whole_forwards(networks):
    """`generate` and `stream` with the network's own cache, against a whole forward a token."""
    apply, _ = networks
    prompt, new, context = np.array([[2, 7, 1], [-1, 5, 9]]), 8, 6

    def by_hand(row):
        tokens, start = row[row >= 0].tolist(), 0
        for _ in range(new):
            if len(tokens) - start > context:
                start = len(tokens) - context // 2
            window = np.zeros((1, T), np.int32)  # what comes after is unseen
            window[0, : len(tokens) - start] = tokens[start:]
            tokens.append(int(apply(window)[0][0, len(tokens) - start - 1].argmax()))
        return tokens

    found = np.asarray(generate(apply, prompt, max_new_tokens=new, context=context))
    whole = by_hand(prompt[0])
    assert found[0].tolist() == whole
    # The window of a padded row slides at the same column, where its text is shorter.
    assert found[1][1:6].tolist() == by_hand(prompt[1])[:5]
    options = {"decode": lambda ids: "".join(map(chr, ids)), "max_new_tokens": new}
    told = "".join(stream(apply, prompt[0], context=context, **options))
    assert [ord(character) for character in told] == whole[3:]


def test_a_cache_is_reordered_by_its_second_axis(networks):
    apply, _ = networks
    x = jax.random.randint(jax.random.key(3), (2, 6), 0, V)
    _, cache = apply(x[:, :5], capacity=T)
    swapped = jax.tree.map(lambda leaf: leaf[:, ::-1] if leaf.ndim > 1 else leaf, cache)
    expected, _ = apply(x[:, 5:], cache=cache)
    found, _ = apply(x[::-1, 5:], cache=swapped)
    chex.assert_trees_all_close(found[::-1], expected, atol=1e-6)


def test_documents_side_by_side_equal_documents_alone(networks):
    apply, _ = networks
    x = jax.random.randint(jax.random.key(4), (1, T), 0, V)
    parts = ((0, 3), (3, 4), (4, T))
    segment = jnp.asarray([[1] * 3 + [2] + [3] * (T - 4)])
    found, _ = apply(x, segment)
    for start, stop in parts:
        alone, _ = apply(x[:, start:stop])
        chex.assert_trees_all_close(found[:, start:stop], alone, atol=1e-5, rtol=1e-5)


def test_no_position_sees_what_comes_after_it(networks):
    _, apply = networks
    x = jax.random.uniform(jax.random.key(5), (1, T, V))
    slopes = jax.jacrev(lambda x: apply(x)[0][0].sum(-1))(x)[:, 0]  # [T, T, V]
    size = np.abs(np.asarray(slopes)).sum(-1)
    assert not np.triu(size, 1).any()
    assert (np.diag(size) > 0).all()
    assert (np.diag(size, -1) > 0).all()
