"""Code shared by --mode=solvers and --mode=sweep_guidance: opens a run and judges its samples."""

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
    """The number of samples: --num, or the default.

    Raises:
      ConfigError: it is out of range.
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
    """Returns, for each set of options, a function (params, mutable, key) -> `num` samples.

    Tables are padded to one shape. Option sets that differ only in arrays share a compiled
    program; unguided samples use the program of the guided ones, if there are any.
    """
    plans = [planned(method, values) for values in options]
    tables = alike([arrays["table"] for _, arrays in plans])
    kinds = [tuple(sorted((fixed | {"guided": None}).items())) for fixed, _ in plans]
    draws: dict[tuple, Callable[..., np.ndarray]] = {}
    for kind in dict.fromkeys(kinds):
        members = [i for i, other in enumerate(kinds) if other == kind]
        first = max(members, key=lambda i: plans[i][0]["guided"])
        draws[kind] = make_draw(method, mesh, num, given, options[first])
    logger.info("%d samplers; compiled programs: %d", len(options), len(draws))
    return [
        partial(draws[kind], arrays={**arrays, "table": table})
        for kind, (_, arrays), table in zip(kinds, plans, tables, strict=True)
    ]


class Begun(NamedTuple):
    """A run before its checkpoint is read and its judges are built.

    Attributes:
      run: the assembled run.
      dataset: its data.
      method: the run's method; it draws images as unrounded floats where possible.
      options: sampling options from the command line.
    """

    run: Assembly
    dataset: Dataset
    method: Method
    options: dict[str, Any]


class Opened(NamedTuple):
    """A run whose samples are measured.

    Attributes:
      run: the assembled run.
      method: the run's method; it draws images as unrounded floats where possible.
      state: the checkpoint.
      params: the parameters to draw with.
      num: the number of samples.
      given: the conditions of the samples.
      examples: the held-out examples with these conditions.
      target: their field that samples resemble.
      judges: the judges of the config.
    """

    run: Assembly
    method: Method
    state: TrainState
    params: Tree
    num: int
    given: Mapping[str, np.ndarray]
    examples: Mapping[str, np.ndarray]
    target: str
    judges: tuple[Judge, ...]

    def judged(self, samples: np.ndarray) -> dict[str, float]:
        """The judges' metrics of samples; images are rounded to 8 bits first if the data are."""
        rows, metrics = as_data(samples, self.run), {}
        for judge in self.judges:
            known = (self.target, self.examples, self.given)
            metrics |= judge.of(rows, *known, self.run.config.evals.samples)
        return metrics

    def draws(
        self, options: Sequence[Mapping[str, Any]], flags: argparse.Namespace
    ) -> list[Sample]:
        """Returns, for each set of options, a function that draws its samples."""
        functions = programs(self.method, self.run.mesh, self.num, self.given, options)
        arguments = (self.params, self.state.mutable, seeded_key(flags.seed or 0))
        return [partial(draw, *arguments) for draw in functions]

    def metrics(self, *kinds: str) -> list[str]:
        """Names of the judges' distances (else the first metric), then of `kinds` of metrics.

        A kind is the name of a metric, or its first word.
        """
        names = [name for judge in self.judges for name in judge.metrics]
        known = [name for name in names if not name.endswith(("_se", "_std"))]
        of_kinds = [n for kind in kinds for n in known if kind in (n, n.split("_")[0])]
        distances = [n for n in known if n.startswith("fd_") or n == "fid"] or names[:1]
        return list(dict.fromkeys([*distances, *of_kinds]))


def begin(
    config: ConfigDict, folder: epath.Path, flags: argparse.Namespace, swept: Mapping[str, str]
) -> Begun:
    """Assembles the run in a folder.

    Args:
      config: config of the run.
      folder: folder of the run.
      flags: flags of the command.
      swept: sampling option -> the flag that sets its values in this mode.

    Raises:
      ConfigError: there is no run or no judge, the method's samplers have no tables, or a swept
        option was also given on its own.
    """
    spec_of(folder)
    if not config.evals.judges:
        raise ConfigError(
            "config.evals.judges is empty, so nothing would measure the samples: give "
            "--config.evals.judges=fidelity for images, and the number of samples to judge, such "
            "as --config.evals.fidelity.generated=1000."
        )
    require(not flags.output, "--output", flags.output, "none: the files go to the run's folder")
    run, dataset, content = prepare(config, folder)
    if not {"sampler", "steps", "spacing", "guidance"} <= options_of(run.method).keys():
        raise ConfigError(
            f"--mode={flags.mode}: method {config.method!r} has no solvers to choose from. This "
            "mode is for runs of method 'diffusion'."
        )
    workdir.check_same_data(folder, run.spec, flags.allow_config_change, content)
    method = in_numbers(run)
    options = parse_options(method, flags.options)
    for name in swept:
        if name in options:
            raise ConfigError(
                f"--{name}: --mode={flags.mode} sets this by --{swept[name]}. Use that flag."
            )
    return Begun(run, dataset, method, options)


def opened(begun: Begun, folder: epath.Path, flags: argparse.Namespace) -> Opened:
    """Reads the run's weights, and builds its judges, conditions and references.

    Raises:
      ConfigError: there is no such checkpoint, or a judge does not fit the data.
    """
    run, dataset, method, _ = begun
    config = run.config
    decoded = dataset.decoded or dataset
    state = restore_at(run, folder, flags.checkpoint)
    params = parameters(run, folder, state, weights_of(flags))
    judge_list = judges.build(config, decoded, run.mesh)
    num = count_of(flags, max(judge.samples or config.evals.samples for judge in judge_list))
    source = decoded.splits.get(config.evals.split)
    require(bool(source), "config.evals.split", config.evals.split, f"one of {[*decoded.splits]}")
    transform = modalities.transforms(config.dataset, decoded.spec, train=False)
    examples = conditions.held_out(source, num, transform)
    known = conditions.in_data(method.conditions, decoded.spec)
    given = {name: examples[field] for name, field in known.items()}
    target = decoded.spec.target
    return Opened(run, method, state, params, num, given, examples, target, judge_list)


def in_numbers(run: Assembly) -> Method:
    """The run's method with float images in [0, 1], because 8-bit rounding hides small errors.

    The method of a run on a stage's codes is unchanged: its samples are decoded by the stage.
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
    """Measures the rows and writes them to the run's folder and report."""
    first = jax.process_index() == 0
    tell_who_computes()
    sweep.measure(blank, folder, name, rows, first)
    report_path = show(own, folder)
    if first:
        print(f"wrote {folder / name}.json{f' and {report_path}' if report_path else ''}")
    return 0


def show(own: Opened, folder: epath.Path) -> epath.Path | None:
    """Rewrites the run's report and returns its path.

    Returns None if the checkpoint is not the newest, or if a process is training the run; that
    process will include the new section in its next report.
    """
    run, state = own.run, own.state
    if int(state.step) != Checkpoints(folder).latest():
        logger.info("not the newest checkpoint: %s is not changed", folder / "report.html")
        return None
    with jax.set_mesh(run.mesh), workdir.lock(folder) as holder:
        if largest(int(bool(holder))):
            logger.info("the run is live (%s): its report is left alone", holder)
            return None
        stopped = exhausted(run.config, folder / "metrics.jsonl")
        finished = int(state.step) >= run.total_steps or stopped
        state_digest = digest(digests(state)) if finished else None
        if jax.process_index():
            return None
        return report.write_report(
            folder,
            digest=state_digest,
            environment=report.environment(),
            total=run.total_steps,
            finished=finished,
            warnings=ringing(run.method.alarms, folder / "metrics.jsonl"),
        )
