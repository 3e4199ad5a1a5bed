"""Reads and writes Hugging Face folders: config.json and safetensors of GPT-2 and Llama models.

A folder is converted to options and parameters of `networks.decoder`, and back. Nothing is
unpickled, and models that this network cannot compute are refused. Names and meanings follow
https://github.com/huggingface/transformers, `models/gpt2` and `models/llama`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from genjax.config import ConfigError, require
from genjax.data import subwords
from genjax.files import read_json
from genjax.interop import huggingface_config, safetensors
from genjax.interop.huggingface_config import Description, Options
from genjax.nn.heads import grouped, side_by_side

Tree = Any

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
INDEX = f"{WEIGHTS}.index.json"
_STACKED = "body/blocks/"  # parameters of all layers, stacked
ROWS = 8  # most rows per kind of fault in a table of names


class Pretrained(NamedTuple):
    """A language model read from a folder.

    Attributes:
      options: of `networks.decoder.Network`.
      vocabulary_size: V.
      length: the maximum number of positions.
      params: of that network, float32.
      tokenizer: the path of tokenizer.json, if there is one.
    """

    options: dict[str, Any]
    vocabulary_size: int
    length: int
    params: Tree
    tokenizer: str | None


class _Family(NamedTuple):
    """How a family of models names its tensors; `{}` stands for the layer.

    Attributes:
      prefix: of all names except the head's; files may omit it.
      modules: our name -> their names; several of theirs are concatenated in ours.
      turned: whether the kernels of the blocks are [out, in].
      ignored: a regular expression for tensors that are not parameters.
    """

    prefix: str
    modules: dict[str, tuple[str, ...]]
    turned: bool
    ignored: str


_FAMILIES = {
    "gpt2": _Family(
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
        ignored=r"h\.\d+\.attn\.(masked_)?bias",
    ),
    "llama": _Family(
        prefix="model.",
        modules={
            "embed": ("embed_tokens",),
            "body/blocks/norm1": ("layers.{}.input_layernorm",),
            "body/blocks/qkv": tuple(f"layers.{{}}.self_attn.{x}_proj" for x in "qkv"),
            "body/blocks/merge": ("layers.{}.self_attn.o_proj",),
            "body/blocks/norm2": ("layers.{}.post_attention_layernorm",),
            "body/blocks/up": ("layers.{}.mlp.up_proj",),
            "body/blocks/gate": ("layers.{}.mlp.gate_proj",),
            "body/blocks/down": ("layers.{}.mlp.down_proj",),
            "body/norm": ("norm",),
            "head": ("lm_head",),
        },
        turned=True,
        ignored=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    ),
}


class _Leaf(NamedTuple):
    """One of our parameters, and their tensors that are concatenated in it, for every layer.

    Attributes:
      path: of our parameter.
      names: of their tensors; if empty, the parameter is zero.
      shapes: of their tensors as [in, out], without the layer axis.
      turned: whether their tensors are [out, in].
      kv_heads: if above 0, our columns are grouped by this many key heads (`nn.heads.grouped`).
      queries: the number of query columns, if they are.
    """

    path: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    turned: bool = False
    kv_heads: int = 0
    queries: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of our parameter, without the layer axis."""
        *lead, columns = self._concatenated
        return (
            (*lead, self.kv_heads, columns // self.kv_heads) if self.kv_heads else (*lead, columns)
        )

    @property
    def _concatenated(self) -> tuple[int, ...]:
        return (*self.shapes[0][:-1], sum(shape[-1] for shape in self.shapes))

    def expected(self, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the tensors in their file."""
        for name, shape in zip(self.names, self.shapes, strict=False):
            for layer in range(depth if "{}" in name else 1):
                yield name.format(layer), shape[::-1] if self.turned else shape

    def join(self, tensors: Mapping[str, np.ndarray], depth: int) -> np.ndarray:
        """Our parameter, in float32, from their tensors."""
        stacked = self.path.startswith(_STACKED)
        stack = np.zeros((depth if stacked else 1, *self.shape), np.float32)
        for layer, ours in enumerate(stack):
            layer_array, start = np.zeros(self._concatenated, np.float32), 0
            for name in self.names:
                array = tensors[name.format(layer)]
                array = array.T if self.turned else array
                layer_array[..., start : start + array.shape[-1]] = array
                start += array.shape[-1]
            by_head = (self.kv_heads, self.queries)
            ours[...] = grouped(layer_array, *by_head) if self.kv_heads else layer_array
        return stack if stacked else stack[0]

    def split(self, ours: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Names and tensors for their file; views of our parameter if it is not grouped."""
        layers = ours if self.path.startswith(_STACKED) else ours[None]
        for layer, layer_array in enumerate(layers):
            start = 0
            if self.kv_heads:
                layer_array = side_by_side(layer_array, self.queries)
            for name, shape in zip(self.names, self.shapes, strict=True):
                array = layer_array[..., start : start + shape[-1]]
                yield name.format(layer), array.T if self.turned else array
                start += shape[-1]


def _leaves(model: Description) -> Iterator[_Leaf]:
    """All parameters of the network that `model`, with complete options, describes."""
    _, modules, turned, _ = _FAMILIES[model.family]
    o, width = model.options, model.options["width"]
    queries, keys = o["heads"] * o["head_size"], o["kv_heads"] * o["head_size"]
    sizes = {
        "qkv": (width, (queries, keys, keys)),
        "merge": (queries, (width,)),
        "up": (width, (o["hidden"],)),
        "gate": (width, (o["hidden"],)),
        "down": (o["hidden"], (width,)),
    }
    for path, names in modules.items():
        last = path.rsplit("/", 1)[-1]
        weights = tuple(f"{name}.weight" for name in names)
        biases = tuple(f"{name}.bias" for name in names)
        if last == "embed":
            yield _Leaf(f"{path}/embedding", weights, ((model.vocabulary_size, width),))
        elif last == "positions":
            yield _Leaf(path, weights, ((model.length, width),))
        elif last == "head" and not o["tied"]:
            yield _Leaf(f"{path}/kernel", weights, ((width, model.vocabulary_size),), True)
        elif last.startswith("norm"):
            yield _Leaf(f"{path}/scale", weights, ((width,),))
            if o["norm"] == "layer" and o["bias"]:
                yield _Leaf(f"{path}/bias", biases, ((width,),))
        elif last in sizes:
            inner, outer = sizes[last]
            outer = outer if len(names) == len(outer) else (sum(outer),)
            by_head = (o["kv_heads"], queries) if last == "qkv" else ()
            shapes = tuple((inner, n) for n in outer)
            yield _Leaf(f"{path}/kernel", weights, shapes, turned, *by_head)
            if o["bias"]:
                theirs = () if last in model.bare else biases
                yield _Leaf(f"{path}/bias", theirs, tuple((n,) for n in outer), False, *by_head)


def _match(
    heading: str, expected: Mapping[str, tuple[int, ...]], actual: Mapping[str, Any]
) -> None:
    """Raises ConfigError with a table of missing, unexpected and mismatched arrays."""
    common = [name for name in actual if name in expected]
    faults = {
        "missing": [f"{name}  {list(expected[name])}" for name in expected if name not in actual],
        "unexpected": [f"{n:.99}  {list(a.shape)}" for n, a in actual.items() if n not in expected],
        "mismatched": [
            f"{name}  {actual[name].dtype}{list(actual[name].shape)}, "
            f"expected {list(expected[name])}"
            for name in common
            if actual[name].shape != expected[name]
            or not jnp.issubdtype(actual[name].dtype, jnp.floating)
        ],
    }
    lines = []
    for fault, rows in faults.items():
        lines += [f"  {fault:12}{row}" for row in sorted(rows)[:ROWS]]
        lines += [f"  {fault:12}and {len(rows) - ROWS} more"] if len(rows) > ROWS else []
    if lines:
        counts = ", ".join(f"{len(rows)} {fault}" for fault, rows in faults.items())
        raise ConfigError("\n".join([f"{heading} ({counts}):", *lines]))


def _tensors(folder: Path, family: _Family) -> dict[str, np.ndarray]:
    """The parameters in a folder, by name without the prefix."""
    path = next((folder / name for name in (WEIGHTS, INDEX) if (folder / name).is_file()), None)
    if path is None:
        raise ConfigError(
            f"there is no {WEIGHTS} and no {INDEX} in {folder}. Other formats are pickles, which "
            "are not read: save the model again with its save_pretrained()."
        )
    tensors = {}
    for name, array in safetensors.read(path).items():
        plain = name.removeprefix(family.prefix)
        require(
            plain not in tensors, f"{path}: tensor", name, "it once, with or without the prefix"
        )
        if not re.fullmatch(family.ignored, plain):
            tensors[plain] = array
    return tensors


def _drop_tied(path: str, model: Description, tensors: dict[str, np.ndarray]) -> None:
    """Removes the head from the tensors if the config says that it equals the embedding.

    Raises:
      ConfigError: they differ.
    """
    head, *_ = _FAMILIES[model.family].modules["head"]
    embedding, *_ = _FAMILIES[model.family].modules["embed"]
    weights = tensors.get(f"{head}.weight"), tensors.get(f"{embedding}.weight")
    if model.options["tied"] and all(array is not None for array in weights):
        require(
            np.array_equal(*weights), f"{path}: tie_word_embeddings", True, "false: they differ"
        )
        del tensors[f"{head}.weight"]


def _folder(path: str | Path) -> Path:
    """The folder of a model.

    Raises:
      ConfigError: it is missing, or is a file.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    reason = "it is a file" if folder.is_file() else "there is no such folder"
    if folder.suffix.lower() in (".bin", ".pt", ".pth", ".ckpt"):
        reason = "pickles of weights are not read"
    raise ConfigError(
        f"config.weights={str(path)!r}: {reason}. Give the folder with the model's {CONFIG} and "
        f"{WEIGHTS}, as save_pretrained() of transformers writes it, or as it is downloaded from "
        "Hugging Face."
    )


def describe(folder: str | Path) -> Pretrained:
    """The result of `read` without loading the parameters: `params` is None.

    Raises:
      ConfigError: config.json is missing or damaged, or describes another type of model or a
        computation that the decoder does not support.
    """
    folder = _folder(folder)
    config_path = str(folder / CONFIG)
    model = huggingface_config.read(config_path, read_json(config_path))
    tokenizer = str(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else None
    sizes = model.vocabulary_size, model.length
    return Pretrained(model.options, *sizes, None, tokenizer)


def read(folder: str | Path) -> Pretrained:
    """Reads a GPT-2 or Llama model for `networks.decoder` from a Hugging Face folder.

    If only the attention or only the MLP of a Llama has biases, those of the other are zero.

    Raises:
      ConfigError: a file is missing or damaged, the model's type or a computation is not supported
        by the decoder, or names, shapes or dtypes of tensors do not fit config.json.
    """
    folder = _folder(folder)
    config_path = str(folder / CONFIG)
    model = huggingface_config.read(config_path, read_json(config_path))
    tensors = _tensors(folder, _FAMILIES[model.family])
    check_depth(config_path, model, len(tensors))
    _drop_tied(config_path, model, tensors)
    heading = f"the tensors in {folder} do not fit its {CONFIG}"
    return describe(folder)._replace(params=parameters(heading, model, tensors, tensors))


def check_depth(path: str, model: Description, tensors: int) -> None:
    """Raises ConfigError if the file at `path` says that a model has more layers than tensors."""
    depth = model.options["depth"]
    require(depth <= tensors, f"{path}: layers", depth, f"at most {tensors}, as many as tensors")


def parameters(
    heading: str,
    model: Description,
    shapes: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
) -> Tree:
    """The parameters of `networks.decoder`, in float32, from tensors by transformers' names.

    Args:
      heading: begins the error if the tensors are not those of the model.
      model: what the network is like.
      shapes: of each tensor, by name without the prefix, what has its `shape` and `dtype`.
      tensors: each tensor, which is asked for once.

    Raises:
      ConfigError: tensors are missing, are unexpected, or have another shape or dtype.
    """
    leaves, depth = list(_leaves(model)), model.options["depth"]
    expected = dict(pair for leaf in leaves for pair in leaf.expected(depth))
    _match(heading, expected, shapes)
    params = {leaf.path: leaf.join(tensors, depth) for leaf in leaves}
    return unflatten_dict(params, sep="/")


def _tokenizer_files(model: Description, text: str, begins: Sequence[int]) -> dict[str, Any]:
    """tokenizer.json, and tokenizer_config.json, by which `transformers` uses it unchanged.

    tokenizer_config.json also names the special tokens. Texts must begin with the tokens `begins`;
    if tokenizer.json does not put them there, a post-processor that does is written into it.

    If `text` is a run's own form that wraps a Hugging Face tokenizer, the wrapped one is written. A
    tokenizer of bytes or characters is written unchanged, and only genjax reads it.
    """
    stored = json.loads(text)
    state = stored.get("tokenizer", stored)
    if "model" not in state:
        return {TOKENIZER: state}
    content = {token["id"]: token["content"] for token in state.get("added_tokens", ())}
    names = {"start": "bos_token", "eos": "eos_token", "pad": "pad_token"}
    tokens = {
        names[name]: content[number]
        for name, number in model.special_tokens.items()
        if name in names and number in content
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": model.length}
    config |= {"clean_up_tokenization_spaces": False, **tokens}
    if stored.get("chat_template"):
        config["chat_template"] = stored["chat_template"]
    if tuple(begins) != subwords.begins(state.get("post_processor")):
        state = {
            **state,
            "post_processor": _template([content[number] for number in begins], begins),
        }
    return {TOKENIZER: state, TOKENIZER_CONFIG: config}


def _template(names: Sequence[str], ids: Sequence[int]) -> dict[str, Any]:
    """The post-processor that puts these tokens in front of a text."""
    pieces = [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]
    single = [*pieces, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            name: {"id": name, "ids": [number], "tokens": [name]}
            for name, number in zip(names, ids, strict=True)
        },
    }


def write(
    folder: str | Path,
    options: Options,
    vocabulary_size: int,
    length: int,
    params: Tree,
    tokenizer: str | None = None,
    special_tokens: Mapping[str, int] | None = None,
    begins: Sequence[int] = (),
) -> None:
    """Writes a folder that `transformers` loads with `from_pretrained`.

    GPT-2 always has biases: for a network without biases, zeros are written.

    Args:
      folder: created if missing; files in it are replaced.
      options: of `networks.decoder.Network`; missing ones take their defaults.
      vocabulary_size: V.
      length: the maximum number of positions.
      params: of the network, arrays on this host; they are written in their own dtype.
      tokenizer: the text of a tokenizer.json, of Hugging Face or of a run.
      special_tokens: the ids "start", "eos" and "pad", if they exist, and "eos_2" and so on for
        further end tokens.
      begins: the ids that a prompt begins with, as in training.

    Raises:
      ConfigError: neither GPT-2 nor Llama supports these options, or the parameters do not fit
        them.
    """
    folder = Path(folder)
    all_options = huggingface_config.complete(options)
    family = huggingface_config.family(all_options)
    model = Description(family, all_options, vocabulary_size, length, (), special_tokens or {})
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): array
        for path, array in jax.tree_util.tree_leaves_with_path(params)
    }
    leaves = list(_leaves(model))
    depth = (all_options["depth"],)
    expected = {leaf.path: depth * leaf.path.startswith(_STACKED) + leaf.shape for leaf in leaves}
    _match("the parameters do not fit the options", expected, arrays)
    if family == "gpt2" and not all_options["bias"]:
        leaves = list(_leaves(model._replace(options={**all_options, "bias": True})))
        dtype = arrays["embed/embedding"].dtype
        for leaf in leaves:
            shape = depth * leaf.path.startswith(_STACKED) + leaf.shape
            arrays.setdefault(leaf.path, np.zeros(shape, dtype))
    tensors = {}
    for leaf in leaves:
        for name, array in leaf.split(np.asarray(arrays[leaf.path])):
            head = leaf.path.startswith("head/")
            tensors[name if head else f"{_FAMILIES[family].prefix}{name}"] = array
    files = {CONFIG: huggingface_config.write(model, arrays["embed/embedding"].dtype.name)}
    if tokenizer is not None:
        files |= _tokenizer_files(model, tokenizer, begins)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write(folder / WEIGHTS, tensors, {"format": "pt"})
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(f"{text}\n", encoding="utf-8")
