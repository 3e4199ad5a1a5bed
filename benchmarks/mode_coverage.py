"""Mode coverage of packed GANs (PacGAN, Lin et al. 2018, table 1), on genjax's step.

Mixtures of 8 Gaussians on a ring and 25 on a grid; the protocol and the sizes are those of the
authors' published code, which differs from the text of the paper in places: the ring has standard
deviation 0.01 and the grid 0.05, the generator four hidden layers of 400 with batch norm, the
discriminator three maxout layers of 200 x 5, weights N(0, 0.02); Adam 1e-4 with beta1 0.8, batches
of 100 packs out of 100,000 points, 400 epochs. A mode is covered if one of 2,500 samples is within
three standard deviations of it, and nearest to it.

  python benchmarks/mode_coverage.py --workdir=DIR --data=ring --packing=2 [--trials=3] [--seed=0]
      [--epochs=400]

Each trial is kept in DIR after every epoch: the same command goes on after a stop, and one with
more --epochs goes on from there.

Published, mean and standard error of 10 trials: ring 6.3 +- .5 (1) and 7.9 +- .1 (2); grid
17.3 +- .8 (1), 23.8 +- .7 (2) and 24.8 +- .2 (4).
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from genjax import config as configs
from genjax.method import DataSpec, Field
from genjax.training.assemble import assemble
from genjax.training.checkpoint import Checkpoints

POINTS, BATCH, SAMPLES = 100_000, 100, 2500
ANGLES = np.arange(8) * np.pi / 4
MODES = {
    "ring": (np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1), 0.01),
    "grid": (np.stack(np.meshgrid(*[np.arange(-4.0, 5.0, 2.0)] * 2), -1).reshape(-1, 2), 0.05),
}


def assembled(packing, seed, epochs):
    config = configs.base()
    config.method, config.seed, config.batch_size = "gan", seed, BATCH * packing
    config.duration = f"{epochs * POINTS // BATCH}_steps"
    config.evals.batch_size = BATCH * packing
    config.optimizer.update({"name": "adam", "learning_rate": 1e-4, "b1": 0.8, "clip_norm": 0.0})
    config.ema.decay = ()
    with config.unlocked():
        config.gan = ConfigDict({"latent_dim": 2, "packing": packing})
        config.model = ConfigDict(
            {
                "network": "gan_mlp",
                "generator": {"widths": (400,) * 4, "batch_norm": True, "output": "linear"},
                "discriminator": {"widths": (200,) * 3, "dropout": 0.0, "input_dropout": 0.0},
            }
        )
    point = Field("image", (1, 1, 2), np.dtype(np.float32))  # as an image of one pixel
    spec = DataSpec("points", {"image": point}, "image", {"train": POINTS})
    return assemble(config, spec)


def make_epoch(run, points, packing):
    """The jitted (state, key) -> (state, mean metrics): every point once in each of the streams."""

    @jax.jit
    def epoch(state, key):
        orders = [
            jax.random.permutation(jax.random.fold_in(key, i), POINTS) for i in range(packing)
        ]
        order = jnp.stack(orders, -1).reshape(POINTS // BATCH, BATCH * packing)

        def step(state, rows):
            state, output = run.step(state, {"image": points[rows]})
            return state, output.metrics

        state, metrics = jax.lax.scan(step, state, order)
        return state, jax.tree.map(lambda m: m.sum(0)[0] / m.sum(0)[1], metrics)

    return epoch


def coverage(samples, means, deviation):
    """(modes covered, share of samples within three standard deviations of a mode)."""
    distance = np.linalg.norm(samples[:, None] - means, axis=-1)
    good = distance.min(1) < 3 * deviation
    return len(set(distance.argmin(1)[good].tolist())), float(good.mean())


def trial(folder, data, packing, seed, epochs):
    means, deviation = MODES[data]
    rng = np.random.default_rng(seed)
    points = means[rng.integers(len(means), size=POINTS)]
    points += deviation * rng.normal(size=points.shape)
    points = jnp.asarray(points[:, None, None], jnp.float32)
    run = assembled(packing, seed, epochs)
    checkpoints = Checkpoints(folder / f"{data}-{packing}-{seed}", run.config)
    with jax.set_mesh(run.mesh):
        begun, epoch = checkpoints.latest() or 0, make_epoch(run, points, packing)
        state = checkpoints.restore(run.state) if begun else run.init()
        sample = jax.jit(lambda s, key: run.method.sample(s.params, s.mutable, key, SAMPLES, {}))

        def draw(state):
            return np.asarray(sample(state, jax.random.key(1))).reshape(-1, 2)

        for i in range(begun, epochs):
            state, metrics = epoch(state, jax.random.fold_in(jax.random.key(seed), i))
            checkpoints.save(state, i + 1, {})
            if (i + 1) % max(epochs // 20, 1) == 0:
                samples = draw(state)
                shown = {k: round(float(v), 3) for k, v in metrics.items() if k.endswith("loss")}
                print(f"  epoch {i + 1}: {coverage(samples, means, deviation)} {shown}", flush=True)
    checkpoints.wait()
    return coverage(draw(state), means, deviation)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--data", choices=MODES, required=True)
    parser.add_argument("--packing", type=int, default=1)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial")
    parser.add_argument("--epochs", type=int, default=400)
    options = parser.parse_args()
    found = []
    for seed in range(options.seed, options.seed + options.trials):
        start = time.perf_counter()
        chosen = (options.data, options.packing, seed, options.epochs)
        found.append(trial(Path(options.workdir), *chosen))
        print(f"trial {seed}: {found[-1]} in {time.perf_counter() - start:.0f} s", flush=True)
    modes, good = np.array(found).T
    error = modes.std(ddof=1) / np.sqrt(len(modes)) if len(modes) > 1 else float("nan")
    print(
        f"{options.data}, packing {options.packing}: {modes.mean():.1f} +- {error:.1f} modes, "
        f"{good.mean():.1%} of the samples good"
    )


if __name__ == "__main__":
    main()
