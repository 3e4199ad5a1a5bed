"""Text data sets: documents tokenised once into memory-mapped arrays, and sources of examples."""

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

# The version of the cached tokens. Increase it if their meaning or the reading of a corpus changes.
FORMAT = 4
GROUP = 2**24  # characters whose tokens are held in memory at a time


TOKENIZER = "tokenizer"  # a data set without text, only a tokenizer
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

    If the data lack a split that `dataset.validation` / `dataset.test` ask for, it is taken out of
    train: some of several documents, by a permutation that is the same in every run, or the end of
    a single document, in one piece (`splits.cut`). Tokens are cached under a digest of the inputs.

    Raises:
      ConfigError: an unknown tokenizer; data that are unavailable, unreadable, empty or too short.
    """
    if dataset.name == TOKENIZER:
        return without(dataset)
    options = dataset.text
    tokenizers.check(options.tokenizer, options.vocabulary_size)
    if dataset.name == "text":
        corpus = documents.corpus(dataset)
    else:
        corpus = corpora.find(dataset.name, dataset.path)
    with_end = options.documents != "stream" or not corpus.single
    folder = _tokenised(corpus, dataset, with_end)
    tokenizer = tokenizers.from_json((folder / "tokenizer.json").read_text("utf-8"))
    split_counts = json.loads((folder / "about.json").read_text())
    special = tokenizers.special_tokens(tokenizer, with_end)
    split_sources = {
        split: _source(
            _tokens(folder, split, tokenizer, counts_of), split, tokenizer, special, dataset
        )
        for split, counts_of in split_counts.items()
    }
    sizes = {split: len(source) for split, source in split_sources.items()}
    spec = DataSpec(
        dataset.name, fields(split_sources["train"][0], tokenizer, special), "token", sizes
    )
    counts = "; ".join(
        f"{split} {counts_of['documents']:,} documents, {counts_of['tokens']:,} tokens"
        for split, counts_of in split_counts.items()
    )
    log.info("%s, vocabulary of %d tokens: %s", dataset.name, tokenizer.vocabulary_size, counts)
    return Text(spec, split_sources, f"{corpus.route} ({folder})")


def without(dataset: ConfigDict) -> Text:
    """A data set without text, only a tokenizer: for a run that is only sampled, not trained.

    Raises:
      ConfigError: the tokenizer has to be made from text.
    """
    options = dataset.text
    tokenizers.check(options.tokenizer, options.vocabulary_size)
    if options.tokenizer in (*tokenizers.TRAINED, "characters"):
        raise ConfigError(
            f"config.dataset.text.tokenizer={options.tokenizer!r} is made from text, but there is "
            "no text: give the path of a tokenizer.json, gpt2 or bytes."
        )
    tokenizer = tokenizers.make(options.tokenizer, (), 0, 0, end=False)
    special = tokenizers.special_tokens(tokenizer)
    example = {"token": np.zeros(options.length + 1, np.int32), "bytes": np.float32(0)}
    spec = DataSpec(dataset.name, fields(example, tokenizer, special), "token", {"train": 0})
    return Text(spec, {"train": ()}, "no text")


# The kinds of the fields: tokens, the document of each, whether it counts, the bytes that count.
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
        begun = tokenizer.begins[:1] == (special["start"],)  # `_write` has put it there
        return windows.Rows(tokens, length, special["start"], filler, how == "packed", begun)
    if len(tokens.ids) <= length:
        raise ConfigError(
            f"the split {split} of {dataset.name} has {len(tokens.ids)} tokens; an example takes "
            f"dataset.text.length + 1 = {length + 1}. Give more text, or a smaller length."
        )
    return windows.Stream(tokens, length)


# ---- tokens in the cache -------------------------------------------------------------------------


def _tokens(
    folder: Path, split: str, tokenizer: Tokenizer, counts: Mapping[str, Any]
) -> windows.Tokens:
    """The tokens of a split that `_write` wrote, memory-mapped."""
    arrays = {
        name: np.asarray(np.load(path, mmap_mode="r")) if path.is_file() else None
        for name in ("ids", "ends", "loss_mask")
        if (path := folder / f"{split}_{name}.npy")
    }
    # If tokens lose parts of the text, such as spaces, the weights make up for the lost bytes.
    weights = token_bytes(tokenizer).astype(np.float32) * np.float32(counts["bytes_per_byte"])
    return windows.Tokens(**arrays, weights=weights)


def _tokenised(corpus: Corpus, dataset: ConfigDict, ended: bool) -> Path:
    """The cache folder with the corpus's tokens, which are made if it is missing or damaged."""
    options = dataset.text
    size = options.vocabulary_size if options.tokenizer in tokenizers.TRAINED else 0
    identity = tokenizers.identity(options.tokenizer)
    key = [FORMAT, corpus.digest, identity, size, ended, dataset.validation, dataset.test]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    folder = packages.cache_root() / "text" / f"{dataset.name}-{digest[:24]}"
    if folder.exists() and not sums.damage(folder):  # checked without the lock: may be read-only
        return folder
    with packages.lock(f"text-{folder.name}"):  # meanwhile another process may have made it
        if folder.exists() and (damage := sums.damage(folder)):
            log.warning("the tokens in %s are damaged (%s) and are made again", folder, damage)
            shutil.rmtree(folder)
        if not folder.exists():
            log.info("tokenising %s, from %s", dataset.name, corpus.route)
            _make(folder, corpus, dataset, ended)
    return folder


def _make(folder: Path, corpus: Corpus, dataset: ConfigDict, ended: bool) -> None:
    """Reads, splits and tokenises the corpus into `folder`, atomically."""
    official = corpus.read()
    for split, docs in official.items():
        if not any(docs.texts):
            raise ConfigError(
                f"{corpus.route}: no text in the split {split}. Expected at least one character."
            )
    parts = _split(official, corpus.single, dataset)
    texts = [text for split in parts.values() for columns in split for text in columns]
    train_count = sum(map(len, parts["train"]))
    name, size = dataset.text.tokenizer, dataset.text.vocabulary_size
    tokenizer = tokenizers.make(name, texts, train_count, size, ended)
    with building(folder) as partial:
        counts = {split: _write(partial, split, tokenizer, d, ended) for split, d in parts.items()}
        (partial / "tokenizer.json").write_text(tokenizer.to_json(), "utf-8")
        (partial / "about.json").write_text(json.dumps(counts))
        sums.write(partial)
        os.replace(partial, folder)


def _split(
    official: Mapping[str, Documents], single: bool, dataset: ConfigDict
) -> dict[str, Documents]:
    """The official splits, and the requested ones taken out of train.

    For one text, or so few that a share of them would be less than half a text, the end of each is
    held out, except that a text too short for that stays in train if others are longer. Otherwise
    whole documents are held out.
    """
    train = official["train"]
    if single or (not train.prompts and splits.less_than_one(len(train.texts), official, dataset)):
        lengths = [len(text) for text in train.texts]
        parts = [splits.cut(n, official, dataset, whole=n < max(lengths)) for n in lengths]
        split_names = dict.fromkeys(split for part in parts for split in part)
        return official | {
            split: Documents(
                [t[p[split]] for t, p in zip(train.texts, parts, strict=True) if split in p], []
            )
            for split in split_names
        }
    carved = splits.carve({s: len(d.texts) for s, d in official.items()}, dataset)
    return {
        split: official[split] if indices is None else train.at(indices)
        for split, (_, indices) in carved.items()
    }


def _write(
    folder: Path, split: str, tokenizer: Tokenizer, docs: Documents, ended: bool
) -> dict[str, Any]:
    """Writes `{split}_ids.npy`, `_ends` and, if there are prompts, `_loss_mask`; returns counts."""
    begin_ids = np.array(tokenizer.begins if ended else (), np.int32)
    end_ids = np.full(int(ended), tokenizer.special.get("eos", 0), np.int32)
    small, weights = tokenizer.vocabulary_size <= 2**16, token_bytes(tokenizer)
    text_bytes = token_bytes_sum = 0
    with contextlib.ExitStack() as files:

        def array(name: str, dtype: type) -> _Growing:
            return files.enter_context(_Growing(folder / f"{split}_{name}.npy", dtype))

        ids, ends = array("ids", np.uint16 if small else np.uint32), array("ends", np.int64)
        mask = array("loss_mask", np.uint8) if docs.prompts else None
        for group in docs.groups(GROUP):
            if group.prompts:
                joined = tokenizer.encode_joined(group.prompts, group.texts)
            else:
                joined = [Joined(ids, 0) for ids in tokenizer.encode_all(group.texts)]
            parts = [
                part
                for both_ids, prompt in joined
                for part in (begin_ids, both_ids[:prompt], both_ids[prompt:], end_ids)
            ]
            lengths = np.array([len(part) for part in parts], np.int64)
            ends.add(ids.length + np.cumsum(lengths)[3::4])
            tokens = np.concatenate(parts)
            ids.add(tokens)
            if mask is not None:
                counted = np.tile(np.array([0, 0, 1, 1], np.uint8), len(joined))
                mask.add(np.repeat(counted, lengths))
            text_bytes += sum(len(utf8(text)) for texts in group for text in texts)
            token_bytes_sum += int(weights[tokens].sum(dtype=np.int64))
    return {
        "documents": len(docs.texts),
        "characters": sum(map(len, docs.texts)) + sum(map(len, docs.prompts)),
        "tokens": ids.length,
        "bytes_per_byte": text_bytes / token_bytes_sum if token_bytes_sum else 1.0,
    }


class _Growing:
    """A 1-D .npy file that is written in pieces; NumPy pads the header, so it can be rewritten."""

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
        """Appends values."""
        values.astype(self.dtype).tofile(self.file)
        self.length += len(values)
