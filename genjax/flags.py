"""The flags of the command line, and what of the config they change."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from genjax import config as configs
from genjax.config import ConfigError
from genjax.interop.export import FORMATS

WEIGHTS = ("ema", "guide_ema", "guide_checkpoint")  # which of a run's weights are used
SWEEPS = ("solvers", "sweep_guidance")
DRAWING = ("sample", *SWEEPS)  # modes that take options of drawing
# Flags that belong to some modes, and to which.
OWN = {
    **dict.fromkeys(("conditions", "stream"), ("sample",)),
    **dict.fromkeys(("num", "seed"), DRAWING),
    **dict.fromkeys(("samplers", "calls", "spacings"), ("solvers",)),
    **dict.fromkeys(("scales", "intervals"), ("sweep_guidance",)),
    "ema": ("sample", "eval", "export", *SWEEPS),
    **dict.fromkeys(("guide_ema", "guide_checkpoint"), ("sample", "eval", *SWEEPS)),
    "samples": ("eval",),
    "references": ("eval",),
    "format": ("export",),
    "output": ("export", "tokenizer", "solvers"),
}


def parse(argv: list[str], modes: Iterable[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Splits the command line into flags and config overrides.

    With --mode=sample any other `--name=value` is a condition, or an option of the method's
    sampler, and ends up in `flags.options`: name -> each of its values; with the other modes of
    `DRAWING` it is an option. The overrides are in `flags.overrides` too.

    Raises:
      ConfigError: an argument that is none of these.
    """
    parser = argparse.ArgumentParser(
        prog="python -m genjax.main",
        description="Train, evaluate, sample or inspect a generative model.",
        epilog="Any key of the config is set by --config.KEY=VALUE, such as "
        "--config.optimizer.learning_rate=3e-4. With --mode=sample, the conditions and options of "
        "the method are given in the same way: --label=7 --prompt='Once' --sampler=ddim.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", default="", help="FILE.py[:preset]; the workdir's own if not given")
    add("--workdir", default="", help="folder of the run; runs/<config>[_preset] if not given")
    add("--mode", default="train", choices=tuple(modes))
    add("--allow_config_change", action="store_true", help="go on with another config")
    add("--checkpoint", default="", help="step to use in the other modes, or best; the newest")
    add("--ema", default="", help="average of the weights: a name, a standard deviation, or none")
    add("--guide_ema", default="", help="sample, eval: another average, which guides")
    add("--guide_checkpoint", default="", help="sample, eval: another step, which guides")
    add("--samples", default="", help="eval: a file of samples to judge, or a split of the data")
    add("--references", default="", help="eval: what --samples should be, in the same form")
    add("--num", type=int, default=None, help="sample: how many; 64, of text one for each prompt")
    add("--seed", type=int, default=None, help="sample: decides which; 0")
    add("--samplers", default="", help="solvers: which, with commas, such as ddim,heun")
    add("--calls", default="", help="solvers: network calls, with commas, such as 5,10,20")
    add("--spacings", default="", help="solvers: of the steps, with commas; the run's own")
    add("--scales", default="", help="sweep_guidance: with commas, such as 1,2,4")
    add("--intervals", default="", help="sweep_guidance: of sigma / alpha, such as 0:inf,0.3:5")
    add("--conditions", default="", help="sample: a file of them, or the split that has them")
    add("--stream", action="store_true", help="sample: print one text as it comes")
    add("--format", default="huggingface", choices=FORMATS, help="export: the other library")
    add("--output", default="", help="export, solvers: a folder; tokenizer: a new file")
    flags, rest = parser.parse_known_args(argv)
    for name, own in OWN.items():
        if getattr(flags, name) != parser.get_default(name) and flags.mode not in own:
            raise ConfigError(
                f"--{name} belongs to --mode={' and --mode='.join(own)}, not to "
                f"--mode={flags.mode}." + " The seed of a run is --config.seed." * (name == "seed")
            )
    of_run = [name for name in ("checkpoint", *WEIGHTS) if getattr(flags, name)]
    if flags.samples and of_run:
        raise ConfigError(f"--samples are judged without a run: leave --{of_run[0]} out.")
    if flags.references and not flags.samples:
        raise ConfigError("--references are for --samples, a file of texts: give that as well.")
    overrides = flags.overrides = {}
    flags.options = {}
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name.startswith("--config.") and equals:
            overrides[name.removeprefix("--config.")] = value
        elif flags.mode in DRAWING and name.startswith("--") and equals:
            flags.options.setdefault(name[2:], []).append(value)
        else:
            known = [f"--{name}" for name in vars(flags) if name not in ("options", "overrides")]
            raise ConfigError(
                f"{argument!r} is not understood. Nearest: {configs.nearest(name, known)}, or "
                "--config.KEY=VALUE."
                + " Conditions and options of a method belong to --mode=sample."
                * bool(equals)
            )
    return flags, overrides
