"""A plain PyTorch DCGAN of the size of configs/dcgan.py, for a given number of seconds.

The peer of docs/results.md: the same data, networks, optimizer and batch in eager PyTorch, as its
tutorials write it. Its samples are judged by genjax's evaluator:

  python benchmarks/torch_dcgan.py --seconds=600 --output=torch_dcgan.npz
  python -m genjax.main --config=configs/dcgan.py --config.dataset.validation= \
      --mode=eval --samples=torch_dcgan.npz

Needs the [parity] extra.
"""

import argparse
import sys
import time

import numpy as np

from genjax import config as configs
from genjax.data import catalogue

try:
    import torch
    from torch import nn
except ModuleNotFoundError:
    sys.exit("error: this benchmark needs PyTorch: pip install -e '.[parity]'")

LATENT, BATCH, CHANNELS = 100, 64, (64, 128)


def initialise(module):
    """Radford et al. 2016: N(0, 0.02) everywhere, N(1, 0.02) for the scales of batch norm."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def networks():
    first, second = CHANNELS
    generator = nn.Sequential(
        nn.Linear(LATENT, second * 7 * 7),
        nn.Unflatten(1, (second, 7, 7)),
        nn.BatchNorm2d(second),
        nn.ReLU(),
        nn.ConvTranspose2d(second, first, 4, 2, 1),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.ConvTranspose2d(first, 1, 4, 2, 1),
        nn.Tanh(),
    )
    discriminator = nn.Sequential(
        nn.Conv2d(1, first, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(first, second, 4, 2, 1),
        nn.BatchNorm2d(second),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(second * 7 * 7, 1),
    )
    return generator.apply(initialise), discriminator.apply(initialise)


def train(images, seconds):
    """Alternating non-saturating steps until the time is up; returns the generator and steps."""
    generator, discriminator = networks()
    players = [
        torch.optim.Adam(net.parameters(), 2e-4, betas=(0.5, 0.999))
        for net in (generator, discriminator)
    ]
    loss = nn.BCEWithLogitsLoss()
    ones, zeros = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)
    start, steps = time.perf_counter(), 0
    while True:
        for rows in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            if time.perf_counter() - start > seconds:
                return generator, steps
            real = images[rows].float() / 127.5 - 1
            fake = generator(torch.randn(BATCH, LATENT))
            players[1].zero_grad()
            judged = loss(discriminator(real), ones) + loss(discriminator(fake.detach()), zeros)
            judged.backward()
            players[1].step()
            players[0].zero_grad()
            loss(discriminator(fake), ones).backward()
            players[0].step()
            steps += 1


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--num", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    config = configs.base()
    config.dataset.name = "fashion_mnist"
    source = catalogue.load(config.dataset).splits["train"]
    images = np.stack([source[i]["image"] for i in range(len(source))])
    images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    generator, steps = train(images, options.seconds)
    generator.eval()
    with torch.no_grad():
        made = torch.cat(
            [generator(torch.randn(100, LATENT)) for _ in range(-(-options.num // 100))]
        )
    made = ((made[: options.num] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    np.savez_compressed(options.output, samples=made.permute(0, 2, 3, 1).numpy())
    rate = steps * BATCH / options.seconds
    print(f"{steps} steps in {options.seconds:g} s, {rate:.0f} images/s; wrote {options.output}")


if __name__ == "__main__":
    main()
