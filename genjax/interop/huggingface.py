"""Reads and writes Hugging Face folders: config.json and safetensors of language models.

A folder is converted to options and parameters of `networks.decoder`, and back. Nothing is
unpickled, and models that this network cannot compute are refused. Names and meanings follow
https://github.com/huggingface/transformers; `architectures` has them, a module for each type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from genjax.config import ConfigError, require
from genjax.data import subwords
from genjax.files import read_json
from genjax.interop import architectures, huggingface_config, safetensors, weights
from genjax.interop.architecture import Architecture, Description, Options
from genjax.interop.leaves import STACKED, leaves, match

Tree = Any

CONFIG = "config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


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


def _tensors(folder: Path, architecture: Architecture) -> dict[str, np.ndarray]:
    """The parameters in a folder, by name without the prefix."""
    path, found = weights.read(folder)
    tensors = {}
    for name, array in found.items():
        plain = name.removeprefix(architecture.prefix)
        require(
            plain not in tensors, f"{path}: tensor", name, "it once, with or without the prefix"
        )
        if not re.fullmatch(architecture.ignored, plain):
            tensors[plain] = array
    return tensors


def _drop_tied(path: str, model: Description, tensors: dict[str, np.ndarray]) -> None:
    """Removes the head from the tensors if the config says that it equals the embedding.

    Raises:
      ConfigError: they differ.
    """
    modules = architectures.find(model.architecture).modules
    (head,), (embedding,) = modules["head"], modules["embed"]
    pair = tensors.get(f"{head}.weight"), tensors.get(f"{embedding}.weight")
    if model.options["tied"] and all(array is not None for array in pair):
        same = np.array_equal(*pair)
        require(same, f"{path}: tie_word_embeddings", True, "false: they differ")
        del tensors[f"{head}.weight"]


def folder_of(path: str | Path) -> Path:
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
        f"{weights.SAFETENSORS}, as save_pretrained() of transformers writes it, or as it is "
        "downloaded from Hugging Face."
    )


def describe(folder: str | Path) -> Pretrained:
    """The result of `read` without loading the parameters: `params` is None.

    Raises:
      ConfigError: config.json is missing or damaged, or describes another type of model or a
        computation that the decoder does not support.
    """
    folder = folder_of(folder)
    config_path = str(folder / CONFIG)
    model = huggingface_config.read(config_path, read_json(config_path))
    tokenizer = str(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else None
    sizes = model.vocabulary_size, model.length
    return Pretrained(model.options, *sizes, None, tokenizer)


def read(folder: str | Path) -> Pretrained:
    """Reads a model for `networks.decoder` from a Hugging Face folder.

    `architectures` has the types of models.

    Raises:
      ConfigError: a file is missing or damaged, the model's type or a computation is not supported
        by the decoder, or names, shapes or dtypes of tensors do not fit config.json.
    """
    folder = folder_of(folder)
    config_path = str(folder / CONFIG)
    model = huggingface_config.read(config_path, read_json(config_path))
    tensors = _tensors(folder, architectures.find(model.architecture))
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
    model = model._replace(options=huggingface_config.complete(model.options))
    depth = model.options["depth"]
    found = list(leaves(model, architectures.find(model.architecture)))
    expected = dict(pair for leaf in found for pair in leaf.expected(depth))
    match(heading, expected, shapes)
    params = {leaf.path: leaf.join(tensors, depth) for leaf in found}
    return unflatten_dict(params, sep="/")


def tokenizer_files(model: Description, text: str, begins: Sequence[int]) -> dict[str, Any]:
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


def _shapes(model: Description, architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter."""
    depth = (model.options["depth"],)
    return {
        leaf.path: depth * leaf.path.startswith(STACKED) + leaf.shape
        for leaf in leaves(model, architecture)
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

    Its type is the first of `architectures` that has these options. Biases that a type always has
    and the network has not are written as zeros.

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
      ConfigError: no architecture has these options, or the parameters do not fit them.
    """
    folder = Path(folder)
    all_options = huggingface_config.complete(options)
    name = huggingface_config.family(all_options)
    architecture = architectures.find(name)
    model = Description(name, all_options, vocabulary_size, length, special_tokens or {})
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): array
        for path, array in jax.tree_util.tree_leaves_with_path(params)
    }
    match("the parameters do not fit the options", _shapes(model, architecture), arrays)
    model = model._replace(options={**all_options, **architecture.added})
    dtype, tensors = arrays["embed/embedding"].dtype, {}
    for path, shape in _shapes(model, architecture).items():
        arrays.setdefault(path, np.zeros(shape, dtype))
    for leaf in leaves(model, architecture):
        for tensor, array in leaf.split(np.asarray(arrays[leaf.path])):
            prefix = "" if leaf.path.startswith("head/") else architecture.prefix
            tensors[f"{prefix}{tensor}"] = array
    files = {CONFIG: huggingface_config.write(model, dtype.name)}
    if tokenizer is not None:
        files |= tokenizer_files(model, tokenizer, begins)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write(folder / weights.SAFETENSORS, tensors, {"format": "pt"})
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(f"{text}\n", encoding="utf-8")
