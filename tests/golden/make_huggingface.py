"""Tiny GPT-2 and Llama models that transformers made, and files of safetensors.

/path/to/parity/bin/python tests/golden/make_huggingface.py [OUTPUT.npz]

For each model: the files of its folder, logits, and the config.json that
`genjax.interop.huggingface.write` makes of it, with which transformers gives the same logits here.
With a folder in place of the output, which `python tests/interop/test_huggingface.py FOLDER` wrote,
transformers loads what is in it and says how far its logits are from ours.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile

import numpy as np

sys.modules["torchvision"] = None  # of no use here, and one for another torch breaks the imports

import safetensors  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

TOKENS = np.random.default_rng(0).integers(0, 61, (2, 9), np.int32)
GPT2 = {"vocab_size": 61, "n_positions": 12, "n_embd": 24, "n_layer": 2, "n_head": 4}
LLAMA = {
    **{"vocab_size": 61, "max_position_embeddings": 128, "hidden_size": 16, "head_dim": 4},
    **{"intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4},
    "num_key_value_heads": 4,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"rope_type": "llama3", "original_max_position_embeddings": 64}
MODELS = {
    "gpt2": GPT2,
    "gpt2_inner": {
        **{**GPT2, "vocab_size": 67, "n_embd": 20, "n_inner": 28, "n_positions": 9},
        **{"activation_function": "gelu", "layer_norm_epsilon": 1e-3, "bos_token_id": 3},
        **{"tie_word_embeddings": False, "eos_token_id": 5, "pad_token_id": 0},
        **{"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.3},
    },
    "gpt2_bare": {**GPT2, "activation_function": "relu"},  # its biases are zeros
    "llama": {**LLAMA, "num_key_value_heads": 2, "eos_token_id": [7, 8]},
    "llama_llama3": {
        **{**LLAMA, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12},
        **{"tie_word_embeddings": True, "rms_norm_eps": 1e-3},
        "rope_parameters": {**LLAMA3, "rope_theta": 100.0},
    },
    "llama_linear": {
        **{**LLAMA, "num_hidden_layers": 1, "attention_bias": True, "attention_dropout": 0.1},
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0},
    },
    "llama_gelu": {
        **{**LLAMA, "num_hidden_layers": 1, "attention_bias": True, "mlp_bias": True},
        "hidden_act": "gelu_pytorch_tanh",
    },
}
SHARDED = "llama"
ACTIVATIONS = (
    *("gelu", "gelu_python", "gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast"),
    *("gelu_accurate", "relu", "silu", "swish"),
)


def model(name: str) -> transformers.PreTrainedModel:
    """A model whose biases, norms and positions count; its weights are short, to compress."""
    is_gpt2 = name.startswith("gpt2")
    kind = transformers.GPT2Config if is_gpt2 else transformers.LlamaConfig
    made = transformers.AutoModelForCausalLM.from_config(kind(**MODELS[name]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in made.named_parameters():
            is_norm = "norm" in key or ".ln_" in key
            fresh = 0.3 * torch.randn(value.shape, generator=generator) + float(is_norm)
            bare = name == "gpt2_bare" and key.endswith("bias")
            value.copy_(torch.zeros_like(fresh) if bare else fresh.bfloat16())
    return made.eval()


def exported(name: str) -> dict:
    """The config.json that is expected of `genjax.interop.huggingface.write`."""
    given = dict(MODELS[name])
    if name.startswith("gpt2"):
        default = {
            **{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
            **{"n_inner": 4 * given["n_embd"], "activation_function": "gelu_new"},
            **{"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
            **{"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "bos_token_id": None},
        }
    else:
        rope = given.pop("rope_parameters", {"rope_type": "default", "rope_theta": 10000.0})
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        default = {
            **{"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
            **{"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": rope["rope_theta"]},
            "rope_scaling": None if scaling["rope_type"] == "default" else scaling,
            **{"attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0},
            **{"tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2},
        }
    whole = {"dtype": "float32", "eos_token_id": None, "pad_token_id": None} | default | given
    if name == "llama_gelu":
        whole["hidden_act"] = "gelu_new"  # the same function
    if isinstance(whole["eos_token_id"], list):
        whole["eos_token_id"] = whole["eos_token_id"][0]
    return whole


def logits(folder: pathlib.Path, tokens: np.ndarray) -> np.ndarray:
    """What transformers computes of a folder, each of whose tensors has to be used."""
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values()), report
    with torch.no_grad():
        return loaded.eval()(torch.from_numpy(tokens).long()).logits.numpy()


def check(folder: pathlib.Path) -> None:
    """Compares the logits of each model in `folder` with those that we wrote beside it."""
    for place in sorted(path.parent for path in folder.glob("*/logits.npy")):
        gap = np.abs(logits(place, TOKENS) - np.load(place / "logits.npy")).max()
        line = f"{place.name}: logits differ by at most {gap:.2g}"
        if (place / "tokenizer.json").exists():
            ours = json.loads((place / "text.json").read_text())
            tokenizer = transformers.AutoTokenizer.from_pretrained(place)
            encoded = tokenizer(ours["text"], add_special_tokens=False)["input_ids"]
            line += f"; tokens {'are ours' if encoded == ours['tokens'] else encoded}"
            line += f"; eos {tokenizer.eos_token!r} {tokenizer.eos_token_id}"
        print(line)


def tensors() -> dict[str, torch.Tensor]:
    """One of each type that is read, and shapes that are odd."""
    short = torch.tensor([0.5, -2.0, 1.0, 8.0])
    floats = ("float64", "float32", "float16", "bfloat16")
    eights = ("float8_e5m2", "float8_e4m3fn", "float8_e8m0fnu", "float8_e4m3fnuz")
    whole = {name: short.to(getattr(torch, name)) for name in floats}
    whole |= {name: short.abs().to(getattr(torch, name)) for name in (*eights, "float8_e5m2fnuz")}
    integers = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    whole |= {name: torch.tensor([1, 2, 100]).to(getattr(torch, name)) for name in integers}
    whole |= {
        "bool": torch.tensor([[True, False, True]]),
        "complex64": torch.tensor([1 + 2j]),
        "naïve scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 3),
        "wide": torch.arange(6.0).reshape(1, 2, 3),
    }
    return whole


def main(path: pathlib.Path) -> None:
    """Makes all and writes."""
    peer = f"transformers {transformers.__version__}, safetensors {safetensors.__version__}, "
    arrays = {"peer": peer + f"torch {torch.__version__}", "tokens": TOKENS}
    whole = tensors()
    content = safetensors.torch.save(whole, {"format": "pt"})
    arrays["safetensors/file"] = np.frombuffer(content, np.uint8)
    for name, value in whole.items():
        exact = name in ("complex64", "int64", "uint64", "bool")
        arrays[f"safetensors/{name}"] = (value if exact else value.double()).numpy()
    arrays["x"] = np.linspace(-4, 4, 41, dtype=np.float32)
    for name in ACTIVATIONS:
        function = transformers.activations.ACT2FN[name]
        arrays[f"activations/{name}"] = function(torch.from_numpy(arrays["x"])).numpy()
    for kind in (transformers.GPT2Config, transformers.LlamaConfig):
        arrays[f"defaults/{kind.model_type}"] = kind().to_json_string(use_diff=False)
    for name in MODELS:
        made = model(name)
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch)
            made.save_pretrained(folder, max_shard_size="12KB" if name == SHARDED else "5GB")
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
        main(given if len(sys.argv) > 1 else given.with_name("huggingface.npz"))
