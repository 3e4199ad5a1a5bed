"""Pairs of answers to a prompt, one of them preferred: of JSON Lines, or made from problems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import answers, documents, problems, sources, splits, tokenizers
from genjax.method import DataSpec, Field

MADE = {f"{name}_preferences": name for name in problems.NAMES}
NAMES = ("preferences", *MADE)
DEFAULT = (("prompt", "text"), ("chosen", "text"), ("rejected", "text"))


class Pairs(NamedTuple):
    """Prompts with two answers each, the better one first."""

    prompts: list[str]
    chosen: list[str]
    rejected: list[str]


def load(dataset: ConfigDict) -> tuple[DataSpec, dict[str, Any], str]:
    """(spec, split -> source, route) of the pairs.

    `preferences` reads the JSON Lines files in `dataset.path`. Each line is an object with the
    three texts that `dataset.fields` names, by default "prompt", "chosen" and "rejected".
    `arithmetic_preferences`, `sorting_preferences` and `problems_preferences` are the problems of
    `problems`; the chosen answer is right, and the rejected one has one digit changed.

    An example has `chosen` and `rejected`, each a row of `answers.rows`, and `chosen_mask` and
    `rejected_mask`, which are true at the answer. A split that the files lack is taken out of train
    by `dataset.validation` and `dataset.test`.

    Raises:
      ConfigError: rows are not "padded" or too short, `dataset.fields` is not three texts, a file
        cannot be read, or both answers are equal.
    """
    answers.check_padded(dataset.text.documents, dataset.name)
    official, route = _read(dataset)
    carved = splits.carve({split: len(pairs.prompts) for split, pairs in official.items()}, dataset)
    parts = {
        split: official[split]
        if indices is None
        else Pairs(*([column[i] for i in indices] for column in official["train"]))
        for split, (_, indices) in carved.items()
    }
    options = dataset.text
    tokenizers.check(options.tokenizer, options.vocabulary_size)
    texts = [
        text
        for split in sorted(parts, key=lambda split: split != "train")
        for column in parts[split]
        for text in column
    ]
    train = sum(map(len, parts["train"]))
    tokenizer = tokenizers.make(options.tokenizer, texts, train, options.vocabulary_size, end=True)
    split_sources = {
        split: _source(pairs, tokenizer, options.length, f"{dataset.name}, split {split}")
        for split, pairs in parts.items()
    }
    special = tokenizers.special_tokens(tokenizer)
    facts = {"vocabulary_size": tokenizer.vocabulary_size, "special": special}
    text = Field(
        "text", (options.length + 1,), np.dtype(np.int32), {**facts, "tokenizer": tokenizer}
    )
    mask = Field("mask", text.shape, np.dtype(bool))
    fields = {"chosen": text, "rejected": text, "chosen_mask": mask, "rejected_mask": mask}
    sizes = {split: len(source) for split, source in split_sources.items()}
    return DataSpec(dataset.name, fields, "chosen", sizes), split_sources, route


def _source(pairs: Pairs, tokenizer: Any, length: int, name: str) -> sources.Columns:
    columns = {}
    for which in ("chosen", "rejected"):
        given = (pairs.prompts, getattr(pairs, which), tokenizer, length, f"{name}, {which}")
        columns[which], columns[f"{which}_mask"] = answers.rows(*given)
    same = (columns["chosen"] == columns["rejected"]).all(1).nonzero()[0]
    if len(same):
        prompt = pairs.prompts[same[0]]
        raise ConfigError(
            f"{name}: the two answers of {len(same)} of {len(pairs.prompts)} pairs are equal, the "
            f"first to the prompt {prompt[:60]!r}. Expected a difference. Leave such pairs out."
        )
    return sources.Columns(columns)


def _read(dataset: ConfigDict) -> tuple[Mapping[str, Pairs], str]:
    """The pairs of each official split, and where they come from."""
    if dataset.name in MADE:
        made, rng = problems.documents(MADE[dataset.name]), np.random.default_rng(0)
        wrong = [problems.wrong(answer, rng) for answer in made.texts]
        return {"train": Pairs(made.prompts, made.texts, wrong)}, "made by rule"
    fields = tuple(map(tuple, dataset.fields)) or DEFAULT
    if len(fields) != 3 or any(kind != "text" for _, kind in fields):
        raise ConfigError(
            f"config.dataset.fields={dataset.fields!r}: preferences are three texts, as in "
            f"{DEFAULT!r}."
        )
    options, read = dataset.copy_and_resolve_references(), []
    for field in (fields[1][0], fields[2][0]):
        options.text.prompt_field, options.text.field = fields[0][0], field
        corpus = documents.corpus(options)
        read.append(corpus.read())
    chosen, rejected = read
    if {s: d.prompts for s, d in chosen.items()} != {s: d.prompts for s, d in rejected.items()}:
        raise ConfigError(
            f"{dataset.path}: some lines have only one of {fields[1][0]!r} and {fields[2][0]!r}. "
            "Give both, or leave the line out."
        )
    official = {
        split: Pairs(found.prompts, found.texts, rejected[split].texts)
        for split, found in chosen.items()
    }
    return official, corpus.route
