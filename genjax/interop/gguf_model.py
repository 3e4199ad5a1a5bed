"""Models of the kind of Llama in GGUF files, as options and parameters of `networks.decoder`.

Keys and names follow https://github.com/ggml-org/ggml, `docs/gguf.md`. Tensors are dequantised one
after the other, so that no more than one is in memory beside the parameters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32

from genjax.checks import ConfigError, one_of, require
from genjax.data.packages import cache_root
from genjax.files import write_atomic
from genjax.interop import architectures, gguf, gguf_tokenizer, huggingface
from genjax.interop.architecture import Description, Settings
from genjax.interop.gguf import File
from genjax.interop.huggingface import Pretrained
from genjax.networks.transformer import BIASES
from genjax.nn.positions import frequencies

# Architectures that are read, named as in `architectures`, and whether the rows of queries and keys
# are turned: see `unturned`.
ARCHITECTURES = {"llama": True, "qwen2": False, "qwen3": False, "gemma": False}

# Names of modules in the file -> those of transformers; {} stands for the layer.
_MODULES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
    "blk.{}.attn_norm": "layers.{}.input_layernorm",
    "blk.{}.attn_q": "layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "layers.{}.self_attn.v_proj",
    "blk.{}.attn_q_norm": "layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "layers.{}.self_attn.k_norm",
    "blk.{}.attn_output": "layers.{}.self_attn.o_proj",
    "blk.{}.ffn_norm": "layers.{}.post_attention_layernorm",
    "blk.{}.ffn_up": "layers.{}.mlp.up_proj",
    "blk.{}.ffn_gate": "layers.{}.mlp.gate_proj",
    "blk.{}.ffn_down": "layers.{}.mlp.down_proj",
}
_OURS = {"qkv": "attn_q", "merge": "attn_output"}  # module of the decoder -> what has its bias
_OURS |= {"up": "ffn_up", "gate": "ffn_gate", "down": "ffn_down"}
_FACTORS = "rope_freqs.weight"  # what divides the frequencies of the rotary positions
_LLAMA3 = (1.0, 4.0, 8192.0)  # the factors of all Llamas from 3.1 on follow from these and a factor


def _needed(settings: Settings, key: str) -> int:
    """A whole number that the file must give."""
    if key not in settings.values:
        raise ConfigError(f"{settings.path} has no {key}, which a model of its kind needs.")
    return settings.take(key, 1)


def _rope(file: File, settings: Settings, keys: str, head_size: int, base: float) -> tuple:
    """The option `rope_scaling` of the decoder; the names of keys begin with `keys`."""
    kind = settings.take(f"{keys}.rope.scaling.type", "none")
    one_of(f"{settings.path}: {keys}.rope.scaling.type", kind, ("none", "linear"))
    scaling = ()
    if kind == "linear":
        scaling = ("linear", settings.take(f"{keys}.rope.scaling.factor", 1.0))
    if _FACTORS not in file.tensors:
        return scaling
    factors = gguf.dequantised(file.tensors[_FACTORS])
    fits = factors.shape == (head_size // 2,) and not scaling
    scaling = ("llama3", float(factors.max(initial=1.0)), *_LLAMA3)
    if fits and np.isfinite(factors).all() and factors.min() > 0:
        expected = frequencies(head_size, base) / frequencies(head_size, base, scaling)
        if np.allclose(factors, expected, rtol=1e-3):
            return scaling
    raise ConfigError(
        f"{settings.path}: {_FACTORS} are not the factors of Llama 3.1 and later, which are the "
        "only ones that the decoder computes with."
    )


def _description(path: str, file: File) -> Description:
    """What the file says of the network.

    Raises:
      ConfigError: another architecture, or a value that the decoder does not support.
    """
    settings = Settings(path, file.metadata)
    kind = settings.take("general.architecture", "none")
    one_of(f"{path}: general.architecture", kind, tuple(ARCHITECTURES))
    _check(settings, kind)
    require("token_embd.weight" in file.tensors, f"{path}: token_embd.weight", None, "a tensor")
    width, length = (_needed(settings, f"{kind}.{n}_length") for n in ("embedding", "context"))
    heads = f"{kind}.attention.head_count"
    head_count = _needed(settings, heads)
    size = settings.take(f"{kind}.attention.key_length", max(width // head_count, 1))
    for key in (f"{kind}.attention.value_length", f"{kind}.rope.dimension_count"):
        same = settings.take(key, size)
        require(same == size, f"{path}: {key}", same, f"{size}, the width of a head of queries")
    require(size % 2 == 0, f"{path}: width of a head", size, "an even number, to turn its pairs")
    window = settings.take(f"{kind}.attention.sliding_window", length)
    base = settings.take(f"{kind}.rope.freq_base", 10_000.0)
    require(base > 0, f"{path}: {kind}.rope.freq_base", base, "a number above 0")
    architecture = architectures.find(kind)
    options = {
        "width": width,
        "depth": _needed(settings, f"{kind}.block_count"),
        "heads": head_count,
        "kv_heads": settings.divisor(f"{heads}_kv", head_count, head_count, heads),
        "head_size": size,
        "hidden": _needed(settings, f"{kind}.feed_forward_length"),
        "activation": architecture.activations()[architecture.keys["activation"][1]],
        "norm_eps": settings.take(f"{kind}.attention.layer_norm_rms_epsilon", 1e-6),
        "rope_base": base,
        "rope_scaling": _rope(file, settings, kind, size, base),
        "tied": "output.weight" not in file.tensors,
        "attention_dropout": 0.0,
        "window": window if window < length else 0,
    }
    options |= architecture.fixed_options(options) | _biases(path, file)
    vocabulary_size = (*file.tensors["token_embd.weight"].shape, 0)[0]
    return Description(kind, options, vocabulary_size, length)


def _biases(path: str, file: File) -> dict[str, bool | str]:
    """The options of the decoder about biases, by those that the first block has."""
    found = tuple(n for n, theirs in _OURS.items() if f"blk.0.{theirs}.bias" in file.tensors)
    names = [name for name, layers in BIASES.items() if set(layers) == set(found)]
    known = ", ".join(" and ".join(layers) for layers in BIASES.values())
    require(names or not found, f"{path}: layers with biases", found, f"none, or one of {known}")
    return {"bias": bool(found), "bias_of": names[0] if names else "all"}


def _check(settings: Settings, keys: str) -> None:
    """Raises ConfigError for a mixture of experts, or for one part of several."""
    for key, expected in (
        (f"{keys}.expert_count", "0, as in the decoder"),
        ("split.count", "one file: join its parts by `llama-gguf-split --merge`"),
    ):
        count = settings.values.get(key, 0)
        alone = type(count) is int and count <= (key == "split.count")
        require(alone, f"{settings.path}: {key}", count, expected)


def unturned(array: Float32[np.ndarray, "..."], heads: int) -> Float32[np.ndarray, "..."]:
    """Rows of a query or key projection, or its bias, in the order of transformers.

    In GGUF's llama neighbouring elements of a head turn together; in transformers and in the
    decoder element i turns with element i + H / 2.
    """
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def _names(file: File, depth: int) -> dict[str, str]:
    """The name of each tensor in transformers -> its name in the file; unknown names stay."""
    theirs = {
        f"{ours.format(layer)}.{part}": f"{name.format(layer)}.{part}"
        for ours, name in _MODULES.items()
        for layer in range(depth if "{}" in ours else 1)
        for part in ("weight", "bias")
    }
    return {theirs.get(name, name): name for name in file.tensors if name != _FACTORS}


class _Dequantised(Mapping):
    """The tensors by their names in transformers, each dequantised when it is asked for."""

    def __init__(self, names: Mapping[str, str], file: File, model: Description):
        self._names, self._tensors, self._options = names, file.tensors, model.options
        self._turned = ARCHITECTURES[model.architecture]

    def __getitem__(self, name: str) -> np.ndarray:
        array = gguf.dequantised(self._tensors[self._names[name]])
        for projection, heads in (("q_proj", "heads"), ("k_proj", "kv_heads")):
            if self._turned and projection in name:
                return unturned(array, self._options[heads])
        offset = self._options.get("norm_offset", 0.0)  # GGUF's scales are the whole factor
        return array - np.float32(offset) if offset and "norm" in name else array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def describe(path: str | Path) -> Pretrained:
    """The result of `read` without loading the parameters or the tokenizer.

    Raises:
      ConfigError: as `gguf.read`, or the model is not one that the decoder computes.
    """
    model = _description(str(path), gguf.read(path))
    return Pretrained(model.options, model.vocabulary_size, model.length, None, None)


def read(path: str | Path) -> Pretrained:
    """Reads a model for `networks.decoder`, all of its parameters in float32.

    Raises:
      ConfigError: as `describe`, or tensors are missing or unexpected, or do not fit the metadata.
    """
    file = gguf.read(path)
    model = _description(str(path), file)
    huggingface.check_depth(str(path), model, len(file.tensors))
    names = _names(file, model.options["depth"])
    shapes = {
        name: jax.ShapeDtypeStruct(file.tensors[theirs].shape, np.float32)
        for name, theirs in names.items()
    }
    params = huggingface.parameters(
        f"the tensors in {path} do not fit its metadata; by their names in transformers",
        model,
        shapes,
        _Dequantised(names, file, model),
    )
    return Pretrained(model.options, model.vocabulary_size, model.length, params, None)


def tokenizer(path: str | Path) -> str:
    """The path of the file's tokenizer, written into the cache as a tokenizer.json of genjax.

    Raises:
      ConfigError: as `gguf_tokenizer.read`.
    """
    content = gguf_tokenizer.read(str(path), gguf.read(path).metadata).to_json().encode()
    target = cache_root() / "tokenizers" / f"{hashlib.sha256(content).hexdigest()[:24]}.json"
    if not target.is_file() or target.read_bytes() != content:
        write_atomic(target, content)
    return str(target)
