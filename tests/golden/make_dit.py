"""Runs diffusers' DiT on random weights, counts the published sizes, and writes `dit.npz`.

    /path/to/parity/bin/python tests/golden/make_dit.py [OUTPUT.npz]

The peer is told two numbers of the paper's code that its own defaults depart from: frequencies of
the time embedding over 128 instead of 127, and 1e-6 in all layer norms. It holds the embeddings of
time and label once for each block; in the paper's code, and in its published weights, they are one
module, and so they are here.
"""

from __future__ import annotations

import pathlib
import sys

import diffusers
import numpy as np
import torch

B, CLASSES = 3, 5
# Table 1 of the paper: depth, width, heads.
PUBLISHED = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}


def transformer(depth: int, width: int, heads: int, **options) -> diffusers.DiTTransformer2DModel:
    """The peer by the paper's conventions, its embeddings shared."""
    net = diffusers.DiTTransformer2DModel(
        num_layers=depth,
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        norm_eps=1e-6,
        patch_size=2,
        **options,
    )
    shared = net.transformer_blocks[0].norm1.emb
    shared.time_proj.downscale_freq_shift = 0
    for block in net.transformer_blocks:
        block.norm1.emb = shared
    return net.eval()


def outputs(generator: torch.Generator) -> dict[str, np.ndarray]:
    """Weights, what goes in, the null class among the labels, and what comes out."""
    net = transformer(
        2, 16, 2, in_channels=3, out_channels=6, sample_size=6, num_embeds_ada_norm=CLASSES
    )
    with torch.no_grad():
        for parameter in net.parameters():
            rows = parameter[0].numel() if parameter.ndim > 1 else 10
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / rows**0.5)
        x = torch.randn((B, 3, 6, 6), generator=generator)
        t, label = torch.tensor([0.0, 3.5, 640.0]), torch.tensor([0, 3, CLASSES])
        y = net(x, t, label).sample
    arrays = {f"net/{name}": p.detach().numpy() for name, p in net.named_parameters()}
    return arrays | {"x": x.numpy(), "t": t.numpy(), "label": label.numpy(), "y": y.numpy()}


def parameters(depth: int, width: int, heads: int) -> np.ndarray:
    """How many a published size has, for latents of 32 x 32 x 4 and their learned variances."""
    with torch.device("meta"):
        net = transformer(depth, width, heads, in_channels=4, out_channels=8, sample_size=32)
    return np.int64(sum(p.numel() for p in net.parameters()))


def main(path: pathlib.Path) -> None:
    """Runs it and writes."""
    arrays = {"peer": f"diffusers {diffusers.__version__}, torch {torch.__version__}"}
    arrays |= outputs(torch.Generator().manual_seed(0))
    arrays |= {f"parameters/{name}": parameters(*size) for name, size in PUBLISHED.items()}
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    default = pathlib.Path(__file__).with_name("dit.npz")
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default)
