"""What the data of the methods' tests look like."""

import numpy as np

from genjax.data import sources
from genjax.method import DataSpec, Field


def images(shape, dtype=np.uint8, classes=0, train=0, name="toy"):
    """Images of `shape`, with labels of so many classes if there are any; vectors if it is [D]."""
    fields = sources.image_fields(shape, classes)
    vector = len(shape) == 1 and dtype == np.float32
    fields["image"] = Field("real" if vector else "image", tuple(shape), np.dtype(dtype))
    return DataSpec(name, fields, "image", {"train": train} if train else {})
