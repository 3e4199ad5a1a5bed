"""Runs diffusers' SD3 transformer on random weights, counts published sizes, writes `mmdit.npz`.

    /path/to/parity/bin/python tests/golden/make_mmdit.py [OUTPUT.npz]

The peer's positions are cut out of the middle of a larger grid, in steps of `sample_size` over
`pos_embed_max_size` patches. Here the grid is the image's own, and so the positions are whole
numbers from 0.
"""

from __future__ import annotations

import pathlib
import sys

import diffusers
import numpy as np
import torch

B, S, SIDE = 2, 4, 6
# Depth, which is the number of heads too, and whether queries and keys are normalised: the configs
# of stabilityai/stable-diffusion-3-medium-diffusers and stable-diffusion-3.5-large.
PUBLISHED = {"medium": (24, None), "large": (38, "rms_norm")}
SMALL = {"plain": (3, None), "normalised": (2, "rms_norm")}


def transformer(depth: int, heads: int, size: int, **options) -> diffusers.SD3Transformer2DModel:
    """The peer, its context as wide as its images."""
    return diffusers.SD3Transformer2DModel(
        num_layers=depth,
        num_attention_heads=heads,
        attention_head_dim=size,
        caption_projection_dim=heads * size,
        patch_size=2,
        **options,
    ).eval()


def outputs(depth: int, qk_norm: str | None, generator: torch.Generator) -> dict[str, np.ndarray]:
    """Weights, all that goes in, and what comes out."""
    net = transformer(
        depth,
        2,
        8,
        qk_norm=qk_norm,
        sample_size=SIDE,
        pos_embed_max_size=SIDE // 2,
        in_channels=3,
        out_channels=4,
        joint_attention_dim=5,
        pooled_projection_dim=7,
    )

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    with torch.no_grad():
        for name, parameter in net.named_parameters():
            rows = parameter[0].numel() if parameter.ndim > 1 else 10
            value = draw(*parameter.shape) / rows**0.5 + float("norm_" in name and "attn" in name)
            parameter.copy_(value.half())  # which halves the file
        given = {"x": draw(B, 3, SIDE, SIDE), "context": draw(B, S, 5), "vector": draw(B, 7)}
        given["t"] = torch.tensor([3.5, 640.0])
        y = net(given["x"], given["context"], given["vector"], given["t"]).sample
    arrays = {f"net/{name}": p.detach().half().numpy() for name, p in net.named_parameters()}
    return arrays | {name: value.numpy() for name, value in (given | {"y": y}).items()}


def parameters(depth: int, qk_norm: str | None) -> np.ndarray:
    """How many a published size has."""
    with torch.device("meta"):
        net = transformer(
            depth,
            depth,
            64,
            qk_norm=qk_norm,
            sample_size=128,
            pos_embed_max_size=192,
            in_channels=16,
            out_channels=16,
            joint_attention_dim=4096,
            pooled_projection_dim=2048,
        )
    return np.int64(sum(p.numel() for p in net.parameters()))


def main(path: pathlib.Path) -> None:
    """Runs it and writes."""
    arrays = {"peer": f"diffusers {diffusers.__version__}, torch {torch.__version__}"}
    generator = torch.Generator().manual_seed(0)
    for name, options in SMALL.items():
        arrays |= {f"{name}/{k}": v for k, v in outputs(*options, generator).items()}
    arrays |= {f"parameters/{name}": parameters(*size) for name, size in PUBLISHED.items()}
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    default = pathlib.Path(__file__).with_name("mmdit.npz")
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default)
