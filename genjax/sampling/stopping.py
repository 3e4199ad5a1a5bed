"""Stop texts: they end a text however they are split into tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def automaton(texts: Sequence[bytes], spelling: Sequence[bytes]) -> Int[np.ndarray, "Q V"]:
    """The transition table of a search for `texts` token by token (Aho & Corasick 1975).

    The search begins in state 0. Entry [q, v] is the state after state q and token v. In the last
    state a text has been found; the search stays there. Texts are found within a token and across
    tokens.

    Args:
      texts: the texts to search for, each of at least one byte.
      spelling: the bytes that each of the V tokens adds to a text (`Tokenizer.spelling`).
    """
    prefixes = sorted({text[:n] for text in texts for n in range(len(text))}, key=len)
    state = {prefix: i for i, prefix in enumerate(prefixes)}

    def follow(prefix: bytes, byte: int) -> int:
        read = prefix + bytes([byte])
        if read.endswith(tuple(texts)):
            return len(prefixes)
        return next(state[read[n:]] for n in range(len(read) + 1) if read[n:] in state)

    rows = [[follow(prefix, byte) for byte in range(256)] for prefix in prefixes]
    step = np.array([*rows, [len(prefixes)] * 256], np.int32)
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
    """Whether some sequence of tokens leads from the automaton's first state to its last."""
    reached, fresh = set(), {0}
    while fresh:
        reached |= fresh
        fresh = set(np.unique(table[sorted(fresh)]).tolist()) - reached
    return len(table) - 1 in reached
