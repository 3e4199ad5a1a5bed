"""Runs diffusers' DDPM and DDIM schedulers, one step at a time, and writes `diffusion.npz`.

    /path/to/parity/bin/python tests/golden/make_diffusion.py [OUTPUT.npz]

Each case is one call of `step` with given x_t, network output and noise. The peer works once as it
is shipped, in float32 throughout (`float32/...`), and once with its tables recomputed by its own
formula in float64 (`float64/...`): its float32 1 - alpha-bar loses digits at the clean end, where
a step of the shipped peer comes out up to 3e-4 off (t = 1, cosine).

At its last step DDPM draws no noise (Ho et al. 2020, algorithm 2). The peer takes the last step
for t = 0, which is not so for spaced timesteps that end elsewhere; there it is given noise 0.
"""

from __future__ import annotations

import itertools
import pathlib
import sys

import diffusers
import numpy as np
import torch
from diffusers.schedulers import scheduling_ddpm

T = 1000
FEW = 20
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
SOLVERS = ("fixed_small", "fixed_large", "eta0", "eta0.7")
# (name, number of steps, spacing, indices from the clean end of the schedule)
SPACINGS = (
    ("full", T, "trailing", (0, 1, 2, 100, 500, 998, 999)),
    ("trailing", FEW, "trailing", (0, 1, 10, 19)),
    ("leading", FEW, "leading", (0, 1, 10, 19)),
)


def in_float64(scheduler, name):
    """Gives the scheduler float64 tables, by the formulas of its own constructor."""
    if name == "linear":
        betas = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
    else:
        # The peer's own function, kept from rounding its result to float32.
        rounded, torch.float32 = torch.float32, torch.float64
        try:
            betas = scheduling_ddpm.betas_for_alpha_bar(T)
        finally:
            torch.float32 = rounded
    assert betas.dtype == torch.float64
    torch.testing.assert_close(betas.float(), scheduler.betas, rtol=1e-5, atol=1e-9)
    scheduler.betas = betas
    scheduler.alphas = 1.0 - betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, dim=0)


def make_step(solver, schedule, prediction, steps, spacing, clip, dtype):
    """(timestep, x, output, noise) -> x at the previous timestep, by the peer."""
    shared = dict(
        num_train_timesteps=T,
        beta_schedule=SCHEDULES[schedule],
        prediction_type=PREDICTIONS[prediction],
        timestep_spacing=spacing,
        clip_sample=clip,
    )
    ddim = solver.startswith("eta")
    if ddim:
        scheduler = diffusers.DDIMScheduler(**shared)
    else:
        scheduler = diffusers.DDPMScheduler(variance_type=solver, **shared)
    if dtype == torch.float64:
        in_float64(scheduler, schedule)
    scheduler.set_timesteps(steps)

    def step(index, x, output, noise):
        t = int(scheduler.timesteps[steps - 1 - index])
        x, output, noise = (torch.tensor(a, dtype=dtype) for a in (x, output, noise))
        if ddim:
            out = scheduler.step(
                output, t, x, float(solver[3:]), use_clipped_model_output=True, variance_noise=noise
            )
        else:
            drawn = noise if index else torch.zeros_like(noise)
            scheduling_ddpm.randn_tensor = lambda *args, **kwargs: drawn
            out = scheduler.step(output, t, x)
        return t, out.prev_sample.numpy().astype(np.float32)

    return step


def main(path: pathlib.Path) -> None:
    """Writes every case to `path`."""
    rng = np.random.default_rng(0)
    x, output, noise = (rng.standard_normal((2, 3, 1, 1), np.float32) for _ in range(3))
    arrays = dict(
        peer=f"diffusers {diffusers.__version__}, torch {torch.__version__}",
        x=x,
        output=output,
        noise=noise,
    )
    for name in SCHEDULES:
        scheduler = diffusers.DDPMScheduler(T, beta_schedule=SCHEDULES[name])
        arrays[f"betas/{name}"] = scheduler.betas.numpy()
    for dtype, schedule, (place, steps, spacing, indices) in itertools.product(
        (torch.float32, torch.float64), SCHEDULES, SPACINGS
    ):
        for prediction, solver, clip in itertools.product(PREDICTIONS, SOLVERS, (False, True)):
            step = make_step(solver, schedule, prediction, steps, spacing, clip, dtype)
            timesteps, results = zip(*(step(i, x, output, noise) for i in indices), strict=True)
            case = f"{schedule}/{place}/{prediction}/{solver}/{'clip' if clip else 'free'}"
            arrays[f"{str(dtype)[6:]}/{case}"] = np.stack(results)
            arrays[f"indices/{place}"] = np.array(indices)
            arrays[f"timesteps/{place}"] = np.array(timesteps)
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    here = pathlib.Path(__file__)
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here.with_name("diffusion.npz"))
