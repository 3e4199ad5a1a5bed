"""Mistral (Jiang et al. 2023): a Llama with a sliding window. Keys of `MistralConfig`."""

from genjax.interop.architectures import llama
from genjax.interop.config_parts import rope, window

ARCHITECTURE = llama.ARCHITECTURE._replace(
    model="MistralForCausalLM",
    length=("max_position_embeddings", 4096 * 32),
    keys=llama.ARCHITECTURE.keys
    | {"hidden": ("intermediate_size", 14336), "kv_heads": ("num_key_value_heads", 8)},
    fixed={**llama.ARCHITECTURE.fixed, "bias": False},
    parts=(rope(), window(4096)),
    allowed={**llama.ROTARY, "window": ()},
)
