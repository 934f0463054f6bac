"""Adding episodes: what is read is what was written, resuming, refusing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from contracts.robot import RobotContract
from episodes.dataset import Dataset, DatasetError, DatasetWriter
from episodes.layout import EPISODES_PER_INDEX_FILE


@pytest.mark.parametrize("observation_set", ["state", "image"])
def test_what_is_read_is_what_was_written(
    observation_set: str, make_dataset: Callable, make_episode: Callable, same_episode: Callable, robot: RobotContract
) -> None:
    dataset = Dataset(make_dataset(observation_set, (5, 1, 3)))
    assert dataset.robot == robot
    assert dataset.observation_set == observation_set
    assert list(dataset.features.values()) == [*robot.observation_features(observation_set), robot.action_feature]
    assert [(e.index, e.length, e.seed, e.success) for e in dataset.episodes] == [
        (0, 5, 0, True),
        (1, 1, 1, False),
        (2, 3, 2, True),
    ]
    for index, length in enumerate((5, 1, 3)):
        assert same_episode(dataset.episode(index), make_episode(observation_set, index, length))
    for index in (-1, 3):
        with pytest.raises(DatasetError, match=f"has no episode {index}; it has 0 to 2"):
            dataset.episode(index)


def test_opening_again_appends_and_knows_what_is_there(
    tmp_path: Path, robot: RobotContract, make_episode: Callable, same_episode: Callable
) -> None:
    with DatasetWriter(tmp_path / "d", robot, "state") as writer:
        writer.add(make_episode("state", 3))
    with DatasetWriter(tmp_path / "d", robot, "state") as writer:
        assert writer.has("drawer-open", 3)
        assert not writer.has("drawer-open", 4)
        assert not writer.has("push", 3)
        with pytest.raises(DatasetError, match="already has"):
            writer.add(make_episode("state", 3))
        writer.add(make_episode("state", 4, task="push it", task_name="push"))
    dataset = Dataset(tmp_path / "d")
    assert [(e.task_name, e.task, e.seed) for e in dataset.episodes] == [
        ("drawer-open", "open the drawer", 3),
        ("push", "push it", 4),
    ]
    assert dataset.tasks == ["open the drawer", "push it"]
    assert same_episode(dataset.episode(1), make_episode("state", 4, task="push it", task_name="push"))


def test_rows_run_over_several_index_files(tmp_path: Path, robot: RobotContract, make_episode: Callable) -> None:
    count = EPISODES_PER_INDEX_FILE + 3
    with DatasetWriter(tmp_path / "d", robot, "state") as writer:
        for seed in range(EPISODES_PER_INDEX_FILE):
            writer.add(make_episode("state", seed, 1))
    with DatasetWriter(tmp_path / "d", robot, "state") as writer:
        for seed in range(EPISODES_PER_INDEX_FILE, count):
            writer.add(make_episode("state", seed, 1))
    assert len(list((tmp_path / "d/meta/episodes").rglob("*.parquet"))) == 2
    assert [e.seed for e in Dataset(tmp_path / "d").episodes] == list(range(count))


def test_an_episode_costs_the_same_however_many_there_are(
    tmp_path: Path, robot: RobotContract, make_episode: Callable
) -> None:
    """A file that grows with every episode would make collection quadratic."""
    seconds = []
    with DatasetWriter(tmp_path / "d", robot, "state") as writer:
        for seed in range(3 * EPISODES_PER_INDEX_FILE):
            episode = make_episode("state", seed, 2)
            start = time.process_time()  # other work on the machine does not count
            writer.add(episode)
            seconds.append(time.process_time() - start)
    first, last = np.median(seconds[:EPISODES_PER_INDEX_FILE]), np.median(seconds[-EPISODES_PER_INDEX_FILE:])
    assert last < 2 * first + 0.002


def test_executed_actions_are_kept_beside_the_label(
    tmp_path: Path, robot: RobotContract, make_episode: Callable
) -> None:
    first = make_episode("state", 0)
    executed = first.actions + np.float32(0.1)
    with DatasetWriter(tmp_path / "d", robot, "state") as writer:
        writer.add(dataclasses.replace(first, executed=executed))
        writer.add(make_episode("state", 1))
    dataset = Dataset(tmp_path / "d")
    assert "action.executed" in dataset.features
    np.testing.assert_array_equal(dataset.episode(0).executed, executed)
    np.testing.assert_array_equal(dataset.episode(0).applied, executed)
    np.testing.assert_array_equal(dataset.episode(0).actions, first.actions)
    np.testing.assert_array_equal(dataset.episode(1).executed, dataset.episode(1).actions)


def test_executed_actions_that_have_no_place_are_refused(
    tmp_path: Path, robot: RobotContract, make_episode: Callable
) -> None:
    with DatasetWriter(tmp_path / "d", robot, "state") as writer:
        writer.add(make_episode("state", 0))
        episode = make_episode("state", 1)
        with pytest.raises(DatasetError, match=r"action\.executed"):
            writer.add(dataclasses.replace(episode, executed=episode.actions + 1))
        writer.add(dataclasses.replace(episode, executed=episode.actions.copy()))
    assert Dataset(tmp_path / "d").episode(1).executed is None


def test_only_one_writer_at_a_time(tmp_path: Path, robot: RobotContract, make_episode: Callable) -> None:
    with DatasetWriter(tmp_path / "d", robot, "state") as writer:
        with pytest.raises(DatasetError, match="another process"):
            DatasetWriter(tmp_path / "d", robot, "state")
        writer.add(make_episode("state", 0))
        with pytest.raises(DatasetError, match="already has"):
            writer.add(make_episode("state", 0))
    with DatasetWriter(tmp_path / "d", robot, "state") as writer:
        assert len(writer) == 1
    with pytest.raises(DatasetError, match="closed"):
        writer.add(make_episode("state", 1))


def test_a_reader_may_look_while_the_writer_works(tmp_path: Path, robot: RobotContract, make_episode: Callable) -> None:
    with DatasetWriter(tmp_path / "d", robot, "state") as writer:
        assert len(Dataset(tmp_path / "d")) == 0
        for seed in range(3):
            writer.add(make_episode("state", seed))
            assert [e.seed for e in Dataset(tmp_path / "d").episodes] == list(range(seed + 1))


def test_other_data_is_not_mixed_in(make_dataset: Callable, robot: RobotContract) -> None:
    path = make_dataset("image")
    with pytest.raises(DatasetError, match="observation set"):
        DatasetWriter(path, robot, "state")
    plain = robot.to_dict()
    plain["cameras"][0]["height"] = 24
    with pytest.raises(DatasetError, match="features"):
        DatasetWriter(path, RobotContract.from_dict(plain), "image")
    plain = robot.to_dict()
    plain["control_rate_hz"] = 40
    with pytest.raises(DatasetError, match="rate"):
        DatasetWriter(path, RobotContract.from_dict(plain), "image")
    assert len(Dataset(path)) == 3


def test_a_directory_with_something_else_is_left_alone(tmp_path: Path, robot: RobotContract) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="not empty"):
        DatasetWriter(tmp_path, robot, "state")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(DatasetError, match="observation set 'nothing'"):
        DatasetWriter(tmp_path / "d", robot, "nothing")


BAD = {
    "nan": ({"actions": np.full((7, 4), np.nan)}, "ee_velocity_x"),
    "too large for float32": ({"actions": np.full((7, 4), 1e60)}, "finite"),
    "wrong size": ({"actions": np.zeros((7, 3))}, r"\(7, 4\) would be right"),
    "no row": ({"actions": np.zeros((0, 4))}, "empty episode"),
    "text": ({"actions": np.full((7, 4), "a")}, "numbers"),
    "shorter observation": ({"observations": {"observation.state": np.zeros((6, 39))}}, r"\(7, 39\)"),
    "unknown observation": ({"observations": {"observation.other": np.zeros((7, 39))}}, r"observation\.state"),
    "no task": ({"task": ""}, "task"),
    "seed too large": ({"seed": 2**63}, "seed"),
    "seed not whole": ({"seed": 1.5}, "seed"),
    "executed": ({"executed": np.full((7, 4), np.inf)}, r"action\.executed"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_episode_is_refused_and_nothing_is_lost(
    name: str, tmp_path: Path, robot: RobotContract, make_episode: Callable, same_episode: Callable
) -> None:
    replaced, message = BAD[name]
    with DatasetWriter(tmp_path / "d", robot, "state") as writer:
        writer.add(make_episode("state", 0))
        with pytest.raises(DatasetError, match=message):
            writer.add(dataclasses.replace(make_episode("state", 1), **replaced))  # type: ignore[arg-type]
        writer.add(make_episode("state", 2))
    dataset = Dataset(tmp_path / "d")
    assert [e.seed for e in dataset.episodes] == [0, 2]
    assert same_episode(dataset.episode(1), make_episode("state", 2))


def test_an_image_that_is_not_uint8_is_refused(tmp_path: Path, robot: RobotContract, make_episode: Callable) -> None:
    episode = make_episode("image", 0)
    episode.observations["observation.images.corner2"] = episode.observations["observation.images.corner2"] / 255.0
    with DatasetWriter(tmp_path / "d", robot, "image") as writer, pytest.raises(DatasetError, match="uint8"):
        writer.add(episode)


def test_a_free_seed_is_beyond_all_of_its_task(tmp_path: Path, robot: RobotContract, make_episode: Callable) -> None:
    with DatasetWriter(tmp_path / "d", robot, "state") as writer:
        for seed in (4, 1):
            writer.add(make_episode("state", seed, 1))
        assert (writer.free_seed("drawer-open"), writer.free_seed("push")) == (5, 0)
