"""The only training loop."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import jax
from etils import epath

from genjax import config as configs
from genjax import durations, modalities
from genjax.bars import answered
from genjax.data import loader
from genjax.data.catalogue import Dataset
from genjax.files import is_local
from genjax.parallel.distributed import barrier
from genjax.parallel.mesh import batch_part, global_batch, global_batches
from genjax.train_state import TrainState
from genjax.training import snapshots
from genjax.training.assemble import Assembly
from genjax.training.averages import Averages
from genjax.training.checkpoint import Checkpoints
from genjax.training.checkpoint_options import best_metric
from genjax.training.early_stop import exhausted
from genjax.training.interruptions import Interruptions, signals
from genjax.training.meter import Meter
from genjax.training.metrics import (
    JsonlWriter,
    TensorBoardWriter,
    WandbWriter,
    Writer,
    Writers,
)
from genjax.training.profile import StepTrace
from genjax.training.progress import Progress
from genjax.training.step import StepOutput

logger = logging.getLogger("genjax")


def make_writers(run: Assembly, workdir: epath.Path, start: int) -> Writers:
    """Returns the writers that the config asks for; none on processes other than the first."""
    if jax.process_index():
        return Writers([])
    writers: list[Writer] = [JsonlWriter(workdir / "metrics.jsonl", start)]
    if is_local(workdir):
        writers.append(TensorBoardWriter(workdir / "tensorboard", start))
    else:
        logger.info("no TensorBoard files in object storage: metrics.jsonl has all numbers")
    if run.config.log.wandb:
        stored = configs.to_json(run.config)
        writers.append(WandbWriter(run.config.log.wandb_project, stored, workdir))
    return Writers(writers)


def train(
    run: Assembly,
    dataset: Dataset,
    workdir: epath.Path,
    start: Callable[[Checkpoints], TrainState],
    evaluation: Callable[[Writers], Evaluation],
    meter: Meter,
) -> int:
    """Trains until the run's end, an early stop, or a signal; resumes at `state.step`.

    Args:
      run: what to train.
      dataset: the splits.
      workdir: the run's folder; the caller holds its lock.
      start: returns the state to begin with: restored, or initialised.
      evaluation: returns the evaluation that writes to these writers.
      meter: measures the run's devices.

    Returns:
      The process's exit code: 0, or 128 + the signal that ended the run.

    Raises:
      Diverged: too many updates in a row were not finite.
    """
    config = run.config
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(workdir, config)
        stack.callback(checkpoints.close)
        stack.enter_context(jax.set_mesh(run.mesh))
        state = start(checkpoints)
        first = int(state.step)
        writers = make_writers(run, workdir, first)
        stack.callback(writers.close)
        if first >= run.total_steps or exhausted(config, workdir / "metrics.jsonl"):
            if checkpoints.latest() is None:  # a run of no steps, such as an import
                checkpoints.save(state, first, {})
                checkpoints.wait()
                logger.info("nothing to train: the initial weights were saved to %s", workdir)
            else:
                logger.info("nothing to do: the run is finished at step %d", first)
            return 0
        evaluate = evaluation(writers)
        if best_metric(run.config)[0] and run.config.evals.split == "test":
            logger.warning(
                "the best step is chosen on the test split, which biases its test results: set "
                "evals.split='validation'"
            )
        progress = Progress(run.total_steps, first, run.examples_per_step)
        stack.callback(progress.close)
        part, parts = batch_part(run.mesh)
        batches = loader.train_loader(
            dataset.splits["train"],
            seed=config.seed,
            batch_size=run.examples_per_step,
            transform=modalities.transforms(config.dataset, run.spec, train=True),
            start_step=first,
            process_index=part,
            process_count=parts,
            threads=config.dataset.threads,
        )
        stack.callback(batches.close)
        snapshot_store = snapshots.opened(config, workdir, first)
        if snapshot_store is not None:
            stack.callback(snapshot_store.close)
        trace = StepTrace(_steps_of(run, config.profile), workdir)
        stack.callback(trace.close)
        resumed = checkpoints.latest() == first
        averages = Averages(
            config.optimizer.max_skipped, checkpoints.window(first) if resumed else None
        )
        received = stack.enter_context(signals())
        stack.enter_context(answered(lambda: _answer(progress.doing)))
        return _steps(
            *(run, state, first, batches, evaluate, checkpoints, snapshot_store, averages),
            *(progress, trace, meter, received),
        )


def _answer(doing: str) -> str:
    """Returns the message printed as soon as a signal arrives."""
    when = "this evaluation" if doing == "evaluating" else "this step"
    if doing.startswith("compiling"):
        when = "the compilation and one step"
    return f"stopping after {when}, with a checkpoint; press Ctrl-C again to stop at once"


def _steps_of(run: Assembly, duration: str) -> int:
    """Returns the steps of a duration of the run; 0 for an empty one."""
    return durations.steps(
        duration,
        batch_size=run.examples_per_step,
        examples=run.spec.sizes["train"],
        total=run.total_steps,
    )


def _cadences(run: Assembly) -> dict[str, int]:
    """Returns the steps between log lines, evaluations, checkpoints, snapshots; 0 is never."""
    every = {name: run.config[name].every for name in ("log", "evals", "checkpoint")}
    every["snapshots"] = run.config.ema.snapshots
    return {name: _steps_of(run, duration) for name, duration in every.items()}


class Evaluation(Protocol):
    """The interface of an evaluation that the loop uses."""

    writers: Writers
    workdir: epath.Path

    def __call__(self, state: TrainState, step: int) -> dict[str, float]:
        """Evaluates the state, and writes and returns the metrics."""

    def write_report(self, state: TrainState, finished: bool) -> None:
        """Writes the report."""


def dispatches(first: int, total: int, count: int, every: Iterable[int]) -> Iterator[range]:
    """Yields the steps from `first` + 1 to `total`, grouped by dispatch.

    A group is `count` steps that end at a multiple of `count`. It is a single step where something
    is due inside such a group, or the run begins or ends inside it. This depends only on the step's
    number, so a resumed run continues as an uninterrupted one.

    Args:
      first: the last step done.
      total: the last step to do.
      count: steps in a full group.
      every: the cadences, in steps; 0 is never. A group ends where one is due.
    """
    step = first
    while step < total:
        group = range(step + 1, step + count + 1)
        broken = any(e and any(s % e == 0 for s in group[:-1]) for e in every)
        whole = step % count == 0 and group[-1] <= total and not broken
        group = group if whole else range(step + 1, step + 2)
        yield group
        step = group[-1]


def _steps(
    run: Assembly,
    state: TrainState,
    first: int,
    batches: Iterator[Any],
    evaluate: Evaluation,
    checkpoints: Checkpoints,
    snapshot_store: Checkpoints | None,
    averages: Averages,
    progress: Progress,
    trace: StepTrace,
    meter: Meter,
    received: Sequence[int],
) -> int:
    total, every = run.total_steps, _cadences(run)
    interruptions = Interruptions(run.config.checkpoint.minutes, received)
    pending: StepOutput | None = None
    compiled: set[int] = set()

    @jax.jit  # one program instead of one for each operation
    def rates(step: int) -> dict[str, jax.Array]:
        return {name: schedule(step) for name, schedule in run.learning_rates.items()}

    def due(name: str, step: int) -> bool:
        return bool(every[name]) and step % every[name] == 0

    if run.config.evals.start and not first:
        with progress.paused("evaluating"):
            evaluate(state, first)
    for group in dispatches(first, total, run.config.steps_per_dispatch, every.values()):
        with progress.paused():
            trace.begin(group, state)
        new = len(group) not in compiled
        compiled.add(len(group))
        with progress.paused("compiling the training step") if new else contextlib.nullcontext():
            if len(group) == 1:
                program, batch = run.step, global_batch(next(batches), run.mesh)
            else:
                rows = [next(batches) for _ in group]
                program, batch = run.steps, global_batches(rows, run.mesh)
            state, output = program(state, batch)
            if new:
                meter.compiled(partial(program.trace, state, batch), len(group))
        if group[0] == first + 1:
            jax.block_until_ready(output)
            meter.stepped()
        if pending is not None:
            averages.add(group[0] - 1, pending)  # from the last dispatch, while this one runs
        pending, step = output, group[-1]
        progress.step(step)
        log = due("log", step) or step == total
        eval_due = due("evals", step) or step == total
        signal_number, timed = interruptions.poll()
        stop, save = False, due("checkpoint", step) or bool(signal_number) or timed
        if log or eval_due or save:
            averages.add(step, pending)
            pending = None
        if log:
            means = averages.take()
            rate = progress.log(step, averages.loss(means))
            means["train/examples_per_second"] = rate
            means |= meter.metrics(rate / run.examples_per_step)
            for name, learning_rate in rates(step - 1).items():
                prefix = "" if len(run.learning_rates) == 1 else f"{name}/"
                means[f"train/{prefix}learning_rate"] = float(learning_rate)
            evaluate.writers.scalars(step, means)
        with progress.paused():
            trace.end(step, state, last=eval_due or save)
        if due("snapshots", step):
            with progress.paused():
                snapshot_store.save(snapshots.of(run.config, state), step, {})
        if eval_due or save:
            with progress.paused("evaluating" if eval_due else ""):
                metrics = evaluate(state, step) if eval_due else {}
                if snapshot_store is not None:
                    snapshot_store.wait()  # no checkpoint without the snapshots before it
                evaluate.writers.sync()  # nor without the metrics
                checkpoints.save(state, step, metrics, averages.window())
                interruptions.saved()
                if eval_due:
                    stop = exhausted(run.config, evaluate.workdir / "metrics.jsonl")
                    evaluate.write_report(state, finished=stop or step == total)
            signal_number = signal_number or interruptions.poll()[0]  # it came during the save
        if signal_number or stop:
            break
    checkpoints.wait()
    barrier("end of training")
    if signal_number and step < total and not stop:
        name = signal.Signals(signal_number).name
        message = "stopped by signal %d (%s) at step %d; run again to resume"
        logger.info(message, signal_number, name, step)
        return 128 + signal_number
    logger.info("finished at step %d of %d; see %s", step, total, evaluate.workdir)
    return 0
