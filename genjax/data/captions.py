"""Texts of one length that go with examples: captions, sources, targets."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import tokenizers
from genjax.data.alphabets import Tokenizer
from genjax.method import Field

log = logging.getLogger(__name__)


def tokenizer(dataset: ConfigDict, texts: Mapping[str, Sequence[str]]) -> Tokenizer:
    """The tokenizer of `dataset.text` for texts by split; it is trained on train only.

    Raises:
      ConfigError: there is no such tokenizer, or it has no token that ends a text.
    """
    options = dataset.text
    tokenizers.check(options.tokenizer, options.vocabulary_size)
    train = list(texts.get("train", ()))
    held_out = [
        text for split, split_texts in texts.items() if split != "train" for text in split_texts
    ]
    name, size = options.tokenizer, options.vocabulary_size
    return tokenizers.make(name, [*train, *held_out], len(train), size, end=True)


def field(own: Tokenizer, length: int) -> Field:
    """The field of texts of up to `length` tokens, including the end token."""
    special = tokenizers.special_tokens(own)
    facts = {"vocabulary_size": own.vocabulary_size, "special": special, "tokenizer": own}
    return Field("text", (length,), np.dtype(np.int32), facts)


def encode(text: str, field: Field) -> Int32[np.ndarray, " n"]:
    """The tokens of a text followed by the end token, of any length."""
    eos = field.facts["special"]["eos"]
    return np.append(field.facts["tokenizer"].encode(text), np.int32(eos)).astype(np.int32)


def padded(tokens: Int32[np.ndarray, " n"], field: Field) -> Int32[np.ndarray, " T"]:
    """Tokens cut to the field's length or padded to it with pad or, if there is none, with eos."""
    special, (length,) = field.facts["special"], field.shape
    row = np.full(length, special.get("pad", special["eos"]), np.int32)
    row[: len(tokens)] = tokens[:length]
    return row


def rows(texts: Sequence[str], field: Field, name: str, split: str) -> Int32[np.ndarray, "N T"]:
    """The texts of a split as rows of tokens. Longer texts are cut, with one warning.

    Raises:
      ConfigError: there are no texts, or one is empty.
    """
    if not len(texts):
        raise ConfigError(f"{name}: the split {split} has no text. Expected at least one.")
    for index, text in enumerate(texts):
        if not text.strip():
            raise ConfigError(
                f"{name}: text {index + 1} of the split {split} is empty; expected at least one "
                "character. Give it one, or leave the example out."
            )
    eos = np.int32(field.facts["special"]["eos"])
    token_ids = [np.append(ids, eos) for ids in field.facts["tokenizer"].encode_all(list(texts))]
    (length,) = field.shape
    if cut := sum(len(ids) > length for ids in token_ids):
        log.warning(
            "%s: %d of the %d texts of %s are longer than dataset.text.length=%d tokens and are "
            "cut; the longest has %d",
            *(name, cut, len(token_ids), split, length, max(map(len, token_ids))),
        )
    return np.stack([padded(ids, field) for ids in token_ids])
