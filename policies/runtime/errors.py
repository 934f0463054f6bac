"""What can go wrong with a bundle."""

from __future__ import annotations


class BundleError(ValueError):
    """A bundle that cannot be used: says which file, what is wrong with it, and what to do."""


class PolicyOutputError(ValueError):
    """The network gave something that no robot may be sent (a NaN or an infinity)."""
