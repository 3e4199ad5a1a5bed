"""Which candidates a search tries, and in which order it leaves the ones that cannot fit."""

from pathlib import Path

import pytest

from genjax import config as configs
from genjax.checks import ConfigError
from genjax.planning.chips import parse
from genjax.planning.estimate import Estimate, Memory
from genjax.planning.flops import Flops
from genjax.planning.roofline import roofline
from genjax.planning.roofs import of_topology
from genjax.planning.search import Size, candidates, searched

CONFIGS = Path(__file__).parents[2] / "configs"
GIB = 2**30
SEVEN = Size(params=6_738_000_000, state=16 * 6_738_000_000, flops=6 * 6.738e9 * 2**21)
POD = of_topology(parse("v5e:16x16"), "bfloat16")


def llama(batch=1024):
    config = configs.load(f"{CONFIGS / 'llama.py'}:7b")
    return configs.override(config, {"batch_size": batch})


def planned(keys, peak):
    """A plan of a program that needs `peak`, and takes as long as it has microbatches."""
    figures = roofline(
        flops=keys["accumulation"], model_flops=1, peak_flops=1, hbm_bytes=0, hbm_rate=1
    )
    memory = Memory(0, 0, 0, 0, 0, 0, peak, 16 * GIB)
    return Estimate("train", {}, 1, 0, memory, Flops(), 0, (), (), figures, 1.0)


def test_every_candidate_holds_the_state_and_divides_the_batch():
    asked = candidates(llama(), SEVEN, 256, POD)
    assert len(asked) > 20
    for keys in asked:
        split = keys["mesh.data"] * keys["mesh.fsdp"]
        assert split * keys["mesh.tensor"] == 256
        assert 1024 // keys["accumulation"] % split == 0
        assert SEVEN.state / keys["mesh.fsdp"] / keys["mesh.tensor"] <= 16 * GIB
    best = asked[0]
    assert best["mesh.tensor"] == 1
    assert (best["accumulation"], best["model.lm.remat"]) == (1, "none")


def test_a_batch_that_divides_nothing_is_refused():
    with pytest.raises(ConfigError, match="batch_size=7"):
        candidates(llama(7), SEVEN, 256, POD)


def test_what_needs_more_than_one_that_did_not_fit_is_not_compiled():
    tried = []

    def plan(keys):
        tried.append(keys)
        small = keys["accumulation"] >= 2 or keys["model.lm.remat"] == "full"
        return planned(keys, (10 if small else 20) * GIB)

    asked = [
        {"mesh.fsdp": fsdp, "mesh.tensor": 1, "accumulation": n, "model.lm.remat": remat}
        for fsdp in (256, 64)
        for n in (1, 2)
        for remat in ("dots", "none", "full")
    ]
    found = searched(asked, plan, 20)
    assert asked[1] not in tried  # none keeps more than dots, which did not fit
    assert asked[6] not in tried  # nor does it where less of the state is split
    assert found[0].keys == asked[2]
    assert not found[-1].estimate.fits
    assert len(searched(asked, plan, 2)) == 2
