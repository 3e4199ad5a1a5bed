"""config.json of GPT-2 and Llama models, as options of `networks.decoder`, and back.

Keys, their defaults and meanings follow `GPT2Config` and `LlamaConfig` in
https://github.com/huggingface/transformers. Models that the decoder cannot compute are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any, NamedTuple, TypeVar

from genjax.config import ConfigError, one_of, require
from genjax.data.alphabets import ends
from genjax.networks import decoder

T = TypeVar("T", bool, int, float, str)
Options = dict[str, Any]

# Their names of activations -> ours; of several names for one, the first is written.
_ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_fast": "gelu",
    "gelu_accurate": "gelu",
    "gelu_python_tanh": "gelu",
    "gelu": "gelu_exact",
    "gelu_python": "gelu_exact",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_GATED = {"silu": "swiglu", "gelu": "geglu"}
_SPECIAL = {"start": "bos_token_id", "eos": "eos_token_id", "pad": "pad_token_id"}
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_ROPE = {"default": (), "linear": ("factor",), "llama3": _LLAMA3}


class Description(NamedTuple):
    """The content of a config.json.

    Attributes:
      family: "gpt2" or "llama".
      options: of `networks.decoder.Network`.
      vocabulary_size: V.
      length: the maximum number of positions.
      bare: the modules of a block that have no biases in the file although `options["bias"]`.
      special_tokens: for writing: the ids "start", "eos" and "pad", if they exist, and "eos_2" and
        so on. When reading, they come with the tokenizer instead.
    """

    family: str
    options: Options
    vocabulary_size: int
    length: int
    bare: tuple[str, ...] = ()
    special_tokens: Mapping[str, int] = {}


class Settings(NamedTuple):
    """An object in a config.json, and its path for errors."""

    path: str
    values: Mapping[str, Any]

    def take(self, key: str, default: T) -> T:
        """A value of the default's type; null means the default. Integers must be at least 1."""
        value = self.values.get(key)
        if value is None:
            return default
        number = type(value) in (int, float)
        ok, expected = {
            bool: (type(value) is bool, "true or false"),
            int: (type(value) is int and 0 < value < 2**31, "a positive integer"),
            float: (number and 0 <= value < 1e30, "a number from 0 on"),
            str: (isinstance(value, str), "a string"),
        }[type(default)]
        require(ok, f"{self.path}: {key}", value, expected)
        return type(default)(value)

    def divisor(self, key: str, default: int, whole: int, name: str) -> int:
        """A value, which must divide `whole`; `name` is the key of `whole`."""
        value = self.take(key, default)
        require(whole % value == 0, f"{self.path}: {key}", value, f"a divisor of {name}={whole}")
        return value

    def only(self, key: str, required: bool | float) -> None:
        """Raises ConfigError unless the value is the one that our network computes with."""
        value = self.take(key, required)
        require(value == required, f"{self.path}: {key}", value, f"{required}, as in the decoder")

    def activation(self, key: str, default: str, known: Mapping[str, str]) -> str:
        """The value in `known` for our name of the activation, which must be among its keys."""
        value = self.take(key, default)
        theirs = [name for name, ours in _ACTIVATIONS.items() if ours in known]
        one_of(f"{self.path}: {key}", value, theirs)
        return known[_ACTIVATIONS[value]]


def _gpt2(settings: Settings) -> Description:
    settings.only("scale_attn_weights", True)
    settings.only("scale_attn_by_inverse_layer_idx", False)
    settings.only("add_cross_attention", False)
    width = settings.take("n_embd", 768)
    heads = settings.divisor("n_head", 12, width, "n_embd")
    options = {
        "width": width,
        "depth": settings.take("n_layer", 12),
        "heads": heads,
        "kv_heads": heads,
        "head_size": width // heads,
        "hidden": settings.take("n_inner", 4 * width),
        "activation": settings.activation(
            "activation_function", "gelu_new", {name: name for name in _ACTIVATIONS.values()}
        ),
        "norm": "layer",
        "norm_eps": settings.take("layer_norm_epsilon", 1e-5),
        "positions": "learned",
        "bias": True,
        "tied": settings.take("tie_word_embeddings", True),
        "dropout": settings.take("resid_pdrop", 0.1),
        "attention_dropout": settings.take("attn_pdrop", 0.1),
    }
    vocabulary_size = settings.take("vocab_size", 50257)
    return Description("gpt2", options, vocabulary_size, settings.take("n_positions", 1024))


def _rope(settings: Settings, length: int) -> Options:
    """Rotary positions from `rope_theta` and `rope_scaling`, or version 5's `rope_parameters`."""
    values = settings.values.get("rope_scaling") or settings.values.get("rope_parameters") or {}
    path = f"{settings.path}: rope"
    nested = not isinstance(values, dict) or any(isinstance(v, dict) for v in values.values())
    require(not nested, path, values, "an object of numbers and a rope_type")
    rope = Settings(path, values)
    settings.only("partial_rotary_factor", 1.0)
    rope.only("partial_rotary_factor", 1.0)
    base = rope.take("rope_theta", settings.take("rope_theta", 10000.0))
    kind = rope.take("rope_type", rope.take("type", "default"))
    one_of(f"{path}: rope_type", kind, tuple(_ROPE))
    numbers = [rope.take(name, float(length) * (name == _LLAMA3[-1])) for name in _ROPE[kind]]
    rising = kind != "llama3" or numbers[1] < numbers[2]
    names = ", ".join(("rope_theta", *_ROPE[kind]))
    expected = f"numbers above 0 for {names}, and the low factor below the high one"
    require(min([base, *numbers]) > 0 and rising, path, values, expected)
    return {"rope_base": base, "rope_scaling": (kind, *numbers) if numbers else ()}


def _llama(settings: Settings) -> Description:
    width, heads = settings.take("hidden_size", 4096), settings.take("num_attention_heads", 32)
    length = settings.take("max_position_embeddings", 2048)
    of_attention, of_mlp = settings.take("attention_bias", False), settings.take("mlp_bias", False)
    options = {
        "width": width,
        "depth": settings.take("num_hidden_layers", 32),
        "heads": heads,
        "kv_heads": settings.divisor("num_key_value_heads", heads, heads, "num_attention_heads"),
        "head_size": settings.take("head_dim", width // heads),
        "hidden": settings.take("intermediate_size", 11008),
        "activation": settings.activation("hidden_act", "silu", _GATED),
        "norm": "rms",
        "norm_eps": settings.take("rms_norm_eps", 1e-6),
        "positions": "rotary",
        **_rope(settings, length),
        "bias": of_attention or of_mlp,
        "tied": settings.take("tie_word_embeddings", False),
        "dropout": 0.0,
        "attention_dropout": settings.take("attention_dropout", 0.0),
    }
    bare = () if of_attention else ("qkv", "merge")
    bare = bare if of_mlp else (*bare, "up", "gate", "down")
    vocabulary_size = settings.take("vocab_size", 32000)
    return Description("llama", options, vocabulary_size, length, bare)


def read(path: str, values: Mapping[str, Any]) -> Description:
    """Converts the `values` of a config.json; errors name its `path`.

    Dropout of GPT-2 is `resid_pdrop`; dropout of Llama is 0.

    Raises:
      ConfigError: another type of model, a value of the wrong type, or a value that the decoder
        does not support.
    """
    settings = Settings(path, values)
    families = {"gpt2": _gpt2, "llama": _llama}
    kind = settings.take("model_type", "none")
    one_of(f"{path}: model_type", kind, tuple(families))
    quantised = values.get("quantization_config")
    require(quantised is None, f"{path}: quantization_config", quantised, "float weights, and null")
    return families[kind](settings)


def complete(options: Mapping[str, Any]) -> Options:
    """The decoder's options, with defaults for those that are missing or 0.

    Raises:
      ConfigError: an option that the decoder does not have.
    """
    parameters = signature(decoder.Network.__init__).parameters.values()
    complete_options = {p.name: p.default for p in parameters if p.default is not p.empty}
    for key in options:
        one_of("option of networks.decoder", key, tuple(complete_options))
    complete_options |= options
    width, heads = complete_options["width"], complete_options["heads"]
    complete_options["kv_heads"] = complete_options["kv_heads"] or heads
    complete_options["head_size"] = complete_options["head_size"] or width // heads
    complete_options["hidden"] = complete_options["hidden"] or 4 * width
    return complete_options


def _obstacles(o: Options, values: Mapping[str, tuple]) -> str:
    return ", ".join(
        f"{key}={' or '.join(map(repr, allowed))} (it is {o[key]!r})"
        for key, allowed in values.items()
        if o[key] not in allowed
    )


def family(o: Options) -> str:
    """The family that a decoder with complete options belongs to.

    Raises:
      ConfigError: it belongs to no family.
    """
    common = {"norm_first": (True,), "frames": (False,)}
    common["width"] = (o["width"] // o["heads"] * o["heads"],)
    needed = {
        "gpt2": {
            **common,
            "norm": ("layer",),
            "positions": ("learned",),
            "activation": tuple(dict.fromkeys(_ACTIVATIONS.values())),
            "kv_heads": (o["heads"],),
            "head_size": (o["width"] // o["heads"],),
        },
        "llama": {
            **common,
            "norm": ("rms",),
            "positions": ("rotary",),
            "activation": tuple(_GATED.values()),
        },
    }
    obstacles = {name: _obstacles(o, values) for name, values in needed.items()}
    for name, obstacle in obstacles.items():
        if not obstacle:
            return name
    listed = "; ".join(f"{name} needs {obstacle}" for name, obstacle in obstacles.items())
    raise ConfigError(f"Hugging Face's formats cannot describe this network: {listed}.")


def write(found: Description, dtype: str) -> dict[str, Any]:
    """The config.json of a model with complete options and parameters of `dtype`."""
    o = found.options
    ids = {key: found.special_tokens.get(name) for name, key in _SPECIAL.items()}
    if len(several := ends(found.special_tokens)) > 1:
        ids[_SPECIAL["eos"]] = list(several)
    common = {
        "vocab_size": found.vocabulary_size,
        "tie_word_embeddings": o["tied"],
        **ids,
        "dtype": dtype,
    }
    theirs = {ours: name for name, ours in reversed(_ACTIVATIONS.items())}
    if found.family == "gpt2":
        return {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_positions": found.length,
            "n_embd": o["width"],
            "n_layer": o["depth"],
            "n_head": o["heads"],
            "n_inner": o["hidden"],
            "activation_function": theirs[o["activation"]],
            "layer_norm_epsilon": o["norm_eps"],
            "resid_pdrop": o["dropout"],
            "embd_pdrop": o["dropout"],
            "attn_pdrop": o["attention_dropout"],
            **common,
        }
    kind, *numbers = o["rope_scaling"] or ("default",)
    scaling = {"rope_type": kind, **dict(zip(_ROPE[kind], numbers, strict=True))}
    if kind == "llama3":
        scaling[_LLAMA3[-1]] = int(scaling[_LLAMA3[-1]])
    plain = {gated: name for name, gated in _GATED.items()}
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": found.length,
        "hidden_size": o["width"],
        "intermediate_size": o["hidden"],
        "num_hidden_layers": o["depth"],
        "num_attention_heads": o["heads"],
        "num_key_value_heads": o["kv_heads"],
        "head_dim": o["head_size"],
        "hidden_act": theirs[plain[o["activation"]]],
        "rms_norm_eps": o["norm_eps"],
        "rope_theta": o["rope_base"],
        "rope_scaling": scaling if numbers else None,
        "attention_bias": o["bias"],
        "attention_dropout": o["attention_dropout"],
        "mlp_bias": o["bias"],
        **common,
    }
