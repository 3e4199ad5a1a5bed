"""Single files downloaded from their official addresses, checked by hash and cached."""

from __future__ import annotations

import hashlib
import http.client
import logging
import urllib.request
from pathlib import Path
from typing import NamedTuple

from genjax.bars import read_all
from genjax.config import ConfigError
from genjax.data import packages
from genjax.files import write_atomic

log = logging.getLogger(__name__)

DOWNLOAD_SECONDS = 60  # the longest wait without data from the host


class Download(NamedTuple):
    """A file at an address.

    Attributes:
      url: the address.
      sha256: the sha256 of its bytes.
    """

    url: str
    sha256: str


def fetch(wanted: Download) -> Path:
    """The file, from the cache or downloaded.

    Raises:
      ConfigError: the address cannot be reached, or sends a different file.
    """
    path = (
        packages.cache_root()
        / "downloads"
        / f"{wanted.sha256[:16]}-{wanted.url.rpartition('/')[2]}"
    )
    with packages.lock(f"download-{path.name}"):
        if path.is_file() and packages.sha256(path) == wanted.sha256:
            return path
        if path.is_file():
            log.warning("%s is damaged and will be downloaded again", path)
        log.info("downloading %s", wanted.url)
        try:
            with urllib.request.urlopen(wanted.url, timeout=DOWNLOAD_SECONDS) as answer:
                content = read_all(answer, f"downloading {wanted.url}")
        except (OSError, http.client.HTTPException) as error:
            raise ConfigError(
                f"{wanted.url} cannot be downloaded: {error}. Connect to a network, or download it "
                "elsewhere and give the file as dataset.path."
            ) from error
        digest = hashlib.sha256(content).hexdigest()
        if digest != wanted.sha256:
            raise ConfigError(
                f"{wanted.url} sent {len(content)} bytes whose sha256 is {digest}, expected "
                f"{wanted.sha256}. Try again, or download it elsewhere and give the file as "
                "dataset.path."
            )
        write_atomic(path, content)
    return path


def check(wanted: Download, path: Path, name: str) -> None:
    """Raises ConfigError unless `path` is a copy of the file, which is the data set `name`."""
    if not path.is_file():
        raise ConfigError(f"dataset.path={str(path)!r}: no such file. Give a copy of {wanted.url}.")
    if (digest := packages.sha256(path)) != wanted.sha256:
        raise ConfigError(
            f"dataset.path={str(path)!r}: its sha256 is {digest}, expected that of {name}, "
            f"{wanted.sha256}. Give a copy of {wanted.url}. For data of your own, use "
            "dataset.name='text' (or 'rolls' for piano rolls)."
        )
