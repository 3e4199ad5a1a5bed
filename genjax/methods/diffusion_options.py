"""The `diffusion` section of a config."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from genjax.checks import Finite, OtherWidth, Positive, Range, Rate, Share, Width
from genjax.methods.denoiser import Section
from genjax.sampling import paths
from genjax.sampling.paths import Path


class Options(NamedTuple):
    """The `diffusion` section of a config, and its defaults.

    Attributes:
      path: path of x_t: "linear", "cosine" or "sigmoid" (variance preserving), "flow" or "edm".
      num_timesteps: T of a process in discrete time; 0 for continuous time.
      zero_terminal_snr: whether a process in discrete time ends in pure noise.
      shift: factor of the noise at every time, for larger images.
      prediction: output of the network: "epsilon", "x0", "v", "velocity" or "edm".
      sigma_data: standard deviation of the data, for the preconditioning of "edm".
      weighting: weight of the squared error of the output: "simple"; "min_snr"; "variational",
        which gives the bound; "uncertainty", learned (Karras et al. 2024, eq. 21).
      min_snr_gamma: maximum of the signal-to-noise ratio in "min_snr".
      times: distribution of training times: "uniform", "logit_normal" (Esser et al. 2024) or
        "lognormal", of sigma / alpha (Karras et al. 2022).
      times_mean: mean of the normal distribution.
      times_std: its standard deviation.
      coupling: coupling of data and noise in a batch: "independent" or "optimal_transport" (Tong et
        al. 2024).
      variance: variance of DDPM's reverse step: "fixed_small", "fixed_large" or "learned", for
        which the network has twice the channels.
      class_conditional: whether the network is conditioned on the label.
      conditions: names of other fields of the data that the network is conditioned on: see
        `networks.conditioning` for how each enters.
      context_width: width of the vectors for texts and rows, for cross-attention.
      context_depth: number of blocks of a transformer over the vectors of a text, which is trained
        with the network; 0: none.
      context_heads: its attention heads.
      label_dropout: share of training examples with all of their conditions hidden, for guidance.
      likelihood_steps: steps of the ODE for the likelihood in evaluations, even; 0: none. A step
        and its control take three calls of the network and its derivative per probe.
      likelihood_probes: random directions for the divergence; 0 is exact, at a call per dimension.
      eval_timesteps: network calls per example in the estimate of the bound; in discrete time the
        first call is for the decoder, and 0 uses all T timesteps.
      sampler: default solver.
      steps: default number of sampling steps; 0 uses all T.
      spacing: default spacing of the steps: see `sampling.grids`.
      eta: default noise, for solvers with this option.
      guidance: default scale of guidance; 1 is none.
      embedding: the stage whose vector of the image is a condition: a run of method "clip", or one
        of "embedding_prior", which also draws the vector for a caption; "": none.
      embedding_dropout: share of training examples with that vector alone hidden.
      text_dropout: share of training examples with an empty caption.
      text_encoder: the stage that reads captions for the network, frozen: a run of method "clip",
        "masked_lm" or "seq2seq"; "": the network has an embedding of its own.
      low_resolution: shorter side of the smaller image that is a condition; 0: none.
      low_resolution_stage: the stage that draws that image for the other conditions; "": it is
        always given.
      low_resolution_noise: default level of the noise in it, from 0 to 1; in training, levels are
        uniform.
    """

    path: str = "cosine"
    num_timesteps: Annotated[int, Range(0, 1_000_000)] = 1000
    zero_terminal_snr: bool = False
    shift: Positive = 1.0
    prediction: str = "epsilon"
    sigma_data: Positive = 0.5
    weighting: str = "simple"
    min_snr_gamma: Positive = 5.0
    times: str = "uniform"
    times_mean: Finite = 0.0
    times_std: Positive = 1.0
    coupling: str = "independent"
    variance: str = "fixed_small"
    class_conditional: bool = False
    conditions: tuple[str, ...] = ()
    context_width: Width = 128
    context_depth: Annotated[int, Range(0, 1000)] = 0
    context_heads: Width = 4
    label_dropout: Rate = 0.1
    likelihood_steps: Annotated[int, Range(0, 10_000)] = 0
    likelihood_probes: Annotated[int, Range(0, 10_000)] = 1
    eval_timesteps: Annotated[int, Range(0, 1_000_000)] = 32
    sampler: str = "dpm++_2m"
    steps: Annotated[int, Range(0, 1_000_000)] = 20
    spacing: str = "uniform"
    eta: Share = 0.0
    guidance: Finite = 1.0
    embedding: str = ""
    embedding_dropout: Rate = 0.0
    text_dropout: Rate = 0.0
    text_encoder: str = ""
    low_resolution: OtherWidth = 0
    low_resolution_stage: str = ""
    low_resolution_noise: Share = 0.1


def guidable(o: Section) -> bool:
    """Whether the network is also trained without its conditions."""
    return bool((o.class_conditional or o.conditions) and o.label_dropout)


def path_of(o: Options) -> Path:
    """The path that the options name."""
    return paths.make(o.path, o.num_timesteps, o.zero_terminal_snr, o.shift)
