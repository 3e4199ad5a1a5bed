"""The notebooks are what their sources say, and run from their first cell to their last."""

import os
import re
import subprocess
import sys
import zipfile

import nbclient
import nbformat
import numpy as np
import pytest
from command_line import FAST, ONE_DEVICE, ROOT
from PIL import Image

from genjax.config import read_module

FOLDER = ROOT / "launch" / "colab"
BUILD = read_module(FOLDER / "build.py")
DDPM = dict(flag.removeprefix("--config.").split("=", 1) for flag in FAST)
DDPM["diffusion.num_timesteps"] = "0"  # as the default has it
SHORT = {"evals.limit": 16, "evals.batch_size": 16, "evals.samples": 4, "batch_size": 8}
SMALL_CODER = {"channels": 8, "halvings": 1, "blocks": 1}
# What each notebook is run with, in place of what its form says.
TINY = {
    "quickstart": {"dataset": "digits", "duration": "12_steps", "overrides": DDPM},
    "your_pictures": {
        "pictures": "pictures.zip",
        "size": 16,
        "durations": dict.fromkeys(("gan", "diffusion"), "4_steps"),
        "overrides": {
            "gan": SHORT
            | {f"model.{player}.channels": (4, 8) for player in ("generator", "discriminator")},
            "diffusion": {k: v for k, v in DDPM.items() if "every" not in k and k != "duration"}
            | {"schedule.warmup": "1_steps", "precision": "float32"},
        },
    },
    "language": {
        "text": str(ROOT / "README.md"),
        "prompt": "genjax ",
        "weights": "runs/language/huggingface",  # what the notebook itself has written before
        "overrides": SHORT
        | {"duration": "10_steps", "schedule.warmup": "2_steps"}
        | {"model.lm.width": 16, "model.lm.depth": 1, "model.lm.heads": 2},
    },
    "new_family": {
        "depth": 2,
        "duration": "20_steps",
        "overrides": SHORT | {"realnvp.width": 16},
    },
    "latents": {
        "dataset": "digits",
        "durations": dict.fromkeys(("vae", "vqvae", "vqvae_prior"), "4_steps"),
        "overrides": {
            "vae": SHORT
            | {"steps_per_dispatch": 1}
            | {f"model.{half}.widths": (16,) for half in ("encoder", "decoder")},
            "vqvae": SHORT
            | {"vqvae.codes": 16, "vqvae.code_dim": 4}
            | {
                f"model.{half}.{key}": value
                for half in ("encoder", "decoder")
                for key, value in SMALL_CODER.items()
            },
            "vqvae_prior": SHORT | {"model.prior.width": 16, "model.prior.depth": 1},
        },
    },
}


def pictures(folder):
    """An archive of pictures of two classes, as a user has them: of several sizes and kinds."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        for i in range(40):
            file = folder / f"{i}.png"
            shape = (20 + i, 40 - i // 2, 3)
            Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(file)
            archive.write(file, f"pictures/{'cats' if i % 2 else 'dogs'}/{i}.png")


def run(name, folder):
    """The notebook, run in a kernel of its own with its working directory in `folder`."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (form,) = (
        i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())
    )
    given = "\n".join(f"{key} = {value!r}" for key, value in TINY[name].items())
    assert set(TINY[name]) <= {
        line.split(" = ")[0] for line in notebook.cells[form].source.split("\n")
    }
    notebook.cells.insert(form + 1, nbformat.v4.new_code_cell(given))
    environment = {
        **os.environ,
        "GENJAX_SOURCE": str(ROOT),
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": ONE_DEVICE,
    }
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute(env=environment)
    return notebook


def shown(notebook):
    """Everything that the cells have printed, and how many pictures and pages they have shown."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
    kinds = [kind for output in outputs for kind in output.get("data", ())]
    return text, kinds.count("image/png"), kinds.count("text/html")


@pytest.mark.parametrize("name", BUILD.NAMES)
def test_a_notebook_is_that_of_its_source(name):
    stored = (FOLDER / f"{name}.ipynb").read_text()
    assert stored == BUILD.notebook(name), "run python launch/colab/build.py"
    assert not [cell for cell in nbformat.reads(stored, 4).cells if cell.get("outputs")]


@pytest.mark.parametrize(
    ("name", "pages", "file"),
    [
        ("quickstart", 1, "quickstart.zip"),
        ("your_pictures", 2, "your_pictures.zip"),
        ("language", 1, "huggingface.zip"),
        ("new_family", 1, "new_family.zip"),
        ("latents", 3, "latents.zip"),
    ],
)
def test_a_notebook_runs_to_its_end(name, pages, file, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))  # no kernels of the user's
    pictures(tmp_path)
    text, images, reports = shown(run(name, tmp_path))
    assert f"genjax from {ROOT / 'genjax'}" in text
    assert f"wrote {tmp_path / file}, " in text
    assert zipfile.ZipFile(tmp_path / file).namelist()
    assert reports == pages
    assert name == "language" or images > 5


def test_badge_and_setup_have_the_repositorys_address():
    made = nbformat.reads(BUILD.notebook("latents", "https://github.com/some/one"), 4)
    colab = "https://colab.research.google.com/github/some/one/blob/main/launch/colab/latents.ipynb"
    assert f"({colab})" in made.cells[0].source
    (setup,) = (cell for cell in made.cells if "setup" in cell.metadata.get("tags", ()))
    assert 'REPOSITORY = "https://github.com/some/one"' in setup.source
    assert "`REPOSITORY` in `launch/colab/build.py`" in BUILD.badge("latents", "")


@pytest.mark.parametrize(
    ("before", "flags", "source", "expected"),
    [
        ("sys.version_info = (3, 10, 4)", ["-I", "-S"], "", "genjax needs Python 3.11 or newer"),
        ("", ["-I", "-S"], "", "does not know where genjax is. Write its git address into"),
        ("", ["-I", "-S"], "/nowhere/genjax", "could not be installed from '/nowhere/genjax'"),
        (
            "import jax; jax.__version__ = '0.1'",
            [],
            str(ROOT),
            "Restart the runtime, .* jax 0.1 ->",
        ),
    ],
)
def test_setup_refuses_what_it_cannot_use_in_one_message(before, flags, source, expected, tmp_path):
    (tmp_path / "setup.py").write_text(f"import sys\n{before}\n{BUILD.setup('')}")
    done = subprocess.run(
        [sys.executable, *flags, "setup.py"],
        env={**os.environ, "GENJAX_SOURCE": source, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(expected, done.stderr)
