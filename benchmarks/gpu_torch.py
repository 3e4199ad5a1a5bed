"""PyTorch's side of benchmarks/gpu.sh: prints one line of JSON for each part that it does.

Needs PyTorch, numpy and nothing of genjax:

  python benchmarks/gpu_torch.py warm --networks=gpt2 [--tiny] [--mode=default]
  python benchmarks/gpu_torch.py race --networks=gpt2 [--tiny] [--mode=default] [--seconds=8]
  python benchmarks/gpu_torch.py same --folder=DIR      # what gpu_genjax.py has put there
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import gpu_sizes
from gpu_parts import Differs, part
from gpu_timing import timed
from racing import among, several

try:
    import torch
    import torch_dit
    import torch_gan
    import torch_unet
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode
    from torch_checks import check
    from torch_steps import Ready, dcgan, denoising, gpt
except ModuleNotFoundError:
    sys.exit("error: this benchmark needs PyTorch: pip install -e '.[parity]'")

SAME = 2e-4  # the largest relative gap of losses and gradients in float32
IMAGES = ("unet", "dcgan")  # networks of convolutions: with channels last
COUNTED = 2  # examples of the step whose FLOPs are counted


def peer(network, sizes, ready):
    batch = sizes["batch"]
    if network == "gpt2":
        size = [sizes[name] for name in ("depth", "heads", "width", "length")]
        return gpt(size, sizes["vocabulary"], batch, bias=True, rate=6e-4, b2=0.95)(ready)
    shape = (sizes["colors"], sizes["side"], sizes["side"])
    options = {"side": sizes["side"], "colors": sizes["colors"]}
    if network == "dcgan":
        options |= {key: sizes[key] for key in ("channels", "levels")}
        return dcgan(partial(torch_gan.Game, **options), shape, batch)(ready)
    if network == "dit":
        options |= {key: sizes[key] for key in ("width", "depth", "heads", "patch")}
        return denoising(partial(torch_dit.DiT, **options), shape, batch)(ready)
    keys = ("channels", "multipliers", "blocks", "attention")
    options |= {"patch": 1, "rate": sizes["dropout"]} | {key: sizes[key] for key in keys}
    return denoising(partial(torch_unet.UNet, **options), shape, batch, 2e-4, 0.9999)(ready)


def racer(network, tiny, compiled, mode, device):
    """The peer that is raced: in bfloat16."""
    torch.set_float32_matmul_precision("high")
    layout = torch.channels_last if network in IMAGES else torch.contiguous_format
    ready = Ready(compiled, True, layout, device, mode)
    return peer(network, gpu_sizes.sizes(network, tiny), ready)


def warm(*settings):
    """Compiles what `race` calls, for the cache of compiled programs."""
    racer(*settings).step()
    return {}


def race(network, tiny, compiled, mode, device, seconds):
    """The time and memory of a training step."""
    racing, cuda = racer(network, tiny, compiled, mode, device), device == "cuda"
    result = timed(racing.step, torch.cuda.synchronize if cuda else lambda: None, seconds)
    return result | {
        "compiled": compiled,
        "batch": racing.batch,
        "parameters": sum(p.numel() for p in racing.model.parameters()),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }


def flops(network, tiny, device):
    """The FLOPs of a step's products and convolutions, as torch counts them."""
    sizes = gpu_sizes.sizes(network, tiny)
    small = peer(network, sizes | {"batch": COUNTED}, Ready(device=device))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        small.step()
    return {"flops": counter.get_total_flops() / COUNTED * sizes["batch"]}


def same(network, folder, device):
    """The gaps between both sides' losses and gradients, of the same parameters and noise.

    Raises:
      Differs: one is larger than `SAME`.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    path = Path(folder) / f"{network}.npz"
    checked = peer(network, gpu_sizes.sizes(network, tiny=True), Ready(device=device))
    theirs, ours = check(checked, path, device), json.loads(path.with_suffix(".json").read_text())
    if ours["norms"].keys() != theirs["norms"].keys():
        odd = sorted(ours["norms"].keys() ^ theirs["norms"].keys())
        raise ValueError(f"parameters of one side alone: {odd}")
    least = 1e-3 * max(ours["norms"].values())  # some are nothing but rounding
    result = {
        "loss": max(abs(v / theirs["losses"][n] - 1) for n, v in ours["losses"].items()),
        "gradient": max(
            abs(ours["norms"][n] - norm) / max(norm, least) for n, norm in theirs["norms"].items()
        ),
    }
    if not max(result.values()) <= SAME:
        raise Differs(f"{network}: both sides should agree to {SAME}: {result}", result)
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("warm", "race", "same"))
    parser.add_argument(
        "--networks", type=several(among(gpu_sizes.NETWORKS)), default=gpu_sizes.NETWORKS
    )
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--mode", default="default", help="of torch.compile")
    parser.add_argument("--folder", default=".")
    flags = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in flags.networks:
        if flags.what == "same":
            part(f"same/{name}", partial(same, name, flags.folder, device))
            continue
        settings = (name, flags.tiny, not flags.eager, flags.mode, device)
        if flags.what == "warm":
            part(f"torch_warm/{name}", partial(warm, *settings))
            continue
        part(f"torch/{name}", partial(race, *settings, flags.seconds))
        part(f"torch_flops/{name}", partial(flops, name, flags.tiny, device))


if __name__ == "__main__":
    main()
