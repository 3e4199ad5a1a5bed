"""Builds the VAE's and the VQ-VAE's convolutional networks in PyTorch, and writes what they make.

    /path/to/parity/bin/python tests/golden/make_convolutional_autoencoders.py [OUTPUT.npz]

`vq`: two halvings, two residual blocks. `vae`: 16 x 16 images of three classes. Arrays are in
genjax's layouts: images [B, H, W, C], kernels [k, k, in, out], matrices [in, out].
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import torch
from torch import nn

VQ, CODE = 16, 5  # width, length of a code
VAE, HIDDEN, LATENT, CLASSES = 4, 12, 6, 3
SIDE = 16
LAYERS = nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.GroupNorm


def norm(width: int) -> nn.GroupNorm:
    """Groups of four channels, as many as there are of these."""
    return nn.GroupNorm(max(width // 4, 1), width, eps=1e-6)


class Block(nn.Module):
    """x + (norm, SiLU, 3x3, norm, SiLU, 1x1), half as wide between the two."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width // 2)
        self.conv1, self.conv2 = (
            nn.Conv2d(width, width // 2, 3, 1, 1),
            nn.Conv2d(width // 2, width, 1),
        )

    def forward(self, x):
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        return x + self.conv2(nn.functional.silu(self.norm2(h)))


def vq_encoder() -> nn.Sequential:
    """Strides, then a stem and the blocks."""
    return nn.Sequential(
        *(named("downs/0", nn.Conv2d(3, VQ // 2, 4, 2, 1)), nn.SiLU()),
        *(named("downs/1", nn.Conv2d(VQ // 2, VQ, 4, 2, 1)), nn.SiLU()),
        named("stem", nn.Conv2d(VQ, VQ, 3, 1, 1)),
        *(named("blocks/0", Block(VQ)), named("blocks/1", Block(VQ))),
        *(named("norm", norm(VQ)), nn.SiLU(), named("out", nn.Conv2d(VQ, CODE, 1))),
    )


def vq_decoder() -> nn.Sequential:
    """The same backwards."""
    return nn.Sequential(
        named("stem", nn.Conv2d(CODE, VQ, 3, 1, 1)),
        *(named("blocks/0", Block(VQ)), named("blocks/1", Block(VQ))),
        *(named("norm", norm(VQ)), nn.SiLU()),
        *(named("ups/0", nn.ConvTranspose2d(VQ, VQ // 2, 4, 2, 1)), nn.SiLU()),
        named("out", nn.ConvTranspose2d(VQ // 2, 3, 4, 2, 1)),
    )


class Flat(nn.Module):
    """[B, C, h, w] and a label to [B, h * w * C + classes], rows first as genjax has them."""

    def forward(self, x):
        label = nn.functional.one_hot(torch.arange(len(x)) % CLASSES, CLASSES)
        if x.ndim == 4:
            x = x.permute(0, 2, 3, 1).flatten(1)
        return torch.cat([x, label.to(x.dtype)], 1)


class Unflat(nn.Module):
    """The inverse, without the label."""

    def forward(self, x):
        side = SIDE // 4
        return x.view(len(x), side, side, -1).permute(0, 3, 1, 2)


def vae_encoder() -> nn.Sequential:
    """16 to 8 to 4 pixels, then fully connected."""
    return nn.Sequential(
        *(named("convs/0", nn.Conv2d(3, VAE, 4, 2, 1)), named("norms/0", norm(VAE)), nn.SiLU()),
        named("convs/1", nn.Conv2d(VAE, 2 * VAE, 4, 2, 1)),
        *(named("norms/1", norm(2 * VAE)), nn.SiLU(), Flat()),
        *(named("hidden", nn.Linear(16 * 2 * VAE + CLASSES, HIDDEN)), nn.SiLU()),
        named("out", nn.Linear(HIDDEN, 2 * LATENT)),
    )


def vae_decoder() -> nn.Sequential:
    """The same backwards."""
    return nn.Sequential(
        *(Flat(), named("hidden", nn.Linear(LATENT + CLASSES, HIDDEN)), nn.SiLU()),
        *(named("stem", nn.Linear(HIDDEN, 16 * 2 * VAE)), Unflat()),
        *(named("norms/0", norm(2 * VAE)), nn.SiLU()),
        named("ups/1", nn.ConvTranspose2d(2 * VAE, VAE, 4, 2, 1)),
        *(named("norms/1", norm(VAE)), nn.SiLU()),
        named("out", nn.ConvTranspose2d(VAE, 3, 4, 2, 1)),
    )


def named(name: str, module: nn.Module) -> nn.Module:
    """The module, with its path in genjax."""
    module.path = name
    return module


def parameters(net: nn.Sequential) -> dict[str, np.ndarray]:
    """Path in genjax -> array in its layout."""
    found = {}
    for module in net:
        for name, layer in module.named_modules():
            if not isinstance(layer, LAYERS):
                continue
            path = "/".join(filter(None, (module.path, name)))
            weight = layer.weight.detach().numpy()
            if isinstance(layer, nn.GroupNorm):
                found[f"{path}/scale"] = weight
            elif isinstance(layer, nn.ConvTranspose2d):
                found[f"{path}/kernel"] = weight.transpose(2, 3, 0, 1)[::-1, ::-1]
            elif isinstance(layer, nn.Conv2d):
                found[f"{path}/kernel"] = weight.transpose(2, 3, 1, 0)
            else:
                found[f"{path}/kernel"] = weight.T
            found[f"{path}/bias"] = layer.bias.detach().numpy()
    return found


def channels_last(x: torch.Tensor) -> np.ndarray:
    """[B, C, H, W] to [B, H, W, C]; vectors as they are."""
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy().copy()


@torch.no_grad()
def main(path: pathlib.Path) -> None:
    """Draws weights and inputs, applies the networks and writes."""
    torch.manual_seed(0)
    arrays = {"peer": f"torch {torch.__version__}"}
    for name, net, x in (
        ("vq/encoder", vq_encoder(), torch.rand(2, 3, 12, 8) * 2 - 1),
        ("vq/decoder", vq_decoder(), torch.randn(2, CODE, 3, 2)),
        ("vae/encoder", vae_encoder(), torch.rand(4, 3, SIDE, SIDE) * 2 - 1),
        ("vae/decoder", vae_decoder(), torch.randn(4, LATENT)),
    ):
        for layer in net.modules():
            if isinstance(layer, nn.GroupNorm):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0.0, 0.3)
        arrays |= {f"{name}/params/{key}": value for key, value in parameters(net).items()}
        arrays |= {f"{name}/x": channels_last(x), f"{name}/made": channels_last(net(x))}
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    here = pathlib.Path(__file__)
    name = "convolutional_autoencoders.npz"
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here.with_name(name))
