"""Runs diffusers' AutoencoderKL and a PatchGAN in PyTorch, and writes `autoencoder_kl.npz`.

    /path/to/parity/bin/python tests/golden/make_autoencoder_kl.py [OUTPUT.npz]

The weights are megabytes, so the file has their names and shapes in genjax, and a seed: `draw` here
and in tests/networks/test_autoencoder_kl_networks.py makes the same arrays. The widths are the
smallest of which genjax's group norm makes the peer's 32 groups. Arrays are in genjax's layouts:
images [B, H, W, C], kernels [k, k, in, out].
"""

from __future__ import annotations

import json
import pathlib
import re
import sys

import numpy as np
import torch
from torch import nn

# The peer does without torchvision, which PyPI has for CUDA only: beside a torch for CPUs it does
# not load.
sys.modules["torchvision"] = None

import diffusers  # noqa: E402
from diffusers.models.autoencoders.vae import (  # noqa: E402
    DiagonalGaussianDistribution,
)

SEED = 0
CHANNELS, BLOCKS, LATENT = (128, 160), 1, 3
PATCH = 4  # width of the discriminator's first layer
PATCH_SIZES = ((16, 16), (15, 17))
PATCH_LAYERS = 2

# What genjax calls the peer's modules: every pattern is replaced, in this order.
NAMES = (
    (r"^quant_conv", "encoder.quant"),
    (r"^post_quant_conv", "decoder.quant"),
    (r"conv_in", "stem"),
    (r"conv_norm_out", "norm"),
    (r"conv_out", "out"),
    (r"conv_shortcut", "shortcut"),
    (r"down_blocks", "down"),
    (r"up_blocks", "up"),
    (r"mid_block\.resnets\.0", "middle.block1"),
    (r"mid_block\.resnets\.1", "middle.block2"),
    (r"mid_block\.attentions\.0", "middle.attention"),
    (r"resnets", "blocks"),
    (r"(down|up)samplers\.0\.conv", "resample"),
    (r"group_norm", "norm"),
    (r"to_q", "query"),
    (r"to_k", "key"),
    (r"to_v", "value"),
    (r"to_out\.0", "out"),
)


def named(module: str) -> str:
    """genjax's path of one of the autoencoder's modules."""
    for pattern, name in NAMES:
        module = re.sub(pattern, name, module)
    return module.replace(".", "/")


def draw(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Weights with which activations neither die nor explode."""
    rng, drawn = np.random.default_rng(SEED), {}
    for name, shape in shapes.items():
        if name.endswith("kernel"):
            scale = 1 / np.sqrt(np.prod(shape[:-1]))
            drawn[name] = rng.standard_normal(shape, np.float32) * np.float32(scale)
        elif name.endswith(("scale", "var")):
            drawn[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            drawn[name] = rng.normal(0.0, 0.1, shape).astype(np.float32)
    return drawn


def leaves(net: nn.Module, rename) -> dict[str, torch.Tensor]:
    """The tensors of a network by genjax's names, in its layouts: views, to be filled."""
    found = {}
    for name, module in net.named_modules():
        path = rename(name)
        if isinstance(module, nn.Conv2d):
            found[f"{path}/kernel"] = module.weight.data.permute(2, 3, 1, 0)
        elif isinstance(module, nn.Linear):
            found[f"{path}/kernel"] = module.weight.data.T
        elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
            found[f"{path}/scale"] = module.weight.data
            if isinstance(module, nn.BatchNorm2d):
                found[f"{path}/mean"] = module.running_mean
                found[f"{path}/var"] = module.running_var
        else:
            continue
        if module.bias is not None:
            found[f"{path}/bias"] = module.bias.data
    return dict(sorted(found.items()))


def fill(net: nn.Module, rename) -> str:
    """Draws the weights of a network; their names and shapes as JSON."""
    tensors = leaves(net, rename)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for name, value in draw(shapes).items():
        tensors[name].copy_(torch.tensor(value))
    return json.dumps(shapes)


def patches() -> nn.Sequential:
    """C4-C8 of stride 2, C16 and the logits of stride 1, by Isola et al. 2017, appendix 6.1.2."""
    layers, width = [nn.Conv2d(3, PATCH, 4, 2, 1), nn.LeakyReLU(0.2)], PATCH
    for stride in (*(2,) * (PATCH_LAYERS - 1), 1):
        layers += [
            nn.Conv2d(width, 2 * width, 4, stride, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2),
        ]
        width *= 2
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))


def patch_name(module: str) -> str:
    """genjax's path of one of the discriminator's modules."""
    index = int(module or 0)
    return f"norms/{index // 3}" if index % 3 == 0 and index else f"convs/{(index + 1) // 3}"


def nhwc(x: torch.Tensor) -> np.ndarray:
    """[B, C, H, W] to [B, H, W, C]."""
    return x.permute(0, 2, 3, 1).numpy().copy()


@torch.no_grad()
def main(path: pathlib.Path) -> None:
    """Encodes, decodes, judges and writes."""
    torch.manual_seed(0)
    net = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
        block_out_channels=CHANNELS,
        layers_per_block=BLOCKS,
        latent_channels=LATENT,
    ).eval()
    arrays = {
        "peer": f"diffusers {diffusers.__version__}, torch {torch.__version__}",
        "seed": SEED,
        "channels": CHANNELS,
        "blocks": BLOCKS,
        "shapes": fill(net, named),
    }
    x, z = torch.rand(2, 3, 12, 8) * 2 - 1, torch.randn(2, LATENT, 6, 4)
    arrays |= {"x": nhwc(x), "moments": nhwc(net.encode(x).latent_dist.parameters)}
    arrays |= {"z": nhwc(z), "decoded": nhwc(net.decode(z).sample)}

    moments = torch.randn(4, 2 * LATENT, 2, 2)
    moments[:, LATENT:] *= torch.tensor([1.0, 3.0, 30.0, 1e6])[:, None, None, None]
    posterior = DiagonalGaussianDistribution(moments)
    arrays |= {"posterior/moments": nhwc(moments), "posterior/kl": posterior.kl().numpy()}
    arrays |= {"posterior/std": nhwc(posterior.std)}

    judge = patches()
    arrays |= {"patch/shapes": fill(judge, patch_name), "patch/channels": PATCH}
    arrays |= {"patch/layers": PATCH_LAYERS}
    for number, size in enumerate(PATCH_SIZES):
        image = torch.rand(2, 3, *size) * 2 - 1
        arrays |= {f"patch/{number}/x": nhwc(image)}
        arrays |= {f"patch/{number}/eval": judge.eval()(image)[:, 0].numpy()}
        kept = {name: value.clone() for name, value in judge.named_buffers()}
        arrays |= {f"patch/{number}/train": judge.train()(image)[:, 0].numpy()}
        for name, value in judge.named_buffers():
            value.copy_(kept[name])
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    here = pathlib.Path(__file__)
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here.with_name("autoencoder_kl.npz"))
