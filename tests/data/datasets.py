"""What the tests of the catalogue's sources share."""

import numpy as np

from genjax import config


def dataset(**keys):
    """`config.dataset` with these keys set."""
    made = config.base().dataset
    for key, value in keys.items():
        made[key] = value
    return made


def arrays(source):
    """All examples of a source, stacked by feature."""
    examples = [source[i] for i in range(len(source))]
    return {key: np.stack([e[key] for e in examples]) for key in examples[0]}
