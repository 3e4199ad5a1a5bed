"""GPT-2 (Radford et al. 2019): keys of `GPT2Config`. Its dropout is `resid_pdrop`."""

from genjax.interop.architecture import Architecture, Part

ARCHITECTURE = Architecture(
    model="GPT2LMHeadModel",
    vocabulary_size=("vocab_size", 50257),
    length=("n_positions", 1024),
    keys={
        "width": ("n_embd", 768),
        "depth": ("n_layer", 12),
        "heads": ("n_head", 12),
        "hidden": ("n_inner", lambda o: 4 * o["width"]),
        "activation": ("activation_function", "gelu_new"),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "tied": ("tie_word_embeddings", True),
        "dropout": ("resid_pdrop", 0.1),
        "attention_dropout": ("attn_pdrop", 0.1),
    },
    fixed={"norm": "layer", "positions": "learned", "bias": True},
    parts=(Part(lambda *_: {}, lambda o, _: {"embd_pdrop": o["dropout"]}),),
    only={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    prefix="transformer.",
    modules={
        "embed": ("wte",),
        "positions": ("wpe",),
        "body/blocks/norm1": ("h.{}.ln_1",),
        "body/blocks/qkv": ("h.{}.attn.c_attn",),
        "body/blocks/merge": ("h.{}.attn.c_proj",),
        "body/blocks/norm2": ("h.{}.ln_2",),
        "body/blocks/up": ("h.{}.mlp.c_fc",),
        "body/blocks/down": ("h.{}.mlp.c_proj",),
        "body/norm": ("ln_f",),
        "head": ("lm_head",),
    },
    turned=False,
    added={"bias": True},
    ignored=r"h\.\d+\.attn\.(masked_)?bias",
)
