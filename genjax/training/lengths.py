"""The length that a run began with: what its warm-ups and late starts are shares of."""

from __future__ import annotations

import re
from collections.abc import Mapping

from etils import epath
from ml_collections import ConfigDict

from genjax import config as configs
from genjax import method as methods
from genjax.durations import steps
from genjax.method import DataSpec, Stage
from genjax.training import workdir
from genjax.training.assemble import total_steps


def shares(config: ConfigDict) -> dict[str, str]:
    """The stretches that a config gives as shares of the run, such as a warm-up: key -> text.

    Cadences, the keys `*.every`, go with the run's length and are none; percentages in `dataset`
    are of the data.
    """
    return {
        key: value
        for key, value in configs.flatten(config).items()
        if isinstance(value, str)
        and re.fullmatch(r"[0-9][0-9_.]*_percents?", value)
        and not re.fullmatch(r"dataset\..*|.*\.every", key)
    }


def settled(config: ConfigDict, length: int) -> ConfigDict:
    """`config` with its `shares` in steps, of a run that began with a duration of `length`."""
    return configs.override(
        config,
        {
            key: f"{steps(text, batch_size=1, examples=0, total=length)}_steps"
            for key, text in shares(config).items()
        },
    )


def began_with(folder: epath.Path, stages: Mapping[str, Stage] | None = None) -> int:
    """Steps of the run in `folder`, with these stages, when it began; 0 if there is none to go on.

    A run whose `config.json` does not say so, as older ones, began with its stored duration.
    """
    stored = workdir.read_config(folder) if workdir.has_checkpoint(folder) else None
    if stored is None:
        return 0
    if length := workdir.read_length(folder):
        return length
    spec = workdir.read_spec(folder)
    return total_steps(stored, spec, methods.build(stored, spec, stages))


def settle(
    config: ConfigDict,
    spec: DataSpec,
    folder: epath.Path,
    stages: Mapping[str, Stage] | None = None,
) -> ConfigDict:
    """`config` with the stretches that it gives as shares of the run in steps.

    They are shares of the length that the run in `folder` began with, or begins with now, so that
    a longer `duration` moves none of them.

    Args:
      config: a checked config.
      spec: of the data.
      folder: of the run.
      stages: of the run.
    """
    if not shares(config):
        return config
    length = began_with(folder, stages)
    length = length or total_steps(config, spec, methods.build(config, spec, stages))
    return settled(config, length)
