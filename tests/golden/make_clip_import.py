"""Folders of tiny CLIPs with random weights, by transformers and open_clip, and what they compute.

/path/to/parity/bin/python tests/golden/make_clip_import.py [OUTPUT.npz]

Of each: the files of its folder; of the same pictures and texts the tokens, the vectors, the logits
and the loss. Pictures are bytes, which each model's own mean and deviation normalise. The tokenizer
is transformers' CLIPTokenizer with a few merges. Biases and norms have random values too.
"""

from __future__ import annotations

import importlib.machinery
import json
import pathlib
import sys
import tempfile
from unittest import mock

import numpy as np

sys.modules["torchvision"] = None  # of no use here, and one for another torch breaks the imports

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tokenizers import pre_tokenizers  # noqa: E402
from transformers.models.clip import CLIPTokenizer  # noqa: E402

for part in ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional"):  # of open_clip
    spec = importlib.machinery.ModuleSpec(f"torchvision{part}", None)
    sys.modules[f"torchvision{part}"] = mock.MagicMock(__spec__=spec)

from open_clip.loss import ClipLoss, SigLipLoss  # noqa: E402
from open_clip.model import CLIP  # noqa: E402

MERGES = [("p", "h"), ("ph", "o"), ("t", "o</w>"), ("pho", "to</w>"), ("c", "a"), ("ca", "t</w>")]
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
TEXTS = [
    "a photo of a CAT",
    "It's  10 cats,\n naïve!?",
    "x",
    "<|endoftext|> 東京 🙂",
    "a <b>cat</b>",
]
SIDE, LENGTH, FEATURES = 12, 40, 6
TEXT = {
    **{"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 20, "max_position_embeddings": LENGTH},
}
VISION = {
    **{"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 4},
    **{"intermediate_size": 16, "image_size": SIDE},
}
# Name -> the activation, and whether the config has the id of the end token that OpenAI's have.
HUGGING_FACE = {"quick_gelu": ("quick_gelu", True), "gelu": ("gelu", False)}
OPEN_CLIP = {"open_clip": (False, None), "open_clip_siglip": (True, -3.0)}  # quick_gelu, bias


def tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer of bytes and a few merges."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*characters, *(f"{c}</w>" for c in characters), *map("".join, MERGES)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({token: i for i, token in enumerate(tokens)}, MERGES)


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """The model with random weights; those of norms are around 1."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit" not in name:
                norm = "norm" in name or "ln_" in name or "layrnorm" in name
                around = 1.0 if norm and name.endswith("weight") else 0.0
                parameter.copy_(around + 0.3 * torch.randn(parameter.shape))
    return model.eval()


def pixels(images: np.ndarray, mean: list[float], std: list[float]) -> torch.Tensor:
    """Pictures as a model sees them, [B, C, H, W]."""
    x = (images.astype(np.float64) / 255 - mean) / std
    return torch.tensor(x, dtype=torch.float32).permute(0, 3, 1, 2)


def contents(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The files of a folder as arrays of bytes."""
    return {f.name: np.frombuffer(f.read_bytes(), np.uint8) for f in sorted(folder.iterdir())}


def hugging_face(name: str, folder: pathlib.Path, ids: torch.Tensor, images: np.ndarray) -> dict:
    """Saves a CLIPModel; gives what it computes."""
    activation, old = HUGGING_FACE[name]
    own = tokenizer()
    ends = {"bos_token_id": own.bos_token_id, "eos_token_id": 2 if old else own.eos_token_id}
    config = transformers.CLIPConfig(
        text_config={**TEXT, **ends, "vocab_size": len(own), "hidden_act": activation},
        vision_config={**VISION, "hidden_act": activation},
        projection_dim=FEATURES,
    )
    model = randomised(transformers.CLIPModel(config))
    model.save_pretrained(folder)
    own.save_pretrained(folder)
    described = {"image_mean": MEAN, "image_std": STD, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    with torch.no_grad():
        x = pixels(images, MEAN, STD)
        out = model(input_ids=ids, pixel_values=x, return_loss=True)
    return {
        "image_vectors": out.image_embeds,
        "text_vectors": out.text_embeds,
        "token_vectors": out.text_model_output.last_hidden_state,
        "logits": out.logits_per_image,
        "loss": out.loss,
    }


def open_clip(name: str, folder: pathlib.Path, ids: torch.Tensor, images: np.ndarray) -> dict:
    """Saves a model of open_clip as it does; gives what it computes, by its own losses."""
    quick, bias = OPEN_CLIP[name]
    own, mean, std = tokenizer(), [0.5] * 3, [0.5] * 3
    config = {
        "embed_dim": FEATURES,
        "quick_gelu": quick,
        "vision_cfg": {
            **{"image_size": SIDE, "layers": 2, "width": 12, "head_width": 4, "patch_size": 6},
            "mlp_ratio": 2.0,
        },
        "text_cfg": {
            **{"context_length": LENGTH, "vocab_size": len(own), "width": 8, "heads": 2},
            "layers": 2,
        },
    }
    if bias is not None:
        config |= {"init_logit_bias": bias, "init_logit_scale": 1.5}
    model = randomised(CLIP(**config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    whole = {"model_cfg": config, "preprocess_cfg": {"mean": mean, "std": std}}
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    own.save_pretrained(folder)
    with torch.no_grad():
        out = model(pixels(images, mean, std), ids)
        image, text, scale = out[:3]
        logits = scale * image @ text.T + (0.0 if bias is None else model.logit_bias)
        if bias is None:
            loss = ClipLoss()(image, text, scale)
        else:
            loss = SigLipLoss()(image, text, scale, model.logit_bias)
    return {"image_vectors": image, "text_vectors": text, "logits": logits, "loss": loss}


def main(output: pathlib.Path) -> None:
    """Writes files, inputs and outputs."""
    torch.manual_seed(0)
    own, rng = tokenizer(), np.random.default_rng(0)
    images = rng.integers(0, 256, (len(TEXTS), SIDE, SIDE, 3), np.uint8)
    ids = own(TEXTS, padding="max_length", max_length=LENGTH, split_special_tokens=True)
    ids = np.int32(ids["input_ids"])
    read = [own.decode(row, skip_special_tokens=True) for row in ids]
    arrays = {"texts": np.array(TEXTS), "tokens": ids, "images": images, "read": np.array(read)}
    makers = {**dict.fromkeys(HUGGING_FACE, hugging_face), **dict.fromkeys(OPEN_CLIP, open_clip)}
    for name, make in makers.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch)
            out = make(name, folder, torch.tensor(ids, dtype=torch.long), images)
            arrays |= {f"{name}/files/{file}": data for file, data in contents(folder).items()}
        arrays |= {f"{name}/{key}": value.numpy() for key, value in out.items()}
    np.savez_compressed(output, **arrays)


if __name__ == "__main__":
    default = pathlib.Path(__file__).with_name("clip_import.npz")
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default)
