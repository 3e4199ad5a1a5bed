"""The command line: a config, a workdir and one mode.

python -m genjax.main --config=configs/ddpm.py[:preset] [--config.a.b=value ...] --workdir=DIR
    --mode=train|eval|sample|inspect|statistics|tokenizer|export
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import itertools
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from genjax import config as configs
from genjax import method as methods
from genjax.config import ConfigError, require
from genjax.data import catalogue, corpora
from genjax.data.alphabets import Tokenizer
from genjax.data.packages import cache_root
from genjax.evals.comparison import Comparison
from genjax.evals.evaluation import Evaluation
from genjax.evals.features import data_digest
from genjax.evals.judge import judge_images, judge_texts
from genjax.flags import parse
from genjax.interop.export import write
from genjax.method import DataSpec
from genjax.parallel import distributed
from genjax.parallel.mesh import make_mesh
from genjax.parallel.rules import path_name
from genjax.sampling import artifacts, prompts
from genjax.sampling.draw import MOST_SAMPLES, draw_from_prompts, make_draw, parse_options
from genjax.train_state import TrainState, stream
from genjax.training import ema, first_stage, loop, workdir
from genjax.training.assemble import Assembly, assemble, put_pretrained, read_pretrained
from genjax.training.averages import Diverged
from genjax.training.checkpoint import Checkpoints, digest, digests
from genjax.training.early_stop import exhausted
from genjax.training.metrics import JsonlWriter, Writers
from genjax.training.pictures import write_atomic
from genjax.training.progress import setup_logging


def resolve(flags: argparse.Namespace, overrides: dict[str, str]) -> tuple[ConfigDict, Path]:
    """The config, from the file or from the workdir, and the workdir.

    Raises:
      ConfigError: neither is given, the workdir has no run, or it has one of another config.
    """
    if not flags.config and not flags.workdir:
        raise ConfigError("give --config=FILE.py, --workdir=DIR of a run, or both.")
    path, _, preset = flags.config.partition(":")
    folder = Path(flags.workdir or Path("runs") / "_".join(filter(None, (Path(path).stem, preset))))
    if flags.config:
        config = configs.load(flags.config, overrides)
        if not (flags.samples or flags.mode in ("statistics", "tokenizer")):
            workdir.check_same_config(folder, config, flags.allow_config_change)
        return config, folder
    stored = workdir.read_config(folder)
    if stored is None:
        raise ConfigError(f"--workdir={folder} holds no run (no config.json). Give --config too.")
    config = configs.override(stored, overrides)
    configs.validate(config)
    if flags.mode == "train":
        workdir.check_same_config(folder, config, flags.allow_config_change)
    return config, folder


def train(config: ConfigDict, folder: Path, flags: argparse.Namespace) -> int:
    """Trains, or resumes; returns the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    with workdir.locked(folder), logging_to(folder):
        run, dataset = prepare(config, folder)
        workdir.check_same_data(folder, dataset.spec, flags.allow_config_change)
        loop.logger.info("%s: %s; data from %s", folder, config.method, dataset.route)

        def start(checkpoints: Checkpoints) -> TrainState:
            state = first_state(run, checkpoints)
            if jax.process_index() == 0:
                if dataset.decoded:
                    first_stage.keep(config, folder)
                tokenizer = prompts.keep_tokenizer(folder, dataset.tokenizer)
                digest = data_digest(dataset) if run.method.codec else ""
                workdir.write_config(folder, config, run.spec, sys.argv, digest, tokenizer)
            return state

        return loop.train(run, dataset, folder, start)


def prepare(config: ConfigDict, folder: Path) -> tuple[Assembly, catalogue.Dataset]:
    """The run and its data; with a first stage, joined with it and the codes of the data.

    Raises:
      ConfigError: config, data, first stage and devices do not go together.
    """
    dataset = catalogue.load(prompts.with_own_tokenizer(config.dataset, folder))
    stage = first_stage.find(config, folder)
    if stage is None:
        return assemble(config, dataset.spec), dataset
    first_stage.check(config, stage, dataset)
    run = build(config, first_stage.code_spec(stage), stage)  # complain before the work
    with jax.set_mesh(run.mesh):
        arrays = first_stage.read(stage, config, folder, run.mesh)
        codes = first_stage.encoded(config, stage, arrays, dataset, run.mesh)
    return run._replace(method=run.method._replace(pretrained=lambda: arrays)), codes


def build(config: ConfigDict, spec: DataSpec | None, stage: first_stage.Stage | None) -> Assembly:
    """The run on data of `spec`; with a first stage, joined with it."""
    if stage is None:
        return assemble(config, spec)
    return assemble(config, spec, first_stage.join(methods.build(config, spec), stage))


def first_state(run: Assembly, checkpoints: Checkpoints) -> TrainState:
    """The state to train from: the newest checkpoint, another run's parameters, or init."""
    if checkpoints.latest() is not None:
        state = checkpoints.restore(run.state)
        loop.logger.info("resuming at step %d", int(state.step))
        return state
    pretrained = read_pretrained(run)
    state = run.init()
    if source := run.config.checkpoint.init_from:
        state, taken = Checkpoints(source).restore_into(state, run.config.checkpoint.init_map)
        loop.logger.info("took %d arrays from %s", len(taken), source)
    return put_pretrained(state, *pretrained)


@contextlib.contextmanager
def logging_to(folder: Path | None):
    """The log of the first process, on the terminal alone if there is no folder."""
    with setup_logging(folder) if jax.process_index() == 0 else contextlib.nullcontext():
        yield


def restored(
    config: ConfigDict, folder: Path, flags: argparse.Namespace
) -> tuple[Assembly, TrainState]:
    """The run in `folder` and its state at `--checkpoint`; needs no data.

    Raises:
      ConfigError: there is no such checkpoint.
    """
    run = build(config, workdir.read_spec(folder), first_stage.find(config, folder))
    checkpoints = Checkpoints(folder)
    given = flags.checkpoint
    if given == "best":
        step = checkpoints.best(config)
    elif given and not given.isdigit():
        raise ConfigError(f"--checkpoint={given!r}: expected a step or 'best'.")
    else:
        step = int(given) if given else None
    return run, checkpoints.restore(run.state, step)


def evaluate(config: ConfigDict, folder: Path, flags: argparse.Namespace) -> int:
    """Evaluates a checkpoint and prints the metrics.

    They go into the run's metrics, pictures and report as well if the evaluation is the run's own:
    of its newest checkpoint, with nothing in the config changed.
    """
    if flags.references:
        return tell_metrics(judge_texts(flags.samples, flags.references))
    if flags.samples:
        with logging_to(None):
            return tell_metrics(judge_images(config, flags.samples))
    run, state = restored(config, folder, flags)
    _, dataset = prepare(config, folder)
    workdir.check_same_data(folder, dataset.spec, flags.allow_config_change)
    prompts.check_tokenizer(folder, dataset.tokenizer)
    stored = workdir.read_config(folder)
    own = configs.to_json(stored) == configs.to_json(config)
    own = own and int(state.step) == Checkpoints(folder).latest()
    with workdir.locked(folder), logging_to(folder), jax.set_mesh(run.mesh):
        write = own and jax.process_index() == 0
        writers = Writers([JsonlWriter(folder / "metrics.jsonl", sys.maxsize)] if write else [])
        evaluation = Evaluation(run, dataset, folder, writers)
        metrics = evaluation(state, int(state.step), pictures=own)
        if own:
            stopped = exhausted(config, folder / "metrics.jsonl")
            evaluation.write_report(state, int(state.step) >= run.total_steps or stopped)
        writers.close()
    return tell_metrics(metrics)


def tell_metrics(metrics: Mapping[str, float]) -> int:
    """Prints them, on the first process."""
    if jax.process_index() == 0:
        for name, value in metrics.items():
            print(f"{name} {value if isinstance(value, int) else format(value, '.6g')}")
    return 0


def statistics(config: ConfigDict, folder: Path, flags: argparse.Namespace) -> int:
    """Makes the reference statistics of the data, and says where they are."""
    mesh = make_mesh(config)
    with logging_to(None), jax.set_mesh(mesh):
        made = Comparison(config, catalogue.load(config.dataset), mesh).references()
    if jax.process_index() == 0:
        for name, path, count in made:
            print(f"{name}: statistics of {count} images in {path}")
    return 0


def sample(config: ConfigDict, folder: Path, flags: argparse.Namespace) -> int:
    """Draws samples from a checkpoint into files; texts are printed too."""
    seed = flags.seed or 0
    enough = flags.num is None or 0 < flags.num <= MOST_SAMPLES
    require(enough, "--num", flags.num, f"1 to {MOST_SAMPLES}")
    require(abs(seed) < 2**63, "--seed", seed, "a number of 64 bits")
    run, state = restored(config, folder, flags)
    options = parse_options(run.method, flags.options)
    tokenizer = prompts.read_tokenizer(folder, run.spec)
    given = prompts.read_prompts(flags.prompt, flags.prompt_file)
    if tokenizer is None and (given or flags.stream):
        raise ConfigError(f"--prompt and --stream are for text; {run.spec.name} is none.")
    if tokenizer is not None:
        require(
            "condition" not in options,
            "--condition",
            flags.options.get("condition"),
            "none: texts go on from a --prompt",
        )
        options |= prompts.encode_texts(flags.options, tokenizer)
        start = prompts.start_token(config.dataset, run.spec, tokenizer)
        encoded = prompts.encode_prompts(given, tokenizer, start)
    params = ema.evaluation_params(config, state.params, state.ema)
    if flags.stream:
        return tell_text(run, params, state, tokenizer, options, given, encoded, flags)
    num = flags.num or (64 if tokenizer is None else max(len(given), 1))
    if tokenizer is not None:
        prompts.check_number(num, len(given), options)
    own = (params, state.mutable, jax.random.key(seed))
    if given:
        samples = draw_from_prompts(run, encoded, num, options, *own)
    else:
        samples = make_draw(run, num, options)(*own)
    if jax.process_index() == 0:
        said = "".join(f"_{name}_{value}" for name, value in sorted(flags.options.items()))
        names = re.sub(r"[^\w.,()-]", "", said)[:100]
        if tokenizer is not None:  # texts differ by more than fits into a name
            names += "_" + hashlib.sha256(f"{given}{said}".encode()).hexdigest()[:8]
        base = folder / "generated" / f"step_{int(state.step):08d}_seed_{seed}{names}"
        written = artifacts.save(base, samples, run.spec, tokenizer)
        if tokenizer is not None:
            print(artifacts.text(samples, run.spec, tokenizer))
        print(f"wrote {' and '.join(map(str, written))}")
    return 0


def tell_text(
    run: Assembly,
    params: dict,
    state: TrainState,
    tokenizer: Tokenizer,
    options: dict[str, Any],
    given: Sequence[str],
    encoded: Sequence[np.ndarray],
    flags: argparse.Namespace,
) -> int:
    """Prints one text as it comes: that which `sample` draws with the same seed."""
    require(flags.num in (None, 1), "--num", flags.num, "1 with --stream")
    require(len(given) < 2, "--prompt", tuple(given), "one with --stream")
    require(jax.process_count() == 1, "--stream", True, "one process")
    key = jax.random.fold_in(stream(jax.random.key(flags.seed or 0), "sample"), 0)
    condition = np.stack(encoded) if encoded else None
    with jax.set_mesh(run.mesh):
        pieces = run.method.sample(
            params, state.mutable, key, 1, condition, decode=tokenizer.decode, **options
        )
        for piece in itertools.chain(given, pieces):
            print(piece.translate(artifacts.VISIBLE), end="", flush=True)
    print()
    return 0


def export(config: ConfigDict, folder: Path, flags: argparse.Namespace) -> int:
    """Writes a checkpoint's model as another library has it, by default into the run's folder.

    Raises:
      ConfigError: the format does not know such a model, the target is there already, or this is
        one of several processes.
    """
    require(jax.process_count() == 1, "--mode", "export", "one process")
    target = Path(flags.output or folder / flags.format)
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target} is not empty: give another --output, or delete it.")
    run, state = restored(config, folder, flags)
    tokenizer = prompts.read_tokenizer(folder, run.spec)
    params = ema.evaluation_params(config, state.params, state.ema)
    write(flags.format, target, config, run.spec, params, tokenizer)
    print(f"wrote {target}")
    return 0


def tokenizer(config: ConfigDict, folder: Path, flags: argparse.Namespace) -> int:
    """Writes the tokenizer of the data, trained on them if it is of such a kind.

    By default into the run's folder; `config.dataset.text.tokenizer` takes its path.

    Raises:
      ConfigError: the data are no text, the file is there already, or this is one of several
        processes.
    """
    require(jax.process_count() == 1, "--mode", "tokenizer", "one process")
    target = Path(flags.output or folder / prompts.FILE)
    if target.exists():
        raise ConfigError(f"{target} is there already: give another --output, or delete it.")
    if config.dataset.name not in corpora.TEXTS:
        raise ConfigError(f"config.dataset.name={config.dataset.name!r} is no text: no tokens.")
    made = catalogue.load(config.dataset).tokenizer
    write_atomic(target, made.to_json().encode())
    print(f"wrote {target}, {made.vocabulary_size:,} kinds of tokens")
    return 0


def inspect(config: ConfigDict, folder: Path, flags: argparse.Namespace) -> int:
    """Prints the state: a line for every array, the step, and the sha256 of it all."""
    run, state = restored(config, folder, flags)
    found = digests(state)
    if jax.process_index():
        return 0
    print(f"{'path':60} {'shape':>20} {'dtype':>9} {'count':>12} sharding sha256")
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = path_name(path)
        print(
            f"{name:60} {leaf.shape!s:>20} {leaf.dtype!s:>9} {leaf.size:>12,} "
            f"{leaf.sharding.spec} {found[name]}"
        )
    for name, tree in state.params.items():
        print(f"{name}: {sum(leaf.size for leaf in jax.tree.leaves(tree)):,} parameters")
    print(f"step {int(state.step)} of {run.total_steps}")
    print(f"sha256 {digest(found)}")
    return 0


MODES = {
    "train": train,
    "eval": evaluate,
    "sample": sample,
    "inspect": inspect,
    "statistics": statistics,
    "tokenizer": tokenizer,
    "export": export,
}
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


def failed(message: str, code: int = 1) -> int:
    """Prints one error; with several processes ends this one, so that none waits for it."""
    print(message, file=sys.stderr, flush=True)
    if distributed.several():
        os._exit(code)
    return code


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    # orbax logs every step of its own, and tracebacks of the errors that it also raises.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        flags, overrides = parse(sys.argv[1:] if argv is None else argv, MODES)
        distributed.initialize()
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            jax.config.update("jax_compilation_cache_dir", str(cache_root() / "xla"))
        config, folder = resolve(flags, overrides)
        return MODES[flags.mode](config, folder, flags)
    except (ConfigError, Diverged) as error:
        return failed(f"error: {error}")
    except KeyboardInterrupt:
        return failed("interrupted; run the same command to resume from the last checkpoint", 130)
    except OSError as error:
        hint = ""
        if error.errno in DISK or error.errno is None:
            hint = " Is the disk full, or the folder read-only?"
        return failed(
            f"error: {error}.{hint} Whole checkpoints are kept: free space or give another "
            "--workdir, and run the same command to resume."
        )


if __name__ == "__main__":
    sys.exit(main())
