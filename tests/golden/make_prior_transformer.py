"""A small prior of DALL-E 2 with random weights, and its predictions, by diffusers.

/path/to/parity/bin/python tests/golden/make_prior_transformer.py [OUTPUT.npz]

The three captions have 5, 2 and 1 tokens. Biases, norms, positions and the query have random values
too, or they would not be tested.
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np

sys.modules["torchvision"] = None  # of no use here, and one for another torch breaks the imports

import torch  # noqa: E402
from diffusers import PriorTransformer  # noqa: E402

SIZES = {
    **{"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2},
    **{"embedding_dim": 6, "num_embeddings": 5, "additional_embeddings": 4},
}
TIMES, LENGTHS = [0.0, 17.0, 999.0], [5, 2, 1]


def main(output: pathlib.Path) -> None:
    """Writes the weights, inputs and predictions."""
    torch.manual_seed(0)
    model = PriorTransformer(**SIZES).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(around + 0.3 * torch.randn(parameter.shape))
        noisy, caption, tokens = (torch.randn(3, *shape) for shape in ((6,), (6,), (5, 6)))
        time, mask = torch.tensor(TIMES), torch.arange(5) < torch.tensor(LENGTHS)[:, None]
        out = model(noisy, time, caption, tokens, mask).predicted_image_embedding
    arrays = {f"weights/{k}": v.numpy() for k, v in model.state_dict().items()}
    arrays |= {"noisy": noisy.numpy(), "caption": caption.numpy(), "tokens": tokens.numpy()}
    arrays |= {"time": time.numpy(), "mask": mask.numpy(), "predicted": out.numpy()}
    np.savez_compressed(output, **arrays)


if __name__ == "__main__":
    default = pathlib.Path(__file__).with_name("prior_transformer.npz")
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default)
