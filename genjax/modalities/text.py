"""Texts: tokens of the field's tokenizer, of a fixed length or, in a prompt, of any."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import captions
from genjax.data.documents import decode
from genjax.data.transforms import Transform, shift
from genjax.method import DataSpec, Field

SAMPLES = 1

# Characters that would move a terminal's cursor or worse, as pictures of themselves.
VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
VISIBLE |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def parse(given: str, field: Field) -> np.ndarray:
    """A text as tokens: of a prompt behind those that begin a text, if there are any.

    Raises:
      ConfigError: it is empty, has a character that the tokenizer does not know, or is too long.
    """
    if not given:
        raise ConfigError(
            "an empty text: expected at least one character; leave it out to begin new."
        )
    if field.shape == (None,):
        ids = field.facts["tokenizer"].encode(given)
        if not len(ids):
            raise ConfigError(f"{given!r}: expected a text that the tokenizer knows, found none.")
        return np.concatenate([field.facts.get("begin", ()), ids]).astype(np.int32)
    ids = captions.encode(given, field)
    if len(ids) > field.shape[0]:
        raise ConfigError(
            f"{given[:60]!r}: a text of {len(ids)} tokens, expected at most {field.shape[0]} with "
            "the one that ends it. Give a shorter one."
        )
    return captions.padded(ids, field)


def strings(samples: np.ndarray, field: Field) -> list[str]:
    """The text of each row of tokens; below 0 is nothing."""
    return [field.facts["tokenizer"].decode(ids) for ids in samples]


def text(samples: np.ndarray, field: Field) -> str:
    """The texts, each under a heading.

    Control characters other than tab and newline are shown by their symbols.

    Raises:
      ValueError: samples that are not integers [N, S].
    """
    if samples.ndim != 2 or not np.issubdtype(samples.dtype, np.integer):
        raise ValueError(f"expected token ids [N, S], got {samples.dtype} {list(samples.shape)}")
    parts = []
    for index, (ids, said) in enumerate(zip(samples, strings(samples, field), strict=True), 1):
        head = f"===== sample {index} of {len(samples)}: {(ids >= 0).sum()} tokens ====="
        parts.append(f"{head}\n{said.translate(VISIBLE)}\n")
    return "\n".join(parts)


def files(samples: np.ndarray, field: Field) -> dict[str, bytes]:
    """The texts under their headings."""
    return {".txt": text(samples, field).encode()}


def read_file(flag: str, file: str) -> str:
    """The text in a file that a flag of the command line names.

    Raises:
      ConfigError: it cannot be read as UTF-8.
    """
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag}={file}: {error.strerror}.") from error
    return decode(content, f"{flag}={file}")


def lines(flag: str, file: str) -> list[str]:
    """The lines of a file, which end where those of a terminal do: not with U+2028, say."""
    content = io.StringIO(read_file(flag, file), newline=None)
    return [line.removesuffix("\n") for line in content]


def transforms(dataset: ConfigDict, spec: DataSpec, train: bool) -> list[Transform]:
    """In training, windows of a stream of text begin at any token."""
    streamed = spec.target == "token" and dataset.text.documents == "stream"
    return [shift] if train and streamed else []
