"""How the benchmarks hand genjax's parameters to PyTorch: names and shapes of both sides."""

import jax
import numpy as np

from genjax.nn.heads import side_by_side
from genjax.parallel.rules import path_name

STACK = "denoiser/blocks/"  # of a DiT: stacked over its blocks, which torch has one by one
LAYERS = ("norm1", "qkv", "merge", "norm2", "up", "down")  # of a GPT's block


def beside(columns):
    """All queries, then all keys, then all values, from the layout by heads; one query per key."""
    return side_by_side(columns, columns.shape[-2] * columns.shape[-1] // 3)


def flattened(tree):
    """Path -> array; what is stacked over a DiT's blocks is taken apart."""
    named = {path_name(path): p for path, p in jax.tree_util.tree_leaves_with_path(tree)}
    named = {name: beside(p) if name.startswith(f"{STACK}qkv/") else p for name, p in named.items()}
    return {
        name.replace(STACK, f"{STACK}{i}/") if name.startswith(STACK) else name: part
        for name, p in named.items()
        for i, part in enumerate(p if name.startswith(STACK) else [p])
    }


def folded_as_torch(named, side, width):
    """The parameters of a DCGAN: torch folds its smallest images into vectors, channels first.

    Args:
      named: path -> array.
      side: of those images.
      width: their channels.
    """
    named, pixels = dict(named), (side, side, width)
    stem, head = "generator/stem/kernel", "discriminator/head/linear/kernel"
    images = named[stem].reshape(-1, *pixels).transpose(0, 3, 1, 2)
    named[stem] = images.reshape(len(images), -1)
    named[head] = named[head].reshape(pixels).transpose(2, 0, 1).reshape(-1, 1)
    return named


def gpt_as_torch(tree, depth):
    """Name of a parameter of torch_lm.GPT -> array, of genjax's decoder."""
    tree, named = tree["lm"], {}

    def put(name, layer):
        weight = layer["kernel"].T if "kernel" in layer else layer["scale"]
        named[f"{name}.weight"] = weight
        if "bias" in layer:
            named[f"{name}.bias"] = layer["bias"]

    named["embed.weight"], named["positions"] = tree["embed"]["embedding"], tree["positions"]
    put("norm", tree["body"]["norm"])
    for name in LAYERS:
        for i in range(depth):
            layer = tree["body"]["blocks"][name]
            parts = {k: beside(p[i]) if name == "qkv" else p[i] for k, p in layer.items()}
            put(f"blocks.{i}.{name}", parts)
    return named


def written(path, named, arrays):
    """Writes parameters by name, and arrays, images with channels first."""
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    arrays = {n: v.transpose(0, 3, 1, 2) if v.ndim == 4 else v for n, v in arrays.items()}
    np.savez(path, **{name: np.asarray(p) for name, p in named.items()}, **arrays)
