"""What is said of a peer of benchmarks/torch_steps.py before the race, and of the machine."""

import time

import numpy as np
import torch
import torch_lm
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def facts(peer):
    """Parameters, batch, optimizers, and the GFLOP of products and convolutions of a step."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        peer.step()
    return {
        "parameters": sum(p.numel() for p in peer.model.parameters()),
        "batch": peer.batch,
        "optimizers": {name: player.described() for name, player in peer.players.items()},
        "gflop": counter.get_total_flops() / 1e9,
    }


def carry(model, given):
    """Puts genjax's parameters, by their paths, into the modules of those names.

    Returns:
      path -> parameter.
    """
    found = {}
    for place, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            names = ("kernel", "scale") if name == "weight" else (name,)
            paths = [f"{place}.{n}".replace(".", "/") for n in names]
            path = next(path for path in paths if path in given)
            value = given[path]
            if isinstance(module, nn.ConvTranspose2d) and value.ndim == 4:
                value = value.flip(0, 1).permute(2, 3, 0, 1)
            elif value.ndim == 4:
                value = value.permute(3, 2, 0, 1)
            elif value.ndim == 2:
                value = value.T
            parameter.data.copy_(value)
            found[path] = parameter
    return found


def check(peer, path, device="cpu"):
    """Losses, and the norms of their gradients by genjax's paths, of what is in a file."""
    given = {name: torch.from_numpy(value).to(device) for name, value in np.load(path).items()}
    if isinstance(peer.model, torch_lm.GPT):  # lm_race.py writes these as torch has them
        peer.model.load_state_dict({name: given[name] for name in peer.model.state_dict()})
        parameters = dict(peer.model.named_parameters())
    else:
        parameters = carry(peer.model, given)
    names = {parameter: name for name, parameter in parameters.items()}
    losses, norms = {}, {}
    for name, value in peer.check(given).items():
        losses[name] = float(value.detach())
        own = peer.players[name].all if peer.players else []
        slopes = torch.autograd.grad(value, own) if own else ()
        norms |= {names[p]: float(slope.norm()) for p, slope in zip(own, slopes, strict=True)}
    return {"losses": losses, "norms": norms}


def peak():
    """GFLOP/s of a product of two matrices of 2048 x 2048, by type: the best of ten."""
    found, size = {}, 2048
    for name in ("float32", "bfloat16"):
        a, b = (torch.randn(size, size).to(getattr(torch, name)) for _ in range(2))
        times = []
        for _ in range(10):
            start = time.perf_counter()
            torch.mm(a, b)
            times.append(time.perf_counter() - start)
        found[name] = 2 * size**3 / min(times) / 1e9
    return found
