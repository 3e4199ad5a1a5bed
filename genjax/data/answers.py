"""Rows of one prompt and its answer: the start token, the prompt, the answer, the end token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32

from genjax.config import ConfigError
from genjax.data import tokenizers
from genjax.data.alphabets import Tokenizer


def rows(
    prompts: Sequence[str], answers: Sequence[str], tokenizer: Tokenizer, length: int, name: str
) -> tuple[Int32[np.ndarray, "N S"], Bool[np.ndarray, "N S"]]:
    """The tokens of prompts with their answers, and which of them are the answer's; S = length + 1.

    The end token belongs to the answer. The rest of a row is the pad token, or the end token.

    Raises:
      ConfigError: a prompt or an answer is empty, or a row does not have room for both.
    """
    special = tokenizers.special_tokens(tokenizer)
    begin = tokenizers.begins(tokenizer, special, "padded")
    token = np.full((len(prompts), length + 1), special.get("pad", special["eos"]), np.int32)
    mask = np.zeros(token.shape, bool)
    joined = tokenizer.encode_joined(prompts, answers)
    for index, (ids, prompt) in enumerate(joined):
        if not 0 < prompt < len(ids):
            raise ConfigError(
                f"{name}: the prompt {prompts[index][:60]!r} with the answer "
                f"{answers[index][:60]!r}: expected tokens of both. Leave such a pair out."
            )
    sizes = [len(begin) + len(ids) + 1 for ids, _ in joined]
    if too_long := sum(size > length + 1 for size in sizes):
        raise ConfigError(
            f"{name}: {too_long} of {len(sizes)} prompts with their answers are longer than "
            f"config.dataset.text.length={length}; the longest needs {max(sizes) - 1}. Give that "
            "length, or leave the long ones out."
        )
    token[:, : len(begin)] = begin
    for row, counted, (ids, prompt), size in zip(token, mask, joined, sizes, strict=True):
        row[len(begin) : size - 1] = ids
        row[size - 1] = special["eos"]
        counted[len(begin) + prompt : size] = True
    return token, mask


def check_padded(documents: str, name: str) -> None:
    """Raises ConfigError unless `dataset.text.documents` is "padded": one prompt per row."""
    if documents != "padded":
        raise ConfigError(
            f"config.dataset.text.documents={documents!r}: each row of {name} is one prompt with "
            "its answer. Set it to 'padded'."
        )
