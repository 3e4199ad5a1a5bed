"""Data sets in the ArrayRecord format, written and read with tensorflow_datasets (TFDS).

TensorFlow is never imported. TFDS would use it to encode images that a builder yields as arrays,
and many builders use its file functions. Both are replaced here while a builder runs.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from genjax.checks import first_line
from genjax.config import ConfigError
from genjax.data import sources, transforms
from genjax.data.packages import cache_root
from genjax.data.splits import exact_first
from genjax.data.transforms import Example
from genjax.pictures import png

# Seconds to wait for the first answer from a download's host.
PROBE_SECONDS = 10
GROUP = "split_group"  # the feature that holds an example's group


@functools.cache
def _tfds() -> Any:
    """tensorflow_datasets, imported when first needed: it takes half a second."""
    import tensorflow_datasets

    return tensorflow_datasets


def root() -> Path:
    """The TFDS `data_dir` that genjax prepares data sets in."""
    return cache_root() / "tfds"


def names() -> list[str]:
    """The names of the data sets that TFDS has builders for."""
    return _tfds().list_builders(with_community_datasets=False)


def builder(name: str, data_dir: str | Path | None = None) -> Any:
    """TFDS's builder of `name` ("name" or "name/config") with its data below `data_dir`.

    Raises:
      LookupError: TFDS does not know the name and `data_dir` has no such data set.
      ConfigError: TFDS knows the name but cannot make the builder (an unknown config ...).
    """
    tfds = _tfds()
    try:
        return tfds.builder(name, data_dir=os.fspath(data_dir or root()))
    except tfds.core.registered.DatasetNotFoundError:
        raise LookupError(name) from None
    except Exception as error:  # what a builder, or a damaged description, raises is not specified
        raise ConfigError(f"dataset.name={name!r}: {first_line(error)}") from error


class Keys(NamedTuple):
    """The names of the features that are read from a data set; None if it has no such feature.

    Attributes:
      image: the image.
      label: the class.
      caption: the caption.
      group: what the example belongs to, if no group may be in two splits.
    """

    image: str
    label: str | None
    caption: str | None
    group: str | None = None


def image_features(built: Any) -> tuple[Keys, tuple[Any, ...], tuple[str, ...]]:
    """(keys, image shape with None where it varies, the names of the classes).

    Raises:
      ConfigError: the data set has no feature that is a uint8 image.
    """
    features = _tfds().features
    images = [k for k, f in built.info.features.items() if isinstance(f, features.Image)]
    labels = [k for k, f in built.info.features.items() if isinstance(f, features.ClassLabel)]
    supervised = built.info.supervised_keys or ()
    image_key = next((k for k in ("image", *supervised, *images) if k in images), None)
    label_key = next((k for k in ("label", *supervised, *labels[:1]) if k in labels), None)
    texts = [k for k, f in built.info.features.items() if isinstance(f, features.Text)]
    caption_key = next((k for k in ("caption", "text") if k in texts), None)
    if image_key is None or len(built.info.features[image_key].shape) != 3:
        raise ConfigError(
            f"dataset.name={built.name!r}: expected a TFDS data set with an image; its features "
            f"are {', '.join(built.info.features)}."
        )
    image = built.info.features[image_key]
    if image.np_dtype != np.uint8:
        raise ConfigError(
            f"dataset.name={built.name!r}: its images are {image.np_dtype}, expected uint8."
        )
    classes = tuple(built.info.features[label_key].names) if label_key else ()
    group_key = GROUP if GROUP in texts else None
    return Keys(image_key, label_key, caption_key, group_key), image.shape, classes


def prepared(name: str, data_dirs: list[Path]) -> Any:
    """The builder of `name` in the first of `data_dirs` that has it prepared.

    Raises:
      ConfigError: none of them has it in a format with random access.
    """
    errors = []
    for data_dir in data_dirs:
        built = None
        if (data_dir / name.partition("/")[0]).is_dir():
            with contextlib.suppress(LookupError):
                built = builder(name, data_dir)
        if built is None or not built.info.splits:
            errors.append(f"nothing in {data_dir}")
        elif not any(f.value == "array_record" for f in built.info.available_file_formats()):
            errors.append(
                f"{data_dir} holds it as {built.info.file_format.value}, which has no random "
                'access: prepare it with file_format="array_record"'
            )
        else:
            return built
    raise ConfigError("; ".join(errors))


def sizes(built: Any) -> dict[str, int]:
    """The number of examples in each of `sources.SPLITS`; empty if `built` is not prepared.

    Raises:
      ConfigError: it is prepared but has no train split.
    """
    splits, tfds_names = built.info.splits, _named_splits(built)
    if splits and "train" not in tfds_names:
        raise ConfigError(
            f"dataset.name={built.name!r}: it has no train split; its splits are "
            f"{', '.join(splits)}. Use 'folder' or 'npz' for data with other splits."
        )
    return {split: splits[name].num_examples for split, name in tfds_names.items()}


def _named_splits(built: Any) -> dict[str, str]:
    """Split -> its name in TFDS: the same name, another spelling, or its parts joined by +."""
    remedy = "Write the splits that you want to files, and use 'folder' or 'npz'."
    by_split = exact_first(built.info.splits, f"dataset.name={built.name!r}", remedy)
    return {split: "+".join(names) for split, names in by_split.items()}


def read(built: Any, channels: int, size: tuple[int, int]) -> sources.Raw:
    """The splits of a prepared data set, with images converted to `channels` and `size`.

    Raises:
      ConfigError: there is no train split, or the images vary in size and no size is given.
    """
    tfds = _tfds()
    keys, native_shape, classes = image_features(built)
    shape = final_shape(built.name, native_shape, channels, size)
    fields = sources.image_fields(shape, len(classes), named(classes))
    splits, texts, groups = {}, {}, None
    folder, tfds_names = os.fspath(built.data_dir), _named_splits(built)
    for split in sizes(built):
        try:
            data = built.as_data_source(
                tfds_names[split],
                deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
                file_format="array_record",
            )
            in_memory = sources.fits(len(data), fields)
        except Exception as error:  # neither array_record nor TFDS says what it raises
            raise _damaged(folder, error) from error
        source = Records(data, built.info.features, keys, shape, size, in_memory, folder)
        if keys.caption:
            texts[split] = source.texts(keys.caption)
        if keys.group and list(tfds_names) == ["train"]:
            groups = source.texts(keys.group)
        splits[split] = sources.Memory(source, fields) if in_memory else source
    route = f"prepared ({built.data_dir})"
    return sources.Raw(splits, fields, "image", route, texts or None, groups)


def named(classes: Sequence[str]) -> tuple[str, ...]:
    """The names of classes; empty if they are only numbers."""
    return () if list(classes) == list(map(str, range(len(classes)))) else tuple(classes)


def final_shape(
    name: str, native: tuple[Any, ...], channels: int, size: tuple[int, int]
) -> tuple[int, int, int]:
    """The shape of images after conversion; `native` is the shape before (None: varies)."""
    height, width, depth = native
    if not any(size) and not (height and width):
        raise ConfigError(
            f"dataset.name={name!r}: its images vary in size. Set dataset.image_size."
        )
    depth = channels or (1 if depth == 1 else 3)
    return (size[0] or height, size[1] or width, depth)


def _damaged(folder: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"the data set in {folder} is damaged ({first_line(error)}). Delete that folder; it is "
        "prepared again."
    )


class Records:
    """Examples from raw TFDS records, decoded on access.

    With `read_ahead` the first access reads all encoded records into memory, because reading one
    record decompresses a whole chunk of its file.
    """

    def __init__(
        self,
        records: Any,
        features: Any,
        keys: Keys,
        shape: tuple[int, int, int],
        size: tuple[int, int],
        read_ahead: bool,
        place: str,
    ):
        """`keys` are the features to read; `place` is the folder, for error messages."""
        self._records, self._features, self._keys = records, features, keys
        self._folder = place
        self._shape, self._size = shape, size
        self._decoders = {keys.image: _tfds().decode.SkipDecoding()}
        self._read_ahead, self._lock = read_ahead, threading.Lock()

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        """Decodes example `index`."""
        record = self._record(index)
        decode = functools.partial(transforms.pixels, channels=self._shape[2], size=self._size)
        try:
            image = transforms.read_picture(record[self._keys.image], decode)
        except Exception as error:  # what a damaged picture makes Pillow raise is not specified
            raise ConfigError(
                f"example {index} of the data set in {self._folder} cannot be decoded: {error}. "
                f"Delete that folder; it is prepared again."
            ) from error
        if image.shape != self._shape:
            raise ConfigError(sources.wrong_shape(f"example {index}", image, self._shape))
        if self._keys.label is None:
            return {"image": image}
        return {"image": image, "label": np.int32(record[self._keys.label])}

    def texts(self, feature: str) -> list[str]:
        """The text in a feature of every example."""
        encoded = [self._record(index)[feature] for index in range(len(self))]
        return [text.decode("utf-8") for text in encoded]

    def _record(self, index: int) -> Mapping[str, Any]:
        """The features of example `index`, its image still encoded."""
        if self._read_ahead:
            with self._lock:
                if self._read_ahead:
                    self._records = self._encoded(range(len(self._records)))
                    self._read_ahead = False
        try:
            encoded = self._records[index]
            return self._features.deserialize_example_np(encoded, decoders=self._decoders)
        except Exception as error:  # neither array_record nor TFDS says what it raises
            raise _damaged(self._folder, error) from error

    def _encoded(self, indices: Iterable[int]) -> list[bytes]:
        try:
            return list(self._records.__getitems__(list(indices)))
        except Exception as error:  # array_record does not say what it raises
            raise _damaged(self._folder, error) from error

    def content(self) -> Iterator[bytes]:
        """Some of the encoded records."""
        chosen = sorted(sources.order(len(self))[: sources.SAMPLED].tolist())
        read = isinstance(self._records, list)
        yield from (self._records[i] for i in chosen) if read else self._encoded(chosen)


# ---- writing -------------------------------------------------------------------------------------


def download(name: str) -> None:
    """Downloads `name` from its official source and prepares it below `root()`.

    Raises:
      ConfigError: the host does not answer, the download or the builder fails, or the builder
        needs TensorFlow for more than files and image encoding.
    """
    built = builder(name)
    _probe(next(iter(built.url_infos or ()), ""))
    with contextlib.redirect_stdout(sys.stderr):
        _prepare(built)


def _probe(url: str) -> None:
    """Fails fast if the host of `url` cannot be reached; TFDS itself would retry for a minute."""
    if not url.startswith(("http://", "https://")):
        return
    request = urllib.request.Request(url, headers={"User-Agent": "genjax", "Range": "bytes=0-0"})
    try:
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return  # the host answers; errors of the real request are reported by the download
    except OSError as error:
        raise ConfigError(f"{url} cannot be reached: {getattr(error, 'reason', error)}") from error


def build_from_files(name: str, files: Mapping[str, Path]) -> None:
    """Prepares TFDS's data set `name` from local files, matched to its URLs by file name.

    TFDS's own builder reads them, so the result equals that of the official download.
    """
    built = builder(name)

    def download_and_extract(urls: Mapping[str, str]) -> dict[str, epath.Path]:
        return {key: epath.Path(files[url.rsplit("/", 1)[-1]]) for key, url in urls.items()}

    manager = SimpleNamespace(download_and_extract=download_and_extract, downloaded_size=0)
    built._make_download_manager = lambda **_: manager
    _prepare_quietly(built)


def build_from_examples(
    name: str,
    examples: Iterable[Mapping[str, Any]],
    shape: tuple[int, int, int],
    classes: Sequence[str],
    captioned: bool,
    grouped: bool,
    description: str,
) -> None:
    """Writes examples below `root()` as the data set `name` 1.0.0 with the single split train.

    Args:
      name: the data set's name for TFDS.
      examples: each has `image` uint8 [H, W, C] (stored as PNG), `label` (a name out of `classes`
        or its position) if there are classes, and `caption` (text) if `captioned`.
      shape: (H, W, C) of every image.
      classes: the names of the labels; empty if there are none.
      captioned: whether there are captions.
      grouped: whether each example has a `split_group` (text), none of which may be in two splits.
      description: what the data are and where they are from; stored with them.
    """
    tfds = _tfds()
    columns: dict[str, Any] = {"image": tfds.features.Image(shape=shape, encoding_format="png")}
    if classes:
        columns["label"] = tfds.features.ClassLabel(names=list(classes))
    if captioned:
        columns["caption"] = tfds.features.Text()
    if grouped:
        columns[GROUP] = tfds.features.Text()

    class Packaged(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(columns),
                description=description,
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[Any]:
            yield from enumerate(examples)

    Packaged.name = name
    _prepare_quietly(Packaged(data_dir=os.fspath(root())))


def _prepare_quietly(built: Any) -> None:
    """Runs a builder that takes seconds, without progress bars."""
    tfds = _tfds()
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            _prepare(built)
    finally:
        tfds.enable_progress_bar()


def _prepare(built: Any) -> None:
    """Runs a builder; raises ConfigError if it fails."""
    tfds = _tfds()
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        for feature in _flat(built.info.features):
            if isinstance(feature, tfds.features.Image):
                feature._image_encoder._encode_image = png
        with _file_functions(type(built)):
            built.download_and_prepare(download_config=config, file_format="array_record")
    except ImportError as error:
        if "tensorflow" not in str(error):
            raise ConfigError(f"its builder needs a missing package: {error}") from error
        raise ConfigError(
            "its builder needs TensorFlow, which genjax does not use. Prepare it elsewhere with "
            'tfds.builder(NAME, file_format="array_record").download_and_prepare() and set '
            "dataset.path to that data_dir"
        ) from error
    except Exception as error:  # a builder may raise anything; the caller lists all errors
        raise ConfigError(f"{type(error).__name__}: {first_line(error)}") from error


def _flat(feature: Any) -> Iterator[Any]:
    yield feature
    inner = feature.values() if hasattr(feature, "values") else ()
    for child in (*inner, *([feature.feature] if hasattr(feature, "feature") else [])):
        yield from _flat(child)


class _Gfile:
    """The functions of `tf.io.gfile` that builders use, over etils.epath."""

    @staticmethod
    def GFile(path: Any, mode: str = "r") -> Any:
        return epath.Path(path).open(mode)

    @staticmethod
    def listdir(path: Any) -> list[str]:
        return [child.name for child in epath.Path(path).iterdir()]

    @staticmethod
    def glob(pattern: Any) -> list[str]:
        import glob

        return sorted(glob.glob(os.fspath(pattern)))

    exists = staticmethod(lambda path: epath.Path(path).exists())
    isdir = staticmethod(lambda path: epath.Path(path).is_dir())
    walk = staticmethod(os.walk)


class _TensorFlow:
    """Replaces `tf` in a builder's module; ImportError for anything but file functions."""

    io = SimpleNamespace(gfile=_Gfile)
    compat = SimpleNamespace(as_text=os.fsdecode, as_bytes=os.fsencode)

    def __getattr__(self, name: str) -> Any:
        raise ImportError(f"tensorflow is not installed (tf.{name})")


@contextlib.contextmanager
def _file_functions(builder_type: type) -> Iterator[None]:
    """Replaces `tf` in the modules that define `builder_type` and that unpack archives."""
    modules = {sys.modules[base.__module__] for base in builder_type.__mro__[:-1]}
    extractor = importlib.import_module("tensorflow_datasets.core.download.extractor")
    builder_modules = [m for m in modules if not m.__name__.startswith("tensorflow_datasets.core.")]
    changed = [(m, vars(m)["tf"]) for m in (extractor, *builder_modules) if "tf" in vars(m)]
    for module, _ in changed:
        module.tf = _TensorFlow()
    try:
        yield
    finally:
        for module, original in changed:
            module.tf = original
