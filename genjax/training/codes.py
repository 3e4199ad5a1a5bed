"""The codes of a stage as the data of a run: computed once and kept in the cache."""

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
    """Refuses data that are not the stage's, or that are augmented as they are read.

    Data are compared by their description and by `data_digest`.

    Raises:
      ConfigError: the data differ, or a key augments them.
    """
    lines, now = workdir.changes(stage.spec, dataset.spec), data_digest(dataset)
    if now != stage.digest:
        lines.append(f"  digest: {stage.digest} -> {now}")
    if lines:
        raise ConfigError(
            f"the data are not those of config.stages.{stage.name}="
            f"{config.stages[stage.name]!r} (stage -> here):\n"
            + "\n".join(lines)
            + "\nGive a stage trained on these data, or set config.dataset as the stage has it."
        )
    for key in ("flip", "crop_padding", "dequantize"):
        if config.dataset[key]:
            raise ConfigError(
                f"config.dataset.{key}={config.dataset[key]}: cached codes are of unchanged "
                "examples. Turn it off here; the stage itself may be trained with it."
            )


def code_spec(stage: Stage, spec: DataSpec) -> DataSpec:
    """Returns the description of the codes of data like `spec`: the target becomes `code`.

    Every other field stays. `log_likelihood`, log p(example | code), is added if the stage has it.
    """
    codec, target = stage.method.codec, spec.target
    batch = {name: jax.ShapeDtypeStruct((1, *f.shape), f.dtype) for name, f in spec.fields.items()}
    networks = network_shapes(stage.method, stage.spec)
    code = jax.eval_shape(codec.encode, *networks, batch)
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
    """Returns the codes of every split, with log p(x | code) and all other fields.

    Codes are cached by `data_digest`, which reads only some of the examples: if you change a few
    of them under the same name, remove the cache's folder `codes`.
    """
    spec, codec = code_spec(stage, dataset.spec), stage.method.codec
    everywhere = NamedSharding(mesh, PartitionSpec())
    code_fields = [name for name in ("code", "log_likelihood") if name in spec.fields]

    def fields(arrays: Arrays, batch: Batch) -> Batch:
        networks = stage.own(arrays.params), stage.own(arrays.mutable)
        outputs = {"code": codec.encode(*networks, batch)}
        if codec.log_likelihood:
            outputs["log_likelihood"] = codec.log_likelihood(*networks, batch, outputs["code"])
        return outputs

    apply = jax.jit(fields, out_shardings=everywhere)
    stage_arrays = Arrays(stage.own(arrays.params), stage.own(arrays.mutable))
    codec_digest = hashlib.sha256(digest(digests(stage_arrays._asdict())).encode())
    codec_digest.update(json.dumps(to_json(stage.config), sort_keys=True).encode())
    splits = {}
    for split, source in dataset.splits.items():
        data = data_digest(dataset, split)[:16]
        name = (
            f"{dataset.spec.name.replace('/', '_')}-{split}-{data}-{codec_digest.hexdigest()[:16]}"
        )
        folder = packages.cache_root() / "codes" / name
        first = jax.process_index() == 0
        with packages.lock(f"codes-{name}") if first else contextlib.nullcontext():
            columns = _kept(folder, code_fields, len(source))
            if largest(int(columns is None)):  # every process takes part
                logger.info("computing the codes of the %d examples of %s", len(source), split)
                columns = _encode(config, apply, arrays, source, mesh)
                if first:
                    _write(folder, columns)
        others = {name: name for name in spec.fields if name not in code_fields}
        codes = sources.Columns({name: columns[name] for name in code_fields})
        rest = sources.Chosen(source, others)
        splits[split] = sources.Joined(codes, rest) if others else codes
        if split == "train" and not codec.vocabulary_size:
            code = spec.fields["code"]
            code = code._replace(facts={**code.facts, **moments(columns["code"])})
            spec = spec._replace(fields={**spec.fields, "code": code})
    route = f"codes by {config.stages[stage.name]}; {dataset.route}"
    return Dataset(spec, splits, route, decoded=dataset)


def moments(codes: np.ndarray) -> dict[str, tuple[float, ...]]:
    """Returns the mean and standard deviation of real codes by channel, as facts of their field.

    The channel is the last axis. A process that needs zero mean and unit variance scales the codes
    with these (Rombach et al. 2022, appendix G; here by channel). Codes are read in parts.
    """
    mean, squares, count = np.zeros(codes.shape[-1]), np.zeros(codes.shape[-1]), 0
    for start in range(0, len(codes), 4096):
        part = np.asarray(codes[start : start + 4096], np.float64).reshape(-1, codes.shape[-1])
        part_mean, gap = part.mean(0), part.mean(0) - mean  # Chan, Golub & LeVeque 1979
        squares += np.square(part - part_mean).sum(0)
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


def _kept(folder: Path, fields: Sequence[str], count: int) -> dict[str, np.ndarray] | None:
    """Returns the arrays of a cached folder; None if it is missing, or damaged (logged)."""
    if not folder.exists():
        return None
    reason = sums.damage(folder)
    if not reason:
        columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in fields}
        if all(len(rows) == count for rows in columns.values()):
            return columns
        reason = f"expected {count} rows"
    logger.warning("%s is damaged (%s): the codes are made again", folder, reason)
    return None


def _write(folder: Path, fields: dict[str, np.ndarray]) -> None:
    """Writes a folder of arrays atomically; a folder already there is damaged, and replaced."""
    with building(folder) as partial:
        for name, rows in fields.items():
            np.save(partial / f"{name}.npy", rows)
        sums.write(partial)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
