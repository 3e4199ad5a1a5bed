"""Data sets in ArrayRecord form, written and read through tensorflow_datasets (TFDS).

TensorFlow is never imported. TFDS would use it to encode images that a builder yields as arrays,
and many builders use its file functions: both are replaced here while a builder runs.
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

# Seconds to wait for the first answer of a download's host.
PROBE_SECONDS = 10


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
      LookupError: TFDS knows no such name and `data_dir` holds none.
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
    """Which features of a data set are delivered; None where it has no such one.

    Attributes:
      image: of pixels.
      label: a class.
      caption: a text.
    """

    image: str
    label: str | None
    caption: str | None


def image_features(built: Any) -> tuple[Keys, tuple[Any, ...], tuple[str, ...]]:
    """(keys, image shape with None where it varies, the names of the classes).

    Raises:
      ConfigError: the data set has no feature that is an image of bytes.
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
    return Keys(image_key, label_key, caption_key), image.shape, classes


def prepared(name: str, data_dirs: list[Path]) -> Any:
    """The builder of `name` that finds it ready to be read below one of `data_dirs`.

    Raises:
      ConfigError: none of them holds it in a format with random access.
    """
    said = []
    for data_dir in data_dirs:
        found = None
        if (data_dir / name.partition("/")[0]).is_dir():
            with contextlib.suppress(LookupError):
                found = builder(name, data_dir)
        if found is None or not found.info.splits:
            said.append(f"nothing in {data_dir}")
        elif not any(f.value == "array_record" for f in found.info.available_file_formats()):
            said.append(
                f"{data_dir} holds it as {found.info.file_format.value}, which has no random "
                'access: prepare it with file_format="array_record"'
            )
        else:
            return found
    raise ConfigError("; ".join(said))


def sizes(built: Any) -> dict[str, int]:
    """Examples in each of `sources.SPLITS` that `built` has; empty if it is not prepared.

    Raises:
      ConfigError: it is prepared and has no train split.
    """
    splits, named = built.info.splits, _named_splits(built)
    if splits and "train" not in named:
        raise ConfigError(
            f"dataset.name={built.name!r}: it has no train split; its splits are "
            f"{', '.join(splits)}. Use 'folder' or 'npz' for data that is split otherwise."
        )
    return {split: splits[name].num_examples for split, name in named.items()}


def _named_splits(built: Any) -> dict[str, str]:
    """Split -> what TFDS calls it: its own name, or a spelling of it, or the parts with a +."""
    remedy = "Write those that you want to files, and use 'folder' or 'npz'."
    found = exact_first(built.info.splits, f"dataset.name={built.name!r}", remedy)
    return {split: "+".join(names) for split, names in found.items()}


def read(built: Any, channels: int, size: tuple[int, int]) -> sources.Raw:
    """The splits of a prepared data set, its images in these channels and of this size.

    Raises:
      ConfigError: no train split; or its images vary in size and none is given.
    """
    tfds = _tfds()
    keys, native, classes = image_features(built)
    shape = final_shape(built.name, native, channels, size)
    fields = sources.image_fields(shape, len(classes), named(classes))
    splits, texts = {}, {}
    place, called = os.fspath(built.data_dir), _named_splits(built)
    for split in sizes(built):
        try:
            data = built.as_data_source(
                called[split],
                deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
                file_format="array_record",
            )
            kept = sources.fits(len(data), fields)
        except Exception as error:  # neither array_record nor TFDS says what it raises
            raise _damaged(place, error) from error
        source = Records(data, built.info.features, keys, shape, size, kept, place)
        if keys.caption:
            texts[split] = source.captions()
        splits[split] = sources.Memory(source, fields) if kept else source
    return sources.Raw(splits, fields, "image", f"prepared ({built.data_dir})", texts or None)


def named(classes: Sequence[str]) -> tuple[str, ...]:
    """The names of classes; none if they are but their numbers."""
    return () if list(classes) == list(map(str, range(len(classes)))) else tuple(classes)


def final_shape(
    name: str, native: tuple[Any, ...], channels: int, size: tuple[int, int]
) -> tuple[int, int, int]:
    """The shape that images of shape `native` (None: varies) have once resized and converted."""
    height, width, depth = native
    if not any(size) and not (height and width):
        raise ConfigError(
            f"dataset.name={name!r}: its images vary in size. Set dataset.image_size."
        )
    depth = channels or (1 if depth == 1 else 3)
    return (size[0] or height, size[1] or width, depth)


def _damaged(place: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"the data set in {place} is damaged ({first_line(error)}). Delete that folder; it is "
        "prepared again."
    )


class Records:
    """Examples out of raw TFDS records, decoded as they are read.

    With `read_ahead` the first access reads all the encoded records into memory: one by one, each
    would cost the decompression of a whole chunk of its file.
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
        """`keys` are those among `features` that are delivered; `place` is the folder."""
        self._records, self._features, self._keys = records, features, keys
        self._place = place
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
                f"example {index} of the data set in {self._place} cannot be decoded: {error}. "
                f"Delete that folder; it is prepared again."
            ) from error
        if image.shape != self._shape:
            raise ConfigError(sources.wrong_shape(f"example {index}", image, self._shape))
        if self._keys.label is None:
            return {"image": image}
        return {"image": image, "label": np.int32(record[self._keys.label])}

    def captions(self) -> list[str]:
        """The text of every example."""
        found = [self._record(index)[self._keys.caption] for index in range(len(self))]
        return [text.decode("utf-8") for text in found]

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
            raise _damaged(self._place, error) from error

    def _encoded(self, indices: Iterable[int]) -> list[bytes]:
        try:
            return list(self._records.__getitems__(list(indices)))
        except Exception as error:  # as above
            raise _damaged(self._place, error) from error

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
    """Fails fast if the host of `url` is out of reach; TFDS itself would retry for a minute."""
    if not url.startswith(("http://", "https://")):
        return
    request = urllib.request.Request(url, headers={"User-Agent": "genjax", "Range": "bytes=0-0"})
    try:
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return  # it answers; what it says to a real request is for the download to report
    except OSError as error:
        raise ConfigError(f"{url} is out of reach: {getattr(error, 'reason', error)}") from error


def build_from_files(name: str, files: Mapping[str, Path]) -> None:
    """Prepares TFDS's data set `name` from files at hand, by the file names of its URLs.

    TFDS's own builder reads them, so what is written is what the official download gives.
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
    description: str,
) -> None:
    """Writes examples below `root()` as the data set `name`, version 1.0.0, with one split, train.

    Args:
      name: the data set's name for TFDS.
      examples: each has `image` uint8 [H, W, C] (stored as PNG), `label` (a name out of `classes`
        or its position) if there are classes, and `caption` (text) if `captioned`.
      shape: (H, W, C) of every image.
      classes: the names of the labels; empty if there are none.
      captioned: whether there are captions.
      description: what it is and where it is from, kept with the data.
    """
    tfds = _tfds()
    columns: dict[str, Any] = {"image": tfds.features.Image(shape=shape, encoding_format="png")}
    if classes:
        columns["label"] = tfds.features.ClassLabel(names=list(classes))
    if captioned:
        columns["caption"] = tfds.features.Text()

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
    """Runs a builder that is done in seconds, without progress bars."""
    tfds = _tfds()
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            _prepare(built)
    finally:
        tfds.enable_progress_bar()


def _prepare(built: Any) -> None:
    """Runs a builder; ConfigError says why it failed."""
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
    except Exception as error:  # a builder may raise anything; its caller lists it with the others
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
    """Stands in for `tf` in a builder's module; anything but files is an ImportError."""

    io = SimpleNamespace(gfile=_Gfile)
    compat = SimpleNamespace(as_text=os.fsdecode, as_bytes=os.fsencode)

    def __getattr__(self, name: str) -> Any:
        raise ImportError(f"tensorflow is not installed (tf.{name})")


@contextlib.contextmanager
def _file_functions(builder_type: type) -> Iterator[None]:
    """Gives the modules that define `builder_type`, and that unpack archives, file functions."""
    modules = {sys.modules[base.__module__] for base in builder_type.__mro__[:-1]}
    extractor = importlib.import_module("tensorflow_datasets.core.download.extractor")
    own = [m for m in modules if not m.__name__.startswith("tensorflow_datasets.core.")]
    changed = [(m, vars(m)["tf"]) for m in (extractor, *own) if "tf" in vars(m)]
    for module, _ in changed:
        module.tf = _TensorFlow()
    try:
        yield
    finally:
        for module, original in changed:
            module.tf = original
