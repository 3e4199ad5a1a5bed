"""CIDEr-D by pycocoevalcap, on captions of avatars' kind and on awkward ones.

/path/to/parity/bin/python tests/golden/make_cider.py [OUTPUT.npz]

`cases` is JSON: by name the captions, for each its references, and the peer's scores. Captions are
words in lower case with spaces between, which the peer takes as they are.
"""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import random
import sys

import numpy as np
from pycocoevalcap.cider.cider import Cider

CASES = {
    "one_reference": [
        ("a cat sat on a mat", ["a cat sat on the mat"]),
        ("two dogs run", ["two brown dogs run on grass"]),
        ("a red bus", ["a red bus"]),
    ],
    "several_references": [
        ("a cat on a mat", ["a cat sat on a mat", "there is a cat on the mat", "cat"]),
        ("a dog a dog a dog a dog a dog", ["a dog in a garden", "one dog"]),
        ("nothing like it", ["a bus in the street", "the red bus"]),
        ("a bus in the street", ["a bus in the street", "the red bus", "a bus", "street"]),
    ],
    "one_picture": [("a cat", ["a cat", "the cat"])],
    "empty_and_short": [("", ["a cat"]), ("cat", ["cat"]), ("a", ["the mat of a cat", "a"])],
    "far_longer": [
        (" ".join(["a very long caption of one cat"] * 4), ["a cat"]),
        ("a dog", [" ".join(["the dog of"] * 8)]),
        ("a bird", ["a bird"]),
    ],
}


def drawn(seed: int, pictures: int) -> list[tuple[str, list[str]]]:
    """Captions of a small language, with four references each."""
    rng = random.Random(seed)
    words = ["a", "happy", "sad", "person", "with", "red", "green", "hair", "wearing", "the"]
    words += ["hat", "and", "glasses"]

    def text() -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randint(1, 14)))

    made = []
    for _ in range(pictures):
        references = [text() for _ in range(4)]
        kept = rng.choice(references).split()
        made.append((" ".join(kept[: rng.randint(1, len(kept))] + text().split()[:3]), references))
    return made


def main(output: pathlib.Path) -> None:
    """Writes the peer's scores."""
    cases = {}
    for name, pairs in {**CASES, "drawn": drawn(0, 40), "drawn_few": drawn(1, 3)}.items():
        captions, references = map(list, zip(*pairs, strict=True))
        mean, each = Cider().compute_score(
            dict(enumerate(references)), {i: [caption] for i, caption in enumerate(captions)}
        )
        scores = {"mean": float(mean), "each": [float(score) for score in each]}
        cases[name] = {"captions": captions, "references": references, **scores}
    peer = f"pycocoevalcap {importlib.metadata.version('pycocoevalcap')}"
    np.savez_compressed(output, cases=json.dumps(cases), peer=peer)


if __name__ == "__main__":
    here = pathlib.Path(__file__)
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here.with_name("cider.npz"))
