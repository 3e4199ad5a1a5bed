"""Distances between two sets of features (FD, KID, PRDC), and the Inception Score of logits.

Pure functions of NumPy arrays, in float64 on the host, for any features. Papers call a Fréchet
distance FID, and a kernel distance KID, only if the features are Inception's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

from genjax.config import ConfigError

BLOCK = 2**22  # float64 entries of the largest temporary array

Rows = Float[np.ndarray, "N D"]
Others = Float[np.ndarray, "M D"]
Block = Float[np.ndarray, "n M"]


def _checked(name: str, value: Rows, least: int = 1) -> Rows:
    """`value` as an array [N, D] with N >= least: float32 is kept, the rest becomes float64."""
    array = np.asarray(value)
    if array.dtype != np.float32:
        array = array.astype(np.float64)
    if array.ndim != 2 or len(array) < least or not array.shape[1]:
        raise ValueError(
            f"{name} has shape {list(array.shape)}: expected [examples, features], {least} or more."
        )
    non_finite = len(array) - int(np.isfinite(array).all(axis=1).sum())
    if non_finite:
        raise ValueError(
            f"{non_finite} of the {len(array)} rows of {name} are not finite. Look at the images."
        )
    return array


def _pair(
    x: Rows, y: Others, least: int = 1, names: tuple[str, str] = ("x", "y")
) -> tuple[Rows, Others]:
    """Both sets, `_checked`, with the same number of features."""
    x, y = (_checked(name, value, least) for name, value in zip(names, (x, y), strict=True))
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{names[0]} has {x.shape[1]} features and {names[1]} {y.shape[1]}: take both from one "
            "extractor."
        )
    return x, y


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows of a [rows, columns] array, of at most `BLOCK` entries each."""
    size = max(1, BLOCK // max(columns, 1))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _square_root(cov: Float[np.ndarray, "D D"]) -> Float[np.ndarray, "D R"]:
    """A of full column rank R with A A^T = cov, by the symmetric eigendecomposition."""
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    nonzero = values > len(cov) * np.finfo(np.float64).eps * np.abs(values).max()
    return vectors[:, nonzero] * np.sqrt(values[nonzero])


def frechet_distance(
    mean1: Float[np.ndarray, "D"],
    cov1: Float[np.ndarray, "D D"],
    mean2: Float[np.ndarray, "D"],
    cov2: Float[np.ndarray, "D D"],
) -> float:
    """The squared Fréchet distance between two Gaussians (Heusel et al. 2017, eq. 6).

    |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2). With C = A A^T, the eigenvalues of C1 C2 are
    the squared singular values of A1^T A2, so the last trace is the sum of these singular values.
    It is real by construction. It is also exact to rounding, unlike the matrix square root,
    because small singular values are not computed as square roots of rounded eigenvalues. Each A
    comes from a symmetric eigendecomposition. Eigenvalues up to D * 2.2e-16 of the largest,
    negative ones included, are rounded zeros and are left out. Covariances of fewer examples than
    features are therefore handled correctly.

    Returns:
      The distance, in squared units of the features, exact to about 1e-15 D (tr C1 + tr C2).
      Rounding can make it negative; it is then returned as 0.

    Raises:
      ValueError: shapes that do not fit together, or values that are not finite.
    """
    inputs = (mean1, cov1, mean2, cov2)
    mean1, cov1, mean2, cov2 = arrays = [np.asarray(a, np.float64) for a in inputs]
    size = mean1.shape[0] if mean1.ndim == 1 else 0
    if not size or [a.shape for a in arrays] != [(size,), (size, size)] * 2:
        raise ValueError(
            f"the means and covariances have shapes {[list(a.shape) for a in arrays]}: expected "
            "[D], [D, D], [D], [D, D], both from one extractor."
        )
    if not all(np.isfinite(a).all() for a in arrays):
        raise ValueError("the means or covariances are not finite. Look at the images.")
    cross = _square_root(cov1).T @ _square_root(cov2)
    trace = np.linalg.svd(cross, compute_uv=False).sum()
    distance = np.square(mean1 - mean2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * trace
    return max(float(distance), 0.0)


def _kernel_sums(
    x: Rows, y: Others
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "M"], float]:
    """The row and column sums of k(x_i, y_j) = (x_i . y_j / D + 1)^3; the sum of k^2."""
    rows, columns, squares = np.empty(len(x)), np.zeros(len(y)), 0.0
    for block in _blocks(len(x), len(y)):
        base = x[block] @ y.T / x.shape[1] + 1.0
        kernel = base * base * base
        rows[block] = kernel.sum(axis=1)
        columns += kernel.sum(axis=0)
        squares += np.vdot(kernel, kernel)
    return rows, columns, squares


def _mmd2(x: Rows, y: Others) -> Float[np.ndarray, "6"]:
    """The unbiased squared MMD, and the five moments of the kernel k that `_variance` uses.

    With r the row means of k, the first two moments are, for x and for y, 4 times the variance of
    a point's influence r_xx - r_xy, minus what the finite means add to it. The other three are the
    variance of k that remains after the effects of its row and its column are subtracted: within
    x, within y and across.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    n, m = len(x), len(y)
    within, residuals = [], []
    for a in (x, y):
        diagonal = (np.square(a).sum(axis=1) / a.shape[1] + 1.0) ** 3
        sums, _, squares = _kernel_sums(a, a)
        means = (sums - diagonal) / (len(a) - 1)
        squares = (squares - np.square(diagonal).sum()) / (len(a) * (len(a) - 1))
        residuals.append(max(squares - 2 * np.square(means).mean() + means.mean() ** 2, 0.0))
        within.append(means)
    sums, columns, squares = _kernel_sums(x, y)
    xy, yx, centre = sums / m, columns / n, sums.mean() / m
    residual_xy = squares / (n * m) - np.square(xy).mean() - np.square(yx).mean() + centre**2
    first = 4 * (np.var(within[0] - xy, ddof=1) - residuals[0] / n - residual_xy / m)
    second = 4 * (np.var(within[1] - yx, ddof=1) - residuals[1] / m - residual_xy / n)
    value = within[0].mean() + within[1].mean() - 2 * centre
    return np.array([value, first, second, *residuals, max(residual_xy, 0.0)])


def _variance(moments: Float[np.ndarray, "6"], n: int, m: int) -> float:
    """The variance of the unbiased squared MMD of n and m points, by Hoeffding's decomposition."""
    _, first, second, xx, yy, xy = moments
    linear = max(first, 0.0) / n + max(second, 0.0) / m
    return linear + 2 * xx / (n * (n - 1)) + 2 * yy / (m * (m - 1)) + 4 * xy / (n * m)


def polynomial_mmd2(x: Rows, y: Others) -> tuple[float, float]:
    """The unbiased squared MMD of all of x and y, with KID's kernel.

    Gretton et al. 2012, eq. 3, with k(a, b) = (a . b / D + 1)^3 of Binkowski et al. 2018, sec. 4.

    Returns:
      The estimate, which may be negative, and its standard error; see `kid`.

    Raises:
      ValueError: fewer than two examples, other shapes, or values that are not finite.
    """
    x, y = _pair(x, y, 2)
    moments = _mmd2(x, y)
    return float(moments[0]), float(np.sqrt(_variance(moments, len(x), len(y))))


def kid_values(
    x: Rows,
    y: Others,
    rows_x: Int[np.ndarray, "S n"],
    rows_y: Int[np.ndarray, "S n"],
) -> Float[np.ndarray, "S 6"]:
    """The unbiased squared MMD of each of S pairs of subsets, which `kid` draws.

    Args:
      x: features of one set.
      y: features of the other.
      rows_x: the rows of x in each subset, at least two.
      rows_y: the rows of y in each subset, at least two.

    Returns:
      For each pair, the estimate and the five moments from which its variance is computed.
    """
    return np.array([_mmd2(x[i], y[j]) for i, j in zip(rows_x, rows_y, strict=True)])


def kid(
    x: Rows,
    y: Others,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The kernel distance between two sets of features (Binkowski et al. 2018, sec. 4).

    The mean of the unbiased squared MMD, with kernel (a . b / D + 1)^3, over pairs of subsets.
    Each pair gets new subsets, drawn without replacement.

    The standard error treats the mean as an estimate for the distributions behind x and y. It is
    not the standard deviation over subsets (which torch-fidelity prints) divided by sqrt(subsets):
    because the subsets overlap, that would go to zero however few the examples. The variance is
    (1 - 1/S) V(N, M) + V(n, n) / S for S subsets of n out of N and M examples. V(n, m) is the
    variance of one estimate from n and m examples; its terms are averaged over the subsets.

    Args:
      x: features of one set, at least `subset_size`.
      y: features of the other, at least `subset_size`.
      subsets: number of pairs drawn.
      subset_size: examples in each subset, at least 2.
      seed: seeds the draw.

    Returns:
      The estimate, which may be negative, and its standard error.

    Raises:
      ConfigError: `subset_size` is below 2 or larger than a set (torch-fidelity refuses this too,
        because figures for different sizes are not comparable), or `subsets` is below 1.
      ValueError: other shapes, or values that are not finite.
    """
    x, y = _pair(x, y)
    largest = min(len(x), len(y))
    if not 2 <= subset_size <= largest:
        raise ConfigError(
            f"a KID subset size of {subset_size} does not fit {len(x)} and {len(y)} examples: "
            f"expected 2 to {largest}. Lower it, or evaluate more examples."
        )
    if subsets < 1:
        raise ConfigError(f"{subsets} KID subsets: expected at least 1.")
    rng = np.random.default_rng(seed)
    sizes = len(x), len(y)
    drawn = [[rng.choice(n, subset_size, replace=False) for n in sizes] for _ in range(subsets)]
    moments = kid_values(x, y, *zip(*drawn, strict=True)).mean(axis=0)
    full, subset = _variance(moments, *sizes), _variance(moments, subset_size, subset_size)
    return float(moments[0]), float(np.sqrt(full + (subset - full) / subsets))


def split_scores(logits: Float[np.ndarray, "N K"], splits: int) -> Float[np.ndarray, "S"]:
    """The Inception Score of each of `splits` consecutive parts of the logits, not shuffled.

    exp(mean KL(p(y|x) || p(y))) with p(y) the part's own mean (Salimans et al. 2016, sec. 4). Part
    i starts at row floor(i N / splits). Everything is computed with logarithms, so probabilities
    may be arbitrarily close to 0 or 1.

    Raises:
      ValueError: fewer examples than splits, or logits that are not finite.
    """
    logits = _checked("the logits", logits).astype(np.float64)
    if not 1 <= splits <= len(logits):
        raise ValueError(f"{len(logits)} examples do not make {splits} splits.")
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    bounds = np.arange(splits + 1) * len(logits) // splits
    scores = []
    for start, stop in itertools.pairwise(bounds):
        part = log_p[start:stop]
        highest = part.max(axis=0)
        log_q = highest + np.log(np.exp(part - highest).mean(axis=0))
        scores.append(np.exp((np.exp(part) * (part - log_q)).sum(axis=1).mean()))
    return np.array(scores)


def inception_score(
    logits: Float[np.ndarray, "N K"], splits: int = 10, *, seed: int = 0
) -> tuple[float, float]:
    """The Inception Score of a classifier's logits (Salimans et al. 2016, sec. 4).

    The examples are shuffled first: if samples were drawn class by class, a split would otherwise
    have only one class. `split_scores` does not shuffle.

    Args:
      logits: of the samples, before the softmax.
      splits: number of parts, each scored separately. A part's score is biased downwards, more so
        the fewer examples it has.
      seed: seeds the shuffle.

    Returns:
      The mean and the (population) standard deviation over the splits; between 1 and K.

    Raises:
      ValueError: fewer examples than splits, or logits that are not finite.
    """
    logits = np.asarray(logits)
    order = np.random.default_rng(seed).permutation(len(logits))
    scores = split_scores(logits[order], splits)
    return float(scores.mean()), float(scores.std())


class _Pairs:
    """Squared distances between the rows of x and of y: fast with a known error bound, or exact.

    `fast` computes |a|^2 + |b|^2 - 2 a.b in float64 after subtracting the mean of x. Its error is
    at most `slack`, a bound on all rounding errors. Comparisons closer than `slack` are settled by
    `exact`: the sum over features of (x - y)^2, each in float64. It has no cancellation and does
    not depend on how the rows are blocked, so equal distances compare equal.
    """

    def __init__(self, x: Rows, y: Others):
        self.x, self.y = x, y
        centre = x.mean(axis=0, dtype=np.float64)
        self.a, self.b = (x - centre, y - centre)
        self.norms_a, self.norms_b = (np.square(c).sum(axis=1) for c in (self.a, self.b))
        ids: dict[bytes, int] = {}
        self.ids_x, self.ids_y = (
            np.array([ids.setdefault(row.tobytes(), len(ids)) for row in rows]) for rows in (x, y)
        )

    def fast(self, rows: slice) -> tuple[Block, Block]:
        """The squared distances of `rows` of x to all of y, and bounds on their errors."""
        norms = self.norms_a[rows, None] + self.norms_b
        squared = norms - 2 * (self.a[rows] @ self.b.T)
        norms *= 2 * (self.x.shape[1] + 8) * np.finfo(np.float64).eps
        return squared, norms

    def exact(self, i: Int[np.ndarray, "P"], j: Int[np.ndarray, "P"]) -> Float[np.ndarray, "P"]:
        """The squared distances of the pairs (i, j); pairs of identical rows cost nothing."""
        squared = np.zeros(len(i))
        differ = np.nonzero(self.ids_x[i] != self.ids_y[j])[0]
        for block in _blocks(len(differ), self.x.shape[1]):
            pairs = differ[block]
            gap = self.x[i[pairs]].astype(np.float64) - self.y[j[pairs]]
            squared[pairs] = np.square(gap, out=gap).sum(axis=1)
        return squared

    def closer(
        self, rows: slice, squared: Block, slack: Block, radii: Float[np.ndarray, "..."]
    ) -> Bool[np.ndarray, "n M"]:
        """Whether each pair of `fast(rows)` is closer than `radii`, exactly."""
        gap = squared - radii
        mask = gap < 0
        i, j = np.nonzero(np.abs(gap) <= slack)
        mask[i, j] = self.exact(i + rows.start, j) < np.broadcast_to(radii, mask.shape)[i, j]
        return mask


def _radii(points: Rows, k: int) -> Float[np.ndarray, "N"]:
    """The squared distance of each point to its k-th nearest other point, exactly."""
    pairs = _Pairs(points, points)
    radii = np.empty(len(points))
    for rows in _blocks(len(points), len(points)):
        squared, slack = pairs.fast(rows)
        squared[np.arange(len(squared)), np.arange(rows.start, rows.stop)] = np.inf
        furthest = np.partition(squared + slack, k - 1, axis=1)[:, k - 1 : k]
        i, j = np.nonzero(squared - slack <= furthest)
        squared.fill(np.inf)
        squared[i, j] = pairs.exact(i + rows.start, j)
        radii[rows] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    return radii


def prdc(real: Rows, fake: Others, k: int = 5) -> dict[str, float]:
    """Precision and recall of the manifolds; density and coverage.

    A point's ball reaches to its k-th nearest other point of the same set. Precision: the share of
    fakes in the ball of some real; recall: the share of reals in the ball of some fake
    (Kynkäänniemi et al. 2019, eqs. 1 and 2). Density: the number of reals in whose ball a fake
    lies, over k, averaged over the fakes (it may exceed 1); coverage: the share of reals with a
    fake in their ball (Naeem et al. 2020, sec. 3). As in their code, a point exactly on the edge is
    outside, where Kynkäänniemi's eq. 1 says inside.

    The result is exact: it is that of squared distances computed as sums of squared differences in
    float64 (see `_Pairs`). Memory holds float64 copies of the features and blocks of at most
    `BLOCK` distances.

    Args:
      real: features of the data, more than k examples.
      fake: features of the samples, more than k examples.
      k: the neighbour that sets the radius; papers use 3 (Kynkäänniemi) and 5 (Naeem). Figures
        for different k, or different numbers of examples, are not comparable.

    Raises:
      ConfigError: k is below 1 or not below the number of examples.
      ValueError: other shapes, or values that are not finite.
    """
    real, fake = _pair(real, fake, names=("real", "fake"))
    if not 1 <= k < min(len(real), len(fake)):
        raise ConfigError(
            f"k={k} for precision and recall does not fit {len(real)} real and {len(fake)} "
            f"generated examples: expected 1 to {min(len(real), len(fake)) - 1}."
        )
    if real.dtype != fake.dtype:
        real, fake = real.astype(np.float64), fake.astype(np.float64)
    radii_real, radii_fake = _radii(real, k), _radii(fake, k)
    pairs = _Pairs(real, fake)
    near = np.zeros(len(fake), np.int64)  # reals in whose ball each fake lies
    covered = recalled = 0
    for rows in _blocks(len(real), len(fake)):
        squared, slack = pairs.fast(rows)
        inside = pairs.closer(rows, squared, slack, radii_real[rows, None])
        near += inside.sum(axis=0)
        covered += inside.any(axis=1).sum()
        recalled += pairs.closer(rows, squared, slack, radii_fake).any(axis=1).sum()
    return {
        "precision": float((near > 0).mean()),
        "recall": float(recalled / len(real)),
        "density": float(near.mean() / k),
        "coverage": float(covered / len(real)),
    }
