"""Two stages: a trained run whose codes are the data of another, and whose decoder its samples.

The networks of the first stage that a second one needs become frozen networks of its state: its
checkpoints are whole, and `first_stage/config.json` in its workdir says how to build them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from genjax import method as methods
from genjax.config import ConfigError, steps, to_json
from genjax.data import loader, packages, sources
from genjax.data.catalogue import Dataset
from genjax.evals.features import data_digest
from genjax.method import Batch, DataSpec, Method
from genjax.parallel.distributed import largest
from genjax.parallel.mesh import batch_part, global_batch
from genjax.parallel.rules import path_name
from genjax.training import workdir
from genjax.training.checkpoint import Checkpoints, digest, digests
from genjax.training.pictures import write_atomic

Tree = Any
logger = logging.getLogger("genjax")

FOLDER = "first_stage"  # in the workdir of the second stage


class Arrays(NamedTuple):
    """The networks of a first stage, by name."""

    params: dict[str, Tree]
    mutable: dict[str, Tree]


class Stage(NamedTuple):
    """A first stage: how it was trained, on what, and what it can do."""

    config: ConfigDict
    spec: DataSpec
    method: Method
    digest: str  # of its data


def find(config: ConfigDict, folder: Path) -> Stage | None:
    """The first stage of the run in `folder`, or of the one that is to begin there.

    None if the config names none.

    Raises:
      ConfigError: there is no run where the config says, or it has no codes.
    """
    source = config.get("first_stage", "")
    if not source:
        return None
    place = folder / FOLDER if workdir.has_checkpoint(folder) else Path(source)
    stored = workdir.read_config(place)
    if stored is None:
        raise ConfigError(
            f"config.first_stage={source!r}: no run there (no config.json). Train one first, such "
            "as configs/vqvae.py, and give its --workdir."
        )
    spec = workdir.read_spec(place)
    method = methods.build(stored, spec)
    if method.codec is None:
        raise ConfigError(
            f"config.first_stage={source!r}: a run of method {stored.method!r}, which has no codes "
            "to train on. Give one of an autoencoder, such as configs/vqvae.py."
        )
    return Stage(stored, spec, method, workdir.read_digest(place))


def keep(config: ConfigDict, folder: Path) -> None:
    """Writes into `folder` how its first stage is built, unless a run there has begun."""
    if not workdir.has_checkpoint(folder):
        content = (Path(config.first_stage) / "config.json").read_bytes()
        write_atomic(folder / FOLDER / "config.json", content)


def read(stage: Stage, config: ConfigDict, folder: Path, mesh: Mesh) -> Arrays:
    """The first stage's networks: from the run's own checkpoint if it has one, else from its own.

    What its evaluations use: averaged parameters, if it has them.

    Raises:
      ConfigError: the first stage has no checkpoint; or the run was begun with another one.
    """
    source = Path(config.first_stage)
    if not workdir.has_checkpoint(folder):
        _warn_if_unfinished(stage, source)
        return _read(stage, Checkpoints(source), mesh)
    found = _read(stage, Checkpoints(folder), mesh, averaged=False)
    stored = workdir.read_config(folder)
    begun = stored.get("first_stage", "") if stored else ""
    if begun != config.first_stage:
        now = _digest(_read(stage, Checkpoints(source), mesh))
        if now != _digest(found):
            raise ConfigError(
                f"config.first_stage={config.first_stage!r} is another one than that "
                f"({begun or 'unknown'}) which the run in {folder} was begun with: its codes mean "
                "something else. Give a new --workdir."
            )
    return found


def _warn_if_unfinished(stage: Stage, source: Path) -> None:
    then, examples = stage.config, stage.spec.sizes["train"]
    total = steps(then.duration, batch_size=then.batch_size, examples=examples)
    step = Checkpoints(source).latest()
    if step is not None and step < total:
        logger.warning(
            "config.first_stage=%s has been trained for %d of its %d steps", source, step, total
        )


def _digest(arrays: Arrays) -> str:
    return digest(digests(arrays._asdict()))


def _abstract(stage: Stage) -> Arrays:
    """The shapes of the networks that are needed."""
    batch = {name: jnp.zeros((1, *s.shape), s.dtype) for name, s in stage.spec.features.items()}
    made = jax.eval_shape(lambda: stage.method.init(jax.random.key(0), batch))
    return Arrays(*({name: tree[name] for name in stage.method.codec.networks} for tree in made))


@contextlib.contextmanager
def _whole(place: Path) -> Iterator[None]:
    """Turns what is said of a checkpoint that cannot be read into advice on the first stage."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"config.first_stage: {place} cannot be read ({error}). Remove that folder to take the "
            "checkpoint before it, if there is one, or train the first stage again."
        ) from error


def _read(stage: Stage, checkpoints: Checkpoints, mesh: Mesh, averaged: bool = True) -> Arrays:
    step = checkpoints.latest()
    if step is None:
        raise ConfigError(
            f"config.first_stage: {checkpoints.folder} has no checkpoint. Train the run to its "
            "end first."
        )
    place = checkpoints.folder / str(step)
    with _whole(place):
        saved = checkpoints.shapes(step)
    everywhere = NamedSharding(mesh, PartitionSpec())
    decays = stage.config.ema.decay if averaged else ()
    abstract = _abstract(stage)._asdict()
    paths, wanted = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        name = path_name(path)
        kind, _, rest = name.partition("/")
        average = f"ema/{decays[0]}/{rest}" if decays else ""
        source = average if kind == "params" and average in saved else name
        if saved.get(source) != leaf.shape:
            raise ConfigError(
                f"config.first_stage: {place} does not fit the config beside it: {source} is "
                f"{saved.get(source, 'absent')}, expected {leaf.shape}. Give the workdir of an "
                "unchanged run, made by this version of genjax."
            )
        paths[name] = source
        wanted[source] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)
    with _whole(place):
        found = checkpoints.read(step, wanted)
    return Arrays(
        **jax.tree_util.tree_map_with_path(lambda path, _: found[paths[path_name(path)]], abstract)
    )


def check(config: ConfigDict, stage: Stage, dataset: Dataset) -> None:
    """Refuses data that are not those of the first stage, or that are changed as they are read.

    Data are told apart by what they look like and by `data_digest`.

    Raises:
      ConfigError: says what differs.
    """
    then = {**stage.spec._asdict(), "digest": stage.digest}
    now = {**dataset.spec._asdict(), "digest": data_digest(dataset)}
    lines = "\n".join(f"  {k}: {then[k]} -> {now[k]}" for k in now if now[k] != then[k])
    if lines:
        raise ConfigError(
            f"the data are not those of config.first_stage={config.first_stage!r} (there -> "
            f"here):\n{lines}\nGive a first stage of these data, or set config.dataset as it has "
            "it."
        )
    for key in ("flip", "crop_padding"):
        if config.dataset[key]:
            raise ConfigError(
                f"config.dataset.{key}={config.dataset[key]}: the codes of a first stage are of "
                "images as they are. Set it to nothing; the first stage may have it."
            )


def code_spec(stage: Stage) -> DataSpec:
    """What the codes of the first stage's data look like."""
    codec, arrays = stage.method.codec, _abstract(stage)
    batch = {
        name: jax.ShapeDtypeStruct((1, *s.shape), s.dtype)
        for name, s in stage.spec.features.items()
    }
    code = jax.eval_shape(codec.encode, *arrays, batch)
    features = {"code": jax.ShapeDtypeStruct(code.shape[1:], code.dtype)}
    if codec.log_likelihood:
        features["log_likelihood"] = jax.ShapeDtypeStruct((), np.float32)
    if "label" in stage.spec.features:
        features["label"] = stage.spec.features["label"]
    return stage.spec._replace(
        modality="code", features=features, vocabulary_size=codec.vocabulary_size
    )


def encoded(
    config: ConfigDict, stage: Stage, arrays: Arrays, dataset: Dataset, mesh: Mesh
) -> Dataset:
    """The codes of every split, log p(x | code), and the labels; kept in the cache by their makers.

    Data are told apart by `data_digest`, which looks at some of the examples: whoever changes a few
    of them under the same name has to remove the cache's folder `codes`.
    """
    spec = code_spec(stage)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def fields(arrays: Arrays, batch: Batch) -> Batch:
        codec = stage.method.codec
        found = {"code": codec.encode(*arrays, batch)}
        if codec.log_likelihood:
            found["log_likelihood"] = codec.log_likelihood(*arrays, batch, found["code"])
        if "label" in spec.features:
            found["label"] = batch["label"]
        return found

    apply = jax.jit(fields, out_shardings=everywhere)
    made_by = hashlib.sha256(_digest(arrays).encode())
    made_by.update(json.dumps(to_json(stage.config), sort_keys=True).encode())
    splits = {}
    for split, source in dataset.splits.items():
        data = data_digest(dataset, split)[:16]
        name = f"{dataset.spec.name.replace('/', '_')}-{split}-{data}-{made_by.hexdigest()[:16]}"
        place = packages.cache_root() / "codes" / name
        first = jax.process_index() == 0
        with packages.lock(f"codes-{name}") if first else contextlib.nullcontext():
            if largest(int(not place.exists())):  # every process takes part
                logger.info("codes of the %d examples of %s", len(source), split)
                held = _encode(config, apply, arrays, source, mesh)
                if first:
                    _write(place, held)
            else:
                held = {f: np.load(place / f"{f}.npy", mmap_mode="r") for f in spec.features}
        splits[split] = sources.Columns(held)
    route = f"codes by {config.first_stage}; {dataset.route}"
    return Dataset(spec, splits, route, decoded=dataset)


def _encode(config: ConfigDict, apply, arrays: Arrays, source: Any, mesh: Mesh) -> dict:
    part, parts = batch_part(mesh)
    batches = loader.eval_batches(
        source,
        batch_size=config.evals.batch_size,
        process_index=part,
        process_count=parts,
        threads=config.dataset.threads,
    )
    rows = [jax.device_get(apply(arrays, global_batch(batch, mesh))) for batch, _ in batches]
    return {name: np.concatenate([r[name] for r in rows])[: len(source)] for name in rows[0]}


def _write(place: Path, fields: dict[str, np.ndarray]) -> None:
    """Writes a folder of arrays whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        for name, rows in fields.items():
            np.save(partial / f"{name}.npy", rows)
        if not place.exists():
            os.replace(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def join(method: Method, stage: Stage) -> Method:
    """`method` on the codes of `stage`: beside its own networks the frozen ones of the stage.

    Samples are decoded; where log p(x | code) and the codes' `nll` are known, evaluations have the
    ELBO in nats and `bits_per_dim` of both stages together. The stage's networks are zero at first:
    `pretrained`, or a checkpoint, has to bring the trained ones.

    Raises:
      ConfigError: both have a network of the same name.
    """
    codec = stage.method.codec

    def init(key: jax.Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        frozen = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), _abstract(stage))
        own = method.init(key, batch)
        if taken := own[0].keys() & frozen.params.keys():
            raise ConfigError(f"both stages have networks called {sorted(taken)}: rename one.")
        return {**frozen.params, **own[0]}, {**frozen.mutable, **own[1]}

    def sample(params: Tree, mutable: Tree, key: jax.Array, num: int, condition=None, **options):
        codes = method.sample(params, mutable, key, num, condition, **options)
        return codec.decode(params, mutable, codes)

    sample.__signature__ = inspect.signature(method.sample)
    image = stage.spec.features.get("image")

    def evaluate(params: Tree, mutable: Tree, batch: Batch, key: jax.Array) -> dict:
        found = method.evaluate(params, mutable, batch, key)
        if "log_likelihood" in batch and "nll" in found:
            elbo = batch["log_likelihood"] - found["nll"]
            bits = -elbo / (math.log(2) * math.prod(image.shape))
            found |= {"elbo": elbo, "bits_per_dim": bits}
        return found

    frozen = rf"^(?=\w+/({'|'.join(codec.networks)})/)"
    of_stage = tuple((f"{frozen}.*(?:{path})", tactic) for path, tactic in stage.method.rules)
    rules = (*of_stage, *method.rules)
    return method._replace(init=init, sample=sample, evaluate=evaluate, rules=rules)
