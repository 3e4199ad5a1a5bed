"""Documents of text: one file, a folder of files, or JSON Lines."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import json_lines, listing
from genjax.data.alphabets import utf8
from genjax.data.packages import sha256
from genjax.data.splits import by_split
from genjax.files import shown

log = logging.getLogger(__name__)

JSON_LINES = (".jsonl", ".ndjson", ".json")
# What a split may be a file of, and what is read of a folder.
PLAIN = (".txt", ".text", ".tokens", ".jsonl", ".ndjson")
SUFFIXES = (*PLAIN, ".md", ".rst", ".tex", ".py")


class Documents(NamedTuple):
    """Texts in their order.

    Attributes:
      texts: one a document.
      prompts: what each text follows, without counting itself; empty if there are no prompts.
    """

    texts: list[str]
    prompts: list[str]

    def at(self, indices: Any) -> Documents:
        """The documents at `indices`."""
        texts, prompts = ([all_of[i] for i in indices] if all_of else [] for all_of in self)
        return Documents(texts, prompts)

    def groups(self, characters: int) -> Iterator[Documents]:
        """The documents in order, so many at a time that they have `characters` or more."""
        start, held = 0, 0
        for i in range(len(self.texts)):
            held += len(self.texts[i]) + (len(self.prompts[i]) if self.prompts else 0)
            if held >= characters or i + 1 == len(self.texts):
                yield self.at(range(start, i + 1))
                start, held = i + 1, 0


class Corpus(NamedTuple):
    """Documents that have not been read yet.

    Attributes:
      digest: changes with anything that could change the documents.
      read: gives the documents of each official split; of train only if there are no such splits.
      route: where they come from.
      single: whether each split is one long text, and not a number of documents.
    """

    digest: str
    read: Callable[[], dict[str, Documents]]
    route: str
    single: bool = False


def decode(content: bytes, where: str) -> str:
    """UTF-8 as text, without a byte order mark; line ends stay what they are.

    Raises:
      ConfigError: it is not UTF-8; says where, and at which byte.
    """
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at offset {error.start}"
        raise ConfigError(
            f"{where} is not UTF-8: {found} ({error.reason}). Convert it, for example with "
            "`iconv -t UTF-8`, or leave it out."
        ) from None


def corpus(dataset: ConfigDict) -> Corpus:
    """The documents in `dataset.path`.

    A text file is one document. A folder gives one for each file of `SUFFIXES` below it, sorted by
    path; hidden files are left alone, and links are followed. If it has a folder or a file, or
    numbered parts of one, called train (Train.txt, train-00000.jsonl, wiki.train.tokens ...), that
    is the split train, and those called validation and test are the others: see
    `splits.SPELLINGS`. What lies beside them is not read, and reported. A file of JSON Lines gives
    one document for each line that is not blank, an object, whose field `dataset.text.field` is the
    text and `dataset.text.prompt_field`, if set, what comes before it. Prompt and text are joined
    as they are. Documents without any character are left out.

    Raises:
      ConfigError: no such file or folder, or no text in it; and, by `read`, a file that is not
        UTF-8, a bad line (with its number) or no document at all. With `dataset.on_corrupt="skip"`
        such files and lines are left out.
    """
    if not dataset.path:
        raise ConfigError(
            f'dataset.name="{dataset.name}" needs dataset.path: a text file, a folder of text '
            "files, or a .jsonl file."
        )
    root = Path(dataset.path)
    splits = _splits(root)
    files = [(split, f) for split, found in splits.items() for f in found]
    if dataset.text.prompt_field and not all(_is_json(f) for _, f in files):
        raise ConfigError(
            f"config.dataset.text.prompt_field={dataset.text.prompt_field!r} is a field of JSON "
            f"Lines; {root} is, or holds, other text. Set it to ''."
        )
    how = [dataset.text.field, dataset.text.prompt_field, dataset.on_corrupt]
    digest = hashlib.sha256(json.dumps(how).encode())
    for split, file in files:
        digest.update(f"\0{split}\0{file.relative_to(root)}\0{sha256(file)}".encode())

    def read() -> dict[str, Documents]:
        return {split: _read(found, dataset) for split, found in splits.items()}

    single = len(files) == len(splits) and not any(_is_json(file) for _, file in files)
    route = f"the {'folder' if root.is_dir() else 'file'} {root}"
    return Corpus(digest.hexdigest(), read, route, single)


def _is_json(file: Path) -> bool:
    return file.suffix.lower() in JSON_LINES


def _splits(root: Path) -> dict[str, list[Path]]:
    """The files of each split; of train only if `root` has no splits."""
    if not root.is_dir():
        if not root.is_file():
            raise ConfigError(
                f"dataset.path={str(root)!r}: no such file or folder. Give a text file, a folder "
                "of text files, or a .jsonl file."
            )
        return {"train": [root]}
    entries = [p for p in listing.visible(root) if p.is_dir() or p.suffix.lower() in PLAIN]
    by_name: dict[str, list[Path]] = {}
    for path in entries:
        by_name.setdefault(path.name if path.is_dir() else path.stem, []).append(path)
    named = by_split(by_name, str(root), prefixed=True)
    if "train" not in named:
        if named:
            called = ", ".join(
                p.name for names in named.values() for n in names for p in by_name[n]
            )
            log.warning(
                "%s: there is no train, so all of its texts are for training, also %s. Call what "
                "is for training train, or take out what is not",
                *(root, called),
            )
        return {"train": _filled(root, _below(root))}
    splits = {}
    for split, names in named.items():
        paths = [path for name in names for path in by_name[name]]
        if len(paths) > len(names):
            raise ConfigError(
                f"{root} holds {' and '.join(p.name for p in paths)}: expected one of them to be "
                f"the split {split}."
            )
        files = [f for path in paths for f in (_below(path) if path.is_dir() else [path])]
        splits[split] = _filled(paths[0], files)
        log.info("%s: %s is %s", root, split, ", ".join(path.name for path in paths[:8]))
    read = {path for names in named.values() for name in names for path in by_name[name]}
    aside = [p for p in listing.visible(root) if p not in read and (p.is_dir() or _wanted(p))]
    if aside:
        log.warning(
            "%s: not read, as they are beside %s: %s",
            *(root, ", ".join(sorted(path.name for path in read))),
            ", ".join(path.name for path in aside[:8]),
        )
    return splits


def _filled(path: Path, files: list[Path]) -> list[Path]:
    if not files:
        raise ConfigError(
            f"{path} holds no text. Expected files that end in {', '.join(SUFFIXES)}."
        )
    return files


def _wanted(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _below(folder: Path) -> list[Path]:
    return [path for path in listing.files_below(folder) if _wanted(path)]


def _read(files: list[Path], dataset: ConfigDict) -> Documents:
    """The documents of the files of one split."""
    texts, prompts, skipped, first = [], [], 0, ""
    for file in files:
        for document in _documents(file, dataset):
            if isinstance(document, ConfigError):
                if dataset.on_corrupt == "error":
                    raise document
                skipped, first = skipped + 1, first or str(document)
            elif any(document):
                prompts.append(document[0])
                texts.append(document[1])
    if skipped:
        log.warning("left out %d damaged files or lines; the first: %s", skipped, first)
    return Documents(texts, prompts if dataset.text.prompt_field else [])


def _documents(file: Path, dataset: ConfigDict) -> Iterator[tuple[str, str] | ConfigError]:
    """(prompt, text) of each document of a file, or what is wrong with it."""
    try:
        content = decode(file.read_bytes(), str(file))
    except ConfigError as error:
        yield error
        return
    if not _is_json(file):
        yield "", content
        return
    fields = (dataset.text.prompt_field, dataset.text.field)
    for number, row in json_lines.rows(content):
        if isinstance(row, ValueError):
            yield ConfigError(f"{file}, {row}")
            continue
        try:
            yield tuple(_field(row, name) if name else "" for name in fields)
        except ConfigError as error:
            yield ConfigError(f"{file}, line {number}: {error}")


def _field(value: Mapping[str, Any], name: str) -> str:
    """The text in a field of an object."""
    if not isinstance(value.get(name), str):
        got = f"its field {name!r} is {shown(value[name])}" if name in value else "there is none"
        raise ConfigError(
            f"expected a text in the field {name!r}; {got}. Its fields are "
            f"{', '.join(map(shown, list(value)[:20])) or 'none'}; name one with "
            "dataset.text.field."
        )
    utf8(value[name])
    return value[name]
