# @title Setup: installs genjax and says what this runtime has {display-mode: "form"}
# @markdown Where genjax comes from: a git address, with `@BRANCH` if you like, or a folder.
# @markdown Leave it empty for the one that this notebook belongs to.
source = ""  # @param {type: "string"}

import importlib.metadata as installed
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = "{repository}"  # of this notebook; launch/colab/build.py sets it
LEAST_JAX = (0, 7, 2)  # that genjax runs on, as setup.py says
LOADED = ("numpy", "ml_dtypes", "jax", "jaxlib", "flax")  # what cannot change while it is in use


def stop(message):
    """Ends the cell with one message."""
    raise SystemExit(message)


def there(source):
    """Whether genjax is installed from `source` already."""
    found = importlib.util.find_spec("genjax")
    if found is None or found.origin is None:
        return False
    if Path(source).is_dir():
        return Path(source).resolve() in Path(found.origin).resolve().parents
    try:
        said = installed.distribution("genjax-models").read_text("direct_url.json") or "{}"
    except installed.PackageNotFoundError:
        return False
    origin, (address, _, branch) = json.loads(said), source.partition("@")
    wanted = origin.get("vcs_info", {}).get("requested_revision", "")
    return (origin.get("url"), wanted) == (address, branch)


def install(source):
    """Installs genjax. The runtime's own jax, made for its devices, stays if it is new enough."""
    address = Path(source).resolve().as_uri() if Path(source).is_dir() else f"git+{source}"
    jax = installed.version("jax") if importlib.util.find_spec("jax") else "0"
    fits = tuple(map(int, re.findall("[0-9]+", jax)[:3])) >= LEAST_JAX
    gpu, tpu = shutil.which("nvidia-smi"), importlib.util.find_spec("libtpu")
    device = "cpu" if fits or not (gpu or tpu) else "cuda12" if gpu else "tpu"
    packages = [f"genjax-models[text,{device}] @ {address}", *([f"jax=={jax}"] if fits else [])]
    print("installing genjax from", source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", *packages]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        stop(f"genjax could not be installed from {source!r}. pip said:\n{done.stdout[-2000:]}")


if sys.version_info < (3, 11):
    stop(
        "genjax needs Python 3.11 or newer, and this runtime has "
        f"{sys.version.split()[0]}. In Colab choose Runtime > Change runtime type > the latest "
        "version; in Jupyter a kernel of a newer Python."
    )
source = source or os.environ.get("GENJAX_SOURCE", "")
if not source and importlib.util.find_spec("genjax") is None:
    source = REPOSITORY or stop(
        "This notebook does not know where genjax is. Write its git address into `source` at the "
        "top of this cell, such as https://github.com/OWNER/genjax, or the folder of a clone. The "
        "environment variable GENJAX_SOURCE does the same."
    )
if source and not there(source):
    install(source)
    importlib.invalidate_caches()
old = [
    f"{name} {sys.modules[name].__version__} -> {installed.version(name)}"
    for name in LOADED
    if name in sys.modules and sys.modules[name].__version__ != installed.version(name)
]
if old:
    stop(
        f"Restart the runtime, then run this cell again: {', '.join(old)}. In Colab choose "
        "Runtime > Restart session; in Jupyter Kernel > Restart."
    )

import jax

import genjax

print("Python", sys.version.split()[0], *(f"{n} {installed.version(n)}" for n in LOADED), sep=", ")
print(f"devices: {jax.devices()}; genjax from {Path(genjax.__file__).parent}")
if shutil.which("nvidia-smi") and jax.default_backend() == "cpu":
    print("There is a GPU that JAX does not use: pip install 'jax[cuda12]', then restart.")


def download(path):
    """Packs a folder, and sends the file to your browser in Colab; elsewhere says where it is."""
    path = Path(path)
    file = Path(shutil.make_archive(path.name, "zip", path)) if path.is_dir() else path
    if "google.colab" in sys.modules:
        from google.colab import files

        files.download(str(file))
    else:
        print(f"wrote {file.resolve()}, {file.stat().st_size / 1e6:.1f} MB")
