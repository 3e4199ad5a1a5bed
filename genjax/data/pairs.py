"""Pairs of texts from JSON Lines: a source, and a target to generate from it."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import captions, documents, sources, splits
from genjax.method import DataSpec

NAMES = ("pairs",)
DEFAULT = (("source", "text"), ("target", "text"))


def load(dataset: ConfigDict) -> tuple[DataSpec, dict[str, Any], str]:
    """(spec, split -> source, route) of the JSON Lines files in `dataset.path`.

    Each line is an object with the two texts that `dataset.fields` names, by default "source" and
    "target". The second one, or `dataset.target`, is generated. Each text becomes
    `dataset.text.length` tokens of `dataset.text.tokenizer`, including the end token. A split that
    the files lack is taken out of train by `dataset.validation` and `dataset.test`.

    Raises:
      ConfigError: `dataset.fields` is not two texts, a file cannot be read, or a text is empty.
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
    options = dataset.copy_and_resolve_references()
    options.text.prompt_field, options.text.field = names
    corpus = documents.corpus(options)
    official = corpus.read()
    carved = splits.carve({split: len(docs.texts) for split, docs in official.items()}, dataset)
    parts = {
        split: official[split] if indices is None else official["train"].at(indices)
        for split, (_, indices) in carved.items()
    }
    all_texts = {split: [*docs.prompts, *docs.texts] for split, docs in parts.items()}
    field = captions.field(captions.tokenizer(dataset, all_texts), dataset.text.length)
    split_sources = {
        split: sources.Columns(
            {
                name: captions.rows(texts, field, f"{dataset.name} {name}", split)
                for name, texts in zip(names, (docs.prompts, docs.texts), strict=True)
            }
        )
        for split, docs in parts.items()
    }
    sizes = {split: len(source) for split, source in split_sources.items()}
    spec = DataSpec(dataset.name, dict.fromkeys(names, field), target, sizes)
    return spec, split_sources, corpus.route
