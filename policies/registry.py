"""The families of policies, by name. Each is imported when it is asked for: who trains one need not wait for all."""

from __future__ import annotations

from pkgutil import resolve_name

from policies.base import Policy

FAMILIES = {
    "carp": "policies.carp.policy:CarpPolicy",
    "diffusion": "policies.diffusion.policy:DiffusionPolicy",
    "pad": "policies.pad.policy:PadPolicy",
    "streaming": "policies.streaming.policy:StreamingPolicy",
}


def policy_type(family: str) -> type[Policy]:
    """The class of a family. Raises ValueError naming those there are."""
    if family not in FAMILIES:
        raise ValueError(f"no policy {family!r}: there are {', '.join(sorted(FAMILIES))}")
    kind: type[Policy] = resolve_name(FAMILIES[family])
    return kind
