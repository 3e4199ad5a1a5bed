"""The training step of the importance-weighted autoencoder raced against PyTorch's.

The network of configs/iwae.py, 784-200-200-50, on MNIST-sized bytes that are binarised at each
draw, batches of 100, Adam. Each side has all images in memory and takes a new random batch for each
step; ours scans several steps in a dispatch, as the loop does by `steps_per_dispatch`, but without
the loop's reading and placing of batches (benchmarks/iwae_table.py prints the rate with them);
torch's is eager and under `torch.compile` with its defaults, each with the best of three Adams
found in a first round, with all threads or one. Then the rounds: ours with all threads and with
one, eager, compiled, ours ..., every one a process of its own, so that what else the machine does
meets all of them. Before it all, both sides find loss and gradients of the same parameters, binary
images and noise; ours may be no further from torch's in float64 than twice torch's own in float32
are, or 1e-6. (The weights of k samples are a softmax of numbers near -500, which float32 knows to
3e-5.)

  python benchmarks/iwae_race.py --torch_python=PATH [--data=mnist.npz] [--samples=1,5,50]
      [--rounds=5] [--seconds=10] [--steps_per_dispatch=20]

Without --data the images are noise of the same size; the time does not depend on them. Pin it to a
core with `taskset -c 0` where other work would disturb the threads: all processes inherit it.
"""

import argparse
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from racing import FOLDER, either_way, fastest, measured, race, several, started

from genjax import config as configs
from genjax.data import sources
from genjax.method import DataSpec
from genjax.modes.runs import fast_on_cpu
from genjax.nn.cpu.memory import keep_heap
from genjax.nn.pixels import binarised
from genjax.training.assemble import assemble

BATCH = 100
ADAMS = ("default", "foreach", "fused")


def assembled(samples, count):
    overrides = {
        "batch_size": BATCH,
        "evals.batch_size": BATCH,
        "schedule.name": "constant",
        "ema.decay": (),
        "vae.samples": samples,
        "mesh.data": 1,
    }
    config = configs.load(str(FOLDER.parent / "configs" / "iwae.py"), overrides)
    spec = DataSpec("mnist", sources.image_fields((28, 28, 1), 0), "image", {"train": count})
    return assemble(config, spec, devices=jax.devices()[:1])


def timed(images, samples, dispatch, seconds):
    """Steps a second and CPU time a step."""
    keep_heap()
    run = assembled(samples, len(images))
    rng = np.random.default_rng(0)
    epoch = len(images) // BATCH

    def rows():
        """Rows of `dispatch` batches [n, B], in a new order in each epoch, for ever."""
        left = np.zeros((0, BATCH), np.int32)
        while True:
            while len(left) < dispatch:
                order = rng.permutation(len(images))[: epoch * BATCH].astype(np.int32)
                left = np.concatenate([left, order.reshape(epoch, BATCH)])
            yield left[:dispatch]
            left = left[dispatch:]

    @partial(jax.jit, donate_argnums=0)
    def several(state, images, rows):
        return jax.lax.scan(lambda s, r: run.step(s, {"image": images[r]}), state, rows)

    chosen, images = rows(), jnp.asarray(images.reshape(-1, 28, 28, 1))
    with jax.set_mesh(run.mesh), fast_on_cpu(run.config):
        state = run.init()

        def go():
            nonlocal state
            state = jax.block_until_ready(several(state, images, next(chosen))[0])

        return measured(go, seconds, each=dispatch)


def golden(samples, path):
    """Writes parameters, x, noise, and our loss and gradients of them for torch."""
    run = assembled(samples, BATCH)
    key = jax.random.key(1)
    image = np.random.default_rng(0).integers(0, 256, (BATCH, 28, 28, 1), np.uint8)
    params, mutable = run.method.init(jax.random.key(0), run.batch)
    params = jax.tree.map(lambda p: p + 0.01, params)  # biases too
    batch = {"image": jnp.asarray(image)}
    loss = run.method.phases[0].loss
    (value, _), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        params, mutable, batch, key, 0
    )
    # The draws of `methods.vae.loss`: pixels from key 0, noise from key 1.
    key_x, key_z = (jax.random.fold_in(key, i) for i in range(2))
    x = binarised(key_x, batch["image"]).reshape(BATCH, -1)
    noise = jax.random.normal(key_z, (BATCH, samples, run.config.vae.latent_dim))
    written = {"x": np.float32(x), "noise": np.asarray(noise), "loss": np.asarray(value)}
    for name in ("encoder", "decoder"):
        layers, slope = params["vae"][name], slopes["vae"][name]
        for i, pick in enumerate((("body", "layers", "0"), ("body", "layers", "1"), ("out",))):
            layer, change = layers, slope
            for part in pick:
                layer, change = layer[part], change[part]
            for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
                written[f"{name}.{2 * i}.{theirs}"] = np.asarray(layer[ours]).T
                written[f"gradient {name}.{2 * i}.{theirs}"] = np.asarray(change[ours]).T
    np.savez(path, **written)


def compare(torch_python, samples, folder):
    """Stops unless torch finds our loss and gradients."""
    path = Path(folder) / "golden.npz"
    golden(samples, path)
    found = started(torch_python, "torch_iwae.py", f"--check={path}")
    for name in ("loss", "gradients"):
        ours, theirs = found["genjax"][name], found["torch"][name]
        print(
            f"k={samples}: {name} within {ours:.1e} of float64's, torch's {theirs:.1e}", flush=True
        )
        if not ours <= max(2 * theirs, 1e-6):
            sys.exit(f"error: the two sides differ in the {name}: {found}")


def raced(options, samples, images):
    common = [f"--samples={samples}", f"--seconds={options.seconds}", f"--images={images}"]

    def torch(adam, *flags):
        given = (*common, *flags, f"--adam={adam}")
        return partial(started, options.torch_python, "torch_iwae.py", *given)

    count = f"--steps_per_dispatch={options.steps_per_dispatch}"
    ours = partial(started, sys.executable, Path(__file__).name, *common, count)
    sides = either_way({"genjax": ours})
    for name, flags in (("eager", ()), ("compiled", ("--compile",))):
        adams = either_way({adam: torch(adam, *flags) for adam in ADAMS})
        best = fastest(f"torch, {name}", adams)
        sides[f"torch, {name}, {best} Adam"] = adams[best]
    race(f"k={samples}", "steps/s", sides, options.rounds)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("--data", default="")
    parser.add_argument("--samples", type=several(int), default=[1, 5, 50])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--steps_per_dispatch", type=int, default=20)
    parser.add_argument("--images", default="", help="our side alone, of this .npy; for the race")
    options = parser.parse_args()
    if options.images:
        images, k = np.load(options.images), options.samples[0]
        print(json.dumps(timed(images, k, options.steps_per_dispatch, options.seconds)))
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the race")
    with tempfile.TemporaryDirectory() as folder:
        if options.data:
            source = sources.npz(options.data, 1, 28).splits["train"]
            images = sources.take(source, np.arange(len(source)))["image"]
        else:
            images = np.random.default_rng(0).integers(0, 256, (60_000, 28, 28), np.uint8)
        path = Path(folder) / "images.npy"
        np.save(path, images.reshape(len(images), -1))
        for samples in options.samples:
            compare(options.torch_python, samples, folder)
            raced(options, samples, path)
    print(f"load {os.getloadavg()[0]:.1f} after the race")


if __name__ == "__main__":
    main()
