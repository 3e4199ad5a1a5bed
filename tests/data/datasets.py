"""What the tests of the catalogue's sources share."""

import numpy as np

from genjax import config


def dataset(**keys):
    """`config.dataset` with these keys set."""
    changed = {f"dataset.{key}": value for key, value in keys.items()}
    return config.override(config.base(), changed).dataset


def arrays(source):
    """All examples of a source, stacked by field."""
    examples = [source[i] for i in range(len(source))]
    return {key: np.stack([e[key] for e in examples]) for key in examples[0]}
