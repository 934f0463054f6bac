"""The controller core, tick by tick: what it follows, what it refuses, when it holds and when it stops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import ContractError, RobotContract, load_robot
from execution.chunk import ActionChunk
from execution.controller import Command, ControllerCore, Mode
from execution.measurements import Measurements
from execution.stitching import TemporalEnsemble

TICK = 12_500_000
MS = 1_000_000
SAWYER = load_robot("metaworld_sawyer")
NAMES = SAWYER.action_feature.names
EE = ("ee_x", "ee_y", "ee_z")
MIDDLE = (0.0, 0.6, 0.2)


def sent(command: Command) -> np.ndarray:
    """What goes to the robot; there must be something."""
    assert command.values is not None
    return command.values


class Bench:
    """A core with a simulated clock, a healthy robot and a healthy policy, each of which can be switched off."""

    def __init__(self, robot=SAWYER, **options) -> None:
        self.core = ControllerCore(robot, **options)
        self.now = 1_000_000_000_000
        self.alive = {"sensor", "heartbeat", "chunk"}
        self.position = MIDDLE
        self.actions = np.tile([0.1, -0.2, 0.3, 0.7], (16, 1))
        self._ticks = 0

    def tick(self, count: int = 1):
        """`count` periods; chunks come every eighth. Gives the last command."""
        for _ in range(count):
            self.now += TICK
            if "sensor" in self.alive:
                self.core.on_fields("end_effector", self.now, EE, self.position, self.now)
            if "heartbeat" in self.alive:
                self.core.on_heartbeat(self.now)
            if "chunk" in self.alive and self._ticks % 8 == 0:
                self.core.on_chunk(ActionChunk(self.actions, self.now, TICK, NAMES), self.now)
            self._ticks += 1
            command = self.core.step(self.now)
        return command

    def running(self) -> Bench:
        self.core.activate(self.now)
        assert self.tick(16).mode is Mode.RUN
        return self


def test_inactive_it_holds_and_takes_no_chunk() -> None:
    bench = Bench()
    command = bench.tick(9)
    assert command.mode is Mode.INACTIVE
    assert sent(command).tolist() == [0, 0, 0, 0]
    assert bench.core.counters["refused.chunk.inactive"] == 2


def test_in_lock_step_action_0_is_executed_in_the_very_tick_of_its_observation() -> None:
    core = ControllerCore(SAWYER, require_heartbeat=False)
    core.activate(0)
    actions = np.arange(64).reshape(16, 4) / 100
    for tick in range(20):
        now = round(tick * 1e9 / 80)
        core.on_fields("end_effector", now, EE, MIDDLE, now)
        if tick % 8 == 0:
            core.on_chunk(ActionChunk(actions, now, TICK, NAMES), now)
        command = core.step(now)
        assert command.mode is Mode.RUN, tick
        assert sent(command).tobytes() == actions[tick % 8].tobytes(), "not bit for bit"


@pytest.mark.parametrize("jitter_ns", [-5 * MS, 0, 5 * MS])
def test_between_two_ticks_of_the_robot_it_sends_the_action_of_the_next_one(jitter_ns: int) -> None:
    """The robot saw this at 0 and obeys at 1, 2, ... ticks: it must then get action 1, 2, ..., as in lock step."""
    core = ControllerCore(SAWYER, require_heartbeat=False, lead_ns=3 * TICK // 4)
    core.activate(0)
    actions = np.arange(64).reshape(16, 4) / 100
    core.on_chunk(ActionChunk(actions, 0, TICK, NAMES), 0)
    for tick in range(1, 12):
        now = tick * TICK - TICK // 4 + jitter_ns  # three quarters of a period after the robot's tick before
        core.on_fields("end_effector", now, EE, MIDDLE, now)
        assert sent(core.step(now)).tolist() == actions[tick].tolist()


def test_before_the_first_chunk_it_holds_for_as_long_as_it_takes() -> None:
    bench = Bench()
    bench.alive.discard("chunk")
    bench.core.activate(bench.now)
    command = bench.tick(1000)
    assert command.mode is Mode.HOLD
    assert command.reasons == ("waiting:chunk",)
    assert not [c for c in bench.core.counters if c.startswith("hold.")]
    bench.alive.add("chunk")
    assert bench.tick(8).mode is Mode.RUN


def test_channels_are_found_by_name_not_by_place() -> None:
    core = ControllerCore(SAWYER, require_heartbeat=False)
    core.activate(0)
    core.on_fields("end_effector", 0, ("other", "ee_z", "ee_x", "ee_y"), (9, 0.2, 0.0, 0.6), 0)
    shuffled = (3, 0, 2, 1)
    chunk = ActionChunk(np.array([[0.1, 0.2, 0.3, 0.4]])[:, shuffled], 0, TICK, tuple(NAMES[i] for i in shuffled))
    assert core.on_chunk(chunk, 0)
    assert sent(core.step(0)).tolist() == [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("names", {"names": (*NAMES[:3], "gripper")}),
        ("names", {"names": NAMES[:3], "actions": np.zeros((16, 3))}),
        ("names", {"names": (*NAMES, "more"), "actions": np.zeros((16, 5))}),
        ("period", {"period_ns": TICK + TICK // 100}),
        ("period", {"period_ns": 2 * TICK}),
        ("future", {"start_ns": 2 * TICK}),
        ("stale", {"start_ns": -251 * MS}),
        ("out_of_order", {"start_ns": -100 * MS}),
    ],
)
def test_a_chunk_that_does_not_fit_is_dropped_and_counted_and_the_one_before_goes_on(reason, change) -> None:
    bench = Bench().running()
    given = {"actions": np.full((16, 4), 0.5), "start_ns": 0, "period_ns": TICK, "names": NAMES} | change
    given["start_ns"] += bench.now
    assert not bench.core.on_chunk(ActionChunk(**given), bench.now)
    assert bench.core.counters[f"refused.chunk.{reason}"] == 1
    bench.alive.discard("chunk")
    command = bench.tick()
    assert command.mode is Mode.RUN
    assert sent(command).tolist() == [0.1, -0.2, 0.3, 0.7]


def test_a_chunk_of_the_episode_before_is_not_executed_in_this_one() -> None:
    bench = Bench().running()
    late = ActionChunk(np.full((16, 4), 0.5), bench.now, TICK, NAMES)
    bench.core.deactivate(bench.now)
    bench.now += 10 * TICK
    bench.core.activate(bench.now)
    assert not bench.core.on_chunk(late, bench.now)
    assert bench.core.counters["refused.chunk.of_before"] == 1


@pytest.mark.parametrize(
    ("lost", "reason", "timeout_ms"), [("heartbeat", "heartbeat", 60), ("sensor", "sensor:end_effector", 100)]
)
def test_whatever_falls_silent_means_hold_within_its_time_out(lost, reason, timeout_ms) -> None:
    bench = Bench().running()
    bench.alive.discard(lost)
    late = timeout_ms * MS // TICK + 1  # the first tick at which the last sign is older than the time-out
    assert bench.tick(late - 1).mode is Mode.RUN
    command = bench.tick()
    assert command.mode is Mode.HOLD
    assert command.reasons == (reason,)
    assert sent(command).tolist() == [0, 0, 0, 0.7], "velocities zero, the gripper keeps its grip"
    assert bench.core.counters[f"hold.{reason}"] == 1


def test_when_chunks_stop_coming_it_holds_when_the_last_one_is_over() -> None:
    bench = Bench().running()
    bench.alive.discard("chunk")  # the last one began 7 ticks ago and has 16 actions
    assert bench.tick(8).mode is Mode.RUN
    command = bench.tick()
    assert (command.mode, command.reasons) == (Mode.HOLD, ("chunk",))


def test_an_action_decided_from_a_too_old_observation_is_never_executed() -> None:
    """chunk_timeout_s is 250 ms, 20 ticks, however long the chunk is."""
    bench = Bench()
    bench.actions = np.tile([0.1, 0, 0, 0], (100, 1))
    bench.running()
    bench.alive.discard("chunk")
    assert bench.tick(20 - 7).mode is Mode.RUN
    assert bench.tick().mode is Mode.HOLD


def test_it_goes_on_by_itself_when_all_is_well_again_in_time() -> None:
    bench = Bench().running()
    bench.alive.discard("heartbeat")
    assert bench.tick(4 + 40).mode is Mode.HOLD  # 500 ms of hold
    bench.alive.add("heartbeat")
    command = bench.tick()
    assert command.mode is Mode.RUN
    assert sent(command).tolist() == [0.1, -0.2, 0.3, 0.7]


def test_after_a_long_hold_only_a_reset_leads_out() -> None:
    bench = Bench().running()
    bench.alive.discard("heartbeat")
    assert bench.tick(4 + 42).mode is Mode.STOPPED
    bench.alive.add("heartbeat")
    assert bench.tick(100).mode is Mode.STOPPED
    assert bench.core.stop_reasons == ("heartbeat",)
    assert not bench.core.activate(bench.now)
    bench.core.deactivate(bench.now)
    assert bench.tick().mode is Mode.STOPPED
    assert not bench.core.activate(bench.now)
    bench.core.reset(bench.now)
    assert bench.tick().mode is Mode.INACTIVE
    assert not bench.core.stop_reasons
    assert bench.running().tick().mode is Mode.RUN


def test_what_somebody_else_sees_stops_it_until_a_reset() -> None:
    bench = Bench()
    bench.core.stop(bench.now, "seen")
    assert bench.tick().mode is Mode.INACTIVE, "it commands nobody"
    bench.running()
    bench.core.stop(bench.now, "seen")
    bench.core.stop(bench.now, "and seen again")
    command = bench.tick(100)
    assert (command.mode, command.reasons) == (Mode.STOPPED, ("seen",))
    assert sent(command).tolist() == [0, 0, 0, 0.7]
    assert not bench.core.activate(bench.now)
    bench.core.reset(bench.now)
    assert bench.tick(16).mode is Mode.RUN


def test_a_reset_while_active_waits_for_a_new_chunk() -> None:
    bench = Bench().running()
    bench.alive.discard("chunk")
    assert bench.tick(100).mode is Mode.STOPPED
    bench.core.reset(bench.now)
    command = bench.tick(100)
    assert (command.mode, command.reasons) == (Mode.HOLD, ("waiting:chunk",))
    bench.alive.add("chunk")
    assert bench.tick(8).mode is Mode.RUN


@pytest.mark.parametrize(
    ("reason", "names", "values", "age_ms"),
    [
        ("names", ("ee_x", "ee_y"), (0, 0), 0),
        ("names", EE, (0, 0), 0),
        ("names", EE, (0, 0.6, 0.2, 9), 0),
        ("names", (*EE, "more"), MIDDLE, 0),
        ("non_finite", EE, (0, float("nan"), 0), 0),
        ("non_finite", EE, (0, float("inf"), 0), 0),
        ("future", EE, MIDDLE, -20),
        ("stale", EE, MIDDLE, 101),
        ("out_of_order", EE, MIDDLE, 50),
    ],
)
def test_a_bad_measurement_is_dropped_and_counted(reason, names, values, age_ms) -> None:
    bench = Bench().running()
    assert not bench.core.on_fields("end_effector", bench.now - age_ms * MS, names, values, bench.now)
    assert bench.core.counters[f"refused.sensor.end_effector.{reason}"] == 1
    assert bench.tick().mode is Mode.RUN


def test_a_measurement_may_be_a_period_ahead_and_is_compared_with_the_one_before() -> None:
    """Clocks of two machines agree that well; one that comes twice is no older than itself."""
    bench = Bench().running()
    sensor = ("end_effector", bench.now + TICK, EE)
    assert bench.core.on_fields(*sensor, MIDDLE, bench.now)
    assert bench.core.on_fields(*sensor, (0.55, 0.6, 0.2), bench.now)
    assert not bench.core.on_fields("end_effector", bench.now + TICK + 1, EE, MIDDLE, bench.now)
    assert bench.core.refusal == "sensor.end_effector.future"
    assert not bench.core.on_fields("end_effector", bench.now + TICK - 1, EE, MIDDLE, bench.now)
    assert bench.core.refusal == "sensor.end_effector.out_of_order"
    bench.alive = {"heartbeat", "chunk"}
    assert sent(bench.tick())[0] == 0.0  # beyond the limit, as the second one says


@pytest.mark.parametrize("late_ticks", [(3, 8, 9, 14), (5, 10, 15)])
def test_a_few_late_stamps_do_not_move_the_robots_ticks(late_ticks) -> None:
    """The latest one may be among them."""
    core = ControllerCore(SAWYER)
    assert core.robot_tick_ns is None, "nothing was measured yet"
    for tick in range(16):
        stamp = 1_000 * TICK + tick * TICK + (4 * MS if tick in late_ticks else 0)
        core.on_fields("end_effector", stamp, EE, MIDDLE, stamp)
    assert core.robot_tick_ns is not None
    assert core.robot_tick_ns % TICK == 0


@pytest.mark.parametrize("times", [2, 3, 4, 10, 0.7])
def test_a_robot_that_measures_at_another_rate_has_no_ticks_to_follow(times) -> None:
    core = ControllerCore(SAWYER)
    for tick in range(40):
        stamp = 1_000 * TICK + round(tick * TICK / times)
        core.on_fields("end_effector", stamp, EE, MIDDLE, stamp)
    assert core.robot_tick_ns is None


def test_it_needs_no_sensor_that_no_limit_needs() -> None:
    core = ControllerCore(SAWYER)
    assert [s.name for s in core.needed_sensors] == ["end_effector"]
    assert not core.on_fields("gripper", 0, ("gripper_opening",), (float("nan"),), 0)
    assert not core.counters


@pytest.mark.parametrize("options", [{}, {"stitching": TemporalEnsemble()}, {"lead_ns": TICK}])
def test_it_counts_how_old_the_commands_are_that_it_followed(options) -> None:
    """A chunk comes every eighth of 16 ticks; of an ensemble the newest counts; with a lead all is a period older."""
    bench = Bench(**options).running()
    youngest = 1 if "lead_ns" in options else 0
    assert bench.core.ages == {youngest + k: 2 for k in range(8)}
    bench.alive.discard("heartbeat")
    bench.tick(20)
    followed = sum(bench.core.ages.values())
    bench.tick(20)
    assert sum(bench.core.ages.values()) == followed, "hold follows nobody"


def test_the_position_limit_slows_it_down_and_is_counted() -> None:
    bench = Bench()
    bench.position = (0.499, 0.6, 0.2)
    command = bench.running().tick()
    assert 0 < sent(command)[0] < 0.1
    assert command.reasons == ("position:ee_velocity_x",)
    assert bench.core.counters["limited.position:ee_velocity_x"] == 17


def test_an_old_measurement_leaves_less_way_to_the_limit() -> None:
    """0.02 m from the limit: 0.4 m/s for the body's 50 ms; after another 50 ms without a measurement, half of it."""
    bench = Bench()
    bench.actions = np.tile([0.8, 0, 0, 0], (16, 1))
    bench.position = (0.48, 0.6, 0.2)
    assert sent(bench.running().tick())[0] == pytest.approx(0.4)
    bench.alive.discard("sensor")
    assert sent(bench.tick(4))[0] == pytest.approx(0.2)


def test_a_velocity_slews_from_the_command_before(changed) -> None:
    bench = Bench(changed(SAWYER, channels={"ee_velocity_x": {"max_rate": 4.0}}))
    bench.actions = np.tile([0.2, 0, 0, 0], (16, 1))
    bench.core.activate(bench.now)
    assert [round(float(sent(bench.tick())[0]), 6) for _ in range(5)] == [0.05, 0.1, 0.15, 0.2, 0.2]


@pytest.mark.parametrize(("pause_ms", "speed"), [(49, 0.1), (51, 0.05)])
def test_after_a_pause_a_robot_speeds_up_from_where_its_own_time_out_left_it(changed, pause_ms, speed) -> None:
    """Within the body's 50 ms it still goes as fast as it was told last; after that it stands."""
    bench = Bench(changed(SAWYER, channels={"ee_velocity_x": {"max_rate": 4.0}})).running()
    assert sent(bench.tick())[0] == pytest.approx(0.1)
    bench.now += pause_ms * MS - TICK
    assert sent(bench.tick())[0] == pytest.approx(speed)


def test_after_activation_commands_ramp_in(changed) -> None:
    bench = Bench(changed(SAWYER, task={"ramp_s": 0.1}))
    bench.core.activate(bench.now)
    x = [float(sent(bench.tick())[0]) for _ in range(12)]
    np.testing.assert_allclose(x[:8], 0.1 * np.arange(8) / 8)
    assert x[8:] == [0.1] * 4, "then the command itself, bit for bit"


def test_a_position_robot_holds_where_it_was_and_starts_from_where_it_is(arm) -> None:
    core = ControllerCore(arm, require_heartbeat=False)
    core.activate(0)
    assert core.step(0).values is None, "never measured: there is no command that would be safe"
    names = ("shoulder", "elbow")
    core.on_fields("joints", 0, names, (0.5, -0.3), 0)
    assert sent(core.step(0)).tolist() == [0.5, -0.3]
    core.on_fields("joints", TICK, names, (0.4, -0.4), TICK)
    sagging = sent(core.step(TICK)).tolist()
    assert sagging == pytest.approx([0.5, -0.3]), "it sags under its weight; the hold must not follow"
    core.on_chunk(ActionChunk(np.full((16, 2), 1.0), 2 * TICK, TICK, names), 2 * TICK)
    before = np.array([0.5, -0.3])
    for tick in range(2, 10):
        now = tick * TICK
        core.on_fields("joints", now, names, before.tolist(), now)
        command = core.step(now)
        assert command.mode is Mode.RUN
        assert (abs(sent(command) - before) <= 2.0 * 0.0125 + 1e-12).all(), "faster than max_rate"
        before = sent(command)
    assert before[0] > 0.55


def test_a_position_robot_does_not_hold_where_it_was_measured_long_ago(arm) -> None:
    """Somebody may have moved it since: a command to go back there would be a jump."""
    core = ControllerCore(arm, require_heartbeat=False)
    names = ("shoulder", "elbow")
    core.on_fields("joints", 0, names, (0.5, 0.5), 0)
    core.activate(9 * TICK)
    assert core.step(9 * TICK).values is None
    core.on_fields("joints", 10 * TICK, names, (-0.5, -0.5), 10 * TICK)
    assert sent(core.step(10 * TICK)).tolist() == [-0.5, -0.5]


@pytest.mark.parametrize("hold", ["measured", "last"])
def test_a_stopped_position_robot_that_is_moved_by_hand_does_not_jump_back_when_let_go(arm, changed, hold) -> None:
    """Pinned: it went on sending the pose of before the emergency stop, and stepped there at the release."""
    core = ControllerCore(changed(arm, channels={"elbow": {"hold": hold}}), require_heartbeat=False)
    names = ("shoulder", "elbow")
    core.activate(0)
    for tick in range(200):
        now, moved = tick * TICK, min(1.0, max(0, tick - 100) / 50)  # by hand, from 0.5 to -0.7 and -0.9
        core.on_fields("joints", now, names, (0.5 - 1.2 * moved, 0.5 - 1.4 * moved), now)
        if tick < 5:
            core.on_chunk(ActionChunk(np.full((16, 2), 0.5), now, TICK, names), now)
        command = core.step(now)
    lead = 2.0 * 0.05  # max_rate x the body's time-out, as in the safety filter
    assert command.mode is Mode.STOPPED
    np.testing.assert_allclose(sent(command), [-0.7 + lead, -0.9 + lead])
    for tick in range(200, 300):  # let go: it follows its spring to what it is sent, and stays there
        now, here = tick * TICK, sent(command).tolist()
        core.on_fields("joints", now, names, here, now)
        command = core.step(now)
    np.testing.assert_allclose(sent(command), [-0.7 + lead, -0.9 + lead])


def test_a_position_channel_that_holds_without_a_rate_limit_is_refused(arm, changed) -> None:
    """Nothing would say how far it may jump back to where it is held. A robot that damps holds no place."""
    boundless = changed(arm, channels={"elbow": {"max_rate": None}})
    with pytest.raises(ContractError, match=r"\['elbow'\] hold a position and need max_rate"):
        ControllerCore(boundless)
    ControllerCore(changed(boundless, command={"fallback": "damp"}))


def test_a_position_robot_that_goes_blind_while_moving_stays_where_it_was_sent_last(arm) -> None:
    core = ControllerCore(arm, require_heartbeat=False)
    names = ("shoulder", "elbow")
    core.activate(0)
    core.on_fields("joints", 0, names, (0.5, 0.5), 0)
    commands = []
    for tick in range(12):
        now = tick * TICK
        core.on_chunk(ActionChunk(np.full((16, 2), 1.0), now, TICK, names), now)
        commands.append(core.step(now))
    seeing = [command for command in commands if command.mode is Mode.RUN]
    assert len(seeing) < len(commands)
    assert commands[-1].reasons == ("sensor:joints",)
    assert sent(commands[-1]).tolist() == sent(seeing[-1]).tolist() != [0.5, 0.5]


@pytest.mark.parametrize("end", ["heartbeat", "deactivate"])
def test_a_position_robot_that_lags_behind_is_not_jerked_back_to_where_it_was_measured(arm, end) -> None:
    """Regression: at the end of every episode that ended in motion, at several times max_rate."""
    core = ControllerCore(arm)
    names, speed, lag = ("shoulder", "elbow"), 0.5, 4
    core.activate(0)
    commands = []
    for tick in range(80):
        now, place = tick * TICK, speed * tick * TICK / 1e9
        measured = speed * (min(tick, 60) - lag) * TICK / 1e9
        core.on_fields("joints", now, names, (measured, -measured), now)
        if tick < 60:
            core.on_heartbeat(now)
            core.on_chunk(ActionChunk(np.tile([place, -place], (4, 1)), now, TICK, names), now)
        elif end == "deactivate" and tick == 60:
            core.deactivate(now)
        commands.append(core.step(now))
    assert commands[59].mode is Mode.RUN
    assert commands[-1].mode is (Mode.INACTIVE if end == "deactivate" else Mode.HOLD)
    steps = np.diff([sent(command) for command in commands[20:]], axis=0)  # after the ramp
    assert abs(steps).max() < 1.01 * speed * TICK / 1e9
    assert (steps[-10:] == 0).all(), "creeps"


def test_with_nothing_to_recover_within_every_hold_is_final(changed) -> None:
    """Regression: one that lasted a single tick was left again."""
    core = ControllerCore(changed(SAWYER, task={"recover_s": 0.0}), require_heartbeat=False)
    core.activate(0)
    core.on_fields("end_effector", 0, EE, MIDDLE, 0)
    core.on_chunk(ActionChunk(np.full((2, 4), 0.1), 0, TICK, NAMES), 0)
    assert core.step(0).mode is Mode.RUN
    assert core.step(3 * TICK).mode is Mode.STOPPED


def test_who_takes_over_from_a_stopped_one_is_stopped_until_the_reset() -> None:
    core = ControllerCore(SAWYER, stop_reasons=("tilt",))
    assert core.mode is Mode.STOPPED
    assert not core.activate(0)
    assert core.step(0).reasons == ("tilt",)
    core.reset(0)
    assert core.activate(0)


def test_after_another_commander_a_position_robot_holds_where_it_is_now(arm) -> None:
    core = ControllerCore(arm, require_heartbeat=False)
    names = ("shoulder", "elbow")
    core.on_fields("joints", 0, names, (0.5, 0.5), 0)
    core.activate(0)
    core.step(0)
    core.deactivate(0)
    assert sent(core.step(0)).tolist() == [0.5, 0.5]
    core.on_fields("joints", 10 * TICK, names, (-0.5, -0.5), 10 * TICK)
    core.activate(10 * TICK)
    assert sent(core.step(10 * TICK)).tolist() == [-0.5, -0.5]


def test_a_position_that_is_held_at_the_last_command_is_forgotten_when_another_commander_came(arm, changed) -> None:
    core = ControllerCore(changed(arm, channels={"elbow": {"hold": "last"}}), require_heartbeat=False)
    names = ("shoulder", "elbow")
    core.on_fields("joints", 0, names, (0.5, 0.5), 0)
    core.activate(0)
    assert sent(core.step(0)).tolist() == [0.5, 0.5]
    core.deactivate(0)
    core.on_fields("joints", 10 * TICK, names, (-0.5, -0.5), 10 * TICK)
    core.activate(10 * TICK)
    assert sent(core.step(10 * TICK)).tolist() == [-0.5, -0.5]


def test_the_gripper_keeps_its_grip_over_a_deactivation_but_not_over_a_reset() -> None:
    bench = Bench().running()
    bench.core.deactivate(bench.now)
    assert sent(bench.tick())[3] == 0.7
    bench.core.reset(bench.now)
    assert sent(bench.tick())[3] == 0.0


def test_chunks_may_be_joined_by_an_ensemble() -> None:
    core = ControllerCore(SAWYER, TemporalEnsemble(), require_heartbeat=False)
    core.activate(0)
    core.on_fields("end_effector", 0, EE, MIDDLE, 0)
    for start, value in ((0, 0.1), (TICK, 0.3)):
        core.on_chunk(ActionChunk(np.full((16, 4), value), start, TICK, NAMES), start)
    assert 0.19 < sent(core.step(TICK))[0] < 0.2


event = st.one_of(
    st.tuples(st.just("tick"), st.integers(0, 30 * MS)),
    st.tuples(
        st.just("chunk"),
        st.lists(st.lists(st.floats(-10, 10), min_size=4, max_size=4), min_size=1, max_size=20),
        st.integers(-300 * MS, 50 * MS),
        st.sampled_from([TICK, TICK + 5, 10 * MS]),
        st.permutations(NAMES),
    ),
    st.tuples(st.just("fields"), st.lists(st.floats(), min_size=3, max_size=3), st.integers(-300 * MS, 50 * MS)),
    st.tuples(st.just("heartbeat")),
    st.tuples(st.sampled_from(["activate", "deactivate", "reset"])),
)


@settings(max_examples=150)
@given(st.lists(event, max_size=60))
def test_whatever_happens_every_command_is_allowed_and_moves_only_while_running(events) -> None:
    core = ControllerCore(SAWYER)
    now = 10**12
    for name, *arguments in events:
        if name == "tick":
            now += arguments[0]
        elif name == "chunk":
            actions, age, period, names = arguments
            core.on_chunk(ActionChunk(np.array(actions), now + age, period, tuple(names)), now)
        elif name == "fields":
            core.on_fields("end_effector", now + arguments[1], EE, arguments[0], now)
        elif name == "heartbeat":
            core.on_heartbeat(now)
        else:
            getattr(core, name)(now)
        command = core.step(now)
        assert np.isfinite(sent(command)).all()
        for value, channel in zip(sent(command), SAWYER.command.channels, strict=True):
            assert channel.min <= value <= channel.max
        if command.mode is not Mode.RUN:
            assert not sent(command)[:3].any()


def test_a_second_short_hold_is_not_added_to_the_first() -> None:
    """Each has recover_s, 40 ticks, of its own, or a robot that stumbled once would stop for good at the next."""
    bench = Bench().running()
    for _ in range(2):
        bench.alive.discard("heartbeat")
        assert bench.tick(4 + 30).mode is Mode.HOLD
        bench.alive.add("heartbeat")
        assert bench.tick(16).mode is Mode.RUN


def test_after_a_hold_commands_ramp_in_again(changed) -> None:
    bench = Bench(changed(SAWYER, task={"ramp_s": 0.1})).running()
    bench.alive.discard("heartbeat")
    assert bench.tick(10).mode is Mode.HOLD
    bench.alive.add("heartbeat")
    x = [float(sent(bench.tick())[0]) for _ in range(10)]
    np.testing.assert_allclose(x, [*(0.1 * np.arange(8) / 8), 0.1, 0.1], atol=1e-12)


def test_a_measurement_is_as_old_as_its_stamp_says_and_not_as_its_message() -> None:
    """0.02 m from the limit; 50 ms on its way and the body's 50 ms: 0.2 m/s."""
    bench = Bench()
    bench.actions = np.tile([0.8, 0, 0, 0], (16, 1))
    bench.position = (0.48, 0.6, 0.2)
    bench.running().alive.discard("sensor")
    for _ in range(8):
        due = bench.now + TICK
        bench.core.on_fields("end_effector", due - 50 * MS, EE, bench.position, due)
        command = bench.tick()
    assert sent(command)[0] == pytest.approx(0.2)


def test_after_a_long_hold_a_slow_gripper_goes_on_from_the_grip_that_it_kept(changed) -> None:
    bench = Bench(changed(SAWYER, channels={"gripper_effort": {"max_rate": 8.0}})).running()
    bench.alive.discard("heartbeat")
    assert bench.tick(14).mode is Mode.HOLD
    bench.alive.add("heartbeat")
    assert sent(bench.tick())[3] == pytest.approx(0.7)


def test_chunks_of_the_episode_before_have_no_weight_in_this_ones_ensemble() -> None:
    bench = Bench(stitching=TemporalEnsemble()).running()
    bench.core.deactivate(bench.now)
    bench.core.activate(bench.now)
    bench.actions = np.full((16, 4), 0.5)
    np.testing.assert_allclose(sent(bench.tick()), 0.5)


def test_a_command_that_no_limit_allows_is_a_hold_and_not_a_silent_stop(changed) -> None:
    bench = Bench(changed(SAWYER, channels={"ee_velocity_x": {"min": 0.1, "hold": "last"}})).running()
    bench.position = (0.5, 0.6, 0.2)
    command = bench.tick()
    assert (command.mode, command.reasons) == (Mode.HOLD, ("command:limits",))
    assert bench.tick(41).mode is Mode.STOPPED


def test_the_age_of_what_is_known_is_that_of_its_oldest_part(arm) -> None:
    data = arm.to_dict()
    joints, names = data["sensors"][0], ("shoulder", "elbow")
    data["sensors"] = [{**joints, "name": n, "topic": n, "fields": [n], "units": ["rad"]} for n in names]
    known = Measurements(RobotContract.from_dict(data), names, TICK)
    for stamp, name in ((0, "shoulder"), (50 * MS, "elbow")):
        assert known.update(name, stamp, (name,), (0.0,), stamp) is None
    assert known.age_s(60 * MS) == 0.06
    for name in names:
        assert known.update(name, 70 * MS, (name,), (0.0,), 65 * MS) is None
    assert known.age_s(65 * MS) == 0, "what is stamped ahead of now is not younger than now"
