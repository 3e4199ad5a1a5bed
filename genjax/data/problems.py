"""Problems with exactly one right answer, made by rule: arithmetic and sorting.

- `arithmetic`: `57+38=` and `95`; sums, differences and products of two numbers below 100. The
  larger number comes first, so that a problem and its mirror image cannot be in different splits.
- `sorting`: `5302:` and `0235`; 3 to 6 digits to put in order. Each collection of digits occurs in
  one order only, so that the answers of held-out problems are new too.
- `problems`: both.

No two problems are the same, and splits have no problem in common: held-out problems are new.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from genjax.data import answers, sources, splits, text, tokenizers
from genjax.data.alphabets import token_bytes
from genjax.data.documents import Documents
from genjax.method import DataSpec

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
BELOW = 100  # the numbers of arithmetic
SIZES = range(3, 7)  # how many digits are sorted


def _arithmetic() -> Iterator[tuple[str, str]]:
    for sign, function in OPERATIONS.items():
        for b, a in itertools.combinations_with_replacement(range(BELOW), 2):
            yield f"{a}{sign}{b}=", str(function(a, b))


def _sorting() -> Iterator[tuple[str, str]]:
    rng = np.random.default_rng(0)
    for size in SIZES:
        for digits in itertools.combinations_with_replacement("0123456789", size):
            yield "".join(rng.permutation(digits)) + ":", "".join(digits)


KINDS = {"arithmetic": (_arithmetic,), "sorting": (_sorting,), "problems": (_arithmetic, _sorting)}
NAMES = tuple(KINDS)


@functools.cache
def documents(name: str) -> Documents:
    """All problems of a kind, in order."""
    prompts, right = zip(*(pair for make in KINDS[name] for pair in make()), strict=True)
    return Documents(list(right), list(prompts))


def wrong(answer: str, rng: np.random.Generator) -> str:
    """An answer of the same length with one digit changed."""
    places = [i for i, character in enumerate(answer) if character.isdigit()]
    place = places[rng.integers(len(places))]
    digit = (int(answer[place]) + rng.integers(1, 10)) % 10
    return f"{answer[:place]}{digit}{answer[place + 1 :]}"


def load(dataset: ConfigDict) -> tuple[DataSpec, dict[str, Any], str]:
    """(spec, split -> source, route) of the problems of `dataset.name`, as rows with a prompt.

    An example has `token`, `segment`, `loss_mask` and `bytes`, as a padded text with a prompt has:
    see `windows`. It also has the `prompt` alone, with -1 on the left, for samples.
    `dataset.validation` and `dataset.test` are taken out of train.

    Raises:
      ConfigError: rows are too short, not "padded", or the tokenizer lacks a character.
    """
    answers.check_padded(dataset.text.documents, dataset.name)
    all_documents = documents(dataset.name)
    carved = splits.carve({"train": len(all_documents.texts)}, dataset)
    options = dataset.text
    tokenizers.check(options.tokenizer, options.vocabulary_size)
    texts = [*all_documents.prompts, *all_documents.texts]
    tokenizer = tokenizers.make(
        options.tokenizer, texts, len(texts), options.vocabulary_size, end=True
    )
    token, mask = answers.rows(
        *(all_documents.prompts, all_documents.texts, tokenizer, options.length, dataset.name)
    )
    last = token.shape[1] - np.argmax(mask[:, ::-1], axis=1)
    segment = (np.arange(token.shape[1]) < last[:, None]).astype(np.int32)
    spelled = (token_bytes(tokenizer)[token] * mask).sum(1).astype(np.float32)
    columns = {"token": token, "segment": segment, "loss_mask": mask, "bytes": spelled}
    begin = np.argmax(mask, axis=1)
    place = begin[:, None] - begin.max() + np.arange(begin.max())
    taken = np.take_along_axis(token, np.maximum(place, 0), axis=1)
    columns["prompt"] = np.where(place >= 0, taken, -1).astype(np.int32)
    split_sources = {
        split: sources.Columns({name: rows[indices] for name, rows in columns.items()})
        if indices is not None
        else sources.Columns(columns)
        for split, (_, indices) in carved.items()
    }
    special = tokenizers.special_tokens(tokenizer)
    example = split_sources["train"][0]
    prompt = example.pop("prompt")
    fields = text.fields(example, tokenizer, special)
    fields["prompt"] = fields["token"]._replace(shape=prompt.shape)
    sizes = {split: len(source) for split, source in split_sources.items()}
    return DataSpec(dataset.name, fields, "token", sizes), split_sources, "made by rule"
