"""The networks of benchmarks/gpu.sh, in the sizes of its race and in those of its checks.

Both sides read them: genjax (gpu_genjax.py) and PyTorch (gpu_torch.py). Needs nothing else.

  unet     the network of configs/ddpm.py:cifar10 (Ho et al. 2020), 35.7M parameters
  dit      DiT-B/2 (Peebles & Xie 2023) without labels, on latents of 32 x 32 x 4
  gpt2     GPT-2 with 124M parameters (Radford et al. 2019), 1,024 tokens. The vocabulary is padded
           from 50,257 to a multiple of 128, as nanoGPT pads it: the head's product is faster so
  dcgan    DCGAN (Radford et al. 2016) on images of 64 x 64 x 3, both players' updates
"""

RACED = {
    "gpt2": {
        "batch": 32,
        "length": 1024,
        "vocabulary": 50_304,
        "width": 768,
        "depth": 12,
        "heads": 12,
    },
    "dit": {
        "batch": 128,
        "side": 32,
        "colors": 4,
        "width": 768,
        "depth": 12,
        "heads": 12,
        "patch": 2,
    },
    "dcgan": {"batch": 128, "side": 64, "colors": 3, "channels": 64, "levels": 4},
    "unet": {
        "batch": 128,
        "side": 32,
        "colors": 3,
        "channels": 128,
        "multipliers": (1, 2, 2, 2),
        "blocks": 2,
        "attention": (16,),
        "dropout": 0.1,
    },
}
# What is checked is small: a CPU has computed it too (tests/golden/make_gpu.py).
CHECKED = {
    "gpt2": {
        "batch": 2,
        "length": 64,
        "vocabulary": 128,
        "width": 64,
        "depth": 2,
        "heads": 2,
    },
    "dit": {
        "batch": 4,
        "side": 16,
        "colors": 4,
        "width": 64,
        "depth": 2,
        "heads": 2,
        "patch": 2,
    },
    "dcgan": {"batch": 4, "side": 16, "colors": 3, "channels": 8, "levels": 2},
    "unet": {
        "batch": 4,
        "side": 16,
        "colors": 3,
        "channels": 16,
        "multipliers": (1, 2),
        "blocks": 1,
        "attention": (8,),
        "dropout": 0.0,
    },
}
NETWORKS = tuple(RACED)


def sizes(network, tiny=False):
    return (CHECKED if tiny else RACED)[network]
