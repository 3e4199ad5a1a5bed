"""Advantages and losses of policies and preferences, computed by verl's and trl's own functions.

/path/to/parity/bin/python tests/golden/make_policy_gradient.py [OUTPUT.npz]

It downloads the wheels, and takes the functions out of their sources one by one, so that of all
that the packages need only torch is needed. They run in float64. trl's losses are methods: `self`
is a plain object with the settings that they read. Later versions of trl have no such functions.
"""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
import tempfile
import types
import zipfile
from collections import defaultdict
from enum import Enum

import numpy as np
import torch
import torch.nn.functional as F

PACKAGES = ("verl==0.9.1", "trl==0.17.0")


def sources(folder: pathlib.Path) -> None:
    """Unpacks the packages into a folder."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*pip, *PACKAGES], check=True)
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)


def functions(file: pathlib.Path, names: list[str], scope: dict) -> dict:
    """These functions and methods of a source file, compiled without their decorators."""
    scope = {"torch": torch, "F": F, "np": np, "defaultdict": defaultdict, **scope}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            node.decorator_list, node.returns = [], None
            for argument in (*node.args.args, *node.args.kwonlyargs):
                argument.annotation = None
            exec(compile(ast.Module([node], []), str(file), "exec"), scope)
    missing = [name for name in names if name not in scope]
    assert not missing, missing
    return scope


class Config(dict):
    """What verl's loss reads of its config, by name and by key."""

    __getattr__ = dict.__getitem__


class Divergence(Enum):
    """The kinds that trl's DPO compares with."""

    ALPHA_DIVERGENCE = "alpha_divergence"
    JS_DIVERGENCE = "js_divergence"


def policies(folder: pathlib.Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """verl's advantages, losses and averages of 8 answers of up to 6 tokens, in groups of 4."""
    masked = functions(
        folder / "verl/utils/torch_functional.py",
        ["masked_sum", "masked_mean", "masked_var", "masked_whiten", "clip_by_value"],
        {},
    )
    names = ["compute_gae_advantage_return", "compute_grpo_outcome_advantage", "agg_loss"]
    names += ["compute_rloo_outcome_advantage", "compute_policy_loss_vanilla", "kl_penalty"]
    names += ["compute_value_loss", "kl_penalty_forward"]
    scope = {"verl_F": types.SimpleNamespace(**masked), "AlgoConfig": type("AlgoConfig", (), {})}
    verl = functions(folder / "verl/trainer/ppo/core_algos.py", names, scope)
    N, T = 8, 6
    length = np.array([6, 3, 1, 4, 6, 2, 5, 3])
    mask = torch.tensor(np.arange(T) < length[:, None], dtype=torch.float64)

    def normal(scale: float = 1.0) -> torch.Tensor:
        return torch.tensor(scale * rng.normal(size=(N, T)))

    value, old, log_p = normal(), normal(), normal()
    log_p = old + 0.3 * (log_p - old)
    reference, new_value = log_p + normal(0.5), value + normal(0.4)
    reward = normal() * mask
    index = np.repeat([0, 1], 4)
    out = {"mask": mask, "value": value, "old": old, "log_p": log_p, "reference": reference}
    out |= {"new_value": new_value, "reward": reward}
    advantage, returns = verl["compute_gae_advantage_return"](reward, value, mask, 0.97, 0.9)
    out |= {"gae_whitened": advantage * mask, "gae": (returns - value) * mask}
    group = {"response_mask": mask, "index": index}
    for name, scale in (("grpo", True), ("grpo_unscaled", False)):
        made = verl["compute_grpo_outcome_advantage"](
            reward.clone(), norm_adv_by_std_in_grpo=scale, **group
        )
        out[name] = made[0][:, 0]
    out["rloo"] = verl["compute_rloo_outcome_advantage"](reward.clone(), **group)[0][:, 0]
    out["k3"] = verl["kl_penalty"](log_p, reference, "k3")
    modes = {"token": "token-mean", "sum": "seq-mean-token-sum", "sequence": "seq-mean-token-mean"}
    modes["length"] = "seq-mean-token-sum-norm"
    config = Config(clip_ratio=0.2, clip_ratio_low=0.1, clip_ratio_high=0.25, clip_ratio_c=1e9)
    config["global_batch_info"] = {}
    advantage = reward + 0.1
    for ours, theirs in modes.items():
        out[f"policy_{ours}"] = verl["compute_policy_loss_vanilla"](
            old, log_p, advantage, mask, theirs, config
        )[0]
        out[f"value_{ours}"] = verl["compute_value_loss"](
            new_value, returns, value, mask, 0.2, theirs
        )[0]
    out["advantage"], out["returns"] = advantage, returns
    return {name: np.asarray(array) for name, array in out.items()}


def preferences(folder: pathlib.Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """trl's losses of 7 pairs."""
    trainers = folder / "trl/trainer"
    constants = {"FDivergenceType": Divergence, "FDivergenceConstants": None}
    dpo = functions(trainers / "dpo_trainer.py", ["dpo_loss"], constants)["dpo_loss"]
    kto = functions(trainers / "kto_trainer.py", ["kto_loss"], {})["kto_loss"]
    orpo = functions(trainers / "orpo_trainer.py", ["odds_ratio_loss"], {})["odds_ratio_loss"]
    names = ("chosen", "rejected", "reference_chosen", "reference_rejected", "other", "other_base")
    given = {name: torch.tensor(rng.normal(-6, 3, 7)) for name in names}
    given["other"] += 4.0  # the divergence is not below 0
    four = list(given.values())[:4]
    accelerator = types.SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x)
    known = {"accelerator": accelerator, "reference_free": False, "f_divergence_type": "reverse_kl"}

    def settings(**named) -> types.SimpleNamespace:
        return types.SimpleNamespace(**known, **named)

    out = {f"preference_{name}": array for name, array in given.items()}
    kinds = (("dpo", "sigmoid", 0.0), ("dpo_smoothed", "sigmoid", 0.2), ("ipo", "ipo", 0.0))
    for name, kind, smoothing in kinds:
        with_options = settings(loss_type=kind, beta=0.3, label_smoothing=smoothing)
        out[name] = dpo(with_options, *four)[0]
    options = settings(
        loss_type="kto", beta=0.3, calculate_KL=True, desirable_weight=1.5, undesirable_weight=0.5
    )
    chosen, rejected, base_chosen, base_rejected, other, other_base = given.values()
    losses = kto(options, chosen, rejected, other, base_chosen, base_rejected, other_base)
    out["kto"], out["kto_divergence"] = losses[0], losses[3]
    means = [-torch.exp(torch.tensor(rng.normal(-1, 1.5, 7))) for _ in range(2)]
    out["mean_chosen"], out["mean_rejected"] = means
    out["orpo"] = -orpo(settings(beta=0.3), *means)[0]  # trl subtracts it from the nll
    return {name: np.asarray(array) for name, array in out.items()}


def main() -> None:
    """Writes the arrays."""
    here, rng = pathlib.Path(__file__), np.random.default_rng(0)
    output = sys.argv[1] if len(sys.argv) > 1 else here.with_name("policy_gradient.npz")
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        sources(folder)
        np.savez_compressed(output, **policies(folder, rng), **preferences(folder, rng))


if __name__ == "__main__":
    main()
