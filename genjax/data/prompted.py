"""Pairs of texts as rows of a language model: a prompt with the source, then the target."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from genjax.checks import ConfigError, require
from genjax.data import tokenizers
from genjax.data.alphabets import Tokenizer
from genjax.method import Batch, DataSpec, Field

GAP = "{}"  # stands for the source in a template


class Prompted(NamedTuple):
    """How pairs become rows.

    A row is the prompt [P], with padding on its left, and the target [T] with the token that ends
    it. A prompt is the tokens that begin a text and the template with the source in its gap; these
    three parts are tokenised one by one.

    Attributes:
      rows: what the rows look like: `token`, `segment` and `loss_mask`, each [P + T].
      source: the field that becomes part of the prompt.
      target: the field that is generated.
      before: the tokens before the source.
      after: the tokens after it.
    """

    rows: DataSpec
    source: str
    target: str
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def size(self) -> int:
        """P + T."""
        return self.rows.generated.shape[0]

    def prompts(self, source: Int[Array, "B S"]) -> Int[Array, "B P"]:
        """The prompts of sources, padded with -1 on the left."""
        facts = self.rows.generated.facts
        first, count = _content(source, facts["tokenizer"], facts["special"]["eos"])
        before, after = (jnp.asarray([*ids, -1], jnp.int32) for ids in (self.before, self.after))
        size = len(self.before) + source.shape[1] + len(self.after)
        first, count = first[:, None], count[:, None]
        at = jnp.arange(size) - (source.shape[1] - count)  # from the start of the prompt
        within = at - len(self.before)
        inner = jnp.take_along_axis(source, jnp.clip(first + within, 0, source.shape[1] - 1), 1)
        token = jnp.where(within < count, inner, after[jnp.clip(within - count, 0, len(after) - 1)])
        token = jnp.where(within < 0, before[jnp.clip(at, 0, len(before) - 1)], token)
        return jnp.where(at < 0, -1, token)

    def batch(self, pairs: Batch) -> dict[str, Array]:
        """Rows from a batch of pairs; only the target and its end count in the loss."""
        prompt, target = self.prompts(pairs[self.source]), pairs[self.target]
        facts = self.rows.generated.facts
        first, count = _content(target, facts["tokenizer"], facts["special"]["eos"])
        at = jnp.arange(target.shape[1]) + first[:, None]
        answer = jnp.take_along_axis(target, jnp.clip(at, 0, target.shape[1] - 1), 1)
        real = jnp.arange(target.shape[1]) <= count[:, None]  # with the token that ends it
        real &= at < target.shape[1]
        token = jnp.concatenate([prompt, answer], 1)
        segment = jnp.concatenate([prompt >= 0, real], 1).astype(jnp.int32)
        counted = jnp.concatenate([jnp.zeros(prompt.shape, bool), real], 1)
        return {"token": jnp.maximum(token, 0), "segment": segment, "loss_mask": counted}


def _content(
    rows: Int[Array, "B S"], tokenizer: Tokenizer, eos: int
) -> tuple[Int[Array, "B"], Int[Array, "B"]]:
    """Where the text of each row begins, after the tokens that begin every text, and its length."""
    size, begins = rows.shape[1], jnp.asarray(tokenizer.begins, jnp.int32)
    begun = (rows[:, : len(begins)] == begins).all(-1)
    first = jnp.where(begun, len(begins), 0).astype(jnp.int32)
    ends = (rows == eos) & (jnp.arange(size) >= first[:, None])
    end = jnp.where(ends.any(-1), ends.argmax(-1), size)
    return first, end - first


def refuse_preferences(spec: DataSpec) -> None:
    """Raises ConfigError if the two texts of `spec` are a chosen and a rejected answer."""
    if "chosen_mask" in spec.fields:
        raise ConfigError(
            f"config.dataset.name={spec.name!r}: its two texts are a better and a worse answer to "
            "a prompt, and neither is made from the other. Expected method preference or "
            "reward_model, as in configs/dpo.py, or other data."
        )


def of_pairs(spec: DataSpec, template: str) -> Prompted | None:
    """How the examples of `spec` become rows, if they are pairs of texts; else None.

    Data with segments are rows already, such as those of `problems`, which have their prompts too.

    Raises:
      ConfigError: the template has not exactly one gap, or the texts are preferences.
    """
    refuse_preferences(spec)
    others = [n for n, f in spec.fields.items() if f.kind == "text" and n != spec.target]
    if spec.generated.kind != "text" or len(others) != 1 or "segment" in spec.fields:
        return None
    (source,) = others
    expected = f"a text with one {GAP}, where the source is put"
    require(template.count(GAP) == 1, "config.dataset.text.template", template, expected)
    facts = spec.generated.facts
    before, after = (
        tuple(map(int, facts["tokenizer"].encode(part))) if part else ()
        for part in template.split(GAP)
    )
    before = (*tokenizers.begins(facts["tokenizer"], facts["special"], "padded"), *before)
    (sources,), (targets,) = spec.fields[source].shape, spec.generated.shape
    shape = (len(before) + sources + len(after) + targets,)
    fields = {
        "token": Field("text", shape, np.dtype(np.int32), facts),
        "segment": Field("mask", shape, np.dtype(np.int32)),
        "loss_mask": Field("mask", shape, np.dtype(bool)),
    }
    rows = DataSpec(spec.name, fields, "token", spec.sizes)
    return Prompted(rows, source, spec.target, before, after)
