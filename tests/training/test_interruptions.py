"""Timed checkpoints and signals, on a clock that the test sets."""

import signal

import pytest

from genjax.training import interruptions as own


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(own.time, "monotonic", lambda: now[0])
    return now


def test_a_checkpoint_is_due_when_its_minutes_are_over(clock):
    interruptions = own.Interruptions(2.0, [])
    clock[0] = 119.0
    assert interruptions.poll() == (0, False)
    clock[0] = 121.0
    assert interruptions.poll() == (0, True)
    interruptions.saved()
    assert interruptions.poll() == (0, False)
    clock[0] = 242.0
    assert interruptions.poll() == (0, True)


def test_no_minutes_are_never_over(clock):
    interruptions = own.Interruptions(0.0, [])
    clock[0] = 1e9
    assert interruptions.poll() == (0, False)


def test_the_first_signal_counts(clock):
    received = []
    interruptions = own.Interruptions(0.0, received)
    received += [signal.SIGTERM, signal.SIGINT]
    assert interruptions.poll() == (signal.SIGTERM, False)
