"""CIDEr-D against pycocoevalcap (tests/golden/make_cider.py) and by hand; the judge of captions."""

import json
import math
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import sources
from genjax.data.alphabets import Characters
from genjax.data.catalogue import Dataset
from genjax.evals import cider, text
from genjax.evals.judges import captions
from genjax.method import DataSpec, Field

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "cider.npz")
CASES = json.loads(str(GOLDEN["cases"]))


@pytest.mark.parametrize("name", CASES)
def test_scores_are_the_peers(name):
    case = CASES[name]
    found = cider.cider(case["captions"], case["references"])
    np.testing.assert_allclose(found, case["each"], rtol=1e-9, atol=1e-12)
    assert found.mean() == pytest.approx(case["mean"], rel=1e-9)
    assert len(found) < 2 or found.std() > 0.01


def test_by_hand():
    """Each word is in one of two pictures, so that each n-gram counts log 2.

    Of "a b" against "a b c": the unigrams have the cosine 2 / sqrt(6), the one bigram 1 / sqrt(2),
    and there are no longer ones in common. One bigram is missing: exp(-1 / 72).
    """
    found = cider.cider(["a b", "d"], [["a b c"], ["e"]])
    expected = 10 * math.exp(-1 / 72) * (2 / math.sqrt(6) + 1 / math.sqrt(2)) / 4
    np.testing.assert_allclose(found, [expected, 0], rtol=1e-12)


def test_words_have_no_case_and_no_marks():
    assert cider.words("A cat's Hat, (red): 3-4_5!") == ["a", "cat's", "hat", "red", "3", "4", "5"]
    np.testing.assert_array_equal(
        cider.cider(["A cat, sat.", "Dog"], [["a cat sat"], ["a bus"]]),
        cider.cider(["a cat sat", "dog"], [["A CAT SAT!"], ["a bus."]]),
    )


def test_what_is_refused():
    with pytest.raises(ValueError, match="2 captions and references of 1 pictures"):
        cider.cider(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="0 captions"):
        cider.cider([], [])
    for references in (["a b"], [[]]):
        with pytest.raises(ValueError, match="one or more texts for each picture"):
            cider.cider(["a"], references)


def data(wordings, target="text"):
    """Six pictures with texts of up to four letters; (the data, the texts)."""
    rng = np.random.default_rng(0)
    tokenizer = Characters("ab c", {"eos": 4})
    shape = (6, wordings, 5) if wordings else (6, 5)
    rows = rng.integers(0, 4, shape).astype(np.int32)
    rows[..., 4] = 4
    facts = {"vocabulary_size": 5, "special": {"start": 4, "eos": 4}, "tokenizer": tokenizer}
    facts |= {"wordings": wordings} if wordings else {}
    fields = {
        "image": Field("image", (2, 2, 1), np.dtype(np.uint8)),
        "text": Field("text", (5,), np.dtype(np.int32), facts),
    }
    images = np.arange(6, dtype=np.uint8).repeat(4).reshape(6, 2, 2, 1)
    source = sources.Columns({"image": images, "text": rows})
    spec = DataSpec("toy", fields, target, {"validation": 6})
    return Dataset(spec, {"validation": source}, "made"), rows, tokenizer


@pytest.mark.parametrize("wordings", [0, 3])
def test_the_judge_compares_with_every_wording_of_the_pictures_samples_were_drawn_for(wordings):
    dataset, rows, tokenizer = data(wordings)
    evals = ConfigDict({"split": "validation"})
    judge = captions.build_judge(captions.Options(generated=4), evals, dataset, None)
    assert judge.paired
    judge.prepare()
    chosen = sources.order(6)[:4]
    several = [np.atleast_2d(rows[i]) for i in chosen]
    references = [[tokenizer.decode(ids) for ids in texts] for texts in several]
    samples = np.stack([texts[-1] for texts in several])
    said = [texts[-1] for texts in references]
    first = np.stack([texts[0] for texts in several])
    found = judge.judge(samples, first, {})
    assert set(found) == set(judge.metrics)
    assert found["bleu"] == pytest.approx(text.bleu(said, references))
    assert found["cider"] == pytest.approx(cider.cider(said, references).mean())
    assert found["cider"] > 0
    with pytest.raises(ConfigError, match="the first 4 examples of evals"):
        judge.judge(samples, first[::-1], {})
    with pytest.raises(ConfigError, match="captions judges texts, but 'image' of toy"):
        captions.build_judge(captions.Options(), evals, data(3, "image")[0], None)
