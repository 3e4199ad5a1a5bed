"""config.json of language models, as options of `networks.decoder`, and back.

What its keys mean is told by the modules of `architectures`. Models that the decoder cannot compute
are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from genjax.config import ConfigError, one_of, require
from genjax.data.alphabets import ends
from genjax.interop import architectures
from genjax.interop.architecture import Architecture, Description, Options, Settings
from genjax.networks import decoder

_SPECIAL = {"start": "bos_token_id", "eos": "eos_token_id", "pad": "pad_token_id"}
# Options that say how a network is trained, not what it computes.
_OF_TRAINING = ("dropout", "attention_dropout", "init_std", "remat", "dtype")
_NEAREST = 3  # architectures that an error about an export explains


def read(path: str, values: Mapping[str, Any]) -> Description:
    """Converts the `values` of a config.json; errors name its `path`.

    Raises:
      ConfigError: another type of model, a value of the wrong type, or a value that the decoder
        does not support.
    """
    settings = Settings(path, values)
    name = settings.take("model_type", "none")
    one_of(f"{path}: model_type", name, architectures.names())
    quantised = values.get("quantization_config")
    require(quantised is None, f"{path}: quantization_config", quantised, "float weights, and null")
    architecture = architectures.find(name)
    length = settings.take(*architecture.length)
    options = _options(architecture, settings, length)
    return Description(name, options, settings.take(*architecture.vocabulary_size), length)


def _value(architecture: Architecture, settings: Settings, option: str, options: Options) -> Any:
    """The value of an option in `keys`."""
    key, default = architecture.keys[option]
    default = default(options) if callable(default) else default
    if option == "activation":
        known, value = architecture.activations(), settings.take(key, default)
        one_of(f"{settings.path}: {key}", value, tuple(known))
        return known[value]
    if option == "kv_heads":
        heads, name = options["heads"], architecture.keys["heads"][0]
        default = heads if key in settings.values else default  # null
        return settings.divisor(key, default, heads, name)
    if option == "heads" and "head_size" not in architecture.keys:
        return settings.divisor(key, default, options["width"], architecture.keys["width"][0])
    return settings.take(key, default)


def _options(architecture: Architecture, settings: Settings, length: int) -> Options:
    """The decoder's options by a config.json."""
    for key, value in architecture.only.items():
        settings.only(key, value)
    options: Options = {}
    for option in architecture.keys:
        options[option] = _value(architecture, settings, option, options)
    options.setdefault("kv_heads", options["heads"])
    options.setdefault("head_size", options["width"] // options["heads"])
    options |= architecture.fixed_options(options)
    for part in architecture.parts:
        options |= part.read(settings, options, length)
    return options


def complete(options: Mapping[str, Any]) -> Options:
    """The decoder's options, with defaults for those that are missing or 0.

    Raises:
      ConfigError: an option that the decoder does not have.
    """
    complete_options = _defaults()
    for key in options:
        one_of("option of networks.decoder", key, tuple(complete_options))
    complete_options |= options
    width, heads = complete_options["width"], complete_options["heads"]
    complete_options["kv_heads"] = complete_options["kv_heads"] or heads
    complete_options["head_size"] = complete_options["head_size"] or width // heads
    complete_options["hidden"] = complete_options["hidden"] or 4 * width
    complete_options["rope_scaling"] = tuple(complete_options["rope_scaling"])
    if not complete_options["bias"]:
        complete_options["bias_of"] = "all"
    return complete_options


def _defaults() -> Options:
    parameters = signature(decoder.Network.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def family(o: Options) -> str:
    """The architecture that a decoder with complete options belongs to; the first of several.

    Raises:
      ConfigError: it belongs to none.
    """
    obstacles = {n: _obstacles(architectures.find(n), o) for n in architectures.names()}
    nearest = sorted(obstacles, key=lambda name: len(obstacles[name]))
    if not obstacles[nearest[0]]:
        return nearest[0]
    listed = "; ".join(f"{name} needs {', '.join(obstacles[name])}" for name in nearest[:_NEAREST])
    raise ConfigError(
        f"Hugging Face's formats cannot describe this network. Of {', '.join(obstacles)} the "
        f"nearest: {listed}."
    )


def _obstacles(architecture: Architecture, o: Options) -> list[str]:
    """What keeps an architecture from describing a decoder with complete options."""
    fixed = architecture.fixed_options(o)
    allowed = {option: (default,) for option, default in _defaults().items()}
    allowed |= {option: (value,) for option, value in fixed.items()}
    allowed |= {option: () for option in (*architecture.keys, *_OF_TRAINING)}
    allowed |= architecture.allowed
    allowed["activation"] = tuple(dict.fromkeys(architecture.activations().values()))
    allowed["width"] = (o["width"] // o["heads"] * o["heads"],)
    if "kv_heads" not in architecture.keys:
        allowed["kv_heads"] = (o["heads"],)
    if "head_size" not in architecture.keys:
        allowed["head_size"] = (o["width"] // o["heads"],)
    for option in architecture.added:
        allowed[option] = ()
    return [
        f"{option}={' or '.join(map(repr, values))} (it is {o[option]!r})"
        for option, values in allowed.items()
        if values and o[option] not in values
    ]


def write(found: Description, dtype: str) -> dict[str, Any]:
    """The config.json of a model with complete options and parameters of `dtype`."""
    o, architecture = found.options, architectures.find(found.architecture)
    theirs = {ours: name for name, ours in reversed(architecture.activations().items())}
    values = {key: o[option] for option, (key, _) in architecture.keys.items()}
    values[architecture.keys["activation"][0]] = theirs[o["activation"]]
    for part in architecture.parts:
        values |= part.write(o, found.length)
    ids = {key: found.special_tokens.get(role) for role, key in _SPECIAL.items()}
    if len(several := ends(found.special_tokens)) > 1:
        ids[_SPECIAL["eos"]] = list(several)
    return {
        "model_type": found.architecture,
        "architectures": [architecture.model],
        architecture.length[0]: found.length,
        architecture.vocabulary_size[0]: found.vocabulary_size,
        **values,
        **ids,
        "dtype": dtype,
    }
