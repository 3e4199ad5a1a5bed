"""What a device computes held against what a CPU has computed (tests/golden/gpu.npz).

Of each network: the losses and their gradients at given parameters, samples, the losses of a few
steps of training, and those of the same steps with a checkpoint in between. "highest" is float32
with exact products, "float32" what the device takes for float32 (TF32 on GPUs), "bfloat16" as in a
run; the golden values are float32's.
"""

import contextlib
import tempfile
from pathlib import Path

import gpu_runs
import gpu_sizes
import jax
import numpy as np
from golden_files import flattened
from gpu_parts import Differs

from genjax.sampling.draw import make_draw
from genjax.training.checkpoint import Checkpoints

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "gpu.npz"
PRECISIONS = ("highest", "float32", "bfloat16")
STEPS, STOP = 6, 3
SAMPLES = {
    "unet": (4, {"steps": 10}),
    "dit": (4, {"steps": 10}),
    "dcgan": (4, {}),
    "gpt2": (2, {"temperature": 0.0, "max_new_tokens": 8}),
}
# The largest gaps: of losses relative to them; of gradients relative to their norms; of samples, as
# the mean gap of pixels in [0, 1], or the share of other tokens.
TOLERANCES = {
    "highest": {"loss": 1e-4, "gradient": 2e-3, "samples": 2e-3, "training": 1e-3},
    "float32": {"loss": 2e-3, "gradient": 2e-2, "samples": 1e-2, "training": 5e-3},
    "bfloat16": {"loss": 2e-2, "gradient": 0.3, "samples": 5e-2, "training": 3e-2},
}
TOKENS = {"highest": 0.0, "float32": 0.25, "bfloat16": 1.0}  # shares of other tokens


def numbers(network, precision, folder):
    """What is compared, as name -> array.

    Args:
      network: one of gpu_sizes.NETWORKS.
      precision: one of PRECISIONS.
      folder: an empty one, for the checkpoint.
    """
    sizes = gpu_sizes.sizes(network, tiny=True)
    exact = jax.default_matmul_precision("highest")
    with exact if precision == "highest" else contextlib.nullcontext():
        dtype = "bfloat16" if precision == "bfloat16" else "float32"
        run = gpu_runs.assembled(network, sizes, dtype)
        with jax.set_mesh(run.mesh):
            return (
                slopes(run, sizes)
                | {"samples": samples(network, run)}
                | {"training": training(run, sizes), "resumed": training(run, sizes, folder)}
            )


def descents(run, state, batch, key):
    """Yields of each phase the network that it trains, its loss and the gradient."""
    for phase in run.method.phases:
        trained = {name: state.params[name] for name in phase.networks}

        def loss(trained, phase=phase):
            params = {**state.params, **trained}
            return phase.loss(params, state.mutable, batch, key, 0)[0]

        yield phase.trains, *jax.jit(jax.value_and_grad(loss))(trained)


def slopes(run, sizes):
    """Losses by the network that descends them; norms of gradients, and products with a vector."""
    batch, losses, norms, products = gpu_runs.draw(np.random.default_rng(0), sizes), {}, [], []
    for name, value, gradients in descents(run, gpu_runs.began(run), batch, jax.random.key(1)):
        losses[f"loss/{name}"] = np.float32(value)
        along = flattened(gpu_runs.parameters(gradients, seed=1))
        for path, slope in sorted(flattened(gradients).items()):
            slope, direction = (np.asarray(x, np.float64).reshape(-1) for x in (slope, along[path]))
            norms.append(np.linalg.norm(slope))
            products.append(slope @ direction / max(np.sqrt((direction**2).mean()), 1e-30))
    return losses | {"norms": np.float32(norms), "products": np.float32(products)}


def samples(network, run):
    state, (num, options) = gpu_runs.began(run), SAMPLES[network]
    draw = make_draw(run.method, run.mesh, num, {}, options)
    return np.asarray(draw(state.params, state.mutable, jax.random.key(2)))


def training(run, sizes, folder=None):
    """The losses of each step [STEPS, n]; with a folder, from a checkpoint after `STOP` of them."""
    state, rng, rows = gpu_runs.began(run), np.random.default_rng(3), []
    for step in range(STEPS):
        if folder is not None and step == STOP:
            kept = Checkpoints(folder, run.config)
            kept.save(state, step, {})
            kept.wait()
            kept.close()
            state = Checkpoints(folder).restore(run.state)
        state, output = run.step(state, gpu_runs.draw(rng, sizes))
        names = sorted(n for n in output.metrics if n.rsplit("/", 1)[-1] == "loss")
        sums = np.array([output.metrics[name] for name in names])
        rows.append(sums[:, 0] / sums[:, 1])
    return np.float32(rows)


def gaps(ours, golden):
    """The largest gaps between two results of `numbers`."""
    names = [name for name in golden if name.startswith("loss/")]
    # Some gradients are nothing but rounding, as that of a bias of attention's keys.
    scale = np.maximum(golden["norms"], 1e-2 * golden["norms"].max())
    kinds = ("norms", "products")
    gradient = max(float((abs(ours[kind] - golden[kind]) / scale).max()) for kind in kinds)
    drawn, known = ours["samples"], golden["samples"]
    tokens = known.dtype != np.uint8
    samples = (drawn != known) if tokens else abs(drawn.astype(np.float64) - known) / 255
    return {
        "loss": max(float(abs(ours[name] / golden[name] - 1)) for name in names),
        "gradient": gradient,
        "samples": float(samples.mean()),
        "training": float(abs(ours["training"] / golden["training"] - 1).max()),
        "resumed": float(abs(ours["resumed"] / golden["training"] - 1).max()),
        "resumed_to_uninterrupted": float(abs(ours["resumed"] - ours["training"]).max()),
    }


def tolerances(network, precision):
    most = dict(TOLERANCES[precision])
    if network == "gpt2":
        most["samples"] = TOKENS[precision]
    return most | {"resumed": most["training"]}


def golden_of(network, path=GOLDEN):
    """The golden numbers of a network."""
    with np.load(path) as arrays:
        start = f"{network}/"
        return {n.removeprefix(start): arrays[n] for n in arrays.files if n.startswith(start)}


def checked(network, precision):
    """The gaps to the golden numbers.

    Raises:
      Differs: one is larger than the type explains, or not finite.
    """
    with tempfile.TemporaryDirectory() as folder:
        measured = gaps(numbers(network, precision, folder), golden_of(network))
    allowed = tolerances(network, precision)
    result = {"gaps": measured, "tolerances": allowed}
    wrong = [name for name, limit in allowed.items() if not measured[name] <= limit]
    if wrong:
        largest = ", ".join(f"{n} {measured[n]:.2g} (at most {allowed[n]:.2g})" for n in wrong)
        raise Differs(f"{network} in {precision} differs from the CPU's numbers: {largest}", result)
    return result
