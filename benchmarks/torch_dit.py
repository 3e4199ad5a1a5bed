"""The DiT that benchmarks/step_race.py trains, in plain PyTorch.

For benchmarks/torch_steps.py. Modules have the names of genjax's, so that parameters can be carried
over; see genjax/networks/dit.py for what is computed. There are no labels.
"""

import math

import torch
from torch import nn
from torch.nn import functional

WIDTH, DEPTH, HEADS, PATCH, SIDE, FEATURES = 256, 6, 4, 4, 28, 256


def frequencies(pairs):
    return torch.exp(-math.log(10_000.0) * torch.arange(pairs, dtype=torch.float64) / pairs)


def positions(side):
    """[1, side^2, WIDTH]: sines and cosines of the column, then those of the row."""
    angle = torch.arange(side)[:, None] * frequencies(WIDTH // 4)
    along = torch.cat([angle.sin(), angle.cos()], -1).float()
    shape = (side, side, WIDTH // 2)
    both = torch.cat([along.expand(shape), along[:, None].expand(shape)], -1)
    return both.reshape(1, side * side, WIDTH)


class Block(nn.Module):
    """Self-attention and a two-layer network, shifted, scaled and gated by the time's vector."""

    def __init__(self):
        super().__init__()
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)
        self.qkv, self.merge = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x, vector):
        B, T, _ = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(vector)[:, None].chunk(6, -1)
        qkv = self.qkv(modulated(x, shift1, scale1)).reshape(B, T, 3, HEADS, -1)
        mixed = functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + gate1 * self.merge(mixed.transpose(1, 2).reshape(x.shape))
        h = functional.gelu(self.up(modulated(x, shift2, scale2)), approximate="tanh")
        return x + gate2 * self.down(h)


def modulated(x, shift, scale):
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class DiT(nn.Module):
    """Predicts an image from a noisy one and its timestep."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Linear(PATCH**2, WIDTH)
        self.time1, self.time2 = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(DEPTH)])
        self.modulation = nn.Linear(WIDTH, 2 * WIDTH)
        self.head = nn.Linear(WIDTH, PATCH**2)
        self.register_buffer("positions", positions(SIDE // PATCH), persistent=False)
        speeds = frequencies(FEATURES // 2).float()
        self.register_buffer("frequencies", speeds, persistent=False)

    def forward(self, x, t):
        angle = t.float()[:, None] * self.frequencies
        vector = self.time1(torch.stack([angle.sin(), angle.cos()], -1).flatten(1))
        vector = functional.silu(self.time2(functional.silu(vector)))
        h = functional.pixel_unshuffle(x, PATCH)
        side = h.shape[-2:]
        h = self.patch(h.flatten(2).transpose(1, 2)) + self.positions
        for block in self.blocks:
            h = block(h, vector)
        h = self.head(modulated(h, *self.modulation(vector)[:, None].chunk(2, -1)))
        return functional.pixel_shuffle(h.transpose(1, 2).unflatten(2, side), PATCH).float()
