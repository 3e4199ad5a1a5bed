"""The runs of benchmarks/gpu.sh on genjax's side: their configs, and numbers to feed them.

Parameters and batches are drawn by numpy, so that every machine has the same ones.
"""

import zlib
from pathlib import Path

import jax
import numpy as np
from racing import DISCRETE

from genjax import config as configs
from genjax.data import sources
from genjax.data.alphabets import Bytes
from genjax.method import DataSpec, Field
from genjax.parallel.rules import path_name
from genjax.train_state import seeded_key, stream
from genjax.training.assemble import assemble

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
EXAMPLES = 50_000  # of the data that are not there
DIFFUSION = {
    "diffusion.class_conditional": False,
    "diffusion.guidance": 1.0,
    **DISCRETE,
}


def assembled(network, sizes, precision):
    """The run of a network in these sizes, of one device."""
    overrides = {
        "batch_size": sizes["batch"],
        "accumulation": 1,
        "precision": precision,
        "schedule.name": "constant",
        "schedule.warmup": "",
        "mesh.data": 1,
    }
    file, more = {"unet": unet, "dit": dit, "gpt2": gpt2, "dcgan": dcgan}[network](sizes)
    config = configs.load(f"{CONFIGS / file}", overrides | more)
    return assemble(config, spec(sizes), devices=jax.devices()[:1])


def unet(sizes):
    keys = ("channels", "multipliers", "blocks", "attention", "dropout")
    network = {f"model.denoiser.{key}": sizes[key] for key in keys}
    return "ddpm.py:cifar10", DIFFUSION | network


def dit(sizes):
    network = {f"model.denoiser.{key}": sizes[key] for key in ("width", "depth", "heads")}
    return "dit.py", DIFFUSION | network | {"model.denoiser.patch_size": sizes["patch"]}


def gpt2(sizes):
    network = {f"model.lm.{key}": sizes[key] for key in ("width", "depth", "heads")}
    return "gpt.py:gpt2", network


def dcgan(sizes):
    width = sizes["channels"]
    return "dcgan.py", {"model.generator.channels": width, "model.discriminator.channels": width}


def spec(sizes):
    """What the data look like."""
    if "vocabulary" in sizes:
        facts = {"vocabulary_size": sizes["vocabulary"], "special": {"start": 0}}
        facts["tokenizer"] = Bytes({})
        token = Field("text", (sizes["length"] + 1,), np.dtype(np.int32), facts)
        return DataSpec("made", {"token": token}, "token", {"train": EXAMPLES})
    shape = (sizes["side"], sizes["side"], sizes["colors"])
    return DataSpec("made", sources.image_fields(shape, 0), "image", {"train": EXAMPLES})


def draw(rng, sizes):
    """A batch."""
    if "vocabulary" in sizes:
        shape = (sizes["batch"], sizes["length"] + 1)
        return {"token": rng.integers(0, sizes["vocabulary"], shape, np.int32)}
    shape = (sizes["batch"], sizes["side"], sizes["side"], sizes["colors"])
    return {"image": rng.integers(0, 256, shape, np.uint8)}


def parameters(like, seed=0):
    """Parameters that leave nothing at zero, each drawn by its path.

    Args:
      like: the tree of arrays that they replace, or of their shapes.
      seed: of the draws.
    """

    def drawn(path, leaf):
        rng = np.random.default_rng([seed, zlib.crc32(path_name(path).encode())])
        values = rng.standard_normal(leaf.shape)
        if leaf.ndim < 2 or "scale" in path_name(path) or "bias" in path_name(path):
            return (0.05 * values + ("scale" in path_name(path))).astype(np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim == 4 else leaf.shape[-2]
        if "/qkv/kernel" in path_name(path):  # [L, D, K, F]
            fan_in = leaf.shape[1]
        return (values / np.sqrt(fan_in)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(drawn, like)


def began(run, seed=0):
    """The state before the first step, with these parameters; the optimizers' moments are zero."""
    params = parameters(run.state.params, seed)
    seeds = seeded_key(run.config.seed)
    mutable = jax.jit(lambda key: run.method.init(stream(key, "init"), _zeros(run.batch))[1])(seeds)
    averages = {
        profile: {name: jax.tree.map(np.copy, params[name]) for name in averaged}
        for profile, averaged in run.state.ema.items()
    }
    state = run.state.replace(
        step=np.int32(0),
        params=params,
        opt_state=_zeros(run.state.opt_state),
        mutable=mutable,
        ema=averages,
        key=seeds,
    )
    return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, run.state))


def _zeros(like):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
