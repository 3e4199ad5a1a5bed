"""--mode=config says what the config is and where its values come from, with no data or device."""

import pytest
from command_line import DDPM


@pytest.fixture
def bare(tmp_path):
    """An environment without a device and without data."""
    return {"JAX_PLATFORMS": "nothing", "GENJAX_DATA": str(tmp_path / "nothing")}


def read(out):
    """Dotted key -> (value, source)."""
    split = [line.partition(" = ") for line in out.splitlines()]
    return {key: tuple(map(str.strip, rest.rsplit("  # ", 1))) for key, _, rest in split}


def test_a_file_with_preset_and_flags(cli, bare):
    arguments = ("--mode=config", f"--config={DDPM}:tiny", "--config.optimizer.b1=0.8")
    found = read(cli.run(*arguments, environment=bare)[0])
    assert found["optimizer.b1"] == ("0.8", "flag")
    assert found["method"] == ("'diffusion'", DDPM)
    assert found["dataset.name"] == ("'digits'", "preset tiny")
    assert found["optimizer.b2"] == ("0.999", "base")
    assert not list(cli.cwd.iterdir())  # it makes no folder


def test_a_run(cli, bare, finished_run):
    arguments = ("--mode=config", f"--workdir={finished_run}", "--config.evals.samples=9")
    found = read(cli.run(*arguments, environment=bare)[0])
    assert found["evals.samples"] == ("9", "flag")
    assert found["method"] == ("'diffusion'", "the run's config.json")
    assert found["duration"] == ("'12_steps'", "the run's config.json")
    # Of a config file it is that file that is asked, whatever the folder holds.
    again = ("--mode=config", f"--workdir={finished_run}", f"--config={DDPM}")
    assert read(cli.run(*again, environment=bare)[0])["method"] == ("'diffusion'", DDPM)
