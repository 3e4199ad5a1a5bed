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
# PLAIN: suffixes of a file that is a split by its name. SUFFIXES: of all files read from a folder.
PLAIN = (".txt", ".text", ".tokens", ".jsonl", ".ndjson")
SUFFIXES = (*PLAIN, ".md", ".rst", ".tex", ".py")


class Documents(NamedTuple):
    """Texts in order.

    Attributes:
      texts: one per document.
      prompts: the prompt of each text, which does not count in the loss; empty if there are none.
    """

    texts: list[str]
    prompts: list[str]

    def at(self, indices: Any) -> Documents:
        """The documents at `indices`."""
        texts, prompts = ([column[i] for i in indices] if column else [] for column in self)
        return Documents(texts, prompts)

    def groups(self, characters: int) -> Iterator[Documents]:
        """The documents in order, in groups of `characters` or more (the last may have fewer)."""
        start, length = 0, 0
        for i in range(len(self.texts)):
            length += len(self.texts[i]) + (len(self.prompts[i]) if self.prompts else 0)
            if length >= characters or i + 1 == len(self.texts):
                yield self.at(range(start, i + 1))
                start, length = i + 1, 0


class Corpus(NamedTuple):
    """Documents that have not been read yet.

    Attributes:
      digest: changes with anything that could change the documents.
      read: returns the documents of each official split, or only of train if there are no splits.
      route: where they come from.
      single: whether each split is one long text instead of a number of documents.
    """

    digest: str
    read: Callable[[], dict[str, Documents]]
    route: str
    single: bool = False


def decode(content: bytes, where: str) -> str:
    """Decodes UTF-8 and drops a byte order mark. Line ends are not changed.

    Raises:
      ConfigError: it is not UTF-8; the message has `where` and the byte.
    """
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        bad_byte = f"byte 0x{content[error.start]:02x} at offset {error.start}"
        raise ConfigError(
            f"{where} is not UTF-8: {bad_byte} ({error.reason}). Convert it, for example with "
            "`iconv -t UTF-8`, or leave it out."
        ) from None


def corpus(dataset: ConfigDict) -> Corpus:
    """The documents in `dataset.path`.

    A text file is one document. A folder gives one document for each file below it that ends in one
    of `SUFFIXES`, sorted by path; hidden files are ignored, and links are followed. If the folder
    has a folder or file, or numbered parts, called train (Train.txt, train-00000.jsonl,
    wiki.train.tokens ...), that is the split train, and those called validation and test are the
    other splits: see `splits.SPELLINGS`. Other files next to them are not read; a warning lists
    them. A JSON Lines file gives one document for each line that is not blank: an object whose
    field `dataset.text.field` is the text and whose `dataset.text.prompt_field`, if set, is the
    prompt before it. Prompt and text are joined without a separator. Empty documents are left out.

    Raises:
      ConfigError: no such file or folder, or no text in it. `read` of the result raises it for a
        file that is not UTF-8, a bad line (with its number) or no document at all. With
        `dataset.on_corrupt="skip"` such files and lines are left out.
    """
    if not dataset.path:
        raise ConfigError(
            f'dataset.name="{dataset.name}" needs dataset.path: a text file, a folder of text '
            "files, or a .jsonl file."
        )
    root = Path(dataset.path)
    splits = _splits(root)
    files = [(split, file) for split, paths in splits.items() for file in paths]
    if dataset.text.prompt_field and not all(_is_json(f) for _, f in files):
        raise ConfigError(
            f"config.dataset.text.prompt_field={dataset.text.prompt_field!r} is a field of JSON "
            f"Lines, but {root} is, or holds, other text. Set it to ''."
        )
    options = [dataset.text.field, dataset.text.prompt_field, dataset.on_corrupt]
    digest = hashlib.sha256(json.dumps(options).encode())
    for split, file in files:
        digest.update(f"\0{split}\0{file.relative_to(root)}\0{sha256(file)}".encode())

    def read() -> dict[str, Documents]:
        return {split: _read(paths, dataset) for split, paths in splits.items()}

    single = len(files) == len(splits) and not any(_is_json(file) for _, file in files)
    route = f"the {'folder' if root.is_dir() else 'file'} {root}"
    return Corpus(digest.hexdigest(), read, route, single)


def _is_json(file: Path) -> bool:
    return file.suffix.lower() in JSON_LINES


def _splits(root: Path) -> dict[str, list[Path]]:
    """The files of each split, or only of train if `root` has no splits."""
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
    split_names = by_split(by_name, str(root), prefixed=True)
    if "train" not in split_names:
        if split_names:
            listed = ", ".join(
                p.name for names in split_names.values() for n in names for p in by_name[n]
            )
            log.warning(
                "%s: there is no train, so all of its texts are for training, also %s. Rename the "
                "texts for training to train, or remove the others",
                *(root, listed),
            )
        return {"train": _not_empty(root, _texts_below(root))}
    splits = {}
    for split, names in split_names.items():
        paths = [path for name in names for path in by_name[name]]
        if len(paths) > len(names):
            raise ConfigError(
                f"{root} holds {' and '.join(p.name for p in paths)}: expected one of them to be "
                f"the split {split}."
            )
        files = [f for path in paths for f in (_texts_below(path) if path.is_dir() else [path])]
        splits[split] = _not_empty(paths[0], files)
        log.info("%s: %s is %s", root, split, ", ".join(path.name for path in paths[:8]))
    read = {path for names in split_names.values() for name in names for path in by_name[name]}
    unread = [
        p for p in listing.visible(root) if p not in read and (p.is_dir() or _has_text_suffix(p))
    ]
    if unread:
        log.warning(
            "%s: not read, as they are next to %s: %s",
            *(root, ", ".join(sorted(path.name for path in read))),
            ", ".join(path.name for path in unread[:8]),
        )
    return splits


def _not_empty(path: Path, files: list[Path]) -> list[Path]:
    if not files:
        raise ConfigError(
            f"{path} holds no text. Expected files that end in {', '.join(SUFFIXES)}."
        )
    return files


def _has_text_suffix(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _texts_below(folder: Path) -> list[Path]:
    return [path for path in listing.files_below(folder) if _has_text_suffix(path)]


def _read(files: list[Path], dataset: ConfigDict) -> Documents:
    """The documents of the files of one split."""
    texts, prompts, skipped, first_error = [], [], 0, ""
    for file in files:
        for document in _documents(file, dataset):
            if isinstance(document, ConfigError):
                if dataset.on_corrupt == "error":
                    raise document
                skipped, first_error = skipped + 1, first_error or str(document)
            elif any(document):
                prompts.append(document[0])
                texts.append(document[1])
    if skipped:
        log.warning("left out %d damaged files or lines; the first: %s", skipped, first_error)
    return Documents(texts, prompts if dataset.text.prompt_field else [])


def _documents(file: Path, dataset: ConfigDict) -> Iterator[tuple[str, str] | ConfigError]:
    """(prompt, text) of each document of a file, or the error if it is damaged."""
    try:
        content = decode(file.read_bytes(), str(file))
    except ConfigError as error:
        yield error
        return
    if not _is_json(file):
        yield "", content
        return
    keys = ("prompt_field", "field")
    for number, row in json_lines.rows(content):
        if isinstance(row, ValueError):
            yield ConfigError(f"{file}, {row}")
            continue
        try:
            names = {key: dataset.text[key] for key in keys}
            yield tuple(_field(row, names[key], key) if names[key] else "" for key in keys)
        except ConfigError as error:
            yield ConfigError(f"{file}, line {number}: {error}")


def _field(row: Mapping[str, Any], name: str, key: str) -> str:
    """The text in the field `name` of a JSON object, which `dataset.text.<key>` names."""
    if not isinstance(row.get(name), str):
        problem = f"it is {shown(row[name])}" if name in row else "there is no such field"
        raise ConfigError(
            f"expected a text in the field {name!r}, but {problem}. The fields are "
            f"{', '.join(map(shown, list(row)[:20])) or 'none'}; name one with "
            f"dataset.text.{key}."
        )
    utf8(row[name])
    return row[name]
