"""A contract made of anything at all either loads and round-trips, or is refused with a ContractError."""

from __future__ import annotations

import copy
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import ContractError, PolicyContract, PolicyObservation, RobotContract, differences, load_robot

ROBOT = load_robot("metaworld_sawyer")
POLICY = PolicyContract(
    policy="diffusion",
    robot=ROBOT.name,
    observation_set="state",
    task="open the drawer",
    observations=tuple(PolicyObservation(feature=f, history=2) for f in ROBOT.observation_features("state")),
    action=ROBOT.action_feature,
    action_period_s=ROBOT.control_period_s,
    horizon=16,
    execute=8,
)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn, original: dict) -> dict:
    """A copy of a contract with one to three entries replaced, removed or added, at any depth."""
    data = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        place: dict | list = data
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            inner = place[key]
            if isinstance(inner, (dict, list)) and inner and draw(st.booleans()):
                place = inner
                continue
            how = draw(st.sampled_from(["replace", "remove", "add"]))
            if how == "replace":
                place[key] = draw(anything)
            elif how == "remove":
                del place[key]
            elif isinstance(place, dict):
                place[draw(st.text(max_size=8))] = draw(anything)
            else:
                place.append(draw(anything))
            break
    return data


@settings(settings.get_profile("fuzz"))
@given(damaged(ROBOT.to_dict()), damaged(POLICY.to_dict()))
def test_damaged_contracts_are_refused_or_whole(robot_data: dict, policy_data: dict) -> None:
    robot, policy = ROBOT, POLICY
    try:
        robot = RobotContract.from_dict(robot_data)
        assert RobotContract.from_json(robot.to_json()) == robot
    except ContractError as error:
        assert str(error)
    try:
        policy = PolicyContract.from_dict(policy_data)
        assert PolicyContract.from_json(policy.to_json()) == policy
    except ContractError as error:
        assert str(error)
    if differences(policy, robot) == []:
        assert policy.action.names == robot.action_feature.names


@settings(settings.get_profile("fuzz"))
@given(content=st.binary(max_size=300) | anything.map(lambda value: repr(value).encode("utf-8", "replace")))
def test_files_of_anything_are_refused(content: bytes, tmp_path_factory: object) -> None:
    for suffix in (".yaml", ".json"):
        file = Path(tmp_path_factory.getbasetemp()) / f"robot{suffix}"  # type: ignore[attr-defined]
        file.write_bytes(content)
        try:
            load_robot(file)
        except ContractError as error:
            assert str(file) in str(error)
        else:
            raise AssertionError(f"{content!r} passed for a robot")
