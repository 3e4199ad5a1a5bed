"""Reads runs from before 2026-11-29 as if they were made today.

Until then the data had one modality and no fields, images were judged by `evals.features`, and a
run had one `first_stage`, whose networks were stored next to its own without a stage name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from genjax.train_state import TrainState

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
