"""The training step of small GPTs raced against PyTorch's.

Two settings: nanoGPT's for a CPU (4 layers, 4 heads, 128 wide, 64 characters, batch 12) and 6
layers, 6 heads, 384 wide, 256 characters, batch 12; 65 characters, no dropout, no biases, a tied
head; AdamW at a constant rate, the gradient's norm clipped at 1. Each side computes in float32 and
in bfloat16 (parameters, optimizer and softmax in float32), torch eager and under `torch.compile`,
with the fastest of its AdamWs; its attention is `scaled_dot_product_attention`. A step takes a new
random batch that is in memory. Before the race both sides give the loss and the norms of the
gradients of the same parameters and tokens, to 1e-4.

  python benchmarks/lm_race.py --torch_python=PATH [--sizes=nanogpt,6x384] [--rounds=5]
      [--seconds=15]
"""

import argparse
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import jax
import numpy as np
from golden_files import gpt_as_torch, written
from racing import FOLDER, ONE_THREAD, among, either_way, fastest, measured, race, several, started

from genjax import config as configs
from genjax.data.alphabets import Bytes
from genjax.method import DataSpec, Field
from genjax.modes.runs import fast_on_cpu
from genjax.nn.cpu.memory import keep_heap
from genjax.training.assemble import assemble

VALUES, BATCH = 65, 12
PRECISIONS = ("float32", "bfloat16")
# Size -> layers, heads, width, length.
SIZES = {"nanogpt": (4, 4, 128, 64), "6x384": (6, 6, 384, 256)}


def assembled(size, precision):
    depth, heads, width, length = SIZES[size]
    overrides = {
        "batch_size": BATCH,
        "precision": precision,
        "schedule.name": "constant",
        "schedule.warmup": "",
        "mesh.data": 1,
        "model.lm.depth": depth,
        "model.lm.heads": heads,
        "model.lm.width": width,
    }
    config = configs.load(f"{FOLDER.parent / 'configs' / 'gpt_char.py'}:nanogpt", overrides)
    facts = {"vocabulary_size": VALUES, "special": {"start": 0}, "tokenizer": Bytes({})}
    token = Field("text", (length + 1,), np.dtype(np.int32), facts)
    spec = DataSpec("made", {"token": token}, "token", {"train": 100})
    return assemble(config, spec, devices=jax.devices()[:1])


def draw(rng, size):
    return rng.integers(0, VALUES, (BATCH, SIZES[size][-1] + 1), np.int32)


def timed(size, precision, seconds):
    """Steps a second and CPU time a step."""
    keep_heap()
    run, rng = assembled(size, precision), np.random.default_rng(0)
    with jax.set_mesh(run.mesh), fast_on_cpu(run.config):
        state = run.init()

        def step():
            nonlocal state
            state = jax.block_until_ready(run.step(state, {"token": draw(rng, size)})[0])

        return measured(step, seconds)


def golden(size, path):
    """Writes parameters and tokens for torch; returns our loss and gradient norms of them."""
    run, rng = assembled(size, "float32"), np.random.default_rng(0)
    token = draw(rng, size)
    params, mutable = run.method.init(jax.random.key(0), run.batch)
    noise = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
    params = jax.tree.map(lambda p: p + 0.02 * jax.random.normal(next(noise), p.shape), params)
    loss = jax.jit(jax.value_and_grad(run.method.phases[0].loss, has_aux=True))
    (value, _), slopes = loss(params, mutable, {"token": token}, jax.random.key(0), 0)

    depth = SIZES[size][0]
    written(path, gpt_as_torch(params, depth), {"token": token})
    slopes = gpt_as_torch(slopes, depth).items()
    norms = {name: float(np.linalg.norm(np.asarray(g))) for name, g in slopes}
    return {"loss": float(value), "norms": norms}


def compare(torch_python, size, folder):
    """Stops unless torch finds our loss and gradients."""
    path = Path(folder) / "golden.npz"
    ours = golden(size, path)
    theirs = started(torch_python, "torch_lm.py", *shape(size), f"--check={path}")
    gap = abs(ours["loss"] / theirs["loss"] - 1)
    slope = max(abs(ours["norms"][n] / norm - 1) for n, norm in theirs["norms"].items())
    print(f"{size}: same loss to {gap:.1e}, gradients' norms to {slope:.1e}", flush=True)
    if not max(gap, slope) < 1e-4:
        sys.exit(f"error: the two sides differ: {ours} and {theirs}")


def shape(size):
    names = ("depth", "heads", "width", "length")
    return [f"--{name}={value}" for name, value in zip(names, SIZES[size], strict=True)]


def raced(options, size):
    seconds = f"--seconds={options.seconds}"

    def torch(*flags):
        return partial(started, options.torch_python, "torch_lm.py", *shape(size), seconds, *flags)

    sides = {}
    for precision in PRECISIONS:
        own = (f"--side={size}", f"--precision={precision}", seconds)
        ours = partial(started, sys.executable, Path(__file__).name, *own)
        sides |= either_way({f"genjax, {precision}": ours})
    for precision in PRECISIONS:
        adams = {
            adam: torch(f"--precision={precision}", f"--adam={adam}")
            for adam in ("default", "foreach", "fused")
        }
        best = fastest(f"torch, {precision}", either_way(adams))
        adam, _, alone = best.partition(", ")
        for name, flags in (("eager", ()), ("compiled", ("--compile",))):
            side = torch(f"--precision={precision}", f"--adam={adam}", *flags)
            sides[f"torch, {name}, {precision}, {best}"] = (
                partial(side, environment=ONE_THREAD) if alone else side
            )
    race(size, "steps/s", sides, options.rounds)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("--sizes", type=several(among(SIZES)), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--side", default="", help="our side alone, at this size; for the race")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(timed(options.side, options.precision, options.seconds)))
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the race")
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            compare(options.torch_python, size, folder)
            raced(options, size)
    print(f"load {os.getloadavg()[0]:.1f} after the race")


if __name__ == "__main__":
    main()
