"""Checkpoints by orbax: asynchronous, atomic, the newest few and the best kept."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import tensorstore
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from genjax.adapters import BASE
from genjax.checks import ConfigError, first_line
from genjax.files import absolute, is_local
from genjax.parallel.rules import path_name
from genjax.train_state import TrainState
from genjax.training import older
from genjax.training.checkpoint_files import (
    check_path,
    check_space,
    digest_of_notes,
    disk_errors,
    merge,
    numbered,
    on_host,
    read_json,
)
from genjax.training.checkpoint_options import array_types, best_metric, no_best, preservation
from genjax.training.digests import as_data, own_digests, sha256

Tree = Any
logger = logging.getLogger("genjax")

FOLDER = "checkpoints"
# Next to the state: {"sha256": path -> digest, "window": of the log, "digest": of these two}.
NOTES = "notes"
NOTED = {"sha256", "window"}


class Saved(NamedTuple):
    """What a checkpoint's metadata say of an array.

    Attributes:
      shape: its shape.
      dtype: its dtype.
      keys: its path, key by key: the name of a network, such as base/lm, may have slashes.
    """

    shape: tuple[int, ...]
    dtype: Any
    keys: tuple[str, ...]


def shapes_of(arrays: Mapping[str, Saved]) -> dict[str, tuple[int, ...]]:
    """Path -> shape."""
    return {path: array.shape for path, array in arrays.items()}


class Damaged(ConfigError):
    """A checkpoint cannot be read; the message names one that is whole."""


class Checkpoints:
    """The checkpoints of one workdir, in `checkpoints/<step>/`, or snapshots in another folder.

    A checkpoint appears under its final name only when it is whole, so one cut short by a crash
    is never used; its remains are removed when training next starts. Each checkpoint is opened
    again after it is written. With `config.checkpoint.digests` the sha256 of every array that is
    not split over processes is written too, and compared whenever the array is read.
    """

    def __init__(
        self, workdir: str | os.PathLike, config: ConfigDict | None = None, name: str = FOLDER
    ):
        """Opens `workdir/<name>`: for writing if a config is given, else only to read.

        In a folder other than `checkpoints`, every checkpoint is kept.

        Raises:
          ConfigError: the checkpoint library would take the path for a pattern.
          Damaged: a checkpoint's metadata, which decide whether it is kept, are damaged.
        """
        self.folder = absolute(workdir) / name
        check_path(self.folder.parent)
        self._digests = config is not None and config.checkpoint.digests
        self._written: int | None = None  # a saved step that was not opened again yet
        if config is None:
            options = ocp.CheckpointManagerOptions(
                read_only=True, create=False, save_interval_steps=0
            )
        else:
            options = ocp.CheckpointManagerOptions(
                preservation_policy=preservation(config) if name == FOLDER else keep.PreserveAll(),
                best_fn=no_best,
                cleanup_tmp_directories=True,
                # Two managers may write at once, so each needs barriers of its own name.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    barrier_sync_key_prefix=name
                ),
            )
        try:
            self._orbax = ocp.CheckpointManager(
                self.folder,
                options=options,
                item_handlers={
                    "state": ocp.PyTreeCheckpointHandler(type_handler_registry=array_types()),
                    NOTES: ocp.JsonCheckpointHandler(),
                },
            )
        except Exception:
            for step in sorted(numbered(self.folder)):
                self._check_metadata(step)
            raise

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint; None if there is none."""
        return self._orbax.latest_step()

    def steps(self) -> list[int]:
        """The steps of all whole checkpoints, ascending."""
        return sorted(self._orbax.all_steps())

    def find(self, step: int | None = None) -> int:
        """Returns `step`, or the newest step if it is None, if there is a whole checkpoint of it.

        Raises:
          ConfigError: there is no such checkpoint.
        """
        step = self.latest() if step is None else step
        if step is None or step not in self._orbax.all_steps():
            raise ConfigError(
                f"{self.folder}: no checkpoint{'' if step is None else f' of step {step}'} "
                f"(there are: {self.steps() or 'none'}). Train first, or give another --workdir."
            )
        return step

    def best(self, config: ConfigDict) -> int:
        """Returns the step of the checkpoint with the best evaluation.

        Raises:
          ConfigError: the config names no metric to rank by, or no checkpoint has it.
        """
        name, mode = best_metric(config)
        if not name:
            raise ConfigError(
                "--checkpoint=best: the run kept no best checkpoint. Set checkpoint.best or "
                "early_stop.metric in training, or give a step."
            )
        sign = 1.0 if mode == "min" else -1.0
        metrics = {step: self._metrics(step).get(name) for step in self.steps()}
        values = {
            step: sign * value
            for step, value in metrics.items()
            if value is not None and math.isfinite(value)
        }
        if not values:
            raise ConfigError(
                f"--checkpoint=best: none of the checkpoints {self.steps()} has a finite {name}. "
                "Give a step."
            )
        return min(values, key=values.get)

    def save(
        self,
        state: Tree,
        step: int,
        metrics: Mapping[str, float],
        window: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts to save `state`; returns once its arrays are copied off the devices.

        Args:
          state: the state after `step` steps.
          step: the name of the checkpoint; nothing is done if it exists.
          metrics: the evaluation of this state, if there was one.
          window: the log's sums since its last line, see `Averages.window`.

        Raises:
          OSError: the disk is full, or cannot be written.
          Damaged: the previous checkpoint cannot be read back.
        """
        if step in self._orbax.all_steps():
            return
        self.wait()
        check_space(self.folder, sum(leaf.nbytes for leaf in jax.tree.leaves(as_data(state))))
        writes = jax.process_index() == 0  # writes the notes: only it needs their hashes
        sha256s = own_digests(state) if self._digests and writes else {}
        notes = {"sha256": sha256s, "window": dict(window or {})}
        notes["digest"] = digest_of_notes(notes)
        items = {"state": ocp.args.PyTreeSave(state), NOTES: ocp.args.JsonSave(notes)}
        with disk_errors(self.folder):
            self._orbax.save(
                step,
                args=ocp.args.Composite(**items),
                metrics=dict(metrics) or None,
                force=True,
            )
        self._written = step

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, from before the run went back to `step`."""
        with disk_errors(self.folder):
            for later in [saved for saved in self.steps() if saved > step]:
                self._orbax.delete(later)

    def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
        """Returns the state at `step` (or the newest), with the shapes and shardings of `abstract`.

        Raises:
          ConfigError: there is no such checkpoint, or it holds other arrays.
          Damaged: it cannot be read, or its numbers are not those that were written.
        """
        step = self.find(step)
        arrays = self.arrays(step)
        saved = shapes_of(arrays)
        expected = {path: shape for path, shape in _shapes(jax.eval_shape(as_data, abstract))}
        different = [
            f"  {path}: saved {saved.get(path, 'absent')}, expected {expected.get(path, 'absent')}"
            for path in sorted(saved.keys() | expected.keys())
            if not older.fits(path, saved.get(path), expected.get(path))
        ]
        if different:
            shown = "\n".join(different[:10])
            raise ConfigError(
                f"{self.folder / str(step)} is of another model: {len(different)} arrays differ, "
                f"such as\n{shown}\nUse the config and the version of genjax that it was trained "
                "with, or give a new --workdir."
            )
        with self._reading(step):
            as_saved = older.as_saved(abstract, saved)
            how = ocp.checkpoint_utils.construct_restore_args(as_saved)
            wanted = ocp.args.PyTreeRestore(as_saved, restore_args=how)
            state = self._orbax.restore(step, args=ocp.args.Composite(state=wanted)).state
            self._compare(step, state, arrays)
            for (path, leaf), like in zip(
                jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(abstract), strict=True
            ):
                if leaf.dtype != like.dtype:  # a PRNG key of a kind that is no longer known
                    raise ValueError(f"{path_name(path)} is {leaf.dtype}, expected {like.dtype}")
        return older.by_head(state, abstract, saved)

    def arrays(self, step: int) -> dict[str, Saved]:
        """Path -> what the metadata say of every saved array, which is not read.

        Raises:
          Damaged: the metadata cannot be read.
        """
        with self._reading(step):
            tree = self._orbax.item_metadata(step).state.tree
            leaves = jax.tree_util.tree_leaves_with_path(
                tree, is_leaf=lambda leaf: hasattr(leaf, "shape")
            )
        return {
            path_name(path): Saved(
                tuple(leaf.shape), leaf.dtype, tuple(path_name((key,)) for key in path)
            )
            for path, leaf in leaves
        }

    def shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """Path -> shape of every saved array, read from the metadata alone.

        Raises:
          Damaged: the metadata cannot be read.
        """
        return shapes_of(self.arrays(step))

    def window(self, step: int) -> dict[str, Any]:
        """Returns the log's sums when the checkpoint was saved; {} for an older checkpoint.

        Raises:
          Damaged: it cannot be read.
        """
        with self._reading(step):
            return self._notes(step).get("window", {})

    def read(
        self,
        step: int,
        wanted: Mapping[str, jax.Array],
        arrays: Mapping[str, Saved] | None = None,
    ) -> dict[str, jax.Array]:
        """Reads some of the arrays saved at `step`: path -> array.

        Args:
          step: of a whole checkpoint.
          wanted: saved path -> an array or `ShapeDtypeStruct` of a shape that fits the saved one
            (`older.fits`), with the dtype and sharding to read it with.
          arrays: what `arrays` says of this step, if that was asked before.
        """
        arrays = self.arrays(step) if arrays is None else arrays
        saved = shapes_of(arrays)
        abstract = unflatten_dict(
            {
                arrays[path].keys: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=leaf.sharding
                )
                for path, leaf in wanted.items()
            }
        )
        nested = older.as_saved(abstract, saved)
        with self._reading(step):
            loaded = ocp.PyTreeCheckpointer().restore(
                self.folder / str(step) / "state",
                args=ocp.args.PyTreeRestore(
                    item=nested,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(nested),
                    partial_restore=True,
                ),
            )
            self._compare(step, loaded, arrays)
        loaded = older.by_head(loaded, abstract, saved)
        return {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(loaded)}

    def restore_into(
        self,
        state: TrainState,
        mapping: Sequence[tuple[str, str]],
        follows: Collection[str] = (),
        adapted: Collection[str] = (),
    ) -> tuple[TrainState, list[str]]:
        """Returns `state` with some parameters and mutables taken from the newest checkpoint.

        Args:
          state: a freshly initialised state.
          mapping: `(regex, replacement)` from a path in `state`, such as `params/denoiser/...`,
            to the saved path. The first matching regex counts; a path that matches none keeps
            its initial value.
          follows: networks that follow others; they are not taken.
          adapted: networks with adapters. If the checkpoint has no adapters, it has their bases
            under the networks' own names, to which the mapping applies, and no factors.

        Returns:
          The state, with its averages set to its parameters, and the paths that were taken.

        Raises:
          ConfigError: a saved path is missing or has another shape, or nothing matches.
        """
        step = self.latest()
        if step is None:
            raise ConfigError(f"{self.folder}: no checkpoint to start from.")
        arrays = self.arrays(step)
        saved = shapes_of(arrays)
        target = {"params": state.params, "mutable": state.mutable}
        sources = {}
        plain = not any(name.startswith(f"params/{BASE}") for name in saved)
        fresh = (*follows, *(adapted if plain else ()))
        for path, leaf in jax.tree_util.tree_leaves_with_path(target):
            name = path_name(path)
            given = name.replace(f"params/{BASE}", "params/", 1) if plain else name
            rule = next((r for r in mapping if re.search(r[0], given)), None)
            if rule is None or path[1].key in fresh:
                continue
            source = re.sub(rule[0], rule[1], given)
            if not older.fits(source, saved.get(source), tuple(leaf.shape)):
                raise ConfigError(
                    f"checkpoint.init_map: {name} {tuple(leaf.shape)} maps to {source}, which is "
                    f"{saved.get(source, 'absent')} in {self.folder / str(step)}. Map it to "
                    "another path, or exclude it from the regex."
                    + " That run has adapters: give this one the same config.adapters, or start "
                    "from what --mode=export makes of it." * (not plain)
                )
            sources[name] = (source, leaf)
        if not sources:
            raise ConfigError(f"checkpoint.init_map={tuple(mapping)!r} matches no parameter.")
        flat = self.read(step, {source: leaf for source, leaf in sources.values()}, arrays)

        def taken(path: tuple, leaf: jax.Array) -> jax.Array:
            if path_name(path) not in sources:
                return leaf
            # A copy: two networks may take one array, but a step donates each of its own.
            return jnp.copy(flat[sources[path_name(path)][0]])

        target = jax.tree_util.tree_map_with_path(taken, target)
        ema = {
            profile: {name: jax.tree.map(jnp.array, target["params"][name]) for name in averaged}
            for profile, averaged in state.ema.items()
        }
        return state.replace(**target, ema=ema), sorted(sources)

    def wait(self) -> None:
        """Waits until the last save is on disk, and opens that checkpoint again.

        Raises:
          OSError: it could not be written.
          Damaged: it cannot be read.
        """
        with disk_errors(self.folder):
            self._orbax.wait_until_finished()
        step, self._written = self._written, None
        if step is not None:
            self._open_again(step)

    def close(self) -> None:
        """Waits for the last save, and ends the threads."""
        with disk_errors(self.folder):
            self._orbax.close()

    def _open_again(self, step: int) -> None:
        """Lists the parts of a checkpoint's arrays, to see that they can be found."""
        state = self.folder / str(step) / "state"
        if not is_local(state):
            self.arrays(step)
            return
        spec = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{state}/"}}
        with self._reading(step):
            parts = tensorstore.KvStore.open(spec).result()
            if not parts.list().result():
                raise ValueError("it has no arrays")

    # ---- damaged checkpoints ---------------------------------------------------------------------

    def _metrics(self, step: int) -> dict[str, Any]:
        """Returns the evaluation that was saved with a checkpoint; {} if there was none."""
        with self._reading(step):
            return read_json(self.folder / str(step) / "metrics" / "metrics")

    def _check_metadata(self, step: int) -> None:
        """Raises Damaged if the metadata that orbax reads at the start cannot be read."""
        folder = self.folder / str(step)
        try:
            read_json(folder / "metrics" / "metrics")
            read_json(folder / "_CHECKPOINT_METADATA")
        except ValueError as error:
            raise Damaged(self._advice(step, error, chosen=False)) from error

    def _notes(self, step: int) -> dict[str, Any]:
        """Returns the notes written next to the state; {} if there are none.

        Raises:
          ValueError: they are not what was written.
        """
        notes = read_json(self.folder / str(step) / NOTES / "metadata")
        content = {key: value for key, value in notes.items() if key != "digest"}
        expected = digest_of_notes(content)
        # The notes of an older checkpoint have no digest and are not checked.
        if not content.keys() <= NOTED or notes.get("digest", expected) != expected:
            raise ValueError(f"{NOTES}/metadata is not what was written")
        return content

    def _compare(self, step: int, tree: Tree, arrays: Mapping[str, Saved] | None = None) -> None:
        """Raises ValueError if an array does not have the digest that was written for it.

        Arrays without a digest, or read with another dtype than in `arrays`, are not compared.
        """
        saved = self._notes(step).get("sha256", {})
        if not saved:
            return
        flat = {
            path_name(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(as_data(tree))
        }
        if arrays is not None:
            flat = {
                path: leaf
                for path, leaf in flat.items()
                if path in arrays and leaf.dtype == arrays[path].dtype
            }
        different = [
            path for path, array in flat.items() if path in saved and saved[path] != sha256(array)
        ]
        if different:
            raise ValueError(
                f"{len(different)} of its arrays are not what was written, such as {different[0]}"
            )

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Turns any error from reading a checkpoint into one `Damaged`."""
        try:
            merge(self.folder / str(step) / "state")
            yield
        except (ConfigError, jax.errors.JaxRuntimeError):  # a device error, such as its memory
            raise
        except Exception as error:
            raise Damaged(self._advice(step, error)) from error

    def _advice(self, step: int, error: Exception, chosen: bool = True) -> str:
        """Returns the message on a damaged checkpoint; `chosen`: --checkpoint can name another."""
        folder, others = self.folder / str(step), numbered(self.folder) - {step}
        message = f"{folder} cannot be read, it is damaged: {first_line(error)}. "
        if self.folder.name != FOLDER:
            return f"{message}Remove it: averages can be computed from the others."
        if jax.process_count() > 1:  # the other processes may be elsewhere by now
            available = ", ".join(map(str, sorted(others))) or "none"
            return f"{message}Move it away to continue from another one (there are: {available})."
        whole = next((other for other in sorted(others, reverse=True) if self._is_whole(other)), -1)
        if whole < 0:
            return (
                f"{message}No other checkpoint is whole: restore it from a copy, or start again "
                "with another --workdir."
            )
        intact = f"Step {whole}{' before it' if whole < step else ''} is whole"
        alternative = f", or give --checkpoint={whole} to use it" if chosen else ""
        return f"{message}{intact}: move {folder} away to continue from it{alternative}."

    def _is_whole(self, step: int) -> bool:
        """Whether all of a checkpoint can be read; its arrays are read to the host."""
        folder = self.folder / str(step)
        try:
            read_json(folder / "metrics" / "metrics")
            merge(folder / "state")
            self._compare(step, on_host(folder / "state"))
        except Exception as error:
            logger.debug("%s: %s", folder, error)
            return False
        return True


def _shapes(tree: Tree) -> list[tuple[str, tuple[int, ...]]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return [(path_name(path), tuple(leaf.shape)) for path, leaf in leaves]
