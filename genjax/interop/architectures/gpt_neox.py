"""GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): keys of `GPTNeoXConfig`."""

from genjax.interop.architecture import Architecture, Part
from genjax.interop.config_parts import biases, rope

RESIDUAL = Part(
    lambda settings, *_: {
        "residual": "parallel" if settings.take("use_parallel_residual", True) else "sequential"
    },
    lambda o, _: {"use_parallel_residual": o["residual"] == "parallel"},
)

ARCHITECTURE = Architecture(
    model="GPTNeoXForCausalLM",
    vocabulary_size=("vocab_size", 50432),
    length=("max_position_embeddings", 2048),
    keys={
        "width": ("hidden_size", 6144),
        "depth": ("num_hidden_layers", 44),
        "heads": ("num_attention_heads", 64),
        "hidden": ("intermediate_size", 24576),
        "activation": ("hidden_act", "gelu"),
        "norm_eps": ("layer_norm_eps", 1e-5),
        "tied": ("tie_word_embeddings", False),
        "dropout": ("hidden_dropout", 0.0),
        "attention_dropout": ("attention_dropout", 0.0),
    },
    fixed={"norm": "layer", "positions": "rotary"},
    parts=(
        rope(0.25, ("rotary_emb_base", "rotary_pct")),
        biases({"attention_bias": True}, {(True,): "all", (False,): "mlp"}),
        RESIDUAL,
    ),
    allowed={
        **{"rope_base": (), "rope_scaling": (), "rotary_share": (), "bias_of": ("all", "mlp")},
        "residual": ("parallel", "sequential"),
    },
    prefix="gpt_neox.",
    modules={
        "embed": ("embed_in",),
        "body/blocks/norm1": ("layers.{}.input_layernorm",),
        "body/blocks/qkv": ("layers.{}.attention.query_key_value",),
        "body/blocks/merge": ("layers.{}.attention.dense",),
        "body/blocks/norm2": ("layers.{}.post_attention_layernorm",),
        "body/blocks/up": ("layers.{}.mlp.dense_h_to_4h",),
        "body/blocks/down": ("layers.{}.mlp.dense_4h_to_h",),
        "body/norm": ("final_layer_norm",),
        "head": ("embed_out",),
    },
    by_head=True,
    added={"bias": True},
    ignored=r"(layers\.\d+\.attention\.)?((masked_)?bias|rotary_emb\.inv_freq)",
)
