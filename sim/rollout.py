"""One episode of a policy in simulation, through the very controller that the robot runs, in lock step."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from contracts import PolicyContract, check_compatible
from episodes.data import EpisodeData
from execution.chunk import ActionChunk
from execution.controller import ControllerCore, Mode
from execution.observation import Observation, ObservationAssembler
from execution.stitching import PREFIX_ACTIONS, make_stitching, split_stitching
from sim.environments import MetaWorldEnv
from sim.tasks import EPISODE_STEPS

NANOSECONDS = 1_000_000_000


class Session(Protocol):
    """The state of one episode of a policy."""

    def act(self, observation: Observation) -> ActionChunk:
        """Actions for the observation's stamp and after."""


class PolicyRuntime(Protocol):
    """A loaded policy."""

    @property
    def contract(self) -> PolicyContract:
        """What it observes and gives."""

    def start(self, seed: int, instruction: str | None = None, prefix: int = 0) -> Session:
        """Begin an episode; all randomness comes from `seed`.

        Args:
            seed: of the episode.
            instruction: what to do, in words.
            prefix: so many first actions of a chunk repeat what the chunk before it says for the same time.

        Raises:
            ValueError: it does not know the instruction, or cannot begin so.
        """


class Rollout:
    """One episode: the environment from `seed`, a new session with the same seed, the controller between them.

    The session is told the environment's instruction. `stitching` and `prefix`: as of `split_stitching`.

    The policy is asked again as policy_node does: when `execute` actions of the last chunk are over. A chunk from the
    observation at step i arrives at step i + `latency_steps`; what it meant for the steps before is lost, and without a
    chunk the controller holds.

    Attributes:
        success: whether the task was solved; then the episode ends.
        steps: control steps so far.
        stopped: why the controller gave up, if it did; this ends the episode too.
        inference_ms: duration of each inference.
        interventions: what the safety filter changed, counted by limit and channel.

    Raises:
        ContractMismatch: the policy does not fit the environment's robot.
        ValueError: the policy does not know the instruction, or cannot be joined so.
    """

    def __init__(
        self,
        env: MetaWorldEnv,
        runtime: PolicyRuntime,
        seed: int,
        latency_steps: int = 0,
        record: bool = False,
        stitching: str = "latest",
        prefix: int = PREFIX_ACTIONS,
    ) -> None:
        check_compatible(runtime.contract, env.robot)
        self.env = env
        self.seed = seed
        self.success = False
        self.steps = 0
        self.stopped: tuple[str, ...] = ()
        self.inference_ms: list[float] = []
        self.interventions: Counter[str] = Counter()
        self._policy = runtime.contract
        joined, repeated = split_stitching(stitching, prefix)
        self._session = runtime.start(seed, env.instruction, repeated)
        self._assembler = ObservationAssembler(env.robot, self._policy)
        self._controller = ControllerCore(env.robot, make_stitching(joined), require_heartbeat=False)
        self._period_ns = round(env.robot.control_period_s * NANOSECONDS)
        self._latency = latency_steps
        self._next_inference = 0
        self._arriving: deque[tuple[int, ActionChunk]] = deque()
        self._record = record
        self._observations: list[dict[str, npt.NDArray[Any]]] = []
        self._actions: list[npt.NDArray[np.float32]] = []

    def run(self) -> Iterator[int]:
        """Step through the episode, giving the number of each step before it is taken; time stands still in between."""
        self.env.begin(self.seed)
        self._controller.activate(0)
        for step in range(EPISODE_STEPS):
            yield step
            self._step(step)
            if self.success or self.stopped:
                return

    def episode(self) -> EpisodeData:
        """What was recorded, the actions as they were applied.

        Raises:
            ValueError: nothing was recorded.
        """
        if not self._observations:
            raise ValueError("this roll-out recorded nothing: make it with record=True and run it")
        keys = self._observations[0]
        return EpisodeData(
            observations={key: np.stack([o[key] for o in self._observations]) for key in keys},
            actions=np.stack(self._actions),
            task=self.env.instruction,
            task_name=self.env.task,
            seed=self.seed,
            success=self.success,
        )

    def _step(self, step: int) -> None:
        now_ns = step * self._period_ns
        self._measure(step, now_ns)
        if step >= self._next_inference and not self._arriving:
            self._infer(step, now_ns)
        while self._arriving and self._arriving[0][0] <= step:
            self._controller.on_chunk(self._arriving.popleft()[1], now_ns)
        command = self._controller.step(now_ns)
        if command.mode is Mode.STOPPED:
            self.stopped = command.reasons
        if command.mode is Mode.RUN:
            self.interventions.update(command.reasons)
        self.env.advance(self.env.hold_action() if command.values is None else command.values)
        if self._record:
            self._actions.append(self.env.applied_action)
        self.success = self.env.success
        self.steps = step + 1

    def _measure(self, step: int, now_ns: int) -> None:
        """Give the controller its sensors, and the assembler what the policy will look at."""
        measured = self.env.measurements()
        for sensor in self._controller.needed_sensors:
            self._controller.on_fields(sensor.name, now_ns, sensor.fields, measured[sensor.name].tolist(), now_ns)
        features = [f for f in self.env.features if self._record or self._is_looked_at(f.key, step)]
        observation = self.env.observe(features)
        for key, value in observation.items():
            self._assembler.push_feature(key, now_ns, value)
        if self._record:
            self._observations.append(observation)

    def _is_looked_at(self, key: str, step: int) -> bool:
        """False for a picture that no inference will see: rendering it would be most of the episode's time."""
        for observed in self._policy.observations:
            if observed.feature.key == key:
                return not observed.feature.is_image or step > self._next_inference - observed.history
        return False

    def _infer(self, step: int, now_ns: int) -> None:
        observation = self._assembler.window(now_ns)
        begin = time.perf_counter()
        chunk = self._session.act(observation)
        self.inference_ms.append((time.perf_counter() - begin) * 1e3)
        self._arriving.append((step + self._latency, chunk))
        self._next_inference = step + self._policy.execute
