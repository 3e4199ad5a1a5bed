"""Autoregressive decoding: the whole prompt at once, then one token after the other.

It runs any network of the form `apply(x [B, T], *, segment=None, cache=None, capacity=0) ->
(logits [B, T, V], cache)` (networks/sequence.py). Bind the parameters with
`jax.tree_util.Partial(apply, params)`: then they are arguments of the compiled program, whereas
parameters in a closure are constants in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from genjax.config import ConfigError, require
from genjax.sampling.logits import MOST_NEW_TOKENS, Processor, ids, whole_number

Tree = Any
Apply = Callable[..., tuple[Float[Array, "B T V"], Tree]]
Stop = Int[Array, "Q V"]  # `stopping.automaton`


class Plan(NamedTuple):
    """What is known when the program is compiled.

    Attributes:
      prompt: columns of the prompt, P.
      total: columns of prompt and new tokens, S.
      context: the most positions that the network takes.
      padded: whether the prompt may be padded.
      eos: tokens that end a text.
      processors: applied to the logits.
    """

    prompt: int
    total: int
    context: int
    padded: bool
    eos: tuple[int, ...]
    processors: tuple[Processor, ...]

    @property
    def capacity(self) -> int:
        """Positions of the cache; the last token is never an input."""
        return min(self.total - 1, self.context)

    @property
    def kept(self) -> int:
        """Tokens that stay when the window slides."""
        return max(self.context // 2, 1)


class State(NamedTuple):
    """The state of decoding.

    Attributes:
      tokens: prompt and new tokens, -1 elsewhere.
      done: whether each text has ended.
      stop: state of the stop automaton for each text.
      length: columns of `tokens` that are filled, the same in all rows.
      cache: of the network, with all of its window but the newest token.
    """

    tokens: Int[Array, "B S"]
    done: Bool[Array, "B"]
    stop: Int[Array, "B"]
    length: Int[Array, ""]
    cache: Tree


def generate(
    apply: Apply,
    prompt: Int[Array, "B P"],
    key: Array | None = None,
    *,
    max_new_tokens: int,
    context: int,
    eos: int | Sequence[int] = (),
    stop: Stop | None = None,
    processors: Sequence[Processor] = (),
) -> Int[Array, "B S"]:
    """Continues each prompt; S = P + max_new_tokens.

    Tokens are drawn from the processed logits; without a key, the most probable one is taken. A
    text ends with the first token of `eos`, or with the token that completes a stop text, both of
    which are kept; it also ends where no token is allowed. After `context` positions, padding
    included, the window slides: the network keeps only the newest context // 2 tokens and
    continues from them until the window is full again.

    The loop is compiled once for its shapes, options and `apply`, and stops when all texts have
    ended. If another jitted function calls this, the values of the prompt cannot be checked.

    Args:
      apply: the network; see the module's docstring.
      prompt: tokens, with -1 on the left where a prompt is shorter.
      key: the n-th new token is drawn with the key folded with n; None is greedy.
      max_new_tokens: the most tokens to add to each prompt.
      context: the most positions that the network takes.
      eos: tokens that end a text.
      stop: texts that also end a text (`stopping.automaton`); they are not searched in the prompt.
      processors: applied to the logits, in order (`logits.chain`).

    Returns:
      The prompts and their continuations; -1 in padding and after the end.

    Raises:
      ConfigError: a prompt is empty, longer than `context`, padded elsewhere than on the left, or
        has a token outside the vocabulary; `max_new_tokens` is out of range.
    """
    apply, plan = make_plan(apply, prompt, max_new_tokens, context, eos, processors)
    return _generate(apply, plan, key, stop, jnp.asarray(prompt, jnp.int32))


def stream(
    apply: Apply,
    prompt: Int[Array, "P"],
    key: Array | None = None,
    *,
    decode: Callable[[Sequence[int]], str],
    max_new_tokens: int,
    context: int,
    eos: int | Sequence[int] = (),
    stop: Stop | None = None,
    processors: Sequence[Processor] = (),
) -> Iterator[str]:
    """Yields the text that `generate` adds to one prompt, piece by piece as it is drawn.

    Text is held back while it ends in U+FFFD, to which an incomplete character decodes. The token
    of `eos` is left out.

    Args:
      apply: the network, as for `generate`.
      prompt: tokens.
      key: draws the tokens; None is greedy.
      decode: tokens -> text; may decode incomplete characters to U+FFFD.
      max_new_tokens: the most tokens to add.
      context: the most positions that the network takes.
      eos: tokens that end the text.
      stop: texts that also end it.
      processors: applied to the logits.

    Raises:
      ConfigError: as `generate`.
    """
    prompt = np.asarray(prompt, np.int32)[None]
    apply, plan = make_plan(apply, prompt, max_new_tokens, context, eos, processors)
    text = _Text(decode, prompt[0].tolist())
    state, free = _begin(plan, jnp.asarray(prompt)), 0
    for column in range(plan.prompt, plan.total):
        if free:
            state, free = _jitted_step(apply, plan, key, stop, state), free - 1
        else:
            width = plan.prompt if column == plan.prompt else plan.kept
            state = _jitted_fill(apply, plan, key, stop, state._replace(cache=None), width)
            free = plan.capacity - width
        token = int(state.tokens[0, column])
        if token < 0 or token in plan.eos:
            break
        yield from text.add(token)
        if state.done[0]:
            break
    yield from text.rest()


class _Text:
    """Decodes tokens that come one by one to the pieces of text that they add."""

    def __init__(self, decode: Callable[[Sequence[int]], str], tokens: list[int]):
        self.decode, self.tokens = decode, tokens
        # A tokenizer may treat the start of a text specially, so new tokens are decoded with some
        # old ones before them.
        self.start, self.yielded = 0, len(tokens)

    def rest(self) -> Iterator[str]:
        """Yields all text that has not been yielded yet."""
        old = self.decode(self.tokens[self.start : self.yielded])
        new = self.decode(self.tokens[self.start :])[len(old) :]
        if new:
            self.start, self.yielded = self.yielded, len(self.tokens)
            yield new

    def add(self, token: int) -> Iterator[str]:
        """Takes a token, and yields the text so far unless it ends within a character."""
        self.tokens.append(token)
        if not self.decode(self.tokens[self.start :]).endswith("\ufffd"):
            yield from self.rest()


def make_plan(
    apply: Apply,
    prompt: Int[Array, "B P"],
    max_new_tokens: int,
    context: int,
    eos: int | Sequence[int],
    processors: Sequence[Processor],
) -> tuple[Apply, Plan]:
    """`apply` as an argument of a jitted function, and the plan; for the arguments see `generate`.

    Raises:
      ConfigError: as `generate`.
    """
    if not isinstance(apply, Partial):
        apply = Partial(apply)
    rows, length = np.shape(prompt)
    in_range = whole_number(max_new_tokens) and 0 < max_new_tokens <= MOST_NEW_TOKENS
    require(
        in_range, "max_new_tokens", max_new_tokens, f"a whole number from 1 to {MOST_NEW_TOKENS}"
    )
    require(rows > 0 and length > 0, "prompt", np.shape(prompt), "at least one row, and one token")
    if length > context:
        raise ConfigError(
            f"The prompt has {length} tokens, but the model takes {context} positions: shorten the "
            "prompt, or keep only its end."
        )
    padded = True
    if not isinstance(prompt, jax.core.Tracer):
        logits = _logits.eval_shape(apply, jax.ShapeDtypeStruct((rows, length), jnp.int32))
        padded = _check_tokens(np.asarray(prompt), logits.shape[-1])
    eos = ids("eos", np.atleast_1d(eos))
    total = length + max_new_tokens
    return apply, Plan(length, total, context, padded, eos, tuple(processors))


def _check_tokens(prompt: Int[np.ndarray, "B P"], vocabulary: int) -> bool:
    """Whether there is padding; raises ConfigError unless rows are left padding, then tokens."""
    outside = prompt[(prompt < -1) | (prompt >= vocabulary)]
    if outside.size:
        raise ConfigError(
            f"The prompt has the token {outside[0]}, but the model knows the tokens 0 to "
            f"{vocabulary - 1}: use the tokenizer that it was trained with."
        )
    padding = prompt < 0
    if padding[:, -1].any() or (padding[:, 1:] & ~padding[:, :-1]).any():
        raise ConfigError(
            "The prompt has a -1 after a token, or no token in a row: pad on the left, and give "
            "each row at least one token."
        )
    return bool(padding.any())


@jax.jit
def _logits(apply: Apply, x: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    return apply(x)[0]


@partial(jax.jit, static_argnames="plan")
def _generate(
    apply: Apply, plan: Plan, key: Array | None, stop: Stop | None, prompt: Int[Array, "B P"]
) -> Int[Array, "B S"]:
    step = partial(_step, apply, plan, key, stop)

    def window(state: State, width: int) -> State:
        """Continues from the newest `width` tokens until the cache is full."""
        full = state.length + 1 + plan.capacity - width
        state = _fill(apply, plan, key, stop, state, width)
        end = jnp.minimum(full, plan.total)
        state = jax.lax.while_loop(lambda s: (s.length < end) & ~s.done.all(), step, state)
        return state._replace(cache=None)

    state = window(_begin(plan, prompt), plan.prompt)
    if plan.total > plan.context + 1:
        state = jax.lax.while_loop(
            lambda s: (s.length < plan.total) & ~s.done.all(),
            lambda s: window(s, plan.kept),
            state,
        )
    return state.tokens


def _begin(plan: Plan, prompt: Int[Array, "B P"]) -> State:
    tokens = jnp.pad(prompt, ((0, 0), (0, plan.total - plan.prompt)), constant_values=-1)
    rows = len(tokens)
    stop = jnp.zeros(rows, jnp.int32)
    return State(tokens, jnp.zeros(rows, bool), stop, jnp.int32(plan.prompt), None)


def prefill(
    apply: Apply, plan: Plan, tokens: Int[Array, "B S"], length: Int[Array, ""] | int, width: int
) -> tuple[Float[Array, "B V"], Tree]:
    """The logits for column `length`, and a cache of the `width` columns before it."""
    window = jax.lax.dynamic_slice_in_dim(tokens, length - width, width, 1)
    segment = (window >= 0).astype(jnp.int32) if plan.padded else None
    logits, cache = apply(jnp.maximum(window, 0), segment=segment, capacity=plan.capacity)
    return logits[:, -1], cache


def advance(
    apply: Apply, tokens: Int[Array, "B S"], length: Int[Array, ""], cache: Tree
) -> tuple[Float[Array, "B V"], Tree]:
    """The logits for column `length`, and the cache with the newest token added."""
    token = jax.lax.dynamic_slice_in_dim(tokens, length - 1, 1, 1)
    logits, cache = apply(jnp.maximum(token, 0), cache=cache)
    return logits[:, -1], cache


def _fill(
    apply: Apply, plan: Plan, key: Array | None, stop: Stop | None, state: State, width: int
) -> State:
    logits, cache = prefill(apply, plan, state.tokens, state.length, width)
    return _choose(plan, key, stop, logits, state._replace(cache=cache))


def _step(apply: Apply, plan: Plan, key: Array | None, stop: Stop | None, state: State) -> State:
    logits, cache = advance(apply, state.tokens, state.length, state.cache)
    return _choose(plan, key, stop, logits, state._replace(cache=cache))


def _choose(
    plan: Plan, key: Array | None, stop: Stop | None, logits: Float[Array, "B V"], state: State
) -> State:
    """Adds one token to each text that has not ended."""
    tokens, done, search, length, cache = state
    for process in plan.processors:
        logits = process(logits, tokens)
    if key is None:
        token = jnp.argmax(logits, -1)
    else:
        token = jax.random.categorical(jax.random.fold_in(key, length - plan.prompt), logits)
    done |= (logits == -jnp.inf).all(-1)
    token = jnp.where(done, -1, token).astype(jnp.int32)
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], length, 1)
    if plan.eos:
        done |= jnp.isin(token, jnp.array(plan.eos))
    if stop is not None:
        search = jnp.asarray(stop)[search, token]  # has no effect on a text that has ended
        done |= search == len(stop) - 1
    return State(tokens, done, search, length + 1, cache)


_jitted_fill = jax.jit(_fill, static_argnames=("plan", "width"))
_jitted_step = jax.jit(_step, static_argnames="plan", donate_argnames="state")
