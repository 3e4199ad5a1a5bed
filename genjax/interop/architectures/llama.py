"""Llama 1 to 3 (Touvron et al. 2023) and what is written like it: keys of `LlamaConfig`."""

from genjax.interop.architecture import Architecture
from genjax.interop.config_parts import biases, rope

BIASES = {
    (False, False): "",
    (True, True): "all",
    (True, False): "attention",
    (False, True): "mlp",
}
# Any values that a part reads and writes are allowed.
ROTARY = {"rope_base": (), "rope_scaling": ()}

ARCHITECTURE = Architecture(
    model="LlamaForCausalLM",
    vocabulary_size=("vocab_size", 32000),
    length=("max_position_embeddings", 2048),
    keys={
        "width": ("hidden_size", 4096),
        "depth": ("num_hidden_layers", 32),
        "heads": ("num_attention_heads", 32),
        "kv_heads": ("num_key_value_heads", lambda o: o["heads"]),
        "head_size": ("head_dim", lambda o: o["width"] // o["heads"]),
        "hidden": ("intermediate_size", 11008),
        "activation": ("hidden_act", "silu"),
        "norm_eps": ("rms_norm_eps", 1e-6),
        "tied": ("tie_word_embeddings", False),
        "attention_dropout": ("attention_dropout", 0.0),
    },
    fixed={"norm": "rms", "positions": "rotary", "dropout": 0.0},
    parts=(rope(), biases({"attention_bias": False, "mlp_bias": False}, BIASES)),
    allowed={**ROTARY, "bias": (), "bias_of": ("all", "attention", "mlp")},
    prefix="model.",
    modules={
        "embed": ("embed_tokens",),
        "body/blocks/norm1": ("layers.{}.input_layernorm",),
        "body/blocks/qkv": tuple(f"layers.{{}}.self_attn.{x}_proj" for x in "qkv"),
        "body/blocks/merge": ("layers.{}.self_attn.o_proj",),
        "body/blocks/norm2": ("layers.{}.post_attention_layernorm",),
        "body/blocks/up": ("layers.{}.mlp.up_proj",),
        "body/blocks/gate": ("layers.{}.mlp.gate_proj",),
        "body/blocks/down": ("layers.{}.mlp.down_proj",),
        "body/norm": ("norm",),
        "head": ("lm_head",),
    },
)
