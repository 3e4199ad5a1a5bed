"""What the metrics that compare generated images with real ones are called."""

METRICS = ("fd", "kid", "score", "precision", "recall", "density", "coverage", "diversity")
# What metrics on the features of Inception have always been called.
_INCEPTION_NAMES = {"fd": "fid", "kid": "kid", "score": "inception_score"}


def metric_name(metric: str, features: str) -> str:
    """What a metric of `METRICS` on these features is called; `kid_se` as `kid`, with its ending.

    `fid`, `kid` and `inception_score` are those on Inception and no others; everything else says
    what it is computed on: `fd_classifier`, `kid_efficientnet`, `precision_inception`.

    Raises:
      ValueError: there is no such metric.
    """
    base, mark, ending = metric.partition("_")
    if base not in METRICS:
        raise ValueError(f"metric {metric!r}: expected one of {', '.join(METRICS)}")
    own = f"{base}_{features.partition('_')[0]}"
    return (_INCEPTION_NAMES.get(base, own) if features == "inception" else own) + mark + ending
