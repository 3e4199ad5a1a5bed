"""Texts of one length that go with examples: captions, sources, targets."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import chain

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


Texts = Sequence[str] | Sequence[Sequence[str]]  # the caption of each example, or its K captions


def described(dataset: ConfigDict, texts: Mapping[str, Texts]) -> Field:
    """The field of the captions of each split.

    If each example has K > 1 captions, the fact `wordings` is K, and one caption is chosen as an
    example is read: see `modalities.text.transforms`.

    Raises:
      ConfigError: as for `tokenizer`.
    """
    made = field(tokenizer(dataset, {s: _flat(t) for s, t in texts.items()}), dataset.text.length)
    first = next(iter(texts["train"]), "")
    several = {} if isinstance(first, str) else {"wordings": len(first)}
    return made._replace(facts={**made.facts, **several})


def tokens(
    texts: Texts, field: Field, name: str, split: str
) -> Int32[np.ndarray, "N T"] | Int32[np.ndarray, "N K T"]:
    """The tokens of the captions of a split, cut with one warning.

    Raises:
      ConfigError: there are no captions, or one is empty.
    """
    made = rows(_flat(texts), field, name, split)
    several = field.facts.get("wordings")
    return made.reshape(-1, several, made.shape[-1]) if several else made


def _flat(texts: Texts) -> list[str]:
    return list(chain.from_iterable([t] if isinstance(t, str) else t for t in texts))


def encode(text: str, field: Field) -> Int32[np.ndarray, " n"]:
    """The tokens of a text between those that begin and end every text, of any length."""
    tokenizer, eos = field.facts["tokenizer"], field.facts["special"]["eos"]
    ids = [getattr(tokenizer, "begins", ()), tokenizer.encode(text), [eos]]
    return np.concatenate(ids).astype(np.int32)


def says_nothing(ids: Int32[np.ndarray, " n"], field: Field) -> bool:
    """Whether no token of a text stands for something that the tokenizer knows."""
    return not np.any(ids != getattr(field.facts["tokenizer"], "unknown", None))


def padded(tokens: Int32[np.ndarray, " n"], field: Field) -> Int32[np.ndarray, " T"]:
    """Tokens cut to the field's length or padded to it with pad or, if there is none, with eos."""
    special, (length,) = field.facts["special"], field.shape
    row = np.full(length, special.get("pad", special["eos"]), np.int32)
    row[: len(tokens)] = tokens[:length]
    return row


def rows(
    texts: Sequence[str], field: Field, name: str, split: str, cut: bool = True
) -> Int32[np.ndarray, "N T"]:
    """The texts of a split as rows of tokens. Longer texts are cut, with one warning.

    One more warning counts the texts of which the tokenizer knows no word.

    Raises:
      ConfigError: there are no texts, one is empty, the tokenizer knows no word of any, or some are
        longer and `cut` is false.
    """
    if not len(texts):
        raise ConfigError(f"{name}: the split {split} has no text. Expected at least one.")
    for index, text in enumerate(texts):
        if not text.strip():
            raise ConfigError(
                f"{name}: text {index + 1} of the split {split} is empty; expected at least one "
                "character. Give it one, or leave the example out."
            )
    own, eos = field.facts["tokenizer"], field.facts["special"]["eos"]
    encoded = own.encode_all(list(texts))
    if unknown := [i for i, ids in enumerate(encoded) if says_nothing(ids, field)]:
        said = (
            f"{name}: the tokenizer knows no word of {len(unknown)} of the {len(texts)} texts of "
            f"{split}; the first is {texts[unknown[0]][:60]!r}. They may be in a script that it "
            "was not trained on: the tokenizers bytes and bpe take any text"
        )
        if len(unknown) == len(texts):
            raise ConfigError(f"{said}.")
        log.warning("%s", said)
    token_ids = [np.concatenate([own.begins, ids, [eos]]).astype(np.int32) for ids in encoded]
    (length,) = field.shape
    if longer := sum(len(ids) > length for ids in token_ids):
        said = f"{name}: {longer} of the {len(token_ids)} texts of {split} are longer than "
        most = max(map(len, token_ids))
        if not cut:
            raise ConfigError(
                f"{said}{length} tokens; the longest has {most}. Give a larger "
                "--config.dataset.text.length or .source_length, or --config.dataset.text.cut=True "
                "to cut them."
            )
        log.warning("%s%d tokens and are cut; the longest has %d", said, length, most)
    return np.stack([padded(ids, field) for ids in token_ids])
