"""Topologies by name, and how fast a group of their devices can exchange."""

import importlib.util

import pytest

from genjax.checks import ConfigError
from genjax.planning import ahead
from genjax.planning.chips import CHIPS, Topology, of_device, parse


def test_a_name_is_chips_and_a_shape():
    pod = parse("v5e:16x16", slices=2)
    assert (pod.chip.name, pod.shape, pod.chips, pod.devices) == ("v5e", (16, 16), 512, 512)
    assert (pod.island, pod.name) == (256, "v5e:16x16")
    nodes = parse("h100:4x8")
    assert (nodes.chips, nodes.island) == (32, 8)
    assert parse("tpu7x:2x2x1").devices == 8  # two devices a chip


@pytest.mark.parametrize(
    ("text", "slices", "said"),
    [
        ("v9:4x4", 1, "Known are v4, v5e, v5p, v6e, tpu7x, a100, h100, h200, b200"),
        ("", 1, "no chip ''"),
        ("v5e", 1, "expected 2 numbers"),
        ("v5e:4x4x4", 1, "expected 2 numbers"),
        ("v5p:8x8", 1, "expected 3 numbers"),
        ("v5e:4xx4", 1, "expected 2 numbers"),
        ("v5e:0x4", 1, "expected 2 numbers"),
        ("h100:2x16", 1, "16 GPUs a host"),
        ("h100:2x8", 2, "--slices=2"),
        ("v5e:4x4", 0, "--slices=0"),
    ],
)
def test_any_other_name_is_one_error(text, slices, said):
    with pytest.raises(ConfigError, match=said):
        parse(text, slices)


def test_links_are_those_that_a_group_fills():
    one_way = 4.5e10
    pod = parse("v5e:16x16")  # rings along both sides
    assert pod.inside(256) == 4 * one_way
    assert pod.inside(16) == 2 * one_way
    assert parse("v5e:4x4").inside(16) == 2 * one_way  # lines: the link to the end carries all
    assert parse("v5p:8x8x8").inside(512) == 6 * 9e10
    assert parse("v5p:8x8x8").inside(64) == 4 * 9e10
    assert parse("h100:1x8").inside(8) == parse("h100:1x8").inside(2) == 4.5e11


def test_members_of_a_group_share_the_network_of_their_island():
    nodes = parse("h100:4x8")  # 8 x 400 Gbit/s a host
    assert nodes.across(32, 4) == 8 * 50e9
    assert nodes.across(4, 4) == 50e9
    assert parse("v5e:16x16", slices=2).across(2, 2) == 3.125e9  # 2 x 100 Gbit/s for 8 chips
    assert parse("v5p:8x8x8", slices=2).across(2, 2) == 6.25e9


def test_published_all_reduce_bandwidth_is_that_of_the_links():
    # docs.cloud.google.com/tpu/docs: 51.2 TB/s of a v5e pod, 102.4 of v6e: half of all links.
    for name, published in (("v5e", 51.2e12), ("v6e", 102.4e12)):
        pod = parse(f"{name}:16x16")
        assert pod.inside(256) * 256 == pytest.approx(published, rel=0.15)


def test_a_device_here_is_known_by_its_kind():
    kinds = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}
    kinds |= {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA A100-SXM4-80GB": "a100", "TPU7x": "tpu7x"}
    assert {kind: of_device(kind).name for kind in kinds} == kinds
    for unknown in ("cpu", "NVIDIA H100 PCIe", "NVIDIA GH200 480GB", "NVIDIA A100-SXM4-40GB"):
        assert of_device(unknown) is None


def test_a_compiler_that_is_missing_is_named_with_its_extra():
    if importlib.util.find_spec("libtpu"):
        assert len(ahead.devices(parse("v5e:4x4"))) == 16
    else:
        with pytest.raises(ConfigError, match=r"genjax-models\[plan\]"):
            ahead.devices(Topology(CHIPS["v5e"], (4, 4)))
