"""Qwen 3 (Yang et al. 2025): each head's queries and keys are normalised. Keys of `Qwen3Config`."""

from genjax.interop.architectures import llama
from genjax.interop.config_parts import biases, rope, window

ARCHITECTURE = llama.ARCHITECTURE._replace(
    model="Qwen3ForCausalLM",
    vocabulary_size=("vocab_size", 151936),
    length=("max_position_embeddings", 32768),
    keys=llama.ARCHITECTURE.keys
    | {
        "hidden": ("intermediate_size", 22016),
        "head_size": ("head_dim", 128),
        "kv_heads": ("num_key_value_heads", 32),
    },
    fixed={**llama.ARCHITECTURE.fixed, "qk_norm": True},
    parts=(
        rope(),
        biases({"attention_bias": False}, {(False,): "", (True,): "attention"}),
        window(4096, chosen=True),
    ),
    allowed={**llama.ROTARY, "window": (), "bias": (), "bias_of": ("all", "attention")},
    modules={
        **llama.ARCHITECTURE.modules,
        "body/blocks/query_norm": ("layers.{}.self_attn.q_norm",),
        "body/blocks/key_norm": ("layers.{}.self_attn.k_norm",),
    },
)
