"""Text as a data set: documents, tokenised once into memory-mapped arrays, and sources of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import corpora, documents, packages, splits, sums, tokenizers, windows
from genjax.data.alphabets import Joined, Tokenizer, token_bytes, utf8
from genjax.data.documents import Corpus, Documents
from genjax.files import building
from genjax.method import DataSpec, Field

log = logging.getLogger(__name__)

# Of what is kept in the cache. A change of what it means, or of how a corpus is read, needs a new
# number.
FORMAT = 4
GROUP = 2**24  # characters whose tokens are held in memory at a time


TOKENIZER = "tokenizer"  # the name of no text at all
NAMES = (*corpora.TEXTS, TOKENIZER)


class Text(NamedTuple):
    """A text data set.

    Attributes:
      spec: what its examples look like.
      splits: split -> source.
      route: where it came from.
    """

    spec: DataSpec
    splits: dict[str, Any]
    route: str


def load(dataset: ConfigDict) -> Text:
    """The text of `config.dataset`: `dataset.name` is "text" (with `dataset.path`) or a corpus.

    `dataset.text.documents` says what an example of T = `dataset.text.length` targets is: "stream",
    a window of all documents joined, each followed by the end token if there are several;
    "packed", whole documents side by side; "padded", one document. The last two begin each
    document with the start token (bos, or the end token); their rows have segments.

    A split that the data lack and `dataset.validation` / `dataset.test` ask for is taken out of
    train: of several documents some, by a permutation that is the same in every run; of a single
    one the end, in one piece (`splits.cut`). Tokens are kept in the cache, by what they were made
    from.

    Raises:
      ConfigError: an unknown tokenizer; data that cannot be had or read, or are empty or too short.
    """
    if dataset.name == TOKENIZER:
        return without(dataset)
    options = dataset.text
    tokenizers.check(options.tokenizer, options.vocabulary_size)
    own = dataset.name == "text"
    corpus = documents.corpus(dataset) if own else corpora.find(dataset.name, dataset.path)
    ended = options.documents != "stream" or not corpus.single
    folder = _tokenised(corpus, dataset, ended)
    tokenizer = tokenizers.from_json((folder / "tokenizer.json").read_text("utf-8"))
    about = json.loads((folder / "about.json").read_text())
    special = tokenizers.special_tokens(tokenizer, ended)
    found = {
        split: _source(_tokens(folder, split, tokenizer, kept), split, tokenizer, special, dataset)
        for split, kept in about.items()
    }
    sizes = {split: len(source) for split, source in found.items()}
    spec = DataSpec(dataset.name, fields(found["train"][0], tokenizer, special), "token", sizes)
    counts = "; ".join(
        f"{split} {kept['documents']:,} documents, {kept['tokens']:,} tokens"
        for split, kept in about.items()
    )
    log.info("%s in %d kinds of tokens: %s", dataset.name, tokenizer.vocabulary_size, counts)
    return Text(spec, found, f"{corpus.route} ({folder})")


def without(dataset: ConfigDict) -> Text:
    """No text at all, only the tokenizer: for a run that is sampled from and not trained.

    Raises:
      ConfigError: a tokenizer that is made of text.
    """
    options = dataset.text
    tokenizers.check(options.tokenizer, options.vocabulary_size)
    if options.tokenizer in (*tokenizers.TRAINED, "characters"):
        raise ConfigError(
            f"config.dataset.text.tokenizer={options.tokenizer!r} is made of text, and there is "
            "none: give the path of a tokenizer.json, gpt2 or bytes."
        )
    tokenizer = tokenizers.make(options.tokenizer, (), 0, 0, end=False)
    special = tokenizers.special_tokens(tokenizer)
    example = {"token": np.zeros(options.length + 1, np.int32), "bytes": np.float32(0)}
    spec = DataSpec(dataset.name, fields(example, tokenizer, special), "token", {"train": 0})
    return Text(spec, {"train": ()}, "no text")


# What goes with tokens: of which document each is, whether it counts, how many bytes count.
_KINDS = {"token": "text", "segment": "mask", "loss_mask": "mask", "bytes": "real"}


def fields(
    example: Mapping[str, np.ndarray], tokenizer: Tokenizer, special: Mapping[str, int]
) -> dict[str, Field]:
    """The fields of an example of text."""
    text = {
        "vocabulary_size": tokenizer.vocabulary_size,
        "special": dict(special),
        "tokenizer": tokenizer,
    }
    return {
        name: Field(
            _KINDS[name], np.shape(value), np.asarray(value).dtype, text if name == "token" else {}
        )
        for name, value in example.items()
    }


def _source(
    tokens: windows.Tokens,
    split: str,
    tokenizer: Tokenizer,
    special: Mapping[str, int],
    dataset: ConfigDict,
) -> windows.Stream | windows.Rows:
    length, how = dataset.text.length, dataset.text.documents
    if how != "stream":
        filler = special.get("pad", special["eos"])
        begun = tokenizer.begins[:1] == (special["start"],)  # as `_write` has it
        return windows.Rows(tokens, length, special["start"], filler, how == "packed", begun)
    if len(tokens.ids) <= length:
        raise ConfigError(
            f"the split {split} of {dataset.name} has {len(tokens.ids)} tokens; an example takes "
            f"dataset.text.length + 1 = {length + 1}. Give more text, or less length."
        )
    return windows.Stream(tokens, length)


# ---- tokens in the cache -------------------------------------------------------------------------


def _tokens(
    folder: Path, split: str, tokenizer: Tokenizer, kept: Mapping[str, Any]
) -> windows.Tokens:
    """What `_write` wrote of a split, memory-mapped."""
    arrays = {
        name: np.asarray(np.load(path, mmap_mode="r")) if path.is_file() else None
        for name in ("ids", "ends", "loss_mask")
        if (path := folder / f"{split}_{name}.npy")
    }
    # Tokens that lose something of the text, such as spaces, are weighted to make up for it.
    weights = token_bytes(tokenizer).astype(np.float32) * np.float32(kept["bytes_per_byte"])
    return windows.Tokens(**arrays, weights=weights)


def _tokenised(corpus: Corpus, dataset: ConfigDict, ended: bool) -> Path:
    """The folder in the cache with the corpus's tokens; made if there is none, or a damaged one."""
    options = dataset.text
    size = options.vocabulary_size if options.tokenizer in tokenizers.TRAINED else 0
    identity = tokenizers.identity(options.tokenizer)
    key = [FORMAT, corpus.digest, identity, size, ended, dataset.validation, dataset.test]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    place = packages.cache_root() / "text" / f"{dataset.name}-{digest[:24]}"
    if place.exists() and not sums.damage(place):  # also in a cache that cannot be written
        return place
    with packages.lock(f"text-{place.name}"):  # another process may have made it by then
        if place.exists() and (damage := sums.damage(place)):
            log.warning("the tokens in %s are damaged (%s): they are made again", place, damage)
            shutil.rmtree(place)
        if not place.exists():
            log.info("tokenising %s, from %s", dataset.name, corpus.route)
            _make(place, corpus, dataset, ended)
    return place


def _make(place: Path, corpus: Corpus, dataset: ConfigDict, ended: bool) -> None:
    """Reads, splits and tokenises the corpus into the folder `place`, whole or not at all."""
    official = corpus.read()
    for split, found in official.items():
        if not any(found.texts):
            raise ConfigError(
                f"{corpus.route}: no text in the split {split}. Expected at least one character."
            )
    parts = _split(official, corpus.single, dataset)
    texts = [text for split in parts.values() for both in split for text in both]
    first = sum(map(len, parts["train"]))
    name, size = dataset.text.tokenizer, dataset.text.vocabulary_size
    tokenizer = tokenizers.make(name, texts, first, size, ended)
    with building(place) as partial:
        kept = {split: _write(partial, split, tokenizer, d, ended) for split, d in parts.items()}
        (partial / "tokenizer.json").write_text(tokenizer.to_json(), "utf-8")
        (partial / "about.json").write_text(json.dumps(kept))
        sums.write(partial)
        os.replace(partial, place)


def _split(
    official: Mapping[str, Documents], single: bool, dataset: ConfigDict
) -> dict[str, Documents]:
    """The official splits, and those that are asked for out of train.

    Of one text, and of so few that a share of them would be less than half a one, the ends are held
    out, unless one beside longer ones is too short for it; otherwise whole documents are.
    """
    train = official["train"]
    if single or (not train.prompts and splits.less_than_one(len(train.texts), official, dataset)):
        lengths = [len(text) for text in train.texts]
        parts = [splits.cut(n, official, dataset, whole=n < max(lengths)) for n in lengths]
        named = dict.fromkeys(split for part in parts for split in part)
        return official | {
            split: Documents(
                [t[p[split]] for t, p in zip(train.texts, parts, strict=True) if split in p], []
            )
            for split in named
        }
    carved = splits.carve({s: len(d.texts) for s, d in official.items()}, dataset)
    return {
        split: official[split] if indices is None else train.at(indices)
        for split, (_, indices) in carved.items()
    }


def _write(
    folder: Path, split: str, tokenizer: Tokenizer, found: Documents, ended: bool
) -> dict[str, Any]:
    """Writes `{split}_ids.npy`, `_ends` and, if there are prompts, `_loss_mask`; returns counts."""
    begin = np.array(tokenizer.begins if ended else (), np.int32)
    end = np.full(int(ended), tokenizer.special.get("eos", 0), np.int32)
    small, weights = tokenizer.vocabulary_size <= 2**16, token_bytes(tokenizer)
    true = stood_for = 0
    with contextlib.ExitStack() as files:

        def array(name: str, dtype: type) -> _Growing:
            return files.enter_context(_Growing(folder / f"{split}_{name}.npy", dtype))

        ids, ends = array("ids", np.uint16 if small else np.uint32), array("ends", np.int64)
        mask = array("loss_mask", np.uint8) if found.prompts else None
        for group in found.groups(GROUP):
            if group.prompts:
                joined = tokenizer.encode_joined(group.prompts, group.texts)
            else:
                joined = [Joined(ids, 0) for ids in tokenizer.encode_all(group.texts)]
            parts = [
                part
                for both, prompt in joined
                for part in (begin, both[:prompt], both[prompt:], end)
            ]
            lengths = np.array([len(part) for part in parts], np.int64)
            ends.add(ids.length + np.cumsum(lengths)[3::4])
            tokens = np.concatenate(parts)
            ids.add(tokens)
            if mask is not None:
                counted = np.tile(np.array([0, 0, 1, 1], np.uint8), len(joined))
                mask.add(np.repeat(counted, lengths))
            true += sum(len(utf8(text)) for both in group for text in both)
            stood_for += int(weights[tokens].sum(dtype=np.int64))
    return {
        "documents": len(found.texts),
        "characters": sum(map(len, found.texts)) + sum(map(len, found.prompts)),
        "tokens": ids.length,
        "bytes_per_byte": true / stood_for if stood_for else 1.0,
    }


class _Growing:
    """An .npy file of one dimension that is written piece by piece; NumPy's headers have room."""

    def __init__(self, path: Path, dtype: type):
        self.path, self.dtype, self.length = path, np.dtype(dtype), 0

    def __enter__(self) -> _Growing:
        self.file = self.path.open("wb")
        self._write_header()
        return self

    def __exit__(self, *_: object) -> None:
        with self.file:
            self._write_header()

    def _write_header(self) -> None:
        self.file.seek(0)
        about = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, about)

    def add(self, values: np.ndarray) -> None:
        """Writes values behind those that are there."""
        values.astype(self.dtype).tofile(self.file)
        self.length += len(values)
