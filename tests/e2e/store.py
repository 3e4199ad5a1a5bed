"""Object storage without a network: buckets are folders. As a program it runs genjax with it."""

import os
import sys

import fsspec
from etils import epath
from fsspec.implementations.local import LocalFileSystem

from genjax import files, main
from genjax.training import checkpoint, lease


class Store(LocalFileSystem):
    """Buckets as folders below `root`; nothing can be appended to."""

    protocol = ("gs", "gcs")
    root = ""

    @classmethod
    def _strip_protocol(cls, path):
        path = os.fspath(path)
        return f"{cls.root}/{path.removeprefix('gs://')}" if path.startswith("gs://") else path

    def _open(self, path, mode="rb", **options):
        assert "a" not in mode
        os.makedirs(os.path.dirname(path), exist_ok=True)  # there are no folders
        return super()._open(path, mode, **options)


def install(root, patch=setattr):
    """Makes gs:// the buckets below `root`, whose locks are of seconds; `patch` sets attributes."""
    patch(Store, "root", str(root))
    patch(lease, "BEAT", 0.2)
    patch(lease, "LEASE", 2.0)
    get_class = files.fsspec.get_filesystem_class
    patch(
        fsspec,
        "get_filesystem_class",
        lambda scheme: Store if scheme in Store.protocol else get_class(scheme),
    )
    for name in Store.protocol:
        fsspec.register_implementation(name, Store, clobber=True)
    # Orbax would go to the network.
    patch(checkpoint, "absolute", lambda path: epath.Path(Store._strip_protocol(path)))


if __name__ == "__main__":
    install(sys.argv[1])
    sys.exit(main.main(sys.argv[2:]))
