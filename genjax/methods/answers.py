"""Answers of a language model to prompts: their rows, their likelihood, and the reference model.

A row has a prompt and an answer. `token` and `segment` are what the network reads; `answer` marks
the tokens, all but a row's first, that belong to an answer. An answer to an empty prompt does not
count: none of its tokens are marked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import logsumexp
from jaxtyping import Array, Bool, Float, Int

from genjax import adapters
from genjax.config import ConfigError
from genjax.method import Batch, DataSpec, Stage, Tree
from genjax.methods import lm
from genjax.methods.lm import Language
from genjax.sampling import logits as processors

Logits = Float[Array, "N T V"]
BASE = f"{adapters.BASE}lm"  # in the parameters of a run with adapters: the weights without them


class Warping(NamedTuple):
    """How the logits are changed before a token is drawn: see `sampling.logits.Options`."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def chain(self) -> tuple[processors.Processor, ...]:
        """The processors; none of them looks at the tokens before."""
        return processors.chain(processors.Options(**self._asdict()))

    @property
    def truncates(self) -> bool:
        """Whether some tokens cannot be drawn."""
        return self._replace(temperature=1.0) != Warping()

    def support(self, logits: Logits) -> Bool[Array, "N T V"]:
        """The tokens that can be drawn."""
        rows = logits.reshape(-1, logits.shape[-1])
        for process in self.chain:
            rows = process(rows, None)
        return (rows > -jnp.inf).reshape(logits.shape)

    def log_p(
        self, logits: Logits, target: Int[Array, "N T"], support: Bool[Array, "N T V"] | None
    ) -> Float[Array, "N T"]:
        """log p of the targets among the tokens of `support`, which a changed model keeps.

        If the tokens that can be drawn changed with the model, one that has been drawn could become
        impossible (DeepSeek-V3.2, section 3.1, "keep sampling mask").
        """
        if self.temperature != 1:
            logits = logits / self.temperature
        if support is not None:
            logits = jnp.where(support, logits, -jnp.inf)
        chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        return chosen - logsumexp(logits, axis=-1)


def rows(tokens: Int[Array, "N S"], prompt: int) -> dict[str, Array]:
    """What the network reads of prompts of `prompt` columns with their answers."""
    drawn = tokens >= 0
    asked = drawn[:, :prompt].any(1, keepdims=True)
    return {
        "token": jnp.maximum(tokens, 0),
        "segment": drawn.astype(jnp.int32),
        "answer": (drawn & asked & (jnp.arange(tokens.shape[1]) >= prompt))[:, 1:],
    }


def logits_of(model: Language, params: Mapping[str, Tree], mutable: Tree, batch: Batch) -> Logits:
    """The logits of the tokens 1 ... T of each row, without dropout."""
    inputs = {name: batch[name][:, :-1] for name in ("token", "segment")}
    return lm.logits(model, params, mutable, inputs)


def support(logits: Logits, batch: Batch, warping: Warping) -> Bool[Array, "N T V"]:
    """The tokens that can be drawn, and those that have been.

    Decoding step by step rounds differently from one pass over the row, so that a token may be
    drawn which these logits leave out by a hair.
    """
    target = jax.nn.one_hot(batch["token"][:, 1:], logits.shape[-1], dtype=bool)
    return warping.support(logits) | (target & batch["answer"][..., None])


def log_p(logits: Logits, batch: Batch, warping: Warping | None = None) -> Float[Array, "N T"]:
    """log p of each token of an answer, in nats, and 0 elsewhere.

    With a warping it is the distribution that tokens are drawn from; `support` of the batch, if it
    is there, holds the tokens that could be drawn.
    """
    warping = warping or Warping()
    found = warping.log_p(logits, batch["token"][:, 1:], batch.get("support"))
    return jnp.where(batch["answer"], found, 0.0)


def same_tokenizer(name: str, stage: Stage, spec: DataSpec) -> None:
    """Refuses a stage that reads tokens of another tokenizer than the data's.

    Raises:
      ConfigError: it does, or it reads no text.
    """
    theirs, ours = stage.spec.generated.facts, spec.generated.facts
    for fact in ("vocabulary_size", "tokenizer", "special"):
        if theirs.get(fact) != ours.get(fact):
            raise ConfigError(
                f"config.stages.{name}: its {fact} is not that of {spec.name}, so the same tokens "
                "mean other text to it. Give a stage that was trained with the tokenizer of "
                "config.dataset, or its tokenizer.json as config.dataset.text.tokenizer."
            )


def output_shape(stage: Stage, columns: int) -> tuple[int, ...]:
    """The shape of what a stage gives for two rows of `columns` tokens; () if it reads no rows.

    Raises:
      ConfigError: its network refuses such rows, for example because they are too long.
    """

    def output() -> Array:
        batch = {name: jnp.zeros((1, *f.shape), f.dtype) for name, f in stage.spec.fields.items()}
        given = dict.fromkeys(("token", "segment"), jnp.ones((2, columns), jnp.int32))
        return stage.method.apply(*stage.method.init(jax.random.key(0), batch), given)

    if stage.method.apply is None:
        return ()
    try:
        return tuple(getattr(jax.eval_shape(output), "shape", ()))
    except ConfigError as error:
        raise ConfigError(f"config.stages.{stage.name}: {error}") from error
    except (KeyError, TypeError, ValueError):
        return ()


def reference(
    model: Language, stages: Mapping[str, Stage], spec: DataSpec
) -> Callable[[Mapping[str, Any], Mapping[str, Any], Batch], Logits | None]:
    """The function (params, mutable, batch) -> logits of the reference; None if there is none.

    The reference is the stage "reference", or the policy without its adapter (`BASE`), which needs
    no second copy of the weights.

    Raises:
      ConfigError: the stage has another tokenizer, or is no language model.
    """
    stage = stages.get("reference")
    if stage is not None:
        same_tokenizer("reference", stage, spec)
        columns = spec.generated.shape[0] - 1
        known = stage.config.model.get("vocabulary_size") or lm.outputs(spec)
        if any(output_shape(stage, n) != (2, n, known) for n in (2, columns)):
            raise ConfigError(
                f"config.stages.reference is a run of method {stage.config.method!r}: expected a "
                "language model, such as a run of configs/gpt.py."
            )

    def logits(params: Mapping[str, Any], mutable: Mapping[str, Any], batch: Batch):
        inputs = {name: batch[name][:, :-1] for name in ("token", "segment")}
        if stage is not None:
            return stage.apply(params, mutable, inputs)
        if BASE in params:
            return lm.logits(model, {"lm": params[BASE]}, mutable, inputs)
        return None

    return logits


def needed(logits: Logits | None, key: str) -> Logits:
    """The logits of the reference; ConfigError, naming the option that needs it, if it is None."""
    if logits is None:
        raise ConfigError(
            f"config.{key} needs a reference: give a trained language model as "
            "--config.stages.reference=RUNDIR, or train adapters of one."
        )
    return logits
