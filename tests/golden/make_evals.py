"""Runs torch-fidelity, scipy and prdc on stored features and writes `evals.npz`.

    /path/to/parity/bin/python tests/golden/make_evals.py [OUTPUT.npz]

The features are stored as float32 and used as float64 on both sides. Where the peers' own formula
loses digits (the square root of a product of rank-deficient covariances), mpmath gives the answer
to 50 digits besides: `fd/*/exact`. torch-fidelity draws its subsets and its shuffle from
`RandomState(seed)`; the draws are stored, so that ours can be given the same.
"""

from __future__ import annotations

import pathlib
import sys
from importlib import metadata

import mpmath
import numpy as np
import scipy.linalg
import torch
from prdc import compute_prdc

try:
    import torchvision  # noqa: F401  # torch-fidelity imports it; the metrics do not use it
except RuntimeError:
    # One built for GPUs cannot load its operators next to a torch for CPUs, and asks for two.
    OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
    OPERATORS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    OPERATORS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torch_fidelity import metric_fid, metric_isc, metric_kid

SEED = 2020
PEERS = ("torch-fidelity", "prdc", "scipy", "mpmath", "torch", "numpy")


def features(rng, count, dim, shift=0.0, scale=1.0):
    """Skewed, correlated, non-negative features, as a network's last ReLU gives them."""
    mix = np.random.default_rng(dim).standard_normal((dim, dim)) / np.sqrt(dim)
    values = np.maximum(rng.standard_normal((count, dim)) @ mix * scale + 0.3 + shift, 0.0)
    return values.astype(np.float32)


def exact_gaussian(x):
    """The mean and covariance of features as mpmath matrices."""
    values = mpmath.matrix(x.astype(np.float64).tolist())
    mean = [mpmath.fsum(values[:, j]) / values.rows for j in range(values.cols)]
    centred = values - mpmath.ones(values.rows, 1) * mpmath.matrix(mean).T
    return mpmath.matrix(mean), centred.T * centred / (values.rows - 1)


def exact_frechet(x, y):
    """The distance with 50 digits, which leaves 25 of the square root of a zero eigenvalue."""
    mpmath.mp.dps = 50
    (m1, c1), (m2, c2) = exact_gaussian(x), exact_gaussian(y)
    values, vectors = mpmath.eigsy(c1)
    root = vectors * mpmath.diag([mpmath.sqrt(max(v, 0)) for v in values]) * vectors.T
    values = mpmath.eigsy(root * c2 * root, eigvals_only=True)
    trace = mpmath.fsum(mpmath.sqrt(max(v, 0)) for v in values)
    traces = mpmath.fsum(c[i, i] for c in (c1, c2) for i in range(c.rows))
    return float(mpmath.fsum(v * v for v in m1 - m2) + traces - 2 * trace)


def frechet(x, y):
    """{peer: distance} of the Gaussians of two sets of features."""
    stats = [metric_fid.fid_features_to_statistics(torch.tensor(a).double()) for a in (x, y)]
    (m1, c1), (m2, c2) = ((s["mu"], s["sigma"]) for s in stats)
    root = scipy.linalg.sqrtm(c1 @ c2)
    found = metric_fid.fid_statistics_to_metric(*stats, False)
    return {
        "scipy": np.square(m1 - m2).sum() + np.trace(c1) + np.trace(c2) - 2 * np.trace(root).real,
        "torch_fidelity": found[metric_fid.KEY_METRIC_FID],
        "exact": exact_frechet(x, y),
    }


def kernel(x, y, subsets, size):
    """torch-fidelity's KID, its draws, and its estimate from all of x and y."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    options = {"kid_subsets": subsets, "kid_subset_size": size, "rng_seed": SEED, "verbose": False}
    found = metric_kid.kid_features_to_metric(torch.tensor(x), torch.tensor(y), **options)
    rng = np.random.RandomState(SEED)
    rows = [[rng.choice(len(a), size, replace=False) for a in (x, y)] for _ in range(subsets)]
    least = min(len(x), len(y))
    return {
        "mean": found[metric_kid.KEY_METRIC_KID_MEAN],
        "std": found[metric_kid.KEY_METRIC_KID_STD],
        "rows": np.array(rows, np.int16),
        "all": metric_kid.kernel_mmd(x[:least], y[:least]),
    }


def main(path: pathlib.Path) -> None:
    """Writes every case to `path`."""
    rng = np.random.default_rng(0)
    arrays = {"peer": ", ".join(f"{name} {metadata.version(name)}" for name in PEERS)}
    x, y = features(rng, 150, 16), features(rng, 120, 16, shift=0.1, scale=1.2)
    few = features(rng, 9, 16), features(rng, 12, 16, shift=0.2)
    mixed = few[0], y
    arrays |= {"x": x, "y": y, "few/0": few[0], "few/1": few[1]}
    for case, pair in {"full": (x, y), "near": (x, x[:140]), "few": few, "mixed": mixed}.items():
        arrays |= {f"fd/{case}/{peer}": v for peer, v in frechet(*pair).items()}
    arrays |= {f"kid/{name}": v for name, v in kernel(x, y, 20, 50).items()}
    logits = (3 * rng.standard_normal((203, 7))).astype(np.float32)
    arrays["logits"] = logits
    arrays["isc/order"] = np.random.RandomState(SEED).permutation(len(logits)).astype(np.int16)
    for splits in (1, 10):
        found = metric_isc.isc_features_to_metric(torch.tensor(logits), splits, True, SEED)
        arrays[f"isc/{splits}"] = np.array(
            [found[metric_isc.KEY_METRIC_ISC_MEAN], found[metric_isc.KEY_METRIC_ISC_STD]]
        )
    for k in (1, 3, 5):
        found = compute_prdc(x.astype(np.float64), y.astype(np.float64), k)
        arrays |= {f"prdc/{k}/{name}": value for name, value in found.items()}
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    here = pathlib.Path(__file__)
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here.with_name("evals.npz"))
