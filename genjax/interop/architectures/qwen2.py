"""Qwen 2 and 2.5 (Yang et al. 2024): queries, keys and values have biases. `Qwen2Config`."""

from genjax.interop.architectures import llama
from genjax.interop.config_parts import rope, window

ARCHITECTURE = llama.ARCHITECTURE._replace(
    model="Qwen2ForCausalLM",
    vocabulary_size=("vocab_size", 151936),
    length=("max_position_embeddings", 32768),
    keys={
        **llama.ARCHITECTURE.keys,
        "hidden": ("intermediate_size", 22016),
        "kv_heads": ("num_key_value_heads", 32),
    },
    fixed={**llama.ARCHITECTURE.fixed, "bias": True, "bias_of": "qkv"},
    parts=(rope(), window(4096, chosen=True)),
    allowed={**llama.ROTARY, "window": ()},
)
