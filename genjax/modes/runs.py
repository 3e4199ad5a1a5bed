"""A run put together: its data, its stages, its method, its state."""

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

COMPILED = "xla"  # folder of compiled programs, among the data


class Prepared(NamedTuple):
    """A run and its data.

    Attributes:
      run: joined with its stages.
      dataset: the data, or their codes if so asked.
      content: gives the digest of each split of the data, even where the run is on their codes.
    """

    run: Assembly
    dataset: catalogue.Dataset
    content: Callable[[], Mapping[str, str]]


def prepare(config: ConfigDict, folder: epath.Path, training: bool = False) -> Prepared:
    """The run and its data; with stages, joined with them and, if so asked, the codes of the data.

    Several processes compare their data before they compute anything of them together.

    Args:
      config: of the run.
      folder: its workdir.
      training: whether the run is to be trained, so that its batches need memory too.

    Raises:
      ConfigError: config, data, stages and devices do not go together, or processes have other
        data than each other.
    """
    dataset = catalogue.load(workdir.with_own_tokenizer(config.dataset, folder))
    content = cache(partial(content_digests, dataset))
    if distributed.several():
        distributed.agree({f"the data ({s})": digest for s, digest in content().items()})
    found = stages.find(config, folder)
    coded, spec = stages.codes_of(config, found), dataset.spec
    if not found:
        run = build(config, spec, found, folder)
        memory.check(run, training)
        return Prepared(run, dataset, content)
    if coded:
        codes.check(config, coded, dataset)
        spec = codes.code_spec(coded, spec)
    for stage in found.values():
        stages.check_facts(stage, dataset.spec)
    run = build(config, spec, found, folder, dataset.spec)  # complain before the work
    memory.check(run, training)
    with jax.set_mesh(run.mesh):
        arrays = stages.read(found, config, folder, run.mesh)
        if coded:
            decoded, dataset = dataset, codes.encoded(config, coded, arrays, dataset, run.mesh)
            if dataset.spec != spec:  # what is measured of the codes is known now
                run = build(config, dataset.spec, found, folder, decoded.spec)
    own = run.method.pretrained

    def pretrained():
        params, mutable = own() if own else ({}, {})
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
    """The run in `folder` on data of `spec`, joined with its stages: see `stages.build`."""
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
    """What the data of the run in `folder` look like.

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
    """The step that is `given` to a flag as a number or as "best"; None for "".

    Raises:
      ConfigError: it is something else, or the run kept no best checkpoint.
    """
    if given == "best":
        return checkpoints.best(run.config)
    if given and not re.fullmatch("[0-9]{1,18}", given):
        given = given if len(given) < 40 else f"{given[:40]}..."
        raise ConfigError(f"{flag}={given!r}: expected a step or 'best'.")
    return int(given) if given else None


class Weights(NamedTuple):
    """Which of a run's weights are used.

    Attributes:
      ema: the name of an average, its standard deviation, "none", or "" for the usual one.
      guide_ema: the average of the weights that guide; "" for that of `ema`.
      guide_checkpoint: the step of the weights that guide; "" for the same step.
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
    """The parameters that a command uses: the average that --ema names, and guides beside them.

    With --guide_ema or --guide_checkpoint, `guide/<network>` is there for each trained network: its
    weights by another average (by that of --ema if none is named), or of another checkpoint.

    Args:
      run: the run.
      folder: its workdir.
      state: its checkpoint that is used.
      weights: which are used.

    Raises:
      ConfigError: what is named was not kept, the method knows no guide, or a weight is not finite.
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
            "networks. Leave it out."
        )
    checkpoints = Checkpoints(folder)
    step = find_step(run, checkpoints, weights.guide_checkpoint, "--guide_checkpoint")
    other = state if step in (None, int(state.step)) else snapshots.read(run, checkpoints, step)
    flag = "--guide_ema" if weights.guide_ema else "--ema"
    guide = snapshots.parameters(run, folder, other, weights.guide_ema or weights.ema, flag)
    check_finite({"params": guide}, folder, int(other.step))
    return params | {f"guide/{name}": guide[name] for name in game.trained(run.method)}


def check_finite(weights: Tree, folder: epath.Path, step: int) -> None:
    """Refuses weights that hold NaN or infinity: samples of them look like any others.

    Raises:
      ConfigError: an array has such a number; names the first.
    """
    paths = jax.tree_util.tree_leaves_with_path(weights)
    numbers = [(path, x) for path, x in paths if jnp.issubdtype(x.dtype, jnp.inexact)]
    finite = jax.device_get(_all_finite([x for _, x in numbers]))
    bad = [path for (path, _), right in zip(numbers, finite, strict=True) if not right]
    if bad:
        first = jax.tree_util.keystr(bad[0], simple=True, separator="/")
        raise ConfigError(
            f"step {step} of {folder} is not finite: {len(bad)} of its {len(numbers)} arrays hold "
            f"NaN or infinity, the first is {first}. Samples and metrics of it would mean nothing: "
            "name another step with --checkpoint, or train anew with a lower learning rate."
        )


@jax.jit
def _all_finite(arrays: list[jax.Array]) -> list[jax.Array]:
    """Whether each array is, in one program: a state has hundreds of them."""
    return [jnp.isfinite(x).all() for x in arrays]


def restore(run: Assembly, checkpoints: Checkpoints, step: int | None = None) -> TrainState:
    """The state at a step (the newest), also of a run whose stage had no name yet."""
    found = checkpoints.latest() if step is None else step
    staged = bool(run.config.stages) and found in checkpoints.steps()
    if staged and older.unnamed(checkpoints.shapes(found), run.state):
        state = checkpoints.restore(older.without_name(run.state), found)
        return older.with_name(state, run.state)
    return checkpoints.restore(run.state, step)


@contextlib.contextmanager
def logging_to(folder: epath.Path | None) -> Iterator[None]:
    """The log of the first process: into the folder's log.txt, or on the terminal if None."""
    inside = terminal_logging() if folder is None else file_logging(folder)
    first = not distributed.several() or jax.process_index() == 0  # starts no backend
    with inside if first else contextlib.nullcontext():
        yield


def keep_programs() -> None:
    """Keeps compiled programs among the data, for this process and later ones."""
    compilation.keep(cache_root() / COMPILED)


@contextlib.contextmanager
def fast_on_cpu(config: ConfigDict) -> Iterator[None]:
    """Convolutions and products by `config.cpu_library` inside, if they are one CPU's."""
    if jax.default_backend() != "cpu":
        yield
        return
    with onednn.used(_library(config)):
        yield


def tell_who_computes() -> None:
    """Logs by what a CPU computes, and why."""
    if jax.default_backend() == "cpu":
        logger.info("convolutions and products by %s", onednn.in_use())


def _library(config: ConfigDict) -> onednn.Library | onednn.Unavailable:
    if config.cpu_library == "xla":
        return onednn.Unavailable("config.cpu_library")
    if jax.device_count() > 1:
        return onednn.Unavailable("oneDNN computes on one device alone")
    try:
        return onednn.load(cache_root() / "onednn")
    except onednn.Unavailable as error:
        return error
