"""What a walking policy sees, number by number, and joints found by name."""

from __future__ import annotations

import numpy as np
import pytest

from contracts import ContractError
from contracts.locomotion import LocomotionContract, projected_gravity, roll_history

CONTRACT = LocomotionContract(
    joint_names=("hip", "knee"), default_pose=(0.5, -1.0), action_scale=0.25, kp=40.0, kd=1.0, history=3
)
SEEN = {
    "command": (0.5, -0.25, 1.0),
    "angular_velocity": (4.0, 8.0, -4.0),
    "projected_gravity": (0.1, 0.2, -0.9),
    "joint_position": (0.75, -1.5),
    "joint_velocity": (20.0, -2.0),
    "last_action": (0.3, -0.6),
}
EXPECTED = [1.0, -0.5, 0.25, 1.0, 2.0, -1.0, 0.1, 0.2, -0.9, 0.25, -0.5, 1.0, -0.1, 0.3, -0.6]


def test_an_observation_is_what_the_hand_computes():
    observation = CONTRACT.observation(**SEEN)
    assert observation.dtype == np.float32
    np.testing.assert_allclose(observation, EXPECTED, rtol=1e-6)
    assert observation.shape == (CONTRACT.observation_size,) == (15,)


def test_one_robot_sees_what_many_see():
    many = CONTRACT.observation(**{name: np.tile(value, (4, 1)) for name, value in SEEN.items()})
    np.testing.assert_array_equal(many, np.tile(CONTRACT.observation(**SEEN), (4, 1)))


def test_an_action_is_added_to_the_default_pose():
    np.testing.assert_allclose(CONTRACT.targets((2.0, -4.0)), (1.0, -2.0))
    np.testing.assert_allclose(CONTRACT.targets(np.zeros((3, 2))), [(0.5, -1.0)] * 3)


def test_joints_are_found_by_name():
    robot = ("knee", "hip")
    measured = np.array([-1.5, 0.75])
    np.testing.assert_array_equal(measured[CONTRACT.order_of(robot)], SEEN["joint_position"])
    with pytest.raises(ValueError, match="hip, knee; the robot has hip, hip"):
        CONTRACT.order_of(("hip", "hip"))
    with pytest.raises(ValueError, match="hip, knee; the robot has hip, knee, arm"):
        CONTRACT.order_of(("hip", "knee", "arm"))  # nobody would move it


def test_what_has_gone_wrong_is_clipped():
    assert CONTRACT.observation(**SEEN | {"joint_velocity": (1e9, -1e9)})[11:13].tolist() == [100.0, -100.0]


@pytest.mark.parametrize(
    ("orientation", "down"),
    [
        ((0, 0, 0, 1), (0, 0, -1)),
        ((0, 0, 1, 0), (0, 0, -1)),  # turned about the vertical: no difference
        ((0, 1, 0, 1), (1, 0, 0)),  # nose down; a quaternion's length does not matter
        ((3, 0, 0, 3), (0, -1, 0)),  # on its right side
        ((1, 0, 0, 0), (0, 0, 1)),
    ],
)
def test_which_way_is_down(orientation, down):
    np.testing.assert_allclose(projected_gravity(orientation), down, atol=1e-12)
    np.testing.assert_allclose(projected_gravity([orientation] * 3), [down] * 3, atol=1e-12)


def test_a_history_holds_the_latest_first():
    history = np.zeros((2, 3, 1), dtype=np.float32)
    for value in (1, 2, 3, 4):
        roll_history(history, np.full((2, 1), value, dtype=np.float32))
    assert history[:, :, 0].tolist() == [[4, 3, 2], [4, 3, 2]]


def test_it_travels_as_json():
    assert LocomotionContract.from_json(CONTRACT.to_json()) == CONTRACT


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"joint_names": ["hip", "hip"]}, "twice"),
        ({"default_pose": [0.0]}, "one position a joint"),
        ({"kp": 0.0}, "positive"),
        ({"action_scale": -0.25}, "positive"),
        ({"period_s": 0.0}, "positive"),
        ({"kd": float("nan")}, "finite"),
        ({"history": 0}, "history"),
    ],
)
def test_nonsense_is_refused(change, expected):
    with pytest.raises(ContractError, match=expected):
        LocomotionContract.from_dict(CONTRACT.to_dict() | change)
