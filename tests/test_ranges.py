"""Ranges are declared beside the options; whatever is given, there is one error or a right run.

The fuzz test draws keys and values of configs: of the wrong kind, and of extreme size. Every draw
either builds the method, without training it, or gives one `ConfigError`, in bounded memory and
time. GENJAX_FUZZ_SECONDS and GENJAX_FUZZ_SEED change how long it draws, and which.
"""

import os
import random
import resource
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import pytest
from ml_collections import ConfigDict
from test_configs import described

from genjax import config as configs
from genjax import main
from genjax.checks import ConfigError, Range, Rate, Width, check_options
from genjax.evals import judges
from genjax.training import memory
from genjax.training.assemble import assemble

FOLDER = Path(__file__).parent.parent / "configs"
SECONDS = float(os.environ.get("GENJAX_FUZZ_SECONDS", "10"))
MOST_SECONDS = 20  # of one draw, on a busy machine
MOST_BYTES = 1.5e9  # that all draws together add

# Small runs of each family, on data whose shape is known without them.
EXPERIMENTS = (
    *("ddpm.py:tiny", "consistency.py:tiny", "vae.py:tiny", "vqvae.py:tiny", "dcgan.py:tiny"),
    *("autoencoder_kl.py:tiny", "dit.py:tiny", "edm2.py:tiny", "r3gan.py:tiny", "gpt.py:tiny"),
    *("mdlm.py:tiny", "lstm.py:tiny", "tcn_music.py:tiny", "conv_vae.py:tiny"),
    "classifier.py:tiny",
)
VALUES = (
    *("-1", "0", "1", "2", "3", "0.5", "1.5", "-0.0", "1e9", "1e12", "-1e12", "1e400", "nan"),
    *("inf", "9" * 400, "9" * 5000, "1e-400", "True", "None", "", " ", "()", "(0,)", "(-1,)"),
    *("(1e9,)", "(1, 'a')", "((1, 2), (3, 4))", "(('(', 1.0),)", "(('.*', -1.0),)", "(('.*',),)"),
    *("[" * 300 + "]" * 300, "(" * 9000 + ")" * 9000, "[" * 40 + "1", "-" * 20000 + "1"),
    *("{}", "{[]: 1}", "adam", "eval/loss", "'", "\x00", "\u7d75", "a" * 5000, "5_steps"),
    *("9" * 400 + "_steps", "1e5_steps", "-5_steps", "0_steps", "100000000_epochs", "300_percent"),
    *(
        "7",
        "64",
        "100",
        "1000",
        "10_000",
        "131_072",
        "1_048_576",
        "1_000_000",
        "(131_072, 131_072)",
    ),
    *("(1, 1, 1, 1, 1, 1, 1, 1, 1, 1)", "(3, 5)", "(4, 4, 4, 4, 4, 4)", "(0.5, 0.1)", "(100, 1)"),
    *("1000000000000000_epochs", "5_ylens", "../..", "/dev/null", "linear", "float64", "*", "\\9"),
)
# What once ended in a traceback, hung, or was killed for memory.
CORPUS = (
    ("ddpm.py:tiny", {"duration": "9" * 400 + "_steps"}),
    ("ddpm.py:tiny", {"evals.every": "9" * 400 + "_percent"}),
    ("ddpm.py:tiny", {"optimizer.learning_rate": "-1"}),
    ("ddpm.py:tiny", {"dataset.max_pixels": "0"}),
    ("ddpm.py:tiny", {"dataset.max_pixels": "9" * 40}),
    ("ddpm.py:tiny", {"optimizer.learning_rate": "9" * 400}),
    ("ddpm.py:tiny", {"model.denoiser.dropout": "2"}),
    ("ddpm.py:tiny", {"model.denoiser.blocks": "-1"}),
    ("ddpm.py:tiny", {"model.denoiser.channels": "0"}),
    ("ddpm.py:tiny", {"model.denoiser.channels": "-8"}),
    ("ddpm.py:tiny", {"model.denoiser.channels": "1e9"}),
    ("ddpm.py:tiny", {"diffusion.num_timesteps": "1e12"}),
    ("ddpm.py:tiny", {"optimizer.weight_decay_rules": "(('(', 1.0),)"}),
    ("ddpm.py:tiny", {"optimizer.freeze": "('*',)"}),
    ("ddpm.py:tiny", {"checkpoint.init_map": r"(('a', '\\9'),)"}),
    ("ddpm.py:tiny", {"optimizer.freeze": "(" * 9000 + ")" * 9000}),
    ("ddpm.py:tiny", {"batch_size": "[" * 300 + "]" * 300}),
    ("ddpm.py:tiny", {"dataset.threads": "1e9"}),
    ("ddpm.py:tiny", {"evals.batch_size": "1e9"}),
    ("vae.py:tiny", {"model.encoder.widths": "(-1,)"}),
    ("vae.py:tiny", {"vae.latent_dim": "1e9"}),
)


def build(location, overrides):
    """The method of a config, and what follows from it, with nothing allocated."""
    config = configs.load(f"{FOLDER / location}", overrides, judges.with_sections)
    if not config.stages:
        assemble(config, described(config), devices=jax.devices()[:1])


def test_a_state_or_batch_larger_than_memory_is_refused_before_it_is_made():
    def run(**overrides):
        config = configs.load(f"{FOLDER / 'vae.py'}:tiny", overrides)
        return assemble(config, devices=jax.devices()[:1])

    memory.check(run(), training=True)
    large = run(**{"model.encoder.widths": (2**17, 2**17)})
    with pytest.raises(ConfigError, match=r"does not fit into memory: its state .* takes 256\."):
        memory.check(large, training=False, available=200 * 2**30)
    with pytest.raises(ConfigError, match=r"a batch of 64 examples 0\.00 GiB, of 0\.00 GiB"):
        memory.check(run(batch_size=64), training=True, available=1000)


def test_what_is_only_restored_needs_no_memory_for_batches():
    config = configs.load(f"{FOLDER / 'vae.py'}:tiny", {"batch_size": 64})
    run = assemble(config, devices=jax.devices()[:1])
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(run.state))
    memory.check(run, training=False, available=state)
    with pytest.raises(ConfigError, match="a batch of 64 examples"):
        memory.check(run, training=True, available=state)


def outcome(location, overrides):
    """How long it takes to build it; fails if that ends in anything but one error."""
    start = time.monotonic()
    try:
        build(location, overrides)
    except ConfigError as error:
        text = str(error)
        assert 0 < len(text) < 5000, (location, overrides, text[:300])
    except BaseException as error:
        short = {key: str(value)[:60] for key, value in overrides.items()}
        raise AssertionError(
            f"{location} {short}: {type(error).__name__}: {error}"[:600]
        ) from error
    return time.monotonic() - start


@pytest.fixture(autouse=True)
def no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "nothing"))


@pytest.mark.parametrize(("location", "overrides"), CORPUS, ids=lambda v: str(v)[:40])
def test_what_once_ended_badly_gets_one_error_that_names_the_key(location, overrides):
    ((key, _),) = overrides.items()
    with pytest.raises(ConfigError, match=key.rpartition(".")[2]):
        build(location, overrides)


def test_any_value_of_any_key_builds_or_gets_one_error(fuzz_seed):
    draws = random.Random(fuzz_seed)
    flat = {
        location: list(configs.flatten(configs.load(f"{FOLDER / location}")))
        for location in EXPERIMENTS
    }
    before, end, count = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic(), 0
    end += SECONDS
    while time.monotonic() < end:
        location = draws.choice(EXPERIMENTS)
        keys = draws.sample(flat[location], draws.choice((1, 1, 1, 2)))
        overrides = {key: draws.choice(VALUES) for key in keys}
        taken = outcome(location, overrides)
        assert taken < MOST_SECONDS, (location, overrides)
        count += 1
    used = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert used < MOST_BYTES, f"{used:.3g} bytes"
    assert count


def test_the_command_line_prints_one_error_or_the_config(capsys, fuzz_seed):
    draws, seed = random.Random(fuzz_seed), f"GENJAX_FUZZ_SEED={fuzz_seed}"
    for _ in range(40):
        location = draws.choice(EXPERIMENTS)
        keys = list(configs.flatten(configs.load(f"{FOLDER / location}")))
        key, value = draws.choice([*keys, "no.such", "", "a" * 500]), draws.choice(VALUES)
        flags = (f"--config={FOLDER / location}", "--mode=config", f"--config.{key}={value}")
        code = main.main([*flags])
        out, err = capsys.readouterr()
        assert code in (0, 1), (seed, location, key, value[:60])
        assert bool(out) == (code == 0), (seed, location, key, value[:60])
        assert code == 0 or (err.startswith("error: ") and "Traceback" not in err), seed


class Options(NamedTuple):
    width: Width = 8
    dropout: Rate = 0.0
    levels: tuple[Annotated[int, Range(1, 4, off=-1)], ...] = ()
    name: str = ""


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"width": 0}, r"config\.model\.width=0: expected at least 1 and at most 131,072\."),
        ({"width": 8.0}, r"width=8\.0: expected a whole number, at least 1"),
        ({"width": True}, "width=True: expected a whole number"),
        ({"dropout": 1}, r"dropout=1: expected at least 0 and below 1\."),
        ({"dropout": float("nan")}, "dropout=nan: expected a number"),
        ({"levels": (1, 5)}, r"levels=\(1, 5\): expected at least 1 and at most 4, or -1 each"),
        ({"levels": 3}, "levels=3: expected a tuple"),
        ({"name": 3}, "name=3: expected a string"),
    ],
)
def test_values_are_compared_with_the_annotations(values, words):
    with pytest.raises(ConfigError, match=words):
        check_options(Options, values, "model")
    with pytest.raises(ConfigError, match=words):
        configs.read_options(ConfigDict(values), "model", Options)
    check_options(Options, {"width": 8, "dropout": 0, "levels": (1, -1), "name": "a"}, "model")
