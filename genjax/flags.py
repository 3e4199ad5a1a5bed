"""Parses the command line into flags and config overrides."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable

from genjax import config as configs
from genjax.config import ConfigError
from genjax.files import at_home
from genjax.interop.export import FORMATS

WEIGHTS = ("ema", "guide_ema", "guide_checkpoint")  # flags that choose a run's weights
SWEEPS = ("solvers", "sweep_guidance")
PATHS = ("config", "workdir", "output", "samples", "references", "conditions")
# Attributes of the parsed flags that are not flags.
INSIDE = ("options", "overrides", "command", "began")
PLANNING = ("topology", "slices", "what", "price", "search")
DRAWING = ("sample", "chat", *SWEEPS)  # modes that take sampling options
# Flags that only some modes take -> these modes.
OWN = {
    **dict.fromkeys(("conditions", "stream"), ("sample",)),
    "num": ("sample", *SWEEPS, "plan"),
    "seed": DRAWING,
    **dict.fromkeys(PLANNING, ("plan",)),
    **dict.fromkeys(("samplers", "calls", "spacings"), ("solvers",)),
    **dict.fromkeys(("scales", "intervals"), ("sweep_guidance",)),
    "ema": ("sample", "chat", "eval", "export", *SWEEPS),
    **dict.fromkeys(("guide_ema", "guide_checkpoint"), ("sample", "eval", *SWEEPS)),
    "samples": ("eval",),
    "references": ("eval",),
    "format": ("export",),
    "output": ("export", "tokenizer", "solvers"),
}


def parse(argv: list[str], modes: Iterable[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Splits the command line into flags and config overrides.

    With the modes of `DRAWING`, any other `--name=value` is an option of the method's sampler or,
    with --mode=sample, a condition; `flags.options` maps its name to the list of its values. The
    overrides are also in `flags.overrides`. `flags.command` is the whole command, and `flags.began`
    the time of the call, by `time.perf_counter`.

    Raises:
      ConfigError: an argument is not understood, or does not fit the mode.
    """
    parser = argparse.ArgumentParser(
        prog="genjax",
        description="Train, evaluate, sample or inspect a generative model.",
        epilog="--config.KEY=VALUE sets any key of the config, such as "
        "--config.optimizer.learning_rate=3e-4. With --mode=sample, give conditions and options "
        "of the method in the same way: --label=7 --prompt='Once' --sampler=ddim. With "
        "--mode=chat, give --system=TEXT, --prompt=MESSAGE and the same options.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", default="", help="NAME[:preset] or FILE.py[:preset]; default: the workdir's")
    add("--workdir", default="", help="folder of the run; default: runs/CONFIG or CONFIG_PRESET")
    add("--mode", default="train", choices=tuple(modes))
    add("--allow_config_change", action="store_true", help="resume with a changed config")
    add("--checkpoint", default="", help="step of the checkpoint, or best; default: the newest")
    add("--ema", default="", help="averaged weights to use: a name, a standard deviation, or none")
    add("--guide_ema", default="", help="sample, eval: averaged weights to guide by")
    add("--guide_checkpoint", default="", help="sample, eval: step of the weights to guide by")
    add("--samples", default="", help="eval: judge the samples in a file, or a split of the data")
    add("--references", default="", help="eval: file or split of references of --samples")
    add(
        "--num",
        type=int,
        default=None,
        help="sample: number of samples; default: 64, or one per prompt",
    )
    add("--seed", type=int, default=None, help="sample, chat: random seed; default: 0")
    add("--samplers", default="", help="solvers: names, such as ddim,heun")
    add("--calls", default="", help="solvers: numbers of network calls, such as 5,10,20")
    add("--spacings", default="", help="solvers: spacings of the steps; default: the run's")
    add("--scales", default="", help="sweep_guidance: guidance scales, such as 1,2,4")
    add("--intervals", default="", help="sweep_guidance: ranges of sigma / alpha: 0:inf,0.3:5")
    add("--conditions", default="", help="sample: file of conditions, or a split of the data")
    add("--stream", action="store_true", help="sample: print one text as it is generated")
    add("--topology", default="", help="plan: chips, such as v5e:16x16 or h100:2x8; default: here")
    add("--slices", type=int, default=1, help="plan: slices of TPUs, joined by the network")
    add("--what", default="train", choices=("train", "sample"), help="plan: step or sampler")
    add("--price", type=float, default=0.0, help="plan: price of one chip for an hour")
    add("--search", type=int, nargs="?", const=8, default=0, help="plan: programs to compare")
    add("--format", default="huggingface", choices=FORMATS, help="export: target library")
    add("--output", default="", help="export, solvers: a folder; tokenizer: a new file")
    flags, rest = parser.parse_known_args(argv)
    for name in PATHS:
        setattr(flags, name, at_home(getattr(flags, name), f"--{name}"))
    flags.config = configs.located(flags.config)
    for name, allowed_modes in OWN.items():
        if getattr(flags, name) != parser.get_default(name) and flags.mode not in allowed_modes:
            raise ConfigError(
                f"--{name} belongs to --mode={' and --mode='.join(allowed_modes)}, not to "
                f"--mode={flags.mode}." + " The seed of a run is --config.seed." * (name == "seed")
            )
    run_flags = [name for name in ("checkpoint", *WEIGHTS) if getattr(flags, name)]
    if flags.samples and run_flags:
        raise ConfigError(f"--samples does not use a run: leave out --{run_flags[0]}.")
    if flags.references and not flags.samples:
        raise ConfigError("--references needs --samples, a file of texts.")
    flags.command, flags.began = ("genjax", *argv), time.perf_counter()
    overrides = flags.overrides = {}
    flags.options = {}
    draws = flags.mode in DRAWING or (flags.mode, flags.what) == ("plan", "sample")
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name.startswith("--config.") and equals:
            overrides[name.removeprefix("--config.")] = value
        elif draws and name.startswith("--") and equals:
            flags.options.setdefault(name[2:], []).append(value)
        else:
            known = [f"--{name}" for name in vars(flags) if name not in INSIDE]
            raise ConfigError(
                f"{argument!r} is not understood. Nearest: {configs.nearest(name, known)}, or "
                "--config.KEY=VALUE."
                + " Conditions and options of a method belong to --mode=sample."
                * bool(equals)
            )
    return flags, overrides
