"""Training steps and a sampler in plain PyTorch: the peers of benchmarks/step_race.py.

Prints one line of JSON. Needs PyTorch, numpy and nothing of genjax:

  python benchmarks/torch_steps.py --network=unet [--compile] [--precision=bfloat16]
      [--channels_last] [--seconds=15]
  python benchmarks/torch_steps.py --network=unet --facts    # what the two sides must share
  python benchmarks/torch_steps.py --network=unet --check=golden.npz    # losses and gradients
  python benchmarks/torch_steps.py --peak    # GFLOP/s of a product of matrices
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from racing import measured

try:
    import torch
    import torch_dit
    import torch_gan
    import torch_lm
    import torch_unet
    import torch_vqvae
    from torch import nn
    from torch_checks import check, facts, peak
except ModuleNotFoundError:
    sys.exit("error: this benchmark needs PyTorch: pip install -e '.[parity]'")

SIZES = {"nanogpt": (4, 4, 128, 64), "6x384": (6, 6, 384, 256)}  # as in lm_race.py


class Player:
    """A network's optimizer, its clipping and its average."""

    def __init__(self, network, optimizer, clip=0.0, average=0.0, matrices=0.0, **settings):
        """`matrices` is the decay of whatever has more than one axis; of the rest there is none."""
        self.all = list(network.parameters())
        flat = [p for p in self.all if p.ndim < 2]
        groups = [{"params": [p for p in self.all if p.ndim > 1], "weight_decay": matrices}]
        groups += [{"params": flat, "weight_decay": 0.0}] if flat else []
        self.optimizer = optimizer(groups, fused=True, **settings)
        self.clip, self.decay, self.steps = clip, average, 0
        self.average = [p.detach().clone() for p in self.all] if average else []

    def descend(self, loss):
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self.all, self.clip, foreach=True)
        self.optimizer.step()
        if self.average:
            weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.all], weight)
        self.steps += 1

    def described(self):
        group = self.optimizer.param_groups[0]
        return {
            "name": type(self.optimizer).__name__.lower(),
            "learning_rate": group["lr"],
            "b1": group["betas"][0],
            "b2": group["betas"][1],
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "clip_norm": self.clip,
            "ema": self.decay,
        }


class Peer(NamedTuple):
    """One network at work.

    Attributes:
      model: holds genjax's networks under their names.
      batch: examples of a step.
      players: network -> what trains it.
      step: does one, of a new random batch.
      check: arrays of our golden file -> losses by the network that descends them.
    """

    model: nn.Module
    batch: int
    players: dict[str, Player]
    step: Callable[[], None]
    check: Callable[[dict], dict]


def pictures(ready, batch):
    return ready.placed(torch.randint(256, (batch, 1, 28, 28), dtype=torch.uint8))


def denoising(network):
    def peer(ready):
        model = ready.placed(torch_unet.Diffusion(network()))
        player = Player(model.denoiser, torch.optim.AdamW, lr=1e-3, clip=1.0, average=0.999)
        loss, batch = ready.function(model), 32

        def step():
            noise = ready.placed(torch.randn(batch, 1, 28, 28))
            # One timestep of each of `batch` equal parts, as in genjax.
            index = (torch.arange(batch) + torch.rand(batch)) / batch * torch_unet.TIMESTEPS
            index = index.long().clamp(max=torch_unet.TIMESTEPS - 1)
            player.descend(loss(pictures(ready, batch), index, noise))

        def check(given):
            return {"denoiser": model(given["image"], given["index"].long(), given["noise"])}

        return Peer(model, batch, {"denoiser": player}, step, check)

    return peer


def unet_sampling(ready):
    model, batch = ready.placed(torch_unet.Diffusion(torch_unet.UNet())).eval(), 64
    ddim = ready.function(model.ddim, {"freezing": True})

    def draw(x):
        with torch.no_grad():
            return torch_unet.sample(ddim, x)

    def check(given):
        return {"denoiser": draw(given["noise"]).float().mean()}

    def step():
        draw(ready.placed(torch.randn(batch, 1, 28, 28)))

    return Peer(model, batch, {}, step, check)


def dcgan(ready):
    model, batch = ready.placed(torch_gan.Game()), 64
    settings = {"lr": 2e-4, "betas": (0.5, 0.999)}
    players = {
        "discriminator": Player(model.discriminator, torch.optim.Adam, **settings),
        "generator": Player(model.generator, torch.optim.Adam, average=0.999, **settings),
    }
    judged, made = ready.function(model.discriminator_loss), ready.function(model.generator_loss)

    def step():
        z = [torch.randn(batch, torch_gan.LATENT) for _ in range(2)]
        players["discriminator"].descend(judged(pictures(ready, batch), z[0]))
        model.discriminator.requires_grad_(False)
        players["generator"].descend(made(z[1]))
        model.discriminator.requires_grad_(True)

    def check(given):
        z = given["z"]
        judged = model.discriminator_loss(given["image"], z)
        return {"discriminator": judged, "generator": model.generator_loss(z)}

    return Peer(model, batch, players, step, check)


def vqvae(ready):
    model, batch = ready.placed(torch_vqvae.Autoencoder()), 128
    player = Player(model.autoencoder, torch.optim.Adam, lr=1e-3, clip=1.0)
    loss = ready.function(model)

    def step():
        drawn = torch.randint(batch * 49, (torch_vqvae.CODES,))
        player.descend(loss(pictures(ready, batch), drawn))

    def check(given):
        for name in ("codes", "sums"):
            getattr(model, name).copy_(given["codes"])
        return {"autoencoder": model(given["image"], torch.arange(torch_vqvae.CODES))}

    return Peer(model, batch, {"autoencoder": player}, step, check)


def gpt(size):
    def peer(ready):
        model, length = torch_lm.GPT(*SIZES[size]), SIZES[size][-1]
        settings = {"lr": 1e-3, "betas": (0.9, 0.99), "clip": 1.0}
        player = Player(model, torch.optim.AdamW, matrices=0.1, **settings)
        loss, batch = ready.function(model), torch_lm.BATCH

        def step():
            player.descend(loss(torch.randint(torch_lm.VALUES, (batch, length + 1))))

        def check(given):
            return {"lm": model(given["token"].long())}

        return Peer(model, batch, {"lm": player}, step, check)

    return peer


PEERS = {
    "unet": denoising(torch_unet.UNet),
    "unet_sampling": unet_sampling,
    "dit": denoising(torch_dit.DiT),
    "dcgan": dcgan,
    "vqvae": vqvae,
    **{size: gpt(size) for size in SIZES},
}


class Ready(NamedTuple):
    """How a peer computes."""

    compiled: bool = False
    low: bool = False
    layout: torch.memory_format = torch.contiguous_format

    def placed(self, x):
        """A model or a tensor [B, C, H, W] in the layout."""
        if isinstance(x, nn.Module):
            return x.to(memory_format=self.layout)
        return x.contiguous(memory_format=self.layout)

    def function(self, call, options=None):
        """The function in the type; compiled if that is asked for."""
        call = torch.compile(call, dynamic=False, options=options) if self.compiled else call

        def typed(*given):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.low):
                return call(*given)

        return typed


def timed(options):
    """Examples a second, CPU time of an example, and the seconds of the first step."""
    torch.set_flush_denormal(True)  # as XLA does
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    peer = PEERS[options.network](Ready(options.compile, options.precision == "bfloat16", layout))
    start = time.perf_counter()
    try:
        peer.step()
    except Exception as error:
        if not options.compile:
            raise
        return {"failed": f"{type(error).__name__}: {str(error)[:200]} ... {str(error)[-500:]}"}
    first = time.perf_counter() - start
    return {"first_step": first} | measured(peer.step, options.seconds, peer.batch)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", choices=PEERS, default="unet")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--channels_last", action="store_true")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--facts", action="store_true")
    parser.add_argument("--check", default="")
    parser.add_argument("--peak", action="store_true")
    options = parser.parse_args()
    if options.peak:
        print(json.dumps(peak()))
    elif options.facts:
        print(json.dumps(facts(PEERS[options.network](Ready()))))
    elif options.check:
        print(json.dumps(check(PEERS[options.network](Ready()), options.check)))
    else:
        print(json.dumps(timed(options)))


if __name__ == "__main__":
    main()
