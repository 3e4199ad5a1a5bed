"""Random-access sources of token ids for training and evaluation.

An example has `token` int32 [T + 1], where positions 1 ... T are the targets; `bytes` float32 [],
the number of UTF-8 bytes of the targets that count in the loss; `loss_mask` bool [T + 1] if some
tokens are prompts; and, if rows hold whole documents, `segment` int32 [T + 1]: 1, 2, ... by
document, 0 for padding.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float32, Int

from genjax.data import sources
from genjax.data.transforms import Example


class Tokens(NamedTuple):
    """The concatenated token ids of the documents of one split; may be memory-mapped.

    Attributes:
      ids: uint16 or uint32 [N].
      ends: int64 [D], where each document ends.
      loss_mask: uint8 [N], whether a token counts in the loss; None if all do.
      weights: float32 [V], the bytes that each token stands for.
    """

    ids: np.ndarray
    ends: np.ndarray
    loss_mask: np.ndarray | None
    weights: Float32[np.ndarray, " V"]

    def content(self) -> Iterator[bytes | memoryview]:
        """Bytes that identify the tokens."""
        for name, array in self._asdict().items():
            if array is not None:
                yield from sources.array_content(name, array)


class Window(Mapping):
    """An example of a stream, read on access; `shifted` reads it a few tokens later."""

    def __init__(self, stream: Stream, start: int):
        """The example that begins at token `start`."""
        self._stream, self._start = stream, start

    @functools.cached_property
    def _fields(self) -> Example:
        return self._stream.at(self._start)

    def __getitem__(self, name: str) -> np.ndarray:
        """A field of the example."""
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        """The names of the fields."""
        return iter(self._fields)

    def __len__(self) -> int:
        """The number of fields."""
        return len(self._fields)

    @property
    def steps(self) -> int:
        """T, the distance to the next window."""
        return self._stream.length

    def shifted(self, by: int) -> Example:
        """The window `by` tokens later, or the stream's last window if that is earlier."""
        return self._stream.at(min(self._start + by, self._stream.last))


class Stream:
    """Windows of T + 1 tokens, one every T tokens: each token after the first is a target once.

    The rest at the end, fewer than T tokens, is not used.
    """

    def __init__(self, tokens: Tokens, length: int):
        """`length` is T; there must be more than T tokens."""
        self._tokens, self.length = tokens, length
        self.last = len(tokens.ids) - length - 1

    def __len__(self) -> int:
        """The number of windows."""
        return self.last // self.length + 1

    def __getitem__(self, index: int) -> Window:
        """Window `index`."""
        return Window(self, index * self.length)

    def take(self, indices: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """The windows at `indices`, stacked."""
        starts = np.asarray(indices)[:, None] * self.length
        return self._read(starts + np.arange(self.length + 1))

    def content(self) -> Iterator[bytes | memoryview]:
        """The length, and the content of the tokens."""
        yield f"stream {self.length}\n".encode()
        yield from self._tokens.content()

    def at(self, start: int) -> Example:
        """The window that begins at token `start`."""
        return self._read(slice(start, start + self.length + 1))

    def _read(self, position: Any) -> dict[str, np.ndarray]:
        token = self._tokens.ids[position].astype(np.int32)
        loss_mask, weights = self._tokens.loss_mask, self._tokens.weights[token[..., 1:]]
        if loss_mask is None:
            return {"token": token, "bytes": weights.sum(-1)}
        mask = loss_mask[position].astype(bool)
        byte_count = (weights * mask[..., 1:]).sum(-1)
        return {"token": token, "loss_mask": mask, "bytes": byte_count}


class Pieces(NamedTuple):
    """Parts of sequences that fit into rows of T + 1.

    Attributes:
      owner: the index of the sequence that each piece is from.
      start: where each piece begins in its sequence.
      size: the number of elements in each piece, 2 ... T + 1.
    """

    owner: np.ndarray
    start: np.ndarray
    size: np.ndarray


def pieces(targets: Int[np.ndarray, " D"], length: int) -> Pieces:
    """Cuts sequences of 1 + `targets` elements into pieces of at most 1 + `length` elements.

    A piece begins with the last element of the piece before it, so that every element but a
    sequence's first is a target once.
    """
    counts = -(-targets // length)
    owner = np.repeat(np.arange(len(targets)), counts)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = within * length
    return Pieces(owner, start, np.minimum(length, targets[owner] - start) + 1)


def pack(sizes: Int[np.ndarray, " P"], room: int) -> tuple[np.ndarray, np.ndarray]:
    """Packs pieces into rows of `room` elements by best-fit decreasing.

    The largest piece comes first, and each goes into the row that it leaves least room in, as in
    Ding et al. 2024, "Fewer truncations improve language modeling". Pieces of equal size keep their
    order, so the result is deterministic.

    Returns:
      (the pieces [P] row by row, the end [R] of each row among them).
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(room + 1)]  # rows by the room left in them
    levels = np.zeros(room + 1, bool)  # which of these lists are not empty
    for piece in np.argsort(-sizes, kind="stable"):
        size = int(sizes[piece])
        left = size + int(np.argmax(levels[size:])) if levels[size:].any() else -1
        if left < 0:
            rows.append([])
            left, row = room, len(rows) - 1
        else:
            row = with_room[left].pop()
            levels[left] = bool(with_room[left])
        rows[row].append(int(piece))
        with_room[left - size].append(row)
        levels[left - size] = True
    order = np.array([piece for row in rows for piece in row], np.int64)
    return order, np.cumsum([len(row) for row in rows])


def layout(sizes: Int[np.ndarray, " P"], room: int, packed: bool) -> tuple[np.ndarray, np.ndarray]:
    """The result of `pack` if `packed`, else one piece per row."""
    return pack(sizes, room) if packed else (np.arange(len(sizes)), np.arange(1, len(sizes) + 1))


class Rows:
    """Rows of whole documents: each is `start` and its tokens, which include the end token.

    A document that does not fit into a row is cut into pieces, which do not see each other.
    """

    def __init__(
        self, tokens: Tokens, length: int, start: int, filler: int, packed: bool, begun: bool
    ):
        """A row has several documents if `packed`, else one; the rest of a row is `filler`.

        `begun`: the tokens of each document already begin with `start`.
        """
        self._tokens, self._room = tokens, length + 1
        self._start, self._filler = start, filler
        self._first = np.concatenate([[0], tokens.ends[:-1]]) + begun
        self._pieces = pieces(np.asarray(tokens.ends) - self._first, length)
        self._order, self._ends = layout(self._pieces.size, self._room, packed)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._ends)

    def __getitem__(self, index: int) -> Example:
        """Row `index`."""
        token = np.full(self._room, self._filler, np.int32)
        segment = np.zeros(self._room, np.int32)
        mask = np.zeros(self._room, bool)
        begin, position = self._ends[index - 1] if index else 0, 0
        for number, piece in enumerate(self._order[begin : self._ends[index]], 1):
            document, start, size = (int(column[piece]) for column in self._pieces)
            first = (
                int(self._first[document]) + start - 1
            )  # if start is 0, the start token comes first
            row_slice = slice(position + (start == 0), position + size)
            token_slice = slice(first + (start == 0), first + size)
            token[position] = self._start
            token[row_slice] = self._tokens.ids[token_slice]
            mask[row_slice] = (
                True if self._tokens.loss_mask is None else self._tokens.loss_mask[token_slice]
            )
            segment[position : position + size] = number
            position += size
        example: dict[str, Any] = {"token": token, "segment": segment}
        targets = mask[1:] & targets_of(segment)
        if self._tokens.loss_mask is not None:
            example["loss_mask"] = mask
        example["bytes"] = np.float32(self._tokens.weights[token[1:][targets]].sum())
        return example

    def take(self, indices: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """The rows at `indices`, stacked."""
        return sources.stack([self[int(i)] for i in indices])

    def content(self) -> Iterator[bytes | memoryview]:
        """The layout of the rows, and the content of the tokens."""
        yield f"rows {self._room} {self._start} {self._filler} {len(self)}\n".encode()
        yield from self._tokens.content()


def targets_of(segment: Int[Array, "*B S"]) -> Bool[Array, "*B T"]:
    """Whether each position after the first is in the same segment as the position before it."""
    return (segment[..., 1:] == segment[..., :-1]) & (segment[..., 1:] > 0)


def counted(source: Any) -> Any:
    """A `Stream` or `Rows` with a `loss_mask`: if it has none, one in which every token counts."""
    tokens = source._tokens
    if tokens.loss_mask is not None:
        return source
    twin = copy.copy(source)
    twin._tokens = tokens._replace(loss_mask=np.broadcast_to(np.uint8(1), tokens.ids.shape))
    return twin
