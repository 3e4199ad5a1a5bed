"""Traces: what is read back from a real one, and the arithmetic on made-up events."""

import logging
import time

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from genjax.training import operations
from genjax.training import profile as profiles
from genjax.training.operations import Event, Origin, Profile, covered, own_times, profile, table
from genjax.training.profile import StepTrace

TIMES = 5


def event(name, start, end, done=None):
    return Event("step", name, start, end, end if done is None else done)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A trace of TIMES calls of a loop of 4 products and a convolution; their wall time."""
    folder = tmp_path_factory.mktemp("traced")

    @jax.jit
    def work(x, image, kernel):
        x = lax.fori_loop(0, 4, lambda _, x: jnp.tanh(x @ x), x)
        layout = ("NHWC", "HWIO", "NHWC")
        made = lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=layout)
        return x.sum() + jnp.sin(made).sum()

    given = jnp.ones((512, 512)), jnp.ones((8, 32, 32, 32)), jnp.ones((3, 3, 32, 32))
    work(*given).block_until_ready()
    trace = profiles.Trace(folder)
    trace.start()
    start = time.perf_counter()
    for _ in range(TIMES):
        work(*given).block_until_ready()
    seconds = time.perf_counter() - start
    trace.stop("a test")
    (space,) = (folder / "profile").rglob("*.xplane.pb")
    return profiles.read(space.read_bytes()), seconds


def found(read, part):
    return [o for o in read.operations if o.origin.traced.endswith(part)]


def test_products_and_convolutions_are_found_with_their_count_and_place(traced):
    read, _ = traced
    (product,) = found(read, "dot_general")
    assert product.count == 4 * TIMES
    assert product.program == "jit_work"
    assert "test_profile.py:" in product.origin.source
    (convolution,) = found(read, "conv_general_dilated")
    assert convolution.count == TIMES
    assert convolution.origin.source != product.origin.source


def test_times_of_operations_are_plausible(traced):
    read, seconds = traced
    (product,) = found(read, "dot_general")
    least = 4 * TIMES * 2 * 512**3 / 1e13  # no CPU is faster
    assert least < product.seconds < seconds
    threads = 2 + jax.local_device_count()
    assert 0 < sum(o.seconds for o in read.operations) < seconds * threads
    assert 0 < read.seconds <= seconds
    assert 0 <= read.idle < read.seconds
    assert all(o.seconds >= 0 for o in read.operations)
    (loop,) = (o for o in read.operations if o.origin.opcode == "while")
    assert loop.seconds < product.seconds  # what is inside is not counted twice


def test_the_table_has_the_longest_first_and_the_rest_in_a_line(traced):
    read, _ = traced
    text = table(read, 2).splitlines()
    assert "from the first operation to the last" in text[0]
    assert text[2].split()[3] == read.operations[0].name
    assert text[3].split()[3] == read.operations[1].name
    assert f"{len(read.operations) - 2} others" in text[4]
    assert any("test_profile.py:" in line for line in text[6:])


def test_time_of_its_own_is_without_what_is_inside():
    line = [
        event("while", 0, 100),
        event("dot", 10, 40),
        event("call", 50, 90),
        event("add", 55, 60),
        event("add", 60, 70),
        event("dot", 100, 130),
    ]
    assert own_times(line) == [30, 30, 25, 5, 10, 30]
    assert own_times(line[::-1]) == [30, 10, 5, 25, 30, 30]


def test_time_of_its_own_has_what_other_threads_went_on_with():
    assert own_times([event("conv", 0, 10, done=50), event("add", 20, 30)]) == [50, 10]


def test_idle_is_where_nothing_runs_on_average_over_the_devices():
    assert covered([event("a", 0, 10), event("b", 5, 20), event("c", 30, 40)]) == 30
    devices = [
        [[event("a", 0, 50), event("b", 60, 100)], [event("c", 50, 60)]],
        [[event("a", 0, 40)]],
    ]
    read = profile(devices, {"step": {"a": Origin("dot", "dot_general", "unet.py:1 f")}})
    assert read.seconds == pytest.approx(100e-9)
    assert read.idle == pytest.approx((0 + 60) / 2 * 1e-9)
    assert [(o.name, o.count) for o in read.operations] == [("a", 2), ("b", 1), ("c", 1)]
    assert read.operations[0].seconds == pytest.approx(90e-9)
    assert read.operations[0].origin.source == "unet.py:1 f"


def stat(number, value):
    return f"stats {{ metadata_id: {number} {value} }}"


def line(name, *events):
    made = "".join(
        f"events {{ metadata_id: {kind} offset_ps: {start * 1000} duration_ps: {length * 1000} "
        f"{stats} }}"
        for kind, start, length, stats in events
    )
    return f'lines {{ name: "{name}" {made} }}'


def plane(name, names, *lines):
    metadata = "".join(
        f"event_metadata {{ key: {i} value {{ id: {i} name: '{n}' }} }}"
        for i, n in enumerate(names, 1)
    )
    stats = "".join(
        f"stat_metadata {{ key: {i} value {{ id: {i} name: '{n}' }} }}"
        for i, n in enumerate(("hlo_op", "hlo_module"), 1)
    )
    return f'planes {{ name: "{name}" {metadata} {stats} {"".join(lines)} }}'


def read_text(*planes):
    return profiles.read(jax.profiler.ProfileData.text_proto_to_serialized_xspace("".join(planes)))


HOST = plane("/host:CPU", ["dot.9"], line("python", (1, 0, 5000, stat(1, 'str_value: "dot.9"'))))


def test_on_a_gpu_the_streams_kernels_are_read():
    dot = stat(1, 'str_value: "dot.1"') + stat(2, 'str_value: "jit_step"')
    read = read_text(
        HOST,
        plane(
            "/device:GPU:0",
            ["gemm_kernel", "splitk_kernel", "MemcpyD2H", "jit_step"],
            line("XLA Modules", (4, 0, 1000, "")),
            line("Stream #20(Kernel)", (1, 0, 300, dot), (2, 300, 100, dot)),
            line("Stream #21(Memcpy)", (3, 500, 100, "")),
        ),
    )
    assert [(o.program, o.name, o.count) for o in read.operations] == [
        ("jit_step", "dot.1", 2),
        ("", "MemcpyD2H", 1),
    ]
    assert read.operations[0].seconds == pytest.approx(400e-9)
    assert (read.seconds, read.idle) == pytest.approx((600e-9, 100e-9))


def test_the_kernels_of_a_cuda_graph_are_told_apart_by_their_names():
    graph, call, dot = (
        stat(1, f'str_value: "{name}"') + stat(2, 'str_value: "jit_step"')
        for name in ("command_buffer_7", "call.1", "call.1::dot.2")
    )
    given = plane(
        "/device:GPU:0",
        ["loop_add_fusion_3", "sm90_xmma_gemm", "other_kernel"],
        line("Stream #20(Kernel)", (1, 0, 300, graph), (2, 300, 100, call), (3, 400, 50, dot)),
    )
    space = jax.profiler.ProfileData.text_proto_to_serialized_xspace(given)
    (device,) = jax.profiler.ProfileData.from_serialized_xspace(space).planes
    program = {
        "call.1": Origin("call", "", ""),
        "loop_add-fusion.3": Origin("fusion", "add", "unet.py:1 f"),
        "dot.2": Origin("dot", "dot_general", "unet.py:2 f"),
    }
    events = operations._device_events(*device.lines, {"jit_step": program})
    names = [event.name for event in events]
    assert names == ["loop_add-fusion.3", "sm90_xmma_gemm", "dot.2"]
    assert {event.program for event in events} == {"jit_step"}


def test_on_a_tpu_the_operations_are_read_once():
    ops = ["%while.3 = (s32[]) while(%a), body=%b", "%fusion.1 = f32[8]{0} fusion(%c)", "step"]
    planes = [
        plane(
            f"/device:TPU:{n}",
            ops,
            line("Steps", (3, 0, 1000, "")),
            line("XLA Modules", (3, 0, 1000, "")),
            line("XLA Ops", (1, 0, 800, ""), (2, 100, 300, ""), (2, 400, 300 + 100 * n, "")),
        )
        for n in (0, 1)
    ]
    read = read_text(HOST, *planes)
    found = [(o.name, o.count, o.seconds) for o in read.operations]
    assert found == [
        ("fusion.1", 4, pytest.approx(1300e-9)),
        ("while.3", 2, pytest.approx(300e-9)),
    ]
    assert (read.seconds, read.idle) == pytest.approx((800e-9, 0))


def test_nothing_ran():
    read = profile([[[]]], {})
    assert read == Profile(0.0, 0.0, [])
    assert table(read) == "no operation ran"


class Recorded:
    """Stands for a Trace."""

    def __init__(self, workdir):
        self.calls = []

    def start(self):
        self.calls.append("start")

    def stop(self, what=""):
        self.calls.append(what)


def steps_traced(monkeypatch, steps, groups, last=()):
    monkeypatch.setattr(profiles, "Trace", Recorded)
    trace = StepTrace(steps, "")
    for group in groups:
        trace.begin(group, {})
        trace.end(group[-1], {}, group[-1] in last)
    trace.close()
    return trace._trace.calls


def singly(*steps):
    return [range(step, step + 1) for step in steps]


def test_the_first_dispatches_are_left_out(monkeypatch):
    assert steps_traced(monkeypatch, 3, singly(*range(8, 20))) == ["start", "steps 10 to 12", ""]


def test_a_trace_ends_at_an_evaluation(monkeypatch):
    calls = steps_traced(monkeypatch, 30, singly(*range(1, 20)), last=(6, 12))
    assert calls == ["start", "steps 3 to 6", ""]


def test_dispatches_of_several_steps_are_warm_after_two_of_their_own(monkeypatch):
    groups = [*singly(7), range(8, 12), range(12, 16), range(16, 20), range(20, 24)]
    assert steps_traced(monkeypatch, 4, groups) == ["start", "steps 16 to 19", ""]


def test_no_profile_is_no_trace(monkeypatch):
    assert steps_traced(monkeypatch, 0, singly(*range(9))) == [""]


def test_a_run_that_is_too_short_says_so(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, logger="genjax"):
        assert steps_traced(monkeypatch, 5, singly(1, 2)) == [""]
    assert "nothing to profile" in caplog.text
