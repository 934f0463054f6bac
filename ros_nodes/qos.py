"""Quality of service of every topic, in one place, so that publishers and subscribers always match.

Sensors are best effort (a late sample is worth nothing), commands and chunks reliable; all of them keep few, because an
old one must not be worked off before a new one. Source: REP-2003.
"""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy


def _profile(
    depth: int, reliability: ReliabilityPolicy, durability: DurabilityPolicy = DurabilityPolicy.VOLATILE
) -> QoSProfile:
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=reliability, durability=durability)


SENSOR = _profile(5, ReliabilityPolicy.BEST_EFFORT)
"""Measurements and pictures; a few, because a policy's history wants every sample."""

HEARTBEAT = _profile(1, ReliabilityPolicy.BEST_EFFORT)
"""Signs of life: only the newest says anything."""

COMMAND = _profile(1, ReliabilityPolicy.RELIABLE)
"""Commands to the robot."""

CHUNK = _profile(2, ReliabilityPolicy.RELIABLE)
"""Action chunks."""

STATUS = _profile(10, ReliabilityPolicy.RELIABLE)
"""What happens seldom and nobody should miss: success, diagnostics, the commands that were really applied."""

LATCHED = _profile(1, ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL)
"""The latest state, also for those who come later: the episode, the controller's mode."""

RECORDER = _profile(200, ReliabilityPolicy.BEST_EFFORT)
"""A listener that must not lose anything, and that must not make a publisher wait."""
