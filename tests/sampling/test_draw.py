"""Drawing in batches, over devices, and options from the command line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from genjax.config import ConfigError
from genjax.data.alphabets import Bytes
from genjax.method import DataSpec, Field, Method
from genjax.methods import lm
from genjax.networks import decoder
from genjax.nn.functional import functional
from genjax.parallel.mesh import AXES
from genjax.sampling.draw import BATCH, Sampler, draw_rows, make_draw, parse_options

LABEL = Field("label", (), np.dtype(np.int32), {"num_classes": 8})


def sample(params, mutable, key, num, condition, *, scale=1.0, name="a"):
    x = scale * jax.random.normal(key, (num, 2))
    return x.at[:, 1].set(condition["label"]) if condition else x


def mesh(data, fsdp, tensor):
    """The first devices on these axes."""
    devices = jax.devices()[: data * fsdp * tensor]
    return jax.make_mesh((data, fsdp, 1, tensor), AXES, (AxisType.Auto,) * 4, devices=devices)


METHOD = Method(None, (), None, sample, (), conditions={"label": LABEL})
ONE = mesh(1, 1, 1)
KEY = jax.random.key(0)


def test_the_first_samples_do_not_depend_on_how_many_follow():
    many = make_draw(METHOD, ONE, 2 * BATCH + 5)({}, {}, KEY)
    assert many.shape == (2 * BATCH + 5, 2)
    assert len(np.unique(many[:, 0])) == len(many)
    np.testing.assert_array_equal(make_draw(METHOD, ONE, BATCH)({}, {}, KEY), many[:BATCH])
    scaled = make_draw(METHOD, ONE, BATCH, options={"scale": 2.0})({}, {}, KEY)
    np.testing.assert_array_equal(scaled, 2 * many[:BATCH])


@pytest.mark.parametrize("sizes", [(1, 1, 1), (8, 1, 1), (1, 2, 1)])
@pytest.mark.parametrize("given", [[7], [1, 2, 3]])
def test_conditions_are_repeated_in_turn_over_batches(given, sizes):
    for num in (5, BATCH + 5, 9 * BATCH + 5):
        drawn = make_draw(METHOD, mesh(*sizes), num, {"label": np.array(given)})({}, {}, KEY)
        assert drawn.shape == (num, 2)
        expected = [given[i % len(given)] for i in range(num)]
        np.testing.assert_array_equal(drawn[:, 1], expected)


def test_options_are_values_and_unknown_ones_are_refused():
    given = {"scale": ["0.5"], "name": ["ddim"]}
    assert parse_options(METHOD, given) == {"scale": 0.5, "name": "ddim"}
    read = METHOD._replace(options={"scale": len})
    assert parse_options(read, {"scale": ["0.5"]}) == {"scale": 3}
    with pytest.raises(ConfigError, match=r"--scal=1: .*no such condition or sampling .*scale"):
        parse_options(METHOD, {"scal": ["1"]})
    with pytest.raises(ConfigError, match=r"--lable=1: .*Nearest: label"):
        parse_options(METHOD, {"lable": ["1"]})
    with pytest.raises(ConfigError, match=r"--scale is given 2 times"):
        parse_options(METHOD, {"scale": ["1", "2"]})
    with pytest.raises(ConfigError, match=r"--condition=1: .*no such condition"):
        parse_options(METHOD, {"condition": ["1"]})
    bare = METHOD._replace(sample=lambda p, m, key, num, condition: None, conditions={})
    with pytest.raises(ConfigError, match=r"--scale=1: .*It has none"):
        parse_options(bare, {"scale": ["1"]})


# ---- over devices --------------------------------------------------------------------------------

WIDTH = 64


def denoise(params, mutable, key, num, condition, *, steps=3):
    """As diffusion draws: noise at first, a loop of a network, and noise anew in each step."""
    first, key = jax.random.split(key)
    x = jax.random.normal(first, (num, WIDTH))
    if condition:
        x = x + condition["label"][:, None]

    def step(i, x):
        noise = jax.random.normal(jax.random.fold_in(key, i), x.shape)
        return jnp.tanh(x @ params["w"]) @ params["w"].T + 0.1 * noise

    return jax.lax.fori_loop(0, steps, step, x)


DENOISE = Method(None, (), None, denoise, (), conditions={"label": LABEL})
WEIGHTS = {"w": np.random.default_rng(0).normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype("f4")}


@pytest.mark.parametrize("num", [3, 8, 2 * BATCH + 5, 9 * BATCH + 1])
@pytest.mark.parametrize("condition", [{}, {"label": np.arange(5)}], ids=["plain", "labels"])
def test_samples_are_the_same_on_a_mesh_of_many(num, condition):
    one = make_draw(DENOISE, ONE, num, condition)(WEIGHTS, {}, KEY)
    for sizes in ((8, 1, 1), (2, 2, 2)):
        many = make_draw(DENOISE, mesh(*sizes), num, condition)(WEIGHTS, {}, KEY)
        assert many.shape == one.shape == (num, WIDTH)
        np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-5)


def work(monkeypatch, over, num, steps=3):
    """Floating-point operations of one device in all calls of a draw."""
    found, original = [], jax.jit

    def jit(function, **named):
        jitted = original(function, **named)

        def call(*args):
            found.append(jitted.lower(*args).compile().cost_analysis()["flops"])
            return jitted(*args)

        return call

    draw_options = {"steps": steps}
    with monkeypatch.context() as changed:
        changed.setattr(jax, "jit", jit)
        draw = make_draw(DENOISE, over, num, {"label": np.arange(8)}, draw_options)
    assert len(draw(WEIGHTS, {}, KEY)) == num
    return sum(found)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1)], ids=str)
@pytest.mark.parametrize("num", [BATCH, 3 * BATCH, 8 * BATCH, 16 * BATCH])
def test_each_of_eight_devices_does_an_eighth_of_the_work(monkeypatch, sizes, num):
    """One batch is spread over the devices, or, where there are enough, each has its own."""
    one = work(monkeypatch, ONE, num)
    # Two products of [64, 64] matrices by each row at least, in a loop that may be counted once.
    assert one >= num * 2 * 2 * WIDTH * WIDTH
    assert work(monkeypatch, mesh(*sizes), num) == pytest.approx(one / 8, rel=0.05)


# ---- rows of different shapes --------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.0, "max_new_tokens": 24}, {"beams": 3}],
    ids=["past the window", "as far as beams go"],
)
def test_each_of_several_prompts_is_gone_on_from_as_if_alone(options):
    """With random weights, so that a text tells from what, and where, it was gone on from."""
    rng = np.random.default_rng(0)
    facts = {"vocabulary_size": 40, "special": {"start": 0}, "tokenizer": Bytes({})}
    token = Field("text", (13,), np.dtype(np.int32), facts)
    spec = DataSpec("made", {"token": token}, "token", {"train": 8})

    def network(rngs):
        return decoder.Network(40, 12, width=16, depth=1, heads=2, rngs=rngs)

    method = lm.from_network(functional(network), lm.Options(), spec, 12, decoder.RULES)
    params, mutable = method.init(jax.random.key(0), None)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
    state = (params, mutable, jax.random.key(0))
    given = [{"prompt": rng.integers(40, size=n).astype(np.int32)} for n in (9, 2, 9, 5)]
    alone = [draw_rows(Sampler(method, ONE), [row], 1, options, *state)[0] for row in given]
    assert len(np.unique(np.concatenate(alone))) > 8
    together = draw_rows(Sampler(method, ONE), given, 6, options, *state)
    assert together.dtype == np.int32
    for i, text in enumerate(together):
        expected = alone[i % 4]
        np.testing.assert_array_equal(text[: len(expected)], expected)
        assert (text[len(expected) :] == -1).all()


@pytest.mark.parametrize("sizes", [(1, 1, 1), (8, 1, 1)], ids=str)
def test_texts_of_several_prompts_are_drawn_apart(sizes):
    """No two lengths share their draws; those of the longest have the draws of one alone."""

    def drawing(params, mutable, key, num, condition):
        new = jax.random.randint(key, (num, 1), 0, 2**30)
        return jnp.concatenate([condition["prompt"], new], 1)

    method = METHOD._replace(sample=drawing)
    given = [np.full(n, n, np.int32) for n in (2, 3, 2, 4)]
    rows = [{"prompt": prompt} for prompt in given]
    texts = draw_rows(Sampler(method, mesh(*sizes)), rows, 8, {}, {}, {}, KEY)
    lengths = (texts >= 0).sum(1)
    np.testing.assert_array_equal(lengths, [3, 4, 3, 5] * 2)
    drawn = texts[np.arange(8), lengths - 1]
    assert len(np.unique(drawn)) == 8
    longest = make_draw(method, ONE, 2, {"prompt": given[3][None]})({}, {}, KEY)
    np.testing.assert_array_equal(longest[:, 4], drawn[lengths == 5])


def test_rows_of_several_conditions_keep_together():
    """Samples stand in the order of the rows, each with all that its row says."""

    def drawing(params, mutable, key, num, condition, *, add=0):
        total = condition["prompt"].sum(1) if "prompt" in condition else jnp.zeros(num)
        return jnp.stack([total, condition["label"] + add, jax.random.normal(key, (num,))], 1)

    method = METHOD._replace(sample=drawing)
    lengths = (3, 1, 3, 2, 1)
    rows = [
        {"label": np.int32(i), "prompt": np.full(n, 10 * (i + 1), np.int32)}
        for i, n in enumerate(lengths)
    ]
    rows.append({"label": np.int32(5)})  # without a prompt
    drawn = draw_rows(Sampler(method, ONE), rows, 14, {"add": 100}, {}, {}, KEY)
    assert drawn.shape == (14, 3)  # of one shape: nothing is filled up
    in_turn = [i % 6 for i in range(14)]
    sums = [10 * (i + 1) * n for i, n in enumerate(lengths)] + [0]
    np.testing.assert_array_equal(drawn[:, 0], [sums[i] for i in in_turn])
    np.testing.assert_array_equal(drawn[:, 1], [100 + i for i in in_turn])
    assert len(np.unique(drawn[:, 2])) == 14


def test_rows_of_pictures_of_several_sizes_fill_up_their_first_axis():
    def drawing(params, mutable, key, num, condition):
        return condition["image"] + 1

    rows = [{"image": np.full((n, 2, 1), n, np.int32)} for n in (1, 3)]
    drawn = draw_rows(Sampler(METHOD._replace(sample=drawing), ONE), rows, 3, {}, {}, {}, KEY)
    expected = [[2, -1, -1], [4, 4, 4], [2, -1, -1]]
    np.testing.assert_array_equal(drawn, np.array(expected)[..., None, None] * np.ones((2, 1)))


def test_a_row_that_is_too_long_is_told_of_ahead_of_all_work():
    seen = []

    def drawing(params, mutable, key, num, condition):
        seen.append(condition["prompt"].shape[1])
        return condition["prompt"]

    rows = [{"prompt": np.zeros(n, np.int32)} for n in (2, 11, 5)]
    draw_rows(Sampler(METHOD._replace(sample=drawing), ONE), rows, 3, {}, {}, {}, KEY)
    assert list(dict.fromkeys(seen)) == [11, 5, 2]


def test_devices_that_do_not_divide_a_batch_take_one_each(monkeypatch):
    """64 rows over 6 devices: three batches are drawn at once, and not three times by all."""
    over = mesh(6, 1, 1)
    one = work(monkeypatch, ONE, 3 * BATCH)
    assert work(monkeypatch, over, 3 * BATCH) == pytest.approx(one / 3, rel=0.05)
    condition = {"label": np.arange(8)}
    drawn = [make_draw(DENOISE, m, 3 * BATCH, condition)(WEIGHTS, {}, KEY) for m in (ONE, over)]
    np.testing.assert_allclose(*drawn, rtol=1e-5, atol=1e-5)
