"""Beam search with the scores, endings and early stopping of transformers' GenerationMixin.

A token that must not be chosen scores -inf here, and about -1e9 there. Results are the same if a
step has at least K candidates; if it has fewer, no candidate is taken twice here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from genjax.config import require
from genjax.sampling.decode import Apply, Plan, advance, make_plan, prefill
from genjax.sampling.logits import Processor, whole_number

Tree = Any

MOST_BEAMS = 1024


class Rule(NamedTuple):
    """How texts are scored and when to stop, as arrays: another rule needs no recompilation.

    Attributes:
      divisor: divides the score of a text; index: its number of new tokens - 1.
      hoped: divides the score of a beam to give the best that it may still reach; same index.
      enough: whether to stop when K texts have ended.
    """

    divisor: Float[np.ndarray, "M"]
    hoped: Float[np.ndarray, "M"]
    enough: Bool[np.ndarray, ""]


class State(NamedTuple):
    """The running beams, in no order, and the ended texts, best first; K of each.

    Attributes:
      running: prompt and new tokens of the beams, -1 elsewhere.
      score: log-probabilities of their new tokens.
      parent: the row of the cache, of all B K, that each beam continues from.
      ended: as `running`, of ended texts.
      ended_score: their scores; -inf where `ended` has no text.
      full: which places of `ended` have a text.
      better: whether a beam may still become better than an ended text.
      stuck: whether no beam can continue.
      length: number of columns that are filled.
    """

    running: Int[Array, "B K S"]
    score: Float[Array, "B K"]
    parent: Int[Array, "N"]
    ended: Int[Array, "B K S"]
    ended_score: Float[Array, "B K"]
    full: Bool[Array, "B K"]
    better: Bool[Array, "B"]
    stuck: Bool[Array, ""]
    length: Int[Array, ""]


def beam_search(
    apply: Apply,
    prompt: Int[Array, "B P"],
    *,
    beams: int,
    max_new_tokens: int,
    context: int,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    eos: int | Sequence[int] = (),
    processors: Sequence[Processor] = (),
) -> tuple[Int[Array, "B K S"], Float[Array, "B K"]]:
    """The K most probable continuations found with K beams; S = P + max_new_tokens.

    A text's score is the sum of the log-probabilities of its new tokens, divided by their number
    to the power of `length_penalty` (a form of Wu et al. 2016, eq. 14). A text ends with a token of
    `eos`, which is kept, or at S. Compilation and padding are as in `decode.generate`; the window
    does not slide.

    Args:
      apply: the network; see `decode`.
      prompt: tokens, with -1 on the left where a prompt is shorter.
      beams: K.
      max_new_tokens: the most tokens to add to each prompt.
      context: the most positions that the network takes.
      length_penalty: above 0 favours long texts, as log-probabilities are negative.
      early_stopping: True stops when K texts have ended. False stops when no beam would beat the
        worst of them if it ended now; "never", if it ended at its best length.
      eos: tokens that end a text.
      processors: applied to the log-probabilities, in order (`logits.chain`).

    Returns:
      (tokens, scores), best first; tokens are -1 in padding and after the end. A score of -inf
      means that there is no text.

    Raises:
      ConfigError: as `decode.generate`; prompt and new tokens do not fit into `context`; an
        argument is out of range.
    """
    whole = whole_number(beams) and 0 < beams <= MOST_BEAMS
    require(whole, "beams", beams, f"a whole number from 1 to {MOST_BEAMS:,}")
    known = isinstance(early_stopping, bool) or early_stopping == "never"
    require(known, "early_stopping", early_stopping, 'True, False or "never"')
    number = isinstance(length_penalty, int | float) and abs(length_penalty) <= 5
    require(number, "length_penalty", length_penalty, "a number from -5 to 5")
    apply, plan = make_plan(apply, prompt, max_new_tokens, context, eos, processors)
    require(
        plan.total - 1 <= context,
        "max_new_tokens",
        max_new_tokens,
        f"at most {context + 1 - plan.prompt}: the prompt has {plan.prompt} tokens, the model takes"
        f" {context} positions, and beam search has no sliding window",
    )
    divisor = np.arange(1, max_new_tokens + 1, dtype=np.float64) ** length_penalty
    longest = early_stopping == "never" and length_penalty > 0
    hoped = np.full_like(divisor, divisor[-1]) if longest else divisor
    enough = np.array(early_stopping is True)
    rule = Rule(divisor.astype(np.float32), hoped.astype(np.float32), enough)
    return _beam_search(apply, plan, rule, beams, jnp.asarray(prompt, jnp.int32))


@partial(jax.jit, static_argnames=("plan", "beams"))
def _beam_search(
    apply: Apply, plan: Plan, rule: Rule, beams: int, prompt: Int[Array, "B P"]
) -> tuple[Int[Array, "B K S"], Float[Array, "B K"]]:
    B, K = len(prompt), beams
    tokens = jnp.pad(prompt, ((0, 0), (0, plan.total - plan.prompt)), constant_values=-1)
    logits, cache = prefill(apply, plan, tokens, plan.prompt, plan.prompt)
    copies = jnp.repeat(jnp.arange(B), K)
    repeated = jnp.repeat(tokens[:, None], K, 1)
    state = State(
        running=repeated,
        score=jnp.zeros((B, K)).at[:, 1:].set(-jnp.inf),  # at first all beams are equal
        parent=jnp.arange(B * K),
        ended=repeated,
        ended_score=jnp.full((B, K), -jnp.inf),
        full=jnp.zeros((B, K), bool),
        better=jnp.ones(B, bool),
        stuck=jnp.array(False),
        length=jnp.int32(plan.prompt),
    )
    state = _extend(plan, rule, logits[copies], state)._replace(parent=state.parent)

    def step(carry: tuple[State, Tree]) -> tuple[State, Tree]:
        state, cache = carry
        running = state.running.reshape(B * K, -1)
        cache = _moved(cache, state.parent)
        logits, cache = advance(apply, running, state.length, cache)
        return _extend(plan, rule, logits, state), cache

    def continues(carry: tuple[State, Tree]) -> Bool[Array, ""]:
        state, _ = carry
        return state.better.any() & ~state.stuck & ~(rule.enough & state.full.all())

    cache = jax.tree.map(lambda x: x[:, copies] if jnp.ndim(x) > 1 else x, cache)
    state, _ = jax.lax.while_loop(continues, step, (state, cache))
    return state.ended, state.ended_score


def _moved(cache: Tree, source: Int[Array, "N"]) -> Tree:
    """The cache with row `source[i]` in row i; rows are on axis 1 of all but scalars.

    Rows that stay are not touched: moving all rows would take as long as a step. Every row that is
    read must itself stay.
    """
    moves = source != jnp.arange(len(source))
    rows = jnp.argsort(~moves)

    def move(i: Array, cache: Tree) -> Tree:
        target = rows[i]

        def move_row(x: Array) -> Array:
            row = jax.lax.dynamic_slice_in_dim(x, source[target], 1, 1)
            return jax.lax.dynamic_update_slice_in_dim(x, row, target, 1)

        return jax.tree.map(lambda x: move_row(x) if jnp.ndim(x) > 1 else x, cache)

    return jax.lax.fori_loop(0, moves.sum(), move, cache)


def _places(parent: Int[Array, "B K"]) -> Int[Array, "B K"]:
    """Which of the new beams goes to each of the K places.

    The first child of a beam takes its parent's place; others take those of childless beams.
    """
    same = parent[:, :, None] == parent[:, None, :]
    first = ~jnp.tril(same, -1).any(2)
    childless = ~(parent[:, None, :] == jnp.arange(parent.shape[1])[:, None]).any(2)
    free = jnp.argsort(~childless)
    place = jnp.where(first, parent, _take(free, jnp.cumsum(~first, 1) - 1))
    return jnp.argsort(place)


def _take(x: Array, index: Int[Array, "B N"]) -> Array:
    """Takes the entries `index` along axis 1."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), 1)


def _extend(plan: Plan, rule: Rule, logits: Float[Array, "N V"], state: State) -> State:
    """Adds a token to each beam: of all K V candidates the best continue, and some end.

    (1 + number of `eos`) K candidates are taken, so that K can continue even if many end.
    """
    B, K, S = state.running.shape
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    for process in plan.processors:
        log_p = process(log_p, state.running.reshape(B * K, S))
    vocabulary = log_p.shape[-1]
    total = (log_p.reshape(B, K, vocabulary) + state.score[..., None]).reshape(B, K * vocabulary)
    candidates = min(max(2, 1 + len(plan.eos)) * K, K * vocabulary)
    score, index = jax.lax.top_k(total, candidates)
    parent, token = index // vocabulary, index % vocabulary
    tokens = _take(state.running, parent)
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[..., None], state.length, 2)
    last = state.length + 1 == plan.total
    ends = jnp.isin(token, jnp.array(plan.eos, jnp.int32)) | last

    running_score = jnp.where(ends, -jnp.inf, score)
    best = jax.lax.top_k(running_score, K)[1]
    best = _take(best, _places(_take(parent, best)))
    parent = _take(parent, best) + K * jnp.arange(B)[:, None]
    added = state.length - plan.prompt  # new tokens before this one
    state = _end(rule, tokens, score / rule.divisor[added], ends, state)._replace(
        running=_take(tokens, best),
        score=_take(running_score, best),
        parent=parent.reshape(-1),
        stuck=ends.all(),
        length=state.length + 1,
    )
    hoped = state.score.max(1, keepdims=True) / rule.hoped[added]
    worst = jnp.where(state.full, state.ended_score.min(1, keepdims=True), -jnp.inf)
    return state._replace(better=state.better & (hoped > worst).any(1))


def _end(
    rule: Rule,
    tokens: Int[Array, "B W S"],
    score: Float[Array, "B W"],
    ends: Bool[Array, "B W"],
    state: State,
) -> State:
    """Adds the candidates that end, if among the K best, to `ended`, and keeps the best K."""
    K = state.full.shape[1]
    counted = ends & (jnp.arange(ends.shape[1]) < K) & state.better[:, None]
    counted &= ~(rule.enough & state.full.all(1, keepdims=True))
    score = jnp.where(counted, score, -jnp.inf)
    score, best = jax.lax.top_k(jnp.concatenate([state.ended_score, score], 1), K)
    return state._replace(
        ended=_take(jnp.concatenate([state.ended, tokens], 1), best),
        ended_score=score,
        full=_take(jnp.concatenate([state.full, counted], 1), best),
    )
