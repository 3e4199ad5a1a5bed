"""Several prompts for one image: what to guide away from, and what to guide towards also."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.checks import is_number, require
from genjax.config import ConfigError
from genjax.method import DataSpec, Field
from genjax.methods.denoiser import Denoiser, Known
from genjax.modalities import text
from genjax.networks.conditioning import text_of


def prompt_of(conditions: Sequence[str], spec: DataSpec) -> str | None:
    """The name of the text among the conditions, or of its vectors: the first one, or None."""
    return next((name for name in conditions if text_of(spec.fields[name])), None)


class Prompts(NamedTuple):
    """Texts beside the one that an image is for, as tokens or as vectors of a text encoder.

    Attributes:
      negative: what to guide away from; None for no text.
      more: what to guide towards also.
      weights: of these, relative to the scale of guidance.
    """

    negative: Int[Array, "L"] | Float[Array, "L D"] | None = None
    more: Int[Array, "K L"] | Float[Array, "K L D"] | None = None
    weights: Float[np.ndarray, " K"] | None = None


NO_PROMPTS = Prompts()


def parsed_prompts(field: Field | None, negative: str, more: tuple) -> Prompts:
    """The texts of `plan` as tokens of a field.

    Raises:
      ConfigError: the model has no text, a text does not fit it, or there is no pair of a text and
        a number.
    """
    if not negative and not more:
        return Prompts()
    if field is None:
        raise ConfigError(
            "negative_prompt, more_prompts: the model has no text that others could replace. Leave "
            "them out, or use a model trained with diffusion.conditions=('text',)."
        )
    listed = isinstance(more, tuple | list) and all(map(_is_weighted, more))
    require(listed, "more_prompts", more, "pairs, such as [('a red hat', 1.0)]")
    away = text.parse(str(negative), field) if negative else None
    if not more:
        return Prompts(away)
    tokens = np.stack([text.parse(prompt, field) for prompt, _ in more])
    return Prompts(away, tokens, np.asarray([weight for _, weight in more], np.float64))


def _is_weighted(pair: Any) -> bool:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        return False
    return isinstance(pair[0], str) and is_number(pair[1])


def others_of(model: Denoiser, known: Known, prompts: Prompts) -> list[Known]:
    """The conditions to guide away from, and then those to guide towards also.

    Only the text is another one; all other conditions are as given.
    """

    def instead(tokens: Array) -> Known:
        name = prompt_of(model.options.conditions, model.spec)
        given = known.values[name]
        return known._replace(values={**known.values, name: jnp.broadcast_to(tokens, given.shape)})

    away = known.all_hidden() if prompts.negative is None else instead(prompts.negative)
    return [away, *map(instead, () if prompts.more is None else prompts.more)]
