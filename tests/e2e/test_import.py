"""Weights of others from the command line: into a run, sampled from, trained on, and back."""

import json
import shutil

import jax
import numpy as np
import pytest
from command_line import ROOT

from genjax.data.alphabets import Bytes
from genjax.interop import bert, huggingface
from genjax.main import main
from genjax.networks import decoder, encoder
from genjax.nn.functional import functional

IMPORT = f"--config={ROOT / 'configs' / 'import_lm.py'}"
OPTIONS = {"width": 16, "depth": 1, "heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of Hugging Face with a very small GPT-2 over bytes; to be read only."""
    folder = tmp_path_factory.mktemp("weights")
    net = functional(lambda rngs: decoder.Network(257, 32, **OPTIONS, rngs=rngs))
    params, _ = net.init(jax.random.key(0))
    ids = {"start": 256, "eos": 256}
    huggingface.write(folder, OPTIONS, 257, 32, params, Bytes({"eos": 256}).to_json(), ids)
    return folder


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """The workdir of the import; to be read only."""
    workdir = tmp_path_factory.mktemp("imported") / "run"
    assert main([IMPORT, f"--config.weights={folder}", f"--workdir={workdir}"]) == 0
    return workdir


def test_an_import_comes_out_as_it_went_in(folder, run, tmp_path, capsys):
    target = tmp_path / "back"
    assert main([f"--workdir={run}", "--mode=export", f"--output={target}"]) == 0
    before, after = huggingface.read(folder), huggingface.read(target)
    assert (before.vocabulary_size, before.length) == (after.vocabulary_size, after.length)
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    assert json.loads((target / "tokenizer.json").read_text())["kind"] == "bytes"
    assert main([f"--workdir={run}", "--mode=export", f"--output={target}"]) == 1
    assert "not empty" in capsys.readouterr().err


def test_an_import_is_sampled_from_and_trained_on(folder, run, tmp_path, capsys):
    prompt = ("--mode=sample", "--prompt=ab", "--num=1", "--max_new_tokens=4")
    assert main([f"--workdir={run}", *prompt]) == 0
    assert "ab" in capsys.readouterr().out
    (tmp_path / "words.txt").write_text("the quick brown fox. " * 50)
    weights = tmp_path / "weights"
    shutil.copytree(folder, weights)
    arguments = [
        *(IMPORT, f"--config.weights={weights}", f"--workdir={tmp_path / 'tuned'}"),
        *("--config.dataset.name=text", f"--config.dataset.path={tmp_path / 'words.txt'}"),
        *("--config.dataset.text.length=16", "--config.duration=2_steps"),
        *("--config.dataset.validation=20_percent", "--config.evals.samples=0"),
    ]
    assert main(arguments) == 0
    assert "finished at step 2 of 2" in capsys.readouterr().err
    stored = json.loads((tmp_path / "tuned" / "config.json").read_text())["config"]
    assert stored["model"]["length"] == 32  # all positions are kept, though trained on 16
    shutil.rmtree(weights)  # the run has all that it needs
    assert main([f"--workdir={tmp_path / 'tuned'}", "--config.duration=3_steps"]) == 0
    assert "finished at step 3 of 3" in capsys.readouterr().err
    assert main([f"--workdir={tmp_path / 'tuned'}", "--mode=eval"]) == 0
    assert "eval/loss " in capsys.readouterr().out


def test_averages_begin_with_the_weights(folder, tmp_path):
    averaged = f"--workdir={tmp_path / 'run'}"
    assert main([IMPORT, f"--config.weights={folder}", "--config.ema.decay=0.9", averaged]) == 0
    assert main([averaged, "--mode=export", f"--output={tmp_path / 'back'}"]) == 0
    found, given = (huggingface.read(place).params for place in (tmp_path / "back", folder))
    jax.tree.map(np.testing.assert_array_equal, found, given)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "config.weights is empty"),
        (["--config.weights=nowhere"], "nowhere"),
    ],
)
def test_no_weights(arguments, expected, tmp_path, capsys):
    assert main([IMPORT, *arguments, f"--workdir={tmp_path / 'run'}"]) == 1
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("length", 64, "lm/positions: (32, 16) -> (64, 16)"),
        ("vocabulary_size", 300, "embedding: (257, 16) -> (300, 16)"),
    ],
)
def test_a_network_of_other_sizes_is_refused(folder, key, value, expected, tmp_path, capsys):
    asked = [IMPORT, f"--config.weights={folder}", f"--config.model.{key}={value}"]
    assert main([*asked, f"--workdir={tmp_path / 'run'}"]) == 1
    message = capsys.readouterr().err
    assert expected in message
    assert "model.length" in message
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_an_image_model_is_not_exported(finished_run, tmp_path, capsys):
    assert main([f"--workdir={finished_run}", "--mode=export", f"--output={tmp_path}"]) == 1
    assert "language models" in capsys.readouterr().err


def test_an_encoder_comes_out_as_it_went_in_and_fills_gaps(tmp_path, capsys):
    options = OPTIONS | {"token_types": 2}
    net = functional(lambda rngs: encoder.Network(258, 32, **options, rngs=rngs))
    params, _ = net.init(jax.random.key(0))
    folder, run, target = (tmp_path / name for name in ("weights", "run", "back"))
    bert.write(folder, options, 258, 32, params, Bytes({"eos": 256}).to_json(), {"mask": 257})
    config = f"--config={ROOT / 'configs' / 'import_bert.py'}"
    assert main([config, f"--config.weights={folder}", f"--workdir={run}"]) == 0
    assert main([f"--workdir={run}", "--mode=export", f"--output={target}"]) == 0
    before, after = bert.read(folder), bert.read(target)
    assert before[:3] == after[:3]
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    capsys.readouterr()
    assert main([f"--workdir={run}", "--mode=sample", "--prompt=ab[MASK 2]ef", "--steps=2"]) == 0
    text = capsys.readouterr().out.split("tokens =====\n")[1]
    assert text.startswith("ab")
    assert "ef" in text
