"""A small CLIP with random weights, its vectors and its loss, by transformers.

/path/to/parity/bin/python tests/golden/make_clip.py [OUTPUT.npz]

Two texts of different lengths are padded with 0, and end with 1. Biases and norms have random
values too, or they would not be tested.
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np

sys.modules["torchvision"] = None  # of no use here, and one for another torch breaks the imports

import torch  # noqa: E402
import transformers  # noqa: E402

TEXT = {
    **{"vocab_size": 14, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 24, "max_position_embeddings": 7, "hidden_act": "gelu"},
    **{"bos_token_id": 3, "pad_token_id": 0, "eos_token_id": 1},
}
VISION = {
    **{"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 4},
    **{"intermediate_size": 20, "image_size": 12, "hidden_act": "gelu"},
}
TOKENS = [[3, 9, 12, 5, 1, 0, 0], [3, 4, 1, 0, 0, 0, 0], [3, 13, 2, 8, 8, 6, 1]]


def main(output: pathlib.Path) -> None:
    """Writes the weights, inputs, vectors and loss."""
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=10)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(around + 0.3 * torch.randn(parameter.shape))
        tokens, image = torch.tensor(TOKENS), torch.randn(3, 3, 12, 12)
        out = model(input_ids=tokens, pixel_values=image, return_loss=True)
    arrays = {f"weights/{k}": v.numpy() for k, v in model.state_dict().items()}
    arrays |= {"tokens": np.int32(TOKENS), "image": image.permute(0, 2, 3, 1).numpy()}
    arrays |= {"image_vectors": out.image_embeds.numpy(), "text_vectors": out.text_embeds.numpy()}
    arrays |= {"logits": out.logits_per_image.numpy(), "loss": out.loss.numpy()}
    np.savez_compressed(output, **arrays)


if __name__ == "__main__":
    default = pathlib.Path(__file__).with_name("clip.npz")
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default)
