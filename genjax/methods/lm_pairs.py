"""A language model of pairs of texts: it answers a prompt, and only the answer counts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Int

from genjax.data.prompted import Prompted
from genjax.method import Batch, DataSpec, Method, Tree
from genjax.sampling.conditions import Condition, required


def on_pairs(method: Method, pairs: Prompted, spec: DataSpec) -> Method:
    """`method`, a language model of the rows of `pairs`, as a model of the pairs themselves.

    Args:
      method: its condition is `prompt`.
      pairs: how the pairs become rows.
      spec: of the pairs.
    """

    def of_rows(function: Callable) -> Callable:
        """The function of (params, mutable, batch, ...), which gets rows."""

        def converting(params: Tree, mutable: Tree, batch: Batch, *args: Any) -> Any:
            return function(params, mutable, pairs.batch(batch), *args)

        return converting

    def init(key: Array, batch: Batch) -> tuple[dict[str, Tree], dict[str, Tree]]:
        return method.init(key, pairs.batch(batch))

    def sample(
        params: dict[str, Tree],
        mutable: dict[str, Tree],
        key: Array,
        num: int,
        condition: Condition,
        *,
        max_new_tokens: int = 0,
        temperature: float = 0.0,
        **options: Any,
    ) -> Int[Array, "B T"]:
        """The answers to `num` sources.

        By default they are the most probable tokens, and at most as long as in training.
        """
        prompt = pairs.prompts(required(condition, pairs.source))
        new_tokens = max_new_tokens or spec.generated.shape[0]
        options |= {"max_new_tokens": new_tokens, "temperature": temperature}
        tokens = method.sample(params, mutable, key, num, {"prompt": prompt}, **options)
        return tokens[:, prompt.shape[1] :]

    parameters = dict(inspect.signature(method.sample).parameters)
    parameters["temperature"] = parameters["temperature"].replace(default=0.0)
    kept = [parameter for name, parameter in parameters.items() if name != "decode"]
    sample.__signature__ = inspect.Signature(kept)
    return method._replace(
        init=init,
        phases=tuple(phase._replace(loss=of_rows(phase.loss)) for phase in method.phases),
        evaluate=of_rows(method.evaluate),
        sample=sample,
        conditions={pairs.source: spec.fields[pairs.source]},
    )
