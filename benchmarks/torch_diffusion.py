"""Trains the U-Net of configs/ddpm.py in plain PyTorch for some seconds, and draws samples.

The peer of benchmarks/diffusion_race.py. The recipe is that of denoising-diffusion-pytorch's
trainer: v-prediction under the sigmoid schedule, Adam at 1e-4, an average of 0.995 every 10 steps;
with `--recipe=ours` it is v-prediction under the cosine schedule with the learning rate and the
average of configs/ddpm.py; the rate falls with the seconds in place of the steps.

  python benchmarks/torch_diffusion.py --images=train.npy --output=samples.npz --seconds=600
      [--recipe=ours] [--compile] [--precision=bfloat16] [--samples=5000]
"""

import argparse
import contextlib
import json
import math
import sys
import time

import numpy as np

try:
    import torch
    import torch_unet
    from torch import nn
except ModuleNotFoundError:
    sys.exit("error: this benchmark needs PyTorch: pip install -e '.[parity]'")

BATCH = 32


def sigmoid_log_alpha_bar(start=-3.0, end=3.0, tau=1.0):
    """Of the sigmoid schedule, in float64."""
    time_of = np.arange(torch_unet.TIMESTEPS + 1, dtype=np.float64) / torch_unet.TIMESTEPS
    low, high = (1 / (1 + math.exp(-u / tau)) for u in (start, end))
    alpha_bar = (high - 1 / (1 + np.exp(-(time_of * (end - start) + start) / tau))) / (high - low)
    return np.cumsum(np.log1p(-np.clip(1 - alpha_bar[1:] / alpha_bar[:-1], 0, 0.999)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--recipe", choices=("common", "ours"), default="common")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--compile", action="store_true")
    flags = parser.parse_args()
    begin = time.perf_counter()
    torch.manual_seed(0)
    ours = flags.recipe == "ours"
    if not ours:
        torch_unet.log_alpha_bar = sigmoid_log_alpha_bar
    images = torch.from_numpy(np.load(flags.images))[:, None]
    model = torch_unet.Diffusion(torch_unet.UNet()).to(memory_format=torch.channels_last)
    with torch.no_grad():  # as the paper's code begins
        model.denoiser.head.weight.zero_()
        for module in model.denoiser.modules():
            if isinstance(module, torch_unet.ResidualBlock):
                module.conv2.weight.zero_()
    parameters = list(model.denoiser.parameters())
    rate, decay, every, betas = (
        (1e-3, 0.999, 1, (0.9, 0.999)) if ours else (1e-4, 0.995, 10, (0.9, 0.99))
    )
    optimizer = torch.optim.Adam(parameters, lr=rate, betas=betas, fused=True)
    average = [p.detach().clone() for p in parameters]
    loss = torch.compile(model) if flags.compile else model
    cast = (
        torch.autocast("cpu", torch.bfloat16)
        if flags.precision == "bfloat16"
        else contextlib.nullcontext()
    )
    step = 0
    while (passed := time.perf_counter() - begin) < flags.seconds:
        if ours:
            share = passed / flags.seconds
            warm = min(1.0, (step + 1) / 200)
            optimizer.param_groups[0]["lr"] = rate * warm * 0.5 * (1 + math.cos(math.pi * share))
        batch = images[torch.randint(len(images), (BATCH,))].contiguous(
            memory_format=torch.channels_last
        )
        index = (torch.arange(BATCH) + torch.rand(BATCH)) / BATCH * torch_unet.TIMESTEPS
        index = index.long().clamp(max=torch_unet.TIMESTEPS - 1)
        with cast:
            value = loss(batch, index, torch.randn(BATCH, 1, 28, 28))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % every == 0:
            kept = min(decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - kept)
    trained = time.perf_counter() - begin
    with torch.no_grad(), cast:
        for p, a in zip(parameters, average, strict=True):
            p.copy_(a)
        drawn = []
        while sum(map(len, drawn)) < flags.samples:
            noise = torch.randn(125, 1, 28, 28).contiguous(memory_format=torch.channels_last)
            drawn.append(torch_unet.sample(model.ddim, noise))
    samples = torch.cat(drawn)[: flags.samples].permute(0, 2, 3, 1).numpy()
    np.savez_compressed(flags.output, samples=samples)
    print(json.dumps({"steps": step, "examples_per_second": BATCH * step / trained}))


if __name__ == "__main__":
    main()
