"""The order in which a graph is started, an episode is run, and a robot is stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from contracts import RobotContract
from episodes.report import noise_carried_out, stolen_seconds
from episodes.samples import is_sustained
from ros_nodes.graph import BODY, CONTROLLER, POLICY, RECORDER
from ros_nodes.graph_client import GraphClient, GraphError
from ros_nodes.run_report import EpisodeRow
from ros_nodes.walk import WalkDirector, WalkPlan, walk_figures

CONFIGURE_S = 60.0  # a simulator and an inference engine are loaded meanwhile, on a busy machine perhaps
ANSWER_S = 5.0
RESET_S = 30.0  # another task compiles another model
FIRST_CHUNK_S = 5.0  # for the policy's first look, after standing up; the episode's time counts from its first action
HOLD_S = 1.0  # how long a stopped robot's controller may take to confirm it


class EpisodeRunner:
    """Runs episodes through a graph whose processes were started.

    Args:
        names: the graph's nodes.
        task: what the simulated body is set up for, or the name of what a real robot does.
        instruction: that in the words that the policy is told; for the recording of a real robot.
        observation_set: what the policy sees; for the recording.
        steps: control periods that an episode may take.
        alive: tells whether a node's process still runs.
        plan: where a walking robot is told to go, and how it is pushed; None: it is not.
    """

    def __init__(
        self,
        client: GraphClient,
        names: Collection[str],
        robot: RobotContract,
        task: str,
        instruction: str,
        observation_set: str,
        steps: int,
        alive: Callable[[str], bool],
        plan: WalkPlan | None = None,
    ) -> None:
        self._client = client
        self._names = list(names)
        self._robot = robot
        self._task = task
        self._instruction = instruction
        self._observation_set = observation_set
        self._steps = steps
        self._alive = alive
        self._recording = False
        self._moving = False
        self._stopped_by: Sequence[str] = ()  # in the latest episode
        self._director = None if plan is None else WalkDirector(client.node, robot, plan)

    def bring_up(self) -> None:
        """Configure every node; nothing moves, time stands still for the body, and nothing is recorded yet."""
        self._client.wait_for_nodes(self._names, CONFIGURE_S)
        all_there = time.monotonic()
        self._client.transition(self._names, "configure", CONFIGURE_S)
        self._client.wait_until(lambda: False, all_there + self._client.discovery_s - time.monotonic())

    def run(self, index: int, seed: int) -> EpisodeRow:
        """One episode: a new file, a new start, then the policy drives until success or the time limit.

        Where success is not to fail, such as in walking, it drives until failure or the time limit. A real robot's
        episode ends with failure too: a person who says that it was none (`success` false) has seen enough. When the
        controller stops for good, the episode ends too, and was no success: of a real robot nobody else may say that it
        fell.

        The policy's session starts with the episode's seed, as in `visuomotor eval`.

        Raises:
            GraphError: a node does not answer or refuses, the recording has ended, or the controller never began to
                follow the policy: the next episode would fare no better. Or it stopped a real robot in the episode
                before: that must not get up again before a person has looked at it.
        """
        client = self._client
        if self._stopped_by and self._robot.body == "external":
            why = ", ".join(self._stopped_by)
            raise GraphError(CONTROLLER, f"stopped in the episode before ({why}): see to the robot, then run again")
        if BODY in self._names:
            client.set_parameters(BODY, {"task": self._task, "seed": seed}, ANSWER_S)
            client.trigger(BODY, "reset", RESET_S)  # announces the episode, with which the recorder begins a file
        else:
            client.announce_episode(self._task, self._instruction, seed, index, self._observation_set)
        if not self._recording:
            self._recording = True
            client.transition([RECORDER], "activate", ANSWER_S)
            if BODY in self._names:  # after the recorder: the recording has every period from the first on
                client.transition([BODY], "activate", ANSWER_S)
        client.set_parameters(POLICY, {"seed": seed}, ANSWER_S)
        client.succeeded = client.failed = client.running = client.stopped = False
        client.trigger(CONTROLLER, "reset_controller", ANSWER_S)
        self._moving = True
        client.transition([CONTROLLER], "activate", ANSWER_S)
        client.transition([POLICY], "activate", ANSWER_S)
        ready_s = self._robot.task.stand_up_s + FIRST_CHUNK_S
        if not client.wait_until(lambda: client.running or client.stopped, ready_s):
            raise GraphError(CONTROLLER, f"does not follow the policy within {ready_s:g} s: {self._why_it_waits()}")
        before = self._figures()
        if self._director is not None:
            self._director.start(seed)
        start, stolen = time.monotonic(), stolen_seconds()
        success, stopped = self._drive(), client.stopped
        seconds, stolen = time.monotonic() - start, stolen_seconds() - stolen
        figures = self._figures()  # before it is let go and sinks: that is no fall
        self.hold()
        error = self._statistics(RECORDER)["error"]
        if error:
            raise GraphError(RECORDER, f"cannot record any more: {error}")
        if figures:
            success = success and bool(figures["stood"])  # who still lies where it lay did not fall, but did not walk
            figures = walk_figures(before, figures)
        row = self._row(index, seed, success, stopped, seconds, stolen, figures)
        self._stopped_by = row.stopped_by
        return row

    def hold(self) -> bool:
        """Stop the policy, then let the controller hold and end; True when both that are alive have confirmed it.

        Nothing is waited for between the two requests: the robot must hold at once.
        """
        if self._director is not None:
            self._director.stop()
        if not self._moving:
            return True
        self._moving = False
        if not self._alive(CONTROLLER):
            self._client.send_hold()
        asked = [self._client.begin_transition(n, "deactivate") for n in (POLICY, CONTROLLER) if self._alive(n)]
        return self._client.wait_for(asked, HOLD_S)

    def _drive(self) -> bool:
        """Wait for the end of the episode; whether it was a success."""
        client, limit_s = self._client, self._steps * self._robot.control_period_s
        if is_sustained(self._robot):
            return not client.wait_until(lambda: client.failed or client.stopped, limit_s)
        given_up = self._robot.body == "external"  # a simulated body says at once that there is no success yet
        client.wait_until(lambda: client.succeeded or client.stopped or (given_up and client.failed), limit_s)
        return client.succeeded

    def _why_it_waits(self) -> str:
        """What controller and policy say of it."""
        controller, missing = self._statistics(CONTROLLER), self._statistics(POLICY)["waiting_for"]
        reasons = [*controller["reasons"], *([f"{POLICY}: {missing}"] if missing else [])]
        return ", ".join(reasons) or str(controller["mode"])

    def _figures(self) -> dict[str, float]:
        """The body's sums since the episode's start; empty where none keeps any."""
        if BODY not in self._names or self._director is None:
            return {}
        return dict(self._statistics(BODY)["episode"])

    def _row(
        self,
        index: int,
        seed: int,
        success: bool,
        stopped: bool,
        seconds: float,
        stolen_s: float,
        figures: Mapping[str, float],
    ) -> EpisodeRow:
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
            stopped_by=tuple(controller["stopped_by"]) if stopped else (),
            steps=round(seconds * self._robot.control_rate_hz),
            seconds=round(seconds, 4),
            stolen_s=round(stolen_s, 2),
            control={k: controller[k] for k in ("rate_hz", "period_error_us", "missed", "periods")},
            inference_ms=policy["inference_ms"],
            counters=counters,
            action_age_steps=controller["action_age_steps"],
            figures=figures,
            residual_noise=noise_carried_out(controller["action_age_steps"], policy["residual_noise"]),
        )

    def _statistics(self, name: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._client.trigger(name, "statistics", ANSWER_S))
        return answer
