"""What denoisers are told: labels, pictures, masks, texts, vectors and rows, alone and together."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.method import DataSpec, Field, Method, Stage
from genjax.methods import consistency, diffusion, diffusion_sampling
from genjax.methods.denoiser import OWN, Known, network
from genjax.networks import conditioning
from genjax.nn.functional import Functional
from genjax.sampling import paths

KEY = jax.random.key(0)
END, PAD = 1, 2
FLOAT, INT, BYTE = (np.dtype(t) for t in (np.float32, np.int32, np.uint8))
TEXT = {"vocabulary_size": 9, "special": {"eos": END, "pad": PAD}}
FIELDS = {
    "image": Field("image", (8, 8, 1), BYTE),
    "label": Field("label", (), INT, {"num_classes": 3}),
    "small": Field("image", (2, 2, 1), BYTE),
    "mask": Field("mask", (8, 8, 1), BYTE),
    "latent": Field("code", (16, 16, 2), FLOAT, {"mean": (1.0, 2.0), "std": (2.0, 4.0)}),
    "text": Field("text", (5,), INT, TEXT),
    "tokens": Field("code", (2, 3), INT, {"vocabulary_size": 7}),
    "vector": Field("real", (4,), FLOAT),
    "number": Field("real", (), FLOAT),
    "colour": Field("label", (), INT, {"num_classes": 5}),
    "rows": Field("real", (3, 6), FLOAT),
}
SPEC = DataSpec("toy", FIELDS, "image", {"train": 8})
ALL = tuple(name for name in FIELDS if name not in ("image", "label"))
NETWORKS = {
    "unet": {
        **{"channels": 8, "multipliers": (1,), "blocks": 1, "attention": (), "heads": 2},
        **{"dropout": 0.0, "patch_size": 2},
    },
    "dit": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2},
    "edm2_unet": {"channels": 8, "multipliers": (1,), "blocks": 1, "attention": (), "head_size": 4},
}
TAKEN = {name: ALL for name in NETWORKS} | {
    "edm2_unet": tuple(n for n in ALL if conditioning.way_of(n, FIELDS[n]) != "context")
}


def values_of(fields, count, seed=0):
    rng = np.random.default_rng(seed)

    def draw(name, field):
        shape = (count, *field.shape)
        if field.dtype == FLOAT:
            return rng.normal(size=shape).astype(np.float32)
        most = {"image": 256, "mask": 2}.get(field.kind) or next(
            field.facts[k] for k in ("num_classes", "vocabulary_size") if k in field.facts
        )
        return rng.integers(3 if name == "text" else 0, most, shape).astype(field.dtype)

    found = {name: draw(name, field) for name, field in fields.items()}
    if "text" in found:
        found["text"][:, 3], found["text"][:, 4] = END, PAD
    return {name: jnp.asarray(value) for name, value in found.items()}


def config_of(name, **section):
    model = {"network": name, "denoiser": NETWORKS[name]}
    section = {"context_width": 8, "num_timesteps": 10, "steps": 3, "eval_timesteps": 2} | section
    if "text" in section.get("conditions", ()):
        section = {"context_depth": 1, "context_heads": 2} | section
    return ConfigDict({"diffusion": section, "model": model, "precision": "float32"})


def model_of(name, spec=SPEC, **section):
    """The denoiser of a network, its parameters off their initial zeros, and its state."""
    config = config_of(name, **section)
    o = diffusion.options_from_config(config.diffusion, spec)
    net = network(config, spec, spec.generated.shape[-1], o).net
    model = diffusion.denoiser_of(net, o, spec)
    params, mutable = model.init(KEY)
    return model, moved(params), mutable


def moved(params):
    """Larger by noise that depends on the path, so that the parts of two networks are alike."""

    def move(path, leaf):
        rng = np.random.default_rng(sum(map(ord, jax.tree_util.keystr(path))))
        return leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(move, params)


@pytest.fixture(scope="module", params=NETWORKS)
def full(request):
    """A network that is told everything that it can be told, and the label."""
    conditions = TAKEN[request.param]
    model, params, mutable = model_of(
        request.param, conditions=conditions, class_conditional=True, label_dropout=0.5
    )
    batch = values_of({n: FIELDS[n] for n in ("image", "label", *conditions)}, 3)

    @jax.jit
    def run(values, hidden):
        x = model.data(batch)
        at = paths.tabulated(model.path, jnp.array([2, 5, 9]))
        return model(params, mutable, x, at, model.conditioning(params, Known(values, hidden)))[0]

    return SimpleNamespace(**locals())


def test_every_condition_matters_and_no_example_sees_another(full):
    known = {n: v for n, v in full.batch.items() if n != "image"}
    none = jnp.zeros(3, bool)
    first = full.run(known, none)
    other = values_of({n: FIELDS[n] for n in known}, 3, seed=1)
    for name in known:
        changed = known[name].at[0].set(other[name][0])
        if name in ("label", "colour", "mask", "number"):
            changed = known[name].at[0].set((known[name][0] + 1) % 2)
        difference = np.abs(full.run(known | {name: changed}, none) - first).max((1, 2, 3))
        assert difference[0] > 1e-4, name
        assert difference[1:].max() == 0, name


def test_a_hidden_example_is_told_nothing(full):
    known = {n: v for n, v in full.batch.items() if n != "image"}
    other = values_of({n: FIELDS[n] for n in known}, 3, seed=1)
    hidden = jnp.array([True, False, True])
    first, second = (full.run(values, hidden) for values in (known, other))
    np.testing.assert_array_equal(first[hidden], second[hidden])
    assert np.abs(first - second)[1].max() > 1e-4
    assert np.abs(full.run(known, ~hidden & False) - first)[0].max() > 1e-4


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_what_follows_the_end_of_a_text_changes_nothing(name):
    model, params, mutable = model_of(name, conditions=("text",))
    batch = values_of({n: FIELDS[n] for n in ("image", "text")}, 1)

    def run(text):
        at = paths.tabulated(model.path, jnp.array([5]))
        said = model.conditioning(params, Known({"text": jnp.asarray([text])}))
        return model(params, mutable, model.data(batch), at, said)[0]

    run = jax.jit(run)
    first = run([4, 5, 6, END, PAD])
    for text in ([4, 5, 6, END, 7], [4, 5, 6, END, END], [4, 5, 6, END, 3]):
        np.testing.assert_array_equal(run(text), first)
    for text in ([4, 5, 7, END, PAD], [4, 6, 5, END, PAD], [4, 5, 6, 8, END], [4, 5, END, 6, 7]):
        assert np.abs(run(text) - first).max() > 1e-4, text
    assert np.isfinite(run([PAD] * 5)).all()


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_ways_in_that_are_zero_leave_the_network_as_it_was(name):
    """So a run can go on from a network that was told nothing."""
    plain, params, mutable = model_of(name)
    model, _, _ = model_of(name, conditions=ALL)
    more, _ = model.init(KEY)

    def filled(path, new):
        old, keys = params, [k.key for k in path]
        for key in keys:
            if key not in old:
                return new
            old = old[key]
        if old.shape == new.shape:
            return old
        axis = -2  # the first layer's channels, behind those of the image in each pixel
        part = {"unet": 4, "dit": 16}[name]  # pixels in a patch
        pixels = np.moveaxis(np.asarray(old), axis, 0).reshape(
            part, -1, *np.shape(old)[:axis], old.shape[-1]
        )
        grown = np.zeros((part, new.shape[axis] // part, *pixels.shape[2:]), np.float32)
        grown[:, : pixels.shape[1]] = pixels
        grown = grown.reshape(new.shape[axis], *pixels.shape[2:])
        return jnp.asarray(np.moveaxis(grown, 0, axis))

    same = jax.tree_util.tree_map_with_path(filled, more)
    batch = values_of(FIELDS, 3)
    at = paths.tabulated(model.path, jnp.array([2, 5, 9]))
    x = model.data(batch)
    before = jax.jit(lambda p: plain(p, mutable, x, at, conditioning.Conditioning())[0])(params)
    run = jax.jit(lambda p: model(p, mutable, x, at, model.conditioning(p, model.known(batch)))[0])
    assert np.abs(before).max() > 0.1
    np.testing.assert_allclose(run(same), before, rtol=1e-5, atol=1e-5)
    assert np.abs(run(moved(same)) - before).max() > 1e-2


@pytest.mark.parametrize("name", NETWORKS)
def test_a_few_steps_teach_it_to_look(name):
    """From its own beginning: then each condition's value changes the output."""
    config = config_of(name, conditions=TAKEN[name], class_conditional=True)
    method = diffusion.build(config, SPEC)
    batch = values_of({n: FIELDS[n] for n in ("image", "label", *TAKEN[name])}, 8)
    optimizer = optax.adam(1e-2)
    params, mutable = method.init(KEY, batch)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, key):
        loss = lambda p: method.phases[0].loss(p, mutable, batch, key, 0)[0]  # noqa: E731
        slope = jax.grad(loss)(params)
        change, state = optimizer.update(slope, state)
        return optax.apply_updates(params, change), state

    for i in range(4):
        params, state = step(params, state, jax.random.key(i))
    o = diffusion.options_from_config(config.diffusion, SPEC)
    model = diffusion.denoiser_of(network(config, SPEC, 1, o).net, o, SPEC)
    at = paths.tabulated(model.path, jnp.full(8, 5))
    run = jax.jit(
        lambda values: model(
            params["denoiser"],
            mutable["denoiser"],
            model.data(batch),
            at,
            model.conditioning(params["denoiser"], Known(values)),
        )[0]
    )
    first, other = run(batch), values_of(FIELDS, 8, seed=1)
    for condition in ("label", *TAKEN[name]):
        moved_by = np.abs(run(batch | {condition: other[condition]}) - first).max()
        assert moved_by > 1e-6, condition


# ---- exact conditional denoisers -----------------------------------------------------------------

# x = m(c) + 0.5 e: given c, x is Gaussian, and what a denoiser should say is known.
DEVIATION = 0.5
GAUSSIAN = {
    "map": Field("real", (4, 4, 2), FLOAT),
    "large": Field("real", (8, 8, 1), FLOAT),
    "vector": Field("real", (6,), FLOAT),
    "rows": Field("real", (3, 6), FLOAT),
    "tokens": Field("code", (4,), INT, {"vocabulary_size": 5}),
    "label": Field("label", (), INT, {"num_classes": 3}),
}
TARGET = Field("code", (4, 4, 2), FLOAT)
MIX = np.random.default_rng(0).normal(size=(6, 32)).astype(np.float32) / 2


def mean_of(name, value, table=None):
    """m(c), [B, 4, 4, 2], in NumPy."""
    value, shape = np.asarray(value), (-1, 4, 4, 2)
    if name == "map":
        return 0.8 * value
    if name == "large":  # the two upper pixels of each 2 x 2
        return np.stack([value[:, ::2, ::2, 0], value[:, ::2, 1::2, 0]], -1)
    if name == "vector":
        return (value @ MIX).reshape(shape)
    if name == "rows":
        return (value.mean(1) @ MIX).reshape(shape)
    if name == "tokens":
        return (np.asarray(table)[value].mean(1) @ MIX).reshape(shape)
    return (MIX[value]).reshape(shape)


def exact(name, path):
    """A network that says E[x_0 | x_t, c] of what it is told."""

    def mean(x, label, vector, context, mask):
        shape = (-1, 4, 4, 2)
        if name == "map":
            return 0.8 * x[..., 2:]
        if name == "large":
            return x[..., 2:4]
        if name == "vector":
            return (vector @ MIX).reshape(shape)
        if name in ("rows", "tokens"):
            share = mask / mask.sum(1, keepdims=True)
            return (jnp.einsum("bse,bs->be", context, share) @ MIX).reshape(shape)
        return jnp.asarray(np.concatenate([MIX[:3], 0 * MIX[:1]]))[label].reshape(shape)

    def apply(params, mutable, x, t, label, vector=None, context=None, context_mask=None, **_):
        m = mean(x, label, vector, context, context_mask)
        at = paths.tabulated(path, jnp.round(t).astype(jnp.int32))
        alpha, sigma = (v.reshape(-1, 1, 1, 1) for v in (at.alpha, at.sigma))
        gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
        return m + params.get("gain", 1.0) * gain * (x[..., :2] - alpha * m), mutable

    return Functional(lambda key: ({}, {}), apply)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_the_exact_conditional_denoiser_has_the_least_loss_and_draws_its_law(name):
    T, count = 50, 2000
    spec = DataSpec("gauss", {"code": TARGET, name: GAUSSIAN[name]}, "code", {"train": count})
    labelled = {"class_conditional": True} if name == "label" else {"conditions": (name,)}
    o = diffusion.Options(
        num_timesteps=T, prediction="x0", context_width=6, label_dropout=0.0, **labelled
    )
    method = diffusion.from_network(exact(name, diffusion.path_of(o)), o, spec, ())
    params, mutable = method.init(KEY, {})
    table = None
    if OWN in params["denoiser"]:
        row = params["denoiser"][OWN]["rows"][name]
        if name == "rows":  # the map is the identity
            row["map"] = {"kernel": jnp.eye(6), "bias": jnp.zeros(6)}
        else:  # what a token at a place becomes is its own vector: taken off, its place is known
            place = conditioning.sinusoidal(jnp.arange(4), 6)
            row["token"] = {"embedding": row["token"]["embedding"] - place.mean(0)}
            table = row["token"]["embedding"] + place.mean(0)
    rng = np.random.default_rng(1)
    values = values_of({name: GAUSSIAN[name]}, count)
    m = mean_of(name, values[name], table)
    x0 = m + DEVIATION * rng.normal(size=m.shape)
    batch = values | {"code": jnp.asarray(x0, jnp.float32)}
    loss = jax.jit(lambda p: method.phases[0].loss(p, mutable, batch, KEY, 0)[0])
    at = paths.levels(diffusion.path_of(o), np.arange(T))
    bayes = np.mean(DEVIATION**2 * at.sigma**2 / (at.alpha**2 * DEVIATION**2 + at.sigma**2))
    np.testing.assert_allclose(loss(params), bayes, rtol=0.02)
    worse = {"denoiser": params["denoiser"] | {"gain": jnp.float32(0.4)}}
    assert loss(worse) > 1.05 * bayes
    shuffled = batch | {name: jnp.roll(values[name], 1, axis=0)}
    assert method.phases[0].loss(params, mutable, shuffled, KEY, 0)[0] > 1.5 * bayes
    keywords = method.plan(sampler="ddim", steps=T)
    drawn = jax.jit(lambda key: method.sample(params, mutable, key, count, values, **keywords))
    error = np.asarray(drawn(jax.random.key(2))) - m
    assert np.abs(error.mean(0)).max() < 5 * DEVIATION / np.sqrt(count)
    assert abs(error.std() / DEVIATION - 1) < 0.03


# ---- guidance and samples ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "cfg++"])
def test_guidance_is_its_formula_on_two_calls(kind):
    model, params, mutable = model_of("dit", conditions=ALL, label_dropout=0.1)
    batch = values_of(FIELDS, 3)
    known = model.known(batch)
    x, at = model.data(batch), paths.tabulated(model.path, jnp.int32(4))
    own = ({"denoiser": params}, {"denoiser": mutable})
    w = 0.7 if kind == "cfg++" else 2.5
    plan = diffusion.plan(model.options, model.path, sampler="ddim", guidance=w, guidance_kind=kind)
    named = {n: plan[n] for n in ("guidance", "guided", "kind", "threshold")}
    denoise = diffusion_sampling.denoiser(model, *own, known, **named)
    found, _ = jax.jit(lambda x: denoise(x, at, ()))(x)
    hidden = known._replace(hidden=jnp.ones(3, bool))
    good, bad = (
        model.predict(params, mutable, x, at, model.conditioning(params, k))
        for k in (known, hidden)
    )
    x0 = bad.x0 + w * (good.x0 - bad.x0)
    if kind == "linear":
        x0 = jnp.clip(x0, -1, 1)
    np.testing.assert_allclose(found.x0, x0, rtol=1e-3, atol=1e-3)
    assert np.abs(good.x0 - bad.x0).max() > 1e-2
    if kind == "cfg++":
        np.testing.assert_allclose(found.epsilon, bad.epsilon, rtol=1e-3, atol=1e-4)


def test_worse_weights_are_told_by_their_own_ways_in():
    """Autoguidance: the embedding of words is the other network's, too."""
    model, params, mutable = model_of("dit", conditions=("text",), label_dropout=0.0)
    batch = values_of({n: FIELDS[n] for n in ("image", "text")}, 2)
    x, at = model.data(batch), paths.tabulated(model.path, jnp.int32(4))
    known = model.known(batch)
    worse = params | {OWN: moved(params[OWN])}
    plan = diffusion.plan(model.options, model.path, sampler="ddim", guidance=2.0)
    named = {n: plan[n] for n in ("guidance", "guided", "kind", "threshold")}
    every = {"denoiser": params, "guide/denoiser": worse}
    denoise = diffusion_sampling.denoiser(model, every, {"denoiser": mutable}, known, **named)
    found, _ = jax.jit(lambda x: denoise(x, at, ()))(x)
    predict = jax.jit(lambda p: model.predict(p, mutable, x, at, model.conditioning(p, known)).x0)
    good, bad = predict(params), predict(worse)
    assert np.abs(good - bad).max() > 1e-3
    want = jnp.clip(bad + 2 * (good - bad), -1, 1)
    np.testing.assert_allclose(found.x0, want, rtol=1e-3, atol=1e-3)


WORDS = {"a": 3, "b": 4, "c": 5}


class Letters:
    """A tokenizer of single letters."""

    begins = ()

    def encode(self, given):
        return np.array([WORDS[letter] for letter in given])


def test_a_text_is_read_in_its_order_if_it_has_a_transformer():
    """The context of a b c is that of c b a in another order only without one."""
    found = {}
    for depth in (0, 1):
        model, params, _ = model_of("dit", conditions=("text",), context_depth=depth)
        rows = params[OWN]["rows"]["text"]["token"]["embedding"]
        told_of = jax.jit(
            lambda t, p=params, m=model: m.conditioning(p, Known({"text": t})).context
        )
        contexts = told_of(jnp.array([[3, 4, 5, END, PAD], [5, 4, 3, END, PAD]]))
        positions = conditioning.sinusoidal(jnp.arange(5), rows.shape[1])
        found[depth] = np.abs((contexts[0] - positions)[:3] - (contexts[1] - positions)[2::-1])
    assert found[0].max() < 1e-5
    assert found[1].max() > 1e-2


def test_prompts_are_composed_as_the_scores_of_their_products():
    """x_0 = n + w (g - n) + w sum_i v_i (p_i - n) (Liu et al. 2022, eq. 11)."""
    tokenizer = FIELDS["text"]._replace(facts=TEXT | {"tokenizer": Letters()})
    spec = SPEC._replace(fields=FIELDS | {"text": tokenizer})
    model, params, mutable = model_of("dit", spec, conditions=("text",))
    batch = values_of({n: FIELDS[n] for n in ("image", "text")}, 2)
    x, at = model.data(batch), paths.tabulated(model.path, jnp.int32(9))
    method = diffusion.build(config_of("dit", conditions=("text",)), spec)

    @jax.jit
    def x0(texts):
        return model.predict(params, mutable, x, at, model.conditioning(params, texts)).x0

    known = model.known(batch)
    texts = {"ab": (3, 4, END, PAD, PAD), "c": (5, END, *[PAD] * 3), "b": (4, END, *[PAD] * 3)}
    rows = {letters: jnp.tile(jnp.array(ids), (2, 1)) for letters, ids in texts.items()}
    good, null = x0(known), x0(known.all_hidden())
    ab, c, b = (x0(Known({"text": rows[word]})) for word in ("ab", "c", "b"))
    assert min(np.abs(good - y).max() for y in (null, ab, c, b)) > 1e-3
    for options, want in (
        ({"guidance": 1.5, "negative_prompt": "ab"}, ab + 1.5 * (good - ab)),
        (
            {"guidance": 0.5, "more_prompts": (("c", 0.6), ("b", -0.4))},
            null + 0.5 * (good - null) + 0.5 * (0.6 * (c - null) - 0.4 * (b - null)),
        ),
    ):
        plan = method.plan(sampler="ddim", **options)
        named = {n: plan[n] for n in ("guidance", "prompts", "guided", "kind", "threshold")}
        own = ({"denoiser": params}, {"denoiser": mutable})
        found, _ = diffusion_sampling.denoiser(model, *own, known, **named)(x, at, ())
        np.testing.assert_allclose(found.x0, jnp.clip(want, -1, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negative_prompt": "a"}, "negative_prompt='a' has no effect without guidance"),
        ({"guidance": 2, "more_prompts": ("a",)}, "more_prompts.*expected pairs"),
        ({"guidance": 2, "more_prompts": (("a", "b"),)}, "more_prompts.*expected pairs"),
        ({"guidance": 2, "negative_prompt": "abcab"}, "a text of 6 tokens, expected at most 5"),
    ],
)
def test_wrong_prompts_are_refused(options, message):
    tokenizer = FIELDS["text"]._replace(facts=TEXT | {"tokenizer": Letters()})
    spec = SPEC._replace(fields=FIELDS | {"text": tokenizer})
    method = diffusion.build(config_of("dit", conditions=("text",)), spec)
    with pytest.raises(ConfigError, match=message):
        method.plan(**options)
    without = diffusion.build(config_of("dit"), SPEC)
    with pytest.raises(ConfigError, match="no text that others could replace"):
        without.plan(guidance=2, negative_prompt="a")


def test_a_reader_of_texts_without_a_text_is_refused():
    with pytest.raises(ConfigError, match="context_depth=2: expected 0: no text is among"):
        diffusion.build(config_of("dit", context_depth=2), SPEC)
    with pytest.raises(ConfigError, match="context_heads=3: expected a divisor of context_width=8"):
        diffusion.build(config_of("dit", conditions=("text",), context_heads=3), SPEC)


def test_a_sample_does_not_depend_on_those_beside_it():
    _, params, mutable = model_of("unet", conditions=ALL, guidance=2.0)
    config = config_of("unet", conditions=ALL, guidance=2.0)
    method = diffusion.build(config, SPEC)
    assert list(method.conditions)[: len(ALL)] == list(ALL)
    keywords, values = method.plan(), values_of({n: FIELDS[n] for n in ALL}, 5)
    own = ({"denoiser": params}, {"denoiser": mutable})

    def draw(count):
        given = {name: value[:count] for name, value in values.items()}
        run = partial(method.sample, *own, num=count, condition=given, **keywords)
        return np.asarray(jax.jit(lambda key: run(key=key))(KEY)).astype(int)

    many, few = draw(5), draw(3)
    assert many.std() > 10
    assert np.abs(many[:3] - few).max() <= 1
    with pytest.raises(ConfigError, match="--mask is missing"):
        method.sample(*own, KEY, 5, {n: v for n, v in values.items() if n != "mask"}, **keywords)
    with pytest.raises(ConfigError, match=r"text: expected an array of \(5, 5\)"):
        method.sample(*own, KEY, 5, values | {"text": values["text"][:, :4]}, **keywords)
    with pytest.raises(ConfigError, match="label: the model has no such condition"):
        method.sample(*own, KEY, 5, values | {"label": jnp.zeros(5, jnp.int32)}, **keywords)


def test_conditions_of_an_example_are_hidden_together():
    names = ("small", "text", "vector")
    seen = {}

    def apply(params, mutable, x, t, label, vector, context, context_mask, key=None, train=False):
        seen.update(
            label=label == 3,
            small=(x[..., 1:] == 0).all((1, 2, 3)),
            vector=(vector == 0).all(1),
            text=context_mask.sum(1) == 1,
        )
        return x[..., :1], mutable

    o = diffusion.Options(class_conditional=True, conditions=names, label_dropout=0.3)
    method = diffusion.from_network(Functional(lambda key: ({}, {}), apply), o, SPEC, ())
    batch = values_of({n: FIELDS[n] for n in ("image", "label", *names)}, 2000)
    params, mutable = method.init(KEY, batch)
    method.phases[0].loss(params, mutable, batch, KEY, 0)
    hidden = np.asarray(seen["label"])
    assert abs(hidden.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 2000)
    for name in names:
        np.testing.assert_array_equal(np.asarray(seen[name]), hidden, err_msg=name)


def test_pictures_on_the_grid():
    rng = np.random.default_rng(0)
    large = jnp.asarray(rng.normal(size=(1, 8, 8, 2)), jnp.float32)
    folded = conditioning.on_grid("x", Field("real", (8, 8, 2), FLOAT), large, (4, 4))
    assert folded.shape == (1, 4, 4, 8)
    np.testing.assert_array_equal(folded[0, 1, 2].reshape(2, 2, 2), large[0, 2:4, 4:6])
    mask = jnp.asarray(rng.integers(0, 2, (1, 2, 2, 1)), jnp.uint8)
    field = Field("mask", (2, 2, 1), BYTE)
    repeated = conditioning.on_grid("m", field, conditioning.scaled(field, mask), (6, 6))
    np.testing.assert_array_equal(
        repeated[0, ..., 0], np.kron(2.0 * np.asarray(mask[0, ..., 0]) - 1, np.ones((3, 3)))
    )
    flat = jnp.full((1, 2, 2, 1), 0.25)
    np.testing.assert_allclose(
        conditioning.on_grid("s", Field("real", (2, 2, 1), FLOAT), flat, (8, 8)), 0.25, rtol=1e-6
    )
    latent = Field("code", (1, 1, 2), FLOAT, {"mean": (1.0, 2.0), "std": (2.0, 4.0)})
    np.testing.assert_allclose(conditioning.scaled(latent, jnp.array([[3.0, 6.0]])), [[1.0, 1.0]])


# ---- consistency models --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["training", "distillation", "continuous", "mean_flow"])
def test_consistency_models_are_told_the_same(kind):
    """Conditions change the loss and the samples of every kind, and reach the teacher."""
    names = ("small", "text", "vector")
    flow = kind == "mean_flow"
    section = {
        **{"kind": kind, "conditions": names, "class_conditional": True, "context_width": 8},
        **({"path": "flow", "prediction": "velocity", "guidance": 1.5} if flow else {}),
        **({"weighting": "simple"} if kind in ("continuous", "mean_flow") else {}),
        **({"guidance": 1.5} if kind == "distillation" else {}),
        "label_dropout": 0.3,
    }
    stages = {}
    teachers = config_of("unet", conditions=names, class_conditional=True)
    if kind == "distillation":
        teachers.method, teachers.diffusion.path = "diffusion", "edm"
        teachers.diffusion.update({"num_timesteps": 0, "prediction": "edm"})
        method = diffusion.build(teachers, SPEC)
        stages = {"teacher": Stage("teacher", teachers, SPEC, method, ("denoiser",))}
    config = config_of("unet")
    config.consistency = ConfigDict(section)
    config.duration, config.batch_size, config.accumulation = "100_steps", 4, 1
    method = consistency.build(config, SPEC, stages)
    assert set(method.conditions) == {"label", *names}
    batch = values_of({n: FIELDS[n] for n in ("image", "label", *names)}, 4)
    params, mutable = method.init(KEY, batch)
    if stages:
        own = stages["teacher"].method.init(KEY, batch)
        params, mutable = params | {"teacher": own[0]}, mutable | {"teacher": own[1]}
    params = moved(params)

    @jax.jit
    def both(values):
        loss, aux = method.phases[0].loss(params, mutable, values, KEY, 5)
        found = aux.metrics["mean_flow_mse"] if flow else loss  # weights make all losses near 1
        conditions = {n: values[n] for n in ("label", *names)}
        return found, method.sample(params, mutable, KEY, 4, conditions, **method.plan(steps=1))

    loss, drawn = both(batch)
    assert np.isfinite(loss)
    other = values_of(FIELDS, 4, seed=1)
    for name in names:
        changed, redrawn = both(batch | {name: other[name]})
        assert changed != loss, name
        assert np.any(redrawn != drawn), name


def test_a_teacher_is_told_nothing_that_its_pupil_is_not():
    teachers = config_of("unet", conditions=("text",))
    teachers.method = "diffusion"
    stage = Stage("teacher", teachers, SPEC, Method(None, (), None, None, ()), ("denoiser",))
    o = consistency.Options("distillation")
    says = r"is conditioned on text: name them in consistency\.conditions"
    with pytest.raises(ConfigError, match=says):
        consistency.teacher_of(o, SPEC, {"teacher": stage})
    longer = FIELDS | {"text": FIELDS["text"]._replace(shape=(7,))}
    says = r"conditioned on text of kind 'text' and shape \(5,\); in this run it is"
    with pytest.raises(ConfigError, match=says):
        consistency.teacher_of(
            o._replace(conditions=("text",)), SPEC._replace(fields=longer), {"teacher": stage}
        )


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"conditions": ("image",)}, "'image' is the generated field. Expected other fields"),
        ({"conditions": ("smal",)}, "toy has no field 'smal'. Nearest: small"),
        ({"conditions": ("label",)}, "for the label set diffusion.class_conditional=True"),
        ({"conditions": ("mask", "mask")}, "expected names of fields, each once"),
        ({"conditions": "mask"}, "expected a tuple"),
        (
            {"conditions": ("odd",)},
            "is 3 x 3, but the network generates 8 x 8: expected the same size",
        ),
        ({"conditions": ("wide",)}, "is 8 x 16, but the network generates 8 x 8"),
        (
            {"conditions": ("roll",)},
            "of kind 'roll', shape .* no network takes it. Expected images",
        ),
        ({"conditions": ("prompt",)}, "of kind 'text', shape .* no network takes it"),
        ({"conditions": ("mask",), "context_width": 0}, "context_width=0.*at least 1"),
        ({"guidance": 2.0}, "diffusion.conditions, and diffusion.label_dropout > 0"),
        ({"conditions": ("mask",), "guidance": 2.0, "label_dropout": 0.0}, "label_dropout > 0"),
    ],
)
def test_conditions_that_are_refused(section, message):
    odd = {
        "odd": Field("image", (3, 3, 1), BYTE),
        "wide": Field("mask", (8, 16, 1), BYTE),
        "roll": Field("roll", (4, 88), BYTE),
        "prompt": Field("text", (None,), INT, TEXT),
    }
    with pytest.raises(ConfigError, match=message):
        diffusion.options_from_config(ConfigDict(section), SPEC._replace(fields=FIELDS | odd))


@pytest.mark.parametrize(
    ("name", "conditions", "message"),
    [
        (
            "edm2_unet",
            ("text",),
            "has no cross-attention.*takes no context_width.*'unet', 'dit' or 'mmdit'",
        ),
        ("edm2_unet", ("rows",), "has no cross-attention"),
        (
            "pixelcnn",
            ("vector",),
            "has no way in for vectors.*'unet', 'dit', 'mmdit' or 'edm2_unet'",
        ),
    ],
)
def test_a_network_that_cannot_be_told_is_refused_and_another_named(name, conditions, message):
    config = config_of("edm2_unet", conditions=conditions)
    config.model.network = name
    with pytest.raises(ConfigError, match=message):
        diffusion.build(config, SPEC)
