"""A sampler as a table of coefficients, and the one loop that runs any table.

Every solver here is linear in the point of the network's call, stored points, noise, and the pairs
(x_0, epsilon) of this call and of some earlier ones. A row of a table has the coefficients for one
call of the network, computed once in float64. Tables are arrays: padded to one shape, tables of any
solver, grid, number of steps or eta run in the same compiled program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.sampling import noise
from genjax.sampling.parametrisation import Prediction
from genjax.sampling.paths import Levels, Path

# The quantities that a row has coefficients for: the point of the call, two stored points, noise,
# then x_0 and epsilon of this call and of the kept earlier calls, the newest first.
POINT, ANCHOR, SECOND, NOISE, PAIRS = 0, 1, 2, 3, 4


class Table(NamedTuple):
    """A sampler: N calls of the network, and the linear map after each.

    Attributes:
      at: the noise level of each call.
      point: coefficients of the next call's point; after the last call it is the sample.
      anchor: coefficients of a stored point.
      second: coefficients of another stored point.
      keep: whether the pair of this call is kept for later calls.
      position: position of the Brownian motion of the noise before the first call and after each
        call; a row's noise is the increment over its call.
      spread: half the logarithm of the large over the small variance: with a learned fraction, the
        noise is multiplied by exp(spread * fraction).
      start: standard deviation of the first point.
      depth: binary digits of the positions.
      count: the number of rows to run in a `padded` table, which may be traced; None runs all.
    """

    at: Levels
    point: Float[np.ndarray, "N M"]
    anchor: Float[np.ndarray, "N M"]
    second: Float[np.ndarray, "N M"]
    keep: np.ndarray
    position: Int[np.ndarray, "N+1"]
    spread: Float[np.ndarray, "N"]
    start: Any
    depth: Any
    count: Any = None

    @property
    def calls(self) -> Any:
        """How often the network is called."""
        return len(self.keep) if self.count is None else self.count

    @property
    def stochastic(self) -> bool:
        """Whether any row draws noise."""
        return bool(np.any([t[:, NOISE] for t in (self.point, self.anchor, self.second)]))


Denoise = Callable[[Float[Array, "B ..."], Levels, Any], tuple[Prediction, Any]]


class Rows:
    """Collects the rows of a table, in float64."""

    def __init__(self, path: Path, grid: Levels, kept: int):
        """An empty table on a grid, which keeps the pairs of `kept` earlier calls."""
        self.path, self.grid, self.kept = path, grid, kept
        self.width = PAIRS + 2 * (kept + 1)
        self.rows: list[tuple] = []
        # Standard deviation of the first call's point; data count as having unit variance.
        alpha, sigma = grid.alpha[0], grid.sigma[0]
        self.start = sigma if path.scaling == "exploding" else math.hypot(alpha, sigma)
        if path.scaling == "linear":
            self.start = sigma

    def unit(self, index: int) -> Float[np.ndarray, "M"]:
        """Coefficients that select one quantity: POINT, ANCHOR, SECOND or NOISE."""
        return np.eye(self.width)[index]

    def x0(self, back: int = 0) -> Float[np.ndarray, "M"]:
        """Coefficients that select x_0 of this call, or of the kept one `back` calls before."""
        return self.unit(PAIRS + 2 * back)

    def epsilon(self, back: int = 0) -> Float[np.ndarray, "M"]:
        """Coefficients that select epsilon, as `x0`."""
        return self.unit(PAIRS + 2 * back + 1)

    def add(
        self,
        at: Levels,
        point: np.ndarray,
        anchor: np.ndarray | None = None,
        second: np.ndarray | None = None,
        *,
        keep: bool = True,
        ends: float,
        spread: float = 0.0,
    ) -> None:
        """Adds a call at a level, after which sigma / alpha of the sampler is `ends`."""
        anchor = point if anchor is None else anchor
        second = self.unit(SECOND) if second is None else second
        self.rows.append((at, point, anchor, second, keep, ends, spread))

    def table(self) -> Table:
        """The rows so far as a table."""
        at, point, anchor, second, keep, ends, spread = zip(*self.rows, strict=True)
        first = self.grid.sigma[0] / self.grid.alpha[0] if self.grid.alpha[0] else np.inf
        position, depth = noise.positions(np.asarray([first, *ends]))
        return Table(
            Levels(*(np.asarray(a, np.float64) for a in zip(*at, strict=True))),
            *(np.stack(a) for a in (point, anchor, second)),
            np.asarray(keep, bool),
            position,
            np.asarray(spread, np.float64),
            np.float64(self.start),
            np.int32(depth),
        )


def padded(table: Table, rows: int, width: int) -> Table:
    """The table padded to `rows` rows, which are not run, and to `width` coefficients.

    Raises:
      ValueError: the table already has more rows or coefficients.
    """
    more, wider = rows - len(table.keep), width - table.point.shape[1]
    wide = [np.pad(a, ((0, more), (0, wider))) for a in (table.point, table.anchor, table.second)]
    return Table(
        Levels(*(np.pad(a, (0, more), mode="edge") for a in table.at)),
        *wide,
        np.pad(table.keep, (0, more)),
        np.pad(table.position, (0, more), mode="edge"),
        np.pad(table.spread, (0, more)),
        table.start,
        table.depth,
        np.int32(table.calls),
    )


def alike(tables: Sequence[Table]) -> list[Table]:
    """The tables padded to one shape, so that one compiled program runs all of them."""
    rows = max(len(table.keep) for table in tables)
    width = max(table.point.shape[1] for table in tables)
    return [padded(table, rows, width) for table in tables]


def solve(
    denoise: Denoise,
    table: Table,
    keys: Array,
    shape: tuple[int, ...],
    *,
    stochastic: bool = True,
    memory: Any = (),
    start: Float[Array, "B ..."] | None = None,
) -> Float[Array, "B ..."]:
    """Draws samples: calls the network row by row.

    Args:
      denoise: (x, level, memory) -> (pair, memory); `level` has the numbers of one row.
      table: of a solver; its arrays may be traced.
      keys: one for each sample [B]; its first point and its noise depend only on the key.
      shape: of one sample.
      stochastic: whether any row may draw noise.
      memory: the denoiser's memory before the first call.
      start: the first point, instead of one drawn from the keys.

    Returns:
      The samples, float32.
    """
    at = Levels(*(jnp.asarray(a, jnp.float32) for a in table.at))
    maps = [jnp.asarray(a, jnp.float32) for a in (table.point, table.anchor, table.second)]
    spread, keep = jnp.asarray(table.spread, jnp.float32), jnp.asarray(table.keep)
    position = jnp.asarray(table.position)
    pairs = (table.point.shape[1] - PAIRS) // 2
    x = start
    if x is None:
        x = jnp.float32(table.start) * noise.normals(keys, 0, shape)
    kept = [jnp.zeros_like(x)] * (2 * (pairs - 1))

    def motion(index: Array) -> Float[Array, "B ..."] | tuple:
        return noise.brownian(keys, position[index], table.depth, shape) if stochastic else ()

    def body(i: Array, carry: tuple) -> tuple:
        point, anchor, second, kept, before, memory = carry
        level = Levels(*(a[i] for a in at))
        pair, memory = denoise(point, level, memory)
        known = [pair.x0, pair.epsilon, *kept]
        drawn, after = None, before
        if stochastic:
            after = motion(i + 1)
            drawn = noise.increment(before, after, position[i], position[i + 1], table.depth)
            if pair.fraction is not None:
                drawn = drawn * jnp.exp(spread[i] * pair.fraction)

        def combined(coefficients: Float[Array, "M"]) -> Float[Array, "B ..."]:
            total = coefficients[POINT] * point
            total += coefficients[ANCHOR] * anchor + coefficients[SECOND] * second
            if stochastic:
                total += coefficients[NOISE] * drawn
            for c, value in zip(coefficients[PAIRS:], known, strict=True):
                total += c * value
            return total

        new = [combined(m[i]) for m in maps]
        shifted = known[: len(kept)]
        kept = [jnp.where(keep[i], s, k) for s, k in zip(shifted, kept, strict=True)]
        return *new, kept, after, memory

    carry = (x, jnp.zeros_like(x), jnp.zeros_like(x), kept, motion(jnp.int32(0)), memory)
    return jax.lax.fori_loop(0, table.calls, body, carry)[0]
