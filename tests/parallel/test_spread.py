"""Sampling and evaluation: each device has its own examples."""

import jax
import numpy as np
import pytest
from compiled import moved, shapes
from test_compiled import assembled

from genjax.evals.evaluate import make_evaluate
from genjax.parallel.mesh import global_batch
from genjax.sampling.draw import make_draw

NUM = 40


def texts_of(monkeypatch, make):
    """(what `make` returns, a list that gets the programs which are compiled for it)."""
    texts, jit = [], jax.jit

    def watched(function, **options):
        program = jit(function, **options)

        def call(*args):
            texts.append(program.lower(*args).compile().as_text())
            return program(*args)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(jax, "jit", watched)
        return make(), texts


@pytest.mark.parametrize("network", ["unet", "transformer"])
def test_samples_are_drawn_and_examples_judged_where_they_are(network, monkeypatch):
    """Nothing but the samples, or sums, goes from device to device."""
    run = assembled(network, "data")
    with jax.set_mesh(run.mesh):
        state = run.init()
    prompt = {"prompt": np.array([[3, 9]], np.int32)} if network == "transformer" else {}
    options = {"max_new_tokens": 4} if prompt else {"steps": 2}
    make = lambda: make_draw(run.method, run.mesh, NUM, prompt, options)  # noqa: E731
    draw, texts = texts_of(monkeypatch, make)
    samples = draw(state.params, state.mutable, jax.random.key(0))
    (text,) = texts
    assert not [shape for shape in shapes(text) if len(shape) > 1 and NUM in shape[:2]]
    assert moved(text).size["all-gather"] == samples.nbytes

    zeros = {name: np.zeros((NUM, *f.shape), f.dtype) for name, f in run.spec.fields.items()}
    batch = global_batch(zeros | {"valid": np.ones(NUM, bool)}, run.mesh)
    valid = batch.pop("valid")
    with jax.set_mesh(run.mesh):
        sums = make_evaluate(run.method, run.mesh)
        lowered = sums.lower(state.params, state.mutable, batch, valid, jax.random.key(0))
    text = lowered.compile().as_text()
    assert not [shape for shape in shapes(text) if len(shape) > 1 and NUM in shape[:2]]
    assert set(moved(text).count) == {"all-reduce"}
    assert moved(text).size["all-reduce"] < 1000
