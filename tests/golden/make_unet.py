"""Runs diffusers' UNet2DModel on weights drawn by their names, and writes `unet.npz`.

    /path/to/parity/bin/python tests/golden/make_unet.py [OUTPUT.npz]

The peer's options are those by which it computes what genjax.networks.unet does: sines before
cosines and frequencies down to 1e-4 exactly, zeros at the far end alone under a stride, epsilon of
1e-6. With 128 channels everywhere both have 32 groups in a norm; elsewhere the peer's number of
groups is one for all widths, genjax's goes with the width.
"""

from __future__ import annotations

import pathlib
import sys
import zlib

import numpy as np
import torch
from diffusers import UNet2DModel


def drawn(name, shape):
    """The weight of a name: tests/networks/test_unet.py draws it in the same way."""
    made = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 1:
        return (0.1 * made + ("norm" in name and name.endswith("weight"))).astype(np.float32)
    return (made / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def main():
    output = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else __file__).with_suffix(".npz")
    if len(sys.argv) < 2:
        output = pathlib.Path(__file__).with_name("unet.npz")
    net = UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=3,
        freq_shift=1,
        flip_sin_to_cos=False,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(128, 128),
        layers_per_block=1,
        downsample_padding=0,
        attention_head_dim=32,
        norm_num_groups=32,
        norm_eps=1e-6,
    )
    weights = {
        name: torch.from_numpy(drawn(name, tuple(value.shape)))
        for name, value in net.state_dict().items()
    }
    net.load_state_dict(weights)
    x = np.random.default_rng(0).standard_normal((2, 2, 8, 8)).astype(np.float32)
    t = np.asarray([3.0, 750.0], np.float32)
    with torch.no_grad():
        y = net(torch.from_numpy(x), torch.from_numpy(t)).sample.numpy()
    count = sum(value.numel() for value in weights.values())
    moved = (a.transpose(0, 2, 3, 1) for a in (x, y))
    np.savez_compressed(output, **dict(zip(("x", "y"), moved, strict=True)), t=t, parameters=count)


if __name__ == "__main__":
    main()
