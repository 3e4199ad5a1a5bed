"""Adapters alone in peft's format: adapter_config.json and adapter_model.safetensors.

They are of a `networks.decoder` of one of `architectures`. Queries, keys and values are one kernel
here and may be three there. One A here is then the A of all three there; three different ones
become the columns of one A, whose rank is the sum of theirs. Names and meanings follow
https://github.com/huggingface/peft, `tuners/lora`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from genjax.adapters import Adapter
from genjax.checks import ConfigError, is_number, require
from genjax.files import read_json
from genjax.interop import architectures, huggingface_config, safetensors
from genjax.interop.architecture import Description
from genjax.interop.leaves import leaves
from genjax.nn import low_rank
from genjax.nn.heads import grouped, side_by_side

Tree = Any
Factors = dict[str, np.ndarray]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of the names of tensors
MAGNITUDE = "lora_magnitude_vector"
# Keys of adapter_config.json -> the values with which it is what is computed here.
_ONLY = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None,),
}


class Network(NamedTuple):
    """A `networks.decoder`, and what of it is adapted.

    Attributes:
      options: of `networks.decoder.Network`.
      vocabulary_size: V.
      length: the maximum number of positions.
      adapters: path of a kernel -> its adapter.
      kind: "lora" or "dora".
    """

    options: Mapping[str, Any]
    vocabulary_size: int
    length: int
    adapters: Mapping[str, Adapter]
    kind: str

    def described(self) -> Description:
        """What transformers calls it.

        Raises:
          ConfigError: no architecture has its options.
        """
        options = huggingface_config.complete(self.options)
        name = huggingface_config.family(options)
        return Description(name, options, self.vocabulary_size, self.length)


class Columns(NamedTuple):
    """How the outputs of one of our kernels are those of their modules.

    Attributes:
      modules: names in transformers, whose outputs lie side by side; `{}` stands for the layer.
      sizes: the number of outputs of each.
      ours: outputs [..., F] side by side -> as in our kernel.
      theirs: the inverse.
    """

    modules: tuple[str, ...]
    sizes: tuple[int, ...]
    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


def _columns(model: Description) -> dict[str, Columns]:
    """The linear maps of a network: path of our kernel -> its columns."""
    architecture, found = architectures.find(model.architecture), {}
    for leaf in leaves(model, architecture):
        if not leaf.path.endswith("/kernel"):
            continue
        before = "" if leaf.path.startswith("head/") else architecture.prefix
        modules = tuple(before + name.removesuffix(".weight") for name in leaf.names)
        sizes = tuple(shape[-1] for shape in leaf.shapes)
        ours = theirs = np.asarray
        if leaf.queries:
            ours = partial(grouped, kv_heads=leaf.kv_heads, queries=leaf.queries)
            theirs = partial(side_by_side, queries=leaf.queries)
        elif leaf.kv_heads:
            ours, theirs = partial(_by_head, leaf.kv_heads), _flat
        found[leaf.path] = Columns(modules, sizes, ours, theirs)
    return found


def _by_head(kv_heads: int, columns: np.ndarray) -> np.ndarray:
    return columns.reshape(*columns.shape[:-1], kv_heads, -1)


def _flat(columns: np.ndarray) -> np.ndarray:
    return columns.reshape(*columns.shape[:-2], -1)


# ---- reading -------------------------------------------------------------------------------------


class _File(NamedTuple):
    """A folder of peft, read."""

    folder: Path
    values: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]  # by name without the prefix and ".weight"
    taken: set[str]

    def rank(self, module: str) -> int:
        """The rank of the adapter of a module, if it has one."""
        return int(self._of(module, "rank_pattern", "r"))

    def scale(self, module: str) -> float:
        """What the product of the factors of a module is multiplied by."""
        rank, alpha = self.rank(module), self._of(module, "alpha_pattern", "lora_alpha")
        return alpha / (math.sqrt(rank) if self.values.get("use_rslora") else rank)

    def _of(self, module: str, pattern: str, default: str) -> float:
        for regex, value in (self.values.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({regex})$", module):
                return value
        return self.values[default]

    def tensor(self, name: str, expected: tuple[int, ...]) -> np.ndarray | None:
        """A tensor, in float32; None if there is none.

        Raises:
          ConfigError: it has another shape.
        """
        array = self.tensors.get(name)
        if array is None:
            return None
        self.taken.add(name)
        require(
            array.shape == expected,
            f"the shape of {name} in {self.folder / WEIGHTS}",
            list(array.shape),
            f"{list(expected)}: the adapters are of another base, {self.base}",
        )
        return np.asarray(array, np.float32)

    @property
    def base(self) -> str:
        """The model that the adapters were trained on, as the file names it."""
        return repr(self.values.get("base_model_name_or_path") or "unknown")


def _opened(folder: Path) -> _File:
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(
            f"config.lora.weights={str(folder)!r}: there is no {CONFIG}. Give a folder that "
            "save_pretrained() of peft or --mode=export --format=peft wrote."
        )
    values = read_json(str(path))
    for key, allowed in _ONLY.items():
        value = values.get(key)
        require(value in allowed or key not in values, f"{path}: {key}", value, f"{allowed[0]!r}")
    for key in ("r", "lora_alpha"):
        value = values.get(key)
        require(is_number(value) and value > 0, f"{path}: {key}", value, "a number above 0")
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = values.get(key) or {}
        valid = isinstance(patterns, dict) and all(
            is_number(value) and value > 0 and _is_regex(regex) for regex, value in patterns.items()
        )
        require(valid, f"{path}: {key}", patterns, "regular expressions -> numbers above 0")
    tensors = {
        name.removeprefix(PREFIX).removesuffix(".weight"): array
        for name, array in safetensors.read(folder / WEIGHTS).items()
        if not name.endswith(".base_layer.weight")  # a copy of the base's own, which is frozen
    }
    return _File(folder, values, tensors, set())


def _is_regex(text: str) -> bool:
    """Whether it is one, without a repeated group: files of strangers could use it to hang."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return False
    return not re.search(r"\)[*+?{]", text)


def read(folder: str | Path, network: Network, base: Tree, begun: Tree) -> Tree:
    """The factors in a folder, for a network with adapters.

    Args:
      folder: that `save_pretrained` of peft wrote.
      network: whose adapters they become.
      base: its parameters, on the host.
      begun: factors whose updates are zero; those of a rank that the folder leaves over stay.

    Raises:
      ConfigError: files are missing or damaged, or the adapters are of another network, kind or
        kernels, or of a larger rank.
    """
    file, model = _opened(Path(folder)), network.described()
    kind = "dora" if file.values.get("use_dora") else "lora"
    require(network.kind == kind, "config.lora.kind", network.kind, f"{kind!r}, as in {folder}")
    columns = _columns(model)
    _check_linear(network, columns, "config.lora.weights")
    kernels, factors = flatten_dict(base, sep="/"), flatten_dict(begun, sep="/")
    for path, adapter in network.adapters.items():
        parts = _factors(file, path, columns[path], adapter, factors)
        if kind == "dora":
            parts["magnitude"] = _magnitude(file, columns[path], adapter, kernels[path])
        factors |= {f"{path}/{part}": array for part, array in parts.items()}
    if left := sorted(file.tensors.keys() - file.taken):
        raise ConfigError(
            f"{file.folder / WEIGHTS} has {len(left)} tensors such as {left[0]!r}, and the run has "
            f"adapters for {', '.join(network.adapters)}. Name all of its kernels in "
            f"config.adapters, and give the model that it was trained on, {file.base}."
        )
    return unflatten_dict(factors, sep="/")


def _check_linear(network: Network, columns: Mapping[str, Columns], key: str) -> None:
    for path in network.adapters:
        if path not in columns:
            raise ConfigError(
                f"{key}: peft has no adapter like that of {path!r}, which is not a linear map. "
                f"Kernels with adapters in peft: {', '.join(columns)}. A whole model is written "
                "with --format=huggingface."
            )


def _factors(
    file: _File, path: str, columns: Columns, adapter: Adapter, begun: Mapping[str, np.ndarray]
) -> Factors:
    """The factors of one of our kernels, of every layer."""
    shapes, (inputs, outputs) = adapter.layout.shapes(adapter.rank, "lora"), adapter.layout.sides
    a = np.array(begun[f"{path}/a"], np.float32).reshape(-1, inputs, adapter.rank)
    b = np.zeros((len(a), adapter.rank, outputs), np.float32)
    for layer in range(len(a)):
        lefts, rights, start = [], [], 0
        for module, size in zip(columns.modules, columns.sizes, strict=True):
            name = module.format(layer)
            left = file.tensor(f"{name}.lora_A", (file.rank(name), inputs))
            right = file.tensor(f"{name}.lora_B", (size, file.rank(name)))
            if left is not None and right is not None:
                wide = np.zeros((len(left), outputs), np.float32)
                wide[:, start : start + size] = right.T * (file.scale(name) / adapter.scale)
                lefts, rights = [*lefts, left], [*rights, wide]
            start += size
        if len(lefts) > 1 and all(np.array_equal(lefts[0], left) for left in lefts):
            lefts, rights = lefts[:1], [sum(rights)]
        rank = sum(map(len, lefts))
        several = f", {len(columns.modules)} matrices that are one here" * (len(lefts) > 1)
        least = f"at least {rank}, the rank in {file.folder}{several}"
        require(rank <= adapter.rank, f"config.adapters: the rank for {path}", adapter.rank, least)
        if rank:
            a[layer, :, :rank] = np.concatenate(lefts).T
            b[layer, :rank] = columns.ours(np.concatenate(rights)).reshape(rank, outputs)
    return {"a": a.reshape(shapes["a"]), "b": b.reshape(shapes["b"])}


def _magnitude(file: _File, columns: Columns, adapter: Adapter, kernel: np.ndarray) -> np.ndarray:
    """How far the magnitudes are from the lengths of the kernel; 0 where the file has none."""
    lengths = np.asarray(low_rank.lengths(adapter.layout, kernel))
    given = np.array(lengths) if adapter.layout.stack else np.array(lengths)[None]
    splits = np.cumsum(columns.sizes)[:-1]
    for layer, own in enumerate(given):
        parts = np.split(columns.theirs(own), splits)
        for number, module in enumerate(columns.modules):
            name = f"{module.format(layer)}.{MAGNITUDE}"
            found = file.tensor(name, parts[number].shape)
            parts[number] = parts[number] if found is None else found
        given[layer] = columns.ours(np.concatenate(parts))
    return given.reshape(lengths.shape) - lengths


# ---- writing -------------------------------------------------------------------------------------


def write(
    folder: str | Path,
    network: Network,
    alpha: float,
    base: Tree,
    factors: Tree,
    base_name: str = "",
) -> None:
    """Writes a folder that `PeftModel.from_pretrained` of peft reads.

    Args:
      folder: created if missing; files in it are replaced.
      network: whose adapters they are.
      alpha: the scale of each adapter is alpha / rank.
      base: the parameters of the network, on the host.
      factors: those of its adapters, on the host.
      base_name: of the model, as `from_pretrained` of transformers takes it.

    Raises:
      ConfigError: no architecture has the options of the network, or a kernel with an adapter is
        not one of a linear map there.
    """
    model = network.described()
    columns = _columns(model)
    _check_linear(network, columns, "--format=peft")
    kernels, flat = flatten_dict(base, sep="/"), flatten_dict(factors, sep="/")
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    last = [_target(module, 1) for known in columns.values() for module in known.modules]
    for path, adapter in network.adapters.items():
        known = columns[path]
        parts = {part: np.asarray(flat[f"{path}/{part}"]) for part in ("a", "b")}
        if network.kind == "dora":
            lengths = low_rank.lengths(adapter.layout, kernels[path])
            parts["m"] = np.asarray(lengths + flat[f"{path}/magnitude"])
        if not adapter.layout.stack:
            parts = {part: array[None] for part, array in parts.items()}
        splits = np.cumsum(known.sizes)[:-1]
        for layer, left in enumerate(parts["a"]):
            names = [PREFIX + module.format(layer) for module in known.modules]
            tensors |= {f"{name}.lora_A.weight": left.T for name in names}
            rights = np.split(known.theirs(parts["b"][layer]), splits, axis=-1)
            tensors |= {f"{n}.lora_B.weight": b.T for n, b in zip(names, rights, strict=True)}
            if "m" in parts:
                vectors = np.split(known.theirs(parts["m"][layer]), splits)
                tensors |= {f"{n}.{MAGNITUDE}": m for n, m in zip(names, vectors, strict=True)}
        for module in known.modules:
            short = _target(module, 1)
            ranks[short if last.count(short) == 1 else _target(module, 2)] = adapter.rank
    rank = max(ranks.values(), key=list(ranks.values()).count)
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name or None,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "rank_pattern": {name: other for name, other in ranks.items() if other != rank},
        "alpha_pattern": {},
        "lora_dropout": 0.0,
        "use_dora": network.kind == "dora",
        "use_rslora": False,
        "fan_in_fan_out": not architectures.find(model.architecture).turned,
        "target_modules": sorted(ranks),
        "bias": "none",
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write(folder / WEIGHTS, tensors, {"format": "pt"})
    (folder / CONFIG).write_text(f"{json.dumps(values, indent=2)}\n", encoding="utf-8")


def _target(module: str, parts: int) -> str:
    """The last parts of the name of a module."""
    return ".".join(module.split(".")[-parts:])
