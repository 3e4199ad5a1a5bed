"""What "auto" becomes, by device."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from genjax import config as configs
from genjax.nn import precision
from genjax.nn.cpu import onednn

DEVICES = {
    "tpu": (SimpleNamespace(platform="tpu"), "bfloat16"),
    "h100": (SimpleNamespace(platform="gpu", compute_capability="9.0"), "bfloat16"),
    "a100": (SimpleNamespace(platform="cuda", compute_capability="8.0"), "bfloat16"),
    "v100": (SimpleNamespace(platform="gpu", compute_capability="7.0"), "float32"),
    "t4": (SimpleNamespace(platform="cuda", compute_capability="7.5"), "float32"),
    "mi300": (SimpleNamespace(platform="rocm", compute_capability="gfx942"), "bfloat16"),
}
CPUS = {
    "old": ({"avx2"}, "float32", "float32"),
    "avx512": ({"avx2", "avx512_bf16"}, "float32", "bfloat16"),
    "amx": ({"avx2", "avx512_bf16", "amx_bf16"}, "bfloat16", "bfloat16"),
}


@pytest.mark.parametrize("name", DEVICES)
def test_accelerators(monkeypatch, name):
    device, expected = DEVICES[name]
    monkeypatch.setattr(precision.jax, "devices", lambda: [device])
    assert precision.native() == expected


@pytest.mark.parametrize("name", CPUS)
def test_cpus_without_onednn_and_with_it(monkeypatch, name):
    flags, without, beside = CPUS[name]
    monkeypatch.setattr(onednn, "cpu_flags", lambda: frozenset(flags))
    with onednn.used(onednn.Unavailable("trial")):
        assert precision.native() == without
    with onednn.used(onednn.Library("trial", "trial", lambda spec: "")):
        assert precision.native() == beside
        assert onednn.multiplies(jnp.float32)


def test_only_auto_is_settled():
    config = configs.base()
    assert precision.settled(config) is config
    with config.unlocked():
        config.precision = "auto"
    assert precision.settled(config).precision in ("float32", "bfloat16")
    assert config.precision == "auto"
