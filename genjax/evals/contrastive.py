"""A trained run of `genjax.methods.clip` as judges see with it: vectors of images and of texts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, UInt8

from genjax.checks import ConfigError
from genjax.data import captions
from genjax.data.catalogue import Dataset
from genjax.data.transforms import fit
from genjax.method import Stage
from genjax.parallel.mesh import batch_part, fitting, global_batch
from genjax.training import stages

Tree = Any


class Encoder:
    """Maps pictures of any size, and strings, to vectors, with the weights of a run's evaluations.

    The run may have been trained on other data: pictures are resized and cropped as its data were,
    and texts are encoded by its own tokenizer, and cut to its own length.
    """

    def __init__(self, path: str, key: str, batch_size: int, mesh: Mesh):
        """Reads what the run is; `prepare` reads its weights.

        Args:
          path: the run's folder.
          key: the key of the config that names it, for errors.
          batch_size: pictures or texts computed at once.
          mesh: the devices.

        Raises:
          ConfigError: there is no run, or it is of another method.
        """
        self._stage, self._read = stages.alone("clip", path, key, mesh)
        method = self._stage.config.method
        if method != "clip":
            raise ConfigError(
                f"{key}={path!r}: a run of method {method!r}, which has no vectors of images and "
                "texts. Give the workdir of a run of configs/clip.py or configs/import_clip.py."
            )
        self._size, self._mesh = batch_size, mesh

    def prepare(self) -> None:
        """Reads the weights, once.

        Raises:
          ConfigError: there is no checkpoint, or a damaged one.
        """
        _ = self._apply

    @functools.cached_property
    def _apply(self) -> Callable[[dict[str, jax.Array]], dict[str, jax.Array]]:
        """(a batch of one field) -> its vectors by the field's name, whole on every device."""
        stage: Stage = self._stage
        arrays, everywhere = self._read(), NamedSharding(self._mesh, PartitionSpec())
        run = jax.jit(stage.apply, out_shardings=everywhere)
        return lambda batch: run(arrays.params, arrays.mutable, batch)

    def images(self, images: UInt8[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N E"]:
        """The vectors of pictures, of length 1; every process passes all pictures."""
        height, wide, channels = self._stage.spec.fields["image"].shape
        return self._vectors("image", np.stack([fit(x, channels, (height, wide)) for x in images]))

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "N E"]:
        """The vectors of texts, of length 1; every process passes all texts.

        Raises:
          ConfigError: a text is empty, or has a character that the run's tokenizer does not know.
        """
        field = self._stage.spec.fields["text"]
        return self._vectors("text", captions.rows(texts, field, "the texts for CLIP", "judged"))

    def _vectors(self, name: str, rows: np.ndarray) -> Float[np.ndarray, "N E"]:
        part, parts = batch_part(self._mesh)
        size, found = fitting(self._size, len(rows), self._mesh), []
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            whole = np.pad(batch, ((0, size - len(batch)), *((0, 0),) * (rows.ndim - 1)), "edge")
            local = np.split(whole, parts)[part]
            vectors = self._apply(global_batch({name: local}, self._mesh))[name]
            found.append(jax.device_get(vectors)[: len(batch)])
        return np.concatenate(found)


def check_data(judge: str, dataset: Dataset) -> None:
    """Refuses data whose samples are no pictures that an `Encoder` takes.

    Raises:
      ConfigError: they are not 8-bit images.
    """
    spec, field = dataset.spec, dataset.spec.generated
    if field.kind != "image" or field.dtype != np.uint8:
        raise ConfigError(
            f"config.evals.judges: {judge} judges 8-bit images, but {spec.target!r} of "
            f"{spec.name} is of kind {field.kind!r} and type {np.dtype(field.dtype)}. Set "
            f"dataset.dequantize=False if they are images, or leave {judge} out."
        )
