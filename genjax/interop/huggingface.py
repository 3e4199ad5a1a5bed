"""Reads and writes folders of Hugging Face: config.json and safetensors of GPT-2 and Llama models.

A folder becomes the options and the parameters of `networks.decoder`, and back. Nothing is
unpickled, and what that network does not compute is refused. Names and meanings are those of
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

Tree = Any

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
INDEX = f"{WEIGHTS}.index.json"
_STACKED = "body/blocks/"  # parameters of all layers, stacked
ROWS = 8  # of a table of names, at most, for each kind of fault


class Pretrained(NamedTuple):
    """A language model out of a folder.

    Attributes:
      options: of `networks.decoder.Network`.
      vocabulary_size: V.
      length: the most positions.
      params: of that network, float32.
      tokenizer: the path of tokenizer.json, if there is one.
    """

    options: dict[str, Any]
    vocabulary_size: int
    length: int
    params: Tree
    tokenizer: str | None


class _Family(NamedTuple):
    """How a family of models names its tensors; `{}` is the layer.

    Attributes:
      prefix: of all but the head; it may be left out.
      modules: ours -> theirs; several of theirs lie side by side in ours.
      turned: whether the kernels of the blocks are [out, in].
      ignored: what is no parameter, a regular expression.
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
    """A parameter of ours, and the tensors that lie side by side in it, in every layer."""

    path: str
    names: tuple[str, ...]  # theirs; none: it is zero
    shapes: tuple[tuple[int, ...], ...]  # as in ours, without the layers
    turned: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Ours, without the layers."""
        return (*self.shapes[0][:-1], sum(shape[-1] for shape in self.shapes))

    def expected(self, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes in their file."""
        for name, shape in zip(self.names, self.shapes, strict=False):
            for layer in range(depth if "{}" in name else 1):
                yield name.format(layer), shape[::-1] if self.turned else shape

    def join(self, found: Mapping[str, np.ndarray], depth: int) -> np.ndarray:
        """Ours, in float32, of their tensors."""
        stacked = self.path.startswith(_STACKED)
        joined = np.zeros((depth if stacked else 1, *self.shape), np.float32)
        for layer, whole in enumerate(joined):
            at = 0
            for name in self.names:
                array = found[name.format(layer)]
                array = array.T if self.turned else array
                whole[..., at : at + array.shape[-1]] = array
                at += array.shape[-1]
        return joined if stacked else joined[0]

    def split(self, ours: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Names and tensors of their file, views of ours."""
        layers = ours if self.path.startswith(_STACKED) else ours[None]
        for layer, whole in enumerate(layers):
            at = 0
            for name, shape in zip(self.names, self.shapes, strict=True):
                array = whole[..., at : at + shape[-1]]
                yield name.format(layer), array.T if self.turned else array
                at += shape[-1]


def _leaves(model: Description) -> Iterator[_Leaf]:
    """All parameters of the network that a description, with complete options, is of."""
    _, modules, turned, _ = _FAMILIES[model.family]
    o, width = model.options, model.options["width"]
    queries, others = o["heads"] * o["head_size"], o["kv_heads"] * o["head_size"]
    sizes = {
        "qkv": (width, (queries, others, others)),
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
            yield _Leaf(f"{path}/kernel", weights, tuple((inner, n) for n in outer), turned)
            if o["bias"]:
                theirs = () if last in model.bare else biases
                yield _Leaf(f"{path}/bias", theirs, tuple((n,) for n in outer))


def _match(what: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Any]) -> None:
    """Raises ConfigError with a table of what is missing, unexpected or of another shape."""
    both = [name for name in found if name in expected]
    faults = {
        "missing": [f"{name}  {list(expected[name])}" for name in expected if name not in found],
        "unexpected": [f"{n:.99}  {list(a.shape)}" for n, a in found.items() if n not in expected],
        "mismatched": [
            f"{name}  {found[name].dtype}{list(found[name].shape)}, expected {list(expected[name])}"
            for name in both
            if found[name].shape != expected[name]
            or not jnp.issubdtype(found[name].dtype, jnp.floating)
        ],
    }
    lines = []
    for fault, rows in faults.items():
        lines += [f"  {fault:12}{row}" for row in sorted(rows)[:ROWS]]
        lines += [f"  {fault:12}and {len(rows) - ROWS} more"] if len(rows) > ROWS else []
    if lines:
        counts = ", ".join(f"{len(rows)} {fault}" for fault, rows in faults.items())
        raise ConfigError("\n".join([f"{what} ({counts}):", *lines]))


def _tensors(folder: Path, family: _Family) -> dict[str, np.ndarray]:
    """The tensors in a folder without the prefix, and without what is no parameter."""
    path = next((folder / name for name in (WEIGHTS, INDEX) if (folder / name).is_file()), None)
    if path is None:
        raise ConfigError(
            f"there is no {WEIGHTS} and no {INDEX} in {folder}. Other formats are pickles, which "
            "are not read: write the model anew with its save_pretrained()."
        )
    found = {}
    for name, array in safetensors.read(path).items():
        plain = name.removeprefix(family.prefix)
        require(plain not in found, f"{path}: tensor", name, "it once, with or without the prefix")
        if not re.fullmatch(family.ignored, plain):
            found[plain] = array
    return found


def _drop_tied(what: str, model: Description, found: dict[str, np.ndarray]) -> None:
    """Takes the head out of the tensors if it is the embedding, and so is said to be."""
    head, *_ = _FAMILIES[model.family].modules["head"]
    embedding, *_ = _FAMILIES[model.family].modules["embed"]
    given = found.get(f"{head}.weight"), found.get(f"{embedding}.weight")
    if model.options["tied"] and all(array is not None for array in given):
        require(np.array_equal(*given), f"{what}: tie_word_embeddings", True, "false: they differ")
        del found[f"{head}.weight"]


def _folder(given: str | Path) -> Path:
    """The folder of a model.

    Raises:
      ConfigError: it is a file, such as a .gguf, or not there.
    """
    folder = Path(given)
    if folder.is_dir():
        return folder
    what = "it is a file" if folder.is_file() else "there is no such folder"
    if folder.suffix.lower() == ".gguf":
        what = "files of GGUF are not read"
    elif folder.suffix.lower() in (".bin", ".pt", ".pth", ".ckpt"):
        what = "pickles of weights are not read"
    raise ConfigError(
        f"config.weights={str(given)!r}: {what}. Give the folder with the model's {CONFIG} and "
        f"{WEIGHTS}, as save_pretrained() of transformers writes it, or as it is downloaded from "
        "Hugging Face."
    )


def describe(folder: str | Path) -> Pretrained:
    """What `read` gives, without the parameters, which are not looked at: `params` is None.

    Raises:
      ConfigError: there is no config.json, or it is damaged, of another type of model, or of one
        that computes what the decoder does not.
    """
    folder = _folder(folder)
    what = str(folder / CONFIG)
    model = huggingface_config.read(what, read_json(what))
    tokenizer = str(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else None
    sizes = model.vocabulary_size, model.length
    return Pretrained(model.options, *sizes, None, tokenizer)


def read(folder: str | Path) -> Pretrained:
    """A GPT-2 or Llama model for `networks.decoder`, out of a folder of Hugging Face.

    Biases that only the attention or only the MLP of a Llama has are zero in the other.

    Raises:
      ConfigError: a file is missing or damaged, the model is of another type or computes what the
        decoder does not, or names, shapes or types of tensors do not fit config.json.
    """
    folder = _folder(folder)
    what = str(folder / CONFIG)
    model = huggingface_config.read(what, read_json(what))
    found, depth = _tensors(folder, _FAMILIES[model.family]), model.options["depth"]
    require(
        depth <= len(found), f"{what}: layers", depth, f"at most {len(found)}, as many as tensors"
    )
    _drop_tied(what, model, found)
    leaves = list(_leaves(model))
    expected = dict(pair for leaf in leaves for pair in leaf.expected(depth))
    _match(f"the tensors in {folder} do not fit its {CONFIG}", expected, found)
    params = {leaf.path: leaf.join(found, depth) for leaf in leaves}
    return describe(folder)._replace(params=unflatten_dict(params, sep="/"))


def _tokenizer_files(model: Description, text: str, begins: Sequence[int]) -> dict[str, Any]:
    """tokenizer.json, and what tells `transformers` to take it as it is and its special tokens.

    Texts are to begin with the tokens `begins`; if the file does not say so, it is told.

    Of a run's own form that wraps one of Hugging Face it is the inside. A tokenizer of bytes or
    characters stays as it is, and only genjax reads it.
    """
    state = json.loads(text)
    state = state.get("tokenizer", state)
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

    A GPT-2 always has biases: of a network without, they are written as zeros.

    Args:
      folder: is made if missing; files in it are replaced.
      options: of `networks.decoder.Network`; absent ones have their defaults.
      vocabulary_size: V.
      length: the most positions.
      params: of the network, arrays on this host; they are written in their own type.
      tokenizer: the text of a tokenizer.json, of Hugging Face or of a run.
      special_tokens: the ids "start", "eos" and "pad", as far as there are some, and "eos_2" and so
        on for other ends.
      begins: the ids that a prompt begins with, as in training.

    Raises:
      ConfigError: neither GPT-2 nor Llama computes what these options say, or the parameters are
        of other options.
    """
    folder = Path(folder)
    whole = huggingface_config.complete(options)
    family = huggingface_config.family(whole)
    model = Description(family, whole, vocabulary_size, length, (), special_tokens or {})
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): array
        for path, array in jax.tree_util.tree_leaves_with_path(params)
    }
    leaves = list(_leaves(model))
    depth = (whole["depth"],)
    expected = {leaf.path: depth * leaf.path.startswith(_STACKED) + leaf.shape for leaf in leaves}
    _match("the parameters do not fit the options", expected, found)
    if family == "gpt2" and not whole["bias"]:
        leaves = list(_leaves(model._replace(options={**whole, "bias": True})))
        dtype = found["embed/embedding"].dtype
        for leaf in leaves:
            shape = depth * leaf.path.startswith(_STACKED) + leaf.shape
            found.setdefault(leaf.path, np.zeros(shape, dtype))
    tensors = {}
    for leaf in leaves:
        for name, array in leaf.split(np.asarray(found[leaf.path])):
            head = leaf.path.startswith("head/")
            tensors[name if head else f"{_FAMILIES[family].prefix}{name}"] = array
    files = {CONFIG: huggingface_config.write(model, found["embed/embedding"].dtype.name)}
    if tokenizer is not None:
        files |= _tokenizer_files(model, tokenizer, begins)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write(folder / WEIGHTS, tensors, {"format": "pt"})
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(f"{text}\n", encoding="utf-8")
