"""What is known of the devices before JAX's backend starts."""

from types import SimpleNamespace

import pytest

from genjax.parallel import distributed


@pytest.mark.parametrize(
    ("platforms", "plugins", "libtpu", "expected"),
    [
        (None, [], None, False),
        (None, ["cuda"], None, True),
        ("", [], "a module", True),
        ("cpu", ["cuda"], None, False),
        ("cuda,cpu", ["cuda"], None, True),
    ],
)
def test_whether_there_may_be_accelerators(monkeypatch, platforms, plugins, libtpu, expected):
    config = SimpleNamespace(jax_platforms=platforms)
    monkeypatch.setattr(distributed, "jax", SimpleNamespace(config=config))
    monkeypatch.setattr(distributed.importlib.metadata, "entry_points", lambda group: plugins)
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: libtpu)
    assert distributed.accelerated() == expected
