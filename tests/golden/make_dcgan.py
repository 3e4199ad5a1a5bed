"""Three steps of a DCGAN as PyTorch plays them: losses, parameters and running averages.

/path/to/parity/bin/python tests/golden/make_dcgan.py [OUTPUT.npz]

Images of 16 x 16, four channels, batch norm in both players, non-saturating loss, Adam. The
generator draws anew for its own update; what a player does for the other's update leaves its own
running averages as they were. Arrays are in genjax's layouts: images [B, H, W, C], kernels
[k, k, in, out].
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import torch
from torch import nn

LATENT, BATCH, STEPS, WIDTH = 5, 6, 3, 4


class Rows(nn.Module):
    """[B, side * side * C] in genjax's order to PyTorch's [B, C, side, side]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(len(x), 4, 4, -1).permute(0, 3, 1, 2)


class Flat(nn.Module):
    """The inverse of `Rows`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1).reshape(len(x), -1)


def networks() -> tuple[nn.Sequential, nn.Sequential]:
    """Generator and discriminator."""
    generator = nn.Sequential(
        nn.Linear(LATENT, 16 * 2 * WIDTH, bias=False),
        Rows(),
        nn.BatchNorm2d(2 * WIDTH),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * WIDTH, WIDTH, 4, 2, 1, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.ConvTranspose2d(WIDTH, 1, 4, 2, 1),
        nn.Tanh(),
    )
    discriminator = nn.Sequential(
        nn.Conv2d(1, WIDTH, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(WIDTH, 2 * WIDTH, 4, 2, 1, bias=False),
        nn.BatchNorm2d(2 * WIDTH),
        nn.LeakyReLU(0.2),
        Flat(),
        nn.Linear(16 * 2 * WIDTH, 1),
    )
    return generator, discriminator


def arrays(player: str, net: nn.Sequential) -> dict[str, np.ndarray]:
    """Parameters and running averages by genjax's names, in its layouts."""
    names = {
        "generator": {0: "stem", 2: "norms/0", 4: "ups/1", 5: "norms/1", 7: "out"},
        "discriminator": {
            0: "body/convs/0",
            2: "body/convs/1",
            3: "body/norms/1",
            6: "head/linear",
        },
    }[player]
    found = {}
    for index, name in names.items():
        layer = net[index]
        weight = layer.weight.detach().numpy()
        if isinstance(layer, nn.ConvTranspose2d):
            found[f"{name}/kernel"] = weight.transpose(2, 3, 0, 1)[::-1, ::-1]
        elif isinstance(layer, nn.Conv2d):
            found[f"{name}/kernel"] = weight.transpose(2, 3, 1, 0)
        elif isinstance(layer, nn.Linear):
            found[f"{name}/kernel"] = weight.T
        else:
            found[f"{name}/scale"] = weight
            found[f"{name}/mean"] = layer.running_mean.numpy()
            found[f"{name}/var"] = layer.running_var.numpy()
        if layer.bias is not None:
            found[f"{name}/bias"] = layer.bias.detach().numpy()
    return {f"{player}/{name}": value.copy() for name, value in found.items()}


def without_averages(net: nn.Module, z: torch.Tensor) -> torch.Tensor:
    """`net(z)` in training, its running averages left as they were."""
    kept = {name: value.clone() for name, value in net.named_buffers()}
    made = net(z).detach()
    for name, value in net.named_buffers():
        value.copy_(kept[name])
    return made


def main(path: pathlib.Path) -> None:
    """Plays and writes."""
    torch.manual_seed(0)
    generator, discriminator = networks()
    for module in [*generator, *discriminator]:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, 0.0, 0.2)
    players = {"generator": generator, "discriminator": discriminator}
    kept = {f"start/{k}": v for name, net in players.items() for k, v in arrays(name, net).items()}
    adam = {
        name: torch.optim.Adam(net.parameters(), 2e-3, betas=(0.5, 0.999), eps=1e-4)
        for name, net in players.items()
    }
    images = torch.randint(0, 256, (STEPS, BATCH, 1, 16, 16), dtype=torch.uint8)
    z = torch.randn(STEPS, 2, BATCH, LATENT)
    judge, losses = nn.BCEWithLogitsLoss(), []
    ones, zeros = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)
    for step in range(STEPS):
        real = images[step].float() / 127.5 - 1
        fake = without_averages(generator, z[step, 0])
        first = judge(discriminator(real), ones) + judge(discriminator(fake), zeros)
        adam["discriminator"].zero_grad()
        first.backward()
        adam["discriminator"].step()
        averages = {name: value.clone() for name, value in discriminator.named_buffers()}
        second = judge(discriminator(generator(z[step, 1])), ones)
        adam["generator"].zero_grad()
        second.backward()
        adam["generator"].step()
        for name, value in discriminator.named_buffers():
            value.copy_(averages[name])
        losses.append([float(first.detach()), float(second.detach())])
    kept |= {f"end/{k}": v for name, net in players.items() for k, v in arrays(name, net).items()}
    kept |= {"images": images.numpy().transpose(0, 1, 3, 4, 2), "z": z.numpy()}
    np.savez_compressed(path, losses=np.array(losses), peer=f"torch {torch.__version__}", **kept)


if __name__ == "__main__":
    default = pathlib.Path(__file__).with_name("dcgan.npz")
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default)
