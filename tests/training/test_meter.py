"""What the metrics say of devices: their use against a hand count, memory, the first step."""

import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config as configs
from genjax.method import Aux, DataSpec, Field, Method, Phase
from genjax.modes.train import peak_of
from genjax.parallel.mesh import global_batch, global_batches
from genjax.parallel.rules import fsdp
from genjax.training import meter as meters
from genjax.training.assemble import assemble
from genjax.training.meter import UNKNOWN, Meter, Peak, mfu, peak_memory

B, D, F = 8, 16, 32


def device(kind="cpu", **stats):
    return SimpleNamespace(device_kind=kind, memory_stats=lambda: stats or None)


def test_mfu_is_the_share_of_the_peak():
    # PaLM 540B, Chowdhery et al. 2022, table 3 and appendix B: 6,144 TPU v4 chips of 275 TFLOP/s
    # make 238.3e3 tokens a second. A token takes 6 N + 12 L H Q T FLOPs.
    flops = 6 * 540.35e9 + 12 * 118 * 48 * 256 * 2048
    assert mfu(flops, 238.3e3, 6144 * 275e12) == pytest.approx(0.462, abs=0.002)


def test_memory_is_the_largest_of_the_devices_that_tell():
    devices = [device(), device(peak_bytes_in_use=3), device(peak_bytes_in_use=5, other=9)]
    assert peak_memory(devices) == 5
    assert peak_memory([device(), device(bytes_limit=7)]) is None


@pytest.mark.parametrize(
    ("kinds", "precision", "flops"),
    [
        (["NVIDIA H100 80GB HBM3"] * 2, "bfloat16", 2 * 989e12),
        (["NVIDIA H100 80GB HBM3"], "float32", 494.5e12),
        (["TPU v5 lite"] * 4, "bfloat16", 4 * 197e12),
        (["cpu"], "float32", 0),
        (["NVIDIA H100 80GB HBM3", "something else"], "bfloat16", 0),
    ],
)
def test_the_peak_is_that_of_all_devices_by_their_kind(kinds, precision, flops):
    assert peak_of(map(device, kinds), precision).flops_per_second == pytest.approx(flops)


def assembled(traces):
    """A run of one linear layer; `traces` gets an entry each time that its loss is traced."""
    config = configs.base()
    config.batch_size, config.duration, config.steps_per_dispatch = B, "9_steps", 3
    config.evals.batch_size = B

    def loss(params, mutable, batch, key, step):
        traces.append(step)
        return jnp.square(batch["x"] @ params["net"]["kernel"]).mean(), Aux({}, {})

    method = Method(
        init=lambda key, batch: ({"net": {"kernel": jnp.ones((D, F))}}, {"net": {}}),
        phases=(Phase("net", loss),),
        evaluate=None,
        sample=None,
        rules=((".*", fsdp),),
    )
    field = Field("real", (D,), np.dtype(np.float32))
    return assemble(config, DataSpec("toy", {"x": field}, "x", {"train": 72}), method)


@pytest.mark.parametrize("count", [1, 3])
def test_the_flops_of_a_step_are_counted_without_another_trace(count, monkeypatch):
    traces = []
    run, rows = assembled(traces), [{"x": np.ones((B, D), np.float32)} for _ in range(count)]
    peak = Peak(peak_of([device("TPU v4")], "float32").count, 1e6)
    meter = Meter(time.perf_counter() - 5, peak)
    monkeypatch.setattr(meters.jax, "local_devices", lambda: [device(peak_bytes_in_use=7)])
    with jax.set_mesh(run.mesh):
        if count == 1:
            program, batch = run.step, global_batch(rows[0], run.mesh)
        else:
            program, batch = run.steps, global_batches(rows, run.mesh)
        state, _ = program(run.init(), batch)
        before = len(traces)
        meter.compiled(lambda: program.trace(state, batch), count)
    assert len(traces) == before > 0
    meter.stepped()
    meter.stepped()
    first, second = meter.metrics(10), meter.metrics(20)
    products = 2 * (2 * B * D * F)  # the layer, and the gradient of its kernel
    assert first["train/mfu"] == pytest.approx(products * 10 / 1e6)
    assert second["train/mfu"] == pytest.approx(products * 20 / 1e6)
    assert 5 < first["train/seconds_to_first_step"] < 60
    assert "train/seconds_to_first_step" not in second
    assert first["train/peak_memory_bytes"] == 7


def test_nothing_is_counted_where_no_peak_is_known():
    meter = Meter(peak=UNKNOWN)
    meter.compiled(lambda: pytest.fail("traced"), 1)
    assert meter.metrics(1.0) == {}
