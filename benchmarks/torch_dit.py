"""The DiT that benchmarks/step_race.py trains, in plain PyTorch.

For benchmarks/torch_steps.py and gpu_torch.py. Modules have the names of genjax's, so that
parameters can be carried over; see genjax/networks/dit.py for what is computed. There are
no labels.
"""

import math

import torch
from torch import nn
from torch.nn import functional

FEATURES = 256


def frequencies(pairs):
    return torch.exp(-math.log(10_000.0) * torch.arange(pairs, dtype=torch.float64) / pairs)


def positions(side, width):
    """[1, side^2, width]: sines and cosines of the column, then those of the row."""
    angle = torch.arange(side)[:, None] * frequencies(width // 4)
    along = torch.cat([angle.sin(), angle.cos()], -1).float()
    shape = (side, side, width // 2)
    both = torch.cat([along.expand(shape), along[:, None].expand(shape)], -1)
    return both.reshape(1, side * side, width)


def patches(x, patch):
    """[B, C, H, W] -> [B, N, D]: row, column and channel of a pixel in its patch, in this order."""
    B, C, H, W = x.shape
    x = x.reshape(B, C, H // patch, patch, W // patch, patch).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(B, -1, patch**2 * C)


def pixels(x, patch, side):
    """The inverse of `patches`, for square images of `side`."""
    grid = side // patch
    x = x.reshape(len(x), grid, grid, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(len(x), -1, side, side)


class Block(nn.Module):
    """Self-attention and a two-layer network, shifted, scaled and gated by the time's vector."""

    def __init__(self, width, heads):
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x, vector):
        B, T, _ = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(vector)[:, None].chunk(6, -1)
        qkv = self.qkv(modulated(x, shift1, scale1)).reshape(B, T, 3, self.heads, -1)
        mixed = functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + gate1 * self.merge(mixed.transpose(1, 2).reshape(x.shape))
        h = functional.gelu(self.up(modulated(x, shift2, scale2)), approximate="tanh")
        return x + gate2 * self.down(h)


def modulated(x, shift, scale):
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class DiT(nn.Module):
    """Predicts an image from a noisy one and its timestep."""

    def __init__(self, side=28, colors=1, width=256, depth=6, heads=4, patch=4):
        super().__init__()
        self.side, self.patch_size = side, patch
        self.patch = nn.Linear(patch**2 * colors, width)
        self.time1, self.time2 = nn.Linear(FEATURES, width), nn.Linear(width, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, patch**2 * colors)
        self.register_buffer("positions", positions(side // patch, width), persistent=False)
        speeds = frequencies(FEATURES // 2).float()
        self.register_buffer("frequencies", speeds, persistent=False)

    def forward(self, x, t):
        angle = t.float()[:, None] * self.frequencies
        vector = self.time1(torch.stack([angle.sin(), angle.cos()], -1).flatten(1))
        vector = functional.silu(self.time2(functional.silu(vector)))
        h = self.patch(patches(x, self.patch_size)) + self.positions
        for block in self.blocks:
            h = block(h, vector)
        h = self.head(modulated(h, *self.modulation(vector)[:, None].chunk(2, -1)))
        return pixels(h, self.patch_size, self.side).float()
