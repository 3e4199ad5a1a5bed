"""Digests that tell data sets apart."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from genjax.data import sources
from genjax.data.catalogue import Dataset

EXAMPLES = 2048  # the examples that a digest reads, at most


def data_digest(dataset: Dataset, split: str = "train") -> str:
    """A sha256 that tells data sets, and ways to split them, apart.

    It covers the name, the sizes of the splits, the shape of the target, the number of classes, and
    `EXAMPLES` examples spread over `split`, without their captions.
    """
    spec, source = dataset.spec, dataset.splits[split]
    label = spec.fields.get("label")
    num_classes = label.facts.get("num_classes", 0) if label else 0
    captions = {n for n, f in spec.fields.items() if f.kind == "text" and n != spec.target}
    head = [spec.name, sorted(spec.sizes.items()), list(spec.generated.shape), num_classes]
    digest = hashlib.sha256(json.dumps(head).encode())
    for index in sources.order(len(source))[:EXAMPLES]:
        for name, value in sorted(source[int(index)].items()):
            if name in captions:
                continue
            digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def content_digests(dataset: Dataset) -> dict[str, str]:
    """Split -> a sha256 of its examples, captions included, for a run that is resumed.

    For arrays and tokens it covers every byte, or evenly spread blocks if they are large; for
    pictures in files, it covers all names and sizes and the content of some. See `sources.content`.
    """
    known: dict[int, bytes] = {}
    return {split: _digest(source, known).hex() for split, source in dataset.splits.items()}


def _digest(source: Any, known: dict[int, bytes]) -> bytes:
    """The sha256 of a source. `known` caches digests by identity: splits may share a source."""
    if id(source) not in known:
        digest = hashlib.sha256()
        for part in sources.content(source):
            digest.update(part if isinstance(part, bytes | memoryview) else _digest(part, known))
        known[id(source)] = digest.digest()
    return known[id(source)]
