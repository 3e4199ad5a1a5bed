"""Phi 1, 1.5 and 2 (Gunasekar et al. 2023): parallel layers share a norm. Keys of `PhiConfig`."""

from genjax.interop.architecture import Architecture, Part
from genjax.interop.config_parts import rope

ARCHITECTURE = Architecture(
    model="PhiForCausalLM",
    vocabulary_size=("vocab_size", 51200),
    length=("max_position_embeddings", 2048),
    keys={
        "width": ("hidden_size", 2048),
        "depth": ("num_hidden_layers", 24),
        "heads": ("num_attention_heads", 32),
        "kv_heads": ("num_key_value_heads", lambda o: o["heads"]),
        "hidden": ("intermediate_size", 8192),
        "activation": ("hidden_act", "gelu_new"),
        "norm_eps": ("layer_norm_eps", 1e-5),
        "tied": ("tie_word_embeddings", False),
        "dropout": ("resid_pdrop", 0.0),
        "attention_dropout": ("attention_dropout", 0.0),
    },
    fixed={
        **{"norm": "layer", "positions": "rotary", "residual": "parallel_shared"},
        **{"bias": True, "head_bias": True},
    },
    parts=(rope(0.5), Part(lambda *_: {}, lambda o, _: {"embd_pdrop": o["dropout"]})),
    allowed={"rope_base": (), "rope_scaling": (), "rotary_share": ()},
    added={"bias": True, "head_bias": True},
    only={"qk_layernorm": False},
    prefix="model.",
    modules={
        "embed": ("embed_tokens",),
        "body/blocks/norm1": ("layers.{}.input_layernorm",),
        "body/blocks/qkv": tuple(f"layers.{{}}.self_attn.{x}_proj" for x in "qkv"),
        "body/blocks/merge": ("layers.{}.self_attn.dense",),
        "body/blocks/up": ("layers.{}.mlp.fc1",),
        "body/blocks/down": ("layers.{}.mlp.fc2",),
        "body/norm": ("final_layernorm",),
        "head": ("lm_head",),
    },
)
