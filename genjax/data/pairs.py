"""Pairs of texts, a source and what is to be made of it, out of JSON Lines."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import captions, documents, sources, splits
from genjax.method import DataSpec

NAMES = ("pairs",)
DEFAULT = (("source", "text"), ("target", "text"))


def load(dataset: ConfigDict) -> tuple[DataSpec, dict[str, Any], str]:
    """(what the data look like, split -> source, route) of `dataset.path`, files of JSON Lines.

    Each line is an object with the two texts that `dataset.fields` names, "source" and "target" if
    it does not; the last of them, or `dataset.target`, is generated. Each becomes
    `dataset.text.length` tokens, its end counted, of one tokenizer, `dataset.text.tokenizer`. A
    split that the files lack is taken out of train by `dataset.validation` and `dataset.test`.

    Raises:
      ConfigError: other fields than two texts; files that cannot be read; an empty text.
    """
    named = tuple(map(tuple, dataset.fields)) or DEFAULT
    if len(named) != 2 or any(kind != "text" for _, kind in named):
        raise ConfigError(
            f"config.dataset.fields={dataset.fields!r}: pairs are two texts, as in {DEFAULT!r}."
        )
    names = [name for name, _ in named]
    target = dataset.target or names[1]
    if target not in names:
        raise ConfigError(f"config.dataset.target={target!r}: expected one of {names}.")
    own = dataset.copy_and_resolve_references()
    own.text.prompt_field, own.text.field = names
    corpus = documents.corpus(own)
    found = corpus.read()
    carved = splits.carve({split: len(docs.texts) for split, docs in found.items()}, dataset)
    parts = {
        split: found[split] if indices is None else found["train"].at(indices)
        for split, (_, indices) in carved.items()
    }
    both = {split: [*docs.prompts, *docs.texts] for split, docs in parts.items()}
    field = captions.field(captions.tokenizer(dataset, both), dataset.text.length)
    read = {
        split: sources.Columns(
            {
                name: captions.rows(texts, field, f"{dataset.name} {name}", split)
                for name, texts in zip(names, (docs.prompts, docs.texts), strict=True)
            }
        )
        for split, docs in parts.items()
    }
    sizes = {split: len(source) for split, source in read.items()}
    spec = DataSpec(dataset.name, dict.fromkeys(names, field), target, sizes)
    return spec, read, corpus.route
