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

    @property
    def residual_noise(self) -> tuple[float, ...] | None:
        """Standard deviation of the noise left in each action of a chunk; None: all are decided."""

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

    The policy is asked again as policy_node does: when `execute` actions of the last chunk are over and the last
    inference has ended. What it is shown at step i was observed at step i - `delay_steps` and has that stamp, and its
    chunk arrives at step i + `latency_steps`. What a chunk meant for the steps before it arrives is lost, and without a
    chunk the controller holds. The controller's own sensors are never late, and an observation is not refused for its
    delay: the time-outs of the robot's sensors are for those that fail.

    Attributes:
        success: whether the task was solved; then the episode ends.
        steps: control steps so far.
        stopped: why the controller gave up, if it did; this ends the episode too.
        inference_ms: duration of each inference.
        interventions: what the safety filter changed, counted by limit and channel.
        held: control steps in which the controller held, counted by reason.
        action_ages: commands by their age, as of `ControllerCore.ages`.
        residual_noise: of the session.
        session: the policy's.
        answered: step of the observation that the last chunk answers; None before the first.

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
        delay_steps: int = 0,
    ) -> None:
        check_compatible(runtime.contract, env.robot)
        self.env = env
        self.seed = seed
        self.success = False
        self.steps = 0
        self.stopped: tuple[str, ...] = ()
        self.inference_ms: list[float] = []
        self.interventions: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self.answered: int | None = None
        self._policy = runtime.contract
        joined, repeated = split_stitching(stitching, prefix)
        self.session = runtime.start(seed, env.instruction, repeated)
        self._assembler = ObservationAssembler(env.robot, self._policy)
        self._controller = ControllerCore(env.robot, make_stitching(joined), require_heartbeat=False)
        self.action_ages = self._controller.ages
        self.residual_noise = self.session.residual_noise
        self._period_ns = round(env.robot.control_period_s * NANOSECONDS)
        self._latency = latency_steps
        self._delay = delay_steps
        self._every = max(self._policy.execute, latency_steps)  # steps from one inference to the next
        self._underway: deque[dict[str, npt.NDArray[Any]]] = deque()  # of the last `delay_steps` steps
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
        self._deliver(step, now_ns)  # before the next inference, which waits for the last one to end
        observed = step - self._delay
        if observed >= 0 and observed % self._every == 0:
            self._infer(observed)
            self._deliver(step, now_ns)
        command = self._controller.step(now_ns)
        if command.mode is Mode.STOPPED:
            self.stopped = command.reasons
        if command.mode is Mode.RUN:
            self.interventions.update(command.reasons)
        elif command.mode is Mode.HOLD:
            self.held[", ".join(command.reasons)] += 1
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
        if self._record:
            self._observations.append(observation)
        self._underway.append(observation)
        observed = step - self._delay
        if observed >= 0:
            for key, value in self._underway.popleft().items():
                self._assembler.push_feature(key, observed * self._period_ns, value)

    def _is_looked_at(self, key: str, step: int) -> bool:
        """False for a picture that no inference will see: rendering it would be most of the episode's time."""
        for observed in self._policy.observations:
            if observed.feature.key == key:
                return not observed.feature.is_image or -step % self._every < observed.history
        return False

    def _infer(self, observed: int) -> None:
        """Answer the observation of step `observed`, which has just arrived."""
        observation = self._assembler.window(observed * self._period_ns)
        begin = time.perf_counter()
        chunk = self.session.act(observation)
        self.inference_ms.append((time.perf_counter() - begin) * 1e3)
        self.answered = observed
        self._arriving.append((observed + self._delay + self._latency, chunk))

    def _deliver(self, step: int, now_ns: int) -> None:
        """Hand the controller what has arrived."""
        while self._arriving and self._arriving[0][0] <= step:
            self._controller.on_chunk(self._arriving.popleft()[1], now_ns)
