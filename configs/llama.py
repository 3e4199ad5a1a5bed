"""A decoder as in Llama (Touvron et al. 2023): RMS norm, rotary positions, SwiGLU, grouped queries.

Default: Moby-Dick and 4,096 byte-pair tokens, 6 layers of width 128.
  command    NPROC=1 launch/local.sh --config=configs/llama.py
  hardware   one CPU core of two
  time       24 minutes
  score      validation loss 4.701 nats a token, 1.903 bits a byte

Presets, as in --config=configs/llama.py:tiny; those of the published sizes are for your own
text (--config.dataset.path) on machines with enough memory, sharded over all devices; not run by
us:
  tiny       a very small model of Python's standard library, byte by byte: a test of the
             installation in about a minute
  1b         Llama 3.2 1B
  7b         Llama 2 7B
  70b        Llama 2 70B
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

GPT = base.read_module(Path(__file__).with_name("gpt.py"))


def get_config() -> ConfigDict:
    """moby_dick, for two CPU cores."""
    config = GPT.get_config()
    config.dataset.name = "moby_dick"
    config.optimizer.learning_rate = 1e-3
    config.model.lm = ConfigDict(
        {
            "width": 128,
            "depth": 6,
            "heads": 4,
            "kv_heads": 2,
            "hidden": 344,
            "activation": "swiglu",
            "norm": "rms",
            "positions": "rotary",
            "rope_base": 10_000.0,
            "rope_scaling": (),
            "bias": False,
            "tied": True,
            "dropout": 0.2,
            "init_std": 0.02,
            "remat": "none",
        }
    )
    return config


def published(length: int, width: int, depth: int, heads: int, kv_heads: int, hidden: int) -> dict:
    """Makes the settings that the presets of published sizes share."""
    return {
        "dataset.name": "text",
        "dataset.validation": "1_percent",
        "dataset.text.length": length,
        "batch_size": 1024,
        "accumulation": 4,  # on 256 devices: one sequence per device at a time
        "duration": "100000_steps",
        "precision": "bfloat16",
        "mesh.data": 1,
        "mesh.fsdp": -1,
        "optimizer.learning_rate": 3e-4,
        "optimizer.b2": 0.95,
        "schedule.warmup": "2000_steps",
        "evals.every": "2000_steps",
        "evals.limit": 2048,
        "evals.batch_size": 256,
        "checkpoint.every": "1000_steps",
        "model.lm.width": width,
        "model.lm.depth": depth,
        "model.lm.heads": heads,
        "model.lm.kv_heads": kv_heads,
        "model.lm.hidden": hidden,
        "model.lm.dropout": 0.0,
        "model.lm.remat": "dots",
    }


PRESETS = {
    "tiny": GPT.PRESETS["tiny"] | {"model.lm.hidden": 64, "model.lm.kv_heads": 1},
    "1b": published(8192, 2048, 16, 32, 8, 8192)
    | {
        "dataset.text.vocabulary_size": 128_256,
        "model.lm.rope_base": 500_000.0,
        "model.lm.rope_scaling": ("llama3", 32.0, 1.0, 4.0, 8192),
    },
    "7b": published(4096, 4096, 32, 32, 32, 11_008)
    | {"dataset.text.vocabulary_size": 32_000, "model.lm.tied": False},
    "70b": published(4096, 8192, 80, 64, 8, 28_672)
    | {"dataset.text.vocabulary_size": 32_000, "model.lm.tied": False, "model.lm.remat": "full"},
}
