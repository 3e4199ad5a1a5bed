"""--mode=train: trains a run, after training its stages that are given as configs."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from genjax import config as configs
from genjax import method as methods
from genjax.adapters import BASE
from genjax.config import ConfigError
from genjax.data import catalogue
from genjax.data.digest import data_digest
from genjax.evals import judges
from genjax.evals.evaluation import Evaluated, Evaluation, check_split
from genjax.files import place
from genjax.interop import export, peft
from genjax.modes.runs import logging_to, prepare, restore, tell_who_computes
from genjax.nn.precision import settled
from genjax.parallel.mesh import fitted, make_mesh
from genjax.planning import chips, flops
from genjax.train_state import TrainState
from genjax.training import follow, lengths, loop, stages, workdir
from genjax.training.assemble import Assembly, put_pretrained, read_pretrained
from genjax.training.checkpoint import Checkpoints
from genjax.training.meter import UNKNOWN, Meter, Peak
from genjax.training.metrics import Writers, require_wandb


def train(
    config: ConfigDict,
    folder: epath.Path,
    flags: argparse.Namespace,
    on_eval: Callable[[Evaluated], None] | None = None,
) -> int:
    """Trains or resumes a run; returns the exit code.

    `on_eval` is called on the first process after each evaluation of the run, not of its stages.
    """
    config = settled(config)
    check(config, folder)  # before its stages are trained
    with workdir.locked(folder) as begin:
        for name, stage in config.stages.items():
            if stages.is_config(stage) and (code := train_stage(name, config, folder, flags)):
                return code
        with logging_to(folder):
            return _train(config, folder, flags, begin, on_eval)


def check(config: ConfigDict, folder: epath.Path) -> None:
    """Checks everything that does not depend on trained stages, before any is trained.

    Raises:
      ConfigError: there is no such method or data, the mesh does not fit, the codes are not of a
        stage, or a requested package is missing.
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
    """Trains or resumes, under `folder`, a stage that is given as a config; returns the exit code.

    If the run is on the stage's codes, the stage is trained on the run's data.
    """
    if workdir.has_checkpoint(folder):  # the run has started: its state holds its stages
        return 0
    location = located(config.stages[name], folder, flags)
    workdir.import_from(Path(location.partition(":")[0]).resolve().parent)
    try:
        stage_config = configs.load(location, complete=judges.with_sections)
    except ConfigError as error:
        raise ConfigError(f"config.stages.{name}: {error}") from error
    if config.dataset.codes == name:
        stage_config.dataset = config.dataset.copy_and_resolve_references()
        stage_config.dataset.codes = ""
        stage_config.evals.split = config.evals.split
    stage_config.mesh = config.mesh.copy_and_resolve_references()
    stage_folder = folder / stages.FOLDER / name
    allow_change = flags.allow_config_change
    stage_config = workdir.with_own_precision(stage_config, stage_folder)
    workdir.check_same_config(stage_folder, stage_config, allow_change, judges.with_sections)
    changed = {"config": location, "began": time.perf_counter()}
    stage_flags = argparse.Namespace(**{**vars(flags), **changed})
    return train(stage_config, stage_folder, stage_flags)


def located(given: str, folder: epath.Path, flags: argparse.Namespace) -> str:
    """Finds a stage's config, `file.py[:preset]`.

    A relative path is looked up in the working directory, then in the folder of the run's config.
    """
    path, mark, preset = given.partition(":")
    parent_config = flags.config.partition(":")[0]
    parent_folder = Path(parent_config).parent if parent_config else workdir.read_source(folder)
    if not Path(path).is_file() and parent_folder and (parent_folder / path).is_file():
        path = str(parent_folder / path)
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
            stored_config = with_own_mesh(config, folder)
            stored_config.profile = ""  # it is for this command only
            description = stored_config, run.spec, flags.command, length, digest, source, content()
            workdir.write_config(folder, *description)
        return state

    def evaluation(writers: Writers) -> Evaluation:
        judging = judges.build(config, dataset.decoded or dataset, run.mesh)
        evaluation = Evaluation(run, dataset, folder, writers, judging, on_eval=on_eval)
        begin()  # all checks have passed
        return evaluation

    meter = Meter(flags.began, peak_of(run.mesh.devices.flat, config.precision))
    return loop.train(run, dataset, folder, start, evaluation, meter)


def peak_of(devices: Iterable[jax.Device], precision: str) -> Peak:
    """The makers' peak of devices for products of a type; unknown of CPUs and unknown kinds."""
    known = [chips.of_device(device.device_kind) for device in devices]
    if None in known:
        return UNKNOWN
    rates = [chip.bfloat16 if precision == "bfloat16" else chip.float32 for chip in known]
    return Peak(lambda program: flops.count(program).model, sum(rates))


def with_own_mesh(config: ConfigDict, folder: epath.Path) -> ConfigDict:
    """`config` with the stored mesh of the run, if its mesh is only that one fitted to devices."""
    stored = workdir.read_config(folder)
    adapted = config.copy_and_resolve_references()
    if stored is not None and fitted(stored, jax.device_count()).mesh == config.mesh:
        adapted.mesh = stored.mesh
    return adapted


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
        if source in run.config.stages:
            source_folder = stages.place_of(source, run.config, checkpoints.folder.parent)
        else:
            source_folder = place(source, "--config.checkpoint.init_from")
        source_checkpoints = Checkpoints(source_folder)
        adapters = run.method.adapters
        adapted = adapters.networks if adapters else ()
        state, restored_paths = source_checkpoints.restore_into(state, mapping, follows, adapted)
        loop.logger.info("restored %d arrays from %s", len(restored_paths), source)
    state = with_given_adapters(run, put_pretrained(state, *pretrained))
    params = follow.begin(run.method.follows, state.params, state.opt_state)
    return state.replace(params=params)


def with_given_adapters(run: Assembly, state: TrainState) -> TrainState:
    """The state with the adapters in `config.lora.weights`, if it names a folder.

    Raises:
      ConfigError: they do not fit the run.
    """
    if not run.config.lora.weights:
        return state
    folder = place(run.config.lora.weights, "--config.lora.weights")
    network = export.with_adapters(run.config, run.spec, run.method.adapters, "config.lora.weights")
    everywhere = NamedSharding(run.mesh, PartitionSpec())
    with_lengths = network.kind == "dora"  # which are those of the base
    needed = {name: state.params[name] for name in ("lm", *[f"{BASE}lm"] * with_lengths)}
    here = jax.device_get(jax.jit(lambda tree: tree, out_shardings=everywhere)(needed))
    factors = peft.read(folder, network, here.get(f"{BASE}lm", {}), here["lm"])
    loop.logger.info("read the adapters in %s", folder)
    return put_pretrained(state, {"lm": factors}, {})
