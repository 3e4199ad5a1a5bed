"""The importance-weighted autoencoder of configs/iwae.py in plain PyTorch, timed for some seconds.

The peer of benchmarks/iwae_race.py, which starts it: the same networks, bound, binarisation at each
draw, batch and optimizer, the images in memory. Prints one line of JSON. Needs PyTorch, numpy and
nothing of genjax:

  python benchmarks/torch_iwae.py --images=images.npy --samples=50 [--compile] [--adam=fused]
  python benchmarks/torch_iwae.py --check=golden.npz     # loss and gradients against a file's
"""

import argparse
import json
import sys

import numpy as np
from racing import measured

try:
    import torch
    from torch import nn
except ModuleNotFoundError:
    sys.exit("error: this benchmark needs PyTorch: pip install -e '.[parity]'")

BATCH, PIXELS, HIDDEN, LATENT = 100, 784, 200, 50
LIMIT = 10.0  # log scales stay within +- this
ADAM = {"default": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def network(inputs, outputs):
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN),
        nn.Tanh(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.Tanh(),
        nn.Linear(HIDDEN, outputs),
    )


class Autoencoder(nn.Module):
    """784-200-200-50-200-200-784, tanh."""

    def __init__(self):
        super().__init__()
        self.encoder = network(PIXELS, 2 * LATENT)
        self.decoder = network(LATENT, PIXELS)

    def loss(self, x, noise):
        """Minus the bound (Burda et al. 2016, eq. 8) of x [B, D] with noise [B, S, Z]."""
        mean, log_scale = self.encoder(x)[:, None].chunk(2, -1)
        log_scale = LIMIT * torch.tanh(log_scale / LIMIT)
        z = torch.addcmul(mean, log_scale.exp(), noise)
        # Minus log p(x | z): faster in eager mode than binary_cross_entropy_with_logits.
        missing = nn.functional.softplus((1 - 2 * x[:, None]) * self.decoder(z))
        # log p(z) - log q(z | x); their constants cancel.
        ratio = 0.5 * (noise.square() - z.square()) + log_scale
        weights = ratio.sum(-1) - missing.sum(-1)
        return -(torch.logsumexp(weights, 1) - np.log(noise.shape[1])).mean()

    def forward(self, pixels, samples):
        """The loss of bytes [B, D], binarised here, with fresh noise."""
        x = torch.bernoulli(pixels.float() / 255)
        return self.loss(x, torch.randn(len(x), samples, LATENT))


def batches(images):
    """Rows in a new order in each epoch, for ever."""
    while True:
        yield from torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]


def timed(images, samples, compiled, adam, seconds):
    """Steps a second and CPU time a step."""
    model = Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, eps=1e-4, **ADAM[adam])
    loss = torch.compile(model) if compiled else model

    rows = batches(images)

    def step():
        optimizer.zero_grad()
        loss(images[next(rows)], samples).backward()
        optimizer.step()

    return measured(step, seconds)


def check(path):
    """How far a file's loss and gradients, and ours in float32, are from ours in float64.

    Of the file's parameters, x and noise. The largest difference of an array over its largest
    value; of the gradients, the worst array's.
    """
    given = {name: torch.from_numpy(value) for name, value in np.load(path).items()}

    def found(dtype):
        model = Autoencoder().to(dtype)
        model.load_state_dict({name: given[name] for name in model.state_dict()})
        value = model.loss(given["x"].to(dtype), given["noise"].to(dtype))
        value.backward()
        slopes = {f"gradient {name}": p.grad for name, p in model.named_parameters()}
        return {"loss": value.detach()} | slopes

    exact, gaps = found(torch.float64), {}
    for side, values in (("genjax", given), ("torch", found(torch.float32))):
        gap = {
            n: float((values[n] - one).abs().max() / one.abs().max()) for n, one in exact.items()
        }
        gaps[side] = {"loss": gap.pop("loss"), "gradients": max(gap.values())}
    return gaps


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", default="")
    parser.add_argument("--images", default="")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--adam", choices=ADAM, default="default")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    if options.check:
        print(json.dumps(check(options.check)))
        return
    images = torch.from_numpy(np.load(options.images))
    print(
        json.dumps(timed(images, options.samples, options.compile, options.adam, options.seconds))
    )


if __name__ == "__main__":
    main()
