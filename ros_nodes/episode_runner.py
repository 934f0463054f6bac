"""The order in which a graph is started, an episode is run, and a robot is stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from typing import Any

from contracts import RobotContract
from episodes.report import noise_carried_out
from ros_nodes.graph import BODY, CONTROLLER, DISCOVERY_S, POLICY, RECORDER
from ros_nodes.graph_client import GraphClient, GraphError
from ros_nodes.run_report import EpisodeRow

CONFIGURE_S = 60.0  # a simulator and an inference engine are loaded meanwhile, on a busy machine perhaps
ANSWER_S = 5.0
RESET_S = 30.0  # another task compiles another model
FIRST_CHUNK_S = 5.0  # for the policy's first look; the episode's time counts from its first action
HOLD_S = 1.0  # how long a stopped robot's controller may take to confirm it


class EpisodeRunner:
    """Runs episodes through a graph whose processes were started.

    Args:
        names: the graph's nodes.
        task: what the simulated body is set up for.
        observation_set: what the policy sees; for the recording.
        steps: control periods that an episode may take.
        alive: tells whether a node's process still runs.
    """

    def __init__(
        self,
        client: GraphClient,
        names: Collection[str],
        robot: RobotContract,
        task: str,
        observation_set: str,
        steps: int,
        alive: Callable[[str], bool],
    ) -> None:
        self._client = client
        self._names = list(names)
        self._robot = robot
        self._task = task
        self._observation_set = observation_set
        self._steps = steps
        self._alive = alive
        self._recording = False
        self._moving = False

    def bring_up(self) -> None:
        """Configure every node; nothing moves, time stands still for the body, and nothing is recorded yet."""
        self._client.wait_for_nodes(self._names, CONFIGURE_S)
        all_there = time.monotonic()
        self._client.transition(self._names, "configure", CONFIGURE_S)
        self._client.wait_until(lambda: False, all_there + DISCOVERY_S - time.monotonic())

    def run(self, index: int, seed: int) -> EpisodeRow:
        """One episode: a new file, a new start, then the policy drives until success or the time limit.

        The policy's session starts with the episode's seed, as in `visuomotor eval`.
        """
        client = self._client
        if BODY in self._names:
            client.set_parameters(BODY, {"task": self._task, "seed": seed}, ANSWER_S)
            client.trigger(BODY, "reset", RESET_S)  # announces the episode, with which the recorder begins a file
        else:
            client.announce_episode(self._task, seed, index, self._observation_set)
        if not self._recording:
            self._recording = True
            client.transition([RECORDER], "activate", ANSWER_S)
            if BODY in self._names:  # after the recorder: the recording has every period from the first on
                client.transition([BODY], "activate", ANSWER_S)
        client.set_parameters(POLICY, {"seed": seed}, ANSWER_S)
        client.succeeded = client.running = False
        client.trigger(CONTROLLER, "reset_controller", ANSWER_S)
        self._moving = True
        client.transition([CONTROLLER], "activate", ANSWER_S)
        client.transition([POLICY], "activate", ANSWER_S)
        client.wait_until(lambda: client.running, FIRST_CHUNK_S)
        start = time.monotonic()
        success = client.wait_until(lambda: client.succeeded, self._steps * self._robot.control_period_s)
        seconds = time.monotonic() - start
        self.hold()
        error = self._statistics(RECORDER)["error"]
        if error:
            raise GraphError(RECORDER, f"cannot record any more: {error}")
        return self._row(index, seed, success, seconds)

    def hold(self) -> bool:
        """Stop the policy, then let the controller hold and end; True when both that are alive have confirmed it.

        Nothing is waited for between the two requests: the robot must hold at once.
        """
        if not self._moving:
            return True
        self._moving = False
        if not self._alive(CONTROLLER):
            self._client.send_hold()
        asked = [self._client.begin_transition(n, "deactivate") for n in (POLICY, CONTROLLER) if self._alive(n)]
        return self._client.wait_for(asked, HOLD_S)

    def _row(self, index: int, seed: int, success: bool, seconds: float) -> EpisodeRow:
        controller = self._statistics(CONTROLLER)
        policy = self._statistics(POLICY)
        counters = {
            f"{node}.{reason}": int(count)
            for node, found in (("controller", controller), ("policy", policy))
            for reason, count in found.get("counters", {}).items()
            if count
        }
        return EpisodeRow(
            episode=index,
            seed=seed,
            success=success,
            steps=round(seconds * self._robot.control_rate_hz),
            seconds=round(seconds, 4),
            control={k: controller[k] for k in ("rate_hz", "period_error_us", "missed", "periods")},
            inference_ms=policy["inference_ms"],
            counters=counters,
            action_age_steps=controller["action_age_steps"],
            residual_noise=noise_carried_out(controller["action_age_steps"], policy["residual_noise"]),
        )

    def _statistics(self, name: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._client.trigger(name, "statistics", ANSWER_S))
        return answer
