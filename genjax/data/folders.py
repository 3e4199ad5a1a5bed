"""Folders of pictures as random-access sources."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from genjax.config import ConfigError
from genjax.data import archives, listing, picture_captions, sources, transforms
from genjax.data.splits import by_split
from genjax.data.transforms import Example
from genjax.method import Field

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_DECODE_THREADS = 8
SHOWN = 20  # class names in the log

log = logging.getLogger(__name__)


class _Pictures:
    """Pictures in files, each decoded when it is read."""

    def __init__(
        self,
        files: Sequence[Path],
        labels: Sequence[int] | None,
        shape: tuple[int, int, int],
        size: tuple[int, int],
        max_pixels: int,
    ):
        self.files, self.labels = files, labels
        self._shape, self._size, self._max_pixels = shape, size, max_pixels

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        """Example `index`."""
        path = self.files[index]
        decode = partial(transforms.pixels, channels=self._shape[2], size=self._size)
        try:
            image = transforms.read_picture(path, decode, self._max_pixels)
        except Exception as error:  # what a damaged file makes Pillow raise is not specified
            raise ConfigError(_corrupt(path, error)) from error
        if image.shape != self._shape:
            raise ConfigError(sources.wrong_shape(str(path), image, self._shape))
        if self.labels is None:
            return {"image": image}
        return {"image": image, "label": np.int32(self.labels[index])}

    def content(self) -> Iterator[bytes]:
        """Bytes that identify the pictures: all names, sizes and labels, and the bytes of some."""
        for index, file in enumerate(self.files):
            label = "" if self.labels is None else self.labels[index]
            yield f"{file.name} {file.stat().st_size} {label}\n".encode()
        for index in sources.order(len(self.files))[: sources.SAMPLED]:
            yield self.files[index].read_bytes()


class _InMemory(sources.Columns):
    """Decoded pictures. Their `content` is that of the files, not of the pixels.

    Another release of Pillow may decode the same file to other pixels.
    """

    def __init__(self, fields: Mapping[str, np.ndarray], pictures: _Pictures | sources.Subset):
        """`fields` are the arrays, decoded from `pictures`."""
        super().__init__(fields)
        self._pictures = pictures

    def content(self) -> Iterator[sources.Content]:
        """The content of the files."""
        yield from sources.content(self._pictures)


def _corrupt(path: Path, error: Exception) -> str:
    return (
        f"{path} cannot be decoded: {error}. Replace or delete it, or set "
        'dataset.on_corrupt="skip" to leave such files out.'
    )


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


class _Listing(NamedTuple):
    """The pictures of one split.

    Attributes:
      files: sorted, by class if there are class folders.
      classes: the class of each file; None if there are no class folders.
      names: the names of all class folders, including those without files.
      aside: other files next to the pictures, which are not read.
    """

    files: list[Path]
    classes: list[str] | None
    names: list[str]
    aside: list[Path]


def _listing(folders: Sequence[Path]) -> _Listing:
    """The pictures of one split in one folder, or in several that are its numbered parts."""
    without_class: list[Path] = []
    by_class: dict[str, list[Path]] = {}
    others: list[Path] = []
    for folder in folders:
        for path in listing.visible(folder):
            if not path.is_dir():
                (without_class if _is_picture(path) and path.is_file() else others).append(path)
                continue
            files = listing.files_below(path)
            pictures = [file for file in files if _is_picture(file)]
            others += [file for file in files if not _is_picture(file)]
            if pictures or not files:  # a class without any picture keeps its number
                by_class.setdefault(path.name, []).extend(pictures)
    first_class = next((name for name, files in by_class.items() if files), None)
    if without_class and first_class:
        raise ConfigError(
            f"{folders[0]} holds both pictures (such as {without_class[0].name}) and folders of "
            f"pictures (such as {first_class}/). Expected one or the other: put every picture into "
            "a class folder, or all of them directly into one folder."
        )
    if not without_class and not first_class:
        ends = f"; found: {listing.kinds_of(others)}" if others else ""
        raise ConfigError(
            f"{folders[0]} holds no pictures. Expected files ending in {', '.join(SUFFIXES)}, all "
            f"in this folder or in one folder for each class{ends}."
        )
    if without_class:
        return _Listing(without_class, None, [], others)
    pairs = [(file, name) for name, files in sorted(by_class.items()) for file in files]
    classes = [name for _, name in pairs]
    return _Listing([file for file, _ in pairs], classes, sorted(by_class), others)


def read(dataset: ConfigDict) -> sources.Raw:
    """The splits in the folder of pictures `dataset.path`.

    The folder, or an archive of it, holds pictures directly (no labels), or one folder of pictures
    for each class (labels are positions in the sorted names), or one such folder for each split,
    called as in `splits.SPELLINGS`. Several archives, as of WebDataset, are named by a pattern such
    as `train-{000..009}.tar` or lie alone in the folder; those called like a split belong to it.
    Hidden files are ignored; other kinds of files are ignored and counted in the log. Links are
    followed. The headers of all files are read immediately. Pixels are decoded immediately if they
    fit into `sources.MEMORY_LIMIT`, otherwise on access (`dataset.on_corrupt="skip"` then decodes
    all files once to find out which to leave out).

    Raises:
      ConfigError: no such folder, no pictures, a file that cannot be decoded (unless skipped), or
        a picture whose shape differs from the first one's while `dataset.image_size` is ().
    """
    path, on_corrupt, max_pixels = dataset.path, dataset.on_corrupt, dataset.max_pixels
    if not path:
        raise ConfigError('dataset.name="folder" needs dataset.path: the folder of pictures.')
    root, split_folders, names_of = _places(path)
    listings = {split: _listing(where) for split, where in split_folders.items()}
    names = listings["train"].names
    for split, split_listing in listings.items():
        if (split_listing.classes is None) != (listings["train"].classes is None):
            without, other = ("train", split) if split_listing.classes else (split, "train")
            raise ConfigError(
                f"{split_folders[without][0]} has no class folders, and {split_folders[other][0]} "
                "has: expected the same class folders in both, or pictures alone."
            )
        unknown = sorted(set(split_listing.classes or ()) - set(names))
        if unknown:
            raise ConfigError(
                f"{split_folders[split][0]}: expected the same class folders as in "
                f"{split_folders['train'][0]} ({', '.join(names) or 'none'}), got "
                f"{', '.join(unknown)} in addition."
            )
    skipped: list[Path] = []
    all_files = [file for split_listing in listings.values() for file in split_listing.files]
    headers = _scan(all_files, on_corrupt, skipped, max_pixels)
    first_header = next(iter(headers.values()))
    size = transforms.height_and_width(dataset.image_size)
    depth = dataset.channels or max(header.channels for header in headers.values())
    shape = (size[0] or first_header.height, size[1] or first_header.width, depth)
    index = {name: position for position, name in enumerate(names)}
    splits, texts = {}, {}
    fields = sources.image_fields(shape, len(names), names)
    for split, split_listing in listings.items():
        kept_indices = [i for i, file in enumerate(split_listing.files) if file in headers]
        labels = (
            [index[split_listing.classes[i]] for i in kept_indices]
            if split_listing.classes is not None
            else None
        )
        files = [split_listing.files[i] for i in kept_indices]
        pictures = _Pictures(files, labels, shape, size, max_pixels)
        splits[split], decodable = _decoded(pictures, fields, on_corrupt, skipped)
        captions = picture_captions.of_pictures(
            split_folders[split], [pictures.files[i] for i in decodable]
        )
        texts |= {split: captions} if captions else {}
    if skipped:
        log.warning(
            "%s: %d of %d pictures cannot be decoded and are left out; the first is %s",
            *(root, len(skipped), len(all_files), skipped[0]),
        )
    if not len(splits["train"]):
        raise ConfigError(f"{root}: none of the {len(skipped)} pictures can be decoded.")
    if texts and texts.keys() != splits.keys():
        uncaptioned = ", ".join(splits.keys() - texts.keys())
        raise ConfigError(
            f"{root}: the pictures of {uncaptioned} have no captions, and others have. Expected "
            "captions for all or for none."
        )
    _log_contents(root, names_of, listings, headers, shape, texts)
    captions = picture_captions.equally_many(texts) if texts else None
    return sources.Raw(splits, fields, "image", f"the folder {root}", captions)


class _Places(NamedTuple):
    """Where the pictures are.

    Attributes:
      root: what holds all of them, for messages.
      folders: split -> its folders.
      names: split -> what to call them in the log; "" if that says nothing.
    """

    root: Path
    folders: dict[str, list[Path]]
    names: dict[str, str]


def _places(path: str) -> _Places:
    """The folders of each split of `dataset.path`: a folder, an archive, or several of them.

    Raises:
      ConfigError: one of them does not exist.
    """
    root = Path(path)
    parts = [root] if root.exists() else list(map(Path, archives.expanded(path)))
    if missing := [part for part in parts if not part.exists()]:
        several = f" {len(missing)} of its {len(parts)} files are missing; the first is"
        raise ConfigError(
            f"dataset.path={path!r}:{several if len(parts) > 1 else ' no such folder:'} "
            f"{missing[0]}. Give a folder of pictures, or an archive of one "
            f"({', '.join(archives.SUFFIXES)}), or several such as shards/{{000..009}}.tar."
        )
    if root.is_dir():
        inside = listing.visible(root)
        if inside and all(p.is_file() and p.name.endswith(archives.SUFFIXES) for p in inside):
            parts = inside
            root = inside[0] if len(inside) == 1 else root  # one archive has its splits inside
    if parts == [root]:
        root = archives.unpacked(root) if root.is_file() else root
        folders = _split_folders(root)
        names = {split: ", ".join(sorted(p.name for p in of)) for split, of in folders.items()}
        plain = {split for split, of in folders.items() if of == [root] or names[split] == split}
        return _Places(root, folders, {s: "" if s in plain else names[s] for s in names})
    by_name: dict[str, list[Path]] = {}
    named: dict[str, list[str]] = {}
    for name_of in (archives.stem, lambda part: part.parent.name):
        by_name = {}
        for part in parts:
            by_name.setdefault(name_of(part), []).append(part)
        if named := by_split(by_name, path, prefixed=True):
            break
    if not named:
        named = {"train": list(by_name)}
    if "train" not in named:
        raise ConfigError(
            f"dataset.path={path!r} has {', '.join(n for names in named.values() for n in names)} "
            "but no archive or folder called train. Add one, or rename them."
        )
    if unread := sorted(by_name.keys() - {n for names in named.values() for n in names}):
        log.warning("%s is split by name: not read: %s", path, ", ".join(unread[:SHOWN]))
    files = {split: [p for n in names for p in by_name[n]] for split, names in named.items()}
    folders = {
        split: [archives.unpacked(p) if p.is_file() else p for p in of]
        for split, of in files.items()
    }
    counted = {
        split: of[0].name + (f" to {of[-1].name}, {len(of)} in all" if len(of) > 1 else "")
        for split, of in files.items()
    }
    return _Places(root, folders, counted)


def _split_folders(root: Path) -> dict[str, list[Path]]:
    """The folders of each split. The root is train if no folder in it is called like a split.

    Raises:
      ConfigError: there are other splits but no train.
    """
    folders = [path for path in listing.visible(root) if path.is_dir()]
    folder_names = by_split((path.name for path in folders), str(root))
    if not folder_names:
        return {"train": [root]}
    if "train" not in folder_names:
        raise ConfigError(
            f"{root} has {', '.join(n for names in folder_names.values() for n in names)} but no "
            "train folder. Add one, or give the folder in it as dataset.path."
        )
    read = {name for names in folder_names.values() for name in names}
    other_paths = [path for path in listing.visible(root) if path.name not in read]
    unread = [path.name for path in other_paths if path.is_dir() or _is_picture(path)]
    if unread:
        log.warning(
            "%s is split into folders (%s): not read: %s",
            *(root, ", ".join(sorted(read)), ", ".join(unread[:8])),
        )
    return {split: [root / name for name in names] for split, names in folder_names.items()}


def _log_contents(
    root: Path,
    names_of: Mapping[str, str],
    listings: Mapping[str, _Listing],
    headers: Mapping[Path, _Header],
    shape: tuple[int, int, int],
    captions: Mapping[str, list[list[str]]],
) -> None:
    """Logs what a folder holds and how it is used."""
    for split, split_listing in listings.items():
        where = f" (from {names_of[split]})" if names_of[split] else ""
        log.info("%s: %s%s has %d pictures", root, split, where, len(split_listing.files))
    names, counts = listings["train"].names, Counter(listings["train"].classes or ())
    if names:
        listed_classes = ", ".join(f"{i} {n} ({counts[n]})" for i, n in enumerate(names[:SHOWN]))
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        log.info(
            "%s: %d classes, with their pictures in train: %s%s",
            *(root, len(names), listed_classes, more),
        )
    else:
        log.info("%s: no class folders, so the pictures have no labels", root)
    if empty := [name for name in names if not counts[name]]:
        log.warning(
            "%s: the class folders %s hold no pictures in train; they keep their numbers, but the "
            "model cannot learn them. Fill or remove them",
            *(root, ", ".join(empty[:SHOWN])),
        )
    pictured = {file.with_suffix("") for own in listings.values() for file in own.files}
    other_files = [
        file
        for split_listing in listings.values()
        for file in split_listing.aside
        if not picture_captions.is_caption_file(file, pictured)
    ]
    if other_files:
        log.warning(
            "%s: %d other files are not read (%s); pictures end in %s",
            *(root, len(other_files), listing.kinds_of(other_files), ", ".join(SUFFIXES)),
        )
    sizes = Counter((header.height, header.width) for header in headers.values())
    (height, width), _ = min(sizes.items(), key=lambda item: item[0][0] * item[0][1])
    (tall, wide), _ = max(sizes.items(), key=lambda item: item[0][0] * item[0][1])
    native_sizes = (
        f"{height} x {width}" if len(sizes) == 1 else f"{height} x {width} to {tall} x {wide}"
    )
    target = f"{shape[0]} x {shape[1]}"
    same = len(sizes) == 1 and (height, width) == shape[:2]
    change = "kept" if same else f"resized and cropped around the centre to {target}"
    alpha = sum(header.alpha for header in headers.values())
    log.info(
        "%s: height x width %s, %s; %s%s%s",
        *(root, native_sizes, change, "grey" if shape[2] == 1 else "colour"),
        f"; {alpha} with transparency, laid over white" if alpha else "",
        picture_captions.counted(captions),
    )


class _Header(NamedTuple):
    """The properties of a picture after decoding, from its header."""

    height: int
    width: int
    channels: int
    alpha: bool


def _header(picture: Image.Image) -> _Header:
    size, depth = transforms.upright_size(picture), transforms.native_channels(picture)
    return _Header(*size, depth, picture.has_transparency_data)


def _scan(
    files: list[Path], on_corrupt: str, skipped: list[Path], max_pixels: int
) -> dict[Path, _Header]:
    """The headers of the readable files, in order; unreadable files are added to `skipped`."""

    def header(file: Path) -> _Header | Exception:
        try:
            return transforms.read_picture(file, _header, max_pixels)
        except Exception as error:  # what Pillow raises is not specified
            return error

    with ThreadPoolExecutor(_DECODE_THREADS) as pool:
        headers = dict(zip(files, pool.map(header, files), strict=True))
    for file, result in headers.items():
        if isinstance(result, Exception):
            if on_corrupt != "skip":
                raise ConfigError(_corrupt(file, result)) from result
            skipped.append(file)
    readable = {file: result for file, result in headers.items() if isinstance(result, _Header)}
    if not readable:
        raise ConfigError(f"none of the {len(files)} pictures can be decoded; first: {files[0]}")
    return readable


def _decoded(
    pictures: _Pictures, fields: dict[str, Field], on_corrupt: str, skipped: list[Path]
) -> tuple[Any, list[int]]:
    """(the pictures that can be decoded, in memory if they fit; their indices)."""
    in_memory = sources.fits(len(pictures), fields)
    if not in_memory and on_corrupt == "error":
        return pictures, list(range(len(pictures)))
    images = np.zeros((len(pictures) if in_memory else 0, *fields["image"].shape), np.uint8)
    good = np.ones(len(pictures), bool)

    def decode(index: int) -> None:
        try:
            image = pictures[index]["image"]
        except ConfigError as error:
            if on_corrupt == "error" or error.__cause__ is None:  # None: decoded, wrong shape
                raise
            good[index] = False
        else:
            if in_memory:
                images[index] = image

    with ThreadPoolExecutor(_DECODE_THREADS) as pool:
        for _ in pool.map(decode, range(len(pictures))):
            pass
    skipped.extend(file for file, ok in zip(pictures.files, good, strict=True) if not ok)
    indices = np.flatnonzero(good)
    if not in_memory:
        return sources.Subset(pictures, indices), indices.tolist()
    decodable = pictures if good.all() else sources.Subset(pictures, indices)
    rows = {"image": images if good.all() else images[indices]}
    if pictures.labels is not None:
        rows["label"] = np.asarray(pictures.labels, np.int32)[indices]
    return _InMemory(rows, decodable), indices.tolist()
