"""Checkpoints: exact, atomic, the right ones kept, and never of the wrong model."""

import hashlib
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from genjax import config as configs
from genjax.config import ConfigError
from genjax.train_state import TrainState
from genjax.training.checkpoint import Checkpoints, Damaged
from genjax.training.checkpoint_files import digest_of_notes, disk_errors
from genjax.training.digests import digest, digests


def make_state(step=0, width=8, scale=1.0):
    params = {"net": {"kernel": scale * jnp.arange(16.0 * width).reshape(16, width)}}
    return TrainState(
        step=jnp.int32(step),
        params=params,
        opt_state={"net": optax.adam(1e-3).init(params["net"])},
        mutable={"net": {"count": jnp.int32(step)}},
        ema={"0.9": params},
        key=jax.random.key(step),
    )


def abstract(state, sharding=None):
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding if x.ndim else _whole(sharding)
        ),
        state,
    )


def _whole(sharding):
    return NamedSharding(sharding.mesh, PartitionSpec()) if hasattr(sharding, "mesh") else sharding


def opened(folder, **options):
    config = configs.base()
    config.checkpoint.update(options)
    return Checkpoints(folder, config)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    state = make_state(7)
    checkpoints = opened(tmp_path)
    checkpoints.save(state, 7, {})
    checkpoints.wait()
    found = Checkpoints(tmp_path).restore(abstract(state))
    chex.assert_trees_all_equal(found, state)
    assert digest(digests(found)) == digest(digests(state))


def test_restores_onto_another_mesh(tmp_path):
    state = make_state(3)
    checkpoints = opened(tmp_path)
    checkpoints.save(state, 3, {})
    checkpoints.wait()
    mesh = Mesh(np.array(jax.devices()), ("fsdp",), axis_types=(AxisType.Auto,))
    found = checkpoints.restore(abstract(state, NamedSharding(mesh, PartitionSpec("fsdp"))))
    assert found.params["net"]["kernel"].sharding.shard_shape((16, 8)) == (2, 8)
    assert digest(digests(found)) == digest(digests(state))


def test_keeps_the_newest_and_the_best(tmp_path):
    checkpoints = opened(tmp_path, keep=2, best="eval/loss", mode="min")
    for step, loss in [(1, 5.0), (2, 1.0), (3, 3.0), (4, None), (5, 4.0), (6, None)]:
        checkpoints.save(make_state(step), step, {} if loss is None else {"eval/loss": loss})
        checkpoints.wait()
    checkpoints.close()
    assert Checkpoints(tmp_path).steps() == [2, 5, 6]
    checkpoints = opened(tmp_path, keep=2, best="eval/loss", mode="min")  # resumed
    for step, loss in [(7, 1.5), (8, 2.0), (9, 2.0)]:
        checkpoints.save(make_state(step), step, {"eval/loss": loss})
        checkpoints.wait()
    assert checkpoints.steps() == [2, 8, 9]


def test_the_best_can_be_the_largest(tmp_path):
    checkpoints = opened(tmp_path, keep=1, best="eval/score", mode="max")
    for step, score in [(1, 0.1), (2, 0.9), (3, 0.5)]:
        checkpoints.save(make_state(step), step, {"eval/score": score})
        checkpoints.wait()
    assert checkpoints.steps() == [2, 3]


def test_the_early_stop_metric_is_best_too_and_nan_is_never_best(tmp_path):
    config = configs.base()
    config.checkpoint.keep = 1
    config.early_stop.update({"metric": "eval/score", "mode": "max"})
    checkpoints = Checkpoints(tmp_path, config)
    for step, score in [(1, 0.1), (2, 0.9), (3, float("nan")), (4, 0.5), (5, float("inf"))]:
        checkpoints.save(make_state(step), step, {"eval/score": score})
        checkpoints.wait()
    assert checkpoints.steps() == [2, 5]
    assert Checkpoints(tmp_path).best(config) == 2
    with pytest.raises(ConfigError, match="kept no best"):
        checkpoints.best(configs.base())


def test_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path):
    checkpoints = opened(tmp_path)
    checkpoints.save(make_state(4), 4, {})
    checkpoints.wait()
    for file in (tmp_path / "checkpoints" / "4" / "state").rglob("*"):
        if file.is_file() and "/d/" in str(file):
            file.write_bytes(b"damaged")
    with pytest.raises(Damaged, match=r"checkpoints/4 cannot be read"):
        Checkpoints(tmp_path).restore(abstract(make_state(4)))


def test_a_save_that_the_disk_has_lost_is_an_error(tmp_path):
    checkpoints = opened(tmp_path)
    checkpoints.save(make_state(4), 4, {})
    checkpoints._orbax.wait_until_finished()
    (manifest,) = (tmp_path / "checkpoints" / "4" / "state").glob("manifest.ocdbt")
    manifest.write_bytes(b"")
    with pytest.raises(Damaged, match=r"checkpoints/4 cannot be read"):
        checkpoints.wait()


def test_a_checkpoint_cut_short_is_never_picked_up(tmp_path):
    checkpoints = opened(tmp_path)
    checkpoints.save(make_state(4), 4, {})
    checkpoints.wait()
    checkpoints.close()
    whole = tmp_path / "checkpoints" / "4"
    torn = tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp"
    shutil.copytree(whole, torn)
    (torn / "commit_success.txt").unlink()
    assert Checkpoints(tmp_path).latest() == 4
    checkpoints = opened(tmp_path)
    assert checkpoints.latest() == 4
    chex.assert_trees_all_equal(checkpoints.restore(abstract(make_state())), make_state(4))


def test_another_model_is_refused_with_the_arrays_that_differ(tmp_path):
    checkpoints = opened(tmp_path)
    checkpoints.save(make_state(1), 1, {})
    checkpoints.wait()
    with pytest.raises(
        ConfigError, match=r"params/net/kernel: saved \(16, 8\), expected \(16, 4\)"
    ):
        checkpoints.restore(abstract(make_state(width=4)))


def test_no_checkpoint_and_no_such_step_say_so(tmp_path):
    checkpoints = opened(tmp_path)
    with pytest.raises(ConfigError, match="no checkpoint"):
        checkpoints.restore(abstract(make_state()))
    checkpoints.save(make_state(1), 1, {})
    checkpoints.wait()
    with pytest.raises(ConfigError, match=r"step 5 \(there are: \[1\]\)"):
        checkpoints.restore(abstract(make_state()), 5)


def test_partial_restore_follows_the_map(tmp_path):
    source = make_state(9, scale=2.0)
    source = source.replace(ema={"0.9": jax.tree.map(lambda p: p + 0.5, source.params)})
    checkpoints = opened(tmp_path)
    checkpoints.save(source, 9, {})
    checkpoints.wait()
    fresh = make_state(0)
    params = {"student": fresh.params["net"], "head": {"bias": jnp.full(3, 7.0)}}
    averaged = {"student": params["student"]}  # the head has no average
    fresh = fresh.replace(params=params, mutable={}, ema={"0.9": averaged})
    mapping = ((r"^params/student/(.*)$", r"ema/0.9/net/\1"),)
    found, taken = Checkpoints(tmp_path).restore_into(fresh, mapping)
    assert taken == ["params/student/kernel"]
    expected = {"student": source.ema["0.9"]["net"], "head": params["head"]}
    chex.assert_trees_all_equal(found.params, expected)
    chex.assert_trees_all_equal(found.ema["0.9"], {"student": expected["student"]})
    assert found.step == 0


def test_two_networks_may_begin_as_one_saved_network(tmp_path):
    checkpoints = opened(tmp_path)
    checkpoints.save(make_state(9), 9, {})
    checkpoints.wait()
    fresh = make_state(0)
    twins = fresh.replace(params={"a": fresh.params["net"], "b": fresh.params["net"]}, ema={})
    mapping = ((r"^params/\w+/kernel$", r"params/net/kernel"),)
    found, _ = Checkpoints(tmp_path).restore_into(twins, mapping)
    expected = make_state(9).params["net"]["kernel"]
    both = [found.params[name]["kernel"] for name in "ab"]
    np.testing.assert_array_equal(both, [expected] * 2)
    doubled = jax.jit(lambda a, b: (2 * a, 3 * b), donate_argnums=(0, 1))(*both)
    np.testing.assert_array_equal(doubled, [2 * expected, 3 * expected])


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (((r"^params/(.*)$", r"params/absent/\1"),), r"params/absent/net/kernel, which is absent"),
        (((r"^nothing$", r"x"),), r"matches no parameter"),
        (((r"^params/net/kernel$", r"mutable/net/count"),), r"mutable/net/count, which is \(\)"),
    ],
)
def test_a_wrong_map_is_refused(tmp_path, mapping, message):
    checkpoints = opened(tmp_path)
    checkpoints.save(make_state(9), 9, {})
    checkpoints.wait()
    with pytest.raises(ConfigError, match=message):
        Checkpoints(tmp_path).restore_into(make_state(0), mapping)


def test_digests_are_of_dtype_shape_and_bytes():
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    found = digests({"a": jnp.asarray(array)})
    assert found == {"a": hashlib.sha256(b"float32(2, 3)" + array.tobytes()).hexdigest()}
    assert digest(found) == hashlib.sha256(f"a {found['a']}\n".encode()).hexdigest()
    assert digests({"a": jnp.asarray(array.reshape(3, 2))}) != found


# ---- paths and damage ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run[1]", "a**b", "what?", "caf\udce9"])
def test_a_path_that_checkpoints_cannot_be_written_to_is_refused(tmp_path, name):
    """The library takes such a name for a pattern, and writes what it cannot read."""
    for config in (configs.base(), None):
        with pytest.raises(ConfigError, match="Rename that folder"):
            Checkpoints(tmp_path / name / "inside", config)
    assert list(tmp_path.iterdir()) == []
    Checkpoints(tmp_path / "run]-{1} ü 中", configs.base())


def test_a_checkpoint_that_was_not_put_together_is_when_it_is_read(tmp_path):
    """As those in a folder whose name was a pattern, once it is renamed."""
    checkpoints = opened(tmp_path)
    checkpoints.save(make_state(4), 4, {})
    checkpoints.close()
    state = tmp_path / "checkpoints" / "4" / "state"
    (state / "manifest.ocdbt").unlink()
    shutil.rmtree(state / "d")
    chex.assert_trees_all_equal(
        Checkpoints(tmp_path).restore(abstract(make_state(4))), make_state(4)
    )
    assert (state / "manifest.ocdbt").exists()


def test_a_checkpoint_is_opened_again_once_it_is_written(tmp_path):
    checkpoints = opened(tmp_path)
    checkpoints.save(make_state(4), 4, {})
    checkpoints._orbax.wait_until_finished()
    for file in (tmp_path / "checkpoints" / "4" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(Damaged, match="checkpoints/4 cannot be read"):
        checkpoints.wait()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with two checkpoints, to be copied."""
    folder = tmp_path_factory.mktemp("two")
    checkpoints = opened(folder)
    for step in (6, 12):
        checkpoints.save(make_state(step), step, {"eval/loss": 1.0}, {"skipped": step})
    checkpoints.close()
    return folder


def flipped(content, rng):
    place = rng.integers(len(content))
    changed = bytearray(content)
    changed[place] ^= 1 << rng.integers(8)
    return bytes(changed)


DAMAGES = {
    "deleted": lambda content, rng: None,
    "empty": lambda content, rng: b"",
    "cut": lambda content, rng: content[: len(content) // 2],
    "deep": lambda content, rng: b"[" * 200_000,
    "flipped": flipped,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_of_any_file_is_one_error_or_does_not_matter(two, tmp_path, kind, fuzz_seed):
    """Of the newest checkpoint; the one before it is whole, and the error says so."""
    rng, state = np.random.default_rng(fuzz_seed), make_state(12)
    files = sorted(p.relative_to(two) for p in (two / "checkpoints/12").rglob("*") if p.is_file())
    damaged = 0
    for file in files:
        run = tmp_path / "run"
        shutil.copytree(two, run)
        changed = DAMAGES[kind]((two / file).read_bytes(), rng)
        (run / file).unlink() if changed is None else (run / file).write_bytes(changed)
        try:
            for config in (None, configs.base()):
                checkpoints = Checkpoints(run, config)
                found = checkpoints.restore(abstract(state))
                if checkpoints.latest() == 12:
                    chex.assert_trees_all_equal(found, state)
                    assert checkpoints.window(12).get("skipped", 12) == 12
        except Damaged as error:
            damaged += 1
            message = str(error)
            assert "checkpoints/12 cannot be read, it is damaged: " in message
            assert "Step 6 before it is whole: move " in message
            assert len(message) < 1000
        shutil.rmtree(run)
    assert damaged >= 2 or kind == "flipped"  # such a bit may be of no consequence


def numbers_of(folder, step):
    """The file that has most of the numbers of a checkpoint."""
    files = (folder / f"checkpoints/{step}/state").rglob("d/*")
    return max(files, key=lambda path: path.stat().st_size)


def empty(folder, step):
    """Takes all from the files that a state is in: which of them is read is up to the library."""
    for file in (folder / f"checkpoints/{step}/state").rglob("d/*"):
        file.write_bytes(b"")


def test_a_flipped_bit_in_an_array_is_found_by_its_digest(tmp_path):
    rng, rows = np.random.default_rng(0), np.random.default_rng(1).normal(size=(64, 64))
    state = {"rows": jnp.asarray(rows, jnp.float32)}
    outcomes = {}
    for digests_too in (True, False):
        folder = tmp_path / str(digests_too)
        checkpoints = opened(folder, digests=digests_too)
        checkpoints.save(state, 1, {})
        checkpoints.close()
        content = numbers_of(folder, 1).read_bytes()
        outcomes[digests_too] = []
        for _ in range(12):
            numbers_of(folder, 1).write_bytes(flipped(content, rng))
            try:
                found = Checkpoints(folder).restore(abstract(state))
                same = bool((found["rows"] == state["rows"]).all())
                outcomes[digests_too].append("right" if same else "wrong")
            except Damaged:
                outcomes[digests_too].append("damaged")
    assert "wrong" not in outcomes[True]
    assert "damaged" in outcomes[True]
    assert "wrong" in outcomes[False]


def noted(folder, change):
    """Changes the notes of step 12 as if they had been written so."""
    notes = folder / "checkpoints/12/notes/metadata"
    content = json.loads(notes.read_text())
    del content["digest"]
    change(content)
    notes.write_text(json.dumps(content | {"digest": digest_of_notes(content)}))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"skipped": 12', '"skipped": 13'),
        ('"skipped"', '"skippee"'),
        ('"window"', '"windov"'),
        ('"digest"', '"digesu"'),
        ('"digest": "', '"digest": "0'),
    ],
)
def test_notes_that_are_not_those_that_were_written_are_damage(two, tmp_path, old, new):
    shutil.copytree(two, tmp_path / "run")
    notes = tmp_path / "run/checkpoints/12/notes/metadata"
    assert old in notes.read_text()
    notes.write_text(notes.read_text().replace(old, new))
    with pytest.raises(Damaged, match="notes/metadata is not what was written"):
        Checkpoints(tmp_path / "run").window(12)


def test_notes_of_an_older_checkpoint_have_no_digest(two, tmp_path):
    shutil.copytree(two, tmp_path / "run")
    notes = tmp_path / "run/checkpoints/12/notes/metadata"
    content = json.loads(notes.read_text())
    del content["digest"]
    notes.write_text(json.dumps(content))
    assert Checkpoints(tmp_path / "run").window(12) == {"skipped": 12}


def test_an_array_without_a_digest_is_read_and_the_others_are_compared(two, tmp_path):
    """As one that was spread over processes when it was saved."""
    shutil.copytree(two, tmp_path / "run")
    noted(tmp_path / "run", lambda notes: notes["sha256"].pop("params/net/kernel"))
    found = Checkpoints(tmp_path / "run").restore(abstract(make_state()))
    chex.assert_trees_all_equal(found, make_state(12))
    noted(tmp_path / "run", lambda notes: notes["sha256"].update(step="0" * 64))
    with pytest.raises(Damaged, match="such as step"):
        Checkpoints(tmp_path / "run").restore(abstract(make_state()))


def test_a_peer_that_dies_during_a_save_is_not_taken_for_thedisk_errors(tmp_path):
    with pytest.raises(jax.errors.JaxRuntimeError), disk_errors(tmp_path):
        raise jax.errors.JaxRuntimeError("Gloo all-reduce failed: Connection closed by peer")
    with (
        pytest.raises(OSError, match="a checkpoint cannot be written: another"),
        disk_errors(tmp_path),
    ):
        raise RuntimeError("another")


def test_arrays_that_are_read_alone_are_compared_too(two, tmp_path):
    shutil.copytree(two, tmp_path / "run")
    noted(tmp_path / "run", lambda notes: notes["sha256"].update({"params/net/kernel": "0" * 64}))
    kernel = abstract(make_state()).params["net"]["kernel"]
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises(Damaged, match="such as params/net/kernel"):
        checkpoints.read(12, {"params/net/kernel": kernel})
    half = jax.ShapeDtypeStruct(kernel.shape, jnp.bfloat16, sharding=kernel.sharding)
    assert checkpoints.read(12, {"params/net/kernel": half})  # another type is not compared
    averages = abstract(make_state()).ema["0.9"]["net"]["kernel"]
    assert checkpoints.read(12, {"ema/0.9/net/kernel": averages})
    assert checkpoints.read(6, {"params/net/kernel": kernel})


def test_where_nothing_is_whole_the_error_says_so(two, tmp_path):
    shutil.copytree(two, tmp_path / "run")
    for step in (6, 12):
        empty(tmp_path / "run", step)
    with pytest.raises(Damaged, match="No other checkpoint is whole"):
        Checkpoints(tmp_path / "run").restore(abstract(make_state()))


def test_an_older_checkpoint_that_is_damaged_names_the_newest(two, tmp_path):
    shutil.copytree(two, tmp_path / "run")
    empty(tmp_path / "run", 6)
    with pytest.raises(Damaged, match=r"Step 12 is whole.*give --checkpoint=12"):
        Checkpoints(tmp_path / "run").restore(abstract(make_state()), 6)


def test_the_window_of_the_log_comes_back(two):
    assert Checkpoints(two).window(12) == {"skipped": 12}
