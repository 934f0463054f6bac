"""What a pose is to the network, and how the robot's command follows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from contracts import Feature, RobotContract
from policies.normalization import MIN_HALF_RANGE, OBSERVATION_LIMIT, MinMaxNormalizer
from policies.runtime.sampler import PadChannel

REACH_MARGIN = 1.25  # what is measured may for a moment be faster than what was commanded


class PoseNormalizer(nn.Module):
    """Measured poses to [-1, 1] over the range of the data, and predicted ones to and from it.

    Attributes:
        relative: 1 for an element that is predicted relative to the present, 0 for one that is not [size].
        offset, scale: of the predicted ones [size], [future, size].
    """

    relative: Tensor
    offset: Tensor
    scale: Tensor

    def __init__(self, size: int, future: int) -> None:
        super().__init__()
        self.measured = MinMaxNormalizer(size, limit=OBSERVATION_LIMIT)
        self.register_buffer("relative", torch.zeros(size))
        self.register_buffer("offset", torch.zeros(size))
        self.register_buffer("scale", torch.ones(future, size))

    def fit(self, statistics: Mapping[str, Any], reach: np.ndarray | None = None) -> None:
        """Take the range of the data; where `reach` [future, size] is positive, predict how far it moves instead.

        Raises:
            ValueError: as of `MinMaxNormalizer.fit`.
        """
        self.measured.fit(statistics)
        self.offset.copy_(self.measured.center)
        self.scale.copy_(self.measured.half_range.expand_as(self.scale))
        if reach is not None:
            moves = torch.from_numpy(reach).to(self.scale)
            self.relative.copy_((moves[-1] > 0).float())
            self.offset.mul_(1 - self.relative)
            self.scale.copy_(torch.where(moves > 0, moves, self.scale))

    def forward(self, future: Tensor, now: Tensor) -> Tensor:
        """Poses [B, future, size] in the data's units, seen from `now` [B, size], to [-1, 1]."""
        moved = future - self.offset - self.relative * now.unsqueeze(1)
        return torch.where(self.scale > MIN_HALF_RANGE, moved / self.scale.clamp(min=MIN_HALF_RANGE), 0.0)

    def inverse(self, poses: Tensor, now: Tensor) -> Tensor:
        """`forward` undone."""
        return poses * self.scale + self.offset + self.relative * now.unsqueeze(1)


def command_channels(robot: RobotContract, pose: Feature) -> tuple[PadChannel, ...]:
    """How each channel of the robot's command follows a pose.

    A channel that integrates follows the element that it is measured by; one that nothing measures is a gripper, and
    follows the element that no other channel moves.

    Raises:
        ValueError: the robot is commanded in a way that this does not know, or does not measure what it moves.
    """
    command = robot.command
    if command.kind == "joint_position":
        raise ValueError(
            f"robot {robot.name!r} is commanded by joint positions; a pad policy follows predicted poses by velocities "
            "(end_effector_twist, joint_velocity)"
        )
    moved = {channel.measured_by for channel in command.channels}
    unmoved = [index for index, name in enumerate(pose.names) if name not in moved]
    channels = []
    for channel in command.channels:
        if channel.measured_by in pose.names:
            element, kind = pose.names.index(channel.measured_by), "velocity"
        elif channel.measured_by is None and len(unmoved) == 1:
            element, kind = unmoved[0], "gripper"
        else:
            raise ValueError(
                f"robot {robot.name!r}: a pad policy cannot tell which of {', '.join(pose.names)} the channel "
                f"{channel.name!r} moves; name it in measured_by, or observe the opening of one gripper"
            )
        channels.append(PadChannel(element=element, kind=kind, min=channel.min, max=channel.max))  # type: ignore[arg-type]
    return tuple(channels)


def reach(
    channels: tuple[PadChannel, ...], statistics: Mapping[str, Any], future: tuple[int, ...], period_s: float, size: int
) -> np.ndarray:
    """How far each element can move by the end of each of the `future` periods [future, size]; 0 where none moves it.

    `statistics`: of the demonstrated commands, "min" and "max".
    """
    fastest = np.maximum(np.abs(statistics["min"]), np.abs(statistics["max"])).reshape(-1)
    found = np.zeros((len(future), size))
    for number, channel in enumerate(channels):
        if channel.kind == "velocity":
            found[:, channel.element] = REACH_MARGIN * fastest[number] * period_s * np.array(future)
    return found
