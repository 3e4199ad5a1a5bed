"""Quantisation by vector-quantize-pytorch: codebooks by averages, both gradients, and FSQ.

/path/to/parity/bin/python tests/golden/make_quantize.py [OUTPUT.npz]
"""

from __future__ import annotations

import importlib.metadata
import pathlib
import sys

import numpy as np
import torch
from vector_quantize_pytorch import FSQ, VectorQuantize

STEPS, ROWS, DIM, CODES, DECAY = 4, 40, 5, 12, 0.8
LEVELS = ((8, 5, 5, 5), (3, 4), (7,))


def main(path: pathlib.Path) -> None:
    """Quantises and writes."""
    torch.manual_seed(0)
    x = torch.randn(STEPS, ROWS, DIM)
    start, weight = torch.randn(CODES, DIM), torch.randn(ROWS, DIM)
    name = "vector-quantize-pytorch"
    arrays = {"peer": f"{name} {importlib.metadata.version(name)}", "decay": DECAY}
    arrays |= {"x": x.numpy(), "start": start.numpy(), "weight": weight.numpy()}
    for trick in ("straight_through", "rotation"):
        vq = VectorQuantize(
            dim=DIM, codebook_size=CODES, decay=DECAY, rotation_trick=trick == "rotation"
        )
        book = vq._codebook
        book.embed.data.copy_(start[None])
        book.embed_avg.data.copy_(start[None])
        book.cluster_size.data.fill_(1.0)
        book.initted.data.fill_(True)
        found = {"codes": [], "index": [], "commitment": [], "quantised": [], "slope": []}
        for rows in x:
            rows = rows.clone().requires_grad_()
            quantised, index, commitment = vq(rows[None])
            (quantised[0] * weight).sum().backward()
            found["codes"].append(book.embed[0].detach().clone())
            found["index"].append(index[0])
            found["commitment"].append(commitment.detach().reshape(()))
            found["quantised"].append(quantised[0].detach())
            found["slope"].append(rows.grad)
        arrays |= {f"{trick}/{key}": torch.stack(v).numpy() for key, v in found.items()}
    for number, levels in enumerate(LEVELS):
        z = (3 * torch.randn(60, len(levels))).requires_grad_()
        quantised, index = FSQ(levels=list(levels))(z[None])
        quantised.square().sum().backward()
        arrays |= {
            f"fsq{number}/levels": np.array(levels),
            f"fsq{number}/z": z.detach().numpy(),
            f"fsq{number}/quantised": quantised[0].detach().numpy(),
            f"fsq{number}/index": index[0].numpy(),
            f"fsq{number}/slope": z.grad.numpy(),
        }
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    default = pathlib.Path(__file__).with_name("quantize.npz")
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default)
