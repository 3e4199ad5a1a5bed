"""--mode=sample: what its files are called."""

import argparse
import re

import pytest

from genjax.modes.sample import said


def flags(**options):
    plain = {"ema": "", "guide_ema": "", "guide_checkpoint": "", "conditions": ""}
    return argparse.Namespace(**plain, options={name: [value] for name, value in options.items()})


def test_plain_options_are_named_as_they_stand():
    assert said(flags(sampler="ddpm", steps="4")) == "_sampler_ddpm_steps_4"


@pytest.mark.parametrize(
    "value", ["(0.3, 5)", "a/b", "it's", "'quoted'", "$HOME", "a b;c", "x" * 300]
)
def test_names_are_safe_in_a_shell_and_differ_where_the_options_do(value):
    name = said(flags(guidance_interval=value))
    assert re.fullmatch(r"[\w.-]{1,120}", name)
    assert name != said(flags(guidance_interval=f"{value}1"))
