"""Adapters that peft made for the tiny models of make_huggingface.py, and their logits.

/path/to/parity/bin/python tests/golden/make_peft.py [OUTPUT.npz]

With a folder in place of the output, which `python tests/interop/test_peft.py FOLDER` wrote, peft
reads the adapters in it and says how far its logits are from ours.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile

import make_huggingface
import numpy as np
import peft
import torch

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj"]
# name -> (model, whether queries, keys and values share one A, options of peft.LoraConfig)
ADAPTERS = {
    "llama": ("llama", False, {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 2}),
    "llama_one": (
        "llama",
        True,
        {"target_modules": [*LLAMA, "gate_proj"], "r": 3, "rank_pattern": {"gate_proj": 5}},
    ),
    "llama_dora": (
        "llama",
        True,
        {"target_modules": [*LLAMA, "up_proj"], "r": 2, "use_dora": True},
    ),
    "llama_patterns": (
        "llama",
        False,
        {
            **{"target_modules": ["q_proj", "k_proj", "v_proj", "lm_head"], "r": 2},
            **{"rank_pattern": {r"layers.0.self_attn.q_proj": 4}, "use_rslora": True},
            "alpha_pattern": {"v_proj": 5},
        },
    ),
    "gpt2": (
        "gpt2",
        True,
        {"target_modules": ["c_attn", "mlp.c_proj"], "r": 3, "fan_in_fan_out": True},
    ),
}


def adapted(name: str) -> peft.PeftModel:
    """A model with adapters, none of whose factors is zero."""
    model, shared, options = ADAPTERS[name]
    config = peft.LoraConfig(task_type="CAUSAL_LM", lora_alpha=4, **options)
    made = peft.get_peft_model(make_huggingface.model(model), config)
    generator = torch.Generator().manual_seed(1)
    first = {}
    with torch.no_grad():
        for key, value in made.named_parameters():
            if "lora_" not in key:
                continue
            fresh = 0.3 * torch.randn(value.shape, generator=generator)
            if shared and "lora_A" in key and any(f".{part}_proj." in key for part in "qkv"):
                fresh = first.setdefault(key.split(".self_attn.")[0], fresh)
            value.copy_(fresh + value if "magnitude" in key else fresh)
    return made.eval()


def logits(model: torch.nn.Module) -> np.ndarray:
    """What it computes of the tokens."""
    with torch.no_grad():
        tokens = torch.from_numpy(make_huggingface.TOKENS).long()
        return model(tokens).logits.numpy()


def check(folder: pathlib.Path) -> None:
    """Compares the logits of the adapters in `folder` with those that we wrote beside them."""
    for place in sorted(path.parent for path in folder.glob("*/logits.npy")):
        base = make_huggingface.model(ADAPTERS[place.name][0])
        loaded = peft.PeftModel.from_pretrained(base, place).eval()
        gap = np.abs(logits(loaded) - np.load(place / "logits.npy")).max()
        print(f"{place.name}: logits differ by at most {gap:.2g}")


def main(path: pathlib.Path) -> None:
    """Makes all and writes."""
    arrays = {"peer": f"peft {peft.__version__}, torch {torch.__version__}"}
    for name, (model, _, _) in ADAPTERS.items():
        made = adapted(name)
        with tempfile.TemporaryDirectory() as scratch:
            made.save_pretrained(scratch)
            for file in ("adapter_config.json", "adapter_model.safetensors"):
                content = (pathlib.Path(scratch) / file).read_bytes()
                arrays[f"{name}/files/{file}"] = np.frombuffer(content, np.uint8)
        arrays[f"{name}/model"], arrays[f"{name}/logits"] = model, logits(made)
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    given = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else __file__)
    if given.is_dir():
        check(given)
    else:
        main(given if len(sys.argv) > 1 else given.with_name("peft.npz"))
