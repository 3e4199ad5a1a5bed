"""The codes of a stage as the data of a run: made once, and kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from genjax.config import ConfigError, to_json
from genjax.data import loader, packages, sources, sums
from genjax.data.catalogue import Dataset
from genjax.data.digest import data_digest
from genjax.files import building
from genjax.method import Batch, DataSpec, Field, Stage
from genjax.parallel.distributed import largest
from genjax.parallel.mesh import batch_part, global_batch
from genjax.training import workdir
from genjax.training.digests import digest, digests
from genjax.training.stages import Arrays, network_shapes

logger = logging.getLogger("genjax")


def check(config: ConfigDict, stage: Stage, dataset: Dataset) -> None:
    """Refuses data that are not those of a stage, or that are changed as they are read.

    Data are told apart by what they look like and by `data_digest`.

    Raises:
      ConfigError: says what differs.
    """
    lines, now = workdir.changes(stage.spec, dataset.spec), data_digest(dataset)
    if now != stage.digest:
        lines.append(f"  digest: {stage.digest} -> {now}")
    if lines:
        raise ConfigError(
            f"the data are not those of config.stages.{stage.name}="
            f"{config.stages[stage.name]!r} (there -> here):\n"
            + "\n".join(lines)
            + "\nGive a stage of these data, or set config.dataset as it has it."
        )
    for key in ("flip", "crop_padding", "dequantize"):
        if config.dataset[key]:
            raise ConfigError(
                f"config.dataset.{key}={config.dataset[key]}: codes that are kept are of examples "
                "as they are. Set it to nothing; the stage may have it."
            )


def code_spec(stage: Stage, spec: DataSpec) -> DataSpec:
    """What the codes of data that look like `spec` look like: the target is coded.

    Every other field stays; `log_likelihood` is log p(example | code), if the stage knows it.
    """
    codec, target = stage.method.codec, spec.target
    batch = {name: jax.ShapeDtypeStruct((1, *f.shape), f.dtype) for name, f in spec.fields.items()}
    own = network_shapes(stage.method, stage.spec)
    code = jax.eval_shape(codec.encode, *own, batch)
    values = codec.vocabulary_size
    facts = {"vocabulary_size": values} if values else {}
    fields = {"code": Field("code", code.shape[1:], np.dtype(code.dtype), facts)}
    if codec.log_likelihood:
        fields["log_likelihood"] = Field("real", (), np.dtype(np.float32))
    fields |= {name: field for name, field in spec.fields.items() if name != target}
    return spec._replace(fields=fields, target="code")


def encoded(
    config: ConfigDict, stage: Stage, arrays: Arrays, dataset: Dataset, mesh: Mesh
) -> Dataset:
    """The codes of every split and log p(x | code), kept in the cache, beside all other fields.

    Data are told apart by `data_digest`, which looks at some of the examples: whoever changes a few
    of them under the same name has to remove the cache's folder `codes`.
    """
    spec, codec = code_spec(stage, dataset.spec), stage.method.codec
    everywhere = NamedSharding(mesh, PartitionSpec())
    made = [name for name in ("code", "log_likelihood") if name in spec.fields]

    def fields(arrays: Arrays, batch: Batch) -> Batch:
        own = stage.own(arrays.params), stage.own(arrays.mutable)
        found = {"code": codec.encode(*own, batch)}
        if codec.log_likelihood:
            found["log_likelihood"] = codec.log_likelihood(*own, batch, found["code"])
        return found

    apply = jax.jit(fields, out_shardings=everywhere)
    named = Arrays(stage.own(arrays.params), stage.own(arrays.mutable))
    made_by = hashlib.sha256(digest(digests(named._asdict())).encode())
    made_by.update(json.dumps(to_json(stage.config), sort_keys=True).encode())
    splits = {}
    for split, source in dataset.splits.items():
        data = data_digest(dataset, split)[:16]
        name = f"{dataset.spec.name.replace('/', '_')}-{split}-{data}-{made_by.hexdigest()[:16]}"
        place = packages.cache_root() / "codes" / name
        first = jax.process_index() == 0
        with packages.lock(f"codes-{name}") if first else contextlib.nullcontext():
            held = _kept(place, made, len(source))
            if largest(int(held is None)):  # every process takes part
                logger.info("codes of the %d examples of %s", len(source), split)
                held = _encode(config, apply, arrays, source, mesh)
                if first:
                    _write(place, held)
        others = {name: name for name in spec.fields if name not in made}
        codes = sources.Columns({name: held[name] for name in made})
        rest = sources.Chosen(source, others)
        splits[split] = sources.Joined(codes, rest) if others else codes
        if split == "train" and not codec.vocabulary_size:
            code = spec.fields["code"]
            code = code._replace(facts={**code.facts, **moments(held["code"])})
            spec = spec._replace(fields={**spec.fields, "code": code})
    route = f"codes by {config.stages[stage.name]}; {dataset.route}"
    return Dataset(spec, splits, route, decoded=dataset)


def moments(codes: np.ndarray) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of real codes, by their last axis, as facts of their field.

    A process that is to see zero mean and unit variance scales them with these (Rombach et al.
    2022, appendix G; here by channel). Codes are read a part at a time.
    """
    mean, squares, count = np.zeros(codes.shape[-1]), np.zeros(codes.shape[-1]), 0
    for start in range(0, len(codes), 4096):
        part = np.asarray(codes[start : start + 4096], np.float64).reshape(-1, codes.shape[-1])
        own, gap = part.mean(0), part.mean(0) - mean  # Chan, Golub & LeVeque 1979
        squares += np.square(part - own).sum(0)
        squares += np.square(gap) * (count * len(part) / (count + len(part)))
        count += len(part)
        mean += gap * (len(part) / count)
    std = np.sqrt(np.maximum(squares / count, 1e-12))
    return {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}


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


def _kept(place: Path, fields: Sequence[str], count: int) -> dict[str, np.ndarray] | None:
    """The arrays of a folder in the cache; None if it is not there, or damaged, as the log says."""
    if not place.exists():
        return None
    reason = sums.damage(place)
    if not reason:
        found = {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in fields}
        if all(len(rows) == count for rows in found.values()):
            return found
        reason = f"it has no {count} rows"
    logger.warning("%s is damaged (%s): the codes are made again", place, reason)
    return None


def _write(place: Path, fields: dict[str, np.ndarray]) -> None:
    """Writes a folder of arrays whole or not at all; one that is there was damaged."""
    with building(place) as partial:
        for name, rows in fields.items():
            np.save(partial / f"{name}.npy", rows)
        sums.write(partial)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(partial, place)
