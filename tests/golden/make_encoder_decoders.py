"""Tiny T5, mT5, BART and Marian models that transformers made, their logits and beams.

/path/to/parity/bin/python tests/golden/make_encoder_decoders.py [OUTPUT.npz]

For each model: the files of its folder, logits of targets for padded sources, and what a greedy
search and beams find. `buckets` are T5's buckets of offsets. With a folder in place of the output,
which `python tests/interop/test_encoder_decoders.py FOLDER` wrote, transformers loads what is in it
and says how far its logits are from ours.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile

import numpy as np

sys.modules["torchvision"] = None  # of no use here, and one for another torch breaks the imports

import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers.models.t5.modeling_t5 import T5Attention  # noqa: E402

V, PAD, EOS = 23, 0, 1
RNG = np.random.default_rng(0)
SOURCE, TARGET = RNG.integers(2, V, (3, 9)), RNG.integers(2, V, (3, 6))
LENGTHS = (9, 4, 2)
for row, length in zip(SOURCE, LENGTHS, strict=True):
    row[length - 1], row[length:] = EOS, PAD
SPECIAL = {"pad_token_id": PAD, "eos_token_id": EOS, "vocab_size": V}
T5 = {
    **{**SPECIAL, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 1},
    **{"num_heads": 2, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12},
    "decoder_start_token_id": PAD,
}
BART = {
    **{**SPECIAL, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "dropout": 0.0},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24},
    **{"decoder_ffn_dim": 24, "max_position_embeddings": 12, "forced_eos_token_id": None},
}
T5_CLASS = (transformers.T5ForConditionalGeneration, transformers.T5Config)
MODELS = {
    "t5": (*T5_CLASS, T5),
    "t5_gated": (
        *T5_CLASS,
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "t5_untied": (*T5_CLASS, {**T5, "tie_word_embeddings": False, "num_decoder_layers": 2}),
    "mt5": (transformers.MT5ForConditionalGeneration, transformers.MT5Config, T5),
    "bart": (
        transformers.BartForConditionalGeneration,
        transformers.BartConfig,
        {**BART, "decoder_start_token_id": EOS, "scale_embedding": True},
    ),
    "marian": (
        transformers.MarianMTModel,
        transformers.MarianConfig,
        {
            **{**BART, "decoder_start_token_id": PAD, "activation_function": "swish"},
            "scale_embedding": True,
        },
    ),
}
BEAMS = ("t5", "marian")


def made(name: str) -> transformers.PreTrainedModel:
    """A model whose biases, norms and positions count; its weights are short, to compress."""
    model_class, config_class, values = MODELS[name]
    model = model_class(config_class(**values)).eval()
    if name == "t5_untied":
        model.lm_head.weight = torch.nn.Parameter(torch.empty(V, 16))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in [*model.named_parameters(), *model.named_buffers()]:
            if "embed_positions" in key and name == "marian":
                continue
            is_scale = key.endswith("weight") and "norm" in key
            size = 0.3 if "gated" in name or name == "mt5" else 0.4  # float32 leaves 1e-4
            fresh = size * torch.randn(value.shape, generator=generator) + float(is_scale)
            value.copy_(fresh.bfloat16())
        if name == "marian":
            model.final_logits_bias[0, EOS] += 1.5  # so that texts end
    return model


def logits(model: transformers.PreTrainedModel) -> np.ndarray:
    """Of the targets, given the sources."""
    source = torch.from_numpy(SOURCE)
    mask = (torch.arange(9) < torch.tensor(LENGTHS)[:, None]).long()
    with torch.no_grad():
        out = model(source, attention_mask=mask, decoder_input_ids=torch.from_numpy(TARGET))
    return out.logits.numpy()


def continued(model: transformers.PreTrainedModel, **options) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, -1 after the end, and scores."""
    mask = (torch.arange(9) < torch.tensor(LENGTHS)[:, None]).long()
    out = model.generate(
        torch.from_numpy(SOURCE),
        attention_mask=mask,
        max_new_tokens=8,
        do_sample=False,
        bad_words_ids=[[PAD]],
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    tokens = np.full((len(out.sequences), 9), -1)
    tokens[:, : out.sequences.shape[1]] = out.sequences.numpy()
    ended = np.cumsum(tokens[:, 1:] == EOS, axis=1) - (tokens[:, 1:] == EOS) > 0
    tokens[:, 1:][ended] = -1
    scores = out.sequences_scores.numpy() if "num_beams" in options else np.zeros(0)
    return tokens, scores


def main(path: pathlib.Path) -> None:
    """Makes the models and writes."""
    arrays = {"source": SOURCE, "target": TARGET, "lengths": np.array(LENGTHS)}
    for name in MODELS:
        model = made(name)
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch)
            model.save_pretrained(folder)
            if name == "t5_untied":  # save_pretrained would not write the head
                state = {k: v.contiguous() for k, v in model.state_dict().items()}
                state = {k: v for k, v in state.items() if "embed_tokens" not in k}
                safetensors.torch.save_file(state, folder / "model.safetensors")
            for file in ("config.json", "model.safetensors"):
                content = (folder / file).read_bytes()
                arrays[f"{name}/files/{file}"] = np.frombuffer(content, np.uint8)
        arrays[f"{name}/logits"] = logits(model)
        if name in BEAMS:
            arrays[f"{name}/greedy"], _ = continued(model)
            beams = {"num_beams": 3, "num_return_sequences": 3}
            for case, more in (
                ("stop", {"early_stopping": True}),
                ("long", {"length_penalty": 2.0}),
            ):
                tokens, scores = continued(model, **beams, **more)
                arrays[f"{name}/{case}/tokens"] = tokens.reshape(3, 3, -1)
                arrays[f"{name}/{case}/scores"] = scores.reshape(3, 3)
    offsets = torch.arange(-300, 301)
    for both in (True, False):
        found = T5Attention._relative_position_bucket(offsets, both, 32, 128)
        arrays[f"buckets/{both}"] = found.numpy()
    arrays["peer"] = f"transformers {transformers.__version__}"
    np.savez_compressed(path, **arrays)


def check(folder: pathlib.Path) -> None:
    """Loads what `tests/interop/test_encoder_decoders.py` wrote, and compares logits."""
    for model_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        model, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(
            model_folder, output_loading_info=True
        )
        ours = np.load(model_folder / "logits.npy")
        faults = {key: value for key, value in info.items() if value}
        print(model_folder.name, np.abs(logits(model.eval()) - ours).max(), faults)


if __name__ == "__main__":
    given = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None
    if given is not None and given.is_dir():
        check(given)
    else:
        main(given or pathlib.Path(__file__).with_name("encoder_decoders.npz"))
