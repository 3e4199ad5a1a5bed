"""Finds the config and the workdir of a command."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path

import jax
from etils import epath
from ml_collections import ConfigDict

from genjax import config as configs
from genjax.config import ConfigError
from genjax.evals import judges
from genjax.files import place
from genjax.parallel.mesh import fitted
from genjax.training import workdir
from genjax.training.checkpoint_files import check_path

logger = logging.getLogger("genjax")

NEEDS_NO_RUN = ("statistics", "tokenizer", "config", "plan")  # modes


def resolve(flags: argparse.Namespace, overrides: dict[str, str]) -> tuple[ConfigDict, epath.Path]:
    """Returns the config, read from the file or from the workdir, and the workdir.

    Raises:
      ConfigError: neither is given, or the workdir has no run or a run with another config.
    """
    if not flags.config and not flags.workdir:
        raise ConfigError("give --config=FILE.py, --workdir=DIR of a run, or both.")
    path, _, preset = flags.config.partition(":")
    default_name = "_".join(filter(None, (Path(path).stem, preset)))
    folder = place(flags.workdir or Path("runs") / default_name, "--workdir")
    needs_no_run = bool(flags.samples) or flags.mode in NEEDS_NO_RUN
    if not needs_no_run:
        check_path(folder)
    import_folder = Path(path).resolve().parent if flags.config else workdir.read_source(folder)
    workdir.import_from(import_folder)
    if flags.config:
        config = configs.load(flags.config, overrides, judges.with_sections)
        return (config if needs_no_run else fit_to_run(config, folder, flags, overrides)), folder
    stored = workdir.read_config(folder)
    if stored is None:
        raise ConfigError(f"--workdir={folder} holds no run (no config.json). Give --config too.")
    config = configs.override(judges.with_sections(stored, overrides), overrides)
    configs.validate(config)
    return fit_to_run(config, folder, flags, overrides, flags.mode == "train"), folder


def fit_to_run(
    config: ConfigDict,
    folder: epath.Path,
    flags: argparse.Namespace,
    overrides: Mapping[str, str],
    compare: bool = True,
) -> ConfigDict:
    """Adapts a command's config to the run in `folder`, if there is one.

    A precision of "auto" becomes the run's. Unless `overrides` set them, the mesh is fitted to the
    devices, and --mode=eval uses the test split if there is one.

    Args:
      config: the config given to the command.
      folder: the workdir.
      flags: flags of the command.
      overrides: keys that the command sets.
      compare: whether to check that the config is the run's.

    Raises:
      ConfigError: the config differs in a key that a resumed run may not change.
    """
    config = workdir.with_own_precision(config, folder)
    if compare:
        workdir.check_same_config(folder, config, flags.allow_config_change, judges.with_sections)
    spec = workdir.read_spec(folder)
    if spec is None or flags.mode == "config" or flags.topology:
        return config
    if not any(key.startswith("mesh.") for key in overrides):
        fitting = fitted(config, jax.device_count())
        if fitting.mesh != config.mesh:
            was, now = (", ".join(f"{k}={v}" for k, v in c.mesh.items()) for c in (config, fitting))
            message = "the run's mesh %s does not fit the devices here (%d): using %s"
            logger.info(message, was, jax.device_count(), now)
            config = fitting
    if flags.mode == "eval" and "evals.split" not in overrides and spec.sizes.get("test"):
        config = configs.override(config, {"evals.split": "test"})
    return config
