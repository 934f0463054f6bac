"""The controller without ROS: chunks and measurements in, one safe command a period out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from contracts import RobotContract, Sensor
from execution.chunk import ActionChunk
from execution.fallback import Fallback
from execution.measurements import Measurements
from execution.safety import RefusedCommand, SafetyFilter
from execution.stitching import LatestChunk, Stitching
from execution.takeover import Takeover
from execution.tilt import TiltGuard

NANOSECONDS = 1_000_000_000
PERIOD_TOLERANCE = 1e-3  # relative: a chunk's period is a rounded number of nanoseconds
FUTURE_PERIODS = 1.0  # a stamp may be this many control periods ahead: clocks of two machines agree that well


class Mode(StrEnum):
    """What the controller does."""

    INACTIVE = "inactive"  # not in charge; sends the fallback if it must send something
    STAND_UP = "stand_up"  # leads the joints home; the policy must be well, but has no say yet
    RUN = "run"  # follows the policy
    HOLD = "hold"  # active, but something is missing or late; goes on by itself when it comes within task.recover_s
    DAMP = "damp"  # the same of a robot whose fallback is to damp
    STOPPED = "stopped"  # fell back for too long, or fell over: only reset() leads out


@dataclass(frozen=True)
class Command:
    """What to send in this period.

    Attributes:
        values: [dim] in the order of the contract's channels; None: no command is known that would be safe (a position
            channel that was never measured, or not lately where the fallback is to damp): send nothing, and the body
            falls back by itself.
        mode: what the controller does.
        reasons: why it is not running, and what the safety filter changed.
    """

    values: NDArray[np.float64] | None
    mode: Mode
    reasons: tuple[str, ...] = ()


class ControllerCore:
    """One robot's controller. Not thread-safe; every `now_ns` and stamp is on one steady clock of the caller's.

    It follows the policy only while everything that it decides from is fresh; otherwise it falls back (`Fallback`). How
    it begins to follow is the `Takeover`. Whatever is refused is counted in `counters`, by reason, and changes nothing
    else.

    Attributes:
        counters: what was refused, limited or fallen back for, and each change of the mode.
        refusal: why something was refused last, as `counters` has it; empty before the first.
        ages: commands that followed the policy, by their age: control periods from the observation that the newest
            chunk in the command answers to the time that the action was meant for.
    """

    def __init__(
        self,
        robot: RobotContract,
        stitching: Stitching | None = None,
        *,
        require_heartbeat: bool = True,
        lead_ns: int = 0,
        stop_reasons: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            robot: limits and time-outs.
            stitching: how overlapping chunks become one action; LatestChunk if None.
            require_heartbeat: fall back when the policy's sign of life stops. False only in lock step with a simulator.
            lead_ns: how far ahead of `step` the action is looked up: only then is the command obeyed. 0 in lock step.
            stop_reasons: of the one that this one replaces: it is STOPPED as long as nobody resets it.

        Raises:
            ContractError: the contract's limits cannot be kept.
        """
        self._robot = robot
        self._channels = robot.command.channels
        self._names = tuple(c.name for c in self._channels)
        self._filter = SafetyFilter(robot)
        self._stitching: Stitching = LatestChunk() if stitching is None else stitching
        self._require_heartbeat = require_heartbeat
        self._lead_ns = lead_ns
        self._period_ns = round(robot.control_period_s * NANOSECONDS)
        self._future_ns = round(FUTURE_PERIODS * self._period_ns)
        self._chunk_timeout_ns = round(robot.task.chunk_timeout_s * NANOSECONDS)
        self._heartbeat_timeout_ns = round(robot.task.heartbeat_timeout_s * NANOSECONDS)
        self._recover_ns = round(robot.task.recover_s * NANOSECONDS)
        self._measurements = Measurements(robot, self._filter.fields, self._future_ns)
        self._tilt = TiltGuard(robot, self._future_ns)
        self._integrating = robot.command.kind != "joint_position"
        self._takeover = Takeover(robot)
        self._fallback = Fallback(robot, self._measurements, self._filter)
        self._waiting = Mode.DAMP if robot.command.fallback == "damp" else Mode.HOLD
        self.counters: Counter[str] = Counter()
        self.refusal = ""
        self.ages: Counter[int] = Counter()
        self._mode = Mode.STOPPED if stop_reasons else Mode.INACTIVE
        self._active = False
        self._sent: NDArray[np.float64] | None = None  # the latest command, for `hold: last` and for the rate limit
        self._sent_ns = 0
        self._stop_reasons = stop_reasons
        self._unseen: set[str] = set()  # what has not come yet since activation
        self._since_ns = 0  # of the activation or reset
        self._heartbeat_ns = 0
        self._chunk_ns = 0  # when the latest one came
        self._fell_back_ns: int | None = None
        self._forget(0)

    @property
    def needed_sensors(self) -> tuple[Sensor, ...]:
        """The sensors without which it does not run."""
        return self._measurements.sensors + self._tilt.sensors

    @property
    def robot_tick_ns(self) -> int | None:
        """When the robot measures: its ticks lie whole control periods from this time. None if not known."""
        return self._measurements.tick_ns(self._period_ns)

    @property
    def mode(self) -> Mode:
        """What it did at the latest step."""
        return self._mode

    @property
    def stop_reasons(self) -> tuple[str, ...]:
        """Why it is STOPPED; empty when it is not."""
        return self._stop_reasons

    def activate(self, now_ns: int) -> bool:
        """Take charge: fall back until the first chunk comes. False, and nothing changes, while STOPPED."""
        if self._mode is Mode.STOPPED:
            return False
        self._active = True
        if not self._integrating:
            self._sent = None  # another commander may have moved it since
        self._fallback.end()
        self._forget(now_ns)
        self._set_mode(self._waiting)
        return True

    def deactivate(self, now_ns: int) -> None:
        """Give up charge; from now on `step` gives the fallback. STOPPED stays."""
        if self._mode in (Mode.RUN, Mode.STAND_UP):
            self._fallback.begin(self._previous(now_ns))
        self._active = False
        self._forget(now_ns)
        if self._mode is not Mode.STOPPED:
            self._set_mode(Mode.INACTIVE)

    def reset(self, now_ns: int) -> None:
        """Someone says that it is safe to go on: out of STOPPED, and as new (what was sent last is forgotten too)."""
        self._sent = None
        self._stop_reasons = ()
        self._fallback.end()
        self._forget(now_ns)
        self._set_mode(self._waiting if self._active else Mode.INACTIVE)

    def stop(self, now_ns: int, reason: str) -> None:
        """Fall back for good, if in charge: someone sees what makes it unsafe to go on, and only a reset leads out."""
        if self._active and self._mode is not Mode.STOPPED:
            self._stop(now_ns, (reason,))

    def refuse(self, reason: str) -> None:
        """Count something that was dropped before it reached the core: a message that is not what it should be."""
        self.counters[f"refused.{reason}"] += 1
        self.refusal = reason

    def on_chunk(self, chunk: ActionChunk, now_ns: int) -> bool:
        """Take an action chunk. Returns False if it was refused (and counted)."""
        if not self._active:
            self.refuse("chunk.inactive")
            return False
        reason = self._chunk_error(chunk, now_ns)
        if reason is None:
            order = [chunk.names.index(name) for name in self._names]
            if chunk.names != self._names:
                chunk = ActionChunk(chunk.actions[:, order], chunk.start_ns, chunk.period_ns, self._names)
            if not self._stitching.add(chunk):
                reason = "out_of_order"
        if reason is not None:
            self.refuse(f"chunk.{reason}")
            return False
        self.counters["chunks"] += 1
        self._chunk_ns = now_ns
        self._unseen.discard("chunk")
        return True

    def on_fields(self, sensor: str, stamp_ns: int, names: Sequence[str], values: Sequence[float], now_ns: int) -> bool:
        """Take one measurement; fields are found by name.

        Returns:
            False if it was refused (and counted), or if nothing needs this sensor.
        """
        if all(sensor != s.name for s in self.needed_sensors):
            return False
        taker = self._tilt if any(sensor == s.name for s in self._tilt.sensors) else self._measurements
        reason = taker.update(sensor, stamp_ns, names, values, now_ns)
        if reason is not None:
            self.refuse(f"sensor.{sensor}.{reason}")
            return False
        self._unseen.discard(f"sensor:{sensor}")
        return True

    def on_heartbeat(self, now_ns: int) -> None:
        """The policy's process is alive and well."""
        self._heartbeat_ns = now_ns
        self._unseen.discard("heartbeat")

    def step(self, now_ns: int) -> Command:
        """The command of this period."""
        if self._mode is Mode.STOPPED or not self._active:
            return self._rest(now_ns, self._stop_reasons)
        reasons = self._late(now_ns)
        if self._tilt.fallen:
            return self._stop(now_ns, ("tilt",))
        action = None if reasons else self._stitching.sample(now_ns + self._lead_ns, now_ns - self._chunk_timeout_ns)
        if reasons or (action is None and not self._patient(now_ns)):
            return self._fall_back(now_ns, reasons or ("chunk",))
        if not self._takeover.begun:
            self._takeover.begin(now_ns, self._fallback.command(now_ns, self._sent))
        try:
            result = self._filter.filter(
                self._takeover.target(action, now_ns),
                self._measurements.values,
                self._previous(now_ns),
                self._robot.control_period_s,
                self._measurements.age_s(now_ns),
            )
        except RefusedCommand as error:
            return self._fall_back(now_ns, (f"command:{error.reason}",))
        self._fell_back_ns = None
        self._fallback.end()
        self._set_mode(Mode.STAND_UP if self._takeover.stands_up(now_ns) else Mode.RUN)
        self.counters.update(f"limited.{intervention}" for intervention in result.interventions)
        if self._mode is Mode.RUN:
            self.ages[self._stitching.age] += 1
        self._sent, self._sent_ns = result.command, now_ns
        return Command(result.command, self._mode, result.interventions)

    # --- what must be there before a command may be followed

    def _chunk_error(self, chunk: ActionChunk, now_ns: int) -> str | None:
        """Why a chunk is refused; that it is finite and has a name for each element, it has seen to itself."""
        if len(chunk.names) != len(self._names) or set(chunk.names) != set(self._names):
            return "names"
        if abs(chunk.period_ns - self._period_ns) > PERIOD_TOLERANCE * self._period_ns:
            return "period"
        if chunk.start_ns > now_ns + self._future_ns:
            return "future"
        if now_ns - chunk.start_ns > self._chunk_timeout_ns:
            return "stale"
        if chunk.start_ns < self._since_ns - self._future_ns:
            return "of_before"  # what was seen before activation may be another episode
        return None

    def _late(self, now_ns: int) -> tuple[str, ...]:
        """What has never come since activation, or else what is late."""
        if self._unseen:
            return tuple(f"waiting:{what}" for what in sorted(self._unseen))
        silent = self._require_heartbeat and now_ns - self._heartbeat_ns > self._heartbeat_timeout_ns
        late = ("heartbeat",) if silent else ()
        return (*late, *(f"sensor:{name}" for name in self._late_sensors(now_ns)))

    def _late_sensors(self, now_ns: int) -> list[str]:
        return self._measurements.late(now_ns) + self._tilt.late(now_ns)

    def _patient(self, now_ns: int) -> bool:
        """True while the robot stands up: what the policy wants does not count yet, only that it is still there."""
        standing_up = self._takeover.begun and self._takeover.stands_up(now_ns)
        return standing_up and now_ns - self._chunk_ns <= self._recover_ns

    def _previous(self, now_ns: int) -> NDArray[np.float64] | None:
        """The latest command, if the body still obeys it."""
        return self._sent if now_ns - self._sent_ns <= self._robot.command.timeout_s * NANOSECONDS else None

    # --- when the policy must not be followed

    def _fall_back(self, now_ns: int, reasons: tuple[str, ...]) -> Command:
        """Hold or damp; stop for good when it takes too long. Waiting for what never came yet is no failure."""
        self._takeover.lost(now_ns)
        self._begin_fallback(now_ns, reasons)
        self._set_mode(self._waiting)
        if not self._unseen:
            if self._fell_back_ns is None:
                self._fell_back_ns = now_ns
            if now_ns - self._fell_back_ns >= self._recover_ns:
                return self._stop(now_ns, reasons)
        return self._rest(now_ns, reasons)

    def _stop(self, now_ns: int, reasons: tuple[str, ...]) -> Command:
        """Fall back, and for good."""
        self._begin_fallback(now_ns, reasons)
        self._stop_reasons = reasons
        self._set_mode(Mode.STOPPED)
        return self._rest(now_ns, reasons)

    def _begin_fallback(self, now_ns: int, reasons: tuple[str, ...]) -> None:
        if self._mode in (Mode.RUN, Mode.STAND_UP):
            self.counters.update(f"{self._waiting}.{reason}" for reason in reasons)
            self._fallback.begin(self._previous(now_ns))

    def _rest(self, now_ns: int, reasons: tuple[str, ...]) -> Command:
        values = self._fallback.command(now_ns, self._sent)
        self._sent, self._sent_ns = values, now_ns
        return Command(values, self._mode, reasons)

    # --- state

    def _forget(self, now_ns: int) -> None:
        """As if nothing had been received from the policy yet; measurements stay."""
        self._stitching.clear()
        self._since_ns = now_ns
        self._heartbeat_ns = 0
        self._fell_back_ns = None
        self._takeover.forget()
        self._unseen = {"chunk"} | ({"heartbeat"} if self._require_heartbeat else set())
        self._unseen.update(f"sensor:{name}" for name in self._late_sensors(now_ns))

    def _set_mode(self, mode: Mode) -> None:
        if mode is not self._mode:
            self.counters[f"mode.{mode}"] += 1
            self._mode = mode
