"""Tiny models of the kind of Llama that transformers made: Mistral, Qwen, Gemma, NeoX and Phi.

/path/to/parity/bin/python tests/golden/make_llamalikes.py [OUTPUT.npz]

For each model: the files of its folder, logits, and the config.json that
`genjax.interop.huggingface.write` makes of it, with which transformers gives the same logits here.
With a folder in place of the output, which `python tests/interop/test_llamalikes.py FOLDER` wrote,
transformers loads what is in it and says how far its logits are from ours.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile

import numpy as np

sys.modules["torchvision"] = None  # of no use here, and one for another torch breaks the imports

import torch  # noqa: E402
import transformers  # noqa: E402

TOKENS = np.random.default_rng(0).integers(0, 41, (2, 11), np.int32)
SIZES = {
    **{"vocab_size": 41, "max_position_embeddings": 32, "hidden_size": 12, "num_hidden_layers": 2},
    **{"intermediate_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6},
}
NEOX = {k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "head_dim")}
NEOX |= {"hidden_size": 32, "num_hidden_layers": 1}  # a head of 8, a quarter of which turns
WINDOW = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
# model -> its type, and its config
MODELS = {
    "mistral": ("mistral", {**SIZES, "sliding_window": 4}),
    "qwen2": ("qwen2", {**SIZES, "tie_word_embeddings": True, "eos_token_id": [3, 5]}),
    "qwen2_window": ("qwen2", {**SIZES, **WINDOW}),
    "qwen3": ("qwen3", {**SIZES, "rms_norm_eps": 1e-3}),
    "qwen3_bias": ("qwen3", {**SIZES, **WINDOW, "num_hidden_layers": 1, "attention_bias": True}),
    "gemma": ("gemma", {**SIZES, "num_key_value_heads": 1}),
    "gpt_neox": ("gpt_neox", {**NEOX, "hidden_dropout": 0.1}),
    "gpt_neox_sequential": (
        "gpt_neox",
        {
            **{**NEOX, "use_parallel_residual": False, "attention_bias": False},
            **{"hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
            "rope_parameters": {
                **{"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0},
                "partial_rotary_factor": 0.75,
            },
        },
    ),
    "phi": (
        "phi",
        {**{k: v for k, v in SIZES.items() if k != "head_dim"}, "hidden_size": 16},
    ),
}
TYPES = {"qwen2": torch.bfloat16, "phi": torch.float16}  # of files; all others are float32
SHARDED = "qwen3"


def model(name: str) -> transformers.PreTrainedModel:
    """A model whose biases and norms count; its weights are short, to compress."""
    kind, values = MODELS[name]
    made = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **values)
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in made.named_parameters():
            fresh = 0.3 * torch.randn(value.shape, generator=generator)
            is_scale = "norm" in key and key.endswith("weight") and kind != "gemma"
            value.copy_((fresh + float(is_scale)).bfloat16())
    return made.eval().to(TYPES.get(name, torch.float32))


def exported(name: str) -> dict:
    """The config.json that is expected of `genjax.interop.huggingface.write`."""
    kind, given = MODELS[name]
    given = dict(given)
    whole = {"model_type": kind, "dtype": "float32"}
    whole |= {key: None for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    whole |= {"rope_theta": 10000.0, "rope_scaling": None, "attention_dropout": 0.0}
    if kind in ("gpt_neox", "phi"):
        whole |= {"layer_norm_eps": 1e-5, "tie_word_embeddings": False}
    else:
        whole |= {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu"}
    if kind in ("qwen2", "qwen3"):
        sort = "sliding_attention" if "sliding_window" in given else "full_attention"
        whole |= {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 0}
        whole["layer_types"] = [sort] * given["num_hidden_layers"]
    if kind in ("qwen3", "gemma"):
        whole["attention_bias"] = False
    if kind == "gemma":
        whole |= {"hidden_act": "gelu_new", "tie_word_embeddings": True}
    if kind == "phi":
        whole |= {"partial_rotary_factor": 0.5, "hidden_act": "gelu_new"}
        whole |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0}
    if kind == "gpt_neox":
        rope = given.pop("rope_parameters", {"rope_theta": 10000, "partial_rotary_factor": 0.25})
        whole |= {"rotary_emb_base": rope.pop("rope_theta")}
        whole |= {"rotary_pct": rope.pop("partial_rotary_factor"), "rope_scaling": rope or None}
        whole |= {"use_parallel_residual": True, "attention_bias": True, "hidden_act": "gelu"}
        whole |= {"hidden_dropout": 0.0}
        del whole["rope_theta"]
    names = {"gpt_neox": "GPTNeoX"}
    whole["architectures"] = [f"{names.get(kind, kind.capitalize())}ForCausalLM"]
    return whole | given


def logits(folder: pathlib.Path, tokens: np.ndarray) -> np.ndarray:
    """What transformers computes of a folder in float32, each of whose tensors has to be used."""
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
    )
    assert not any(report.values()), report
    with torch.no_grad():
        return loaded.eval()(torch.from_numpy(tokens).long()).logits.numpy()


def check(folder: pathlib.Path) -> None:
    """Compares the logits of each model in `folder` with those that we wrote beside it."""
    for place in sorted(path.parent for path in folder.glob("*/logits.npy")):
        gap = np.abs(logits(place, TOKENS) - np.load(place / "logits.npy")).max()
        print(f"{place.name}: logits differ by at most {gap:.2g}")


def main(path: pathlib.Path) -> None:
    """Makes all and writes."""
    peer = f"transformers {transformers.__version__}, torch {torch.__version__}"
    arrays = {"peer": peer, "tokens": TOKENS}
    for kind in dict.fromkeys(kind for kind, _ in MODELS.values()):
        default = transformers.AutoConfig.for_model(kind)
        arrays[f"defaults/{kind}"] = default.to_json_string(use_diff=False)
    for name in MODELS:
        made = model(name)
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch)
            made.save_pretrained(folder, max_shard_size="6KB" if name == SHARDED else "5GB")
            expected = logits(folder, TOKENS)
            for file in sorted(folder.glob("*")):
                if file.name != "generation_config.json":
                    bytes_ = np.frombuffer(file.read_bytes(), np.uint8)
                    arrays[f"{name}/files/{file.name}"] = bytes_
            ours = exported(name)
            (folder / "config.json").write_text(json.dumps(ours))
            np.testing.assert_allclose(logits(folder, TOKENS), expected, atol=2e-6)
        arrays[f"{name}/logits"], arrays[f"{name}/exported"] = expected, json.dumps(ours)
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    given = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else __file__)
    if given.is_dir():
        check(given)
    else:
        main(given if len(sys.argv) > 1 else given.with_name("llamalikes.npz"))
