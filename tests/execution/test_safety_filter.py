"""The filter between a policy and a robot: whatever comes in, what goes out is allowed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import ContractError, load_robot
from execution.safety import RefusedCommand, SafetyFilter

DT = 0.0125
SAWYER = load_robot("metaworld_sawyer")
MIDDLE = {"ee_x": 0.0, "ee_y": 0.6, "ee_z": 0.2}
any_float = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([1e308, -1e308, 5e-324, 0.8, -0.8])
FULL = float(np.float32(0.8))  # 1e-8 above 0.8
finite = st.floats(-1e6, 1e6)


@given(st.lists(st.floats(-FULL, FULL, width=32), min_size=3, max_size=3), st.floats(-1, 1))
def test_a_normal_command_passes_bit_for_bit(velocity, gripper) -> None:
    command = np.array([*velocity, gripper])
    result = SafetyFilter(SAWYER).filter(command, MIDDLE, None, DT)
    exact = np.concatenate([np.clip(command[:3], -0.8, 0.8), command[3:]])  # what float32 adds is cut without a word
    assert result.command.tobytes() == exact.tobytes()
    assert result.interventions == ()


@given(
    command=st.lists(any_float, min_size=4, max_size=4),
    position=st.lists(st.floats(-2, 2), min_size=3, max_size=3),
    age=st.floats(0, 0.1),
)
def test_whatever_comes_in_what_goes_out_is_within_every_limit(command, position, age) -> None:
    measured = dict(zip(MIDDLE, position, strict=True))
    try:
        out = SafetyFilter(SAWYER).filter(command, measured, None, DT, age).command
    except RefusedCommand as error:
        assert error.reason == "non_finite"
        assert not np.isfinite(command).all()
        return
    assert np.isfinite(out).all()
    for value, channel in zip(out, SAWYER.command.channels, strict=True):
        assert channel.min <= value <= channel.max
        if channel.position_min is None or channel.position_max is None or channel.measured_by is None:
            continue
        here = measured[channel.measured_by]
        there = here + value * (SAWYER.command.timeout_s + age)  # as far as the body goes if nothing else ever comes
        if here > channel.position_max:
            assert value <= 0, "further out"
        elif here < channel.position_min:
            assert value >= 0, "further out"
        else:
            assert channel.position_min - 1e-9 <= there <= channel.position_max + 1e-9


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", range(4))
def test_one_number_that_is_none_refuses_the_whole_command(number, place) -> None:
    command = np.zeros(4)
    command[place] = number
    with pytest.raises(RefusedCommand, match=SAWYER.command.channels[place].name):
        SafetyFilter(SAWYER).filter(command, MIDDLE, None, DT)


@pytest.mark.parametrize(("position", "command", "allowed"), [(0.55, 0.3, 0.0), (0.55, -0.3, -0.3), (0.49, 0.8, 0.2)])
def test_at_a_position_limit_only_the_way_back_is_open(position, command, allowed) -> None:
    """0.01 m from the limit, 0.05 s of the body's time-out: 0.2 m/s."""
    result = SafetyFilter(SAWYER).filter([command, 0, 0, 0], MIDDLE | {"ee_x": position}, None, DT)
    assert result.command[0] == pytest.approx(allowed)
    assert result.interventions == (() if command == allowed else ("position:ee_velocity_x",))


def test_a_command_out_of_range_is_cut_and_told() -> None:
    result = SafetyFilter(SAWYER).filter([3.0, 0, 0, -7.0], MIDDLE, None, DT)
    assert result.command.tolist() == [0.8, 0, 0, -1.0]
    assert result.interventions == ("range:ee_velocity_x", "range:gripper_effort")


@pytest.mark.parametrize("measured", [{}, MIDDLE | {"ee_y": float("nan")}, MIDDLE | {"ee_y": float("inf")}])
def test_without_the_measurement_that_a_limit_needs_nothing_passes(measured) -> None:
    with pytest.raises(RefusedCommand, match=r"ee_[xy]") as caught:
        SafetyFilter(SAWYER).filter([0, 0.1, 0, 0], measured, None, DT)
    assert caught.value.reason == "not_measured"


def test_a_command_of_another_size_is_refused() -> None:
    for size in (0, 3, 5):
        with pytest.raises(RefusedCommand, match=f"4 elements, not {size}"):
            SafetyFilter(SAWYER).filter([0] * size, MIDDLE, None, DT)


def test_a_velocity_changes_no_faster_than_its_rate(changed) -> None:
    robot = changed(SAWYER, channels={"ee_velocity_x": {"max_rate": 4.0}})
    guard = SafetyFilter(robot)
    first = guard.filter([0.8, 0, 0, 0], MIDDLE | {"ee_x": 0.3}, None, DT)
    assert first.command[0] == pytest.approx(0.05), "from standing"
    assert first.interventions == ("rate:ee_velocity_x",)
    second = guard.filter([-0.8, 0, 0, 0], MIDDLE, first.command, DT)
    assert second.command[0] == pytest.approx(0.0)


def test_a_position_limit_outranks_a_rate(changed) -> None:
    """Slowing down gently would carry the robot through the limit."""
    guard = SafetyFilter(changed(SAWYER, channels={"ee_velocity_x": {"max_rate": 1.0}}))
    previous = np.array([0.8, 0, 0, 0])
    assert guard.filter([0.8, 0, 0, 0], MIDDLE | {"ee_x": 0.5}, previous, DT).command[0] == 0.0


@given(
    command=st.lists(finite, min_size=2, max_size=2),
    position=st.lists(st.floats(-3, 3), min_size=2, max_size=2),
    previous=st.none() | st.lists(st.floats(-2, 2), min_size=2, max_size=2),
)
def test_a_position_command_is_never_out_of_limits_nor_far_ahead(arm, command, position, previous) -> None:
    measured = dict(zip(("shoulder", "elbow"), position, strict=True))
    last = None if previous is None else np.array(previous)
    out = SafetyFilter(arm).filter(command, measured, last, DT).command
    lead = 2.0 * 0.05  # max_rate x the body's time-out
    for value, here in zip(out, position, strict=True):
        assert -2 <= value <= 2
        if -2 <= here <= 2:
            assert abs(value - here) <= lead + 1e-9
    here = position[0]
    if -1.5 <= here <= 1.5:
        assert -1.5 <= out[0] <= 1.5
    elif abs(here) <= 2:
        assert abs(out[0]) <= abs(here) + 1e-9, "further out"


def test_a_position_robot_starts_from_where_it_is(arm) -> None:
    result = SafetyFilter(arm).filter([1.0, -1.0], {"shoulder": 0.2, "elbow": 0.2}, None, DT)
    assert result.command.tolist() == pytest.approx([0.225, 0.175])


def test_a_position_channel_that_nothing_measures_is_refused_when_the_robot_is_loaded(arm, changed) -> None:
    blind = {"measured_by": None, "position_min": None, "position_max": None, "hold": "last"}
    with pytest.raises(ContractError, match=r"shoulder.*measured_by"):
        SafetyFilter(changed(arm, channels={"shoulder": blind}))


def test_limits_that_contradict_each_other_let_nothing_through(changed) -> None:
    """A channel that may only push forward, at the forward limit: there is no right command, so there is none."""
    forward = {"min": 0.1, "max": 0.8, "hold": "last"}
    guard = SafetyFilter(changed(SAWYER, channels={"ee_velocity_x": forward}))
    with pytest.raises(RefusedCommand, match="ee_velocity_x"):
        guard.filter([0.5, 0, 0, 0], MIDDLE | {"ee_x": 0.5}, None, DT)


def test_a_robot_outside_its_limits_is_led_back_and_not_thrown(arm) -> None:
    """0.4 rad beyond the limit; as far as it may move within the body's time-out: 0.1 rad."""
    result = SafetyFilter(arm).filter([0.0, 0.0], {"shoulder": 1.9, "elbow": 0.0}, np.zeros(2), DT)
    assert result.command[0] == pytest.approx(1.8)


def test_a_position_channel_whose_range_is_beyond_its_position_limits_gets_nothing(arm, changed) -> None:
    guard = SafetyFilter(changed(arm, channels={"shoulder": {"min": 1.0, "position_max": 0.5}}))
    with pytest.raises(RefusedCommand, match="shoulder") as caught:
        guard.filter([0.4, 0.0], {"shoulder": 0.4, "elbow": 0.0}, None, DT)
    assert caught.value.reason == "limits"


def test_a_body_that_stops_sooner_than_a_period_still_obeys_for_a_period(changed) -> None:
    """0.01 m from the limit; 0.8 m/s would carry it out within 12.5 ms."""
    guard = SafetyFilter(changed(SAWYER, command={"timeout_s": 0.005}))
    result = guard.filter([3.0, 0, 0, 0], MIDDLE | {"ee_x": 0.495}, None, DT)
    assert result.command[0] * DT == pytest.approx(0.005)
