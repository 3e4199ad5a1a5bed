"""The two networks of configs/dcgan.py and their losses in plain PyTorch.

For benchmarks/torch_steps.py and gpu_torch.py. Modules have the names of genjax's, so that
parameters can be carried over; see genjax/networks/dcgan.py and genjax/methods/gan.py.
(benchmarks/torch_dcgan.py is another: a DCGAN as the tutorials write it, which trains for its
samples.)
"""

import math

import torch
from torch import nn
from torch.nn import functional

LATENT = 100


class Generator(nn.Module):
    """A linear layer, then transposed convolutions that double the size."""

    def __init__(self, side, colors, channels, levels):
        super().__init__()
        width = channels << (levels - 1)
        self.first = (width, side >> levels, side >> levels)
        self.stem = nn.Linear(LATENT, math.prod(self.first), bias=False)
        self.norms, self.ups = nn.ModuleDict({"0": nn.BatchNorm2d(width)}), nn.ModuleDict()
        for level in range(1, levels):
            self.ups[str(level)] = nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False)
            width //= 2
            self.norms[str(level)] = nn.BatchNorm2d(width)
        self.out = nn.ConvTranspose2d(width, colors, 4, 2, 1)

    def forward(self, z):
        h = functional.relu(self.norms["0"](self.stem(z).unflatten(1, self.first)))
        for level, up in self.ups.items():
            h = functional.relu(self.norms[level](up(h)))
        return self.out(h).float().tanh()


class Body(nn.Module):
    """Strided convolutions and leaky rectifiers."""

    def __init__(self, colors, channels, levels):
        super().__init__()
        self.convs, self.norms = nn.ModuleDict(), nn.ModuleDict()
        width = colors
        for level in range(levels):
            following = channels << level
            self.convs[str(level)] = nn.Conv2d(width, following, 4, 2, 1, bias=not level)
            width = following
            if level:
                self.norms[str(level)] = nn.BatchNorm2d(width)

    def forward(self, x):
        for level, conv in self.convs.items():
            x = conv(x)
            x = functional.leaky_relu(self.norms[level](x) if level in self.norms else x, 0.2)
        return x.flatten(1)


class Discriminator(nn.Module):
    """The body and a logit."""

    def __init__(self, side, colors, channels, levels):
        super().__init__()
        self.body = Body(colors, channels, levels)
        features = (channels << (levels - 1)) * (side >> levels) ** 2
        self.head = nn.ModuleDict({"linear": nn.Linear(features, 1)})

    def forward(self, x):
        return self.head["linear"](self.body(x))[:, 0].float()


class Game(nn.Module):
    """Both networks and both losses, each of samples of its own.

    Args:
      side: of the square images; it is halved `levels` times.
      colors: channels of the images.
      channels: width at half the side; it doubles with each halving.
      levels: number of halvings.
    """

    def __init__(self, side=28, colors=1, channels=64, levels=2):
        super().__init__()
        sizes = (side, colors, channels, levels)
        self.generator, self.discriminator = Generator(*sizes), Discriminator(*sizes)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, 0.0, 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def discriminator_loss(self, image, z):
        with torch.no_grad():
            fake = self.generator(z)
        real = self.discriminator(image.float() / 127.5 - 1)
        return (
            functional.softplus(-real).mean() + functional.softplus(self.discriminator(fake)).mean()
        )

    def generator_loss(self, z):
        return functional.softplus(-self.discriminator(self.generator(z))).mean()
