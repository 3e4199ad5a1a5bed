"""Pairs of texts: a source, and a target to generate from it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import (
    captions,
    debian,
    documents,
    headings,
    packages,
    sources,
    splits,
    sums,
    tokenizers,
)
from genjax.data.documents import Documents
from genjax.files import building
from genjax.method import DataSpec

log = logging.getLogger(__name__)

FORMAT = 1  # of the cached tokens; increase it if their meaning changes

# Modules with NAMES and `load(name, path) -> (rows of source, target and group, route)`.
PROVIDERS = (debian, headings)
NAMES = ("pairs", *(name for provider in PROVIDERS for name in provider.NAMES))
DEFAULT = (("source", "text"), ("target", "text"))


def load(dataset: ConfigDict) -> tuple[DataSpec, dict[str, Any], str]:
    """(spec, split -> source, route) of the pairs of `dataset.name`.

    For "pairs" they are in the JSON Lines files of `dataset.path`: each line is an object with the
    two texts that `dataset.fields` names, by default "source" and "target". Other names are those
    of PROVIDERS. The second text, or `dataset.target`, is generated. It becomes
    `dataset.text.length` tokens of `dataset.text.tokenizer`, including the end token, and the other
    text `dataset.text.source_length`, or as many. A split that the data lack is taken out of train
    by `dataset.validation` and `dataset.test`; pairs of one group stay together.

    Raises:
      ConfigError: `dataset.fields` is not two texts, a file cannot be read, a text is empty, or one
        is too long without `dataset.text.cut`.
    """
    fields = tuple(map(tuple, dataset.fields)) or DEFAULT
    if len(fields) != 2 or any(kind != "text" for _, kind in fields):
        raise ConfigError(
            f"config.dataset.fields={dataset.fields!r}: pairs are two texts, as in {DEFAULT!r}."
        )
    names = [name for name, _ in fields]
    target = dataset.target or names[1]
    if target not in names:
        raise ConfigError(f"config.dataset.target={target!r}: expected one of {names}.")
    parts, route = _read(dataset, names)
    length = dataset.text.length
    lengths = {name: dataset.text.source_length or length for name in names} | {target: length}
    folder = _tokenised(dataset, parts, lengths)
    tokenizer = tokenizers.from_json((folder / "tokenizer.json").read_text("utf-8"))
    fields = {name: captions.field(tokenizer, lengths[name]) for name in names}
    split_sources = {
        split: sources.Columns(
            {name: np.load(folder / f"{split}_{i}.npy") for i, name in enumerate(names)}
        )
        for split in parts
    }
    sizes = {split: len(source) for split, source in split_sources.items()}
    return DataSpec(dataset.name, fields, target, sizes), split_sources, route


def _tokenised(
    dataset: ConfigDict, parts: Mapping[str, Documents], lengths: Mapping[str, int]
) -> Path:
    """The cache folder with the tokenizer and the rows of each split, made if it is missing."""
    options = dataset.text
    tokenizers.check(options.tokenizer, options.vocabulary_size)
    size = options.vocabulary_size if options.tokenizer in tokenizers.TRAINED else 0
    key = [FORMAT, tokenizers.identity(options.tokenizer), size, options.cut, *lengths.items()]
    digest = hashlib.sha256(json.dumps(key).encode())
    for split, docs in parts.items():
        digest.update(json.dumps([split, docs.prompts, docs.texts]).encode())
    name = f"{dataset.name.replace('/', '-')}-{digest.hexdigest()[:24]}"
    folder = packages.cache_root() / "pairs" / name
    if folder.exists() and not sums.damage(folder):  # checked without the lock: may be read-only
        return folder
    with packages.lock(f"pairs-{name}"):  # meanwhile another process may have made it
        if folder.exists() and (damage := sums.damage(folder)):
            log.warning("the tokens in %s are damaged (%s) and are made again", folder, damage)
            shutil.rmtree(folder)
        if not folder.exists():
            log.info("tokenising %s", dataset.name)
            _make(folder, dataset, parts, lengths)
    return folder


def _make(
    folder: Path,
    dataset: ConfigDict,
    parts: Mapping[str, Documents],
    lengths: Mapping[str, int],
) -> None:
    """Writes `tokenizer.json` and `{split}_0.npy`, `{split}_1.npy` into `folder`, atomically."""
    texts = {split: [*docs.prompts, *docs.texts] for split, docs in parts.items()}
    tokenizer = captions.tokenizer(dataset, texts)
    with building(folder) as partial:
        for split, docs in parts.items():
            for i, (name, column) in enumerate(
                zip(lengths, (docs.prompts, docs.texts), strict=True)
            ):
                field, said = captions.field(tokenizer, lengths[name]), f"{dataset.name} {name}"
                rows = captions.rows(column, field, said, split, dataset.text.cut)
                np.save(partial / f"{split}_{i}.npy", rows)
        (partial / "tokenizer.json").write_text(tokenizer.to_json(), "utf-8")
        sums.write(partial)
        os.replace(partial, folder)


def _read(dataset: ConfigDict, names: list[str]) -> tuple[dict[str, Documents], str]:
    """The pairs of each split, the first text as the prompt of the second, and their route."""
    provider = next((p for p in PROVIDERS if dataset.name in p.NAMES), None)
    if provider is not None:
        rows, route = provider.load(dataset.name, dataset.path)
        prompts, texts, groups = map(list, zip(*rows, strict=True))
        official = {"train": Documents(texts, prompts)}
        carved = splits.carve_groups(groups, dataset)
    else:
        options = dataset.copy_and_resolve_references()
        options.text.prompt_field, options.text.field = names
        corpus = documents.corpus(options)
        official, route = corpus.read(), corpus.route
        carved = splits.carve({split: len(docs.texts) for split, docs in official.items()}, dataset)
    parts = {
        split: official[split] if indices is None else official["train"].at(indices)
        for split, (_, indices) in carved.items()
    }
    return parts, route
