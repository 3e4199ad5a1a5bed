"""The training steps of the networks in configs/ raced against PyTorch's.

  unet            the step of configs/ddpm.py: the U-Net of DDPM on 28 x 28 pixels
  unet_sampling   50 steps of DDIM by the same network
  dit             the step of configs/ddpm.py by a DiT: width 256, 6 blocks, patches of 4 x 4
  dcgan           both players' steps of configs/dcgan.py
  vqvae           the step of configs/vqvae.py
  nanogpt, 6x384  the steps of benchmarks/lm_race.py, which also tries one thread and other AdamWs

Each side takes a new random batch, which is in memory, at every step, at a constant rate of
learning. Ours computes in float32 and in bfloat16; torch in the same two (autocast), eager and
under `torch.compile`, and of convolutional networks with channels first and last, with the fused
optimizers: all of them are printed, and the best counts. Before the race both sides must have the
same number of parameters, batch and settings of the optimizers, and find the same losses and norms
of gradients, to 1e-4, of the same parameters, images and noise.

The GFLOP of a step are those of torch's products and convolutions, forward and back, as its own
counter has them; beside the rates stands what share of the GFLOP/s of a product of two 2048 x 2048
matrices they are, in the same type. The time of the first step, compilation included, is printed
apart; it is that of a first process, whose compiled programs those of the race read again.

What is not equal: our step also skips updates that are not finite, and returns its metrics; the
VQ-VAE of torch begins without k-means.

  python benchmarks/step_race.py --torch_python=PATH [--networks=unet,dcgan] [--kinds=eager]
      [--rounds=5] [--seconds=15]
"""

import argparse
import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import lm_race
import numpy as np
from golden_files import flattened, folded_as_torch, written
from racing import DISCRETE, FOLDER, among, compare, measured, race, several, started

from genjax import config as configs
from genjax.data import sources
from genjax.method import DataSpec
from genjax.methods import diffusion
from genjax.modes.runs import fast_on_cpu
from genjax.networks import dit
from genjax.nn.cpu import onednn
from genjax.nn.cpu.memory import keep_heap
from genjax.nn.functional import functional
from genjax.sampling import bound
from genjax.sampling.draw import planned
from genjax.sampling.noise import normals
from genjax.training import optim
from genjax.training.assemble import assemble

PRECISIONS = ("float32", "bfloat16")
KINDS = ("eager", "compiled")
PICTURES = {  # network -> config
    "unet": "ddpm",
    "unet_sampling": "ddpm",
    "dit": "ddpm",
    "dcgan": "dcgan",
    "vqvae": "vqvae",
}
DIT = {"width": 256, "depth": 6, "heads": 4, "patch_size": 4}  # torch_dit.py's
NETWORKS = (*PICTURES, *lm_race.SIZES)
SAMPLES = 64  # of unet_sampling, at a time


def assembled(network, precision):
    if network in lm_race.SIZES:
        return lm_race.assembled(network, precision)
    overrides = {
        "precision": precision,
        "schedule.name": "constant",
        "schedule.warmup": "",
        "mesh.data": 1,
    }
    if PICTURES[network] == "ddpm":  # the recipe that torch's side has
        overrides |= DISCRETE
    config = configs.load(f"{FOLDER.parent / 'configs' / PICTURES[network]}.py", overrides)
    spec = DataSpec("made", sources.image_fields((28, 28, 1), 0), "image", {"train": 57_000})
    method = of_dit(config, spec) if network == "dit" else None
    return assemble(config, spec, method=method, devices=jax.devices()[:1])


def of_dit(config, spec):
    """The method of configs/ddpm.py with the DiT in place of its U-Net."""
    own = DIT | {"dtype": jnp.dtype(config.precision)}
    net = functional(lambda rngs: dit.Network((28, 28, 1), 1, rngs=rngs, **own))
    options = diffusion.options_from_config(config.diffusion, spec)
    return diffusion.from_network(net, options, spec, dit.RULES)


def draw(network, rng, batch):
    if network in lm_race.SIZES:
        return {"token": lm_race.draw(rng, network)}
    return {"image": rng.integers(0, 256, (batch, 28, 28, 1), np.uint8)}


def drawing(run):
    """(params, mutable, key) -> samples, compiled as `sampling.draw` compiles it."""
    fixed, traced = planned(run.method, {})
    jitted = jax.jit(partial(run.method.sample, num=SAMPLES, **fixed))
    return partial(jitted, **traced)


def genjax_side(network, precision, seconds):
    """Examples a second, CPU time of an example, and the seconds of the first step."""
    keep_heap()
    run, rng = assembled(network, precision), np.random.default_rng(0)
    batch = SAMPLES if network == "unet_sampling" else run.config.batch_size
    with jax.set_mesh(run.mesh), fast_on_cpu(run.config):
        state, output = jax.block_until_ready(run.init()), None
        drawn = drawing(run) if network == "unet_sampling" else None

        def train():
            """Waits for the step before while this one runs, as the training loop does."""
            nonlocal state, output
            before = output
            state, output = run.step(state, draw(network, rng, batch))
            jax.block_until_ready(before)

        def sample():
            key = jax.random.key(int(rng.integers(2**31)))
            jax.block_until_ready(drawn(state.params, state.mutable, key))

        def finish():
            jax.block_until_ready((state, output))

        step = sample if network == "unet_sampling" else train
        start = time.perf_counter()
        step()
        finish()
        first = time.perf_counter() - start
        told = {"first_step": first, "by": onednn.in_use()}
        return told | measured(step, seconds, batch, finish)


def facts(network):
    """Parameters, batch and optimizers of our side, as torch_steps.py prints them."""
    run = assembled(network, "float32")
    c, optimizers = run.config, {}
    averaged = c.ema.networks or tuple(run.learning_rates)
    keys = ("name", "learning_rate", "b1", "b2", "eps", "weight_decay", "clip_norm")
    for name in run.learning_rates if network != "unet_sampling" else ():
        own = optim.section(c, name)
        optimizers[name] = {key: own[key] for key in keys}
        optimizers[name]["ema"] = c.ema.decay[0] if c.ema.decay and name in averaged else 0.0
    return {
        "parameters": sum(p.size for p in jax.tree.leaves(run.state.params)),
        "batch": SAMPLES if network == "unet_sampling" else c.batch_size,
        "optimizers": optimizers,
    }


def noise_of(network, key, mutable):
    """What the loss draws with `key`, and what else torch needs beside parameters and images."""
    keys = [jax.random.fold_in(key, i) for i in range(2)]
    if network in ("unet", "dit"):
        uniform = bound.stratified_uniform(keys[0], 32)
        noise = jax.random.normal(keys[1], (32, 28, 28, 1))
        return {"index": jnp.minimum((uniform * 1000).astype(jnp.int32), 999), "noise": noise}
    if network == "unet_sampling":
        each = jax.vmap(lambda i: jax.random.fold_in(key, 3 + i))(jnp.arange(SAMPLES))
        return {"noise": normals(each, 0, (28, 28, 1))}
    if network == "dcgan":
        return {"z": jax.random.normal(jax.random.fold_in(keys[0], 0), (64, 100))}
    return {"codes": mutable["autoencoder"]["books"]["0"]["codes"]}


def golden(network, path):
    """Writes parameters, images and noise for torch; returns our losses and gradients' norms."""
    if network in lm_race.SIZES:
        found = lm_race.golden(network, path)
        return {"losses": {"lm": found["loss"]}, "norms": found["norms"]}
    run, key = assembled(network, "float32"), jax.random.key(1)
    params, mutable = jax.jit(run.method.init)(jax.random.key(0), {})
    shift = iter(jax.random.split(jax.random.key(2), len(jax.tree.leaves(params))))
    params = jax.tree.map(lambda p: p + 0.02 * jax.random.normal(next(shift), p.shape), params)
    if network == "vqvae":
        mutable["autoencoder"]["ready"] = jnp.array(True)  # no k-means
    batch = draw(network, np.random.default_rng(0), run.config.batch_size)
    losses, norms = {}, {}
    if network == "unet_sampling":
        made = drawing(run)(params, mutable, key)
        losses["denoiser"] = float(jnp.float32(made).mean())
    for phase in run.method.phases if not losses else ():
        own = {name: params[name] for name in phase.networks}

        def loss(own, phase=phase):
            return phase.loss({**params, **own}, mutable, batch, key, 0)[0]

        value, slopes = jax.jit(jax.value_and_grad(loss))(own)
        losses[phase.trains] = float(value)
        norms |= {n: float(jnp.linalg.norm(g.reshape(-1))) for n, g in flattened(slopes).items()}
    named = flattened(params)
    if network == "dcgan":
        named = folded_as_torch(named, 7, 128)
    written(path, named, {**batch, **noise_of(network, key, mutable)})
    return {"losses": losses, "norms": norms}


def check(torch_python, network, folder):
    """Stops unless both sides are the same; returns the GFLOP of a step."""
    path = Path(folder) / "golden.npz"
    ours, peer = facts(network), partial(started, torch_python, "torch_steps.py")
    theirs = peer(f"--network={network}", "--facts")
    gflop, batch = theirs.pop("gflop"), theirs["batch"]
    if ours != theirs:
        sys.exit(f"error: the two sides differ: genjax {ours}, torch {theirs}")
    print(
        f"{network}: {ours['parameters']:,} parameters, batch {ours['batch']}, optimizers "
        f"{ours['optimizers']} on both sides; {gflop:.2f} GFLOP a step",
        flush=True,
    )
    ours = golden(network, path)
    theirs = peer(f"--network={network}", f"--check={path}")
    norms = ours["norms"]
    gap = max(abs(value / theirs["losses"][n] - 1) for n, value in ours["losses"].items())
    # Some are nothing but rounding, as that of a bias of attention's keys.
    least = 1e-3 * max(norms.values(), default=0)
    slopes = [abs(norms[n] - norm) / max(norm, least) for n, norm in theirs["norms"].items()]
    print(f"  same losses to {gap:.1e}, gradients' norms to {max(slopes, default=0):.1e}")
    if not max(gap, *slopes, 0) < 1e-4 or norms.keys() != theirs["norms"].keys():
        sys.exit(f"error: the two sides differ: genjax {ours}, torch {theirs}")
    return gflop / batch


def sides_of(options, network, folder):
    """Name of each side -> the function that runs it for so many seconds."""
    sides, seconds = {}, f"--seconds={options.seconds}"
    for precision in PRECISIONS:
        own = (f"--side={network}", f"--precision={precision}", seconds)
        cache = {"JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "genjax")}
        sides[f"genjax, {precision}"] = partial(
            started, sys.executable, Path(__file__).name, *own, environment=cache
        )
    layouts = {"channels first": (), "channels last": ("--channels_last",)}
    for precision in PRECISIONS:
        for kind in options.kinds:
            compiled = ("--compile",) if kind == "compiled" else ()
            for layout, last in (layouts if network in PICTURES else {"": ()}).items():
                own = (f"--network={network}", f"--precision={precision}", *compiled, *last)
                name = ", ".join(filter(None, ("torch", precision, kind, layout)))
                cache = {"TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "torch")}
                sides[name] = partial(
                    started,
                    options.torch_python,
                    "torch_steps.py",
                    *(*own, seconds),
                    environment=cache,
                )
    return sides


def raced(options, network, folder, peak):
    gflop = check(options.torch_python, network, folder)
    sides = sides_of(options, network, folder)
    print(f"  load {os.getloadavg()[0]:.1f}", flush=True)
    for name, side in list(sides.items()):
        found = side(f"--seconds={min(options.seconds, 1)}")
        if "failed" in found:
            del sides[name]
            print(f"  {name}: failed, and is left out: {found['failed']}", flush=True)
        else:
            by = f"; by {found['by']}" if "by" in found else ""
            print(f"  {name}: {found['first_step']:.1f} s with the first step{by}", flush=True)
    rates = race(network, "examples/s", sides, options.rounds)
    for name, rate in rates.items():
        speed = gflop * np.median(rate)
        share = speed / peak[next(p for p in PRECISIONS if p in name)]
        print(f"  {name:42} {speed:7.1f} GFLOP/s, {share:.0%} of a product of matrices")
    for precision in PRECISIONS:
        own = {name: rate for name, rate in rates.items() if precision in name}
        compare(f"{network}, {precision}", own)
    compare(f"{network}, the best of each", rates)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("--networks", type=several(among(NETWORKS)), default=list(NETWORKS))
    parser.add_argument("--kinds", type=several(among(KINDS)), default=KINDS, help="of torch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--side", default="", help="our side alone, of this; for the race")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(genjax_side(options.side, options.precision, options.seconds)))
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the race")
    peak = started(options.torch_python, "torch_steps.py", "--peak")
    products = ", ".join(f"{name} {speed:.0f}" for name, speed in peak.items())
    print(f"products of 2048 x 2048 matrices: {products} GFLOP/s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for network in options.networks:
            raced(options, network, folder, peak)
    print(f"load {os.getloadavg()[0]:.1f} after the race")


if __name__ == "__main__":
    main()
