"""Reads and writes Hugging Face folders of T5, mT5, BART and Marian.

A folder is converted to options and parameters of `networks.encoder_decoder`, and back. Nothing is
unpickled, and models that this network cannot compute are refused. Names and meanings follow
https://github.com/huggingface/transformers, `models/t5`, `mt5`, `bart` and `marian`.
"""

from __future__ import annotations

import json
import math
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
from genjax.interop import safetensors, weights
from genjax.interop.architecture import Options, Settings
from genjax.interop.encoder_decoder_names import HALVES, KINDS, T5_NAMES
from genjax.interop.leaves import Leaf, match
from genjax.networks import encoder_decoder
from genjax.nn.heads import grouped, side_by_side

Tree = Any

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
OFFSET = 2  # rows before the first position in BART's tables
T5_LENGTH = 512  # T5 has no limit; it was trained on so many positions
_PLAIN = {"gelu_new": "gelu", "gelu": "gelu_exact", "relu": "relu", "silu": "silu"}
_PLAIN |= {"swish": "silu", "gelu_fast": "gelu", "gelu_pytorch_tanh": "gelu"}
_GATED = {"gated-gelu": "geglu", "gated-silu": "swiglu"}


class Pretrained(NamedTuple):
    """A model read from a folder.

    Attributes:
      kind: a name in KINDS.
      options: of `networks.encoder_decoder.Network`.
      vocabulary_size: V.
      length: the maximum number of positions, of sources and targets.
      start: the token before each target.
      params: of that network, float32.
      tokenizer: the path of tokenizer.json, if there is one.
    """

    kind: str
    options: Options
    vocabulary_size: int
    length: int
    start: int
    params: Tree = None
    tokenizer: str | None = None


# ---- config.json ---------------------------------------------------------------------------------


def _t5(settings: Settings, mt5: bool) -> tuple[Options, int, int]:
    known = {**_PLAIN, **_GATED}
    activation = settings.take("feed_forward_proj", "gated-gelu" if mt5 else "relu")
    one_of(f"{settings.path}: feed_forward_proj", activation, tuple(known))
    depth, dropout = settings.take("num_layers", 6), settings.take("dropout_rate", 0.1)
    scaled = settings.take("scale_decoder_outputs", settings.take("tie_word_embeddings", True))
    options = {
        "width": settings.take("d_model", 512),
        "depth": depth,
        "decoder_depth": settings.take("num_decoder_layers", depth),
        "heads": settings.take("num_heads", 8),
        "head_size": settings.take("d_kv", 64),
        "hidden": settings.take("d_ff", 2048),
        "activation": known[activation],
        "norm_eps": settings.take("layer_norm_epsilon", 1e-6),
        "buckets": settings.take("relative_attention_num_buckets", 32),
        "furthest": settings.take("relative_attention_max_distance", 128),
        "head_scale": scaled and not mt5,
        "dropout": dropout,
        "attention_dropout": dropout,
        **{"norm": "rms", "norm_first": True, "positions": "relative", "bias": False},
        **{"embed_scale": False, "embed_norm": False, "head_bias": False},
    }
    vocabulary = settings.take("vocab_size", 250112 if mt5 else 32128)
    return options, vocabulary, settings.take("n_positions", T5_LENGTH)


def _bart(settings: Settings, marian: bool) -> tuple[Options, int, int]:
    width = settings.take("d_model", 1024)
    heads = settings.divisor("encoder_attention_heads", 16, width, "d_model")
    hidden = settings.take("encoder_ffn_dim", 4096)
    activation = settings.take("activation_function", "gelu")
    one_of(f"{settings.path}: activation_function", activation, tuple(_PLAIN))
    vocabulary = settings.take("vocab_size", 58101 if marian else 50265)
    same = {"decoder_attention_heads": heads, "decoder_ffn_dim": hidden}
    if marian:
        same |= {"decoder_vocab_size": vocabulary, "share_encoder_decoder_embeddings": True}
        same |= {"static_position_embeddings": True, "normalize_embedding": False}
    for key, value in same.items():
        settings.only(key, value)
    for key in ("normalize_before", "add_final_layer_norm"):
        settings.only(key, False)
    options = {
        "width": width,
        "depth": settings.take("encoder_layers", 12),
        "decoder_depth": settings.take("decoder_layers", 12),
        "heads": heads,
        "head_size": width // heads,
        "hidden": hidden,
        "activation": _PLAIN[activation],
        "norm_eps": 1e-5,
        "embed_scale": settings.take("scale_embedding", False),
        "dropout": settings.take("dropout", 0.1),
        "attention_dropout": settings.take("attention_dropout", 0.0),
        "positions": "sinusoidal" if marian else "learned",
        "embed_norm": not marian,
        **{"norm": "layer", "norm_first": False, "bias": True, "head_bias": True},
        "head_scale": False,
    }
    return options, vocabulary, settings.take("max_position_embeddings", 1024)


def describe(folder: str | Path) -> Pretrained:
    """The model in a folder without its parameters.

    Raises:
      ConfigError: there is no config.json, or it describes another type of model or a computation
        that the network does not support.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ConfigError(
            f"config.weights={str(folder)!r}: there is no {CONFIG}. Give the folder of a model of "
            f"Hugging Face, one of {', '.join(KINDS)}, as its save_pretrained() writes it."
        )
    values = read_json(str(path))
    settings = Settings(str(path), values)
    kind = settings.take("model_type", "none")
    one_of(f"{path}: model_type", kind, tuple(KINDS))
    quantised = values.get("quantization_config")
    require(quantised is None, f"{path}: quantization_config", quantised, "float weights, and null")
    convert = _t5 if kind in ("t5", "mt5") else _bart
    options, vocabulary_size, length = convert(settings, kind in ("mt5", "marian"))
    start = values.get("decoder_start_token_id")
    start = values.get("pad_token_id", 0) if start is None else start
    valid = type(start) is int and 0 <= start < vocabulary_size
    require(valid, f"{path}: decoder_start_token_id", start, f"0 to {vocabulary_size - 1}")
    tokenizer = Path(folder) / TOKENIZER
    found = str(tokenizer) if tokenizer.is_file() else None
    return Pretrained(kind, options, vocabulary_size, length, start, None, found)


# ---- tensors -------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """One of the network's parameters, its tensors, and the number of blocks if it is stacked."""

    path: str
    leaf: Leaf
    depth: int = 0


def _parts(model: Pretrained) -> Iterator[_Part]:
    """All parameters of the network."""
    names, o = KINDS[model.kind], model.options
    for half in HALVES:
        depth = o["depth"] if half == "encoder" else o["decoder_depth"]
        for leaf in _block(o, names.blocks[half]):
            yield _Part(leaf.path.replace("body", half, 1), leaf, depth)
    vocabulary = (model.vocabulary_size, o["width"])
    shapes = {
        "relative": (o.get("buckets"), o["heads"]),
        "positions": (model.length + OFFSET, o["width"]),
        "head": (1, model.vocabulary_size),
    }
    for ours, theirs in names.tables.items():
        shape = shapes.get(re.split("[_/]", ours)[0], (o["width"],))
        yield _Part(ours, Leaf(ours, (theirs,), (shape,)))
    yield _Part("embed/embedding", Leaf("", ("shared.weight",), (vocabulary,)))
    if not o["tied"]:
        yield _Part("head/kernel", Leaf("", ("lm_head.weight",), (vocabulary[::-1],), True))


def _block(o: Options, modules: Mapping[str, tuple[str, ...]]) -> Iterator[Leaf]:
    """The parameters of the blocks of one half, which the paths call body."""
    width, across = o["width"], o["heads"] * o["head_size"]
    sizes = {
        "qkv": (width, (across,) * 3),
        "memory": (width, (across,) * 2),
        "query_across": (width, (across,)),
        **dict.fromkeys(("merge", "merge_across"), (across, (width,))),
        **dict.fromkeys(("up", "gate"), (width, (o["hidden"],))),
        "down": (o["hidden"], (width,)),
    }
    if o["activation"] in _GATED.values():
        (wide,) = modules["up"]
        modules = {**modules, "gate": (f"{wide}_0",), "up": (f"{wide}_1",)}
    for module, theirs in modules.items():
        path = f"body/blocks/{module}"
        kernels, biases = ([f"{name}.{kind}" for name in theirs] for kind in ("weight", "bias"))
        if module.startswith("norm"):
            yield Leaf(f"{path}/scale", tuple(kernels), ((width,),))
            if o["bias"]:
                yield Leaf(f"{path}/bias", tuple(biases), ((width,),))
            continue
        inner, outer = sizes[module]
        by_head = (o["heads"], across) if module == "qkv" else ()
        shapes = tuple((inner, n) for n in outer)
        yield Leaf(f"{path}/kernel", tuple(kernels), shapes, True, *by_head)
        if o["bias"]:
            shapes = tuple((n,) for n in outer)
            yield Leaf(f"{path}/bias", tuple(biases), shapes, False, *by_head)


def _fold(options: Options, joined: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters of the network, by path, from their tensors joined."""
    flat, heads = _scaled(options, joined, 1.0), options["heads"]
    for path, array in flat.items():
        if "/memory/" in path:  # keys and values of each head side by side
            flat[path] = grouped(array, heads, 0)
        elif path.startswith("positions"):
            flat[path] = array[OFFSET:]
        elif path == "head/bias":
            flat[path] = array[0]
    return flat


def _unfold(options: Options, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `_fold`."""
    flat = _scaled(options, params, -1.0)
    for path, array in flat.items():
        if "/memory/" in path:
            flat[path] = side_by_side(array, 0)
        elif path.startswith("positions"):
            flat[path] = np.concatenate([np.zeros_like(array[:OFFSET]), array])
        elif path == "head/bias":
            flat[path] = array[None]
    return flat


def _scaled(
    options: Options, flat: Mapping[str, np.ndarray], power: float
) -> dict[str, np.ndarray]:
    """T5 does not divide by sqrt(H) in attention: the network's queries are larger by that."""
    if options["positions"] != "relative":
        return dict(flat)
    size = options["head_size"]
    factor = np.float32(math.sqrt(size) ** power)
    scaled = {}
    for path, array in flat.items():
        if path.endswith("qkv/kernel"):
            array = np.concatenate([array[..., :size] * factor, array[..., size:]], axis=-1)
        elif path.endswith("query_across/kernel"):
            array = array * factor
        scaled[path] = array
    return scaled


def _tensors(folder: Path, model: Pretrained) -> tuple[Pretrained, dict[str, np.ndarray]]:
    """The model, which now tells whether its head is tied, and its tensors without the prefix."""
    names = KINDS[model.kind]
    path, found = weights.read(folder)
    tensors = {}
    for name, array in found.items():
        plain = name if name in names.outside else name.removeprefix(names.prefix)
        require(plain not in tensors, f"{path}: tensor", name, "it once, with or without prefix")
        if not re.fullmatch(names.ignored, plain):
            tensors[plain] = array
    shared = tensors.get("shared.weight")
    for copy in names.copies:
        if copy in tensors and shared is None:
            shared = tensors["shared.weight"] = tensors[copy]
        if copy in tensors:
            same = np.array_equal(tensors.pop(copy), shared)
            require(same, f"{path}: {copy}", "another table", "that of shared.weight")
    head = tensors.get("lm_head.weight")
    tied = head is None or (shared is not None and np.array_equal(head, shared))
    if head is not None and tied:
        del tensors["lm_head.weight"]
    if "final_logits_bias" in names.tables.values():
        zeros = np.zeros((1, model.vocabulary_size), np.float32)
        tensors.setdefault("final_logits_bias", zeros)
    return model._replace(options={**model.options, "tied": tied}), tensors


def read(folder: str | Path) -> Pretrained:
    """Reads a model for `networks.encoder_decoder` from a Hugging Face folder.

    The head is tied to the embedding unless the file has another one.

    Raises:
      ConfigError: a file is missing or damaged, the model's type or a computation is not supported,
        or names, shapes or dtypes of tensors do not fit config.json.
    """
    model, tensors = _tensors(Path(folder), describe(folder))
    for key in ("depth", "decoder_depth"):
        most = f"at most {len(tensors)}, as many as tensors"
        require(model.options[key] <= len(tensors), f"{folder}: {key}", model.options[key], most)
    parts = list(_parts(model))
    expected = dict(pair for part in parts for pair in part.leaf.expected(part.depth))
    match(f"the tensors in {folder} do not fit its {CONFIG}", expected, tensors)
    flat = {part.path: part.leaf.join(tensors, part.depth) for part in parts}
    return model._replace(params=unflatten_dict(_fold(model.options, flat), sep="/"))


def tied(folder: str | Path) -> bool:
    """Whether the head of the model in a folder is its embedding, as `read` finds it.

    Raises:
      ConfigError: as `read`.
    """
    return _tensors(Path(folder), describe(folder))[0].options["tied"]


# ---- writing -------------------------------------------------------------------------------------


def complete(options: Mapping[str, Any]) -> Options:
    """The network's options, with defaults for those that are missing or 0.

    Raises:
      ConfigError: an option that the network does not have.
    """
    parameters = signature(encoder_decoder.Network.__init__).parameters.values()
    o = {p.name: p.default for p in parameters if p.default is not p.empty}
    for key in options:
        one_of("option of networks.encoder_decoder", key, tuple(o))
    o |= options
    o["decoder_depth"] = o["decoder_depth"] or o["depth"]
    o["head_size"] = o["head_size"] or o["width"] // o["heads"]
    o["hidden"] = o["hidden"] or 4 * o["width"]
    return o


def _kind(o: Options) -> str:
    """The type of models that complete options belong to.

    Raises:
      ConfigError: they belong to none.
    """
    post = {"norm": "layer", "norm_first": False, "bias": True, "head_scale": False, "tied": True}
    post |= {"norm_eps": 1e-5, "head_size": o["width"] // o["heads"], "activation": _PLAIN.values()}
    activations = (*_GATED.values(), *_PLAIN.values())
    t5 = {"norm": "rms", "norm_first": True, "bias": False, "positions": "relative"}
    t5 |= {"embed_scale": False, "embed_norm": False, "head_bias": False, "activation": activations}
    needed = {
        "t5": t5,
        "bart": post | {"positions": "learned", "embed_norm": True},
        "marian": post | {"positions": "sinusoidal", "embed_norm": False},
    }
    obstacles = {}
    for kind, values in needed.items():
        obstacles[kind] = [
            f"{key}={value!r} (it is {o[key]!r})"
            for key, value in values.items()
            if o[key] != value and not (key == "activation" and o[key] in value)
        ]
        if not obstacles[kind]:
            return kind
    listed = "; ".join(f"{kind} needs {', '.join(given)}" for kind, given in obstacles.items())
    raise ConfigError(f"Hugging Face's formats cannot describe this network: {listed}.")


def _config(model: Pretrained, special: Mapping[str, int], dtype: str) -> dict[str, Any]:
    o = model.options
    names = {ours: name for name, ours in reversed({**_PLAIN, **_GATED}.items())}
    ids = {"eos_token_id": special.get("eos"), "pad_token_id": special.get("pad", model.start)}
    common = {
        "model_type": model.kind,
        "is_encoder_decoder": True,
        "vocab_size": model.vocabulary_size,
        "d_model": o["width"],
        "decoder_start_token_id": model.start,
        **ids,
        "dtype": dtype,
    }
    if model.kind == "t5":
        return common | {
            "architectures": ["T5ForConditionalGeneration"],
            "d_kv": o["head_size"],
            "d_ff": o["hidden"],
            "num_layers": o["depth"],
            "num_decoder_layers": o["decoder_depth"],
            "num_heads": o["heads"],
            "feed_forward_proj": names[o["activation"]],
            "layer_norm_epsilon": o["norm_eps"],
            "relative_attention_num_buckets": o["buckets"],
            "relative_attention_max_distance": o["furthest"],
            "scale_decoder_outputs": o["head_scale"],
            "tie_word_embeddings": o["head_scale"],  # by which older versions decide the scale
            "dropout_rate": o["dropout"],
            "n_positions": model.length,
        }
    halves = {
        f"{half}_{key}": value
        for half, depth in zip(HALVES, (o["depth"], o["decoder_depth"]), strict=True)
        for key, value in (
            ("layers", depth),
            ("attention_heads", o["heads"]),
            ("ffn_dim", o["hidden"]),
        )
    }
    named = {"bart": "BartForConditionalGeneration", "marian": "MarianMTModel"}
    return common | {
        "architectures": [named[model.kind]],
        **halves,
        "activation_function": names[o["activation"]],
        "max_position_embeddings": model.length,
        "scale_embedding": o["embed_scale"],
        "dropout": o["dropout"],
        "attention_dropout": o["attention_dropout"],
        "tie_word_embeddings": True,
        "forced_eos_token_id": ids["eos_token_id"],
    }


def write(
    folder: str | Path,
    options: Mapping[str, Any],
    vocabulary_size: int,
    lengths: tuple[int, int],
    start: int,
    params: Tree,
    special: Mapping[str, int],
    files: Mapping[str, Any] | None = None,
) -> None:
    """Writes a folder that `transformers` loads with `from_pretrained`.

    Args:
      folder: created if missing; files in it are replaced.
      options: of `networks.encoder_decoder.Network`; missing ones take their defaults.
      vocabulary_size: V.
      lengths: the maximum number of positions, of a source and of a target. If they are learned,
        the shorter table is filled up with zeros.
      start: the token before each target.
      params: of the network, arrays on this host; they are written in their own dtype.
      special: the ids "eos" and "pad", if they exist.
      files: other JSON files: name -> content.

    Raises:
      ConfigError: neither T5, BART nor Marian has these options, or the parameters do not fit them.
    """
    o = complete(options)
    model = Pretrained(_kind(o), o, vocabulary_size, max(lengths), start)
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(array)
        for path, array in jax.tree_util.tree_leaves_with_path(params)
    }
    for name in ("positions_source", "positions_target"):
        if name in arrays:
            missing = model.length - len(arrays[name])
            arrays[name] = np.pad(arrays[name], ((0, missing), (0, 0)))
    if KINDS[model.kind] is not T5_NAMES:
        dtype = arrays["embed/embedding"].dtype
        arrays.setdefault("head/bias", np.zeros(vocabulary_size, dtype))
    parts, unfolded = list(_parts(model)), _unfold(o, arrays)
    expected = {p.path: ((p.depth,) if p.depth else ()) + p.leaf.shape for p in parts}
    match("the parameters do not fit the options", expected, unfolded)
    names, tensors = KINDS[model.kind], {}
    for part in parts:
        for tensor, array in part.leaf.split(unfolded[part.path]):
            tensors[tensor if tensor in names.outside else f"{names.prefix}{tensor}"] = array
    contents = {CONFIG: _config(model, special, arrays["embed/embedding"].dtype.name)}
    contents |= files or {}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write(folder / weights.SAFETENSORS, tensors, {"format": "pt"})
    for name, content in contents.items():
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(f"{text}\n", encoding="utf-8")
