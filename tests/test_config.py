"""Configs: presets, overrides, durations, comparison, and what wrong ones get."""

import pytest
from ml_collections import ConfigDict

from genjax import config as configs
from genjax import durations
from genjax.config import ConfigError
from genjax.training import lengths

FILE = """
from ml_collections import ConfigDict
from genjax import config

def get_config():
    c = config.base()
    c.method = "diffusion"
    with c.unlocked():
        c.model = ConfigDict({"channels": 8, "multipliers": (1, 2)})
    return c

PRESETS = {"tiny": {"model.channels": 4, "batch_size": 2}, "broken": {"modle.channels": 4}}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(FILE)
    return str(path)


def test_a_preset_and_then_overrides(file):
    config = configs.load(f"{file}:tiny", {"batch_size": "1_024", "seed": "3"})
    assert (config.model.channels, config.batch_size, config.seed) == (4, 1024, 3)
    assert configs.load(file).model.channels == 8


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optimizer.learning_rate", "3e-4", 3e-4),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.networks.critic.learning_rate", "2", 2.0),
        ("optimizer.networks.critic.name", "sgd", "sgd"),
        ("evals.samples", "0", 0),
        ("dataset.flip", "true", True),
        ("dataset.flip", "False", False),
        ("dataset.name", "123", "123"),
        ("checkpoint.best", "eval/a=b", "eval/a=b"),
        ("model.multipliers", "(1, 2, 4)", (1, 2, 4)),
        ("model.multipliers", "[3]", (3,)),
        ("ema.decay", "0.99", (0.99,)),
        ("ema.decay", "()", ()),
        ("ema.power", "(0.05, 0.1)", (0.05, 0.1)),
    ],
)
def test_overrides_take_the_type_of_the_key(file, key, text, value):
    found = configs.flatten(configs.load(file, {key: text}))[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimizer.learnin_rate": "1"}, r"config\.optimizer\.learnin_rate.*learning_rate"),
        ({"learning_rate": "1"}, r"config\.learning_rate.*optimizer\.learning_rate"),
        ({"optimizer.lr": "1"}, r"Nearest: optimizer\.learning_rate, "),
        ({"optimiser.wd": "1"}, r"Nearest: optimizer\.weight_decay, "),
        ({"optimizer.decay": "1"}, r"Nearest: .*optimizer\.weight_decay"),
        ({"lr": "1"}, r"Nearest: optimizer\.learning_rate[,.]"),
        ({"batchsize": "1"}, r"Nearest: batch_size, "),
        ({"optimizer": "adam"}, r"is a section.*optimizer\.name"),
        ({"optimizer.name.x": "adam"}, r"no such key"),
        ({"batch_size": "many"}, r"config\.batch_size='many'.*a whole number"),
        ({"batch_size": "1.5"}, r"a whole number"),
        ({"batch_size": "True"}, r"a whole number"),
        ({"optimizer.learning_rate": "fast"}, r"a number"),
        ({"dataset.flip": "maybe"}, r"true or false"),
        ({"batch_size": "0"}, r"at least 1"),
        ({"accumulation": "3"}, r"a multiple of config\.accumulation=3"),
        ({"precision": "float16"}, r"float32, bfloat16"),
        ({"ema.decay": "1.5"}, r"ema\.decay=\(1\.5,\): expected above 0 and below 1 each"),
        ({"ema.power": "0.289"}, r"ema\.power=\(0\.289,\): expected above 0 and below 0\.288"),
        ({"ema.snapshots": "5_percent"}, r"ema\.snapshots='5_percent'.* at least two averages in "),
        ({"ema.snapshots": "often", "ema.power": "(0.05, 0.1)"}, r"ema\.snapshots='often'"),
        ({"duration": ""}, r"duration"),
        ({"duration": "5_lightyears"}, r"'2000_steps'"),
        ({"duration": "100"}, r"'2000_steps'"),
        ({"duration": "0_steps"}, r"positive"),
        ({"duration": "9" * 400 + "_steps"}, r"duration='9+\.\.\. .*at most 1e\+15 steps"),
        ({"optimizer.freeze": "('(',)"}, r"freeze: '\(' is not a regular expression"),
        ({"duration": "50_percent"}, r"share of itself"),
        ({"evals.every": "often"}, r"evals\.every='often'"),
        ({"method": ""}, r"name of a method"),
        ({"checkpoint.keep": "0"}, r"at least 1"),
        ({"early_stop.mode": "least"}, r"min, max"),
    ],
)
def test_wrong_overrides_get_one_error_that_says_what_to_do(file, overrides, message):
    with pytest.raises(ConfigError, match=message):
        configs.load(file, overrides)


def test_wrong_files_and_presets(file, tmp_path):
    with pytest.raises(ConfigError, match=r"no preset 'tinny'. Presets: tiny, broken\."):
        configs.load(f"{file}:tinny")
    with pytest.raises(ConfigError, match=r"modle\.channels.*model\.channels"):
        configs.load(f"{file}:broken")
    with pytest.raises(ConfigError, match=r"no file.*experiment\.py"):
        configs.load(str(tmp_path / "experimant.py"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match=r"get_config"):
        configs.load(str(tmp_path / "empty.py"))
    (tmp_path / "typo.py").write_text(FILE.replace("c.method", "c.metod"))
    with pytest.raises(ConfigError, match=r"metod"):
        configs.load(str(tmp_path / "typo.py"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2000_steps", 2000),
        ("1_step", 1),
        ("2_000_steps", 2000),
        ("5_epochs", 79),  # 5 x 1,000 / 64 = 78.1
        ("1.5_epochs", 24),
        ("6400_examples", 100),
        ("6401_examples", 101),
        ("10_percent", 50),
        ("0.1_percent", 1),
        ("", 0),
        ("0_steps", 0),
    ],
)
def test_durations_in_steps(text, expected):
    assert durations.steps(text, batch_size=64, examples=1000, total=500) == expected


def test_epochs_of_unknown_data_are_refused():
    with pytest.raises(ConfigError, match="give steps"):
        durations.steps("5_epochs", batch_size=64, examples=0)


def test_shares_of_the_run_are_its_stretches_and_no_cadences(file):
    given = {"schedule.warmup": "10_percent", "evals.every": "5_percent"}
    given |= {"dataset.test": "20_percent", "duration": "3_epochs"}
    config = configs.load(file, given)
    assert lengths.shares(config) == {"schedule.warmup": "10_percent"}
    settled = lengths.settled(config, 155)
    assert settled.schedule.warmup == "16_steps"
    config.schedule.warmup = "20_percents"
    assert lengths.settled(config, 155).schedule.warmup == "31_steps"
    config.schedule.warmup = "10_percent"
    assert configs.differences(settled, config) == ["schedule.warmup: '16_steps' -> '10_percent'"]
    assert lengths.settled(configs.load(file), 155) == configs.load(file)


def test_a_stored_config_gets_the_defaults_of_what_it_lacks(file):
    stored = configs.from_json(configs.to_json(configs.load(file, {"ema.decay": "0.9"})))
    del stored.ema.power, stored.mesh
    filled, missing = configs.filled(stored)
    assert missing == ["ema.power", "mesh.data", "mesh.fsdp", "mesh.sequence", "mesh.tensor"]
    assert configs.to_json(filled) == configs.to_json(configs.load(file, {"ema.decay": "0.9"}))
    with pytest.raises(ValueError, match="no method"):
        configs.filled(ConfigDict({"seed": 3}))


def test_json_and_back(file):
    config = configs.load(file, {"ema.decay": "(0.9, 0.99)"})
    again = configs.from_json(configs.to_json(config))
    assert configs.flatten(again) == configs.flatten(config)
    assert isinstance(again, ConfigDict)


def test_only_length_and_cadence_may_differ(file):
    stored = configs.load(file)
    free = {"duration": "7_steps", "evals.every": "3_steps", "checkpoint.keep": "9"}
    free |= {"mesh.data": "1", "mesh.fsdp": "-1"}
    assert configs.differences(stored, configs.load(file, free)) == []
    changed = {"batch_size": "2", "model.multipliers": "(1,)", "optimizer.name": "sgd"}
    assert configs.differences(stored, configs.load(file, changed)) == [
        "batch_size: 64 -> 2",
        "model.multipliers: (1, 2) -> (1,)",
        "optimizer.name: 'adamw' -> 'sgd'",
    ]
    with stored.unlocked():
        del stored.model.channels
    assert configs.differences(stored, configs.load(file)) == ["model.channels: '(absent)' -> 8"]


def test_a_key_that_is_absent_has_its_default(file):
    """Of the keys of all configs, and of the family's where its defaults are known."""
    given = configs.load(file)
    older = configs.load(file)
    with older.unlocked(), given.unlocked():
        del older.seed, older.dataset.text.documents
        given.diffusion = ConfigDict({"num_timesteps": 10, "levels": (1, 2)})
        older.diffusion = ConfigDict({"num_timesteps": 10})
    new = "diffusion.levels: '(absent)' -> (1, 2)"
    assert configs.differences(older, given) == [new]
    assert configs.differences(older, given, {"diffusion": {"levels": [1, 2]}}) == []
    assert configs.differences(given, older, {"diffusion": {"levels": (1, 2)}}) == []
    assert configs.differences(older, given, {"diffusion": {"levels": (3,)}}) == [new]
    given.seed = 1
    given.dataset.text.documents = "packed"
    assert configs.differences(older, given)[:1] == [
        "dataset.text.documents: '(absent)' -> 'packed'"
    ]
    whole, lacking = configs.filled(older)
    assert lacking == ["dataset.text.documents", "seed"]
    assert (whole.seed, whole.dataset.text.documents) == (0, "stream")
    assert whole.diffusion.to_dict() == {"num_timesteps": 10}
    assert configs.filled(whole)[1] == []


class Network:
    def __init__(self, shape, *, width=4, depth=1):
        self.sizes = (shape, width, depth)


def test_construct_takes_a_section_as_further_arguments():
    built = configs.construct(Network, ConfigDict({"width": 8}), "model", shape=(2,))
    assert built.sizes == ((2,), 8, 1)
    for section in ({"widht": 8}, {"shape": (3,)}, {"self": 1}):
        with pytest.raises(ConfigError, match=r"key of config\.model=.*expected one of width, dep"):
            configs.construct(Network, ConfigDict(section), "model", shape=(2,))
