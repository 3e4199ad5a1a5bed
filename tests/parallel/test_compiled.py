"""The compiled train steps of the networks: which collectives they make, and of how many bytes.

A CPU's compiler writes a reduce-scatter as an all-reduce of which each device keeps its part.
"""

import jax
import numpy as np
import pytest
from compiled import moved, shapes, step_text

from genjax import config as configs
from genjax.data.alphabets import Characters
from genjax.method import DataSpec, Field
from genjax.training.assemble import assemble

B, T, L, D = 40, 36, 3, 64  # examples, positions, blocks, width
PLAIN = {"diffusion.class_conditional": False, "diffusion.guidance": 1.0}
NETWORKS = {
    "transformer": (
        "llama.py:tiny",
        {
            "dataset.text.length": T,
            "model.lm.width": D,
            "model.lm.depth": L,
            "model.lm.heads": 4,
            "model.lm.kv_heads": 2,
            "model.lm.hidden": 192,
            "model.lm.dropout": 0.0,
            "model.lm.tied": False,
        },
    ),
    "dit": (
        "dit.py:tiny",
        {
            "model.denoiser.width": D,
            "model.denoiser.depth": L,
            "model.denoiser.heads": 4,
        }
        | PLAIN,
    ),
    "unet": (
        "ddpm.py:tiny",
        {
            "model.denoiser.channels": 32,
            "model.denoiser.multipliers": (1,),
            "model.denoiser.attention": (8,),
        }
        | PLAIN,
    ),
}
MESHES = {
    "data": {"mesh.data": 8},
    "fsdp": {"mesh.data": 1, "mesh.fsdp": 8},
    "tensor": {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2},
    "sequence": {"mesh.data": 1, "mesh.fsdp": 4, "mesh.sequence": 2},
}
FEW = 2048  # bytes of scalars: losses, norms, weights


def assembled(network, mesh):
    location, options = NETWORKS[network]
    values = {"batch_size": B, "evals.batch_size": B, "precision": "float32"}
    config = configs.load(f"configs/{location}", options | values | MESHES[mesh])
    sizes = {"train": 100, "validation": 100}
    if network != "transformer":
        field = Field("image", (8, 8, 1), np.dtype(np.uint8))
        return assemble(config, DataSpec("toy", {"image": field}, "image", sizes))
    facts = {"vocabulary_size": 64, "special": {"start": 0, "eos": 1}}
    facts["tokenizer"] = Characters("".join(map(chr, range(65, 127))), {"eos": 1})
    field = Field("text", (T + 1,), np.dtype(np.int32), facts)
    return assemble(config, DataSpec("text", {"token": field}, "token", sizes))


def whole_along_fsdp(params):
    """Bytes on a device of the parameters that `fsdp` splits, when they are gathered."""
    return sum(
        4 * int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.sharding.mesh.shape["fsdp"]
        for leaf in jax.tree.leaves(params)
        if "fsdp" in str(leaf.sharding.spec)
    )


@pytest.mark.parametrize(
    ("network", "mesh"),
    # The U-Net takes long to compile; its gradients on meshes are in test_devices.py.
    [(n, m) for n in NETWORKS for m in MESHES if n != "unet" or m == "fsdp"],
)
def test_collectives_of_a_step(network, mesh):
    run = assembled(network, mesh)
    text, params = step_text(run), run.state.params
    found = moved(text)
    # No device has an activation of all examples, nor, with fsdp, the parameters of all blocks.
    assert not [shape for shape in shapes(text) if len(shape) > 1 and B in shape[:2]]
    leaves = jax.tree.leaves(params) if network != "unet" and mesh != "data" else []
    stacks = {leaf.shape for leaf in leaves if leaf.shape[0] == L and leaf.size > 4096}
    stacks -= {leaf.sharding.shard_shape(leaf.shape) for leaf in leaves}
    assert not stacks & shapes(text)
    # Parameters are gathered twice at most, forward and backward.
    stream = 4 * (B // 4) * T * D  # bytes of what goes from block to block, on a device of `tensor`
    extra = {"tensor": stream, "sequence": 2 * stream}.get(mesh, 0)  # a table's rows; keys
    if (network, mesh) != ("unet", "tensor"):  # which gathers activations as well
        assert found.size["all-gather"] <= 2 * whole_along_fsdp(params) + extra
    # Each gradient is summed once.
    gradients = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    if mesh in ("data", "fsdp"):
        assert set(found.count) == {"all-reduce"} | ({"all-gather"} if mesh == "fsdp" else set())
        assert gradients <= found.size["all-reduce"] <= gradients + FEW
    if (network, mesh) == ("transformer", "tensor"):
        # And the sums of each block: two forward, three backward, as the gate's is its own.
        assert found.size["all-reduce"] <= gradients + 5 * L * stream
        assert not found.count["all-to-all"]
    if mesh == "sequence":
        # Queries, keys and values change places with positions before and after attention.
        assert found.count["all-to-all"] >= 4 * L
        assert found.size["all-reduce"] <= 1.3 * gradients
