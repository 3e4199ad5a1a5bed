"""Pairs of texts: a source, and a target to generate from it."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import captions, debian, documents, headings, sources, splits
from genjax.data.documents import Documents
from genjax.method import DataSpec

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
    all_texts = {split: [*docs.prompts, *docs.texts] for split, docs in parts.items()}
    tokenizer, length = captions.tokenizer(dataset, all_texts), dataset.text.length
    lengths = {name: dataset.text.source_length or length for name in names} | {target: length}
    fields = {name: captions.field(tokenizer, lengths[name]) for name in names}
    split_sources = {
        split: sources.Columns(
            {
                name: captions.rows(
                    texts, fields[name], f"{dataset.name} {name}", split, dataset.text.cut
                )
                for name, texts in zip(names, (docs.prompts, docs.texts), strict=True)
            }
        )
        for split, docs in parts.items()
    }
    sizes = {split: len(source) for split, source in split_sources.items()}
    return DataSpec(dataset.name, fields, target, sizes), split_sources, route


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
