"""Two stages: codes as data, frozen networks in the state, and what is refused."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from genjax import config as configs
from genjax import main
from genjax import method as methods
from genjax.config import ConfigError
from genjax.data import catalogue
from genjax.evals.features import data_digest
from genjax.parallel import rules
from genjax.parallel.mesh import make_mesh
from genjax.training import first_stage, workdir
from genjax.training.checkpoint import Checkpoints

FOLDER = Path(__file__).parent.parent.parent / "configs"
SHORT = {"duration": "8_steps", "evals.every": "", "evals.samples": 0, "log.every": ""}
SMALL = {"model.encoder.channels": 8, "model.decoder.channels": 8, "vqvae.codes": 16}


def arguments(name, values):
    return [f"--config={FOLDER / name}.py:tiny", *(f"--config.{k}={v}" for k, v in values.items())]


@pytest.fixture(scope="module")
def vq(tmp_path_factory):
    """The workdir of a short run of a VQ-VAE, with averaged parameters."""
    folder = tmp_path_factory.mktemp("vq")
    values = SHORT | SMALL | {"ema.decay": (0.5,)}
    assert main.main([*arguments("vqvae", values), f"--workdir={folder}"]) == 0
    return folder


PRIOR = SHORT | {"model.prior.width": 16, "model.prior.depth": 1}


@pytest.fixture(scope="module")
def prior(vq, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    values = PRIOR | {"first_stage": vq}
    assert main.main([*arguments("vqvae_prior", values), f"--workdir={folder}"]) == 0
    return folder


def load(vq, **overrides):
    values = {"first_stage": str(vq)} | overrides
    return configs.load(f"{FOLDER / 'vqvae_prior.py'}:tiny", values)


def test_the_codes_are_those_of_each_example_by_the_averaged_encoder(vq, tmp_path, monkeypatch):
    config = load(vq)
    stage = first_stage.find(config, tmp_path)
    mesh = make_mesh(config)
    arrays = first_stage.read(stage, config, tmp_path, mesh)
    saved = Checkpoints(vq).restore(main.build(stage.config, stage.spec, None).state)
    jax.tree.map(
        np.testing.assert_array_equal,
        arrays.params["autoencoder"],
        saved.ema["0.5"]["autoencoder"],
    )
    raw, mean = (jax.tree.leaves(tree)[0] for tree in (saved.params, arrays.params))
    assert np.abs(raw - mean).max() > 0
    jax.tree.map(np.testing.assert_array_equal, arrays.mutable, saved.mutable)

    dataset = catalogue.load(config.dataset)
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))  # not what earlier tests left there
    found = first_stage.encoded(config, stage, arrays, dataset, mesh)
    assert found.spec == first_stage.code_spec(stage)
    assert found.spec.vocabulary_size == 16
    assert found.spec.modality == "code"
    assert found.decoded is dataset
    encode = jax.jit(stage.method.codec.encode)
    for split in ("train", "test"):
        source = dataset.splits[split]
        assert len(found.splits[split]) == len(source)
        chosen = np.array([0, len(source) // 2, len(source) - 1])
        images = np.stack([source[int(i)]["image"] for i in chosen])
        taken = found.splits[split].take(chosen)
        np.testing.assert_array_equal(taken["code"], encode(*arrays, {"image": images}))
        np.testing.assert_array_equal(taken["label"], [source[int(i)]["label"] for i in chosen])
        judged = stage.method.evaluate(*arrays, {"image": images}, jax.random.key(0))
        np.testing.assert_allclose(
            taken["log_likelihood"], judged["reconstruction"], rtol=1e-4, atol=1e-2
        )
        np.testing.assert_array_equal(
            found.splits[split][len(source) // 2]["code"], taken["code"][1]
        )

    def never(*args):
        raise AssertionError("the codes are in the cache")

    monkeypatch.setattr(first_stage, "_encode", never)
    again = first_stage.encoded(config, stage, arrays, dataset, mesh)
    np.testing.assert_array_equal(
        again.splits["train"].take(chosen)["code"][0], found.splits["train"][0]["code"]
    )
    other = arrays._replace(mutable=jax.tree.map(lambda x: x, arrays.mutable))
    other.mutable["autoencoder"]["books"]["0"]["codes"] += 1
    with pytest.raises(AssertionError, match="in the cache"):  # of another codebook
        first_stage.encoded(config, stage, other, dataset, mesh)


def test_the_first_stage_is_frozen_in_the_state_and_decodes_the_samples(vq, prior):
    config = workdir.read_config(prior)
    stage = first_stage.find(config, prior)
    run = main.build(config, workdir.read_spec(prior), stage)
    state = Checkpoints(prior).restore(run.state)
    arrays = first_stage.read(stage, config, Path("/nowhere"), run.mesh)
    for name in ("params", "mutable"):
        saved, given = getattr(state, name), getattr(arrays, name)
        jax.tree.map(np.testing.assert_array_equal, saved["autoencoder"], given["autoencoder"])
    assert set(state.opt_state) == {"prior"}
    assert all(set(profile) == {"prior"} for profile in state.ema.values())

    key = jax.random.key(3)
    with jax.set_mesh(run.mesh):
        images = jax.jit(lambda *a: run.method.sample(*a, 5, temperature=0.7))(
            state.params, state.mutable, key
        )
        alone = methods.build(config, run.spec)
        codes = jax.jit(lambda *a: alone.sample(*a, 5, temperature=0.7))(
            state.params, state.mutable, key
        )
        decoded = jax.jit(stage.method.codec.decode)(*arrays, codes)
    np.testing.assert_array_equal(images, decoded)
    assert images.shape == (5, 8, 8, 1)
    assert images.dtype == np.uint8


def test_the_elbo_of_both_stages_has_the_priors_nll_for_its_kl(vq, prior):
    config = workdir.read_config(prior)
    stage = first_stage.find(config, prior)
    run = main.build(config, workdir.read_spec(prior), stage)
    state = Checkpoints(prior).restore(run.state)
    image = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    first = stage.method.evaluate(state.params, state.mutable, {"image": image}, None)
    code = stage.method.codec.encode(state.params, state.mutable, {"image": image})
    known = {"code": code, "log_likelihood": first["reconstruction"]}
    found = run.method.evaluate(state.params, state.mutable, known, None)
    alone = methods.build(config, run.spec).evaluate(state.params, state.mutable, known, None)
    assert alone.keys() == {"nll", "bits_per_token"}
    elbo = first["reconstruction"] - alone["nll"]
    np.testing.assert_allclose(found["elbo"], elbo, rtol=1e-5)
    np.testing.assert_allclose(found["bits_per_dim"], -elbo / 64 / np.log(2), rtol=1e-5)
    # A prior of tokens that are all alike has the first stage's own bound.
    uniform = found["elbo"] + found["nll"] - code[0].size * np.log(16)
    np.testing.assert_allclose(uniform, first["elbo"], rtol=1e-5)


def test_a_run_needs_its_first_stage_no_more_once_it_has_begun(prior, vq, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(prior, folder)
    try:
        vq.rename(tmp_path / "away")
        assert main.main([f"--workdir={folder}", "--mode=sample", "--num=2"]) == 0
        assert main.main([f"--workdir={folder}", "--mode=eval"]) == 0
        assert "eval/elbo" in capsys.readouterr().out
    finally:
        (tmp_path / "away").rename(vq)


def test_a_run_that_never_saved_anything_takes_the_first_stage_that_it_is_given(vq, tmp_path):
    other, folder = tmp_path / "other", tmp_path / "run"
    other.mkdir()
    text = (vq / "config.json").read_text()
    (other / "config.json").write_text(text.replace('"seed": 0', '"seed": 5'))
    first_stage.keep(load(other), folder)
    assert first_stage.find(load(vq), folder).config.seed == 0
    first_stage.keep(load(vq), folder)
    assert (folder / "first_stage" / "config.json").read_text() == text


def test_data_that_look_alike_are_told_apart(vq, tmp_path):
    config = load(vq)
    stage, dataset = first_stage.find(config, tmp_path), catalogue.load(config.dataset)
    assert stage.digest == data_digest(dataset)
    first_stage.check(config, stage, dataset)
    with pytest.raises(ConfigError, match=f"digest: 0123 -> {stage.digest}"):
        first_stage.check(config, stage._replace(digest="0123"), dataset)


def test_a_first_stage_that_is_not_finished_is_said_to_be(vq, tmp_path, caplog):
    def warned():
        caplog.clear()
        config = load(vq)
        first_stage.read(first_stage.find(config, tmp_path), config, tmp_path, make_mesh(config))
        return [r.getMessage() for r in caplog.records if "has been trained" in r.getMessage()]

    assert warned() == []
    kept = (vq / "config.json").read_text()
    try:
        assert '"duration": "8_steps"' in kept
        (vq / "config.json").write_text(kept.replace('"8_steps"', '"80_steps"'))
        assert warned() == [f"config.first_stage={vq} has been trained for 8 of its 80 steps"]
    finally:
        (vq / "config.json").write_text(kept)


def test_rounded_codes_are_tokens_for_a_prior(tmp_path):
    fsq, folder = tmp_path / "fsq", tmp_path / "prior"
    small = {"model.encoder.channels": 8, "model.decoder.channels": 8}
    assert main.main([*arguments("fsq", SHORT | small), f"--workdir={fsq}"]) == 0
    given = arguments("vqvae_prior", PRIOR | {"first_stage": fsq})
    assert main.main([*given, f"--workdir={folder}"]) == 0
    spec = workdir.read_spec(folder)
    assert spec.vocabulary_size == 5 * 3 * 3
    assert spec.features["code"].shape == (4, 4, 1)
    assert main.main([f"--workdir={folder}", "--mode=sample", "--num=3"]) == 0
    (file,) = (folder / "generated").glob("*.npz")
    assert np.load(file)["samples"].shape == (3, 8, 8, 1)


def digest_of(folder, capsys):
    capsys.readouterr()
    assert main.main([f"--workdir={folder}", "--mode=inspect"]) == 0
    return capsys.readouterr().out.splitlines()[-1]


def test_residual_codes_over_sharded_parameters_and_the_resumed_run_is_the_same(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(rules, "MIN_SHARDED_SIZE", 16)
    vq, whole, resumed = (tmp_path / name for name in ("vq", "whole", "resumed"))
    values = SHORT | SMALL | {"vqvae.depth": 2}
    assert main.main([*arguments("vqvae", values), f"--workdir={vq}"]) == 0
    values = PRIOR | {"first_stage": vq, "checkpoint.every": "4_steps", "mesh.fsdp": 8}
    given = arguments("vqvae_prior", values)
    assert main.main([*given, f"--workdir={whole}"]) == 0
    assert workdir.read_spec(whole).features["code"].shape == (4, 4, 2)
    run = main.build(
        workdir.read_config(whole),
        workdir.read_spec(whole),
        first_stage.find(workdir.read_config(whole), whole),
    )
    state = Checkpoints(whole).restore(run.state)
    for tree in (state.params["prior"], state.params["autoencoder"]):
        assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(tree))
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "8")
    assert main.main([*given, f"--workdir={resumed}"]) == 0
    assert digest_of(resumed, capsys) == digest_of(whole, capsys)
    assert main.main([f"--workdir={whole}", "--mode=sample", "--num=3"]) == 0
    (file,) = (whole / "generated").glob("*.npz")
    assert np.load(file)["samples"].shape == (3, 8, 8, 1)


def refused(capsys, *given):
    assert main.main(list(map(str, given))) == 1
    return capsys.readouterr().err


def test_what_is_refused(vq, prior, tmp_path, capsys):
    def attempt(values, workdir=tmp_path / "run", *more):
        given = arguments("vqvae_prior", PRIOR | values)
        return refused(capsys, *given, f"--workdir={workdir}", *more)

    assert "--config.first_stage=RUNDIR" in attempt({})
    assert "no run there" in attempt({"first_stage": tmp_path / "nothing"})
    assert "which has no codes" in attempt({"first_stage": prior})
    lost = tmp_path / "lost"
    shutil.copytree(prior, lost)
    (lost / "config.json").unlink()
    assert "has no checkpoint" in attempt({"first_stage": tmp_path / "nothing"}, lost)
    message = attempt({"first_stage": vq, "dataset.name": "mnist10k"})
    assert "the data are not those of config.first_stage" in message
    assert "name: digits -> mnist10k" in message
    message = attempt({"first_stage": vq, "dataset.test": "20_percent"})
    assert "sizes" in message
    message = attempt({"first_stage": vq, "model.network": "pixelrnn"})
    assert "Nearest: pixelcnn" in message
    assert "codes of" not in message  # nothing is encoded for nothing
    assert "config.dataset.flip=True" in attempt({"first_stage": vq, "dataset.flip": True})
    # Another codebook under a run that has begun.
    other = tmp_path / "other"
    values = SHORT | SMALL | {"seed": 1}
    assert main.main([*arguments("vqvae", values), f"--workdir={other}"]) == 0
    message = attempt({"first_stage": other, "duration": "12_steps"}, prior)
    assert f"first_stage: {str(vq)!r} -> {str(other)!r}" in message
    message = attempt(
        {"first_stage": other, "duration": "12_steps"}, prior, "--allow_config_change"
    )
    assert "its codes mean something else" in message
    torn = tmp_path / "torn"
    shutil.copytree(other, torn)
    for file in (torn / "checkpoints" / "8" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:20])
    message = attempt({"first_stage": torn})
    assert "cannot be read" in message
    assert "train the first stage again" in message
    assert "disk full" not in message
    text = (other / "config.json").read_text()
    (other / "config.json").write_text(text.replace('"codes": 16', '"codes": 8'))
    assert "does not fit the config beside it" in attempt({"first_stage": other})
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text((vq / "config.json").read_text())
    assert "has no checkpoint" in attempt({"first_stage": empty})
