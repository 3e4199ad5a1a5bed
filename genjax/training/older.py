"""Reads runs from before 2026-11-29 as if they were made today.

Until then the data had one modality and no fields, images were judged by `evals.features`, and a
run had one `first_stage`, whose networks were stored next to its own without a stage name. Until
2026-11-30 the columns of queries, keys and values were concatenated; now they are grouped by key
heads (`nn.heads`), and their arrays have one more axis, by which the two are told apart.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from genjax.nn.heads import grouped
from genjax.parallel.rules import path_name
from genjax.train_state import TrainState

Shape = tuple[int, ...]

STAGE = "autoencoder"  # the name given to a first stage
FOLDER = "first_stage"  # in the workdir of the run on its codes

# modality -> (its target, {field: kind})
_KINDS = {
    "image": ("image", {"image": "image", "label": "label"}),
    "code": ("code", {"code": "code", "log_likelihood": "real", "label": "label"}),
    "text": (
        "token",
        {"token": "text", "segment": "mask", "loss_mask": "mask", "bytes": "real"},
    ),
    "roll": ("frame", {"frame": "roll", "segment": "mask"}),
}


def current(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of a `config.json` of any age as it would be written today.

    Raises:
      KeyError, TypeError, AttributeError: it has no known format.
    """
    content = copy.deepcopy(dict(content))
    config, data = content["config"], content["data"]
    if "modality" in data:
        content["data"] = _fields(data, content.get("tokenizer", ""))
    source = config.pop("first_stage", "")
    config.setdefault("stages", {STAGE: source} if source else {})
    config["dataset"].setdefault("codes", STAGE if source else "")
    evals, size = config["evals"], config["dataset"].get("image_size")
    if isinstance(size, int):
        config["dataset"]["image_size"] = [size] if size else []
    if "judges" not in evals:
        names = ("features", "generated", "reference", "inception_path")
        fidelity = {name: evals.pop(name) for name in names if name in evals}
        evals["judges"] = ["diversity"] if data.get("modality") == "text" else []
        if fidelity.get("features"):
            evals["judges"], evals["fidelity"] = ["fidelity"], fidelity
    return content


def _fields(data: Mapping[str, Any], tokenizer: str) -> dict[str, Any]:
    target, kinds = _KINDS[data["modality"]]
    facts: dict[str, Any] = {name: {} for name in data["features"]}
    if "label" in facts:
        facts["label"] = {"num_classes": data["num_classes"]}
    if data["vocabulary_size"]:
        facts[target]["vocabulary_size"] = data["vocabulary_size"]
    if data["modality"] == "text":
        facts[target]["special"] = data["special_tokens"]
        facts[target]["tokenizer"] = {"file": "tokenizer.json", "sha256": tokenizer}
    fields = {
        name: {"kind": kinds[name], "shape": shape, "dtype": dtype, "facts": facts[name]}
        for name, (shape, dtype) in data["features"].items()
    }
    return {"name": data["name"], "fields": fields, "target": target, "sizes": data["sizes"]}


def stage_folder(folder: epath.Path, own: epath.Path) -> epath.Path:
    """Returns the folder that describes the stage of the run in `folder`: `own` or an older one."""
    before = folder / FOLDER
    return before if not own.exists() and before.exists() else own


def unnamed(saved: Iterable[str], like: TrainState) -> bool:
    """Whether a checkpoint with these paths has the stage's networks without the stage's name."""
    saved = list(saved)
    return any(
        not any(path.startswith(f"params/{STAGE}/{network}/") for path in saved)
        for network in like.params.get(STAGE, ())
    )


def without_name(state: TrainState) -> TrainState:
    """Returns `state` with the networks of the stage where older runs have them."""

    def moved(networks: Mapping[str, Any]) -> dict[str, Any]:
        return {**{n: tree for n, tree in networks.items() if n != STAGE}, **networks[STAGE]}

    return state.replace(params=moved(state.params), mutable=moved(state.mutable))


def with_name(state: TrainState, like: TrainState) -> TrainState:
    """The inverse of `without_name`, for a state with the structure of `like`."""

    def moved(networks: Mapping[str, Any], like_networks: Mapping[str, Any]) -> dict[str, Any]:
        stage_networks = {n: networks[n] for n in like_networks[STAGE]}
        return {n: stage_networks if n == STAGE else networks[n] for n in like_networks}

    return state.replace(
        params=moved(state.params, like.params), mutable=moved(state.mutable, like.mutable)
    )


# ---- columns of queries, keys and values ---------------------------------------------------------

_OF_HEADS = re.compile(r"(.*blocks/)(qkv|pair)/(kernel|bias)")


def fits(path: str, saved: Shape | None, wanted: Shape | None) -> bool:
    """Whether the array that is saved at `path` can be read as one of the shape `wanted`."""
    return saved == wanted or _is_side_by_side(path, saved, wanted)


def _is_side_by_side(path: str, saved: Shape | None, wanted: Shape | None) -> bool:
    if not saved or not wanted or not _OF_HEADS.fullmatch(path):
        return False
    return saved == (*wanted[:-2], wanted[-2] * wanted[-1])


def as_saved(abstract: Any, saved: Mapping[str, Shape]) -> Any:
    """`abstract` with the shapes of a checkpoint whose columns lie side by side.

    Args:
      abstract: `ShapeDtypeStruct`s with their shardings, or a dict of them by path.
      saved: the shape of each saved array by its path.
    """

    def leaf(path: tuple, like: Any) -> Any:
        shape = saved.get(path_name(path))
        if not _is_side_by_side(path_name(path), shape, like.shape):
            return like
        sharding = like.sharding
        if isinstance(sharding, NamedSharding):
            kept = (*sharding.spec, *[None] * len(like.shape))[: len(like.shape) - 2]
            sharding = NamedSharding(sharding.mesh, PartitionSpec(*kept))
        return jax.ShapeDtypeStruct(shape, like.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def by_head(state: Any, abstract: Any, saved: Mapping[str, Shape]) -> Any:
    """`state`, read as `as_saved` says, with the shapes of `abstract`."""

    def leaf(path: tuple, array: Any, like: Any) -> Any:
        name = path_name(path)
        if not _is_side_by_side(name, saved.get(name), like.shape):
            return array
        group = partial(grouped, kv_heads=like.shape[-2], queries=_queries(name, saved))
        return jax.jit(group, out_shardings=like.sharding)(array)

    return jax.tree_util.tree_map_with_path(leaf, state, abstract)


def _queries(path: str, saved: Mapping[str, Shape]) -> int:
    """How many of the columns are of queries: as many as rows of the product after attention."""
    blocks, layer, _ = _OF_HEADS.fullmatch(path).groups()
    if layer == "pair":
        return 0
    ends = {name.removesuffix("merge/kernel"): shape for name, shape in saved.items()}
    ends = {name: shape[-2] for name, shape in ends.items() if name.endswith("blocks/")}

    def in_common(name: str) -> int:
        pairs = zip(name.split("/")[::-1], blocks.split("/")[::-1], strict=False)
        return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))

    return ends[max(ends, key=in_common)]
