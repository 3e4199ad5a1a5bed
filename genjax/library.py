"""Training, sampling and evaluation from Python, with the functions of the command line.

import genjax

run = genjax.train("flow:tiny", "runs/digits")
images = run.sample(16, label=3, steps=20)
run.picture(images).save("threes.png")

run = genjax.load("runs/digits")
run.evaluate(judges=["fidelity"])
run.params

In a notebook a run shows its report.
"""

from __future__ import annotations

import argparse
import functools
import html
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

from genjax import config as configs
from genjax import modalities
from genjax.config import ConfigError, one_of, require
from genjax.data import catalogue
from genjax.evals import judges
from genjax.evals.evaluation import Evaluated
from genjax.files import place
from genjax.flags import parse
from genjax.interop import export
from genjax.method import Codec, Field, Tree
from genjax.modalities import text
from genjax.modalities.label import class_names
from genjax.modes import chat
from genjax.modes.evaluate import evaluate_checkpoint
from genjax.modes.resolve import fit_to_run, resolve
from genjax.modes.runs import (
    Weights,
    fast_on_cpu,
    keep_programs,
    logging_to,
    parameters,
    restored,
)
from genjax.modes.sample import drawn, streamed
from genjax.modes.train import train as train_run
from genjax.nn.cpu.memory import keep_heap
from genjax.parallel import distributed
from genjax.sampling import chat as chats
from genjax.sampling import conditions
from genjax.sampling.chat import Message
from genjax.sampling.draw import MOST_SAMPLES, Sampler, parse_options
from genjax.train_state import TrainState
from genjax.training import agreement
from genjax.training.assemble import Assembly

Location = str | os.PathLike
REPORT_HEIGHT = 600  # pixels, in a notebook


class Run:
    """A checkpoint of a trained run with its config, for sampling and evaluation.

    Attributes:
      workdir: its folder.
      config: its config; a changed copy can be trained in another folder.
      params: network -> parameters used for samples; default: the averaged weights.
      state: the whole checkpoint.
      step: step of the checkpoint.
      field: kind, shape and dtype of its samples.
      classes: names of the labels, or their numbers; () for data without labels.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: epath.Path,
        assembly: Assembly,
        state: TrainState,
        weights: Weights,
    ):
        """See `load`.

        Raises:
          ConfigError: the run did not keep these weights, or they are not finite.
        """
        self.config, self.workdir, self.assembly, self.state = config, workdir, assembly, state
        self.weights = weights
        self.params: dict[str, Tree] = parameters(assembly, workdir, state, weights)
        self.step = int(state.step)
        self.field: Field = assembly.method.output or assembly.spec.generated
        self.classes: tuple[str, ...] = class_names(assembly.spec)
        self._sampler = Sampler(assembly.method, assembly.mesh)

    def __repr__(self) -> str:
        """Its folder, method and step."""
        return f"Run({str(self.workdir)!r}, method {self.config.method!r}, step {self.step})"

    def _repr_html_(self) -> str:
        """Its report, for a notebook; its folder, method and step if it has none."""
        report = self.workdir / "report.html"
        if not report.is_file():
            return html.escape(repr(self))
        page = html.escape(report.read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" width="100%" height="{REPORT_HEIGHT}"></iframe>'

    def sample(self, num: int | None = None, *, seed: int = 0, **given: Any) -> np.ndarray:
        """Draws samples; they equal those of `--mode=sample` with the same seed.

        A later call with the same number does not compile again if only values of conditions
        change, or guidance, sampler and steps in a family with a plan for them.

        Args:
          num: number of samples; default: one for each value of a condition, or as many as the
            modality shows.
          seed: random seed.
          **given: conditions of the run, one value for all samples or a list of values (a class by
            number or name, a prompt, an array), and options of its method, such as steps=20.

        Returns:
          [N, ...] in the format of the data: images as uint8 [N, H, W, C], texts as token ids for
          `texts` to decode.

        Raises:
          ConfigError: there is no such condition or option, or a value does not fit.
        """
        require(num is None or 0 < num <= MOST_SAMPLES, "num", num, f"1 to {MOST_SAMPLES}")
        rows, options = self._request(given)
        require(num is None or num >= len(rows), "num", num, f"at least {len(rows)}, one for each")
        count = num or len(rows) or modalities.number(self.field)
        arrays = self.params, self.state.mutable
        with fast_on_cpu(self.config):
            return drawn(self._sampler, *arrays, rows, count, options, seed)

    def stream(self, *, seed: int = 0, **given: Any) -> Iterator[str]:
        """Yields one text piece by piece as it is generated, prompt first.

        Args:
          seed: random seed.
          **given: as in `sample`.

        Raises:
          ConfigError: the run's method does not generate text.
        """
        rows, options = self._request(given)
        pieces = streamed(self.assembly, self.params, self.state, rows, options, seed)
        while True:
            with fast_on_cpu(self.config):  # never while the caller's own code runs
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def texts(self, samples: np.ndarray) -> list[str]:
        """Decodes samples of token ids to texts.

        Raises:
          ConfigError: the run's samples are not texts.
        """
        if self.field.kind != "text":
            raise ConfigError(f"the samples of this run are {self.field.kind}s, not texts.")
        return text.strings(samples, self.field)

    def chat(self, messages: str | Sequence[Message], *, seed: int = 0, **options: Any) -> str:
        """The answer of a language model to the last of `messages`, as `--mode=chat` gives it.

        Args:
          messages: of the chat so far, [{"role": "user", "content": "Hello"}, ...], or a text.
          seed: random seed.
          **options: of sampling, such as temperature=0 or max_new_tokens=100.

        Raises:
          ConfigError: the run's tokenizer has no chat template, the last message is not the user's,
            or there is no such option.
        """
        asked = chats.conversation(messages)
        chat.check(self.assembly)
        rows, given = self._request(options)
        require(not rows, "conditions", [*(rows or [{}])[0]], "none but the messages")
        settings = chat.options_of_answers(self.assembly, given)
        pieces = chat.answer(self.assembly, self.params, self.state, asked, settings, seed)
        with fast_on_cpu(self.config):
            return "".join(pieces)

    def picture(self, samples: np.ndarray) -> Image.Image:
        """Makes one picture of samples: a grid of images, or a plot for other kinds.

        Raises:
          ConfigError: there is no picture for samples of this kind.
        """
        pixels = modalities.picture_of(samples, self.field)
        if pixels is None:
            raise ConfigError(f"samples of kind {self.field.kind!r} have no picture.")
        return Image.fromarray(pixels)

    def encode(self, examples: np.ndarray) -> np.ndarray:
        """The codes [N, ...] of examples of the data: of a VAE the means, of a VQ-VAE the tokens.

        Raises:
          ConfigError: the run is no autoencoder.
        """
        return self._coded(self._codec[0], {self.assembly.spec.target: examples})

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The examples of codes, in the format of the data.

        Raises:
          ConfigError: the run is no autoencoder.
        """
        return self._coded(self._codec[1], codes)

    @functools.cached_property
    def _codec(self) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
        """`encode` and `decode` of the method, compiled."""
        codec: Codec | None = self.assembly.method.codec
        if codec is None:
            raise ConfigError(
                f"{self} has no codes. Expected a run of an autoencoder, such as vae or vqvae."
            )
        return jax.jit(codec.encode), jax.jit(codec.decode)

    def _coded(self, function: Callable[..., jax.Array], values: Tree) -> np.ndarray:
        with fast_on_cpu(self.config), jax.set_mesh(self.assembly.mesh):
            return np.asarray(function(self.params, self.state.mutable, values))

    def export(self, folder: Location, format: str = "huggingface") -> Path:
        """Writes the model as another library has it, as `--mode=export` does; gives the folder.

        Raises:
          ConfigError: the format does not know such a model, or the folder is not empty.
        """
        target = Path(folder)
        export.require_empty(target)
        adapters = self.assembly.method.adapters
        export.write(format, target, self.config, self.assembly.spec, self.params, adapters)
        return target

    def evaluate(
        self, split: str = "", judges: Sequence[str] = (), **keys: Any
    ) -> dict[str, float]:
        """Returns the metrics of the checkpoint, as `--mode=eval` does.

        Args:
          split: split of the data; default: the test split if there is one.
          judges: judges of the samples, such as "fidelity"; default: the config's.
          **keys: keys of `config.evals`, such as limit=1000.

        Raises:
          ConfigError: the data are missing, or there is no such split, judge or key.
        """
        overrides: dict[str, Any] = {f"evals.{key}": value for key, value in keys.items()}
        if split:
            overrides["evals.split"] = split
        if judges:
            overrides["evals.judges"] = tuple(judges)
        flags = _flags("eval", workdir=str(self.workdir), checkpoint=str(self.step))
        for name, value in self.weights._asdict().items():
            setattr(flags, name, value)
        config, folder = resolve(flags, overrides)
        with logging_to(None), fast_on_cpu(config):
            return evaluate_checkpoint(config, folder, flags)

    def _request(self, given: Mapping[str, Any]) -> tuple[conditions.Rows, dict[str, Any]]:
        """Splits the keywords of a call into rows of conditions and sampling options."""
        method = self.assembly.method
        known = conditions.flags_of(method.conditions)
        of_conditions = {name: value for name, value in given.items() if name in known}
        others = {name: [_text(v)] for name, v in given.items() if name not in known}
        return conditions.from_values(method.conditions, of_conditions), parse_options(
            method, others
        )


def read_config(name: str, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """Reads a config, to inspect or change it before `train`.

    Args:
      name: name of a config of genjax, such as "ddpm:tiny", or a file: "my_config.py:preset".
      overrides: dotted key -> value, such as {"optimizer.learning_rate": 3e-4}.

    Raises:
      ConfigError: there is no such config or key, or a value does not fit.
    """
    return configs.load(configs.located(name), overrides, judges.with_sections)


def examples(config: ConfigDict, num: int = 64, split: str = "train") -> dict[str, np.ndarray]:
    """Examples of the data of a config as evaluations see them, fetched first if need be.

    Args:
      config: what `read_config` gives, or that of a run.
      num: how many, spread over the whole split; the same ones every time.
      split: of the data: "train", "validation" or "test".

    Returns:
      Name of the field -> array [num, ...], such as "image" and "label".

    Raises:
      ConfigError: the data are not there, or have no such split.
    """
    with logging_to(None):
        dataset = catalogue.load(config.dataset)
    one_of("split", split, tuple(dataset.splits))
    transform = modalities.transforms(config.dataset, dataset.spec, train=False)
    return conditions.held_out(dataset.splits[split], num, transform)


def train(
    config: str | ConfigDict,
    workdir: Location,
    overrides: Mapping[str, Any] | None = None,
    *,
    on_eval: Callable[[Evaluated], None] | None = None,
    allow_config_change: bool = False,
) -> Run:
    """Trains a run to its end, or resumes it, then loads it.

    Args:
      config: the name or file of a config, or a config from `read_config`. Name your own config
        by its file if its method is a module next to it: then the run finds that module again.
      workdir: its folder.
      overrides: dotted key -> value.
      on_eval: called after each evaluation with its step, metrics and samples.
      allow_config_change: resume even if the config has changed.

    Raises:
      ConfigError: the config, data or folder is wrong; the message says what to do.
      KeyboardInterrupt: the training was interrupted and saved; the same call resumes it.
    """
    _start()
    location = config if isinstance(config, str) else ""
    flags = _flags("train", config=location, workdir=str(workdir))
    flags.allow_config_change = allow_config_change
    flags.command = ("genjax.train", location, str(workdir))
    overrides = dict(overrides or {})
    if location:
        settled, folder = resolve(flags, overrides)
    else:
        settled = configs.override(judges.with_sections(config, overrides), overrides)
        configs.validate(settled)
        folder = place(flags.workdir, "workdir")
        settled = fit_to_run(settled, folder, flags, overrides)
    if distributed.several():
        distributed.agree(agreement.of_command(settled, folder, flags))
    with logging_to(None), fast_on_cpu(settled):
        if train_run(settled, folder, flags, on_eval):
            raise KeyboardInterrupt("interrupted and saved: the same call resumes the training")
    return load(folder)


def load(
    workdir: Location,
    checkpoint: str | int = "",
    *,
    ema: str | float = "",
    guide_ema: str | float = "",
    guide_checkpoint: str | int = "",
) -> Run:
    """Loads a trained run; does not need its data.

    Args:
      workdir: its folder.
      checkpoint: a step, "best", or "" for the newest.
      ema: the averaged weights to use, as for `--ema`.
      guide_ema: the averaged weights that guide the samples.
      guide_checkpoint: the step of the weights that guide the samples.

    Raises:
      ConfigError: there is no run, no such checkpoint, or no such average.
    """
    _start()
    flags = _flags("sample", workdir=str(workdir), checkpoint=str(checkpoint))
    config, folder = resolve(flags, {})
    with logging_to(None):
        assembly, state = restored(config, folder, flags.checkpoint)
        return Run(
            config, folder, assembly, state, Weights(*map(str, (ema, guide_ema, guide_checkpoint)))
        )


def _flags(mode: str, **values: str) -> argparse.Namespace:
    """Makes the flags of a command."""
    arguments = [f"--{name}={value}" for name, value in values.items() if value]
    return parse([f"--mode={mode}", *arguments], [mode])[0]


@functools.cache
def _start() -> None:
    """Prepares the process as the command line does, once."""
    if not distributed.accelerated():
        keep_heap()
    with logging_to(None):
        distributed.initialize()
        keep_programs()
        distributed.start()


def _text(value: Any) -> str:
    """A value as text for the command line."""
    return value if isinstance(value, str) else repr(value)
