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


def pictures(ready, *shape):
    return ready.placed(torch.randint(256, shape, dtype=torch.uint8, device=ready.device))


def denoising(network, shape=(1, 28, 28), batch=32, rate=1e-3, average=0.999):
    def peer(ready):
        model = ready.placed(torch_unet.Diffusion(network()))
        settings = {"lr": rate, "clip": 1.0, "average": average}
        player = Player(model.denoiser, torch.optim.AdamW, **settings)
        loss, device = ready.function(model), ready.device

        def step():
            noise = ready.placed(torch.randn(batch, *shape, device=device))
            # One timestep of each of `batch` equal parts, as in genjax.
            part = torch.arange(batch, device=device) + torch.rand(batch, device=device)
            index = (part / batch * torch_unet.TIMESTEPS).long()
            index = index.clamp(max=torch_unet.TIMESTEPS - 1)
            player.descend(loss(pictures(ready, batch, *shape), index, noise))

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


def dcgan(game, shape=(1, 28, 28), batch=64):
    def peer(ready):
        model = ready.placed(game())
        settings = {"lr": 2e-4, "betas": (0.5, 0.999)}
        players = {
            "discriminator": Player(model.discriminator, torch.optim.Adam, **settings),
            "generator": Player(model.generator, torch.optim.Adam, average=0.999, **settings),
        }
        judged = ready.function(model.discriminator_loss)
        made = ready.function(model.generator_loss)

        def step():
            z = torch.randn(2, batch, torch_gan.LATENT, device=ready.device)
            players["discriminator"].descend(judged(pictures(ready, batch, *shape), z[0]))
            model.discriminator.requires_grad_(False)
            players["generator"].descend(made(z[1]))
            model.discriminator.requires_grad_(True)

        def check(given):
            z = given["z"]
            judged = model.discriminator_loss(given["image"], z)
            return {"discriminator": judged, "generator": model.generator_loss(z)}

        return Peer(model, batch, players, step, check)

    return peer


def vqvae(ready):
    model, batch = ready.placed(torch_vqvae.Autoencoder()), 128
    player = Player(model.autoencoder, torch.optim.Adam, lr=1e-3, clip=1.0)
    loss = ready.function(model)

    def step():
        drawn = torch.randint(batch * 49, (torch_vqvae.CODES,))
        player.descend(loss(pictures(ready, batch, 1, 28, 28), drawn))

    def check(given):
        for name in ("codes", "sums"):
            getattr(model, name).copy_(given["codes"])
        return {"autoencoder": model(given["image"], torch.arange(torch_vqvae.CODES))}

    return Peer(model, batch, {"autoencoder": player}, step, check)


def gpt(size, values=torch_lm.VALUES, batch=torch_lm.BATCH, bias=False, rate=1e-3, b2=0.99):
    def peer(ready):
        model = ready.placed(torch_lm.GPT(*size, values, bias))
        shape = (batch, size[-1] + 1)
        settings = {"lr": rate, "betas": (0.9, b2), "clip": 1.0}
        player = Player(model, torch.optim.AdamW, matrices=0.1, **settings)
        loss = ready.function(model)

        def step():
            player.descend(loss(torch.randint(values, shape, device=ready.device)))

        def check(given):
            return {"lm": model(given["token"].long())}

        return Peer(model, batch, {"lm": player}, step, check)

    return peer


PEERS = {
    "unet": denoising(torch_unet.UNet),
    "unet_sampling": unet_sampling,
    "dit": denoising(torch_dit.DiT),
    "dcgan": dcgan(torch_gan.Game),
    "vqvae": vqvae,
    **{name: gpt(size) for name, size in SIZES.items()},
}


class Ready(NamedTuple):
    """How a peer computes."""

    compiled: bool = False
    low: bool = False
    layout: torch.memory_format = torch.contiguous_format
    device: str = "cpu"
    mode: str | None = None  # of torch.compile

    def placed(self, x):
        """A model or a tensor [B, C, H, W] on the device and in the layout."""
        if isinstance(x, nn.Module):
            return x.to(self.device, memory_format=self.layout)
        return x.contiguous(memory_format=self.layout)

    def function(self, call, options=None):
        """The function in the type; compiled if that is asked for."""
        if self.compiled:
            call = torch.compile(call, dynamic=False, options=options, mode=self.mode)

        def typed(*given):
            with torch.autocast(self.device, torch.bfloat16, enabled=self.low):
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
