"""Stages: codes as data, frozen networks in the state, what is trained first, what is refused."""

import os
import re
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from genjax import config as configs
from genjax import main
from genjax import method as methods
from genjax.config import ConfigError
from genjax.data import catalogue
from genjax.data.digest import data_digest
from genjax.method import Field
from genjax.modes import runs
from genjax.parallel import rules
from genjax.parallel.mesh import global_batch, make_mesh
from genjax.training import codes, stages, workdir
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
    values = PRIOR | {"stages.autoencoder": vq}
    assert main.main([*arguments("vqvae_prior", values), f"--workdir={folder}"]) == 0
    return folder


def load(vq, **overrides):
    values = {"stages.autoencoder": str(vq)} | overrides
    return configs.load(f"{FOLDER / 'vqvae_prior.py'}:tiny", values)


def test_the_codes_are_those_of_each_example_by_the_averaged_encoder(vq, tmp_path, monkeypatch):
    config = load(vq)
    found_stages = stages.find(config, tmp_path)
    stage = found_stages["autoencoder"]
    mesh = make_mesh(config)
    arrays = stages.read(found_stages, config, tmp_path, mesh)
    own = stage.own(arrays.params), stage.own(arrays.mutable)
    saved = Checkpoints(vq).restore(runs.build(stage.config, stage.spec, {}, vq).state)
    jax.tree.map(
        np.testing.assert_array_equal,
        own[0]["autoencoder"],
        saved.ema["0.5"]["autoencoder"],
    )
    raw, mean = (jax.tree.leaves(tree)[0] for tree in (saved.params, own[0]))
    assert np.abs(raw - mean).max() > 0
    jax.tree.map(np.testing.assert_array_equal, own[1], saved.mutable)

    dataset = catalogue.load(config.dataset)
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))  # not what earlier tests left there
    programs, encode_all = [], codes._encode

    def watched(config, apply, arrays, source, mesh):
        rows = [source[i] for i in range(config.evals.batch_size)]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        placed = apply.lower(arrays, global_batch(batch, mesh))
        programs.append(placed.compile().as_text())
        return encode_all(config, apply, arrays, source, mesh)

    monkeypatch.setattr(codes, "_encode", watched)
    found = codes.encoded(config, stage, arrays, dataset, mesh)
    for text in programs:  # each device encodes its own examples
        assert mesh.devices.size == 8
        assert not re.search(rf"f32\[{config.evals.batch_size},\d", text)
        assert re.search(rf"f32\[{config.evals.batch_size // 8},\d", text)
    assert found.spec == codes.code_spec(stage, dataset.spec)
    assert found.spec.generated.facts == {"vocabulary_size": 16}
    assert found.spec.generated.kind == found.spec.target == "code"
    assert found.spec.fields["label"] == dataset.spec.fields["label"]
    assert found.decoded is dataset
    encode = jax.jit(stage.method.codec.encode)
    for split in ("train", "test"):
        source = dataset.splits[split]
        assert len(found.splits[split]) == len(source)
        chosen = np.array([0, len(source) // 2, len(source) - 1])
        images = np.stack([source[int(i)]["image"] for i in chosen])
        taken = found.splits[split].take(chosen)
        np.testing.assert_array_equal(taken["code"], encode(*own, {"image": images}))
        np.testing.assert_array_equal(taken["label"], [source[int(i)]["label"] for i in chosen])
        judged = stage.method.evaluate(*own, {"image": images}, jax.random.key(0))
        np.testing.assert_allclose(
            taken["log_likelihood"], judged["reconstruction"], rtol=1e-4, atol=1e-2
        )
        np.testing.assert_array_equal(
            found.splits[split][len(source) // 2]["code"], taken["code"][1]
        )

    def never(*args):
        raise AssertionError("the codes are in the cache")

    monkeypatch.setattr(codes, "_encode", never)
    again = codes.encoded(config, stage, arrays, dataset, mesh)
    np.testing.assert_array_equal(
        again.splits["train"].take(chosen)["code"][0], found.splits["train"][0]["code"]
    )
    other = arrays._replace(mutable=jax.tree.map(lambda x: x, arrays.mutable))
    other.mutable["autoencoder"]["autoencoder"]["books"]["0"]["codes"] += 1
    with pytest.raises(AssertionError, match="in the cache"):  # of another codebook
        codes.encoded(config, stage, other, dataset, mesh)


def test_the_stage_is_frozen_in_the_state_and_decodes_the_samples(vq, prior):
    config = workdir.read_config(prior)
    found = stages.find(config, prior)
    stage = found["autoencoder"]
    run = runs.build(config, workdir.read_spec(prior), found, prior)
    state = Checkpoints(prior).restore(run.state)
    arrays = stages.read(found, config, Path("/nowhere"), run.mesh)
    for name in ("params", "mutable"):
        saved, given = getattr(state, name), getattr(arrays, name)
        jax.tree.map(np.testing.assert_array_equal, saved["autoencoder"], given["autoencoder"])
    assert set(state.opt_state) == {"prior"}
    assert all(set(profile) == {"prior"} for profile in state.ema.values())

    key = jax.random.key(3)
    with jax.set_mesh(run.mesh):
        images = jax.jit(lambda *a: run.method.sample(*a, 5, {}, temperature=0.7))(
            state.params, state.mutable, key
        )
        alone = methods.build(config, run.spec)
        codes = jax.jit(lambda *a: alone.sample(*a, 5, {}, temperature=0.7))(
            state.params, state.mutable, key
        )
        decoded = jax.jit(stage.decode)(*arrays, codes)
    np.testing.assert_array_equal(images, decoded)
    assert images.shape == (5, 8, 8, 1)
    assert images.dtype == np.uint8
    assert run.method.output == stage.spec.generated


def test_the_elbo_of_both_stages_has_the_priors_nll_for_its_kl(vq, prior):
    config = workdir.read_config(prior)
    found_stages = stages.find(config, prior)
    stage = found_stages["autoencoder"]
    run = runs.build(config, workdir.read_spec(prior), found_stages, prior)
    state = Checkpoints(prior).restore(run.state)
    own = stage.own(state.params), stage.own(state.mutable)
    image = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    first = stage.method.evaluate(*own, {"image": image}, None)
    code = stage.encode(state.params, state.mutable, {"image": image})
    known = {"code": code, "log_likelihood": first["reconstruction"]}
    found = run.method.evaluate(state.params, state.mutable, known, None)
    alone = methods.build(config, run.spec).evaluate(state.params, state.mutable, known, None)
    assert alone.keys() == {"nll", "bits_per_token"}
    elbo = first["reconstruction"] - alone["nll"]
    np.testing.assert_allclose(found["elbo"], elbo, rtol=1e-5)
    np.testing.assert_allclose(found["bits_per_dim"], -elbo / 64 / np.log(2), rtol=1e-5)
    # A prior of tokens that are all alike has the stage's own bound.
    uniform = found["elbo"] + found["nll"] - code[0].size * np.log(16)
    np.testing.assert_allclose(uniform, first["elbo"], rtol=1e-5)


def test_a_run_needs_its_stage_no_more_once_it_has_begun(prior, vq, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(prior, folder)
    try:
        vq.rename(tmp_path / "away")
        assert main.main([f"--workdir={folder}", "--mode=sample", "--num=2"]) == 0
        assert main.main([f"--workdir={folder}", "--mode=eval"]) == 0
        assert "eval/elbo" in capsys.readouterr().out
    finally:
        (tmp_path / "away").rename(vq)


def test_a_run_that_never_saved_anything_takes_the_stage_that_it_is_given(vq, tmp_path):
    other, folder = tmp_path / "other", tmp_path / "run"
    other.mkdir()
    text = (vq / "config.json").read_text()
    (other / "config.json").write_text(text.replace('"seed": 0', '"seed": 5'))
    stages.keep(load(other), folder)
    assert stages.find(load(vq), folder)["autoencoder"].config.seed == 0
    stages.keep(load(vq), folder)
    assert (folder / "stages" / "autoencoder" / "config.json").read_text() == text


def test_data_that_look_alike_are_told_apart(vq, tmp_path):
    config = load(vq)
    stage = stages.find(config, tmp_path)["autoencoder"]
    dataset = catalogue.load(config.dataset)
    assert stage.digest == data_digest(dataset)
    codes.check(config, stage, dataset)
    with pytest.raises(ConfigError, match=f"digest: 0123 -> {stage.digest}"):
        codes.check(config, stage._replace(digest="0123"), dataset)


def test_a_stage_that_is_not_finished_is_said_to_be(vq, tmp_path, caplog):
    def warned():
        caplog.clear()
        config = load(vq)
        stages.read(stages.find(config, tmp_path), config, tmp_path, make_mesh(config))
        return [r.getMessage() for r in caplog.records if "has been trained" in r.getMessage()]

    assert warned() == []
    kept = (vq / "config.json").read_text()
    try:
        assert '"duration": "8_steps"' in kept
        (vq / "config.json").write_text(kept.replace('"8_steps"', '"80_steps"'))
        said = f"config.stages.autoencoder: {vq} has been trained for 8 of its 80 steps"
        assert warned() == [said]
    finally:
        (vq / "config.json").write_text(kept)


def test_rounded_codes_are_tokens_for_a_prior(tmp_path):
    fsq, folder = tmp_path / "fsq", tmp_path / "prior"
    small = {"model.encoder.channels": 8, "model.decoder.channels": 8}
    assert main.main([*arguments("fsq", SHORT | small), f"--workdir={fsq}"]) == 0
    given = arguments("vqvae_prior", PRIOR | {"stages.autoencoder": fsq})
    assert main.main([*given, f"--workdir={folder}"]) == 0
    spec = workdir.read_spec(folder)
    assert spec.generated.facts["vocabulary_size"] == 5 * 3 * 3
    assert spec.generated.shape == (4, 4, 1)
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
    values = PRIOR | {"stages.autoencoder": vq, "checkpoint.every": "4_steps", "mesh.fsdp": 8}
    given = arguments("vqvae_prior", values)
    assert main.main([*given, f"--workdir={whole}"]) == 0
    assert workdir.read_spec(whole).generated.shape == (4, 4, 2)
    run = runs.build(
        workdir.read_config(whole),
        workdir.read_spec(whole),
        stages.find(workdir.read_config(whole), whole),
        whole,
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

    assert "is empty: give the workdir of a trained run" in attempt({"stages.autoencoder": ""})
    named = {"stages.autoencoder": vq, "dataset.codes": "autoencoders"}
    assert "dataset.codes='autoencoders': no such stage. Nearest: autoencoder" in attempt(named)
    named = {"stages.autoencoder": vq, "dataset.codes": "prior", "stages.prior": vq}
    assert "['prior'] is the name of a network of the method too" in attempt(named)
    assert "no run there" in attempt({"stages.autoencoder": tmp_path / "nothing"})
    assert "which has no codes" in attempt({"stages.autoencoder": prior})
    lost = tmp_path / "lost"
    shutil.copytree(prior, lost)
    (lost / "config.json").unlink()
    assert "has no checkpoint" in attempt({"stages.autoencoder": tmp_path / "nothing"}, lost)
    message = attempt({"stages.autoencoder": vq, "dataset.name": "mnist10k"})
    assert "the data are not those of config.stages.autoencoder" in message
    assert "name: digits -> mnist10k" in message
    message = attempt({"stages.autoencoder": vq, "dataset.test": "20_percent"})
    assert "sizes" in message
    message = attempt({"stages.autoencoder": vq, "model.network": "pixelrnn"})
    assert "Nearest: pixelcnn" in message
    assert "codes of" not in message  # nothing is encoded for nothing
    assert "config.dataset.flip=True" in attempt({"stages.autoencoder": vq, "dataset.flip": True})
    # Another codebook under a run that has begun.
    other = tmp_path / "other"
    values = SHORT | SMALL | {"seed": 1}
    assert main.main([*arguments("vqvae", values), f"--workdir={other}"]) == 0
    message = attempt({"stages.autoencoder": other, "duration": "12_steps"}, prior)
    assert f"stages.autoencoder: {str(vq)!r} -> {str(other)!r}" in message
    message = attempt(
        {"stages.autoencoder": other, "duration": "12_steps"}, prior, "--allow_config_change"
    )
    assert "its outputs mean something else" in message
    torn = tmp_path / "torn"
    shutil.copytree(other, torn)
    for file in (torn / "checkpoints" / "8" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:20])
    message = attempt({"stages.autoencoder": torn})
    assert "cannot be read" in message
    assert "config.stages.autoencoder" in message
    assert "No other checkpoint is whole" in message
    text = (other / "config.json").read_text()
    (other / "config.json").write_text(text.replace('"codes": 16', '"codes": 8'))
    assert "does not fit the config next to it" in attempt({"stages.autoencoder": other})
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text((vq / "config.json").read_text())
    assert "has no checkpoint" in attempt({"stages.autoencoder": empty})


# ---- stages that are trained first ---------------------------------------------------------------

FIRST = """
from genjax import config as configs

own = configs.read_module({file!r})


def get_config():
    return configs.override(own.get_config(), {{**own.PRESETS["tiny"], **{values!r}}})
"""


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A folder with the configs of a small VQ-VAE, and of a prior that has it as a stage."""
    folder = tmp_path_factory.mktemp("configs")
    small = SHORT | SMALL | {"checkpoint.every": "4_steps"}
    given = {"first": ("vqvae", small)}
    given["second"] = ("vqvae_prior", PRIOR | {"stages.autoencoder": "first.py"})
    for name, (source, values) in given.items():
        file = str(FOLDER / f"{source}.py")
        (folder / f"{name}.py").write_text(FIRST.format(file=file, values=values))
    return folder


def state_of(folder):
    config = workdir.read_config(folder)
    run = runs.build(config, workdir.read_spec(folder), stages.find(config, folder), folder)
    return Checkpoints(folder).restore(run.state)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_stage_that_a_config_names_is_trained_first_and_resumed(
    first, tmp_path, capsys, monkeypatch
):
    """Named beside the config that names it; killed in the stage, in the run, and not at all."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    given = [f"--config={first / 'second.py'}", "--config.checkpoint.every=4_steps"]
    assert main.main([*given, f"--workdir={whole}"]) == 0
    place = whole / "stages" / "autoencoder"
    assert workdir.read_config(place).vqvae.codes == 16
    assert Checkpoints(place).latest() == 8
    assert (place / "report.html").is_file()
    stage, state = state_of(place), state_of(whole)
    for name in ("params", "mutable"):  # frozen, bit for bit, through eight steps of the prior
        same(getattr(state, name)["autoencoder"], dict(getattr(stage, name)))

    save, wanted = Checkpoints.save, [place.parent.parent]

    def dying(self, state, step, metrics, *window):
        save(self, state, step, metrics, *window)
        if self.folder.parent == wanted[0] and step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "save", dying)
    own = killed / "stages" / "autoencoder"
    wanted[0] = own
    assert main.main([*given, f"--workdir={killed}"]) == 128 + signal.SIGTERM
    assert 4 <= Checkpoints(own).latest() < 8
    assert not workdir.has_checkpoint(killed)
    wanted[0] = killed
    assert main.main([*given, f"--workdir={killed}"]) == 128 + signal.SIGTERM
    assert "resuming at step" in capsys.readouterr().err
    assert Checkpoints(own).latest() == 8
    assert 4 <= Checkpoints(killed).latest() < 8
    wanted[0] = None
    shutil.rmtree(own / "checkpoints")  # the run has begun: it has all that it needs
    assert main.main([*given, f"--workdir={killed}"]) == 0
    assert not (own / "checkpoints").exists()
    assert digest_of(killed, capsys) == digest_of(whole, capsys)
    assert main.main([f"--workdir={killed}", "--mode=sample", "--num=2"]) == 0


def test_a_config_of_a_stage_is_looked_for_in_the_working_directory_first(
    first, tmp_path, monkeypatch
):
    text = (first / "first.py").read_text()
    (tmp_path / "first.py").write_text(text.replace("'vqvae.codes': 16", "'vqvae.codes': 7"))
    monkeypatch.chdir(tmp_path)
    given = [f"--config={first / 'second.py'}", "--workdir=run", "--config.duration=2_steps"]
    assert main.main(given) == 0
    assert workdir.read_spec(tmp_path / "run").generated.facts["vocabulary_size"] == 7


def test_a_stage_whose_config_cannot_be_read_is_named(first, tmp_path, capsys):
    given = [f"--config={first / 'second.py'}", f"--workdir={tmp_path / 'run'}"]
    message = refused(capsys, *given, "--config.stages.autoencoder=frist.py")
    assert "config.stages.autoencoder: --config=frist.py: no file 'frist.py'" in message
    assert not (tmp_path / "run" / "stages").exists()


METHOD = """
import jax.numpy as jnp

from genjax.methods import vqvae
from genjax.parallel.rules import replicate


def build(config, spec, stages):
    \"\"\"A VQ-VAE that says in its evaluations what the codes of its stage's own stage are.\"\"\"
    method, stage = vqvae.build(config, spec), stages["prior"]

    def evaluate(params, mutable, batch, key):
        own = stage.own(params), stage.own(mutable)
        return {
            **method.evaluate(params, mutable, batch, key),
            "sampled": stage.method.sample(*own, key, 1, {}).astype(jnp.float32).mean(),
        }

    return method._replace(evaluate=evaluate, rules=((r"^\\w+/autoencoder/", replicate),))
"""


def test_a_stage_may_have_a_stage(first, tmp_path, monkeypatch):
    """A method of one's own reaches a prior, which has its VQ-VAE; both are trained first."""
    monkeypatch.setattr(rules, "MIN_SHARDED_SIZE", 16)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "method_with_a_stage.py").write_text(METHOD)
    folder = tmp_path / "run"
    values = SHORT | SMALL | {"method": "method_with_a_stage", "mesh.fsdp": 8}
    given = arguments("vqvae", values | {"stages.prior": first / "second.py"})
    assert main.main([*given, f"--workdir={folder}"]) == 0
    prior = state_of(folder / "stages" / "prior")
    innermost = state_of(folder / "stages" / "prior" / "stages" / "autoencoder")
    state = state_of(folder)
    assert set(state.params) == {"prior", "autoencoder"}
    assert set(state.params["prior"]) == {"prior", "autoencoder"}
    same(state.params["prior"]["autoencoder"], dict(innermost.params))
    same(state.mutable["prior"]["autoencoder"], dict(innermost.mutable))
    (average,) = prior.ema.values()
    same(state.params["prior"]["prior"], average["prior"])
    assert set(state.opt_state) == {"autoencoder"}
    # Each network is spread by its own rules, whichever depth it is at.
    config, place = workdir.read_config(folder), folder / "stages" / "prior"
    inner = stages.find(workdir.read_config(place), place)["autoencoder"]
    for kind in ("params", "mutable"):
        networks = {"params": dict(getattr(innermost, kind))}
        own = rules.shardings(networks, inner.method.rules, make_mesh(config))["params"]
        found = jax.tree.map(lambda x: x.sharding, getattr(state, kind)["prior"]["autoencoder"])
        assert jax.tree.map(lambda x: x.spec, found) == jax.tree.map(lambda x: x.spec, own)
    # It is all in the run: the folders with what trained the stages may go.
    for stage in (folder / "stages" / "prior").rglob("checkpoints"):
        shutil.rmtree(stage)
    assert main.main([f"--workdir={folder}", "--mode=sample", "--num=2"]) == 0
    assert main.main([f"--workdir={folder}", "--mode=eval"]) == 0
    # Given as the folder of a run, its description comes with it, and that of its own stage.
    again = tmp_path / "again"
    shutil.copytree(folder / "stages" / "prior", tmp_path / "kept")
    config = configs.override(workdir.read_config(folder), {"stages.prior": str(tmp_path / "kept")})
    stages.keep(config, again)
    assert workdir.read_config(again / "stages" / "prior" / "stages" / "autoencoder")


def test_codes_of_no_stage_at_all(tmp_path):
    config = configs.load(f"{FOLDER / 'vqvae.py'}:tiny", {"dataset.codes": "autoencoder"})
    with pytest.raises(ConfigError, match=r"codes='autoencoder': no such stage\..*names none"):
        stages.codes_of(config, stages.find(config, tmp_path))


@pytest.mark.parametrize("name", ["base", "guide"])
def test_a_name_that_adapters_or_guides_have_is_refused(name, tmp_path):
    config = load("")
    with config.unlocked():
        config.stages = {name: "vqvae.py"}
    with pytest.raises(ConfigError, match=f"config.stages='{name}': expected another name than"):
        stages.find(config, tmp_path)


def test_a_picture_given_for_a_condition_that_is_codes_is_encoded():
    image = Field("image", (2, 2, 1), np.dtype(np.uint8), {"one": 1})
    latent = Field("code", (1, 1, 1), np.dtype(np.float32), {"field": ""})
    label = Field("label", (), np.dtype(np.int32), {"num_classes": 2})
    spec = methods.DataSpec("pictures", {"image": image}, "image", {"train": 4})

    def init(key, batch):
        return {"net": {}}, {"net": {}}

    codec = methods.Codec(
        ("net",),
        lambda params, mutable, batch: batch["image"].mean((1, 2, 3)) / 2,
        lambda params, mutable, z: z + 1,
    )
    phases = (methods.Phase("net", lambda *_: None),)
    coder = methods.Method(init, phases, lambda *_: {}, None, (), codec=codec)
    config = configs.override(configs.base(), {"dataset.codes": "coder", "stages.coder": "runs/x"})
    stage = methods.Stage("coder", config, spec, coder, ("net",))

    def sample(params, mutable, key, num, condition):
        assert condition["label"].tolist() == [1, 0]
        return condition["start"]

    plain = methods.Method(
        init, phases, lambda *_: {}, sample, (), conditions={"start": latent, "label": label}
    )
    joined = stages.join(plain, config, {"coder": stage}, spec)
    assert joined.conditions == {
        "start": image._replace(facts={"one": 1, "field": ""}),
        "label": label,
    }
    pictures = np.stack([np.full((2, 2, 1), 8), np.full((2, 2, 1), 40)])
    networks = {"coder": {"net": {}}}
    given = {"start": pictures, "label": np.array([1, 0])}
    found = joined.sample(networks, networks, jax.random.key(0), 2, given)
    np.testing.assert_array_equal(found, [5, 21])
