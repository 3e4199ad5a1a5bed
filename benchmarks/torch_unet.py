"""The U-Net of configs/ddpm.py, its loss and its DDIM sampler in plain PyTorch.

For benchmarks/torch_steps.py and gpu_torch.py. Modules have the names of genjax's, so that
parameters can be carried over; see genjax/networks/unet.py and genjax/sampling/solvers.py
for what is computed.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

TIMESTEPS = 1000


def group_norm(features):
    """Groups as genjax chooses them: at most 32, of 4 channels or more."""
    groups = math.gcd(min(32, max(features // 4, 1)), features)
    return nn.GroupNorm(groups, features, eps=1e-6)


class ResidualBlock(nn.Module):
    """GroupNorm-SiLU-conv twice, the time embedding added in between, and a shortcut."""

    def __init__(self, cin, cout, embedding, rate=0.0):
        super().__init__()
        self.norm1, self.norm2 = group_norm(cin), group_norm(cout)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.time = nn.Linear(embedding, cout)
        self.shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()
        self.rate = rate

    def forward(self, x, embedding):
        h = self.conv1(functional.silu(self.norm1(x)))
        h = h + self.time(functional.silu(embedding))[:, :, None, None]
        h = functional.dropout(functional.silu(self.norm2(h)), self.rate, self.training)
        return self.conv2(h) + self.shortcut(x)


class AttentionBlock(nn.Module):
    """GroupNorm and self-attention of one head over the pixels, with a shortcut."""

    def __init__(self, channels):
        super().__init__()
        self.norm = group_norm(channels)
        self.query, self.key, self.value, self.out = (
            nn.Linear(channels, channels) for _ in range(4)
        )

    def forward(self, x):
        h = self.norm(x).flatten(2).transpose(1, 2)
        parts = (layer(h)[:, None] for layer in (self.query, self.key, self.value))
        h = self.out(functional.scaled_dot_product_attention(*parts)[:, 0])
        return x + h.transpose(1, 2).reshape(x.shape)


class Level(nn.Module):
    """The blocks of one resolution, and the convolution that resamples after them."""

    def __init__(self, channels, embedding, attention, resample, rate):
        super().__init__()
        self.blocks = nn.ModuleDict(
            {str(i): ResidualBlock(*pair, embedding, rate) for i, pair in enumerate(channels)}
        )
        self.attention = nn.ModuleDict(
            {str(i): AttentionBlock(pair[1]) for i, pair in enumerate(channels) if attention}
        )
        self.resample = resample

    def block(self, name, x, embedding):
        x = self.blocks[name](x, embedding)
        return self.attention[name](x) if name in self.attention else x


class UNet(nn.Module):
    """Predicts an image from a noisy one and its timestep; one block more on the way up.

    Args:
      side: of the square images; it decides which levels have attention.
      colors: channels of the images.
      channels: width of the first level.
      multipliers: width of each level, divided by `channels`.
      blocks: residual blocks of each level on the way down.
      attention: resolutions, after patching, whose blocks have attention.
      patch: side of the squares of pixels that are folded into channels.
      rate: of the dropout.
    """

    def __init__(
        self,
        side=28,
        colors=1,
        channels=32,
        multipliers=(1, 4),
        blocks=1,
        attention=(),
        patch=2,
        rate=0.0,
    ):
        super().__init__()
        embedding, last = 4 * channels, len(multipliers) - 1
        self.patch, pixels = patch, patch**2 * colors
        self.time1, self.time2 = nn.Linear(channels, embedding), nn.Linear(embedding, embedding)
        self.stem = nn.Conv2d(pixels, channels, 3, padding=1)
        skips, width = [channels], channels
        self.down, self.up = nn.ModuleDict(), nn.ModuleDict()
        for i, multiplier in enumerate(multipliers):
            pairs = []
            for _ in range(blocks):
                pairs.append((width, width := channels * multiplier))
                skips.append(width)
            resample = None
            if i < last:
                resample = nn.Conv2d(width, width, 3, stride=2)
                skips.append(width)
            looks = side // patch >> i in attention
            self.down[str(i)] = Level(pairs, embedding, looks, resample, rate)
        self.middle1 = ResidualBlock(width, width, embedding, rate)
        self.middle_attention = AttentionBlock(width)
        self.middle2 = ResidualBlock(width, width, embedding, rate)
        for i, multiplier in reversed(list(enumerate(multipliers))):
            pairs = []
            for _ in range(blocks + 1):
                pairs.append((width + skips.pop(), width := channels * multiplier))
            resample = nn.Conv2d(width, width, 3, padding=1) if i else None
            looks = side // patch >> i in attention
            self.up[str(i)] = Level(pairs, embedding, looks, resample, rate)
        self.norm = group_norm(width)
        self.head = nn.Conv2d(width, pixels, 3, padding=1)
        half = channels // 2
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half) / (half - 1))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x, t):
        angle = t.float()[:, None] * self.frequencies
        embedding = self.time1(torch.cat([angle.sin(), angle.cos()], -1))
        embedding = self.time2(functional.silu(embedding))
        h = self.stem(functional.pixel_unshuffle(x, self.patch))
        skips = [h]
        for level in self.down.values():
            for name in level.blocks:
                h = level.block(name, h, embedding)
                skips.append(h)
            if level.resample is not None:
                # "SAME" of an even size: the zeros at the far end alone.
                h = level.resample(functional.pad(h, (0, 1, 0, 1)))
                skips.append(h)
        h = self.middle1(h, embedding)
        h = self.middle2(self.middle_attention(h), embedding)
        for level in self.up.values():
            for name in level.blocks:
                h = level.block(name, torch.cat([h, skips.pop()], 1), embedding)
            if level.resample is not None:
                h = level.resample(functional.interpolate(h, scale_factor=2, mode="nearest"))
        h = self.head(functional.silu(self.norm(h)))
        return functional.pixel_shuffle(h, self.patch).float()


def log_alpha_bar():
    """Of the squared cosine, in float64."""
    time = np.arange(TIMESTEPS + 1, dtype=np.float64) / TIMESTEPS
    alpha_bar = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumsum(np.log1p(-np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)))


def tables(log):
    """(alpha, sigma) as float32."""
    pair = np.exp(0.5 * log), np.sqrt(-np.expm1(log))
    return tuple(torch.from_numpy(table.astype(np.float32)) for table in pair)


class Diffusion(nn.Module):
    """A network and what is done with it; called, the loss of v-prediction."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser = denoiser
        alpha, sigma = tables(log_alpha_bar())
        self.register_buffer("alpha", alpha, persistent=False)
        self.register_buffer("sigma", sigma, persistent=False)

    def forward(self, image, index, noise):
        x0 = image.float() / 127.5 - 1
        alpha, sigma = (t[index][:, None, None, None] for t in (self.alpha, self.sigma))
        output = self.denoiser(alpha * x0 + sigma * noise, index)
        return (output - (alpha * noise - sigma * x0)).square().mean()

    def ddim(self, x, t, now, earlier):
        """One step from (alpha, sigma) `now` to those `earlier`, of a clipped prediction."""
        output = self.denoiser(x, t)
        x0 = (now[0] * x - now[1] * output).clamp(-1, 1)
        return earlier[0] * x0 + earlier[1] * ((x - now[0] * x0) / now[1])


def sample(ddim, x, steps=50):
    """Images of noise x by so many of the timesteps, the noisiest first."""
    kept = np.arange(1, steps + 1) * TIMESTEPS // steps - 1
    log = log_alpha_bar()[kept]
    now, earlier = (torch.stack(tables(table)) for table in (log, np.append(0.0, log[:-1])))
    for i in reversed(range(steps)):
        x = ddim(x, torch.full((len(x),), int(kept[i])), now[:, i], earlier[:, i])
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
