"""Names of the metrics that compare generated images with real ones."""

METRICS = ("fd", "kid", "score", "precision", "recall", "density", "coverage", "diversity")
# The established names of metrics on Inception's features.
_INCEPTION_NAMES = {"fd": "fid", "kid": "kid", "score": "inception_score"}


def metric_name(metric: str, features: str) -> str:
    """The name of a metric of `METRICS` on these features; `kid_se` keeps its ending.

    `fid`, `kid` and `inception_score` are only used for Inception's features. All other names say
    which features they use: `fd_classifier`, `kid_efficientnet`, `precision_inception`.

    Raises:
      ValueError: the metric is unknown.
    """
    base, mark, ending = metric.partition("_")
    if base not in METRICS:
        raise ValueError(f"metric {metric!r}: expected one of {', '.join(METRICS)}")
    plain = f"{base}_{features.partition('_')[0]}"
    return (_INCEPTION_NAMES.get(base, plain) if features == "inception" else plain) + mark + ending
