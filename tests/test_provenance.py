"""Where the values of a config come from: three files deep, a preset, `resolve`, flags, a run."""

import pytest

from genjax import config as configs
from genjax import provenance
from genjax.config import ConfigError

FIRST = """
from ml_collections import ConfigDict
from genjax import config

def get_config():
    c = config.base()
    c.method = "diffusion"
    c.batch_size = 8
    c.optimizer.learning_rate = 5e-3
    c.seed = 0  # as in the base
    with c.unlocked():
        c.model = ConfigDict({"channels": 8, "depth": 2, "heads": 0})
    return c
"""
NEXT = """
from pathlib import Path
from genjax import config

INNER = config.read_module(Path(__file__).with_name("{inner}.py"))
OTHER = config.read_module(Path(__file__).with_name("first.py"))  # whose get_config is not called

def get_config():
    c = INNER.get_config()
    {body}
    return c
"""
THIRD_ENDS = """
PRESETS = {"tiny": {"model.channels": 4, "precision": "float32"}}

def resolve(c):
    c.model.heads = c.model.heads or c.model.depth
    c.evals.samples = 64  # as it was
    return c
"""


@pytest.fixture
def location(tmp_path, monkeypatch):
    """third.py, which starts from second.py, which starts from first.py."""
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    write = {
        "first": FIRST,
        "second": NEXT.format(inner="first", body='c.batch_size = 16; c.duration = "2_epochs"'),
        "third": NEXT.format(
            inner="second", body="c.optimizer.learning_rate = 1e-3; c.batch_size = 8"
        )
        + THIRD_ENDS,
    }
    for name, text in write.items():
        (tmp_path / "configs" / f"{name}.py").write_text(text)
    return "configs/third.py"


def test_a_value_is_of_the_file_that_set_it_last(location):
    config, sources = provenance.of_file(location)
    assert config.to_dict() == configs.load(location).to_dict()
    assert list(sources) == list(configs.flatten(config))
    expected = {
        "method": "configs/first.py",
        "model.channels": "configs/first.py",
        "duration": "configs/second.py",
        "batch_size": "configs/third.py",  # 8, 16 and 8 again
        "optimizer.learning_rate": "configs/third.py",  # the base's value again
        "optimizer.b1": "base",
        "seed": "base",
        "model.heads": "resolve",
        "evals.samples": "base",
    }
    assert {key: sources[key] for key in expected} == expected


def test_presets_and_flags_are_said_even_where_they_change_nothing(location):
    overrides = {
        "model.channels": "2",
        "seed": "0",
        "optimizer.networks.net.b1": "0.5",
        "model.heads": "3",
    }
    _, sources = provenance.of_file(f"{location}:tiny")
    assert sources["model.channels"] == sources["precision"] == "preset tiny"
    config, sources = provenance.of_file(f"{location}:tiny", overrides)
    assert {sources[key] for key in overrides} == {"flag"}
    assert sources["precision"] == "preset tiny"
    assert config.to_dict() == configs.load(f"{location}:tiny", overrides).to_dict()


def test_a_file_outside_the_working_directory_has_its_whole_path(location, tmp_path, monkeypatch):
    assert provenance.of_file(f"{tmp_path}/{location}")[1]["method"] == "configs/first.py"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sources = provenance.of_file(f"../{location}")[1]
    assert sources["method"] == str(tmp_path.resolve() / "configs" / "first.py")


def test_a_runs_values_are_stored_or_flagged():
    config = configs.override(configs.base(), {"seed": "3"})
    sources = provenance.of_run(config, {"seed": "3"})
    assert sources.keys() == configs.flatten(config).keys()
    assert sources.pop("seed") == "flag"
    assert set(sources.values()) == {"the run's config.json"}


def test_a_line_has_key_value_and_source(location):
    found = provenance.lines(*provenance.of_file(f"{location}:tiny"))
    assert [" ".join(line.split()) for line in found if line.startswith("model.")] == [
        "model.channels = 4 # preset tiny",
        "model.depth = 2 # configs/first.py",
        "model.heads = 2 # resolve",
    ]


@pytest.mark.parametrize(("end", "message"), [(":none", "no preset"), ("x", "no file")])
def test_what_cannot_be_loaded_is_refused(location, end, message):
    with pytest.raises(ConfigError, match=message):
        provenance.of_file(location + end)
