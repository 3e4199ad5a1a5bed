"""What --mode=solvers and --mode=sweep_guidance share: a run whose samples are judged often."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from genjax import method as methods
from genjax import modalities
from genjax.config import ConfigError, require
from genjax.data.catalogue import Dataset
from genjax.evals import judges
from genjax.evals.judges import Judge
from genjax.method import Method, Tree, options_of
from genjax.modes.runs import (
    parameters,
    prepare,
    restore_at,
    spec_of,
    tell_who_computes,
    weights_of,
)
from genjax.parallel.distributed import largest
from genjax.sampling import conditions
from genjax.sampling.draw import MOST_SAMPLES, make_draw, parse_options, planned
from genjax.sampling.table import alike
from genjax.train_state import TrainState, seeded_key
from genjax.training import report, sweep, workdir
from genjax.training.alarms import ringing
from genjax.training.assemble import Assembly
from genjax.training.checkpoint import Checkpoints
from genjax.training.digests import digest, digests
from genjax.training.early_stop import exhausted
from genjax.training.sweep import Sweep

logger = logging.getLogger("genjax")

Sample = Callable[[], np.ndarray]


def count_of(flags: argparse.Namespace, default: int) -> int:
    """The number of samples.

    Raises:
      ConfigError: out of range.
    """
    num = default if flags.num is None else flags.num
    require(0 < num <= MOST_SAMPLES, "--num", num, f"1 to {MOST_SAMPLES}")
    return num


def programs(
    method: Method,
    mesh: jax.sharding.Mesh,
    num: int,
    given: Mapping[str, np.ndarray],
    options: Sequence[Mapping[str, Any]],
) -> list[Callable[..., np.ndarray]]:
    """For each set of options the function (params, mutable, key) -> `num` samples.

    Their tables are padded to one shape. Those that differ in arrays alone share one compiled
    program; samples without guidance are drawn by that of guided ones, if there are some.
    """
    plans = [planned(method, own) for own in options]
    tables = alike([arrays["table"] for _, arrays in plans])
    kinds = [tuple(sorted((fixed | {"guided": None}).items())) for fixed, _ in plans]
    made: dict[tuple, Callable[..., np.ndarray]] = {}
    for kind in dict.fromkeys(kinds):
        those = [i for i, other in enumerate(kinds) if other == kind]
        first = max(those, key=lambda i: plans[i][0]["guided"])
        made[kind] = make_draw(method, mesh, num, given, options[first])
    logger.info("%d samplers; compiled programs: %d", len(options), len(made))
    return [
        partial(made[kind], arrays={**arrays, "table": table})
        for kind, (_, arrays), table in zip(kinds, plans, tables, strict=True)
    ]


class Begun(NamedTuple):
    """A run that is put together, before anything large is read or made.

    Attributes:
      run: put together.
      dataset: its data.
      method: the run's, drawing images as numbers that are not rounded where it can.
      options: of drawing, from the command line.
    """

    run: Assembly
    dataset: Dataset
    method: Method
    options: dict[str, Any]


class Opened(NamedTuple):
    """A run whose samples are measured.

    Attributes:
      run: put together.
      method: the run's, drawing images as numbers that are not rounded where it can.
      state: a checkpoint.
      params: that are used.
      num: samples.
      given: conditions of the samples.
      references: the held-out examples of these.
      judges: of the config.
    """

    run: Assembly
    method: Method
    state: TrainState
    params: Tree
    num: int
    given: Mapping[str, np.ndarray]
    references: np.ndarray
    judges: tuple[Judge, ...]

    def judged(self, samples: np.ndarray) -> dict[str, float]:
        """What the judges say of samples, as 8-bit images if they are images."""
        rows, found = as_data(samples, self.run), {}
        for judge in self.judges:
            n = judge.samples or self.run.config.evals.samples
            given = {name: values[:n] for name, values in self.given.items()}
            found |= judge.judge(rows[:n], self.references[:n], given)
        return found

    def draws(
        self, options: Sequence[Mapping[str, Any]], flags: argparse.Namespace
    ) -> list[Sample]:
        """What draws the samples of each set of options."""
        made = programs(self.method, self.run.mesh, self.num, self.given, options)
        own = (self.params, self.state.mutable, seeded_key(flags.seed or 0))
        return [partial(draw, *own) for draw in made]

    def metrics(self, *kinds: str) -> list[str]:
        """The judges' metrics of some kinds, such as "precision"; of "fd" the first if none is."""
        names = [name for judge in self.judges for name in judge.metrics]
        known = [name for name in names if not name.endswith(("_se", "_std"))]
        found = [n for kind in kinds for n in known if n.split("_")[0] == kind]
        distances = [n for n in known if n.startswith("fd_") or n == "fid"] or names[:1]
        return list(dict.fromkeys([*distances, *found]))


def begin(
    config: ConfigDict, folder: epath.Path, flags: argparse.Namespace, swept: Mapping[str, str]
) -> Begun:
    """The run in a folder.

    Args:
      config: of the run.
      folder: of the run.
      flags: of the command.
      swept: options of drawing that other flags decide, and which.

    Raises:
      ConfigError: no run, no judge, a method whose samplers are no tables, or an option twice.
    """
    spec_of(folder)
    if not config.evals.judges:
        raise ConfigError(
            "config.evals.judges is empty, and judges say what samples are worth: give "
            "--config.evals.judges=fidelity, of images, and how many they judge, such as "
            "--config.evals.fidelity.generated=1000."
        )
    require(not flags.output, "--output", flags.output, "none: the files go to the run's folder")
    run, dataset, content = prepare(config, folder)
    if not {"sampler", "steps", "spacing", "guidance"} <= options_of(run.method).keys():
        raise ConfigError(
            f"--mode={flags.mode}: method {config.method!r} has no solvers to choose from. This is "
            "for runs of method 'diffusion'."
        )
    workdir.check_same_data(folder, run.spec, flags.allow_config_change, content)
    method = in_numbers(run)
    options = parse_options(method, flags.options)
    for name in swept:
        if name in options:
            raise ConfigError(f"--{name}: --mode={flags.mode} takes several, by --{swept[name]}.")
    return Begun(run, dataset, method, options)


def opened(begun: Begun, folder: epath.Path, flags: argparse.Namespace) -> Opened:
    """The run with its weights, its judges, and what it draws samples for.

    Raises:
      ConfigError: no such checkpoint, or a judge that does not go with the data.
    """
    run, dataset, method, _ = begun
    config = run.config
    like = dataset.decoded or dataset
    state = restore_at(run, folder, flags.checkpoint)
    params = parameters(run, folder, state, weights_of(flags))
    judging = judges.build(config, like, run.mesh)
    num = count_of(flags, max(judge.samples or config.evals.samples for judge in judging))
    source = like.splits.get(config.evals.split)
    require(bool(source), "config.evals.split", config.evals.split, f"one of {[*like.splits]}")
    transform = modalities.transforms(config.dataset, like.spec, train=False)
    held = conditions.held_out(source, num, transform)
    known = conditions.in_data(method.conditions, like.spec)
    given = {name: held[field] for name, field in known.items()}
    return Opened(run, method, state, params, num, given, held[like.spec.target], judging)


def in_numbers(run: Assembly) -> Method:
    """The run's method on images of numbers in [0, 1]: rounding to 8 bits hides small errors.

    That of a run on a stage's codes stays as it is: its samples are decoded.
    """
    spec, field = run.spec, run.spec.generated
    if run.config.stages or field.kind != "image" or field.dtype != np.uint8:
        return run.method
    numbers = field._replace(dtype=np.dtype(np.float32))
    changed = spec._replace(fields={**spec.fields, spec.target: numbers})
    return methods.build(run.config, changed)


def as_data(samples: np.ndarray, run: Assembly) -> np.ndarray:
    """Samples in the format of the data."""
    field = run.method.output or run.spec.generated
    if field.dtype == np.uint8 and samples.dtype != np.uint8:
        return np.round(255 * np.clip(samples, 0, 1)).astype(np.uint8)
    return samples


def finish(
    own: Opened, folder: epath.Path, blank: Sweep, name: str, rows: Sequence[Callable[[], Any]]
) -> int:
    """Measures the rows, and puts them into the run's folder and its report."""
    first = jax.process_index() == 0
    tell_who_computes()
    sweep.measure(blank, folder, name, rows, first)
    shown = show(own, folder)
    if first:
        print(f"wrote {folder / name}.json{f' and {shown}' if shown else ''}")
    return 0


def show(own: Opened, folder: epath.Path) -> epath.Path | None:
    """Writes the run's report anew, and gives its place.

    None if a process trains the run, whose next report will have the new section too, or if the
    state is not the newest.
    """
    run, state = own.run, own.state
    if int(state.step) != Checkpoints(folder).latest():
        logger.info("an older checkpoint: %s is left as it is", folder / "report.html")
        return None
    with jax.set_mesh(run.mesh), workdir.lock(folder) as holder:
        if largest(int(bool(holder))):
            logger.info("the run is live (%s): its report is left alone", holder)
            return None
        stopped = exhausted(run.config, folder / "metrics.jsonl")
        finished = int(state.step) >= run.total_steps or stopped
        found = digest(digests(state)) if finished else None
        if jax.process_index():
            return None
        return report.write_report(
            folder,
            digest=found,
            environment=report.environment(),
            total=run.total_steps,
            finished=finished,
            warnings=ringing(run.method.alarms, folder / "metrics.jsonl"),
        )
