"""Runs torch-fidelity's InceptionV3 with random weights, and writes `inception.npz`.

    /path/to/parity/bin/python tests/golden/make_inception.py [OUTPUT.npz]

The weights are 90 MB, so the file has their names and shapes only: `draw` here and in
tests/networks/test_inception.py makes the same arrays out of one seed. What the peer's resize makes
of pictures of several sizes, drawn out of their size, is kept at every 13th row and column.
"""

from __future__ import annotations

import importlib.util
import json
import pathlib
import sys
import tempfile
import types
from importlib import metadata

import numpy as np
import torch

# The package's own __init__ imports torchvision, which nothing here needs and which PyPI has for
# CUDA only: beside a torch for CPUs it does not load.
peer = types.ModuleType("torch_fidelity")
peer.__path__ = importlib.util.find_spec("torch_fidelity").submodule_search_locations
sys.modules["torch_fidelity"] = peer

from torch_fidelity.feature_extractor_inceptionv3 import (  # noqa: E402
    FeatureExtractorInceptionV3,
)
from torch_fidelity.interpolate_compat_tensorflow import (  # noqa: E402
    interpolate_bilinear_2d_like_tensorflow1x,
)

SEED = 0
SIZES = ((28, 28), (64, 48), (299, 299), (400, 310))  # of the pictures that are resized
OUTPUTS = ("2048", "logits_unbiased", "logits")


def draw(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Weights with which activations neither die nor explode (He et al. 2015, eq. 10)."""
    rng = np.random.default_rng(SEED)
    state = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            scale = np.sqrt(2.0 / np.prod(shape[1:]))
            state[name] = rng.standard_normal(shape, np.float32) * np.float32(scale)
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            state[name] = rng.normal(0.0, 0.1, shape).astype(np.float32)
    return state


def extractor(folder: str) -> tuple[FeatureExtractorInceptionV3, dict[str, list[int]]]:
    """The peer with drawn weights, and their shapes; it wants them from a file."""
    kept = FeatureExtractorInceptionV3.load_state_dict
    shapes = {}

    def look(self, state, *args, **kwargs):
        shapes.update({k: list(v.shape) for k, v in self.state_dict().items() if v.ndim})
        drawn = {name: torch.tensor(value) for name, value in draw(shapes).items()}
        return kept(self, drawn, strict=False)

    path = pathlib.Path(folder) / "empty.pth"
    torch.save({}, path)
    FeatureExtractorInceptionV3.load_state_dict = look
    try:
        return FeatureExtractorInceptionV3("drawn", list(OUTPUTS), str(path)), shapes
    finally:
        FeatureExtractorInceptionV3.load_state_dict = kept


def main(path: pathlib.Path) -> None:
    """Writes the outputs for one picture, and resized ones, to `path`."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        network, shapes = extractor(folder)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (1, 40, 56, 3), dtype=np.uint8)
    with torch.no_grad():
        found = network(torch.tensor(images).permute(0, 3, 1, 2))
    arrays = dict(
        peer=f"torch-fidelity {metadata.version('torch-fidelity')}, torch {torch.__version__}",
        shapes=json.dumps(shapes),
        seed=SEED,
        images=images,
        **{name: value.numpy() for name, value in zip(OUTPUTS, found, strict=True)},
    )
    for height, width in SIZES:
        picture = np.random.default_rng((height, width)).integers(0, 256, (1, height, width, 1))
        resized = interpolate_bilinear_2d_like_tensorflow1x(
            torch.tensor(picture).permute(0, 3, 1, 2).float(), (299, 299), align_corners=False
        )
        arrays[f"resize/{height}x{width}"] = resized[0, 0, ::13, ::13].numpy()
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    here = pathlib.Path(__file__)
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here.with_name("inception.npz"))
