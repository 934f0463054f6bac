"""A session of a walking policy: measurements and requests seen as in training, actions as joint positions."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from contracts import PolicyContract
from contracts.locomotion import CLIP, LocomotionContract, projected_gravity
from contracts.robot import VELOCITY
from policies.runtime.graphs import Array, GraphRunner, TensorType
from policies.runtime.sampler import LocomotionSampler
from policies.runtime.sessions import EpisodeStart, Session

STATE = "observation.state"
ACTOR = "actor"


class LocomotionSession(Session):
    """One walk. Its chunk repeats one command for the whole horizon, so that a late inference leaves no gap.

    What is seen is worked out anew for every observation, from measurements at the times of the history and from the
    actions that had been given by then. So a missed inference loses nothing: the history goes on by time, and the
    action before it counts twice, as the robot obeyed it twice. At the start, what is seen first fills the history.
    """

    graphs = (ACTOR,)

    def __init__(
        self,
        contract: PolicyContract,
        sampler: LocomotionSampler,
        runners: Mapping[str, GraphRunner],
        start: EpisodeStart,
    ) -> None:
        super().__init__(contract, sampler, runners, start)
        names, joints = contract.observation(STATE).feature.names, sampler.locomotion.joint_names
        self._position, self._velocity = _find(joints, names), _find([joint + VELOCITY for joint in joints], names)
        self._command, self._orientation = _find(sampler.command, names), _find(sampler.orientation, names)
        self._angular_velocity = _find(sampler.angular_velocity, names)
        self._channels = _find(contract.action.names, joints)
        self._limits = np.array(sampler.command_limits)
        self._began_ns: int | None = None
        self._given: deque[tuple[int, NDArray[np.float32]]] = deque(maxlen=2 * (sampler.locomotion.history + 1))

    @classmethod
    def check_graphs(
        cls, contract: PolicyContract, sampler: LocomotionSampler, runners: Mapping[str, GraphRunner]
    ) -> None:
        """An actor of any batch that sees and moves what the contract names."""
        walk = sampler.locomotion
        _check_contract(contract, sampler)
        actor = runners[ACTOR]
        seen, given = TensorType((-1, walk.history * walk.observation_size)), TensorType((-1, len(walk.joint_names)))
        if (actor.inputs, actor.outputs) != ({"observation": seen}, (given,)):
            has = f"{ {name: str(kind) for name, kind in actor.inputs.items()} } -> {[str(t) for t in actor.outputs]}"
            raise ValueError(f"{ACTOR}: is {has}; must be observation {seen} -> {given}")

    def observation(self, inputs: Mapping[str, Array], stamp_ns: int) -> NDArray[np.float32]:
        """What the actor sees at `stamp_ns`, the latest of its history first, [1, history * observation_size].

        `inputs`: checked observations; their history [1, H, D] has the newest last.
        """
        if self._began_ns is None:
            self._began_ns = stamp_ns
        walk: LocomotionContract = self.sampler.locomotion
        periods = max(0, round((stamp_ns - self._began_ns) / self._period_ns))
        ages = np.minimum(np.arange(walk.history), periods)  # nothing was seen before the beginning
        state = inputs[STATE][0, -1 - ages].astype(np.float64)
        seen = walk.observation(
            command=np.clip(state[:, self._command], -self._limits, self._limits),
            angular_velocity=state[:, self._angular_velocity],
            projected_gravity=projected_gravity(state[:, self._orientation]),
            joint_position=state[:, self._position],
            joint_velocity=state[:, self._velocity],
            last_action=np.stack([self._action_before(stamp_ns - int(age) * self._period_ns) for age in ages]),
        )
        return seen.reshape(1, -1)

    def infer(self, inputs: Mapping[str, Array], stamp_ns: int) -> NDArray[np.float32]:
        """The joint positions that the actor wants now, for every period of the chunk."""
        action = self.runners[ACTOR]({"observation": self.observation(inputs, stamp_ns)})[0][0]
        action = np.clip(action, -CLIP, CLIP)
        if np.isfinite(action).all():  # otherwise the chunk is refused, and nothing was given
            self._given.append((stamp_ns, action))
        targets = self.sampler.locomotion.targets(action)[self._channels]
        return np.tile(targets.astype(np.float32), (self.contract.horizon, 1))

    def _action_before(self, time_ns: int) -> NDArray[np.float32]:
        """The latest action that was given for an observation before `time_ns`, [J]; 0 before the first."""
        for stamp_ns, action in reversed(self._given):
            if stamp_ns < time_ns - self._period_ns // 2:
                return action
        return np.zeros(len(self.sampler.locomotion.joint_names), dtype=np.float32)


def _check_contract(contract: PolicyContract, sampler: LocomotionSampler) -> None:
    """The contract must name all that the sampler looks for, and say the same. Raises ValueError."""
    walk = sampler.locomotion
    if [o.feature.key for o in contract.observations] != [STATE]:
        raise ValueError(f"a walking policy observes {STATE}, not {[o.feature.key for o in contract.observations]}")
    observed = contract.observations[0]
    wanted = (*sampler.command, *sampler.orientation, *sampler.angular_velocity, *walk.joint_names)
    wanted += tuple(joint + VELOCITY for joint in walk.joint_names)
    missing = [name for name in wanted if name not in observed.feature.names]
    if missing:
        raise ValueError(f"{STATE}: lacks {', '.join(missing)}")
    if observed.history != walk.history:
        raise ValueError(f"{STATE}: has a history of {observed.history}; the actor sees {walk.history}")
    walk.order_of(contract.action.names)
    if abs(contract.action_period_s - walk.period_s) > 1e-6 * walk.period_s:
        raise ValueError(f"it acts every {contract.action_period_s} s, but was trained to every {walk.period_s} s")
    control = contract.position_control
    if control is None or (control.kp, control.kd) != (walk.kp, walk.kd):
        raise ValueError(f"position_control must be what it was trained with: kp {walk.kp:g}, kd {walk.kd:g}")


def _find(wanted: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    """Where each of `wanted` stands in `names`."""
    return np.array([names.index(name) for name in wanted])
