"""What a type of language models is: the tables by which config.json and tensors are read.

Options are those of `networks.decoder`. Each type is a module of `architectures`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from genjax.config import require
from genjax.networks.transformer import ACTIVATIONS, GATED

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
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


class Description(NamedTuple):
    """The content of a config.json.

    Attributes:
      architecture: the type of the model, a name in `architectures`.
      options: of `networks.decoder.Network`.
      vocabulary_size: V.
      length: the maximum number of positions.
      special_tokens: for writing: the ids "start", "eos" and "pad", if they exist, and "eos_2" and
        so on. When reading, they come with the tokenizer instead.
    """

    architecture: str
    options: Options
    vocabulary_size: int
    length: int
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


class Part(NamedTuple):
    """Options and keys that do not belong together one by one.

    Attributes:
      read: (settings, the options so far, maximum number of positions) -> options.
      write: (options, maximum number of positions) -> values of config.json.
    """

    read: Callable[[Settings, Options, int], Options]
    write: Callable[[Options, int], dict[str, Any]]


class Architecture(NamedTuple):
    """What config.json and the tensors of a type of models say, as tables.

    Attributes:
      model: the class of transformers.
      vocabulary_size: the key of the vocabulary's size, and its default.
      length: the key of the maximum number of positions, and its default.
      keys: option -> its key, and its default: a value, or a function of the options so far. Names
        of activations are theirs.
      fixed: option -> its value in all models of the type, or a function of the options in `keys`.
      parts: what reads and writes other options.
      allowed: option of a part -> the values that the type has.
      only: key -> its one value that the decoder computes with.
      prefix: of the names of all tensors except the head's; files may omit it.
      modules: our name -> their names; several of theirs are concatenated in ours. `{}` stands for
        the layer.
      turned: whether the kernels of the blocks are [out, in].
      by_head: whether the rows of the one module for `qkv` are those of each head in turn.
      added: options with which networks without these are written; what that adds is zero.
      ignored: a regular expression for tensors that are not parameters.
    """

    model: str
    vocabulary_size: tuple[str, int]
    length: tuple[str, int]
    keys: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, Any]
    prefix: str
    modules: Mapping[str, tuple[str, ...]]
    parts: tuple[Part, ...] = ()
    allowed: Mapping[str, tuple] = {}
    only: Mapping[str, Any] = {}
    turned: bool = True
    by_head: bool = False
    added: Mapping[str, Any] = {}
    ignored: str = r"(layers\.\d+\.\w+\.)?rotary_emb\.inv_freq"

    def activations(self) -> dict[str, str]:
        """Their names of the activations that the type can have -> ours."""
        if "body/blocks/gate" not in self.modules:
            return _ACTIVATIONS
        gated = {function: name for name, function in GATED.items()}
        ours = {name: gated.get(ACTIVATIONS[plain]) for name, plain in _ACTIVATIONS.items()}
        return {name: activation for name, activation in ours.items() if activation}

    def fixed_options(self, options: Options) -> Options:
        """The options in `fixed` of a model with these `options`."""
        return {k: value(options) if callable(value) else value for k, value in self.fixed.items()}
