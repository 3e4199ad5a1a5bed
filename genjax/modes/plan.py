"""--mode=plan: what a run takes on accelerators that are not here, or on the devices that are."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
from etils import epath
from ml_collections import ConfigDict

from genjax import config as configs
from genjax.checks import ConfigError, require
from genjax.evals import judges
from genjax.method import DataSpec
from genjax.modes.train import located
from genjax.nn.precision import settled, with_precision
from genjax.planning import ahead, chips, described, roofs, trial
from genjax.planning.chips import Topology
from genjax.planning.estimate import Estimate, estimate
from genjax.planning.roofs import Roof
from genjax.planning.search import Candidate, candidates, searched, size_of
from genjax.planning.table import advice, ranking, report, summary
from genjax.sampling.draw import MOST_SAMPLES, parse_options
from genjax.training import workdir
from genjax.training.assemble import Assembly

logger = logging.getLogger("genjax")


def plan(config: ConfigDict, folder: epath.Path, flags: argparse.Namespace) -> int:
    """Prints what a step, or a batch of samples, takes; the last line is one JSON object.

    With `--topology` the program is compiled for chips that need not be here. Without it, it is
    compiled for the devices here, and a step is measured too. That a run does not fit is an
    answer, and no error.

    Raises:
      ConfigError: an unknown topology, or a config that does not go with it.
    """
    require(jax.process_count() == 1, "--mode", "plan", "one process")
    enough = flags.num is None or 0 < flags.num <= MOST_SAMPLES
    require(enough, "--num", flags.num, f"1 to {MOST_SAMPLES}")
    require(flags.price >= 0, "--price", flags.price, "a price of one chip for an hour, or nothing")
    topology = chips.parse(flags.topology, flags.slices) if flags.topology else None
    if topology is None and flags.slices != 1:
        raise ConfigError("--slices goes with --topology: leave it out.")
    devices = ahead.devices(topology) if topology else jax.devices()
    config = _settled(config, topology)
    stored = None if flags.config else workdir.read_spec(folder)
    if not flags.config and stored is None:
        raise ConfigError(f"--workdir={folder} holds no run. Give --config.")
    build = partial(_build, folder=folder, stored=stored, flags=flags, topology=topology)
    build = partial(build, devices=devices)
    known = topology or roofs.here(devices)
    run = build(config)
    roof = roofs.of_topology(known, config.precision) if known else _measured(run)
    if flags.search:
        return _search(config, run, roof, build, known, flags)
    made = _estimate(run, roof, flags)
    seconds = 0.0
    if topology is None and flags.what == "train" and made.fits:
        seconds = trial.seconds_of_step(run, made.executable)
    print(report(run.config, made, roof, known, seconds, flags.price))
    if not made.fits:
        print(advice(run.config, made))
    print(json.dumps(summary(made, known, seconds, flags.price)))
    return 0


def _measured(run: Assembly) -> Roof:
    logger.info("no figures of these devices are known: a product, a copy and a gather are timed")
    return roofs.measured(run.mesh, run.config.precision)


def _settled(config: ConfigDict, topology: Topology | None) -> ConfigDict:
    """The config with the precision that the chips have; all of those known have bfloat16."""
    if topology is None or config.precision != "auto":
        return settled(config)
    return with_precision(config, "bfloat16")


def _build(
    config: ConfigDict,
    *,
    folder: epath.Path,
    stored: DataSpec | None,
    flags: argparse.Namespace,
    topology: Topology | None,
    devices: list[jax.Device],
) -> Assembly:
    """The run of a config on devices."""

    def load(name: str) -> ConfigDict:
        location = located(config.stages[name], folder, flags)
        workdir.import_from(Path(location.partition(":")[0]).resolve().parent)
        own = configs.load(location, complete=judges.with_sections)
        if config.dataset.codes == name:
            own.dataset = config.dataset.copy_and_resolve_references()
            own.dataset.codes = ""
        return _settled(own, topology)

    return described.run(config, devices, folder, stored, load)


def _estimate(run: Assembly, roof: Roof, flags: argparse.Namespace) -> Estimate:
    options = parse_options(run.method, flags.options) if flags.what == "sample" else {}
    what = "the training step" if flags.what == "train" else "the sampler"
    logger.info("compiling %s for %d devices", what, run.mesh.devices.size)
    return estimate(run, roof, flags.what, flags.num or 64, options)


def _search(
    config: ConfigDict,
    run: Assembly,
    roof: Roof,
    build: Callable[[ConfigDict], Assembly],
    topology: Topology | None,
    flags: argparse.Namespace,
) -> int:
    """Plans several meshes, microbatches and kinds of remat, and ranks what fits by time."""
    require(flags.what == "train", "--search", flags.search, "--what=train")
    require(flags.search > 0, "--search", flags.search, "how many programs to compile")
    count = run.mesh.devices.size

    def one(keys: Candidate) -> Estimate:
        logger.info("compiling %s", ", ".join(f"{key}={value}" for key, value in keys.items()))
        return estimate(build(configs.override(config, keys)), roof)

    found = searched(candidates(config, size_of(run), count, roof), one, flags.search)
    print(ranking(config, found))
    best = found[0]
    print(json.dumps(dict(best.keys) | summary(best.estimate, topology, 0.0, flags.price)))
    return 0
