"""Runs the scheduler of diffusers' aMUSEd, which decodes as MaskGIT, and writes `unmasking.npz`.

    /path/to/parity/bin/python tests/golden/make_unmasking.py [OUTPUT.npz]

Each case is a whole run: at every step given logits, the tokens that the peer drew of them at all
positions, and the tokens after the step, -1 where one is masked again. There is no noise in the
choice, so that it is a function of these.
"""

from __future__ import annotations

import pathlib
import sys

import diffusers
import numpy as np
import torch

B, S, K = 3, 20, 7
CASES = {"cosine": 8, "linear": 8, "cosine_more_than_tokens": 24}


def run(schedule: str, steps: int, draw: np.random.Generator) -> dict[str, np.ndarray]:
    """The arrays of one case."""
    scheduler = diffusers.AmusedScheduler(mask_token_id=K, masking_schedule=schedule)
    scheduler.set_timesteps(steps, temperature=(0, 0))
    generator = torch.Generator().manual_seed(0)
    sample = torch.full((B, S), K)
    arrays = {"logits": [], "drawn": [], "tokens": []}
    for t in scheduler.timesteps:
        logits = 2 * draw.normal(size=(B, S, K)).astype(np.float32)
        out = scheduler.step(torch.tensor(logits), t, sample, generator=generator)
        sample = out.prev_sample
        arrays["logits"].append(logits)
        arrays["drawn"].append(out.pred_original_sample.numpy().astype(np.int8))
        arrays["tokens"].append(torch.where(sample == K, -1, sample).numpy().astype(np.int8))
    return {name: np.stack(values) for name, values in arrays.items()}


def main() -> None:
    """Writes the file."""
    here = pathlib.Path(__file__)
    output = sys.argv[1] if len(sys.argv) > 1 else here.with_name("unmasking.npz")
    draw = np.random.default_rng(0)
    arrays = {"peer": f"diffusers {diffusers.__version__}"}
    for case, steps in CASES.items():
        found = run(case.partition("_")[0], steps, draw)
        arrays |= {f"{case}/{name}": value for name, value in found.items()}
    np.savez_compressed(output, **arrays)


if __name__ == "__main__":
    main()
