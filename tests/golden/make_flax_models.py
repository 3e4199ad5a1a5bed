"""Tiny models of flax that transformers made while it had them, as `flax_model.msgpack`.

/path/to/flax/bin/python tests/golden/make_flax_models.py [OUTPUT.npz]

It needs packages of their own: transformers 4.46.3, flax 0.8.5, jax 0.4.33, numpy below 2. For each
model: the files of its folder, and its logits. Of BERT and T5, the names and shapes that their
parameters have in PyTorch, from the same version's modules for PyTorch, are in the test.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict

TOKENS = np.random.default_rng(0).integers(0, 41, (2, 7), np.int32)
GPT2 = {"vocab_size": 41, "n_positions": 12, "n_embd": 12, "n_layer": 2, "n_head": 2}
LLAMA = {
    **{"vocab_size": 41, "max_position_embeddings": 32, "hidden_size": 12, "num_hidden_layers": 2},
    **{"intermediate_size": 20, "num_attention_heads": 2, "num_key_value_heads": 2},
}
SMALL = {"vocab_size": 5, "num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 2}
T5 = {"vocab_size": 5, "d_model": 2, "d_kv": 2, "d_ff": 3, "num_layers": 1, "num_heads": 1}
MODELS = {
    "gpt2": (transformers.FlaxGPT2LMHeadModel, transformers.GPT2Config(**GPT2)),
    "gpt2_sharded": (transformers.FlaxGPT2LMHeadModel, transformers.GPT2Config(**GPT2)),
    "llama": (transformers.FlaxLlamaForCausalLM, transformers.LlamaConfig(**LLAMA)),
    "bert": (
        transformers.FlaxBertForMaskedLM,
        transformers.BertConfig(**SMALL, intermediate_size=3, max_position_embeddings=3),
    ),
    "t5": (transformers.FlaxT5ForConditionalGeneration, transformers.T5Config(**T5)),
}


def main(path: pathlib.Path) -> None:
    """Makes all and writes."""
    arrays = {"peer": f"transformers {transformers.__version__}", "tokens": TOKENS}
    for name, (kind, config) in MODELS.items():
        made = kind(config, seed=0)
        rng = np.random.default_rng(0)
        fresh = {}
        for key, value in flatten_dict(made.params).items():
            is_scale = key[-1] == "scale" or ("norm" in key[-2] and key[-1] == "weight")
            drawn = 0.3 * rng.standard_normal(value.shape) + float(is_scale)
            fresh[key] = jnp.asarray(drawn, jnp.bfloat16).astype(jnp.float32)
        made.params = unflatten_dict(fresh)
        if name in ("gpt2", "gpt2_sharded", "llama"):
            arrays[f"{name}/logits"] = np.asarray(made(TOKENS).logits)
        if name == "llama":
            made.params = made.to_bf16(made.params)  # the weights were made to be short
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch)
            sharded = name == "gpt2_sharded"
            made.save_pretrained(folder, max_shard_size="8KB" if sharded else "5GB")
            for file in sorted(folder.glob("*")):
                if file.name != "generation_config.json":
                    bytes_ = np.frombuffer(file.read_bytes(), np.uint8)
                    arrays[f"{name}/files/{file.name}"] = bytes_
                    print(name, file.name, len(bytes_))
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    given = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else __file__)
    main(given if len(sys.argv) > 1 else given.with_name("flax_models.npz"))
