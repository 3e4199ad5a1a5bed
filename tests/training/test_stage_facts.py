"""What a stage brings: networks that follow others, and fields that mean the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data import digest, sources
from genjax.data.alphabets import Bytes
from genjax.data.catalogue import Dataset
from genjax.method import Aux, DataSpec, Field, Follow, Method, Phase, Stage, check
from genjax.training import stages


def spec(tokenizer=None, classes=3):
    facts = {"vocabulary_size": 257, "special": {"start": 256, "eos": 256}}
    text = Field("text", (4,), np.dtype(np.int32), facts | {"tokenizer": tokenizer or Bytes({})})
    label = Field("label", (), np.dtype(np.int32), {"num_classes": classes})
    image = Field("image", (2, 2, 1), np.dtype(np.uint8))
    return DataSpec("toy", {"image": image, "text": text, "label": label}, "image", {"train": 4})


def method(**changed):
    def loss(params, mutable, batch, key, step):
        return params["student"]["a"].sum(), Aux({}, {})

    def sample(params, mutable, key, num, condition, *, steps=1):
        return jnp.zeros((num, 2, 2, 1), jnp.uint8)

    def init(key, batch):
        return {"student": {"a": jnp.zeros(3)}}, {"student": {}}

    made = Method(init, (Phase("student", loss),), None, sample, ())
    return made._replace(follows={"teacher": Follow("student", 0.9)}, **changed)


def stage(own):
    return Stage("first", configs.base(), own, method(), ("student",))


def test_a_stage_has_its_followers():
    params, _ = stages.network_shapes(method(), spec())
    assert params.keys() == {"student", "teacher"}
    assert jax.tree.map(lambda x: x.shape, params["teacher"]) == {"a": (3,)}


def test_fields_of_a_stage_mean_the_same():
    stages.check_facts(stage(spec()), spec())
    stages.check_facts(stage(spec()), spec()._replace(name="other", sizes={"train": 9}))
    with pytest.raises(ConfigError, match=r"stages\.first: the tokenizer of the field 'text' is"):
        stages.check_facts(stage(spec()), spec(Bytes({"eos": 256})))
    with pytest.raises(ConfigError, match="num_classes of the field 'label' is 3 there and 4 in"):
        stages.check_facts(stage(spec()), spec(classes=4))


@pytest.mark.parametrize("name", ["steps", "not a flag"])
def test_a_condition_has_a_name_of_its_own(name):
    label = spec().fields["label"]
    assert check(method(conditions={"label": label}), "toy").conditions
    with pytest.raises(ConfigError, match=r"method toy: conditions.*not an option of sample"):
        check(method(conditions={name: label}), "toy")


def test_the_digest_of_pictures_does_not_see_captions():
    def dataset(text, shade):
        rows = {"image": np.full((4, 2, 2, 1), shade, np.uint8), "label": np.zeros(4, np.int32)}
        rows["text"] = np.full((4, 4), text, np.int32)
        return Dataset(spec(), {"train": sources.Columns(rows)}, "made")

    assert digest.data_digest(dataset(1, 5)) == digest.data_digest(dataset(2, 5))
    assert digest.data_digest(dataset(1, 5)) != digest.data_digest(dataset(1, 6))
