"""Assembles runs from data, stages and method; reads their state and chooses their weights."""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from genjax import compilation
from genjax.config import ConfigError
from genjax.data import catalogue
from genjax.data.digest import content_digests
from genjax.data.packages import cache_root
from genjax.flags import WEIGHTS
from genjax.method import DataSpec, Stage, Tree
from genjax.nn.cpu import onednn
from genjax.parallel import distributed
from genjax.train_state import TrainState
from genjax.training import codes, game, lengths, memory, older, snapshots, stages, workdir
from genjax.training.assemble import Assembly, assemble
from genjax.training.checkpoint import Checkpoints
from genjax.training.progress import file_logging, terminal_logging

logger = logging.getLogger("genjax")

COMPILED = "xla"  # folder of compiled programs, next to the data


class Prepared(NamedTuple):
    """A run and its data.

    Attributes:
      run: the run joined with its stages.
      dataset: the data, or their codes if the run is on codes.
      content: returns the digest of each split of the data, even if the run is on codes.
    """

    run: Assembly
    dataset: catalogue.Dataset
    content: Callable[[], Mapping[str, str]]


def prepare(config: ConfigDict, folder: epath.Path, training: bool = False) -> Prepared:
    """Assembles a run with its stages, and loads its data or, if it is on codes, their codes.

    Several processes compare their data before they compute anything together.

    Args:
      config: config of the run.
      folder: its workdir.
      training: whether the run will be trained, so that its batches need memory too.

    Raises:
      ConfigError: config, data, stages and devices do not fit together, or the data differ between
        processes.
    """
    dataset = catalogue.load(workdir.with_own_tokenizer(config.dataset, folder))
    content = cache(partial(content_digests, dataset))
    if distributed.several():
        distributed.agree({f"the data ({s})": digest for s, digest in content().items()})
    found_stages = stages.find(config, folder)
    coder, spec = stages.codes_of(config, found_stages), dataset.spec
    if not found_stages:
        run = build(config, spec, found_stages, folder)
        memory.check(run, training)
        return Prepared(run, dataset, content)
    if coder:
        codes.check(config, coder, dataset)
        spec = codes.code_spec(coder, spec)
    for stage in found_stages.values():
        stages.check_facts(stage, dataset.spec)
    run = build(config, spec, found_stages, folder, dataset.spec)  # report errors before the work
    memory.check(run, training)
    with jax.set_mesh(run.mesh):
        arrays = stages.read(found_stages, config, folder, run.mesh)
        if coder:
            decoded, dataset = dataset, codes.encoded(config, coder, arrays, dataset, run.mesh)
            if dataset.spec != spec:  # it now has what was measured of the codes
                run = build(config, dataset.spec, found_stages, folder, decoded.spec)
    pretrained_by_method = run.method.pretrained

    def pretrained():
        params, mutable = pretrained_by_method() if pretrained_by_method else ({}, {})
        return {**arrays.params, **params}, {**arrays.mutable, **mutable}

    run = run._replace(method=run.method._replace(pretrained=pretrained))
    return Prepared(run, dataset, content)


def build(
    config: ConfigDict,
    spec: DataSpec,
    found: Mapping[str, Stage],
    folder: epath.Path,
    data: DataSpec | None = None,
) -> Assembly:
    """Assembles the run in `folder` on data of `spec` with its stages: see `stages.build`."""
    config = lengths.settle(config, spec, folder, found)
    if not found:
        return assemble(config, spec)
    return assemble(config, spec, stages.build(config, spec, found, data))


def restored(
    config: ConfigDict, folder: epath.Path, checkpoint: str
) -> tuple[Assembly, TrainState]:
    """The run in `folder` and its state at a step, "best", or "" for the newest; needs no data.

    Raises:
      ConfigError: there is no run, or no such checkpoint.
    """
    run = build(config, spec_of(folder), stages.find(config, folder), folder)
    memory.check(run, training=False)
    return run, restore_at(run, folder, checkpoint)


def spec_of(folder: epath.Path) -> DataSpec:
    """Reads the description of the data of the run in `folder`.

    Raises:
      ConfigError: there is no run.
    """
    spec = workdir.read_spec(folder)
    if spec is None:
        raise ConfigError(f"--workdir={folder} holds no run (no config.json). Train one first.")
    return spec


def restore_at(run: Assembly, folder: epath.Path, checkpoint: str) -> TrainState:
    """The state of a run at a step, "best", or "" for the newest.

    Raises:
      ConfigError: there is no such checkpoint.
    """
    checkpoints = Checkpoints(folder)
    return restore(run, checkpoints, find_step(run, checkpoints, checkpoint, "--checkpoint"))


def find_step(run: Assembly, checkpoints: Checkpoints, given: str, flag: str) -> int | None:
    """The step that a flag gives as a number or as "best"; None for "".

    Raises:
      ConfigError: the value is neither, or the run kept no best checkpoint.
    """
    if given == "best":
        return checkpoints.best(run.config)
    if given and not re.fullmatch("[0-9]{1,18}", given):
        given = given if len(given) < 40 else f"{given[:40]}..."
        raise ConfigError(f"{flag}={given!r}: expected a step or 'best'.")
    return int(given) if given else None


class Weights(NamedTuple):
    """Which of a run's weights to use.

    Attributes:
      ema: the name of an average, its standard deviation, "none", or "" for the default one.
      guide_ema: the average of the guiding weights; "" for the one in `ema`.
      guide_checkpoint: the step of the guiding weights; "" for the same step.
    """

    ema: str = ""
    guide_ema: str = ""
    guide_checkpoint: str = ""


def weights_of(flags: argparse.Namespace) -> Weights:
    """The weights that a command names."""
    return Weights(*(getattr(flags, name) for name in WEIGHTS))


def parameters(
    run: Assembly, folder: epath.Path, state: TrainState, weights: Weights
) -> dict[str, Tree]:
    """The parameters that a command uses: the average named by --ema, and guiding weights if asked.

    With --guide_ema or --guide_checkpoint, `guide/<network>` is added for each trained network: its
    weights from another average (default: the one of --ema), or from another checkpoint.

    Args:
      run: the run.
      folder: its workdir.
      state: the checkpoint to use.
      weights: which weights to use.

    Raises:
      ConfigError: the average or checkpoint was not kept, the method cannot be guided by other
        weights, or a weight is not finite.
    """
    params = snapshots.parameters(run, folder, state, weights.ema, "--ema")
    check_finite({"params": params, "mutable": state.mutable}, folder, int(state.step))
    guides = {name: getattr(weights, name) for name in ("guide_ema", "guide_checkpoint")}
    if not any(guides.values()):
        return params
    if not run.method.guided:
        flags = " ".join(f"--{name}={value}" for name, value in guides.items() if value)
        raise ConfigError(
            f"{flags}: method {run.config.method!r} cannot be guided by other weights of its "
            "networks. Leave out the flag."
        )
    checkpoints = Checkpoints(folder)
    step = find_step(run, checkpoints, weights.guide_checkpoint, "--guide_checkpoint")
    other = state if step in (None, int(state.step)) else snapshots.read(run, checkpoints, step)
    flag = "--guide_ema" if weights.guide_ema else "--ema"
    guide = snapshots.parameters(run, folder, other, weights.guide_ema or weights.ema, flag)
    check_finite({"params": guide}, folder, int(other.step))
    return params | {f"guide/{name}": guide[name] for name in game.trained(run.method)}


def check_finite(weights: Tree, folder: epath.Path, step: int) -> None:
    """Refuses weights with NaN or infinity, because their samples can look normal.

    Raises:
      ConfigError: an array is not finite; the message names the first.
    """
    paths = jax.tree_util.tree_leaves_with_path(weights)
    numbers = [(path, x) for path, x in paths if jnp.issubdtype(x.dtype, jnp.inexact)]
    finite = jax.device_get(_all_finite([x for _, x in numbers]))
    bad = [path for (path, _), right in zip(numbers, finite, strict=True) if not right]
    if bad:
        first = jax.tree_util.keystr(bad[0], simple=True, separator="/")
        raise ConfigError(
            f"step {step} of {folder} is not finite: {len(bad)} of its {len(numbers)} arrays hold "
            f"NaN or infinity, the first is {first}. Its samples and metrics would mean nothing: "
            "choose another step with --checkpoint, or train again with a lower learning rate."
        )


@jax.jit
def _all_finite(arrays: list[jax.Array]) -> list[jax.Array]:
    """Whether each array is finite, in one compiled program: a state has hundreds of arrays."""
    return [jnp.isfinite(x).all() for x in arrays]


def restore(run: Assembly, checkpoints: Checkpoints, step: int | None = None) -> TrainState:
    """The state at a step (default: the newest), also in the older format with unnamed stages."""
    checkpoint_step = checkpoints.latest() if step is None else step
    maybe_unnamed = bool(run.config.stages) and checkpoint_step in checkpoints.steps()
    if maybe_unnamed and older.unnamed(checkpoints.shapes(checkpoint_step), run.state):
        state = checkpoints.restore(older.without_name(run.state), checkpoint_step)
        return older.with_name(state, run.state)
    return checkpoints.restore(run.state, step)


@contextlib.contextmanager
def logging_to(folder: epath.Path | None) -> Iterator[None]:
    """Sends the first process's log to the folder's log.txt, or to the terminal if None."""
    inside = terminal_logging() if folder is None else file_logging(folder)
    first = not distributed.several() or jax.process_index() == 0  # starts no backend
    with inside if first else contextlib.nullcontext():
        yield


def keep_programs() -> None:
    """Keeps compiled programs next to the data, for this process and later ones."""
    compilation.keep(cache_root() / COMPILED)


@contextlib.contextmanager
def fast_on_cpu(config: ConfigDict) -> Iterator[None]:
    """Uses `config.cpu_library` for convolutions and matrix products on a single CPU device."""
    if jax.default_backend() != "cpu":
        yield
        return
    with onednn.used(_library(config)):
        yield


def tell_who_computes() -> None:
    """Logs which library computes on a CPU, and why."""
    if jax.default_backend() == "cpu":
        logger.info("convolutions and matrix products use %s", onednn.in_use())


def _library(config: ConfigDict) -> onednn.Library | onednn.Unavailable:
    if config.cpu_library == "xla":
        return onednn.Unavailable("config.cpu_library")
    if jax.device_count() > 1:
        return onednn.Unavailable("oneDNN needs a single device")
    try:
        return onednn.load(cache_root() / "onednn")
    except onednn.Unavailable as error:
        return error
