"""Writes state dicts with torch in both of its formats, and `torch_file.npz` of the files' bytes.

/path/to/parity/bin/python tests/golden/make_torch_file.py [OUTPUT.npz]
"""

from __future__ import annotations

import io
import pathlib
import re
import sys
from collections import OrderedDict

import numpy as np
import torch


def state() -> OrderedDict:
    """Tensors of every type that is read, views, shared storages and a scalar."""
    torch.manual_seed(0)
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    whole = OrderedDict(
        plain=base,
        transposed=base.T,
        part=base[1:3, ::2],
        scalar=torch.tensor(7),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.randn(2, 2)),
        bfloat16=torch.randn(3).bfloat16(),
        bool=torch.tensor([True, False]),
    )
    for dtype in ("float64", "float16", "int64", "int32", "int16", "int8", "uint8"):
        whole[dtype] = torch.tensor([1, 2, 100]).to(getattr(torch, dtype))
    return whole


def saved(content: object, new: bool) -> np.ndarray:
    """The bytes that torch.save writes.

    The old format names storages by their addresses in memory and sorts them by these: here they
    stay in order, and are numbered, so that every run writes the same.
    """
    torch.serialization.sorted = list
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=new)
    written = buffer.getvalue()
    if not new:
        addresses = dict.fromkeys(re.findall(rb"\d{12,}", written))
        for number, address in enumerate(addresses):
            written = written.replace(address, b"%0*d" % (len(address), number))
    return np.frombuffer(written, np.uint8)


def main(path: pathlib.Path) -> None:
    """Writes the files' bytes and what is in them to `path`."""
    tensors = state()
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    arrays = {"peer": f"torch {torch.__version__}"}
    for name, new in (("zip", True), ("stream", False)):
        arrays[f"file/tensors/{name}"] = saved(tensors, new)
        arrays[f"file/module/{name}"] = saved(module.state_dict(), new)
        arrays[f"file/whole_module/{name}"] = saved(module, new)
        arrays[f"file/nested/{name}"] = saved({"state_dict": tensors, "epoch": 3}, new)
    for group, content in (("tensors", tensors), ("module", module.state_dict())):
        for name, value in content.items():
            wide = value.detach().float() if value.dtype == torch.bfloat16 else value.detach()
            arrays[f"{group}/{name}"] = wide.numpy()
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    here = pathlib.Path(__file__)
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here.with_name("torch_file.npz"))
