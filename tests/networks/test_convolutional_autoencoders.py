"""vq_conv and vae_conv against PyTorch (tests/golden/make_convolutional_autoencoders.py)."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from genjax.networks import vae_conv, vq_conv
from genjax.nn.functional import functional

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "convolutional_autoencoders.npz")
VQ = {"channels": 16, "halvings": 2, "blocks": 2}
VAE = {"channels": 4, "hidden": 12, "num_classes": 3}
NETWORKS = {
    "vq/encoder": lambda rngs: vq_conv.Encoder((12, 8, 3), 5, **VQ, rngs=rngs),
    "vq/decoder": lambda rngs: vq_conv.Decoder((12, 8, 3), 5, **VQ, rngs=rngs),
    "vae/encoder": lambda rngs: vae_conv.Encoder((16, 16, 3), 6, **VAE, rngs=rngs),
    "vae/decoder": lambda rngs: vae_conv.Decoder(6, (16, 16, 3), **VAE, rngs=rngs),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_pytorchs(name):
    net, head = functional(NETWORKS[name]), f"{name}/params/"
    params = unflatten_dict(
        {tuple(k.removeprefix(head).split("/")): GOLDEN[k] for k in GOLDEN if k.startswith(head)}
    )
    expected = jax.tree.map(jnp.shape, jax.eval_shape(net.init, jax.random.key(0))[0])
    assert jax.tree.map(jnp.shape, params) == expected
    x = GOLDEN[f"{name}/x"]
    label = (jnp.arange(len(x)) % 3,) if name.startswith("vae") else ()
    made, _ = jax.jit(net.apply)(params, {}, x, *label)
    if name == "vae/encoder":
        made = jnp.concatenate(made, -1)
    assert made.dtype == jnp.float32
    np.testing.assert_allclose(made, GOLDEN[f"{name}/made"], atol=2e-6)
