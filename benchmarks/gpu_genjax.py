"""genjax's side of benchmarks/gpu.sh: prints one line of JSON for each part that it does.

Of the commands, `golden` holds numbers against a CPU's, `warm` compiles for `race`, and `share`
writes parameters and losses for gpu_torch.py:

  python benchmarks/gpu_genjax.py environment
  python benchmarks/gpu_genjax.py golden [--precisions=bfloat16] [--networks=unet,dit]
  python benchmarks/gpu_genjax.py warm --networks=gpt2 [--tiny]
  python benchmarks/gpu_genjax.py race --networks=gpt2 [--tiny] [--seconds=8]
  python benchmarks/gpu_genjax.py share --folder=DIR
"""

import argparse
import importlib.metadata
import importlib.util
import json
import platform
from functools import partial
from pathlib import Path

import gpu_checks
import gpu_runs
import gpu_sizes
import jax
import jax.numpy as jnp
import numpy as np
from golden_files import flattened, folded_as_torch, gpt_as_torch, written
from gpu_parts import part
from gpu_timing import timed
from racing import among, several

from genjax.planning import chips, flops, roofs
from genjax.planning.estimate import estimate
from genjax.sampling import bound

BATCHES = 4  # made-up ones on the device, which take turns
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch")


def environment():
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        if importlib.util.find_spec(package.partition("-")[0]):
            versions[package] = importlib.metadata.version(package)
    device = jax.devices()[0]
    return {
        "versions": versions,
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
        "platform_version": device.client.platform_version.splitlines()[0],
    }


def race(network, tiny, seconds):
    """The time and memory of a training step, and the FLOPs of the model in it."""
    sizes = gpu_sizes.sizes(network, tiny)
    run, rng = gpu_runs.assembled(network, sizes, "bfloat16"), np.random.default_rng(0)
    with jax.set_mesh(run.mesh):
        batches = [
            {name: jax.device_put(x, run.batch[name].sharding) for name, x in batch.items()}
            for batch in (gpu_runs.draw(rng, sizes) for _ in range(BATCHES))
        ]
        state, output, done = run.init(), None, 0

        def step():
            """Waits for the step before while this one runs, as the training loop does."""
            nonlocal state, output, done
            before = output
            state, output = run.step(state, batches[done % BATCHES])
            done += 1
            jax.block_until_ready(before)

        result = timed(step, lambda: jax.block_until_ready((state, output)), seconds)
    stats = jax.devices()[0].memory_stats() or {}
    return result | {
        "batch": sizes["batch"],
        "parameters": sum(p.size for p in jax.tree.leaves(run.state.params)),
        "peak_memory_bytes": stats.get("peak_bytes_in_use"),
    }


def warm(network, tiny):
    """Compiles what `race` calls, for the cache of compiled programs."""
    run = gpu_runs.assembled(network, gpu_sizes.sizes(network, tiny), "bfloat16")
    with jax.set_mesh(run.mesh):
        run.init.lower().compile()
        run.step.lower(run.state, run.batch).compile()
    return {}


def utilisation(network, tiny, milliseconds):
    """The model's FLOPs of a step, and its share of the device's peak; None of an unknown peak."""
    run = gpu_runs.assembled(network, gpu_sizes.sizes(network, tiny), "bfloat16")
    with jax.set_mesh(run.mesh):
        counted = flops.count(run.step.trace(run.state, run.batch).jaxpr)
    chip = chips.of_device(jax.devices()[0].device_kind)
    result = {
        "model_flops": counted.model,
        "flops": counted.total,
        "uncounted": list(counted.uncounted),
        "peak_flops_per_second": chip.bfloat16 if chip else None,
    }
    share = 1000 * counted.model / milliseconds / chip.bfloat16 if chip else None
    return result | {"mfu": share}


def plan(network, tiny, milliseconds):
    """What --mode=plan says of the step, beside the measured time."""
    run = gpu_runs.assembled(network, gpu_sizes.sizes(network, tiny), "bfloat16")
    known = roofs.here(jax.devices()[:1])
    roof = roofs.of_topology(known, "bfloat16") if known else roofs.measured(run.mesh, "bfloat16")
    planned = estimate(run, roof)
    line = planned.roofline
    overlapped, serial = 1000 * line.seconds_overlapped, 1000 * line.seconds_serial
    return {
        "milliseconds_overlapped": overlapped,
        "milliseconds_serial": serial,
        "bound_by": line.bound_by,
        "peak_memory_bytes": planned.memory.peak,
        "overlapped_to_measured": overlapped / milliseconds,
        "serial_to_measured": serial / milliseconds,
    }


def share(network, folder):
    """Writes parameters, a batch and noise, and their losses and gradients' norms, for torch."""
    sizes = gpu_sizes.sizes(network, tiny=True)
    path = Path(folder) / f"{network}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with jax.default_matmul_precision("highest"):
        run = gpu_runs.assembled(network, sizes, "float32")
        with jax.set_mesh(run.mesh):
            state, key = gpu_runs.began(run), jax.random.key(1)
            batch = gpu_runs.draw(np.random.default_rng(0), sizes)
            losses, norms = {}, {}
            for name, value, slopes in gpu_checks.descents(run, state, batch, key):
                losses[name] = float(value)
                norms |= {n: float(jnp.linalg.norm(g)) for n, g in as_torch(slopes, sizes).items()}
    arrays = {**batch, **noise(key, sizes)}
    named = as_torch(state.params, sizes)
    if "levels" in sizes:
        side = sizes["side"] >> sizes["levels"]
        named = folded_as_torch(named, side, sizes["channels"] << (sizes["levels"] - 1))
    written(path, named, arrays)
    path.with_suffix(".json").write_text(json.dumps({"losses": losses, "norms": norms}))
    return {"losses": losses}


def as_torch(tree, sizes):
    """Name of a parameter on torch's side -> array, flat where torch asks for its norm alone."""
    named = gpt_as_torch(tree, sizes["depth"]) if "vocabulary" in sizes else flattened(tree)
    return {name: np.asarray(leaf) for name, leaf in named.items()}


def noise(key, sizes):
    """What the loss draws with `key`."""
    if "vocabulary" in sizes:
        return {}
    keys = [jax.random.fold_in(key, i) for i in range(2)]
    if "levels" in sizes:
        return {"z": jax.random.normal(jax.random.fold_in(keys[0], 0), (sizes["batch"], 100))}
    uniform = bound.stratified_uniform(keys[0], sizes["batch"])
    shape = (sizes["batch"], sizes["side"], sizes["side"], sizes["colors"])
    index = jnp.minimum((uniform * 1000).astype(jnp.int32), 999)
    return {"index": index, "noise": jax.random.normal(keys[1], shape)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("environment", "golden", "warm", "race", "share"))
    parser.add_argument(
        "--networks", type=several(among(gpu_sizes.NETWORKS)), default=gpu_sizes.NETWORKS
    )
    parser.add_argument(
        "--precisions",
        type=several(among(gpu_checks.PRECISIONS)),
        default=gpu_checks.PRECISIONS,
    )
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--folder", default=".")
    flags = parser.parse_args()
    if flags.what == "environment":
        part("environment", environment)
    for name in flags.networks:
        if flags.what == "golden":
            for precision in flags.precisions:
                part(f"golden/{name}/{precision}", partial(gpu_checks.checked, name, precision))
        elif flags.what == "warm":
            part(f"warm/{name}", partial(warm, name, flags.tiny))
        elif flags.what == "share":
            part(f"share/{name}", partial(share, name, flags.folder))
        elif flags.what == "race":
            timed_race = part(f"genjax/{name}", partial(race, name, flags.tiny, flags.seconds))
            if timed_race is not None:
                settings = (name, flags.tiny, timed_race["milliseconds"])
                part(f"mfu/{name}", partial(utilisation, *settings))
                part(f"plan/{name}", partial(plan, *settings))


if __name__ == "__main__":
    main()
