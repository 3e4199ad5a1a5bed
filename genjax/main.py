"""The command line: a config, a workdir and one mode.

python -m genjax.main --config=configs/ddpm.py[:preset] [--config.a.b=value ...] --workdir=DIR
    --mode=train|eval|sample|chat|solvers|sweep_guidance|inspect|statistics|tokenizer|export|config
           |plan
"""

from __future__ import annotations

from genjax import starting  # the imports after it take seconds

# isort: split
import argparse
import contextlib
import inspect as code
import logging
import os
import signal
import sys
import warnings
from pathlib import Path

import jax
from etils import epath
from ml_collections import ConfigDict

from genjax import config as configs
from genjax import provenance
from genjax.checks import first_line
from genjax.config import ConfigError, require
from genjax.data import catalogue
from genjax.data.packages import cache_root
from genjax.evals import judges
from genjax.evals.judges import fidelity
from genjax.files import any_encoding, is_local, place, trouble, write_atomic
from genjax.flags import parse
from genjax.interop.export import require_empty, write
from genjax.modes.chat import chat
from genjax.modes.evaluate import evaluate
from genjax.modes.mixture import solvers_of_mixture
from genjax.modes.plan import plan
from genjax.modes.resolve import resolve
from genjax.modes.runs import (
    fast_on_cpu,
    keep_programs,
    logging_to,
    parameters,
    restored,
    weights_of,
)
from genjax.modes.sample import sample
from genjax.modes.solvers import solvers_of_run, sweep_guidance
from genjax.modes.train import train
from genjax.nn.cpu.memory import keep_heap
from genjax.parallel import distributed
from genjax.parallel.mesh import make_mesh
from genjax.parallel.rules import path_name
from genjax.planning import ahead
from genjax.training import agreement
from genjax.training.averages import Diverged
from genjax.training.digests import digest, digests
from genjax.training.progress import terminal_logging

logger = logging.getLogger("genjax")


def statistics(config: ConfigDict, folder: epath.Path, flags: argparse.Namespace) -> int:
    """Computes the reference statistics of the data, and prints their paths."""
    mesh, section = make_mesh(config), config.evals.get("fidelity", ConfigDict())
    options = configs.read_options(section, "evals.fidelity", fidelity.Options)
    with jax.set_mesh(mesh):
        dataset = catalogue.load(config.dataset)
        statistics_files = fidelity.Comparison(options, config.evals, dataset, mesh).references()
    if jax.process_index() == 0:
        for name, path, count in statistics_files:
            print(f"{name}: statistics of {count} images in {path}")
    return 0


def local_output(given: str, default: epath.Path) -> Path:
    """The path given by --output, or the default.

    Raises:
      ConfigError: the path is in object storage.
    """
    target = place(given, "--output") if given else default
    if not is_local(target):
        raise ConfigError(f"--output={target}: expected a local folder or file. Give one.")
    return Path(target)


def export(config: ConfigDict, folder: epath.Path, flags: argparse.Namespace) -> int:
    """Writes a checkpoint's model in the format of another library; default: to the run's folder.

    Raises:
      ConfigError: the format does not support the model, the target already exists, or there are
        several processes.
    """
    require(jax.process_count() == 1, "--mode", "export", "one process")
    target = local_output(flags.output, folder / flags.format)
    require_empty(target)
    run, state = restored(config, folder, flags.checkpoint)
    params = parameters(run, folder, state, weights_of(flags))
    write(flags.format, target, config, run.spec, params, run.method.adapters)
    print(f"wrote {target}")
    return 0


def tokenizer(config: ConfigDict, folder: epath.Path, flags: argparse.Namespace) -> int:
    """Writes the tokenizer of the data, after training it if needed.

    By default it goes to the run's folder; `config.dataset.text.tokenizer` accepts its path.

    Raises:
      ConfigError: the data are not text, the file already exists, or there are several processes.
    """
    require(jax.process_count() == 1, "--mode", "tokenizer", "one process")
    target = local_output(flags.output, folder / "tokenizer.json")
    if target.exists():
        raise ConfigError(f"{target} already exists: give another --output, or delete it.")
    spec = catalogue.load(config.dataset).spec
    data_tokenizer = spec.generated.facts.get("tokenizer")
    if data_tokenizer is None:
        raise ConfigError(
            f"config.dataset.name={config.dataset.name!r} is not text: it has no tokens."
        )
    write_atomic(target, data_tokenizer.to_json().encode())
    print(f"wrote {target}, {data_tokenizer.vocabulary_size:,} different tokens")
    return 0


def inspect(config: ConfigDict, folder: epath.Path, flags: argparse.Namespace) -> int:
    """Prints the state: one line per array, the step, and the sha256 of all arrays."""
    run, state = restored(config, folder, flags.checkpoint)
    array_digests = digests(state)
    if jax.process_index():
        return 0
    print(f"{'path':60} {'shape':>20} {'dtype':>9} {'count':>12} sharding sha256")
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = path_name(path)
        print(
            f"{name:60} {leaf.shape!s:>20} {leaf.dtype!s:>9} {leaf.size:>12,} "
            f"{leaf.sharding.spec} {array_digests[name]}"
        )
    for name, tree in state.params.items():
        print(f"{name}: {sum(leaf.size for leaf in jax.tree.leaves(tree)):,} parameters")
    print(f"step {int(state.step)} of {run.total_steps}")
    print(f"sha256 {digest(array_digests)}")
    return 0


def describe(config: ConfigDict, folder: epath.Path, flags: argparse.Namespace) -> int:
    """Prints each key of the config with its value and the source of the value; needs no data."""
    if flags.config:
        config, sources = provenance.of_file(flags.config, flags.overrides, judges.with_sections)
    else:
        sources = provenance.of_run(config, flags.overrides)
    if not distributed.several() or jax.process_index() == 0:
        print("\n".join(provenance.lines(config, sources)))
    return 0


MODES = {
    "train": train,
    "eval": evaluate,
    "sample": sample,
    "chat": chat,
    "solvers": solvers_of_run,
    "sweep_guidance": sweep_guidance,
    "inspect": inspect,
    "statistics": statistics,
    "tokenizer": tokenizer,
    "export": export,
    "config": describe,
    "plan": plan,
}
RESUME = "run the same command to resume from the last checkpoint"


def failed(message: str, code: int = 1) -> int:
    """Prints an error and returns the exit code; one of several processes exits at once instead.

    No other process then waits for it.
    """
    print(message, file=sys.stderr, flush=True)
    if distributed.several():
        distributed.exit_in_turn(code)
    return code


def quiet_libraries() -> None:
    """Stops libraries from printing errors that genjax reports itself."""
    # orbax logs each of its steps, and tracebacks of errors that it also raises.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", r"coroutine .* was never awaited", RuntimeWarning)
    previous_hook = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not code.iscoroutine(unraisable.object):  # coroutines are left over from failed reads
            previous_hook(unraisable)

    sys.unraisablehook = hook


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    if argv is None:
        starting.started()
        quiet_libraries()
    any_encoding()
    flags, folders = argparse.Namespace(mode=""), {}
    try:
        flags, overrides = parse(sys.argv[1:] if argv is None else argv, MODES)
        if argv is None:
            flags.began = starting.BEGAN
        if flags.topology:
            ahead.compute_on_cpu()
        if argv is None and not distributed.accelerated():
            keep_heap()
        with terminal_logging():
            distributed.initialize()
        with logging_to(None):
            folders["GENJAX_DATA"] = cache_root()
            keep_programs()
            computes = flags.mode not in ("tokenizer", "config")
            if computes:
                distributed.start()
            if flags.mode == "solvers" and not (flags.config or flags.workdir):
                return solvers_of_mixture(flags)
            config, folder = resolve(flags, overrides)
            folders["--workdir"] = folder
            if computes and distributed.several():
                distributed.agree(agreement.of_command(config, folder, flags))
            here = computes and not flags.topology
            with fast_on_cpu(config) if here else contextlib.nullcontext():
                return MODES[flags.mode](config, folder, flags)
    except (ConfigError, Diverged) as error:
        return failed(f"error: {error}")
    except KeyboardInterrupt:
        return failed(f"interrupted; {RESUME}", starting.INTERRUPTED)
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        hint = (
            f" Complete checkpoints are kept: fix this, then {RESUME}."
            if flags.mode == "train"
            else ""
        )
        return failed(f"error: {error}.{trouble(error, folders)}{hint}")
    except jax.errors.JaxRuntimeError as error:
        if not distributed.several() or not distributed.is_of_a_peer(error):
            raise
        distributed.end_after_peer(first_line(error, 200))


if __name__ == "__main__":
    sys.exit(main())
