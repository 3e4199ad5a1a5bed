"""--mode=train: trains a run, and before it the stages that are named by configs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
from etils import epath
from ml_collections import ConfigDict

from genjax import config as configs
from genjax import method as methods
from genjax.config import ConfigError
from genjax.data import catalogue
from genjax.data.digest import data_digest
from genjax.evals import judges
from genjax.evals.evaluation import Evaluated, Evaluation, check_split
from genjax.files import place
from genjax.modes.runs import logging_to, prepare, restore, tell_who_computes
from genjax.nn.precision import settled
from genjax.parallel.mesh import fitted, make_mesh
from genjax.train_state import TrainState
from genjax.training import follow, lengths, loop, stages, workdir
from genjax.training.assemble import Assembly, put_pretrained, read_pretrained
from genjax.training.checkpoint import Checkpoints
from genjax.training.metrics import Writers, require_wandb


def train(
    config: ConfigDict,
    folder: epath.Path,
    flags: argparse.Namespace,
    on_eval: Callable[[Evaluated], None] | None = None,
) -> int:
    """Trains, or resumes; returns the exit code.

    `on_eval` is called on the first process after each evaluation of the run, not of its stages.
    """
    config = settled(config)
    check(config, folder)  # before stages are trained for it
    with workdir.locked(folder) as begin:
        for name, given in config.stages.items():
            if stages.is_config(given) and (code := train_stage(name, config, folder, flags)):
                return code
        with logging_to(folder):
            return _train(config, folder, flags, begin, on_eval)


def check(config: ConfigDict, folder: epath.Path) -> None:
    """Refuses what is wrong whatever the stages become, before one is trained.

    Raises:
      ConfigError: no such method, a mesh that does not fit, codes of no stage, no such data, or no
        package that is asked for.
    """
    methods.module(config)
    if config.log.wandb and jax.process_index() == 0:
        require_wandb()
    make_mesh(config)
    stages.check_codes(config)
    begun = workdir.has_checkpoint(folder)
    if not begun and any(map(stages.is_config, config.stages.values())):
        spec = catalogue.spec(workdir.with_own_tokenizer(config.dataset, folder))
        check_split(config, spec.name, spec.sizes)


def train_stage(
    name: str, config: ConfigDict, folder: epath.Path, flags: argparse.Namespace
) -> int:
    """Trains the stage that a config names, under `folder`, or goes on with it; the exit code.

    If its codes are the run's data, it is trained on the run's data.
    """
    if workdir.has_checkpoint(folder):  # the run has begun: its stages are part of it
        return 0
    location = located(config.stages[name], folder, flags)
    workdir.import_from(Path(location.partition(":")[0]).resolve().parent)
    try:
        own = configs.load(location, complete=judges.with_sections)
    except ConfigError as error:
        raise ConfigError(f"config.stages.{name}: {error}") from error
    if config.dataset.codes == name:
        own.dataset = config.dataset.copy_and_resolve_references()
        own.dataset.codes = ""
        own.evals.split = config.evals.split
    own.mesh = config.mesh.copy_and_resolve_references()
    place = folder / stages.FOLDER / name
    allowed = flags.allow_config_change
    own = workdir.with_own_precision(own, place)
    workdir.check_same_config(place, own, allowed, judges.with_sections)
    beside = argparse.Namespace(**{**vars(flags), "config": location})
    return train(own, place, beside)


def located(given: str, folder: epath.Path, flags: argparse.Namespace) -> str:
    """A stage's config, `file.py[:preset]`: relative paths are of the working directory, or else of
    the folder of the config that names it.
    """
    path, mark, preset = given.partition(":")
    named = flags.config.partition(":")[0]
    beside = Path(named).parent if named else workdir.read_source(folder)
    if not Path(path).is_file() and beside and (beside / path).is_file():
        path = str(beside / path)
    return path + mark + preset


def _train(
    config: ConfigDict,
    folder: epath.Path,
    flags: argparse.Namespace,
    begin: Callable[[], None],
    on_eval: Callable[[Evaluated], None] | None,
) -> int:
    tell_who_computes()
    run, dataset, content = prepare(config, folder, training=True)
    workdir.check_same_data(folder, run.spec, flags.allow_config_change, content)
    if run.total_steps:
        sizes = {split: len(source) for split, source in dataset.splits.items()}
        check_split(config, run.spec.name, sizes)  # before a judge is trained
    loop.logger.info("%s: %s; data from %s", folder, config.method, dataset.route)

    def start(checkpoints: Checkpoints) -> TrainState:
        state = first_state(run, checkpoints)
        if jax.process_index() == 0:
            stages.keep(config, folder)
            digest = data_digest(dataset.decoded or dataset) if run.method.codec else ""
            source = Path(flags.config.partition(":")[0]).resolve().parent if flags.config else None
            length = lengths.began_with(folder, stages.find(config, folder)) or run.total_steps
            kept = with_own_mesh(config, folder)
            kept.profile = ""  # it is of this command alone
            described = kept, run.spec, flags.command, length, digest, source, content()
            workdir.write_config(folder, *described)
        return state

    def evaluation(writers: Writers) -> Evaluation:
        judging = judges.build(config, dataset.decoded or dataset, run.mesh)
        evaluation = Evaluation(run, dataset, folder, writers, judging, on_eval=on_eval)
        begin()  # nothing is left that could refuse the start
        return evaluation

    return loop.train(run, dataset, folder, start, evaluation)


def with_own_mesh(config: ConfigDict, folder: epath.Path) -> ConfigDict:
    """`config` with the mesh of the run in `folder`, if its own is only that, fitted to devices."""
    stored = workdir.read_config(folder)
    kept = config.copy_and_resolve_references()
    if stored is not None and fitted(stored, jax.device_count()).mesh == config.mesh:
        kept.mesh = stored.mesh
    return kept


def first_state(run: Assembly, checkpoints: Checkpoints) -> TrainState:
    """The state to train from: the newest checkpoint, another run's parameters, or init."""
    if checkpoints.latest() is not None:
        state = restore(run, checkpoints)
        loop.logger.info("resuming at step %d", int(state.step))
        return state
    pretrained = read_pretrained(run)
    state = run.init()
    if source := run.config.checkpoint.init_from:
        mapping, follows = run.config.checkpoint.init_map, run.method.follows
        found = Checkpoints(place(source, "--config.checkpoint.init_from"))
        state, taken = found.restore_into(state, mapping, follows)
        loop.logger.info("took %d arrays from %s", len(taken), source)
    state = put_pretrained(state, *pretrained)
    begun = follow.begin(run.method.follows, state.params, state.opt_state)
    return state.replace(params=begun)
