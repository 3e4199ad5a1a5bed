"""--mode=sample: draws samples from a checkpoint and writes them to files."""

from __future__ import annotations

import argparse
import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from genjax import modalities
from genjax.bars import STOPPING, answered
from genjax.config import ConfigError, require
from genjax.data import catalogue
from genjax.flags import WEIGHTS
from genjax.method import Tree, options_of
from genjax.modalities.text import VISIBLE
from genjax.modes.runs import parameters, restored, tell_who_computes, weights_of
from genjax.sampling import conditions, written
from genjax.sampling.conditions import Rows
from genjax.sampling.draw import MOST_SAMPLES, Sampler, draw_rows, parse_options
from genjax.train_state import TrainState, seeded_key, stream
from genjax.training import workdir
from genjax.training.assemble import Assembly
from genjax.training.profile import traced

logger = logging.getLogger("genjax")


def sample(config: ConfigDict, folder: epath.Path, flags: argparse.Namespace) -> int:
    """Draws samples from a checkpoint and writes them to files; texts are printed too."""
    seed = flags.seed or 0
    enough = flags.num is None or 0 < flags.num <= MOST_SAMPLES
    require(enough, "--num", flags.num, f"1 to {MOST_SAMPLES}")
    require(abs(seed) < 2**63, "--seed", seed, "a number of 64 bits")
    run, state = restored(config, folder, flags.checkpoint)
    known, field = run.method.conditions, run.method.output or run.spec.generated
    if reserved := known.keys() & vars(flags).keys():
        raise ConfigError(
            f"method {config.method}: a condition cannot be named {sorted(reserved)}."
        )
    names = [name for name in flags.options if name in conditions.flags_of(known)]
    given = {name: flags.options[name] for name in names}
    options = parse_options(
        run.method, {name: v for name, v in flags.options.items() if name not in given}
    )
    rows = find_rows(config, folder, run, given, flags)
    num = flags.num or max(len(rows), 1 if flags.conditions else modalities.number(field))
    params = parameters(run, folder, state, weights_of(flags))
    if flags.stream:
        require(flags.num in (None, 1), "--num", flags.num, "1 with --stream")
        with traced(config.profile, folder, "the sampling"):
            for piece in streamed(run, params, state, rows, options, seed):
                print(piece.translate(VISIBLE), end="", flush=True)
            print()
        return 0
    logger.info("drawing %d samples at step %d; a program is compiled first", num, int(state.step))
    sampler = Sampler(run.method, run.mesh)
    with answered(lambda: STOPPING), traced(config.profile, folder, "the sampling"):
        samples = drawn(sampler, params, state.mutable, rows, num, options, seed)
    tell_who_computes()
    if jax.process_index() == 0:
        base = folder / "generated" / f"step_{int(state.step):08d}_seed_{seed}{said(flags)}"
        files = written.save(base, samples, field)
        if (text := modalities.text_of(samples, field)) is not None:
            print(text)
        print(f"wrote {' and '.join(map(str, files))}")
    return 0


def drawn(
    sampler: Sampler,
    params: Tree,
    mutable: Tree,
    rows: Rows,
    num: int,
    options: Mapping[str, Any],
    seed: int,
) -> np.ndarray:
    """Draws `num` samples, cycling through the rows of conditions if there are any.

    Raises:
      ConfigError: the method does not support the value of an option.
    """
    key = seeded_key(seed)
    if rows:
        return draw_rows(sampler, rows, num, options, params, mutable, key)
    return sampler.make(num, {}, options)(params, mutable, key)


def find_rows(
    config: ConfigDict,
    folder: epath.Path,
    run: Assembly,
    given: dict[str, Sequence[str]],
    flags: argparse.Namespace,
) -> Rows:
    """The rows of conditions to draw for, from flags, from a file or from held-out examples.

    Raises:
      ConfigError: flags and --conditions are both given, the run does not have a condition, or
        there are too few rows.
    """
    known = run.method.conditions
    if not flags.conditions:
        rows = conditions.parse(known, given)
        fewest = max(len(rows), 1)
        given_flags = " and ".join(f"--{name}" for name in given)
        enough = flags.num is None or flags.num >= fewest
        require(enough, "--num", flags.num, f"at least {fewest}, one for each {given_flags}")
        return rows
    if given:
        raise ConfigError(
            f"--conditions and {', '.join(f'--{name}' for name in given)} are both given: leave "
            "one out."
        )
    if not known:
        raise ConfigError(f"--conditions={flags.conditions}: this run has no conditions.")
    if Path(flags.conditions).suffix:
        rows = conditions.read(known, flags.conditions)
        if flags.num and flags.num > len(rows):
            raise ConfigError(
                f"--num={flags.num}: --conditions={flags.conditions} has {len(rows)} rows. "
                "Expected at most as many samples, one for each row."
            )
        return rows[: flags.num]
    dataset = catalogue.load(workdir.with_own_tokenizer(config.dataset, folder))
    if not config.dataset.codes:
        workdir.check_same_data(folder, dataset.spec, flags.allow_config_change)
    source = dataset.splits.get(flags.conditions)
    if not source:
        raise ConfigError(
            f"--conditions={flags.conditions!r}: expected a .csv, .jsonl or .npz file, or one of "
            f"the splits {', '.join(dataset.splits)}."
        )
    fields = conditions.in_data(known, dataset.spec)
    if not fields:
        raise ConfigError(
            f"--conditions={flags.conditions}: {dataset.spec.name} has none of {', '.join(known)}."
        )
    transform = modalities.transforms(config.dataset, dataset.spec, train=False)
    examples = conditions.held_out(source, flags.num or modalities.SAMPLES, transform)
    return [
        {name: examples[field][i] for name, field in fields.items()}
        for i in range(flags.num or modalities.SAMPLES)
    ]


def said(flags: argparse.Namespace) -> str:
    """A suffix for file names, made from the weights, options and conditions of the command."""
    weights = {name: getattr(flags, name) for name in WEIGHTS}
    text = "".join(f"_{name}_{value}" for name, value in weights.items() if value)
    text += "".join(
        f"_{name}_{value}" for name, values in sorted(flags.options.items()) for value in values
    )
    text += f"_{Path(flags.conditions).stem}" if flags.conditions else ""
    safe = re.sub(r"[^\w.-]", "", text)[:100]
    if safe == text:
        return safe
    return f"{safe}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def streamed(
    run: Assembly,
    params: Tree,
    state: TrainState,
    rows: Rows,
    options: Mapping[str, Any],
    seed: int,
) -> Iterator[str]:
    """Yields one text piece by piece, prompt first; it is the text of `drawn` with the same seed.

    Raises:
      ConfigError: the method does not generate text, or there is more than one prompt or process.
    """
    if "decode" not in options_of(run.method):
        raise ConfigError(
            f"--stream is for methods that generate text, and method {run.config.method!r} does "
            "not: leave out --stream."
        )
    require(len(rows) < 2, "conditions", len(rows), "one with --stream")
    require(jax.process_count() == 1, "--stream", True, "one process")
    key = jax.random.fold_in(stream(seeded_key(seed), "sample"), 0)
    condition = {name: value[None] for row in rows for name, value in row.items()}
    decode = run.spec.generated.facts["tokenizer"].decode
    yield from (decode(np.asarray(value)) for row in rows for value in row.values())
    with jax.set_mesh(run.mesh):
        pieces = iter(
            run.method.sample(params, state.mutable, key, 1, condition, decode=decode, **options)
        )
    while True:
        with jax.set_mesh(run.mesh):  # not active while the caller's own code runs
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece
