"""Runs diffusers' schedulers from the first to the last step and writes `solvers.npz`.

    /path/to/parity/bin/python tests/golden/make_solvers.py [OUTPUT.npz]

The networks are two formulas: "line", x t / (t + 1), which is the dummy model of diffusers' own
tests, and "curve", tanh(x) + 0.3 cos(t / 300). Two things are done to the peer. Its tables of
alpha-bar are recomputed in float64: its float32 ones lose digits at the clean end. And a scheduler
that scales the network's input is given its unscaled state for the step, which it is not in its own
tests.

A case is called `solver/spacing/end/prediction/steps/options`, in this package's words. Cases with
the prediction "edm" are on the exploding path, "velocity" on the straight one. Those of "noisy/"
draw noise, which is handed to the peer: all states of one run, and for EDM's churn the state after
it and its level.

Left out: sde-dpmsolver++ of order 3, in which the peer has -1/2 for the +1/2 of its own ODE solver
(its coefficient of the second derivative does not vanish with the step); bh1 to sigma 0, and steps
of order 3 that stay where they are, which are NaN there.
"""

from __future__ import annotations

import itertools
import pathlib
import sys

import diffusers
import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import scheduling_ddpm, scheduling_edm_euler
from diffusers.schedulers import scheduling_euler_ancestral_discrete as scheduling_ancestral

T = 1000
STEPS = (10, 25)
LINEAR = dict(
    num_train_timesteps=T, beta_start=1e-4, beta_end=0.02, beta_schedule="linear"
)  # of the peer's own tests
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}
ENDS = {"data": "zero", "first": "sigma_min"}
NETWORKS = {
    "line": lambda x, t: x * t / (t + 1),
    "curve": lambda x, t: torch.tanh(x) + 0.3 * torch.cos(t / 300),
}


def first_state() -> torch.Tensor:
    """The first state of the peer's own tests."""
    return torch.arange(768, dtype=torch.float64).reshape(3, 8, 8, 4).permute(3, 0, 1, 2) / 768


def in_float64(scheduler):
    """Gives a scheduler with betas its alpha-bar in float64."""
    betas = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
    torch.testing.assert_close(betas.float(), scheduler.betas, rtol=1e-6, atol=1e-9)
    scheduler.betas, scheduler.alphas = betas, 1.0 - betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, dim=0)
    if hasattr(scheduler, "final_alpha_cumprod"):
        one = scheduler.config.set_alpha_to_one
        scheduler.final_alpha_cumprod = torch.tensor(1.0) if one else scheduler.alphas_cumprod[0]
    return scheduler


def states(scheduler, steps, network, x, **options):
    """Every state of a run, by the peer."""
    scheduler.set_timesteps(steps, **options)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(seen, t), t, x).prev_sample
        yield x


def discrete_cases():
    """(case without its steps, options, scheduler) in discrete time."""
    for end, prediction in itertools.product(ENDS, PREDICTIONS):
        shared = LINEAR | dict(prediction_type=PREDICTIONS[prediction])
        ddim = DDIMScheduler(**shared, clip_sample=False, set_alpha_to_one=end == "data")
        yield f"ddim/leading/{end}/{prediction}", "", ddim
    # Of pndm there is no v: the peer takes a mean of v at several points for v at one of them.
    for end, (warmup, skip) in itertools.product(
        ENDS, (("runge_kutta", False), ("multistep", True))
    ):
        own = dict(set_alpha_to_one=end == "data", skip_prk_steps=skip)
        yield f"pndm/leading/{end}/epsilon", f"warmup={warmup}", PNDMScheduler(**LINEAR, **own)
    for end, prediction, spacing in itertools.product(ENDS, PREDICTIONS, ("linspace", "karras")):
        shared = LINEAR | dict(
            prediction_type=PREDICTIONS[prediction],
            final_sigmas_type=ENDS[end],
            use_karras_sigmas=spacing == "karras",
        )
        place = f"{spacing}/{end}/{prediction}"
        for order, lower in itertools.product((1, 2, 3), (True, False)):
            if order == 3 and place.startswith("karras/first"):
                continue
            own = dict(solver_order=order, lower_order_final=lower)
            scheduler = DPMSolverMultistepScheduler(**shared, **own)
            yield f"dpm++_multistep/{place}", f"order={order},lower_order_final={lower}", scheduler
        for lower in (True, False) if end == "first" else (True,):
            own = dict(solver_order=2, lower_order_final=lower)
            scheduler = DPMSolverSinglestepScheduler(**shared, **own)
            yield f"dpm++_singlestep/{place}", f"lower_order_final={lower}", scheduler
        for order, kind in itertools.product((1, 2, 3), ("bh1", "bh2")):
            if kind == "bh2" or end == "first":
                scheduler = UniPCMultistepScheduler(**shared, solver_order=order, solver_type=kind)
                yield f"unipc/{place}", f"order={order},kind={kind}", scheduler
        if end == "first":
            del shared["final_sigmas_type"]
            for order in (1, 2, 3):
                yield (
                    f"deis/{place}",
                    f"order={order}",
                    DEISMultistepScheduler(**shared, solver_order=order),
                )


def continuous_cases():
    """(case without steps, options, scheduler, factor of the first state) in continuous time."""
    start = (80.0**2 + 1) ** 0.5  # as the peer has it
    yield "euler/karras/data/edm", "", EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0), start
    for order in (1, 2, 3):
        scheduler = EDMDPMSolverMultistepScheduler(solver_order=order)
        yield "dpm++_multistep/karras/data/edm", f"order={order}", scheduler, start
    yield "euler/linspace/data/velocity", "", FlowMatchEulerDiscreteScheduler(), 1.0
    yield "heun/linspace/data/velocity", "", FlowMatchHeunDiscreteScheduler(), 1.0
    flow = dict(
        num_train_timesteps=T,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        final_sigmas_type="zero",
    )
    for shift, order in itertools.product((1.0, 3.0), (2, 3)):
        options = f"order={order},shift={shift}"
        multistep = DPMSolverMultistepScheduler(**flow, solver_order=order, flow_shift=shift)
        yield "dpm++_multistep/peer/data/velocity", options, multistep, 1.0
        unipc = UniPCMultistepScheduler(**flow, solver_order=order, flow_shift=shift)
        yield "unipc/peer/data/velocity", options, unipc, 1.0


def deterministic(arrays: dict) -> None:
    """Sixteen numbers of the last state of each case and network, and the peer's own levels."""
    x, cases = first_state(), [(*case, 1.0) for case in discrete_cases()]
    found = {name: {} for name in NETWORKS}

    def keep(case, scheduler, start, steps, **options):
        for name, network in NETWORKS.items():
            *_, last = states(scheduler, steps, network, start, **options)
            assert bool(torch.isfinite(last).all()), case
            found[name][case] = last.flatten()[::48].numpy().astype(np.float32)

    for case, options, scheduler, factor in [*cases, *continuous_cases()]:
        if "beta_start" in scheduler.config and "velocity" not in case:
            in_float64(scheduler)
        for steps in STEPS:
            key = f"{case}/{steps}/{options}"
            keep(key, scheduler, factor * x, steps)
            if "/peer/" in case:  # the peer's own grid
                arrays[f"sigmas/{key}"] = scheduler.sigmas.numpy()
                arrays[f"told/{key}"] = scheduler.timesteps.numpy().astype(np.float32)
    shifted = FlowMatchEulerDiscreteScheduler(
        shift=3.0
    )  # Esser et al. 2024, eq. 23, of given levels
    for steps in STEPS:
        given = dict(sigmas=np.linspace(1.0, 1e-3, steps))
        keep(f"euler/linspace/data/velocity/{steps}/grid_shift=3.0", shifted, x, steps, **given)
    arrays["cases"] = np.array(list(found["line"]))
    arrays |= {name: np.stack(list(each.values())) for name, each in found.items()}


class Handed:
    """Hands out given noise in place of `randn_tensor`."""

    def __init__(self, noise):
        self.noise = iter(noise)

    def __call__(self, *args, **kwargs):
        return next(self.noise)


def noisy(arrays: dict) -> None:
    """All states of runs that draw noise, on the same noise."""
    steps, rng = 10, np.random.default_rng(0)
    x = torch.tensor(rng.standard_normal((1, 2, 2, 4)))
    noise = torch.tensor(rng.standard_normal((steps, *x.shape)))
    arrays |= {"noisy/x": x.numpy(), "noisy/noise": noise.numpy()}

    def keep(case, found):
        arrays[f"noisy/{case}"] = torch.stack([x.float() for x in found]).numpy()

    def curve(x, t):
        return NETWORKS["curve"](x, t)

    for variance in ("fixed_small", "fixed_large", "learned_range"):
        scheduler = DDPMScheduler(
            **LINEAR, clip_sample=False, variance_type=variance, timestep_spacing="leading"
        )
        scheduling_ddpm.randn_tensor = Handed(noise)

        def both(x, t):
            return torch.cat([curve(x, t), torch.sin(2 * x)], dim=1)

        network = both if variance == "learned_range" else curve
        name = variance.removesuffix("_range")
        keep(f"ddpm/{name}", states(in_float64(scheduler), steps, network, x))
    ancestral = EulerAncestralDiscreteScheduler(**LINEAR, timestep_spacing="trailing")
    scheduling_ancestral.randn_tensor = Handed(noise)
    last_alpha = in_float64(ancestral).alphas_cumprod[-1] ** 0.5
    keep("euler_ancestral", states(ancestral, steps, curve, x / last_alpha))
    for order in (1, 2):
        sde = DPMSolverMultistepScheduler(
            **LINEAR, solver_order=order, algorithm_type="sde-dpmsolver++", final_sigmas_type="zero"
        )
        in_float64(sde).set_timesteps(steps)
        state, found = x, []
        for t, drawn in zip(sde.timesteps, noise, strict=True):
            state = sde.step(curve(state, t), t, state, variance_noise=drawn).prev_sample
            found.append(state)
        keep(f"dpm++_sde/{order}", found)
    churned(arrays, x, noise)


def churned(arrays: dict, x: torch.Tensor, noise: torch.Tensor) -> None:
    """EDM's churn. The network is asked where it has led to, which is left to the caller there."""
    scheduler, seen = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0), []
    inner, handed = scheduler.precondition_outputs, Handed(noise)
    scheduling_edm_euler.randn_tensor = handed

    def outputs(sample, model_output, sigma):
        seen.append((sample, sigma))
        into = scheduler.precondition_inputs(sample, sigma)
        return inner(sample, NETWORKS["curve"](into, 0.25 * torch.log(sigma)), sigma)

    scheduler.precondition_outputs = outputs
    scheduler.set_timesteps(len(noise))
    x, found = 80.0 * x, []
    for t in scheduler.timesteps:
        scheduler.scale_model_input(x, t)
        given = dict(s_churn=4.0, s_tmin=0.05, s_tmax=50.0, s_noise=1.003)
        x = scheduler.step(x, t, x, **given).prev_sample
        found.append(x)
    arrays["noisy/churn/state"] = torch.stack(found).float().numpy()
    arrays["noisy/churn/hat"] = torch.stack([x for x, _ in seen]).float().numpy()
    arrays["noisy/churn/sigma"] = np.array([float(sigma) for _, sigma in seen])


def main(path: pathlib.Path) -> None:
    """Writes every case to `path`."""
    arrays = dict(peer=f"diffusers {diffusers.__version__}, torch {torch.__version__}")
    deterministic(arrays)
    noisy(arrays)
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    here = pathlib.Path(__file__)
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here.with_name("solvers.npz"))
