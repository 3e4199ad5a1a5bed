"""Conditions that stages make: what the network is told for each thing that a user may give."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from stub_stages import (
    CLIP,
    KEY,
    PRIOR,
    SIDE,
    TEXT,
    E,
    N,
    T,
    decoder,
    images,
    method_of,
    params,
    spec_of,
    texts,
    vectors,
)

from genjax.config import ConfigError
from genjax.data import captions
from genjax.methods import derived_conditions as derived
from genjax.methods import diffusion, starts
from genjax.nn.pixels import to_float, to_uint8
from genjax.sampling.embeddings import slerp, text_diff, unit


def built(options, stages, spec=None):
    """The derived parts, and a method whose samples are what its network would be told."""
    spec = spec or spec_of(SIDE)
    o = diffusion.Options(**options)
    found = derived.parts(o, spec, stages)
    o, spec = derived.extended(o, spec, found)

    def sample(params, mutable, key, num, condition):
        return condition

    plain = method_of(sample, conditions={name: spec.fields[name] for name in o.conditions})
    return derived.joined(plain, found, spec)


def told(method, condition, num=N, names=("clip", "prior", "decoder")):
    return method.sample(params(*names), params(*names), KEY, num, condition)


WITH_CLIP = {"embedding": "clip", "embedding_dropout": 0.5}
WITH_PRIOR = {"embedding": "prior", "conditions": ("text",), "text_dropout": 0.5}


# ---- the vector of the image ---------------------------------------------------------------------


def test_training_hides_vectors_and_captions_independently_and_evaluation_neither():
    method = built(WITH_PRIOR | {"embedding_dropout": 0.25}, PRIOR)
    batch = {"image": images(count=400), "text": np.tile(texts("ab", "c"), (200, 1))}
    made = method.prepare(params("prior"), params("prior"), batch, KEY, 0)
    full = np.asarray(vectors(batch["image"]))
    hidden = (np.asarray(made["embedding"]) == 0).all(1)
    np.testing.assert_allclose(made["embedding"], np.where(hidden[:, None], 0, full), atol=1e-6)
    blank = (np.asarray(made["text"]) == derived.empty(TEXT)).all(1)
    np.testing.assert_array_equal(np.asarray(made["text"])[~blank], batch["text"][~blank])
    deviation = math.sqrt(400)
    assert abs(hidden.sum() - 100) < 2 * deviation
    assert abs(blank.sum() - 200) < 2 * deviation
    assert abs((hidden & blank).sum() - 50) < 2 * deviation
    seen = {}
    plain = method_of(None)._replace(evaluate=lambda p, m, batch, key: seen.update(batch) or {})
    spec = spec_of(SIDE)
    o = diffusion.Options(**WITH_PRIOR | {"embedding_dropout": 0.25})
    joined = derived.joined(plain, derived.parts(o, spec, PRIOR), spec)
    joined.evaluate(params("prior"), params("prior"), batch, KEY)
    np.testing.assert_allclose(seen["embedding"], full, atol=1e-6)
    np.testing.assert_array_equal(seen["text"], batch["text"])


def test_an_empty_caption_is_one_that_ends_at_once():
    assert derived.empty(TEXT).tolist() == [256] * T
    assert captions.encode("", TEXT).tolist() == [256]


def test_a_caption_alone_is_drawn_by_the_prior_and_an_image_is_embedded():
    method, text = built(WITH_PRIOR, PRIOR), texts("a", "bc", "def")
    by_text = told(method, {"text": text})
    np.testing.assert_allclose(by_text["embedding"], -vectors(text), atol=1e-6)
    np.testing.assert_array_equal(by_text["text"], text)
    by_image = told(method, {"image": images()})
    np.testing.assert_allclose(by_image["embedding"], vectors(images()), atol=1e-6)
    np.testing.assert_array_equal(by_image["text"], np.tile(derived.empty(TEXT), (N, 1)))
    given = 3 * jax.random.normal(KEY, (N, E))
    found = told(method, {"embedding": given, "text": text})
    np.testing.assert_allclose(found["embedding"], unit(given), atol=1e-6)
    np.testing.assert_array_equal(found["text"], text)


def test_without_a_prior_a_caption_alone_hides_the_vector():
    options = WITH_CLIP | {"conditions": ("text",)}
    found = told(built(options, CLIP), {"text": texts("a", "b", "c")})
    np.testing.assert_array_equal(found["embedding"], np.zeros((N, E)))
    with pytest.raises(ConfigError, match=r"embedding_dropout > 0"):
        told(built(options | {"embedding_dropout": 0.0}, CLIP), {"text": texts("a", "b", "c")})


def test_mixes_are_slerps_of_images_and_captions():
    method, share = built(WITH_PRIOR, PRIOR), jnp.array([0.0, 0.3, 1.0])
    a, b = images(1), images(2)
    between = told(method, {"image": a, "other_image": b, "mix": share})["embedding"]
    np.testing.assert_allclose(between, slerp(vectors(a), vectors(b), share), atol=1e-6)
    np.testing.assert_allclose(between[0], vectors(a)[0], atol=1e-6)
    np.testing.assert_allclose(between[2], vectors(b)[2], atol=1e-6)
    text, other = texts("a", "b", "c"), texts("d", "e", "f")
    found = told(method, {"text": text, "other_text": other})["embedding"]
    np.testing.assert_allclose(found, slerp(-vectors(text), -vectors(other), 0.5), atol=1e-6)
    found = told(method, {"image": a, "before": text, "after": other, "mix": share})["embedding"]
    expected = text_diff(vectors(a), vectors(text), vectors(other), share)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_images_of_another_size_are_resized_for_the_stage():
    large = jnp.asarray(images(side=2 * SIDE))
    method = built(WITH_CLIP | {"embedding_dropout": 0.0}, CLIP, spec_of(2 * SIDE))
    made = method.prepare(params("clip"), params("clip"), {"image": large}, KEY, 0)["embedding"]
    small = jax.image.resize(to_float(large), (N, SIDE, SIDE, 3), "linear")
    np.testing.assert_allclose(made, vectors(to_uint8(small)), atol=1e-6)
    assert np.abs(np.asarray(made) - vectors(large[:, ::2, ::2])).max() > 0.01


def test_what_a_user_may_give():
    method = built(WITH_PRIOR, PRIOR)
    names = {"text", "image", "other_image", "other_text", "embedding", "mix", "before", "after"}
    assert set(method.conditions) == names
    fields = spec_of(SIDE).fields
    held_out = [n for n, f in method.conditions.items() if f.facts.get("field", n) in fields]
    assert held_out == ["text"]  # the prior draws the vector, as for a user
    without = built(WITH_CLIP, CLIP).conditions
    assert "text" not in without
    assert [n for n, f in without.items() if f.facts.get("field", n) in fields] == ["image"]


# ---- the smaller image ---------------------------------------------------------------------------

UPSAMPLER = {"low_resolution": SIDE // 2, "conditions": ("text",), "label_dropout": 0.0}


def test_smaller_images_are_means_over_squares():
    x = jnp.arange(2 * 4 * 8 * 1, dtype=jnp.float32).reshape(2, 4, 8, 1)
    expected = [
        [x[1, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for j in range(4)] for i in (0, 1)
    ]
    np.testing.assert_allclose(derived.smaller(x, 2)[1, :, :, 0], expected)


def test_noise_keeps_the_variance_and_its_level_is_an_angle():
    image, noise = jnp.full((4, 2, 2, 3), 0.7), jnp.full((4, 2, 2, 3), -1.5)
    level = jnp.array([0.0, 1 / 3, 0.5, 1.0])
    found = derived.augmented(image, level, noise)[:, 0, 0, 0]
    angle = np.pi * np.asarray(level) / 2
    np.testing.assert_allclose(found, 0.7 * np.cos(angle) - 1.5 * np.sin(angle), atol=0.02)
    np.testing.assert_allclose(found[1:3], (0.7 * np.cos(angle) - 1.5 * np.sin(angle))[1:3], 1e-5)


def test_an_upsampler_learns_all_levels_of_noise_and_is_told_them():
    method = built(UPSAMPLER, {})
    image = np.repeat(np.repeat(images(count=300, side=4), 2, 1), 2, 2)
    batch = {"image": jnp.asarray(image), "text": np.tile(texts("a"), (300, 1))}
    made = method.prepare({}, {}, batch, KEY, 0)
    level = np.arctan2(made["low_resolution_level"][:, 0], made["low_resolution_level"][:, 1])
    assert made["low_resolution_level"].shape == (300, derived.LEVEL_FEATURES)
    assert len(np.unique(level)) > 250
    clean = images(count=300, side=4) / 127.5 - 1
    slope = (np.asarray(made["low_resolution"]) * clean).sum((1, 2, 3)) / (clean**2).sum((1, 2, 3))
    assert 0.55 < slope.mean() < 0.72  # the mean of cos(pi s / 2) is 2 / pi
    assert slope.min() < 0.15 < 0.9 < slope.max()


def test_an_upsampler_enlarges_what_is_given_or_what_its_stage_draws():
    stages = {"decoder": decoder()}
    method = built(UPSAMPLER | {"low_resolution_stage": "decoder"}, stages)
    text, zero = texts("a", "b", "c"), jnp.zeros(N)
    found = told(method, {"text": text, "noise": zero})
    value = np.array([97, 98, 99])[:, None, None, None] / 127.5 - 1
    np.testing.assert_allclose(
        found["low_resolution"], np.broadcast_to(value, (N, 4, 4, 3)), atol=3e-3
    )
    np.testing.assert_array_equal(found["text"], text)
    given = told(method, {"text": text, "low_resolution": images(side=4), "noise": zero})
    np.testing.assert_allclose(given["low_resolution"], images(side=4) / 127.5 - 1, atol=3e-3)
    twice = np.repeat(np.repeat(images(side=4), 2, 1), 2, 2)  # of the large size, as held-out ones
    large = told(method, {"text": text, "low_resolution": twice, "noise": zero})
    np.testing.assert_allclose(large["low_resolution"], given["low_resolution"], atol=1e-5)
    noisy = told(method, {"text": text, "low_resolution": images(side=4)})
    gap = np.asarray(noisy["low_resolution"] - given["low_resolution"])
    assert gap.std() == pytest.approx(math.sin(0.05 * math.pi), rel=0.2)  # level 0.1
    first = told(method, {name: v[:1] for name, v in {"text": text}.items()}, 1)
    np.testing.assert_allclose(  # a sample does not depend on how many are drawn with it
        first["low_resolution"][0], told(method, {"text": text})["low_resolution"][0], atol=1e-6
    )
    assert set(method.conditions) == {"text", "low_resolution", "noise"}
    assert method.conditions["low_resolution"].facts["field"] == ""  # the stage draws it
    assert built(UPSAMPLER, {}).conditions["low_resolution"].facts["field"] == "image"


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "stages", "words"),
    [
        ({"embedding": "clop"}, CLIP, r"embedding='clop': no such stage. Nearest: clip"),
        ({"embedding": "clip"}, {}, "config.stages names none"),
        ({"embedding": "decoder"}, {"decoder": decoder()}, "gives no vectors of images"),
        ({"embedding": "clip"}, CLIP | PRIOR, r"another CLIP.*name the prior here"),
        ({"embedding": "prior"}, CLIP | PRIOR, "leave out the other stage"),
        ({"low_resolution": 3}, {}, r"low_resolution.*divides the images' 8 x 8"),
        ({"low_resolution": 8}, {}, r"a smaller side"),
        (
            {"low_resolution": 2, "low_resolution_stage": "decoder"},
            {"decoder": decoder()},
            r"the small image is \(2, 2, 3\), but the stage 'decoder' draws .*\(4, 4, 3\)",
        ),
        ({"low_resolution_stage": "decoder"}, {"decoder": decoder()}, "low_resolution=0: set it"),
        ({"text_dropout": 0.5}, {}, r"diffusion.conditions with 'text'"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(options, stages, words):
    with pytest.raises(ConfigError, match=words):
        built(options, stages)


def test_what_is_missing_in_sampling_is_one_clear_error():
    method = built(WITH_PRIOR, PRIOR)
    with pytest.raises(ConfigError, match="needs the vector of an image: give --image"):
        told(method, {})
    for more in (
        {"embedding": jnp.ones((N, E))},
        {"other_image": images(), "before": texts("a", "b", "c")},
    ):
        with pytest.raises(ConfigError, match="expected one first vector, and one"):
            told(method, {"image": images(), **more})
    with pytest.raises(ConfigError, match="--mix is given without a second image or caption"):
        told(method, {"image": images(), "mix": jnp.zeros(N)})
    with pytest.raises(ConfigError, match="--after is missing"):
        told(method, {"image": images(), "before": texts("a", "b", "c")})
    with pytest.raises(ConfigError, match="--low_resolution is missing"):
        told(built(UPSAMPLER, {}), {"text": texts("a", "b", "c")})


def test_an_upsampler_refuses_small_images_of_another_size():
    condition = {"text": texts("a", "b", "c"), "low_resolution": images(side=5)}
    with pytest.raises(ConfigError, match=r"expected images \(3, 4, 4, 3\).* to 8 x 8, got .*5, 5"):
        told(built(UPSAMPLER, {}), condition)


def test_guidance_needs_conditions_that_were_dropped():
    section = ConfigDict({"embedding": "clip", "label_dropout": 0.0, "guidance": 2.0})
    with pytest.raises(ConfigError, match=r"label_dropout > 0"):
        diffusion.options_from_config(section, spec_of(SIDE))
    section.label_dropout = 0.1
    assert diffusion.options_from_config(section, spec_of(SIDE)).guidance == 2.0


# ---- pictures to begin with ----------------------------------------------------------------------


def begun(options, stages, condition):
    """What a network is told of the pictures that sampling begins with."""
    spec = spec_of(SIDE)
    o = diffusion.Options(**options)
    found = derived.parts(o, spec, stages)
    o, spec = derived.extended(o, spec, found)
    fields = {name: spec.fields[name] for name in o.conditions}
    own = fields | starts.given(fields, spec.generated)

    def sample(params, mutable, key, num, condition, inversion):
        return {name: value for name, value in condition.items() if "start" in name}

    method = derived.joined(method_of(sample, conditions=own), found, spec)
    assert not any("vectors" in name or "embedding" in name[6:] for name in method.conditions)
    names = [stage for stage in ("clip", "prior", "decoder") if stage in stages]
    variables = params(*names), params(*names)
    assert condition.keys() <= method.conditions.keys()
    told = method.sample(*variables, KEY, N, condition, inversion=object())
    assert (
        not method.sample(*variables, KEY, N, condition, inversion=None).keys() - condition.keys()
    )
    return told


def test_a_picture_to_begin_with_is_described_by_its_own_vector():
    a, b, text = images(1), images(2), texts("a", "bc", "def")
    empty = np.tile(derived.empty(TEXT), (N, 1))
    both = {"text": texts("x", "y", "z"), "start": a, "other_start": b}
    told = begun(WITH_PRIOR, PRIOR, both)
    np.testing.assert_allclose(told["start_embedding"], vectors(a), atol=1e-6)
    np.testing.assert_allclose(told["other_start_embedding"], vectors(b), atol=1e-6)
    np.testing.assert_array_equal(told["start_text"], empty)
    told = begun(WITH_PRIOR, PRIOR, both | {"start_text": text})
    np.testing.assert_array_equal(told["start_text"], text)
    np.testing.assert_array_equal(told["other_start_text"], empty)
    np.testing.assert_allclose(told["start_embedding"], vectors(a), atol=1e-6)


def test_the_stage_of_an_upsampler_draws_from_noise():
    """Its picture is for the caption; the picture to begin with is that of the upsampler."""
    base = decoder()
    own = base.method.conditions
    more = starts.given(own, base.spec.generated._replace(shape=(SIDE // 2, SIDE // 2, 3)))
    asked = {}

    def sample(params, mutable, key, num, condition):
        asked.update(condition)
        return base.method.sample(params, mutable, key, num, condition)

    drawn = base.method._replace(sample=sample, conditions=own | more)
    stages = {"decoder": base._replace(method=drawn)}
    options = UPSAMPLER | {"low_resolution_stage": "decoder"}
    condition = {"text": texts("a", "b", "c"), "start": images(1)}
    told = begun(options, stages, condition)
    assert asked.keys() == {"text"}
    small = images(1).reshape(N, SIDE // 2, 2, SIDE // 2, 2, 3).mean((2, 4)) / 127.5 - 1
    gap = np.asarray(told["start_low_resolution"]) - np.cos(0.05 * np.pi) * small
    assert abs(gap.std() - np.sin(0.05 * np.pi)) < 0.02  # noise of the default level, 0.1


def test_the_share_of_vectors_and_of_noise_is_one_flag():
    a, b, share = images(1), images(2), jnp.array([0.0, 0.3, 1.0])
    condition = {"image": a, "start": a, "other_start": b, "mix": share}
    spec, o = spec_of(SIDE), diffusion.Options(**WITH_PRIOR)
    found = derived.parts(o, spec, PRIOR)
    o, spec = derived.extended(o, spec, found)
    fields = {name: spec.fields[name] for name in o.conditions}
    own = fields | starts.given(fields, spec.generated)
    plain = method_of(lambda *args, inversion: args[-1], conditions=own)
    method = derived.joined(plain, found, spec)
    variables = params("prior"), params("prior")

    def sample(given):
        return method.sample(*variables, KEY, N, given, inversion=object())

    np.testing.assert_array_equal(sample(condition)["mix"], share)
    np.testing.assert_allclose(sample(condition)["embedding"], vectors(a), atol=1e-6)
    vectors_alone = {"image": a, "other_image": b, "mix": share}
    assert "mix" not in sample(vectors_alone)
    with pytest.raises(ConfigError, match="--mix is given without a second image"):
        sample({"image": a, "mix": share})
