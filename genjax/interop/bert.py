"""Reads Hugging Face folders of encoders of BERT's kind for `networks.encoder`, and writes BERT's.

Names and meanings follow https://github.com/huggingface/transformers, `models/bert`, `roberta`,
`distilbert` and `electra`. What predicts whether two sentences follow each other, the layer that
pools the first token for it, and ELECTRA's head that detects replaced tokens are left out.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from genjax.config import ConfigError, one_of, require
from genjax.files import read_json
from genjax.interop import architectures, safetensors, weights
from genjax.interop.architecture import Options, Settings
from genjax.interop.huggingface import CONFIG, TOKENIZER, TOKENIZER_CONFIG, Pretrained, folder_of
from genjax.interop.leaves import STACKED, Leaf, match
from genjax.networks import encoder

log = logging.getLogger(__name__)

Tree = Any

MASK = "[MASK]"  # added to a tokenizer that has none


class Kind(NamedTuple):
    """How a type of encoders names what is around its blocks.

    Attributes:
      prefix: of the names of all tensors except the head's; files may omit it.
      transform: the head's layer.
      norm: the norm after it.
      head: what has the head's bias.
      decoder: what may repeat the embedding, and that bias.
      before: rows of the table of positions before the first position.
      names: (regular expression, BERT's name) of tensors, after the prefix is removed.
      keys: key of BERT's config.json -> that of this type.
      defaults: key of BERT's config.json -> its default, if it is another one.
      fixed: key of BERT's config.json -> the one value that this type has, and does not store.
    """

    prefix: str
    transform: str
    norm: str
    head: str
    decoder: str
    before: int = 0
    names: tuple[tuple[str, str], ...] = ()
    keys: Mapping[str, str] = {}
    defaults: Mapping[str, Any] = {}
    fixed: Mapping[str, Any] = {}


_PREDICTIONS, _TRANSFORM = "cls.predictions", "cls.predictions.transform"
_BERT = Kind(
    *("bert.", f"{_TRANSFORM}.dense", f"{_TRANSFORM}.LayerNorm"),
    *(_PREDICTIONS, f"{_PREDICTIONS}.decoder"),
)
_ROBERTA = Kind("roberta.", "lm_head.dense", "lm_head.layer_norm", "lm_head", "lm_head.decoder", 2)
_LAYER, _ATTENTION = r"transformer\.layer\.(\d+)\.", r"encoder.layer.\1.attention."
_DISTILBERT = Kind(
    *("distilbert.", "vocab_transform", "vocab_layer_norm", "vocab_bias", "vocab_decoder"),
    names=(
        (_LAYER + r"attention\.q_lin\.", _ATTENTION + "self.query."),
        (_LAYER + r"attention\.k_lin\.", _ATTENTION + "self.key."),
        (_LAYER + r"attention\.v_lin\.", _ATTENTION + "self.value."),
        (_LAYER + r"attention\.out_lin\.", _ATTENTION + "output.dense."),
        (_LAYER + r"sa_layer_norm\.", _ATTENTION + "output.LayerNorm."),
        (_LAYER + r"ffn\.lin1\.", r"encoder.layer.\1.intermediate.dense."),
        (_LAYER + r"ffn\.lin2\.", r"encoder.layer.\1.output.dense."),
        (_LAYER + r"output_layer_norm\.", r"encoder.layer.\1.output.LayerNorm."),
        (r"vocab_projector\.bias", "vocab_bias.bias"),
        (r"vocab_projector\.weight", "vocab_decoder.weight"),
    ),
    keys={
        **{"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"},
        **{"intermediate_size": "hidden_dim", "hidden_act": "activation"},
        **{"hidden_dropout_prob": "dropout", "attention_probs_dropout_prob": "attention_dropout"},
    },
    defaults={"num_hidden_layers": 6},
    fixed={"type_vocab_size": 0, "layer_norm_eps": 1e-12},
)
_ELECTRA = Kind(
    *("electra.", "generator_predictions.dense", "generator_predictions.LayerNorm"),
    *("generator_lm_head", "generator_lm_head"),
    defaults={
        **{"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
        "embedding_size": 128,
    },
)
KINDS = {
    **{"bert": _BERT, "roberta": _ROBERTA, "xlm-roberta": _ROBERTA, "camembert": _ROBERTA},
    **{"distilbert": _DISTILBERT, "electra": _ELECTRA},
}

_POSITIONS = "embeddings.position_embeddings.weight"
_IGNORED = (
    r"embeddings\.(position|token_type)_ids|pooler\..*|cls\.seq_relationship\..*"
    r"|discriminator_predictions\..*"
)
_OLD = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
# What BERT computes: of our options, the values that it has.
_NEEDED = {
    "norm": ("layer",),
    "norm_first": (False,),
    "embedding_norm": (True,),
    "positions": ("learned",),
    "bias": (True,),
}


def _activations() -> dict[str, str]:
    return architectures.find("gpt2").activations()


def _options(settings: Settings, kind: Kind) -> tuple[Options, int, int]:
    """The options of the network, the vocabulary's size, and the number of positions."""

    def key(name: str) -> str:
        return kind.keys.get(name, name)

    def take(name: str, default: Any) -> Any:
        if name in kind.fixed:
            return kind.fixed[name]
        return settings.take(key(name), kind.defaults.get(name, default))

    for name, value in (("is_decoder", False), ("add_cross_attention", False)):
        settings.only(name, value)
    tied = (("tie_word_embeddings", True), ("tie_weights_", True))
    for name, value in (*tied, ("position_embedding_type", "absolute")):
        found = settings.take(name, value)
        require(found == value, f"{settings.path}: {name}", found, f"{value}, as in the encoder")
    width, heads = take("hidden_size", 768), kind.defaults.get("num_attention_heads", 12)
    narrow = take("embedding_size", width)
    activation = take("hidden_act", "gelu")
    one_of(f"{settings.path}: {key('hidden_act')}", activation, tuple(_activations()))
    positions = take("max_position_embeddings", 512)
    enough = f"above {kind.before}"
    require(positions > kind.before, f"{settings.path}: positions", positions, enough)
    options = {
        "token_types": take("type_vocab_size", 2),
        "width": width,
        "depth": take("num_hidden_layers", 12),
        "heads": settings.divisor(key("num_attention_heads"), heads, width, key("hidden_size")),
        "hidden": take("intermediate_size", 3072),
        "activation": _activations()[activation],
        "norm_eps": take("layer_norm_eps", 1e-12),
        "dropout": take("hidden_dropout_prob", 0.1),
        "attention_dropout": take("attention_probs_dropout_prob", 0.1),
    }
    options |= {"embedding_width": narrow} if narrow != width else {}
    options |= {name: value for name, (value,) in _NEEDED.items()}
    return options, take("vocab_size", 30522), positions - kind.before


def _leaves(
    options: Options, vocabulary_size: int, length: int, kind: Kind, head: bool
) -> Iterator[Leaf]:
    """All parameters of the network, with or without the head."""
    width, hidden, heads = (options[name] for name in ("width", "hidden", "heads"))
    narrow = options.get("embedding_width") or width

    def table(path: str, name: str, rows: int) -> Iterator[Leaf]:
        yield Leaf(path, (f"{name}.weight",), ((rows, narrow),))

    def norm(path: str, name: str, size: int) -> Iterator[Leaf]:
        for ours, theirs in (("scale", "weight"), ("bias", "bias")):
            yield Leaf(f"{path}/{ours}", (f"{name}.{theirs}",), ((size,),))

    def linear(path: str, names: tuple, inner: int, outer: int, by_head=()) -> Iterator[Leaf]:
        kernels, biases = ([f"{name}.{part}" for name in names] for part in ("weight", "bias"))
        shapes = ((inner, outer),) * len(names)
        yield Leaf(f"{path}/kernel", tuple(kernels), shapes, True, *by_head)
        yield Leaf(f"{path}/bias", tuple(biases), ((outer,),) * len(names), False, *by_head)

    layer, blocks = "encoder.layer.{}.", STACKED
    qkv = tuple(f"{layer}attention.self.{name}" for name in ("query", "key", "value"))
    yield from table("embed/embedding", "embeddings.word_embeddings", vocabulary_size)
    yield from table("positions", "embeddings.position_embeddings", length)
    if types := options["token_types"]:
        yield from table("types/embedding", "embeddings.token_type_embeddings", types)
    yield from norm("norm", "embeddings.LayerNorm", narrow)
    if narrow != width:
        yield from linear("widen", ("embeddings_project",), narrow, width)
    yield from linear(f"{blocks}qkv", qkv, width, width, (heads, width))
    yield from linear(f"{blocks}merge", (f"{layer}attention.output.dense",), width, width)
    yield from norm(f"{blocks}norm1", f"{layer}attention.output.LayerNorm", width)
    yield from linear(f"{blocks}up", (f"{layer}intermediate.dense",), width, hidden)
    yield from linear(f"{blocks}down", (f"{layer}output.dense",), hidden, width)
    yield from norm(f"{blocks}norm2", f"{layer}output.LayerNorm", width)
    if head:
        yield from linear("transform", (kind.transform,), width, narrow)
        yield from norm("head_norm", kind.norm, narrow)
        yield Leaf("head/bias", (f"{kind.head}.bias",), ((vocabulary_size,),))


def _tensors(folder: Path, kind: Kind) -> dict[str, np.ndarray]:
    """The parameters in a folder, by name without the prefix; those of a head are not repeated.

    Raises:
      ConfigError: there is no file, it is damaged, or the head is not the embedding's.
    """
    path, found = weights.read(folder)
    tensors: dict[str, np.ndarray] = {}
    for name, array in found.items():
        plain = name.removeprefix(kind.prefix)
        for old, new in _OLD:
            plain = plain.replace(old, new)
        for theirs, ours in kind.names:
            plain = re.sub(rf"^{theirs}", ours, plain)
        once = "it once, with or without the prefix"
        require(plain not in tensors, f"{path}: tensor", name, once)
        if not re.fullmatch(_IGNORED, plain):
            tensors[plain] = array
    tied = {"weight": "embeddings.word_embeddings.weight", "bias": f"{kind.head}.bias"}
    for part, original in tied.items():
        if f"{kind.decoder}.{part}" == original:
            continue
        again = tensors.pop(f"{kind.decoder}.{part}", None)
        if again is not None and original in tensors:
            same = np.array_equal(again, tensors[original])
            require(same, f"{path}: {kind.decoder}.{part}", "another", f"{original}: they are tied")
    if kind.before and _POSITIONS in tensors:
        tensors[_POSITIONS] = tensors[_POSITIONS][kind.before :]
    return tensors


def _described(folder: str | Path) -> tuple[Path, Kind, Pretrained]:
    place = folder_of(folder)
    path = str(place / CONFIG)
    values = read_json(path)
    settings = Settings(path, values)
    name = settings.take("model_type", "none")
    one_of(f"{path}: model_type", name, tuple(KINDS))
    options, vocabulary_size, length = _options(settings, KINDS[name])
    tokenizer = str(place / TOKENIZER) if (place / TOKENIZER).is_file() else None
    return place, KINDS[name], Pretrained(options, vocabulary_size, length, None, tokenizer)


def describe(folder: str | Path) -> Pretrained:
    """The result of `read` without loading the parameters: `params` is None.

    Raises:
      ConfigError: config.json is missing or damaged, or describes another type of model or a
        computation that the encoder does not support.
    """
    return _described(folder)[2]


def read(folder: str | Path, head: bool = True) -> Pretrained:
    """Reads an encoder from a Hugging Face folder, with or without the head that predicts tokens.

    The options are those of `networks.encoder.Network`, without `head`. A head that is wanted and
    missing, as in models that embed texts, is left out of the parameters, with a warning.

    Raises:
      ConfigError: a file is missing or damaged, the model's type or a computation is not supported,
        or tensors do not fit config.json.
    """
    place, kind, model = _described(folder)
    tensors, bias = _tensors(place, kind), f"{kind.head}.bias"
    if head and bias not in tensors:
        head = False
        log.warning(
            "the model in %s has no %s: it embeds texts, but has no head that predicts tokens. A "
            "new head is random, and has to be trained before it fills gaps",
            place,
            bias,
        )
    if head and kind is _ELECTRA:
        found, expected = model.options["activation"], _activations()["gelu"]
        require(found == expected, f"{place / CONFIG}: hidden_act", found, "gelu, as in the head")
    if not head:
        outer = (kind.transform, kind.norm, kind.head)
        tensors = {n: a for n, a in tensors.items() if n.rpartition(".")[0] not in outer}
    depth = model.options["depth"]
    most = f"at most {len(tensors)}, as many as tensors"
    require(depth <= len(tensors), f"{place / CONFIG}: num_hidden_layers", depth, most)
    leaves = list(_leaves(*model[:3], kind, head))
    expected = dict(pair for leaf in leaves for pair in leaf.expected(depth))
    match(f"the tensors in {place} do not fit its {CONFIG}", expected, tensors)
    params = {leaf.path: leaf.join(tensors, depth) for leaf in leaves}
    return model._replace(params=unflatten_dict(params, sep="/"))


# ---- writing -------------------------------------------------------------------------------------


def _complete(options: Mapping[str, Any]) -> Options:
    """The encoder's options, with defaults for those that are missing or 0.

    Raises:
      ConfigError: an option that the encoder does not have, or a network that is no BERT.
    """
    parameters = signature(encoder.Network.__init__).parameters.values()
    whole = {p.name: p.default for p in parameters if p.default is not p.empty}
    for key in options:
        one_of("option of networks.encoder", key, tuple(whole))
    whole |= options
    whole["hidden"] = whole["hidden"] or 4 * whole["width"]
    needed = {
        **_NEEDED,
        "embedding_width": (0, whole["width"]),
        "activation": tuple(dict.fromkeys(_activations().values())),
    }
    obstacles = [
        f"{name}={' or '.join(map(repr, values))} (it is {whole[name]!r})"
        for name, values in needed.items()
        if whole[name] not in values
    ]
    if obstacles:
        listed = ", ".join(obstacles)
        raise ConfigError(f"Hugging Face's BERT cannot describe this network: it needs {listed}.")
    return whole


def _tokenizer_files(text: str, special: Mapping[str, int], length: int) -> dict[str, Any]:
    """tokenizer.json with a mask, and tokenizer_config.json with the names of special tokens.

    A tokenizer of bytes or characters is written unchanged, and only genjax reads it.
    """
    stored = json.loads(text)
    state = stored.get("tokenizer", stored)
    if "model" not in state:
        return {TOKENIZER: state}
    added = list(state.get("added_tokens") or ())
    content = {token["id"]: token["content"] for token in added}
    if special["mask"] not in content:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added.append({"id": special["mask"], "content": MASK, "special": True, **flags})
        content[special["mask"]] = MASK
    roles = {"bos": "cls_token", "eos": "sep_token", "pad": "pad_token", "mask": "mask_token"}
    names = {key: content[special[r]] for r, key in roles.items() if special.get(r) in content}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, **names}
    return {TOKENIZER: {**state, "added_tokens": added}, TOKENIZER_CONFIG: config}


def write(
    folder: str | Path,
    options: Options,
    vocabulary_size: int,
    length: int,
    params: Tree,
    tokenizer: str | None = None,
    special_tokens: Mapping[str, int] = {},
) -> None:
    """Writes a folder of a BERT that `transformers` loads with `from_pretrained`.

    It is a BertForMaskedLM if the network predicts tokens, else a BertModel. BERT always has types
    of tokens: a network without them gets one, of zeros.

    Args:
      folder: created if missing; files in it are replaced.
      options: of `networks.encoder.Network`; missing ones take their defaults.
      vocabulary_size: V, with the mask.
      length: the maximum number of positions.
      params: of the network, arrays on this host; they are written in their own dtype.
      tokenizer: the text of a tokenizer.json, of Hugging Face or of a run.
      special_tokens: the ids "bos", "eos", "pad" and "mask", of which `tokenizer` needs the last.

    Raises:
      ConfigError: BERT does not support these options, or the parameters do not fit them.
    """
    o, head = _complete(options), "head_norm" in params
    kept = {
        name: tree for name, tree in params.items() if head or name not in ("transform", "head")
    }
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(array)
        for path, array in jax.tree_util.tree_leaves_with_path(kept)
    }
    dtype = arrays["embed/embedding"].dtype
    if not o["token_types"]:
        o["token_types"] = 1
        arrays["types/embedding"] = np.zeros((1, o["width"]), dtype)
    leaves = list(_leaves(o, vocabulary_size, length, _BERT, head))
    depth = (o["depth"],)
    shapes = {leaf.path: depth * leaf.path.startswith(STACKED) + leaf.shape for leaf in leaves}
    match("the parameters do not fit the options", shapes, arrays)
    tensors = {}
    for leaf in leaves:
        for name, array in leaf.split(arrays[leaf.path]):
            outer = head and leaf.path.startswith(("transform/", "head"))
            tensors[name if outer or not head else f"{_BERT.prefix}{name}"] = array
    theirs = {ours: name for name, ours in reversed(_activations().items())}
    config = {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM" if head else "BertModel"],
        "vocab_size": vocabulary_size,
        "max_position_embeddings": length,
        "hidden_size": o["width"],
        "num_hidden_layers": o["depth"],
        "num_attention_heads": o["heads"],
        "intermediate_size": o["hidden"],
        "hidden_act": theirs[o["activation"]],
        "hidden_dropout_prob": o["dropout"],
        "attention_probs_dropout_prob": o["attention_dropout"],
        "type_vocab_size": o["token_types"],
        "layer_norm_eps": o["norm_eps"],
        "tie_word_embeddings": True,
        "pad_token_id": special_tokens.get("pad"),
        "dtype": dtype.name,
    }
    files = {CONFIG: config}
    if tokenizer is not None:
        files |= _tokenizer_files(tokenizer, special_tokens, length)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write(folder / weights.SAFETENSORS, tensors, {"format": "pt"})
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(f"{text}\n", encoding="utf-8")
