"""Frozen text encoders: what reads captions for a diffusion model."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from stub_stages import (
    CLIP,
    KEY,
    PRIOR,
    SIDE,
    TEXT,
    TOKENIZER,
    N,
    T,
    images,
    method_of,
    params,
    spec_of,
    texts,
    vectors,
)

from genjax.config import ConfigError
from genjax.data import captions
from genjax.data.alphabets import Bytes
from genjax.method import Stage, TextEncoder
from genjax.methods import composition, diffusion, starts
from genjax.methods import derived_conditions as derived
from genjax.networks import conditioning

D = 3


def encode(params, mutable, text):
    """Vectors that depend on the token and its place; a text ends with its first 256."""
    assert params == {"weights": 7}  # only the stage's own networks
    ends = jnp.asarray(text) == 256
    place = jnp.broadcast_to(jnp.arange(text.shape[1]), text.shape)
    made = jnp.stack([text + 1.0, place + 1.0, text * place + 1.0], -1)
    return made, jnp.cumsum(ends, 1) - ends == 0


def encoder(field=TEXT, read=encode):
    method = method_of(lambda *_: None, text_encoder=TextEncoder(field, read))
    config = ConfigDict({"method": "masked_lm"})
    return {"text": Stage("text", config, spec_of(SIDE), method, ("weights",))}


READ = {"conditions": ("text",), "text_encoder": "text"}


def built(options, stages):
    """The parts, options and spec, and a method whose samples are what its network is told."""
    spec = spec_of(SIDE)
    o = diffusion.Options(**options)
    found = derived.parts(o, spec, stages)
    o, extended = derived.extended(o, spec, found)

    def sample(params, mutable, key, num, condition, **options):
        return {**condition, **options}

    plain = method_of(sample, conditions={name: extended.fields[name] for name in o.conditions})
    return derived.joined(plain, found, extended), o, extended


def expected(text):
    made, seen = encode({"weights": 7}, {}, jnp.asarray(text))
    return np.where(np.asarray(seen)[..., None], made, 0)


def test_the_network_is_told_vectors_in_place_of_tokens():
    method, o, spec = built(READ, encoder())
    assert o.conditions == ("text_vectors",)
    assert tuple(method.conditions) == ("text",)  # what a user gives
    field = spec.fields["text_vectors"]
    assert (field.shape, conditioning.way_of("text_vectors", field)) == ((T, D), "context")
    text = texts("ab", "", "defg")
    batch = {"image": np.zeros((N, SIDE, SIDE, 3), np.uint8), "text": text}
    made = method.prepare(params("text"), params("text"), batch, KEY, 0)
    np.testing.assert_array_equal(made["text_vectors"], expected(text))
    assert (np.asarray(made["text_vectors"])[1, 1:] == 0).all()  # after the end
    found = method.sample(params("text"), params("text"), KEY, N, {"text": text})
    np.testing.assert_array_equal(found["text_vectors"], expected(text))
    assert "text" not in found


def test_dropped_and_missing_captions_are_empty_ones():
    method, _, _ = built(READ | {"text_dropout": 0.5}, encoder())
    batch = {
        "image": np.zeros((200, SIDE, SIDE, 3), np.uint8),
        "text": np.tile(texts("ab"), (200, 1)),
    }
    made = method.prepare(params("text"), params("text"), batch, KEY, 0)["text_vectors"]
    blank = expected(derived.empty(TEXT)[None])[0]
    dropped = (np.asarray(made) == blank).all((1, 2))
    np.testing.assert_array_equal(made[~dropped][0], expected(texts("ab"))[0])
    assert 60 < dropped.sum() < 140
    found = method.sample(params("text"), params("text"), KEY, N, {})["text_vectors"]
    np.testing.assert_array_equal(found, np.tile(blank, (N, 1, 1)))
    never = built(READ, encoder())[0]
    with pytest.raises(ConfigError, match="text"):
        never.sample(params("text"), params("text"), KEY, N, {})


def test_other_prompts_are_read_too():
    method, o, spec = built(READ, encoder())
    assert composition.prompt_of(o.conditions, spec) == "text_vectors"
    field = conditioning.text_of(spec.fields["text_vectors"])
    prompts = composition.parsed_prompts(field, "no", [("ab", 1.0), ("c", -0.5)])
    given = {"condition": {"text": texts("x", "y", "z")}, "prompts": prompts}
    found = method.sample(params("text"), params("text"), KEY, N, **given)["prompts"]
    np.testing.assert_array_equal(found.negative, expected(texts("no"))[0])
    np.testing.assert_array_equal(found.more, expected(texts("ab", "c")))
    np.testing.assert_array_equal(found.weights, [1.0, -0.5])
    given["prompts"] = composition.NO_PROMPTS
    found = method.sample(params("text"), params("text"), KEY, N, **given)["prompts"]
    assert found == composition.NO_PROMPTS


@pytest.mark.parametrize("depth", [0, 1])
def test_zeros_of_padded_vectors_change_nothing(depth):
    facts = {"text": TEXT}
    field = captions.field(TOKENIZER, T)._replace(kind="real", shape=(T, D), dtype=np.float32)
    row = conditioning.Row(
        field._replace(facts=facts), conditioning.RowOptions(8, depth, 2), rngs=nnx.Rngs(0)
    )
    given = jnp.asarray(expected(texts("ab", "cdefg")))
    y, seen = row(given, None)
    np.testing.assert_array_equal(seen.sum(1), [3, 6])
    shorter, _ = row(given[:1, :4], None)
    np.testing.assert_allclose(y[:1, :3], shorter[:, :3], atol=1e-5)
    unpadded = conditioning.Row(
        field._replace(facts={}), conditioning.RowOptions(8), rngs=nnx.Rngs(0)
    )
    assert unpadded(given, None)[1].all()


def too_long(params, mutable, text):
    raise ConfigError("tokens=8: expected at most 4, as many as the network knows")


OTHER = TEXT._replace(facts={**TEXT.facts, "tokenizer": Bytes({"eos": 257})})
# As t5.py has it: the gaps of its sources are tokens too.
GAPS = TEXT._replace(facts={**TEXT.facts, "vocabulary_size": 300})


def test_a_stage_with_more_tokens_of_the_same_tokenizer_is_no_other_one():
    _, o, _ = built(READ, encoder(GAPS))
    assert o.conditions == ("text_vectors",)


def test_a_clip_that_reads_captions_is_no_second_source_of_vectors():
    stages = encoder() | PRIOR
    stages["text"] = stages["text"]._replace(config=ConfigDict({"method": "clip"}))
    options = READ | {"embedding": "prior", "text_dropout": 0.5}
    method, o, _ = built(options, stages)
    assert set(o.conditions) == {"text_vectors", "embedding"}
    text = texts("ab", "c", "d")
    names = params("text", "prior")
    found = method.sample(names, names, KEY, N, {"text": text})
    np.testing.assert_array_equal(found["text_vectors"], expected(text))
    np.testing.assert_allclose(found["embedding"], -vectors(text), atol=1e-6)
    both = {"text": Stage("text", ConfigDict({"method": "clip"}), *CLIP["clip"][2:])}
    with pytest.raises(ConfigError, match="has vectors too"):
        derived.parts(diffusion.Options(embedding="prior"), spec_of(SIDE), both | PRIOR)


@pytest.mark.parametrize(
    ("options", "stages", "message"),
    [
        ({"conditions": ()}, encoder(), r"text_encoder='text': expected none, or .*'text'"),
        (
            {"text_encoder": "tex"},
            encoder(),
            r"diffusion.text_encoder='tex': no such stage. N.*text",
        ),
        ({}, {"text": encoder()["text"]._replace(method=method_of(None))}, "reads no captions"),
        ({}, encoder(OTHER), "its tokenizer is not that of the captions"),
        ({}, encoder(read=too_long), "text_encoder='text': tokens=8: expected at most 4"),
    ],
)
def test_other_stages_are_refused(options, stages, message):
    with pytest.raises(ConfigError, match=message):
        derived.parts(diffusion.Options(**READ | options), spec_of(SIDE), stages)


def test_the_caption_of_a_picture_to_begin_with_is_read_too():
    spec, o = spec_of(SIDE), diffusion.Options(**READ)
    found = derived.parts(o, spec, encoder())
    o, spec = derived.extended(o, spec, found)
    fields = {name: spec.fields[name] for name in o.conditions}
    own = fields | starts.given(fields, spec.generated)
    method = derived.joined(
        method_of(lambda *args, inversion: args[-1], conditions=own), found, spec
    )
    assert {"start", "start_text", "other_start_text"} < method.conditions.keys()
    assert not any("vectors" in name for name in method.conditions)
    given = {"text": texts("x", "y", "z"), "start": images(1)}
    sample = partial(method.sample, params("text"), params("text"), KEY, N, inversion=object())
    text = texts("ab", "c", "d")
    found = sample(given | {"start_text": text})
    np.testing.assert_array_equal(found["start_text_vectors"], expected(text))
    assert "start_text_vectors" not in sample(given)  # nothing is said: hidden
    labelled = given | {"start_label": jnp.zeros(N, jnp.int32)}
    with pytest.raises(ConfigError, match=r"--start is described by .* --start_NAME: --text is"):
        sample(labelled)
