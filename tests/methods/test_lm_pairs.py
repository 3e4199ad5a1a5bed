"""Pairs of texts as prompts and answers of a language model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config as configs
from genjax import method as methods
from genjax.config import ConfigError
from genjax.data import captions, prompted
from genjax.data.alphabets import Characters
from genjax.method import DataSpec
from genjax.methods import lm
from genjax.methods.lm_pairs import on_pairs
from genjax.nn.functional import Functional

TOKENIZER = Characters("abcd:>", {"eos": 6})  # in the order of their code points: : > a b c d
V, TEMPLATE = 7, ">{}:"


class Beginning(Characters):
    """A tokenizer that puts a token before each text."""

    @property
    def begins(self):
        return (7,)


def spec(tokenizer=TOKENIZER, source=5, target=4):
    fields = {name: captions.field(tokenizer, n) for name, n in
              {"source": source, "target": target}.items()}  # fmt: skip
    return DataSpec("made", fields, "target", {"train": 8})


def pairs(given, known=None):
    """A batch of pairs of texts, as `data.pairs` makes it."""
    known = known or spec()
    columns = zip(*given, strict=True)
    return {
        name: np.stack([captions.padded(captions.encode(t, known.fields[name]), known.fields[name])
                        for t in texts])
        for name, texts in zip(("source", "target"), columns, strict=True)
    }  # fmt: skip


GIVEN = [("ab", "cd"), ("abcd", "a"), ("d", "dcb"), ("abcdab", "abcdd")]  # the last ones are cut


def expected(source, target, room=(5, 4)):
    """(tokens, segments, what counts) of one row, by Python's own lists."""
    own = [6, *TOKENIZER.encode(">"), *TOKENIZER.encode(source)[: room[0]], *TOKENIZER.encode(":")]
    answer = [*TOKENIZER.encode(target), 6][: room[1]]
    left, right = room[0] + 3 - len(own), room[1] - len(answer)
    shown = [0] * left + [1] * (len(own) + len(answer)) + [0] * right
    counted = [False] * (left + len(own)) + [True] * len(answer) + [False] * right
    return [*own, *answer], shown, counted


def test_rows_are_prompts_on_the_left_and_answers_that_count():
    made = prompted.of_pairs(spec(), TEMPLATE)
    rows = {name: np.asarray(v) for name, v in jax.jit(made.batch)(pairs(GIVEN)).items()}
    for row, (source, target) in enumerate(GIVEN):
        token, segment, counted = expected(source, target)
        np.testing.assert_array_equal(rows["segment"][row], segment)
        np.testing.assert_array_equal(rows["token"][row][np.array(segment) > 0], token)
        np.testing.assert_array_equal(rows["loss_mask"][row], counted)
    for name, field in made.rows.fields.items():
        assert rows[name].shape == (len(GIVEN), *field.shape)
        assert rows[name].dtype == field.dtype
    assert made.size == rows["token"].shape[1]


def test_the_tokens_that_begin_every_text_come_once():
    """Whether the rows of pairs have them or not."""
    made = prompted.of_pairs(spec(Beginning("abcd:>", {"eos": 6, "bos": 7})), TEMPLATE)
    without = {"source": [[2, 3, 6, 6, 6]], "target": [[4, 5, 6, 6]]}
    with_them = {"source": [[7, 2, 3, 6, 6]], "target": [[7, 4, 5, 6]]}
    expected = [0, 0, 0, 7, 1, 2, 3, 0, 4, 5, 6, 6]
    for batch in (without, with_them):
        rows = made.batch({name: jnp.asarray(row, jnp.int32) for name, row in batch.items()})
        np.testing.assert_array_equal(rows["token"], [expected])
        np.testing.assert_array_equal(rows["segment"], [[0] * 3 + [1] * 8 + [0]])


def test_what_is_not_pairs_or_has_no_one_gap():
    alone = DataSpec("made", {"token": spec().fields["target"]}, "token", {})
    assert prompted.of_pairs(alone, TEMPLATE) is None
    for template in ("", "{}{}", "a"):
        with pytest.raises(ConfigError, match=r"template.*one \{\}"):
            prompted.of_pairs(spec(), template)


def table():
    """A network whose next token is a table's row of the last one: a -> b -> c -> d -> end."""
    logits = np.full((V, V), -9.0, np.float32)
    for last, following in {2: 3, 3: 4, 4: 5, 5: 6, 0: 2, 1: 0, 6: 1}.items():
        logits[last, following] = 9.0

    def apply(params, mutable, x, *, segment=None, cache=None, capacity=0, key=None, train=False):
        out = params[x]
        held = jnp.zeros((1, len(x))) if capacity or cache is not None else None
        return (out[:, -1:] if capacity else out, held), mutable

    return Functional(lambda key: (jnp.asarray(logits), {}), apply)


def made_method():
    known = spec()
    rows = prompted.of_pairs(known, TEMPLATE)
    inner = lm.from_network(table(), lm.Options(), rows.rows, 64, ())
    return on_pairs(inner, rows, known)


def test_only_the_answer_counts_and_it_is_drawn_after_the_prompt():
    """The table answers "abcd" and the end to anything, as ":" is followed by "a"."""
    method = methods.check(made_method(), "lm")
    batch = pairs([("ab", "abc"), ("d", "ba")])
    params, mutable = method.init(None, batch)
    value, aux = method.phases[0].loss(params, mutable, batch, None, 0)
    assert aux.weight == 7  # the second one's are "b", "a" and the end, all wrong
    right = jnp.log(jnp.exp(9.0) + 6 * jnp.exp(-9.0)) - 9
    wrong = right + 18
    # ":" -> a b c and then d, not the end; ":" -> b is wrong, b -> a too, a -> end too
    assert aux.metrics["accuracy"] == pytest.approx(3 / 7)
    np.testing.assert_allclose(value, (3 * right + 4 * wrong) / 7, rtol=1e-5)
    found = method.evaluate(params, mutable, batch, None)["loss"]
    np.testing.assert_array_equal(found.weight, [4, 3])
    options = methods.options_of(method)
    assert "temperature" in options
    assert "decode" not in options
    given = {"source": jnp.asarray(batch["source"])}
    drawn = method.sample(params, mutable, None, 2, given)
    assert drawn.shape == (2, 4)
    assert [TOKENIZER.decode(row) for row in np.asarray(drawn)] == ["abcd"] * 2
    longer = method.sample(params, mutable, None, 2, given, max_new_tokens=6)
    np.testing.assert_array_equal(longer[:, 4:], [[6, -1]] * 2)


def test_the_family_takes_pairs_by_itself():
    config = configs.load("configs/llama.py:tiny", {"dataset.text.template": TEMPLATE})
    method = lm.build(config, spec())
    assert list(method.conditions) == ["source"]
    shapes = jax.eval_shape(
        lambda: method.init(jax.random.key(0), pairs(GIVEN))[0]["lm"]["embed"]["embedding"]
    )
    assert shapes.shape[0] == V
