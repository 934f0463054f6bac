"""A robot that has to stand up first, and that is damped when it loses its policy: tick by tick."""

from __future__ import annotations

import numpy as np
import pytest

from contracts import load_robot
from execution.chunk import ActionChunk
from execution.controller import Command, ControllerCore, Mode
from execution.takeover import SETTLE_S

TICK = 20_000_000
ROBOT = load_robot("go2")
JOINTS = ROBOT.joint_names
IMU = next(sensor for sensor in ROBOT.sensors if sensor.name == "imu")
HOME = np.array(ROBOT.home_command)
LYING = np.tile([0.0, 1.4, -2.6], 4)
WANTED = HOME + np.tile([0.1, -0.2, 0.1], 4)
STAND_UP, SETTLE, RAMP = (round(s * 50) for s in (ROBOT.task.stand_up_s, SETTLE_S, ROBOT.task.ramp_s))


def sent(command: Command) -> np.ndarray:
    assert command.values is not None
    return command.values


class Bench:
    """A core, a robot and a policy at 50 Hz, each of which can be switched off."""

    def __init__(self, robot=ROBOT) -> None:
        self.core = ControllerCore(robot)
        self.now = 1_000_000_000_000
        self.alive = {"sensor", "imu", "heartbeat", "chunk"}
        self.measured = LYING.copy()
        self.lean_rad = 0.0  # to the left

    def tick(self, count: int = 1) -> Command:
        for _ in range(count):
            self.now += TICK
            if "sensor" in self.alive:
                fields = (*JOINTS, *(f"{joint}.velocity" for joint in JOINTS))
                self.core.on_fields("joint_states", self.now, fields, (*self.measured, *[0.5] * 12), self.now)
            if "imu" in self.alive:
                half = self.lean_rad / 2
                felt = (-np.sin(half), 0.0, 0.0, np.cos(half), 0.0, 0.0, 0.0, 0.0, 0.0, 9.81)
                self.core.on_fields("imu", self.now, IMU.fields, felt, self.now)
            if "heartbeat" in self.alive:
                self.core.on_heartbeat(self.now)
            if "chunk" in self.alive:
                self.core.on_chunk(ActionChunk(np.tile(WANTED, (4, 1)), self.now, TICK, JOINTS), self.now)
            command = self.core.step(self.now)
        return command

    def walking(self) -> Bench:
        """Up, and in the policy's hands."""
        self.core.activate(self.now)
        self.tick(STAND_UP + SETTLE + RAMP)
        command = self.tick()
        assert command.mode is Mode.RUN
        np.testing.assert_array_equal(sent(command), WANTED)
        self.measured = WANTED + 0.05
        return self


def test_it_stands_up_from_where_it_lies_waits_and_goes_over_to_the_policy() -> None:
    bench = Bench()
    bench.core.activate(bench.now)
    commands = [bench.tick() for _ in range(STAND_UP + SETTLE + RAMP + 5)]
    values = np.stack([sent(command) for command in commands])
    modes = [command.mode for command in commands]
    up = STAND_UP + SETTLE
    assert modes == [Mode.STAND_UP] * up + [Mode.RUN] * (RAMP + 5)
    np.testing.assert_array_equal(values[0], LYING)
    way = HOME - LYING
    assert (np.diff(values[:STAND_UP], axis=0) * np.sign(way) >= 0).all(), "straight there"
    ends = np.abs(np.diff(values[: STAND_UP + 1], axis=0))[[0, -1]]
    assert (ends <= 0.1 * np.abs(way) / STAND_UP + 1e-12).all(), "beginning and ending at rest"
    fastest = np.abs(np.diff(values[: up + RAMP], axis=0)).max(axis=0) / 0.02
    assert (fastest <= 1.6 * np.abs(way) / ROBOT.task.stand_up_s + 0.3 / ROBOT.task.ramp_s).all(), "and slowly"
    np.testing.assert_allclose(values[STAND_UP : up + 1], np.tile(HOME, (SETTLE + 1, 1)), atol=1e-12)
    np.testing.assert_allclose(values[up + RAMP // 2], (HOME + WANTED) / 2)
    np.testing.assert_array_equal(values[up + RAMP :], np.tile(WANTED, (5, 1)))
    assert sum(bench.core.ages.values()) == RAMP + 5, "what was led home followed nobody"


def test_before_the_policy_is_there_it_is_damped_wherever_it_sinks() -> None:
    bench = Bench()
    bench.alive = {"sensor", "imu"}
    bench.core.activate(bench.now)
    for sag in np.linspace(0, 0.3, 20):
        bench.measured = LYING + sag * np.tile([0, 1, 0], 4)
        command = bench.tick()
        assert command.mode is Mode.DAMP
        assert command.reasons == ("waiting:chunk", "waiting:heartbeat")
        np.testing.assert_array_equal(sent(command), bench.measured)


@pytest.mark.parametrize(
    ("lost", "reason", "ticks"), [("heartbeat", "heartbeat", 4), ("chunk", "chunk", 4), ("sensor", None, None)]
)
def test_a_walking_robot_that_loses_something_is_damped_at_what_is_measured_then(lost, reason, ticks) -> None:
    bench = Bench().walking()
    bench.alive.discard(lost)
    if lost == "sensor":
        within = round(0.1 / 0.02) + 1
        assert bench.tick(within).mode is Mode.DAMP
        assert bench.tick().values is None, "nothing is sent: a spring to an old place is no damper; the body damps"
        return
    assert bench.tick(ticks - 1).mode is Mode.RUN
    command = bench.tick()
    assert command.mode is Mode.DAMP
    assert ticks * TICK < 100_000_000
    assert command.reasons == (reason,)
    assert bench.core.counters[f"damp.{reason}"] == 1
    bench.measured = bench.measured - 0.1
    np.testing.assert_array_equal(sent(bench.tick()), bench.measured)


def test_it_goes_on_at_once_when_the_policy_was_gone_for_a_moment() -> None:
    bench = Bench().walking()
    bench.alive.discard("chunk")
    assert bench.tick(5).mode is Mode.DAMP
    bench.alive.add("chunk")
    command = bench.tick()
    assert command.mode is Mode.RUN
    np.testing.assert_array_equal(sent(command), WANTED)


def test_while_it_stands_up_chunks_may_be_late_but_not_gone() -> None:
    """The policy has no say yet; under load, a stand-up that began anew with each gap would never end."""
    bench = Bench()
    bench.core.activate(bench.now)
    patience = round(ROBOT.task.recover_s * 50)
    for _ in range(3):
        bench.alive.add("chunk")
        assert bench.tick().mode is Mode.STAND_UP
        bench.alive.discard("chunk")
        assert bench.tick(patience).mode is Mode.STAND_UP
    assert np.abs(sent(bench.tick()) - LYING).max() == 0, "too long: damped"
    assert bench.core.mode is Mode.DAMP


def test_after_recover_s_only_a_reset_makes_it_stand_up_again() -> None:
    bench = Bench().walking()
    bench.alive.discard("heartbeat")
    assert bench.tick(4 + round(ROBOT.task.recover_s * 50) + 1).mode is Mode.STOPPED
    bench.alive.add("heartbeat")
    bench.measured = LYING.copy()
    command = bench.tick(100)
    assert command.mode is Mode.STOPPED
    np.testing.assert_array_equal(sent(command), LYING)
    assert not bench.core.activate(bench.now)
    bench.core.reset(bench.now)
    command = bench.tick()
    assert command.mode is Mode.STAND_UP
    np.testing.assert_array_equal(sent(command), LYING)
    assert bench.tick(STAND_UP + SETTLE - 1).mode is Mode.STAND_UP
    assert bench.tick().mode is Mode.RUN


@pytest.mark.parametrize("after", [STAND_UP // 2, STAND_UP + SETTLE // 2])
def test_lost_while_it_stands_up_it_begins_again_from_where_it_is(after) -> None:
    bench = Bench()
    bench.core.activate(bench.now)
    bench.tick(after)
    bench.alive.discard("heartbeat")
    bench.measured = LYING + 0.2
    assert bench.tick(4).mode is Mode.DAMP
    assert bench.core.counters["damp.heartbeat"] == 1
    bench.alive.add("heartbeat")
    command = bench.tick()
    assert command.mode is Mode.STAND_UP
    np.testing.assert_allclose(sent(command), bench.measured)
    assert bench.tick(STAND_UP + SETTLE - 1).mode is Mode.STAND_UP


def test_no_command_leaves_a_joints_range() -> None:
    """Neither the policy's nor, of a joint that is measured beyond its limit, the damped one."""
    bench = Bench().walking()
    low, high = (np.array([getattr(c, limit) for c in ROBOT.command.channels]) for limit in ("min", "max"))
    bench.alive.discard("chunk")
    bench.core.on_chunk(ActionChunk(np.full((4, 12), 9.0), bench.now + 1, TICK, JOINTS), bench.now + 1)
    command = bench.tick()
    np.testing.assert_array_equal(sent(command), high)
    assert len(command.reasons) == 12
    bench.measured = np.full(12, -9.0)
    command = bench.tick(5)
    assert command.mode is Mode.DAMP
    np.testing.assert_array_equal(sent(command), low)


def test_a_robot_that_has_fallen_is_damped_for_good() -> None:
    """Its policy would go on kicking: everything is fresh, and it was never trained for this."""
    bench = Bench().walking()
    assert ROBOT.task.max_tilt_rad is not None
    bench.lean_rad = ROBOT.task.max_tilt_rad - 0.02
    assert bench.tick().mode is Mode.RUN
    bench.lean_rad = ROBOT.task.max_tilt_rad + 0.02
    command = bench.tick()
    assert (command.mode, command.reasons) == (Mode.STOPPED, ("tilt",))
    assert bench.core.stop_reasons == ("tilt",)
    assert bench.core.counters["damp.tilt"] == 1
    np.testing.assert_array_equal(sent(command), bench.measured)
    bench.lean_rad = 0.0
    assert bench.tick(100).mode is Mode.STOPPED, "somebody must look first"
    bench.core.reset(bench.now)
    assert bench.tick().mode is Mode.STAND_UP
    bench.lean_rad = np.pi
    assert bench.tick().mode is Mode.STOPPED, "nor does it stand up on its back"


def test_a_robot_whose_imu_is_silent_is_damped_and_before_it_spoke_nothing_begins() -> None:
    bench = Bench().walking()
    bench.alive.discard("imu")
    assert bench.tick(round(IMU.timeout_s * 50)).mode is Mode.RUN
    command = bench.tick()
    assert (command.mode, command.reasons) == (Mode.DAMP, ("sensor:imu",))
    np.testing.assert_array_equal(sent(command), bench.measured)
    deaf = Bench()
    deaf.alive.discard("imu")
    deaf.core.activate(deaf.now)
    command = deaf.tick(10)
    assert (command.mode, command.reasons) == (Mode.DAMP, ("waiting:sensor:imu",))


def test_deactivated_it_damps_and_stands_up_when_activated_anew() -> None:
    bench = Bench().walking()
    bench.core.deactivate(bench.now)
    command = bench.tick()
    assert command.mode is Mode.INACTIVE
    np.testing.assert_array_equal(sent(command), bench.measured)
    bench.core.activate(bench.now)
    assert bench.tick().mode is Mode.STAND_UP


def test_a_rate_limit_holds_while_it_stands_up_too(changed) -> None:
    slow = {c.name: {"max_rate": 0.5} for c in ROBOT.command.channels}
    bench = Bench(changed(ROBOT, channels=slow))
    bench.core.activate(bench.now)
    commands = np.stack([sent(bench.tick()) for _ in range(STAND_UP)])
    assert np.abs(np.diff(commands, axis=0)).max() <= 0.5 * 0.02 + 1e-9
