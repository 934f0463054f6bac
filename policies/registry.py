"""The families of policies, by name."""

from __future__ import annotations

from policies.base import Policy
from policies.carp.policy import CarpPolicy
from policies.diffusion.policy import DiffusionPolicy
from policies.pad.policy import PadPolicy
from policies.streaming.policy import StreamingPolicy

FAMILIES: dict[str, type[Policy]] = {
    kind.family: kind for kind in (CarpPolicy, DiffusionPolicy, PadPolicy, StreamingPolicy)
}


def policy_type(family: str) -> type[Policy]:
    """The class of a family. Raises ValueError naming those there are."""
    if family not in FAMILIES:
        raise ValueError(f"no policy {family!r}: there are {', '.join(sorted(FAMILIES))}")
    return FAMILIES[family]
