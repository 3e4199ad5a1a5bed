"""Checkpoints by orbax: asynchronous, atomic, the newest few and the best kept."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import math
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from genjax.config import ConfigError
from genjax.files import absolute, is_local
from genjax.parallel.rules import path_name
from genjax.train_state import TrainState

Tree = Any

FOLDER = "checkpoints"
BLOCK = 2**26  # bytes of an array that a digest has on the host at a time


class Checkpoints:
    """The checkpoints of one workdir, in `checkpoints/<step>/`, or what else is kept so.

    A checkpoint appears under its final name only when it is whole, so one cut short by a crash
    is never picked up; what is left of it is removed at the next start of training.
    """

    def __init__(
        self, workdir: str | os.PathLike, config: ConfigDict | None = None, name: str = FOLDER
    ):
        """Opens `workdir/checkpoints`: for writing if a config is given, else only to read.

        In a folder of another `name` all are kept.
        """
        self.folder = absolute(workdir) / name
        if config is None:
            options = ocp.CheckpointManagerOptions(
                read_only=True, create=False, save_interval_steps=0, best_fn=_no_best
            )
        else:
            options = ocp.CheckpointManagerOptions(
                preservation_policy=_preservation(config) if name == FOLDER else keep.PreserveAll(),
                best_fn=_no_best,
                cleanup_tmp_directories=True,
                # Two of them may write at once, and processes wait for each other by name.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    barrier_sync_key_prefix=name
                ),
            )
        self._orbax = ocp.CheckpointManager(
            self.folder,
            options=options,
            item_handlers={"state": ocp.StandardCheckpointHandler()},
        )

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, None if there is none."""
        return self._orbax.latest_step()

    def steps(self) -> list[int]:
        """The steps of all whole checkpoints, ascending."""
        return sorted(self._orbax.all_steps())

    def find(self, step: int | None = None) -> int:
        """`step`, or the newest step, if there is a whole checkpoint of it.

        Raises:
          ConfigError: there is none.
        """
        step = self.latest() if step is None else step
        if step is None or step not in self._orbax.all_steps():
            raise ConfigError(
                f"{self.folder}: no checkpoint{'' if step is None else f' of step {step}'} "
                f"(there are: {self.steps() or 'none'}). Train first, or give another --workdir."
            )
        return step

    def best(self, config: ConfigDict) -> int:
        """The step of the checkpoint whose evaluation is best.

        Raises:
          ConfigError: the config names no metric to be best in, or no checkpoint has it.
        """
        name, mode = best_metric(config)
        if not name:
            raise ConfigError(
                "--checkpoint=best: the run kept no best checkpoint. Set checkpoint.best or "
                "early_stop.metric in training, or give a step."
            )
        sign = 1.0 if mode == "min" else -1.0
        found = {step: (self._orbax.metrics(step) or {}).get(name) for step in self.steps()}
        values = {
            step: sign * value
            for step, value in found.items()
            if value is not None and math.isfinite(value)
        }
        if not values:
            raise ConfigError(
                f"--checkpoint=best: none of the checkpoints {self.steps()} has a finite {name}. "
                "Give a step."
            )
        return min(values, key=values.get)

    def save(self, state: Tree, step: int, metrics: Mapping[str, float]) -> None:
        """Begins to save `state`; returns once its arrays are copied off the devices.

        Args:
          state: the state after `step` steps.
          step: the name of the checkpoint; nothing is done if it exists.
          metrics: the evaluation of this very state, if there was one.
        """
        if step in self._orbax.all_steps():
            return
        _check_room(self.folder, sum(leaf.nbytes for leaf in jax.tree.leaves(as_data(state))))
        with _disk(self.folder):
            self._orbax.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state)),
                metrics=dict(metrics) or None,
                force=True,
            )

    def remove_after(self, step: int) -> None:
        """Removes those of later steps, such as a run made that is gone on with from `step`."""
        with _disk(self.folder):
            for later in [found for found in self.steps() if found > step]:
                self._orbax.delete(later)

    def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
        """The state at `step` (the newest), with the shapes and shardings of `abstract`.

        Raises:
          ConfigError: there is no such checkpoint, or it holds other arrays.
        """
        step = self.find(step)
        saved = self.shapes(step)
        wanted = {path: shape for path, shape in _shapes(jax.eval_shape(as_data, abstract))}
        different = [
            f"  {path}: saved {saved.get(path, 'absent')}, expected {wanted.get(path, 'absent')}"
            for path in sorted(saved.keys() | wanted.keys())
            if saved.get(path) != wanted.get(path)
        ]
        if different:
            shown = "\n".join(different[:10])
            raise ConfigError(
                f"{self.folder / str(step)} is of another model: {len(different)} arrays differ, "
                f"such as\n{shown}\nGive the config, and the version of "
                "genjax, that it was trained with, or a new --workdir."
            )
        with _disk(self.folder / str(step)):
            return self._orbax.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            ).state

    def shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """Path -> shape of every saved array, read from the metadata alone."""
        with _disk(self.folder / str(step)):
            return dict(_shapes(self._orbax.item_metadata(step).state.tree))

    def read(self, step: int, wanted: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Some of the arrays saved at `step`: path -> array.

        Args:
          step: of a whole checkpoint.
          wanted: saved path -> an array, or a `ShapeDtypeStruct`, of the shape that is saved,
            which gives type and sharding.
        """
        shapes = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for path, leaf in wanted.items()
        }
        nested = unflatten_dict(shapes, sep="/")
        with _disk(self.folder / str(step)):
            loaded = ocp.PyTreeCheckpointer().restore(
                self.folder / str(step) / "state",
                args=ocp.args.PyTreeRestore(
                    item=nested,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(nested),
                    partial_restore=True,
                ),
            )
        return {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(loaded)}

    def restore_into(
        self,
        state: TrainState,
        mapping: Sequence[tuple[str, str]],
        follows: Collection[str] = (),
    ) -> tuple[TrainState, list[str]]:
        """`state` with some of its parameters and mutables taken from the newest checkpoint.

        Args:
          state: a freshly initialised state.
          mapping: `(regex, replacement)` from a path in `state`, such as `params/denoiser/...`,
            to the saved path; the first regex that matches counts, a path that none matches
            keeps its initial value.
          follows: networks that follow others, which are not taken.

        Returns:
          The state, its averages set to its parameters, and the paths that were taken.

        Raises:
          ConfigError: a saved path is absent or has another shape, or nothing matches.
        """
        step = self.latest()
        if step is None:
            raise ConfigError(f"{self.folder}: no checkpoint to start from.")
        saved = self.shapes(step)
        target = {"params": state.params, "mutable": state.mutable}
        sources = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(target):
            name = path_name(path)
            rule = next((r for r in mapping if re.search(r[0], name)), None)
            if rule is None or path[1].key in follows:
                continue
            source = re.sub(rule[0], rule[1], name)
            if saved.get(source) != tuple(leaf.shape):
                raise ConfigError(
                    f"checkpoint.init_map: {name} {tuple(leaf.shape)} from {source}, which is "
                    f"{saved.get(source, 'absent')} in {self.folder / str(step)}. Map it to "
                    "another path, or exclude it from the regex."
                )
            sources[name] = (source, leaf)
        if not sources:
            raise ConfigError(f"checkpoint.init_map={tuple(mapping)!r} matches no parameter.")
        flat = self.read(step, {source: leaf for source, leaf in sources.values()})
        target = jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                flat[sources[path_name(path)][0]] if path_name(path) in sources else leaf
            ),
            target,
        )
        ema = {
            profile: {name: jax.tree.map(jnp.array, target["params"][name]) for name in averaged}
            for profile, averaged in state.ema.items()
        }
        return state.replace(**target, ema=ema), sorted(sources)

    def wait(self) -> None:
        """Waits until what was begun is on disk; raises OSError if it could not be written."""
        with _disk(self.folder):
            self._orbax.wait_until_finished()

    def close(self) -> None:
        """Waits, and frees the threads."""
        with _disk(self.folder):
            self._orbax.close()


def best_metric(config: ConfigDict) -> tuple[str, str]:
    """(metric, "min" or "max") that the best checkpoint is kept for; ("", ...) if none is."""
    if config.checkpoint.best:
        return config.checkpoint.best, config.checkpoint.mode
    return config.early_stop.metric, config.early_stop.mode


def _preservation(config: ConfigDict) -> keep.PreservationPolicy:
    """The newest few, and the one whose evaluation is best; one that is not finite never is."""
    policies: list[keep.PreservationPolicy] = [keep.LatestN(config.checkpoint.keep)]
    name, mode = best_metric(config)
    if name:
        worst = math.inf if mode == "min" else -math.inf

        def value(metrics: Mapping[str, float]) -> float:
            found = metrics.get(name, worst)
            return found if math.isfinite(found) else worst

        policies.append(
            keep.BestN(
                get_metric_fn=value,
                reverse=mode == "min",
                n=1,
                keep_checkpoints_without_metrics=False,
            )
        )
    return keep.AnyPreservationPolicy(policies)


def _no_best(metrics: Mapping[str, float]) -> float:
    """Orbax stores the metrics of a checkpoint only if it is given a function to rank them."""
    return 0.0


def _check_room(folder: epath.Path, needed: int) -> None:
    """Raises OSError if the disk has no room for `needed` bytes, before anything is written."""
    if not is_local(folder):
        return
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"a checkpoint needs {needed:,} bytes, {free:,} are free", str(folder)
        )


@contextlib.contextmanager
def _disk(folder: epath.Path) -> Iterator[None]:
    """Turns what tensorstore says of a full disk or a damaged file into one OSError."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, RuntimeError, OSError, KeyError, AttributeError, TypeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise OSError(f"checkpoint in {folder}: {first}") from error


def as_data(state: Tree) -> Tree:
    """`state` with PRNG keys as their integer data."""
    return jax.tree.map(
        lambda leaf: (
            jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        ),
        state,
    )


def _shapes(tree: Tree) -> list[tuple[str, tuple[int, ...]]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return [(path_name(path), tuple(leaf.shape)) for path, leaf in leaves]


def digests(state: Tree, block: int = BLOCK) -> dict[str, str]:
    """Path -> sha256 of each array's dtype, shape and bytes (little endian, row-major).

    The same however the arrays are sharded. They come to the host in blocks of at most `block`
    bytes and are gathered nowhere. With several processes all of them must call it.
    """
    return {
        path_name(path): _sha256(leaf, block)
        for path, leaf in jax.tree_util.tree_leaves_with_path(as_data(state))
    }


def _sha256(array: jax.Array, block: int) -> str:
    head = f"{array.dtype.name}{array.shape or (1,)}"  # a number is hashed as an array of one
    hashed = hashlib.sha256(head.encode())
    for start, shape in _blocks(array.shape, max(block // array.dtype.itemsize, 1)):
        rows = _read_block(array, start, shape)
        hashed.update(rows.astype(rows.dtype.newbyteorder("<"), copy=False).tobytes())
    return hashed.hexdigest()


Block = tuple[tuple[int, ...], tuple[int, ...]]  # where it starts, and its shape


def _blocks(shape: tuple[int, ...], most: int) -> Iterator[Block]:
    """An array in pieces of at most `most` elements that follow each other in its memory."""
    if math.prod(shape) <= most:
        yield (0,) * len(shape), shape
        return
    inner = math.prod(shape[1:])
    rows = max(most // inner, 1)
    for first in range(0, shape[0], rows):
        count = min(rows, shape[0] - first)
        for start, rest in _blocks(shape[1:], most):
            yield (first, *start), (count, *rest)


def _read_block(array: jax.Array, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """A block of `array` on the host, of every process that has a part of the array."""
    here = array.is_fully_addressable or array.is_fully_replicated
    found, seen = np.zeros(shape, array.dtype), set()
    first, end = np.array(start, int), np.array(start, int) + shape
    for shard in array.addressable_shards:
        own = tuple(index.start or 0 for index in shard.index)
        if own in seen or not (here or shard.replica_id == 0):
            continue
        seen.add(own)
        low = np.maximum(first, own)
        size = np.minimum(end, np.add(own, shard.data.shape)) - low
        if (size > 0).all():
            target = tuple(map(slice, low - first, low - first + size))
            found[target] = _cut(shard.data, tuple(low - own), tuple(map(int, size)))
    return found if here else _over_processes(found)


def _cut(data: jax.Array, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """A part of an array that one device has, on the host."""
    if shape == data.shape:
        return np.asarray(data)
    (device,) = data.devices()
    with jax.set_mesh(Mesh(np.array([device]), ("all",))), jax.transfer_guard("allow"):
        return np.asarray(_slice(data, start, shape))


@functools.partial(jax.jit, static_argnums=2)
def _slice(data: jax.Array, start: tuple[int, ...], shape: tuple[int, ...]) -> jax.Array:
    return jax.lax.dynamic_slice(data, start, shape)


def _over_processes(block: np.ndarray) -> np.ndarray:
    """The block of which every process has a part, and zeros elsewhere."""
    of_process = {device.process_index: device for device in jax.devices()}
    mesh = Mesh(np.array([device for _, device in sorted(of_process.items())]), ("process",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("process",), ()))
    with jax.set_mesh(mesh), jax.transfer_guard("allow"):
        own = np.frombuffer(block.tobytes(), np.uint8)[None]
        parts = jax.make_array_from_process_local_data(split, own)
        total = jax.jit(_sum_bytes, out_shardings=whole)(parts)
        return np.asarray(total).view(block.dtype).reshape(block.shape)


def _sum_bytes(parts: jax.Array) -> jax.Array:
    return parts.sum(0, dtype=np.uint8)


def digest(found: Mapping[str, str]) -> str:
    """One sha256 for all of `digests(state)`: of its lines `path sha256`, sorted."""
    lines = "".join(f"{path} {value}\n" for path, value in sorted(found.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
