"""Families by name: found, refused with those there are, and none loaded that nobody asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from policies.registry import FAMILIES, policy_type


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_found_by_its_name(family):
    assert policy_type(family).family == family


def test_there_is_no_other():
    with pytest.raises(ValueError, match="no policy 'act': there are carp, diffusion, pad, streaming"):
        policy_type("act")


def test_who_trains_a_walker_does_not_wait_for_what_draws_pictures():
    """Diffusers takes seconds to load."""
    program = "import sys, policies.hinfinity.train; print('diffusers' in sys.modules, 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", "True"]
