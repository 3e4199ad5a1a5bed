"""What data look like without them is what they look like with them."""

from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from genjax import config as configs
from genjax.checks import ConfigError
from genjax.data import catalogue
from genjax.planning import described

CONFIGS = Path(__file__).parents[2] / "configs"
WORDS = "the quick brown fox jumps over the lazy dog and back again\n" * 400


def dataset(path, **text):
    section = configs.base().dataset
    section.name, section.path, section.validation = "text", str(path), "10_percent"
    for key, value in text.items():
        section.text[key] = value
    return section


@pytest.mark.parametrize(
    "text",
    [
        {"tokenizer": "bytes", "length": 16},
        {"tokenizer": "bytes", "length": 16, "documents": "packed"},
        {"tokenizer": "bpe", "vocabulary_size": 300, "length": 8},
        {"tokenizer": "characters", "length": 8},
    ],
)
def test_texts(tmp_path, monkeypatch, text):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))
    for part in range(3):
        (tmp_path / f"{part}.txt").write_text(WORDS)
    section = dataset(tmp_path, **text)
    real, said = catalogue.load(section).spec, described.spec(section)
    assert said.target == real.target
    assert said.fields.keys() == real.fields.keys()
    for name, field in real.fields.items():
        assert (said.fields[name].kind, said.fields[name].shape) == (field.kind, field.shape)
        assert said.fields[name].dtype == field.dtype
    known, asked = (s.generated.facts["vocabulary_size"] for s in (real, said))
    assert asked == text.get("vocabulary_size", known)


def test_texts_need_no_data(tmp_path):
    section = dataset(tmp_path / "nothing", tokenizer="gpt2", length=1024)
    token = described.spec(section).fields["token"]
    assert (token.shape, token.facts["vocabulary_size"]) == ((1025,), 50_257)


def test_an_impossible_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least 300"):
        described.spec(dataset(tmp_path, tokenizer="bpe", vocabulary_size=3))


def test_a_run_with_a_stage_that_is_not_trained(tmp_path):
    config = configs.load(str(CONFIGS / "latent.py:tiny"))
    assert config.stages

    def load(name):
        own = configs.load(str(CONFIGS / config.stages[name]))
        own.dataset = config.dataset.copy_and_resolve_references()
        own.dataset.codes = ""
        return own

    run = described.run(config, jax.devices()[:2], epath.Path(tmp_path), None, load)
    assert run.spec.target == "code"
    assert all(leaf.shape[0] == run.examples_per_step for leaf in run.batch.values())
    assert set(config.stages) < set(run.state.params)
    assert np.prod(run.mesh.devices.shape) == 2
