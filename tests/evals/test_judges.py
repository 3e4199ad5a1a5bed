"""Judges: found by name, built on the right data; what they are given in a run, and without one."""

from __future__ import annotations

import sys
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data import sources
from genjax.data.alphabets import Characters
from genjax.data.catalogue import Dataset
from genjax.evals import judges
from genjax.evals.evaluation import Evaluation
from genjax.evals.judges import Judge, fidelity
from genjax.method import Aux, DataSpec, Field, Method, Phase
from genjax.modalities.label import label_condition
from genjax.modes import evaluate
from genjax.parallel.mesh import make_mesh
from genjax.parallel.rules import replicate
from genjax.training.assemble import assemble
from genjax.training.metrics import Writers

SHAPE = (4, 4, 1)


def images(count=60, name="toy"):
    """Images, each of a brightness of its own, whose label is their number modulo three."""
    rows = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, *SHAPE))
    columns = {"image": rows, "label": np.arange(count, dtype=np.int32) % 3}
    spec = DataSpec(name, sources.image_fields(SHAPE, 3), "image", {"train": count, "test": count})
    split = sources.Columns(columns)
    return Dataset(spec, {"train": split, "test": split}, "memory")


LETTERS = Characters("abcdefghijklmnopqrstuvwxyz ", {})
LINES = (
    "the quick brown fox",
    "jumps over the lazy",
    "dog and runs further",
    "the quick brown dog",
)


def texts():
    rows = np.stack([np.resize(LETTERS.encode(line + " "), 16) for line in LINES])
    facts = {"vocabulary_size": 27, "special": {"start": 0}, "tokenizer": LETTERS}
    field = Field("text", (16,), np.dtype(np.int32), facts)
    spec = DataSpec("lines", {"token": field}, "token", {"train": len(rows)})
    return Dataset(spec, {"train": sources.Columns({"token": rows})}, "memory")


def config_of(*names, **evals):
    config = configs.base()
    config.evals.judges = names
    with config.unlocked():
        config.evals.update(evals)
    return judges.with_sections(config, {})


def mesh():
    return make_mesh(configs.base(), jax.devices()[:1])


# ---- by name -------------------------------------------------------------------------------------


class Options(NamedTuple):
    level: int = 1


@pytest.fixture
def recorder(monkeypatch):
    """Puts a judge of one's own in place: what it is given, in a list."""
    given = []

    def put(name, **judge):
        def build_judge(options, evals, dataset, mesh):
            def look(samples, references, conditions):
                given.append((samples, references, conditions))
                return {f"{name}_seen": float(len(samples))}

            return Judge(look, (f"{name}_seen",), **judge)

        module = types.ModuleType(name)
        module.Options, module.build_judge = Options, build_judge
        monkeypatch.setitem(sys.modules, name, module)
        return given

    return put


def test_each_judge_has_a_whole_section_that_can_be_overridden(recorder):
    recorder("own_judge")
    config = configs.base()
    names = "('fidelity', 'own_judge')"
    found = judges.with_sections(config, {"evals.judges": names})
    assert found.evals.fidelity.to_dict() == fidelity.Options()._asdict()
    assert found.evals.own_judge.to_dict() == {"level": 1}
    assert config.evals.judges == ()
    assert "fidelity" not in config.evals
    given = {"evals.judges": names, "evals.own_judge.level": "3", "evals.fidelity.generated": "20"}
    found = configs.override(found, given)
    assert (found.evals.own_judge.level, found.evals.fidelity.generated) == (3, 20)
    assert judges.with_sections(found, {}).evals.own_judge.level == 3


def test_unknown_judges_and_settings_are_named(recorder, monkeypatch):
    with pytest.raises(ConfigError, match=r"evals\.judges='fidelty': no module .*Nearest: fideli"):
        config_of("fidelty")
    with pytest.raises(ConfigError, match=r"Nearest: attributes, .*diversity, fidelity, ngrams, "):
        config_of("x")
    with pytest.raises(ConfigError, match=r"judges='json': json has no Options and no build_judge"):
        config_of("json")
    config = configs.base()
    config.evals.judges = ("fidelity",)
    with config.unlocked():
        config.evals.fidelity = {"feature": ("inception",)}
    with pytest.raises(ConfigError, match=r"key of config\.evals\.fidelity='feature'.*Nearest: f"):
        judges.with_sections(config, {})
    recorder("samples")
    with pytest.raises(ConfigError, match=r"'samples' is also a key of config\.evals"):
        config_of("samples")


@pytest.mark.parametrize("name", ["diversity", "overlap"])
def test_judges_of_texts_refuse_images(name):
    says = rf"evals\.judges: {name} judges texts, but 'image' of toy is of kind 'image'"
    with pytest.raises(ConfigError, match=says):
        judges.build(config_of(name), images(), mesh())


def test_diversity_and_overlap_say_what_they_may_give():
    config = config_of("diversity", "overlap", split="train")
    diverse, overlap = judges.build(config, texts(), mesh())
    assert (diverse.samples, overlap.samples) == (0, 200)
    assert (diverse.paired, overlap.paired) == (False, True)
    rows = texts().splits["train"].take(np.arange(4))["token"]
    for judge in (diverse, overlap):
        assert set(judge.judge(rows, rows, {})) == set(judge.metrics)
    assert overlap.judge(rows, rows, {})["bleu"] == pytest.approx(100)
    assert overlap.judge(rows, rows[::-1], {})["bleu"] < 50


def pairs():
    """Sources, and targets of which the first two words of a source are one."""
    facts = texts().spec.generated.facts
    field = Field("text", (24,), np.dtype(np.int32), facts)
    sides = (LINES, [" ".join(line.split()[:2]) for line in LINES])
    rows = [np.full((4, 24), -1, np.int32) for _ in sides]
    for side, lines in zip(rows, sides, strict=True):
        for row, line in zip(side, lines, strict=True):
            row[: len(line)] = LETTERS.encode(line)
    spec = DataSpec("pairs", {"source": field, "target": field}, "target", {"train": 4})
    split = sources.Columns({"source": rows[0], "target": rows[1]})
    return Dataset(spec, {"train": split}, "memory")


def test_a_baseline_is_judged_beside_the_samples():
    config = config_of("overlap", split="train", overlap={"baseline": "lead"})
    (overlap,) = judges.build(config, pairs(), mesh())
    overlap.prepare()
    rows = pairs().splits["train"].take(np.arange(4))
    found = overlap.judge(rows["target"][::-1], rows["target"], {"source": rows["source"]})
    assert set(found) == set(overlap.metrics)
    assert found["lead_rouge_l"] == pytest.approx(100)
    assert found["rouge_l"] < 60  # lines 1 and 4 begin alike
    without = overlap.judge(rows["target"], rows["target"], {})
    assert "lead_bleu" not in without  # samples of a file have no sources


def test_baselines_that_do_not_fit():
    for data, baseline, match in (
        (pairs(), "copy", "overlap.baseline='copy': expected one of lead, dictionary"),
        (texts(), "lead", "besides 'token', lines has the texts none"),
    ):
        config = config_of("overlap", split="train", overlap={"baseline": baseline})
        with pytest.raises(ConfigError, match=match):
            judges.build(config, data, mesh())


# ---- in a run ------------------------------------------------------------------------------------


def labelled(spec):
    """A method whose samples are as bright as ten times their label."""

    def sample(params, mutable, key, num, condition):
        bright = 10 * condition["label"].astype(jnp.uint8)
        return jnp.broadcast_to(bright[:, None, None, None], (num, *SHAPE))

    def loss(params, mutable, batch, key, step):
        return params["net"]["w"] ** 2, Aux({}, {})

    return Method(
        init=lambda key, batch: ({"net": {"w": jnp.float32(1.0)}}, {"net": {}}),
        phases=(Phase("net", loss),),
        evaluate=lambda params, mutable, batch, key: {"zero": jnp.zeros(len(batch["image"]))},
        sample=sample,
        rules=((r".*", replicate),),
        conditions=label_condition(spec, True),
    )


def test_judges_see_samples_of_the_conditions_of_held_out_examples_beside_these(recorder, tmp_path):
    """More samples than are shown, and more than there are examples: these are taken in turn."""
    given = recorder("many_judge", samples=70, paired=True)
    recorder("few_judge")
    config = config_of("many_judge", "few_judge", samples=4, batch_size=8, split="test")
    data = images()
    config.batch_size, config.duration = 8, "2_steps"
    run = assemble(config, data.spec, labelled(data.spec), devices=jax.devices()[:1])
    built = judges.build(config, data, run.mesh)
    evaluation = Evaluation(run, data, tmp_path, Writers([]), built)
    with jax.set_mesh(run.mesh):
        metrics = evaluation(run.init(), 1)
        first, second = given
        evaluation(run.init(), 2)
    assert (metrics["eval/many_judge_seen"], metrics["eval/few_judge_seen"]) == (70, 4)
    chosen = sources.order(60)[np.arange(70) % 60]
    for (samples, references, conditions), count in ((first, 70), (second, 4)):
        assert samples.shape == references.shape == (count, *SHAPE)
        np.testing.assert_array_equal(references[:, 0, 0, 0], chosen[:count])
        np.testing.assert_array_equal(conditions["label"], chosen[:count] % 3)
        np.testing.assert_array_equal(samples[:, 0, 0, 0], 10 * conditions["label"])
    np.testing.assert_array_equal(given[2][1], first[1])  # always the same


def test_who_compares_one_by_one_needs_conditions_that_the_data_have(recorder, tmp_path):
    recorder("the_judge", samples=4, paired=True)
    config = config_of("the_judge", samples=4, batch_size=8, split="test")
    config.batch_size, config.duration, data = 8, "2_steps", images()
    method = labelled(data.spec)._replace(conditions={})
    run = assemble(config, data.spec, method, devices=jax.devices()[:1])
    built = judges.build(config, data, run.mesh)
    with pytest.raises(ConfigError, match="compares each sample with its own reference"):
        Evaluation(run, data, tmp_path, Writers([]), built)


def test_who_judges_what_is_shown_is_silent_where_nothing_is(recorder, tmp_path):
    given = recorder("many_judge", samples=12)
    recorder("few_judge")
    config = config_of("many_judge", "few_judge", samples=0, batch_size=8, split="test")
    config.batch_size, config.duration, data = 8, "2_steps", images()
    run = assemble(config, data.spec, labelled(data.spec), devices=jax.devices()[:1])
    evaluation = Evaluation(run, data, tmp_path, Writers([]), judges.build(config, data, run.mesh))
    with jax.set_mesh(run.mesh):
        metrics = evaluation(run.init(), 1)
    assert metrics["eval/many_judge_seen"] == len(given[0][0]) == 12
    assert "eval/few_judge_seen" not in metrics


# ---- without a run -------------------------------------------------------------------------------


@pytest.fixture
def judged(recorder, monkeypatch):
    """Judges samples of a data set by judges of these names."""

    def call(samples, *names, references="", data=None):
        monkeypatch.setattr(evaluate.catalogue, "load", lambda dataset: data or images())
        monkeypatch.setattr(evaluate, "make_mesh", lambda config: mesh())
        config = config_of(*names, split="train")
        return evaluate.judge(config, str(samples), str(references))

    return call


ROWS = np.arange(60 * 16, dtype=np.uint32).astype(np.uint8).reshape(60, *SHAPE)


def test_samples_out_of_a_file(tmp_path, recorder, judged):
    given, path = recorder("own_judge"), tmp_path / "a.npz"
    np.savez(path, samples=ROWS, label=np.arange(60))
    assert judged(path, "own_judge") == {"own_judge_seen": 60, "samples": 60}
    np.savez(path, arr_0=ROWS[..., 0])
    judged(path, "own_judge")
    for samples, references, conditions in given:
        np.testing.assert_array_equal(samples, ROWS)
        assert references is None
        assert conditions == {}
    np.savez(path, a=ROWS, b=ROWS)
    with pytest.raises(ConfigError, match="holds the arrays a, b"):
        judged(path, "own_judge")
    for content in (b"rubbish", b""):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="cannot be read"):
            judged(path, "own_judge")
    np.save(tmp_path / "b", ROWS)
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    with pytest.raises(ConfigError, match="cannot be read"):
        judged(tmp_path / "b.npz", "own_judge")
    with pytest.raises(ConfigError, match="one of the splits train, test"):
        judged("tset", "own_judge")
    with pytest.raises(ConfigError, match=r"evals\.judges is empty"):
        judged("test")


def test_a_fixed_choice_is_spread_over_all_samples(tmp_path, recorder, judged):
    """They may be sorted by class. Each judge has as many as it asks for."""
    given = recorder("own_judge", samples=20)
    recorder("other_judge")
    both = np.concatenate([np.zeros_like(ROWS), np.full_like(ROWS, 200)])
    np.savez(tmp_path / "s.npz", samples=both)
    found = judged(tmp_path / "s.npz", "own_judge", "other_judge")
    assert found == {"own_judge_seen": 20, "other_judge_seen": 120, "samples": 120}
    assert 0.2 < (given[0][0].mean((1, 2, 3)) > 150).mean() < 0.8
    judged(tmp_path / "s.npz", "own_judge")
    np.testing.assert_array_equal(given[0][0], given[2][0])


def test_a_judge_that_compares_one_by_one_needs_a_reference_of_each(tmp_path, recorder, judged):
    given = recorder("own_judge", samples=20, paired=True)
    ours, right = tmp_path / "ours.npz", tmp_path / "right.npz"
    np.savez(ours, samples=ROWS)
    np.savez(right, samples=ROWS + 1)
    with pytest.raises(ConfigError, match="--references is missing"):
        judged(ours, "own_judge")
    judged(ours, "own_judge", references=right)
    samples, references, _ = given[0]
    assert len(samples) == 20
    np.testing.assert_array_equal(references, samples + 1)
    np.savez(right, samples=ROWS[:50])
    counts = r"has 60 samples, --references=.* has 50: expected the same number"
    with pytest.raises(ConfigError, match=counts):
        judged(ours, "own_judge", references=right)


def test_texts_are_judged_by_what_their_tokens_say(tmp_path, judged):
    rows = texts().splits["train"].take(np.arange(4))["token"]
    np.savez(tmp_path / "ours.npz", samples=rows)
    found = judged("train", "diversity", "overlap", references=tmp_path / "ours.npz", data=texts())
    assert found["bleu"] == pytest.approx(100)
    assert found["samples"] == 4
    assert 0 < found["distinct_1"] < 1


def test_a_line_ends_with_a_newline_and_nothing_else(tmp_path, judged):
    """As a terminal and sacrebleu have it; Python's splitlines() would find nine lines."""
    lines = ["one two\u2028three four", "five\x0csix\x85seven", "eight\x1cnine ten eleven twelve"]
    ours, right = tmp_path / "ours.txt", tmp_path / "right.txt"
    ours.write_bytes("\r\n".join(lines).encode())
    right.write_bytes("".join(f"{line}\n" for line in lines).encode())
    found = judged(ours, references=right)
    assert found["texts"] == 3
    assert found["bleu"] == pytest.approx(100)
    right.write_bytes("\n".join(lines[:2]).encode())
    with pytest.raises(ConfigError, match="3 texts and 2 references"):
        judged(ours, references=right)
