"""Digests that tell states apart: the sha256 of every array, however it is sharded."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genjax.parallel.rules import path_name

Tree = Any

BLOCK = 2**26  # bytes of an array that a digest holds on the host at a time


def as_data(state: Tree) -> Tree:
    """`state` with PRNG keys as their integer data."""
    return jax.tree.map(
        lambda leaf: (
            jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        ),
        state,
    )


def digests(state: Tree, block: int = BLOCK) -> dict[str, str]:
    """Path -> sha256 of each array's dtype, shape and bytes (little endian, row-major).

    The result does not depend on the sharding. Arrays come to the host in blocks of at most `block`
    bytes and are never gathered. If there are several processes, all of them must call it.
    """
    return {
        path_name(path): sha256(leaf, block)
        for path, leaf in jax.tree_util.tree_leaves_with_path(as_data(state))
    }


def own_digests(state: Tree) -> dict[str, str]:
    """`digests` of the arrays that this process has whole, so that no process waits for another.

    Arrays that are split over several processes are left out.
    """
    return {
        path_name(path): sha256(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(as_data(state))
        if is_whole(leaf)
    }


def is_whole(array: jax.Array | np.ndarray) -> bool:
    """Whether this process has all of an array."""
    return isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated


def sha256(array: jax.Array | np.ndarray, block: int = BLOCK) -> str:
    """Returns the sha256 of one array, see `digests`."""
    head = f"{array.dtype.name}{array.shape or (1,)}"  # a scalar is hashed with shape (1,)
    hashed = hashlib.sha256(head.encode())
    for start, shape in _blocks(array.shape, max(block // array.dtype.itemsize, 1)):
        rows = _read_block(array, start, shape)
        hashed.update(rows.astype(rows.dtype.newbyteorder("<"), copy=False).tobytes())
    return hashed.hexdigest()


Block = tuple[tuple[int, ...], tuple[int, ...]]  # where it starts, and its shape


def _blocks(shape: tuple[int, ...], max_elements: int) -> Iterator[Block]:
    """Yields the contiguous blocks of an array, of at most `max_elements`, in memory order."""
    if math.prod(shape) <= max_elements:
        yield (0,) * len(shape), shape
        return
    inner = math.prod(shape[1:])
    rows = max(max_elements // inner, 1)
    for first in range(0, shape[0], rows):
        count = min(rows, shape[0] - first)
        for start, rest in _blocks(shape[1:], max_elements):
            yield (first, *start), (count, *rest)


def _read_block(
    array: jax.Array | np.ndarray, start: tuple[int, ...], shape: tuple[int, ...]
) -> np.ndarray:
    """Returns a block of `array` on the host of every process that has a part of the array."""
    if isinstance(array, np.ndarray):
        return array[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))]
    whole = is_whole(array)
    block, done = np.zeros(shape, array.dtype), set()
    first, end = np.array(start, int), np.array(start, int) + shape
    for shard in array.addressable_shards:
        shard_start = tuple(index.start or 0 for index in shard.index)
        if shard_start in done or not (whole or shard.replica_id == 0):
            continue
        done.add(shard_start)
        low = np.maximum(first, shard_start)
        size = np.minimum(end, np.add(shard_start, shard.data.shape)) - low
        if (size > 0).all():
            target = tuple(map(slice, low - first, low - first + size))
            block[target] = _cut(shard.data, tuple(low - shard_start), tuple(map(int, size)))
    return block if whole else _over_processes(block)


def _cut(data: jax.Array, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Copies a part of an array on one device to the host."""
    if shape == data.shape:
        return np.asarray(data)
    (device,) = data.devices()
    with jax.set_mesh(Mesh(np.array([device]), ("all",))), jax.transfer_guard("allow"):
        return np.asarray(_slice(data, start, shape))


@functools.partial(jax.jit, static_argnums=2)
def _slice(data: jax.Array, start: tuple[int, ...], shape: tuple[int, ...]) -> jax.Array:
    return jax.lax.dynamic_slice(data, start, shape)


def _over_processes(block: np.ndarray) -> np.ndarray:
    """Assembles a block from all processes; each has its part, and zeros elsewhere."""
    of_process = {device.process_index: device for device in jax.devices()}
    mesh = Mesh(np.array([device for _, device in sorted(of_process.items())]), ("process",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("process",), ()))
    with jax.set_mesh(mesh), jax.transfer_guard("allow"):
        local_bytes = np.frombuffer(block.tobytes(), np.uint8)[None]
        parts = jax.make_array_from_process_local_data(split, local_bytes)
        total = jax.jit(_sum_bytes, out_shardings=whole)(parts)
        return np.asarray(total).view(block.dtype).reshape(block.shape)


def _sum_bytes(parts: jax.Array) -> jax.Array:
    return parts.sum(0, dtype=np.uint8)


def digest(found: Mapping[str, str]) -> str:
    """Returns one sha256 for all of `digests(state)`: that of the sorted lines `path sha256`."""
    lines = "".join(f"{path} {value}\n" for path, value in sorted(found.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
