"""A causal transformer by torch.nn, and a gated PixelCNN of masked convolutions.

/path/to/parity/bin/python tests/golden/make_token_networks.py [OUTPUT.npz]
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F

B, T, WIDTH, HEADS, DEPTH = 2, 6, 12, 3, 2
GRID, SIZE = (5, 4), 5


def transformer(draw) -> dict[str, np.ndarray]:
    """Pre-norm blocks with GELU by its tanh formula and biases, and a norm at the end."""
    layer = torch.nn.TransformerEncoderLayer(
        WIDTH,
        HEADS,
        4 * WIDTH,
        dropout=0.0,
        activation=lambda x: F.gelu(x, approximate="tanh"),
        batch_first=True,
        norm_first=True,
    )
    net = torch.nn.TransformerEncoder(layer, DEPTH, torch.nn.LayerNorm(WIDTH))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(draw(*parameter.shape))
        x = draw(B, T, WIDTH)
        mask = torch.nn.Transformer.generate_square_subsequent_mask(T)
        arrays = {f"transformer/{name}": p.numpy() for name, p in net.named_parameters()}
        arrays |= {"transformer/x": x.numpy(), "transformer/y": net(x, mask).numpy()}
    return arrays


def masks(first: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Which taps of a SIZE x SIZE kernel the two stacks keep, as figure 2 of the paper has them."""
    vertical, horizontal = torch.zeros(SIZE, SIZE), torch.zeros(SIZE, SIZE)
    middle = SIZE // 2
    vertical[: middle if first else middle + 1] = 1
    horizontal[middle, : middle if first else middle + 1] = 1
    return vertical, horizontal


def gate(x: torch.Tensor) -> torch.Tensor:
    """Equation 2."""
    value, gated = x.chunk(2, dim=1)
    return torch.tanh(value) * torch.sigmoid(gated)


def pixelcnn(draw) -> dict[str, np.ndarray]:
    """Two layers on an image: weights, the image, the label's vector and both stacks."""
    arrays, width = {}, 3
    x, label = draw(B, width, *GRID), draw(B, width)
    arrays |= {"pixelcnn/x": x.numpy(), "pixelcnn/label": label.numpy()}
    above = left = x
    for i, first in enumerate((True, False)):
        shapes = {
            "vertical": (2 * width, width, SIZE, SIZE),
            "horizontal": (2 * width, width, SIZE, SIZE),
            "link": (2 * width, 2 * width, 1, 1),
            "out": (width, width, 1, 1),
            "condition": (4 * width, width),
        }
        w = {name: draw(*shape) for name, shape in shapes.items()}
        b = {name: draw(w[name].shape[0]) for name in ("vertical", "horizontal", "link", "out")}
        for name, mask in zip(("vertical", "horizontal"), masks(first), strict=True):
            w[name] = w[name] * mask
        arrays |= {f"pixelcnn/{i}/{name}/kernel": value.numpy() for name, value in w.items()}
        arrays |= {f"pixelcnn/{i}/{name}/bias": value.numpy() for name, value in b.items()}
        for_above, for_left = (label @ w["condition"].T)[..., None, None].chunk(2, dim=1)
        rows = F.conv2d(above, w["vertical"], b["vertical"], padding="same")
        h = F.conv2d(left, w["horizontal"], b["horizontal"], padding="same")
        h = h + F.conv2d(rows, w["link"], b["link"])
        h = F.conv2d(gate(h + for_left), w["out"], b["out"])
        above, left = gate(rows + for_above), h if first else left + h
        arrays |= {f"pixelcnn/{i}/above": above.numpy(), f"pixelcnn/{i}/left": left.numpy()}
    return arrays


def main(path: pathlib.Path) -> None:
    """Runs both and writes."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    arrays = {"peer": f"torch {torch.__version__}"} | transformer(draw) | pixelcnn(draw)
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    default = pathlib.Path(__file__).with_name("token_networks.npz")
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default)
