"""Texts that end a text, in whatever tokens they are written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def automaton(texts: Sequence[bytes], spelling: Sequence[bytes]) -> Int[np.ndarray, "Q V"]:
    """How a search for `texts` goes on with each token (Aho & Corasick 1975).

    It begins in state 0. Entry [q, v] is the state after state q and token v; in the last one a
    text has been found, and it stays there. A text is found within a token, and across several.

    Args:
      texts: what is looked for, each at least a byte.
      spelling: what each of the V tokens adds to a text (`Tokenizer.spelling`).
    """
    begun = sorted({text[:n] for text in texts for n in range(len(text))}, key=len)
    state = {part: i for i, part in enumerate(begun)}

    def follow(part: bytes, byte: int) -> int:
        read = part + bytes([byte])
        if read.endswith(tuple(texts)):
            return len(begun)
        return next(state[read[n:]] for n in range(len(read) + 1) if read[n:] in state)

    rows = [[follow(part, byte) for byte in range(256)] for part in begun]
    step = np.array([*rows, [len(begun)] * 256], np.int32)
    lengths = np.array([len(piece) for piece in spelling])
    padded = np.zeros((len(spelling), max(lengths, default=0)), np.uint8)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.frombuffer(
        b"".join(spelling), np.uint8
    )
    table = np.repeat(np.arange(len(step), dtype=np.int32)[:, None], len(spelling), axis=1)
    for i, column in enumerate(padded.T):
        longer = np.flatnonzero(i < lengths)
        table[:, longer] = step[table[:, longer], column[longer]]
    return table


def can_be_found(table: Int[np.ndarray, "Q V"]) -> bool:
    """Whether any tokens lead from the first state of an automaton to its last."""
    reached, fresh = set(), {0}
    while fresh:
        reached |= fresh
        fresh = set(np.unique(table[sorted(fresh)]).tolist()) - reached
    return len(table) - 1 in reached
