"""Gemma 1 (Gemma Team 2024): scaled embeddings, GeGLU and norms of 1 + w. Keys of `GemmaConfig`."""

import math

from genjax.checks import one_of
from genjax.interop.architecture import Options, Part, Settings
from genjax.interop.architectures import llama
from genjax.interop.config_parts import biases, rope


def _activation(settings: Settings, options: Options, length: int) -> Options:
    """The activation by `hidden_activation`, which older files have and which comes first."""
    known, key = llama.ARCHITECTURE.activations(), "hidden_activation"
    if settings.values.get(key) is None:
        return {}
    value = settings.take(key, "")
    one_of(f"{settings.path}: {key}", value, tuple(known))
    return {"activation": known[value]}


ARCHITECTURE = llama.ARCHITECTURE._replace(
    model="GemmaForCausalLM",
    vocabulary_size=("vocab_size", 256000),
    length=("max_position_embeddings", 8192),
    keys={
        "width": ("hidden_size", 3072),
        "depth": ("num_hidden_layers", 28),
        "heads": ("num_attention_heads", 16),
        "kv_heads": ("num_key_value_heads", 16),
        "head_size": ("head_dim", 256),
        "hidden": ("intermediate_size", 24576),
        "activation": ("hidden_act", "gelu_pytorch_tanh"),
        "norm_eps": ("rms_norm_eps", 1e-6),
        "tied": ("tie_word_embeddings", True),
        "attention_dropout": ("attention_dropout", 0.0),
    },
    fixed={
        **llama.ARCHITECTURE.fixed,
        "norm_offset": 1.0,
        "embed_scale": lambda o: math.sqrt(o["width"]),
    },
    parts=(
        rope(),
        biases({"attention_bias": False}, {(False,): "", (True,): "attention"}),
        Part(_activation, lambda *_: {}),
    ),
    allowed={**llama.ROTARY, "bias": (), "bias_of": ("all", "attention")},
    only={"use_bidirectional_attention": False},
)
