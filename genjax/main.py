"""The command line: a config, a workdir and one mode.

python -m genjax.main --config=configs/ddpm.py[:preset] [--config.a.b=value ...] --workdir=DIR
    --mode=train|eval|sample|inspect
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data import catalogue
from genjax.data.packages import cache_root
from genjax.evals.evaluation import Evaluation
from genjax.parallel import distributed
from genjax.parallel.rules import path_name
from genjax.train_state import TrainState, stream
from genjax.training import ema, loop, workdir
from genjax.training.assemble import Assembly, assemble
from genjax.training.averages import Diverged
from genjax.training.checkpoint import Checkpoints, digest, digests
from genjax.training.metrics import JsonlWriter, Writers, grid, save_png, setup_logging


def parse(argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Splits the command line into flags and config overrides.

    Raises:
      ConfigError: an argument that is neither.
    """
    parser = argparse.ArgumentParser(
        prog="python -m genjax.main",
        description="Train, evaluate, sample or inspect a generative model.",
        epilog="Any key of the config is set by --config.KEY=VALUE, such as "
        "--config.optimizer.learning_rate=3e-4 or --config.dataset.name=mnist.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", default="", help="FILE.py[:preset]; the workdir's own if not given")
    add("--workdir", default="", help="folder of the run; runs/<config>[_preset] if not given")
    add("--mode", default="train", choices=("train", "eval", "sample", "inspect"))
    add("--allow_config_change", action="store_true", help="resume with another config")
    add("--checkpoint", type=int, default=None, help="step to eval, sample or inspect; the newest")
    sampling = parser.add_argument_group("--mode=sample")
    add = sampling.add_argument
    add("--num", type=int, default=64, help="how many samples")
    add("--seed", type=int, default=0, help="of the samples")
    add("--sampler", default=None, help="sampler; the config's if not given")
    add("--steps", type=int, default=None, help="sampling steps; the config's if not given")
    add("--guidance", type=float, default=None, help="classifier-free guidance; the config's")
    flags, rest = parser.parse_known_args(argv)
    overrides = {}
    for argument in rest:
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not equals:
            known = [f"--{name}" for name in vars(flags)]
            raise ConfigError(
                f"{argument!r} is not understood. Nearest: "
                f"{configs.nearest(argument.partition('=')[0], known)}, or --config.KEY=VALUE."
            )
        overrides[key] = value
    return flags, overrides


def resolve(flags: argparse.Namespace, overrides: dict[str, str]) -> tuple[ConfigDict, Path]:
    """The config, from the file or from the workdir, and the workdir.

    Raises:
      ConfigError: neither is given, or the workdir has no run.
    """
    if not flags.config and not flags.workdir:
        raise ConfigError("give --config=FILE.py, --workdir=DIR of a run, or both.")
    name = Path(flags.config.partition(":")[0]).stem
    preset = flags.config.partition(":")[2]
    folder = Path(flags.workdir or Path("runs") / "_".join(filter(None, (name, preset))))
    if flags.config:
        return configs.load(flags.config, overrides), folder
    stored = workdir.read_config(folder)
    if stored is None:
        raise ConfigError(f"--workdir={folder} holds no run (no config.json). Give --config too.")
    config = configs.override(stored, overrides)
    configs.validate(config)
    return config, folder


def start(run: Assembly, checkpoints: Checkpoints) -> TrainState:
    """The state to train from: the newest checkpoint, another run's parameters, or init."""
    if checkpoints.latest() is not None:
        state = checkpoints.restore(run.state)
        loop.logger.info("resuming at step %d", int(state.step))
        return state
    state = run.init()
    source = run.config.checkpoint.init_from
    if source:
        state, taken = Checkpoints(source).restore_into(state, run.config.checkpoint.init_map)
        loop.logger.info("took %d arrays from %s", len(taken), source)
    return state


def train(config: ConfigDict, folder: Path, flags: argparse.Namespace) -> int:
    """Trains, or resumes; returns the exit code."""
    first = jax.process_index() == 0
    workdir.check_same_config(folder, config, flags.allow_config_change)
    run = assemble(config)
    folder.mkdir(parents=True, exist_ok=True)
    with workdir.locked(folder, first), setup_logging(folder):
        dataset = catalogue.load(config.dataset)
        loop.logger.info("%s: %s; data from %s", folder, config.method, dataset.route)
        run = run._replace(spec=dataset.spec)
        if first:
            workdir.write_config(folder, config, sys.argv)
        return loop.train(run, dataset, folder, lambda checkpoints: start(run, checkpoints))


def restored(run: Assembly, folder: Path, step: int | None) -> TrainState:
    """A run's state at `step`, the newest if None."""
    return Checkpoints(folder).restore(run.state, step)


def evaluate(config: ConfigDict, folder: Path, flags: argparse.Namespace) -> int:
    """Evaluates a checkpoint, appends to metrics.jsonl, writes samples and the report."""
    run = assemble(config)
    state = restored(run, folder, flags.checkpoint)
    dataset = catalogue.load(config.dataset)
    first = jax.process_index() == 0
    with workdir.locked(folder, first), setup_logging(folder), jax.set_mesh(run.mesh):
        path = folder / "metrics.jsonl"
        writers = Writers([JsonlWriter(path, sys.maxsize)] if first else [])
        evaluation = Evaluation(run, dataset, folder, writers)
        for name, value in evaluation(state, int(state.step)).items():
            print(f"{name} {value:.6g}")
        evaluation.write_report(state, finished=int(state.step) >= run.total_steps)
        writers.close()
    return 0


def sample(config: ConfigDict, folder: Path, flags: argparse.Namespace) -> int:
    """Draws samples from a checkpoint into a PNG grid and an .npz."""
    if flags.num < 1:
        raise ConfigError(f"--num={flags.num}: expected at least 1.")
    run = assemble(config)
    state = restored(run, folder, flags.checkpoint)
    params = ema.evaluation_params(config, state.params, state.ema)
    given = {"sampler": flags.sampler, "steps": flags.steps, "guidance": flags.guidance}
    options = {name: value for name, value in given.items() if value is not None}
    draw = jax.jit(
        lambda params, mutable, key: run.method.sample(
            params, mutable, key, flags.num, None, **options
        )
    )
    with jax.set_mesh(run.mesh):
        key = stream(jax.random.key(flags.seed), "sample")
        samples = np.asarray(draw(params, state.mutable, key))
    if jax.process_index() == 0:
        names = "".join(f"_{name}_{value}" for name, value in options.items())
        base = folder / "generated" / f"step_{int(state.step):08d}_seed_{flags.seed}{names}"
        save_png(base.with_name(base.name + ".png"), grid(samples))
        np.savez_compressed(base.with_name(base.name + ".npz"), samples=samples)
        print(f"wrote {base}.png and {base}.npz")
    return 0


def inspect(config: ConfigDict, folder: Path, flags: argparse.Namespace) -> int:
    """Prints the state: a line for every array, the step, and the sha256 of it all."""
    run = assemble(config)
    state = restored(run, folder, flags.checkpoint)
    found = digests(state)
    print(f"{'path':60} {'shape':>20} {'dtype':>9} {'count':>12} sharding sha256")
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = path_name(path)
        print(
            f"{name:60} {leaf.shape!s:>20} {leaf.dtype!s:>9} {leaf.size:>12,} "
            f"{leaf.sharding.spec} {found[name]}"
        )
    for name, tree in state.params.items():
        print(f"{name}: {sum(leaf.size for leaf in jax.tree.leaves(tree)):,} parameters")
    print(f"step {int(state.step)} of {run.total_steps}")
    print(f"sha256 {digest(found)}")
    return 0


MODES = {"train": train, "eval": evaluate, "sample": sample, "inspect": inspect}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    try:
        flags, overrides = parse(sys.argv[1:] if argv is None else argv)
        config, folder = resolve(flags, overrides)
        distributed.initialize()
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            jax.config.update("jax_compilation_cache_dir", str(cache_root() / "xla"))
        return MODES[flags.mode](config, folder, flags)
    except (ConfigError, Diverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"error: {error}. Is the disk full, or the folder read-only? Whole checkpoints are "
            "kept; free space or give another --workdir, and run the same command to resume.",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
