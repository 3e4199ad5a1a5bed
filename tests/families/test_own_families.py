"""Families that stand outside the package, each in one file, through the command line."""

import json
import re
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import genjax
from genjax import main

HERE = Path(__file__).parent
VQVAE = HERE.parents[1] / "configs" / "vqvae.py"


def metrics(workdir, name):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row[name] for line in lines if name in (row := json.loads(line))]


def refused(capsys, *arguments):
    """The one error that a command ends with."""
    assert main.main([str(a) for a in arguments]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


def test_no_file_of_the_package_knows_them():
    package = Path(genjax.__file__).parent
    text = "".join(path.read_text() for path in package.rglob("*.py"))
    assert not re.search(r"toy_(audio|inpainting|text_to_image)", text)


def test_sound_has_a_modality_data_a_model_and_a_judge(tmp_path, capsys):
    run = tmp_path / "run"
    assert main.main([f"--config={HERE / 'toy_audio.py'}", f"--workdir={run}"]) == 0
    assert metrics(run, "eval/pitch_accuracy")[-1] == 1.0
    assert metrics(run, "eval/reference_accuracy")[-1] == 1.0
    with wave.open(str(run / "samples" / "step_00000040.wav")) as file:
        assert (file.getframerate(), file.getnframes()) == (8000, 3 * 256)
    page = (run / "report.html").read_text()
    assert '<audio controls src="data:audio/wav' in page
    assert "low, middle, high" in page
    capsys.readouterr()
    # From the folder alone: the module beside the config is found again.
    assert main.main([f"--workdir={run}", "--mode=sample", "--label=high", "--volume=0.5"]) == 0
    (sound,) = (run / "generated").glob("*.wav")
    assert str(sound) in capsys.readouterr().out
    samples = np.load(sound.with_suffix(".npz"))["samples"]
    assert samples.shape == (3, 256)
    assert np.abs(np.fft.rfft(samples)).argmax(-1).tolist() == [64] * 3  # 2,000 of 8,000 Hz
    assert abs(samples).max() < 0.3
    assert "expected a class from 0 to 2, or a name" in refused(
        capsys, f"--workdir={run}", "--mode=sample", "--label=higher"
    )
    assert "Nearest" in refused(capsys, f"--workdir={run}", "--mode=sample", "--pitch=3")
    rows = tmp_path / "rows.csv"
    rows.write_text("label\nlow\n2\n")
    assert main.main([f"--workdir={run}", "--mode=sample", f"--conditions={rows}"]) == 0
    drawn = np.load(run / "generated" / "step_00000040_seed_0_rows.npz")["samples"]
    assert np.abs(np.fft.rfft(drawn)).argmax(-1).tolist() == [16, 64]
    assert "has 2 rows" in refused(
        capsys, f"--workdir={run}", "--mode=sample", f"--conditions={rows}", "--num=3"
    )


def test_an_image_and_a_mask_become_an_image(tmp_path, capsys):
    import toy_inpainting  # beside this file

    run = tmp_path / "run"
    np.savez(tmp_path / "data.npz", **toy_inpainting.pictures(64))
    config = f"--config={HERE / 'toy_inpainting.py'}"
    data = f"--config.dataset.path={tmp_path / 'data.npz'}"
    assert main.main([config, data, f"--workdir={run}"]) == 0
    assert metrics(run, "eval/hidden_mse")[-1] < 0.01
    image = np.full((8, 8), 100, np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    given = [f"--image={tmp_path / 'a.png'}", f"--mask={tmp_path / 'm.png'}"]
    assert main.main([f"--workdir={run}", "--mode=sample", *given, "--num=2"]) == 0
    (file,) = (run / "generated").glob("*.npz")
    samples = np.load(file)["samples"]
    assert samples.shape == (2, 8, 8, 1)
    assert (samples[:, mask == 0] == 100).all()
    np.testing.assert_allclose(samples[:, 2:6, 2:6, 0], 200, atol=8)
    np.testing.assert_allclose(samples[:, 2:6, :2, 0], 40, atol=8)
    assert "--mask is missing" in refused(capsys, f"--workdir={run}", "--mode=sample", given[0])
    assert "expected the file of a picture" in refused(
        capsys, f"--workdir={run}", "--mode=sample", "--image=nowhere.png", given[1]
    )
    assert main.main([f"--workdir={run}", "--mode=sample", "--conditions=test", "--num=4"]) == 0
    np.savez(tmp_path / "data.npz", **toy_inpainting.pictures(32))
    for mode in (["--mode=eval"], ["--mode=sample", "--conditions=test"]):
        assert main.main([f"--workdir={run}", *mode]) == 1
        assert "the data are not what they were" in capsys.readouterr().err


def test_a_text_becomes_an_image_through_two_frozen_stages(tmp_path, capsys):
    run = tmp_path / "run"
    stages = [f"--config.stages.autoencoder={VQVAE}:tiny"]
    arguments = [f"--config={HERE / 'toy_text_to_image.py'}", *stages, f"--workdir={run}"]
    assert main.main(arguments) == 0
    for stage in ("autoencoder", "text"):
        assert (run / "stages" / stage / "report.html").is_file()
    page = (run / "report.html").read_text()
    assert 'href="stages/text/report.html"' in page
    assert metrics(run, "eval/nll")[-1] < 0.01  # of 16 tokens, in nats
    assert "a bright square" in next((run / "samples").glob("conditions_*.txt")).read_text()
    capsys.readouterr()
    shades = {}
    for word in ("dark", "bright"):
        asked = [f"--prompt=a {word} square", "--num=8"]
        assert main.main([f"--workdir={run}", "--mode=sample", *asked]) == 0
        (file,) = (run / "generated").glob(f"*{word}*.npz")
        samples = np.load(file)["samples"]
        assert samples.shape == (8, 8, 8, 1)
        shades[word] = samples.mean()
    assert shades["dark"] < 90
    assert shades["bright"] > 165
    assert "--prompt is missing" in refused(capsys, f"--workdir={run}", "--mode=sample")
    long = "--prompt=" + 30 * "a"
    assert "expected at most 24" in refused(capsys, f"--workdir={run}", "--mode=sample", long)
    # A run that has begun holds its stages: nothing is trained again.
    marker = (run / "stages" / "text" / "metrics.jsonl").stat().st_mtime_ns
    assert main.main([*arguments, "--config.duration=90_steps"]) == 0
    assert (run / "stages" / "text" / "metrics.jsonl").stat().st_mtime_ns == marker


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--config.method=toy_adio", "no module 'toy_adio'. Nearest"),
        ("--config.evals.judges=toy_judge", "config.evals.judges='toy_judge': no module"),
        ("--config.evals.judges=diversity", "diversity judges texts"),
        ("--config.dataset.name=json", "no such data set"),
        ("--config.evals.toy_audio.generate=3", "no such key. Nearest: evals.toy_audio.generated"),
    ],
)
def test_what_there_is_not_is_named(argument, says, tmp_path, capsys):
    config = f"--config={HERE / 'toy_audio.py'}"
    assert says in refused(capsys, config, argument, f"--workdir={tmp_path / 'run'}")
