"""The two networks of configs/dcgan.py and their losses in plain PyTorch.

For benchmarks/torch_steps.py. Modules have the names of genjax's, so that parameters can be carried
over; see genjax/networks/dcgan.py and genjax/methods/gan.py. (benchmarks/torch_dcgan.py is another:
a DCGAN as the tutorials write it, which trains for its samples.)
"""

import torch
from torch import nn
from torch.nn import functional

LATENT, FIRST, SECOND = 100, 64, 128


class Generator(nn.Module):
    """A linear layer, then transposed convolutions that double the size."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(LATENT, SECOND * 7 * 7, bias=False)
        self.norms = nn.ModuleDict({"0": nn.BatchNorm2d(SECOND), "1": nn.BatchNorm2d(FIRST)})
        self.ups = nn.ModuleDict({"1": nn.ConvTranspose2d(SECOND, FIRST, 4, 2, 1, bias=False)})
        self.out = nn.ConvTranspose2d(FIRST, 1, 4, 2, 1)

    def forward(self, z):
        h = functional.relu(self.norms["0"](self.stem(z).unflatten(1, (SECOND, 7, 7))))
        h = functional.relu(self.norms["1"](self.ups["1"](h)))
        return self.out(h).float().tanh()


class Body(nn.Module):
    """Strided convolutions and leaky rectifiers."""

    def __init__(self):
        super().__init__()
        second = nn.Conv2d(FIRST, SECOND, 4, 2, 1, bias=False)
        self.convs = nn.ModuleDict({"0": nn.Conv2d(1, FIRST, 4, 2, 1), "1": second})
        self.norms = nn.ModuleDict({"1": nn.BatchNorm2d(SECOND)})

    def forward(self, x):
        x = functional.leaky_relu(self.convs["0"](x), 0.2)
        return functional.leaky_relu(self.norms["1"](self.convs["1"](x)), 0.2).flatten(1)


class Discriminator(nn.Module):
    """The body and a logit."""

    def __init__(self):
        super().__init__()
        self.body = Body()
        self.head = nn.ModuleDict({"linear": nn.Linear(SECOND * 7 * 7, 1)})

    def forward(self, x):
        return self.head["linear"](self.body(x))[:, 0].float()


class Game(nn.Module):
    """Both networks and both losses, each of samples of its own."""

    def __init__(self):
        super().__init__()
        self.generator, self.discriminator = Generator(), Discriminator()
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
