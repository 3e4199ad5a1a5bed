"""Adapters of any method: what its functions get, what is trained, where it lies."""

import re
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config as configs
from genjax import method as methods
from genjax.adapters import adapted
from genjax.config import ConfigError
from genjax.data.alphabets import Characters
from genjax.method import Aux, Codec, DataSpec, Field, Follow, Method, Phase
from genjax.nn import low_rank
from genjax.nn.updated import Updated
from genjax.parallel.mesh import global_batch
from genjax.parallel.rules import fsdp, path_name
from genjax.training import ema, game
from genjax.training.assemble import assemble, put_pretrained, read_pretrained

V, T = 32, 8
LM = {
    **{"batch_size": 8, "duration": "10_steps", "dataset.text.length": T, "ema.decay": (0.5,)},
    **{"model.lm.width": 64, "model.lm.depth": 2, "model.lm.heads": 4, "model.lm.kv_heads": 2},
    **{"model.lm.hidden": 128, "schedule.warmup": "", "optimizer.learning_rate": 1.0},
    "optimizer.name": "sgd",
    **{"adapters": ((r"blocks/(qkv|down)/kernel", 3), (r"embed/embedding", 2))},
}
DIT = {
    **{"batch_size": 8, "duration": "10_steps", "model.denoiser.width": 16},
    **{"model.denoiser.depth": 1, "model.denoiser.heads": 2, "schedule.warmup": ""},
    **{"adapters": ((r"blocks/\w+/kernel", 2),)},
}
GAN = {
    **{"batch_size": 8, "duration": "10_steps", "adapters": ((r"^generator/.*kernel", 1),)},
    **{"model.generator.channels": 4, "model.discriminator.channels": 4},
}


def texts():
    facts = {"vocabulary_size": V, "special": {"start": 0, "eos": 1}}
    facts["tokenizer"] = Characters("abc", {})
    fields = {
        "token": Field("text", (T + 1,), np.dtype(np.int32), facts),
        "bytes": Field("real", (), np.dtype(np.float32)),
    }
    return DataSpec("made", fields, "token", {"train": 64})


def images():
    fields = {
        "image": Field("image", (8, 8, 1), np.dtype(np.uint8)),
        "label": Field("label", (), np.dtype(np.int32), {"num_classes": 10}),
    }
    return DataSpec("made", fields, "image", {"train": 64})


FAMILIES = {
    "lm": ("configs/llama.py:tiny", LM, texts),
    "dit": ("configs/dit.py:tiny", DIT, images),
    "gan": ("configs/dcgan.py:tiny", GAN, images),
}


def config_of(family, **overrides):
    location, own, _ = FAMILIES[family]
    return configs.load(location, own | overrides)


def run_of(family, devices=1, **overrides):
    config = config_of(family, **overrides)
    return assemble(config, FAMILIES[family][2](), devices=jax.devices()[:devices])


def batch_of(run, seed=0):
    rng, count = np.random.default_rng(seed), run.examples_per_step
    made = {}
    for name, leaf in run.batch.items():
        high = {"token": V, "image": 256, "label": 10, "bytes": 9}[name]
        made[name] = rng.integers(1, high, leaf.shape).astype(leaf.dtype)
    assert all(len(rows) == count for rows in made.values())
    return global_batch(made, run.mesh)


def begun(run):
    """The first state, and no kernel of a base is zero, as those of a fresh DiT are."""
    with jax.set_mesh(run.mesh):
        state = run.init()
    rng = np.random.default_rng(0)
    moved = jax.tree.map(
        lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype),
        {f"base/{name}": state.params[f"base/{name}"] for name in run.method.adapters.networks},
    )
    return state.replace(params={**state.params, **moved})


def played(run, steps):
    with jax.set_mesh(run.mesh):
        state = begun(run)
        for step in range(steps):
            state, _ = run.step(state, batch_of(run, step))
    return state


@cache
def trained_family(family):
    """(family, its run, the first parameters, the state after two steps)."""
    run = run_of(family)
    return family, run, jax.device_get(begun(run).params), jax.device_get(played(run, 2))


@pytest.fixture(params=list(FAMILIES))
def trained(request):
    return trained_family(request.param)


def paths(tree):
    return {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def test_only_the_factors_are_trained(trained):
    family, run, first, state = trained
    networks = run.method.adapters.networks
    assert networks
    assert state.params.keys() == first.keys()
    for name in networks:
        chex.assert_trees_all_equal(state.params[f"base/{name}"], first[f"base/{name}"])
        assert paths(state.params[name]) == {
            f"{path}/{part}" for path in networks[name] for part in "ab"
        }
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params[name], first[name])
        found = {path_name(path): m for path, m in jax.tree_util.tree_leaves_with_path(moved)}
        assert any(m for path, m in found.items() if path.endswith("/a"))
        assert all(m for path, m in found.items() if path.endswith("/b")), found
    players = {"lm": {"lm"}, "dit": {"denoiser"}, "gan": {"generator", "discriminator"}}
    assert set(state.opt_state) == players[family]
    for averages in state.ema.values():
        assert not any(name.startswith("base/") for name in averages)
    if family == "gan":  # the other player is trained in full
        assert "base/discriminator" not in state.params
        change = jax.tree.map(
            lambda a, b: float(jnp.abs(a - b).max()),
            state.params["discriminator"],
            first["discriminator"],
        )
        assert max(jax.tree.leaves(change)) > 0


def test_the_family_computes_with_the_sum_and_begins_with_the_base(trained):
    """Losses, evaluations and samples are those of the family without adapters."""
    family, run, first, state = trained
    plain = methods.build(config_of(family, adapters=()), run.spec)
    adapters, batch, key = run.method.adapters, batch_of(run), jax.random.key(3)
    for name in adapters.networks:
        chex.assert_trees_all_equal(adapters.merge(first)[name], first[f"base/{name}"])
    params = jax.device_get(ema.evaluation_params(run.config, state.params, state.ema))
    full = adapters.merge(params)
    for name, known in adapters.networks.items():
        for path, adapter in known.items():
            base, own, sum_ = params[f"base/{name}"], params[name], full[name]
            for part in path.split("/"):
                base, own, sum_ = (tree[part] for tree in (base, own, sum_))
            A, B = (own[n].astype(np.float64) for n in "ab")
            stack = adapter.layout.stack or (1,)
            A = A.reshape(*stack, -1, adapter.rank)
            B = B.reshape(*stack, adapter.rank, -1)
            delta = 16 / adapter.rank * (A @ B).reshape(base.shape)
            np.testing.assert_allclose(sum_, base + delta, atol=1e-5)
    ours, theirs = evaluate_both(run.method, plain, params, full, state.mutable, batch, key)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_losses_apply_updates_beside_kernels_unless_they_are_to_be_merged():
    _, run, first, state = trained_family("lm")
    params = jax.device_get(state.params)
    network = run.method.adapters.merge(params, apart=True)["lm"]
    for kernel in ("qkv", "down"):
        assert isinstance(network["body"]["blocks"][kernel]["kernel"], Updated)
    assert isinstance(network["embed"]["embedding"], jax.Array)  # no linear map
    merged = run_of("lm", **{"lora.merged": True})
    chex.assert_trees_all_close(jax.device_get(played(merged, 2)).params, params, atol=2e-5)
    before = first["lm"]["body"]["blocks"]["down"]["kernel"]["b"]
    assert np.abs(params["lm"]["body"]["blocks"]["down"]["kernel"]["b"] - before).max() > 1e-3

    def shapes(run):
        loss = run.method.phases[0].loss
        own = {name: tree for name, tree in params.items() if name == "lm"}
        rest = {name: tree for name, tree in params.items() if name != "lm"}

        def value(own):
            return loss(rest | own, state.mutable, batch_of(run), jax.random.key(0), 0)[0]

        text = jax.jit(jax.grad(value)).lower(own).as_text()
        return set(re.findall(r"dot_general.*-> tensor<([0-9x]+)xf32>", text))

    assert "128x64" in shapes(merged)  # the gradient of a `down`
    assert "128x64" not in shapes(run)


def test_a_recurrent_network_has_the_gradient_of_the_sum():
    """Its kernel of the state has a derivative of its own."""
    given = {"batch_size": 8, "duration": "10_steps", "dataset.text.length": T}
    given |= {"adapters": ((r"kernel", 2),), "model.lm.width": 8, "schedule.warmup": ""}

    def gradient(merged):
        config = configs.load("configs/lstm.py:tiny", given | {"lora.merged": merged})
        run = assemble(config, texts(), devices=jax.devices()[:1])
        state, batch = begun(run), batch_of(run)
        params = state.params
        rng = np.random.default_rng(1)
        moved = lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype)  # noqa: E731
        first = {"lm": jax.tree.map(moved, params["lm"])}
        rest = {name: tree for name, tree in params.items() if name != "lm"}

        def value(own):
            loss = run.method.phases[0].loss
            return loss(rest | own, state.mutable, batch, jax.random.key(0), 0)[0]

        return jax.jit(jax.grad(value))(first)

    apart, merged = gradient(False), gradient(True)
    chex.assert_trees_all_close(apart, merged, rtol=1e-4, atol=1e-6)
    largest = {
        path_name(p): np.abs(g).max() for p, g in jax.tree_util.tree_leaves_with_path(merged)
    }
    assert min(size for path, size in largest.items() if "state" in path) > 1e-4


def evaluate_both(method, plain, params, full, mutable, batch, key):
    def both(params, full, mutable):
        step = jnp.int32(0)
        found = []
        for one, given in ((method, params), (plain, full)):
            losses = [p.loss(given, mutable, batch, key, step)[0] for p in one.phases]
            found.append((one.evaluate(given, mutable, batch, key), losses))
        return found

    return jax.jit(both)(params, full, mutable)


def test_on_eight_devices_it_is_what_it_is_on_one():
    """Factors are split as their kernel: over `tensor` where they share an axis with it."""
    mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
    run = run_of("lm", 8, **mesh)
    specs = {
        path_name(path): tuple(leaf.sharding.spec)
        for path, leaf in jax.tree_util.tree_leaves_with_path(run.state.params)
    }
    kernel = "body/blocks/qkv/kernel"
    plain = run_of("lm", 8, **mesh, adapters=())
    before = plain.state.params["lm"]["body"]["blocks"]["qkv"]["kernel"].sharding.spec
    assert specs[f"params/base/lm/{kernel}".removeprefix("params/")] == tuple(before)
    assert specs[f"lm/{kernel}/b"][2] == "tensor"
    assert "tensor" not in specs[f"lm/{kernel}/a"]
    assert specs["lm/body/blocks/down/kernel/a"][1] == "tensor"
    one, several = trained_family("lm")[3].params, jax.device_get(played(run, 2).params)
    chex.assert_trees_all_close(one, several, atol=2e-5)


# ---- a family that uses everything ---------------------------------------------------------------


def everything():
    """A linear regression with a teacher that follows it, a projection and a codec."""

    def init(key, batch):
        net = {"kernel": jax.random.normal(key, (3, 4)), "bias": jnp.ones(4)}
        return {"net": net, "other": {"kernel": jnp.ones((3, 3))}}, {"net": {}}

    def out(params, x, name="net"):
        return x @ params[name]["kernel"] + params[name]["bias"]

    def loss(params, mutable, batch, key, step):
        gap = out(params, batch["x"]) - out(params, batch["x"], "base/net")
        away = out(params, batch["x"], "teacher") - out(params, batch["x"])
        return (gap**2).sum() + (away**2).sum() + gap.sum(), Aux({}, {})

    return Method(
        init=init,
        phases=(Phase(("net", "other"), loss),),
        evaluate=lambda params, mutable, batch, key: {
            "guide": out(params, batch["x"], "guide/net" if "guide/net" in params else "net").sum(1)
        },
        sample=lambda params, mutable, key, num, condition, *, steps=1: out(params, jnp.ones(3)),
        rules=((r"^params/net/", fsdp), (r".*", fsdp)),
        codec=Codec(("net",), lambda p, m, batch: out(p, batch["x"]), lambda p, m, codes: codes, 0),
        pretrained=lambda: ({"net": {"kernel": jnp.full((3, 4), 7.0), "bias": jnp.zeros(4)}}, {}),
        apply=lambda params, mutable, batch: out(params, batch["x"], "teacher"),
        prepare=lambda params, mutable, batch, key, step: {"x": out(params, batch["x"])[:, :3]},
        follows={"teacher": Follow("net", 0.5)},
        project={"net": lambda tree: {**tree, "bias": tree["bias"] * 2}},
        guided=True,
    )


FIELDS = {"x": Field("real", (3,), np.dtype(np.float32))}


def wrapped(adapters=((r"net/kernel", 2),), **lora):
    config = configs.base()
    config.adapters = adapters
    config.lora.update(lora)
    return adapted(everything(), config, FIELDS)


def test_every_function_gets_whole_networks_and_the_base():
    method, x = wrapped(alpha=4.0), jnp.asarray([[1.0, 2.0, 3.0]])
    methods.check(method, "everything")
    assert list(methods.options_of(method)) == ["steps"]
    params, mutable = method.init(jax.random.key(0), {"x": x})
    assert params.keys() == {"net", "base/net", "other"}
    factors = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 4))}
    base = params["base/net"]
    params |= {
        "net": {"kernel": factors},
        "teacher": {"kernel": factors | {"b": jnp.zeros((2, 4))}},
    }
    bias = base["bias"] * 2  # projected
    one, start = x @ (base["kernel"] + 4.0) + bias, x @ base["kernel"] + bias
    batch = {"x": x}
    np.testing.assert_allclose(method.apply(params, mutable, batch), start, rtol=1e-6)
    np.testing.assert_allclose(method.codec.encode(params, mutable, batch), one, rtol=1e-6)
    assert method.codec.networks == ("net", "base/net")
    prepared = method.prepare(params, mutable, batch, None, 0)["x"]
    np.testing.assert_allclose(prepared, one[:, :3], rtol=1e-6)
    guided = params | {"guide/net": params["teacher"]}
    found = method.evaluate(guided, mutable, batch, None)["guide"]
    np.testing.assert_allclose(found, start.sum(1), rtol=1e-6)
    value, _ = method.phases[0].loss(params, mutable, batch, None, 0)
    gap = one - (x @ base["kernel"] + base["bias"])  # the base is as it is stored
    expected = (gap**2).sum() + ((one - start) ** 2).sum() + gap.sum()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert not method.project


def test_pretrained_weights_are_those_of_the_base():
    config = configs.override(configs.base(), {"method": "x", "duration": "2_steps"})
    config.adapters = ((r"net/kernel", 2),)
    spec = DataSpec("made", FIELDS, "x", {"train": 64})
    run = assemble(config, spec, wrapped(), devices=jax.devices()[:1])
    state = put_pretrained(run.init(), *read_pretrained(run))
    assert (state.params["base/net"]["kernel"] == 7).all()
    assert state.params["teacher"]["kernel"].keys() == {"a", "b"}
    assert paths(run.state.ema) == {
        f"0.999/{n}" for n in ("net/kernel/a", "net/kernel/b", "other/kernel")
    }


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        (((r"net/kernal", 2),), r"matches no kernel of a trained network. Nearest: net/kernel"),
        (((r"bias", 2),), r"'bias' matches no kernel"),
        (((r"base/net", 2),), r"matches no kernel"),
        (((r"net/kernel", 4),), r"net/kernel=4: expected at most 3, the smaller side .*\[3, 4\]"),
        (((r"kernel", 0),), r"expected a rank above 0 for some kernel"),
    ],
)
def test_rules_that_do_not_fit_are_refused(adapters, message):
    with pytest.raises(ConfigError, match=message):
        wrapped(adapters)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("adapters", (("x", -1),), "expected .*at least 0"),
        ("adapters", (("x", 1.5),), "expected a whole number"),
        ("adapters", ("x", 8), "pairs of a regex and a number"),
        ("adapters", (("(", 8),), "not a regular expression"),
        ("lora.kind", "lorra", "lora, dora. Nearest: lora"),
        ("lora.alpha", 0.0, "above 0"),
    ],
)
def test_bad_options_are_refused(key, value, message):
    with pytest.raises(ConfigError, match=message):
        config_of("lm", **{key: value})


def test_a_first_match_of_rank_zero_leaves_a_kernel_alone():
    method = wrapped(((r"^other", 0), (r"kernel", 1)), kind="dora")
    assert list(method.adapters.networks) == ["net"]
    assert game.trained(method) == ["net", "other"]
    params, _ = method.init(jax.random.key(0), {"x": jnp.ones((1, 3))})
    assert paths(params["net"]) == {"kernel/a", "kernel/b", "kernel/magnitude"}
    assert low_rank.layout("net/kernel", (3, 4)).shapes(1, "dora")["magnitude"] == (4,)
