"""How T5, mT5, BART and Marian name their tensors, for `interop.encoder_decoder`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

HALVES = ("encoder", "decoder")


class Names(NamedTuple):
    """How a type of models names its tensors.

    Attributes:
      prefix: of all names except those in `outside`; files may omit it.
      blocks: half -> our module of a block -> their modules, concatenated; `{}` is the layer.
      tables: our parameter -> their tensor, beside the embedding and the head.
      outside: tensors without the prefix.
      copies: tensors that files may have besides the embedding, and that equal it.
      ignored: a regular expression for tensors that are not parameters.
    """

    prefix: str
    blocks: Mapping[str, Mapping[str, tuple[str, ...]]]
    tables: Mapping[str, str]
    outside: tuple[str, ...]
    copies: tuple[str, ...]
    ignored: str


def _t5_block(half: str) -> dict[str, tuple[str, ...]]:
    layer = f"{half}.block.{{}}.layer."
    last = 2 if half == "decoder" else 1
    own, other = f"{layer}0.SelfAttention.", f"{layer}1.EncDecAttention."
    names = {
        "norm1": (f"{layer}0.layer_norm",),
        "qkv": tuple(own + name for name in "qkv"),
        "merge": (f"{own}o",),
        "norm2": (f"{layer}{last}.layer_norm",),
        "up": (f"{layer}{last}.DenseReluDense.wi",),
        "down": (f"{layer}{last}.DenseReluDense.wo",),
    }
    if half == "decoder":
        names |= {
            "norm_across": (f"{layer}1.layer_norm",),
            "query_across": (f"{other}q",),
            "memory": (f"{other}k", f"{other}v"),
            "merge_across": (f"{other}o",),
        }
    return names


def _bart_block(half: str) -> dict[str, tuple[str, ...]]:
    layer = f"{half}.layers.{{}}."
    own, other = f"{layer}self_attn.", f"{layer}encoder_attn."
    names = {
        "norm1": (f"{layer}self_attn_layer_norm",),
        "qkv": tuple(f"{own}{name}_proj" for name in "qkv"),
        "merge": (f"{own}out_proj",),
        "norm2": (f"{layer}final_layer_norm",),
        "up": (f"{layer}fc1",),
        "down": (f"{layer}fc2",),
    }
    if half == "decoder":
        names |= {
            "norm_across": (f"{layer}encoder_attn_layer_norm",),
            "query_across": (f"{other}q_proj",),
            "memory": (f"{other}k_proj", f"{other}v_proj"),
            "merge_across": (f"{other}out_proj",),
        }
    return names


_RELATIVE = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
_OWN = {"encoder": "source", "decoder": "target"}
T5_NAMES = Names(
    prefix="",
    blocks={half: _t5_block(half) for half in HALVES},
    tables={f"relative_{_OWN[half]}/embedding": f"{half}.{_RELATIVE}" for half in HALVES}
    | {f"{half}/norm/scale": f"{half}.final_layer_norm.weight" for half in HALVES},
    outside=("lm_head.weight",),
    copies=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    ignored=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
)
BART_NAMES = Names(
    prefix="model.",
    blocks={half: _bart_block(half) for half in HALVES},
    tables={f"positions_{_OWN[half]}": f"{half}.embed_positions.weight" for half in HALVES}
    | {
        f"norm_{_OWN[half]}/{ours}": f"{half}.layernorm_embedding.{theirs}"
        for half in HALVES
        for ours, theirs in (("scale", "weight"), ("bias", "bias"))
    }
    | {"head/bias": "final_logits_bias"},
    outside=("lm_head.weight", "final_logits_bias"),
    copies=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    ignored=r"(en|de)coder\.version",
)
KINDS = {
    "t5": T5_NAMES,
    "mt5": T5_NAMES,
    "bart": BART_NAMES,
    "marian": BART_NAMES._replace(
        tables={"head/bias": "final_logits_bias"},
        ignored=r"(en|de)coder\.(version|embed_positions\.weight)",
    ),
}
