"""What others recorded with LeRobot as training data: by name, in full, or with every reason why not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.robot import RobotContract
from episodes.convert import lerobot_to_dataset
from episodes.data import DatasetError
from episodes.dataset import Dataset, DatasetWriter
from episodes.foreign import ForeignDataset
from episodes.opening import convert

LENGTHS = (5, 7, 3)
DATA = "data/chunk-000/file-000.parquet"
INDEX = "meta/episodes/chunk-000/file-000.parquet"
CAMERA = "observation.images.corner2"
VECTORS = ("observation.state", "action")
STATE = ["ee_x", "ee_y", "ee_z", "gripper_opening"]


@pytest.fixture(scope="session")
def arm(robot: RobotContract) -> RobotContract:
    """A real arm with one observation set: its state and a picture of 10 x 12 pixels."""
    plain = robot.to_dict()
    del plain["observation_sets"]["state"]
    return RobotContract.from_dict({**plain, "body": "external"})


@pytest.fixture
def ours(arm: RobotContract, make_episode: Callable, tmp_path: Path) -> Dataset:
    """Three episodes of two tasks."""
    with DatasetWriter(tmp_path / "ours", arm, "image") as writer:
        for seed, length in enumerate(LENGTHS):
            episode = make_episode("image", seed, length, task="open it" if seed else "close it")
            episode.actions *= np.float32(0.8)
            writer.add(episode)
    return Dataset(tmp_path / "ours")


@pytest.fixture
def theirs(ours: Dataset, tmp_path: Path) -> Path:
    """The same as LeRobot would have recorded it: no contract, all episodes in one file, other names, another order."""
    path = tmp_path / "theirs"
    _edit_info(ours.path, lambda info: None, path)
    rows = []
    for index in range(len(ours)):
        table = pq.read_table(ours.path / f"data/chunk-000/file-{index:03d}.parquet")
        for key in VECTORS:
            backwards = [values[::-1] for values in table.column(key).to_pylist()]
            place = table.schema.get_field_index(key)
            table = table.set_column(place, key, pa.array(backwards, pa.list_(pa.float32())))
        rows.append(table)
    _write(path / DATA, pa.concat_tables(rows))
    index = pq.read_table(ours.path / INDEX).drop_columns(["task_name", "seed", "success"])
    place = index.schema.get_field_index("data/file_index")
    _write(path / INDEX, index.set_column(place, "data/file_index", pa.array([0] * len(LENGTHS))))
    tasks = pa.table({"task_index": [0, 1], "__index_level_0__": ours.tasks})  # pandas' name of an index without one
    _write(path / "meta/tasks.parquet", tasks)

    def forget(info: dict[str, Any]) -> None:
        del info["visuomotor"]
        for key in VECTORS:
            info["features"][key]["names"] = [f"{name}.pos" for name in info["features"][key]["names"][::-1]]
            info["features"][key]["fps"] = 80
        info["features"]["action"]["names"] = {"motors": info["features"]["action"]["names"]}

    _edit_info(path, forget)
    return path


def _edit_info(path: Path, edit: Callable[[dict[str, Any]], None], target: Path | None = None) -> None:
    info = json.loads((path / "meta/info.json").read_text())
    edit(info)
    file = (target or path) / "meta/info.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(info))


def _write(file: Path, table: pa.Table) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def _edit_rows(file: Path, edit: Callable[[list[dict[str, Any]]], object]) -> None:
    table = pq.read_table(file)
    rows = table.to_pylist()
    edit(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), file)


def _files(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def _same_arrays(found: Dataset, wanted: Dataset) -> None:
    one, other = found.arrays(), wanted.arrays()
    assert one.observations.keys() == other.observations.keys()
    for key in one.observations:
        np.testing.assert_array_equal(one.observations[key], other.observations[key])
    np.testing.assert_array_equal(one.actions, other.actions)
    for name in ("starts", "ends", "task_index"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.tasks == other.tasks


def test_what_is_learned_from_is_what_was_recorded(
    ours: Dataset, theirs: Path, arm: RobotContract, tmp_path: Path
) -> None:
    before = _files(theirs)
    report = lerobot_to_dataset(theirs, tmp_path / "new", arm)
    assert (report.added, report.present, report.skipped, report.unused) == (3, 0, [], [])
    assert _files(theirs) == before
    new = Dataset(tmp_path / "new")
    _same_arrays(new, ours)
    assert (new.robot, new.observation_set) == (arm, "image")
    assert [(e.task, e.length) for e in new.episodes] == [("close it", 5), ("open it", 7), ("open it", 3)]


def test_names_without_a_suffix_and_in_the_contracts_order_are_found_too(
    ours: Dataset, arm: RobotContract, tmp_path: Path
) -> None:
    """Our own layout without our contract: a file an episode, lists of a fixed size."""
    _edit_info(ours.path, lambda info: info.pop("visuomotor"))
    lerobot_to_dataset(ours.path, tmp_path / "new", arm)
    new = Dataset(tmp_path / "new")
    for index in range(len(LENGTHS)):
        info, file = new.episodes[index], f"data/chunk-000/file-{index:03d}.parquet"
        assert info.length == LENGTHS[index]
        assert pq.read_table(new.path / file).equals(pq.read_table(ours.path / file))


def test_a_name_that_is_equal_comes_before_one_with_a_suffix(
    ours: Dataset, theirs: Path, arm: RobotContract, tmp_path: Path
) -> None:
    """A state may hold more than the contract asks for; what is not kept is told."""

    def more(info: dict[str, Any]) -> None:
        state = info["features"]["observation.state"]
        state.update(names=[*state["names"], "ee_z"], shape=[5])
        info["features"]["next.reward"] = {"dtype": "float32", "shape": [1], "names": None}

    def longer(rows: list[dict[str, Any]]) -> None:
        for number, row in enumerate(rows):
            row["observation.state"] = [*row["observation.state"], float(number)]

    _edit_info(theirs, more)
    _edit_rows(theirs / DATA, longer)
    said = convert(theirs, tmp_path / "new", robot=arm)
    assert "not kept: next.reward, observation.state.ee_z.pos" in said
    found = Dataset(tmp_path / "new").arrays().observations["observation.state"]
    wanted = np.array(ours.arrays().observations["observation.state"])
    wanted[:, STATE.index("ee_z")] = np.arange(sum(LENGTHS))
    np.testing.assert_array_equal(found, wanted)


def test_how_an_episode_ended_is_not_known_unless_it_is_assumed(
    theirs: Path, arm: RobotContract, tmp_path: Path
) -> None:
    for assume in (False, True):
        said = convert(theirs, tmp_path / f"new_{assume}", robot=arm, assume_success=assume)
        assert [e.success for e in Dataset(tmp_path / f"new_{assume}").episodes] == [assume] * 3
        assert "of 3 nobody said how they ended" in said
        assert ("--assume-success" in said) == (not assume)


def _write_films(path: Path, codec: str, length: int) -> None:
    """A video of `length` pictures, each of one grey of its own, 64 x 48 (width x height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), mode="w") as container:
        stream: Any = container.add_stream(codec, rate=80, options={"crf": "10", "g": "4"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(length):
            picture = np.full((48, 64, 3), 16 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture
def filmed(theirs: Path, arm: RobotContract) -> tuple[Path, RobotContract]:
    """The same with its pictures in a video: the second and third episode in one file, after what nobody asks for."""
    plain = arm.to_dict()
    plain["cameras"][0].update(height=48, width=64)

    def film(info: dict[str, Any]) -> None:
        names = ["height", "width", "channels"]
        info["features"][CAMERA] = {"dtype": "video", "shape": [48, 64, 3], "names": names, "info": {"video.fps": 80}}
        info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

    _edit_info(theirs, film)
    _write(theirs / DATA, pq.read_table(theirs / DATA).drop_columns([CAMERA]))
    index = pq.read_table(theirs / INDEX)
    films = {"chunk_index": [0, 0, 0], "file_index": [0, 1, 1], "from_timestamp": [0.0, 3 / 80, 10 / 80]}
    for name, values in films.items():
        index = index.append_column(f"videos/{CAMERA}/{name}", pa.array(values))
    _write(theirs / INDEX, index)
    return theirs, RobotContract.from_dict(plain)


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
def test_pictures_come_out_of_videos_that_hold_several_episodes(
    codec: str, filmed: tuple[Path, RobotContract], tmp_path: Path
) -> None:
    theirs, arm = filmed
    for file, length in enumerate((5, 13)):
        _write_films(theirs / f"videos/{CAMERA}/chunk-000/file-{file:03d}.mp4", codec, length)
    report = lerobot_to_dataset(theirs, tmp_path / "new", arm)
    assert (report.added, report.skipped) == (3, [])
    found = Dataset(tmp_path / "new").arrays().observations[CAMERA].astype(int)
    greys = 16 * np.array([*range(5), *range(3, 10), *range(10, 13)])
    assert np.abs(found - greys[:, None, None, None]).max() <= 4


def test_a_video_that_is_short_or_of_another_size_or_gone_costs_its_episodes_alone(
    filmed: tuple[Path, RobotContract], tmp_path: Path
) -> None:
    theirs, arm = filmed
    short = theirs / f"videos/{CAMERA}/chunk-000/file-001.mp4"
    _write_films(short, "libx264", 12)
    report = lerobot_to_dataset(theirs, tmp_path / "new", arm)
    assert report.added == 1
    assert [e.task for e in Dataset(tmp_path / "new").episodes] == ["open it"]
    assert "file-000.mp4: not a readable video" in report.skipped[0]
    assert f"episode 2: {short}: has no picture at 0.150 s, of row 2" in report.skipped[1]
    _write_films(theirs / f"videos/{CAMERA}/chunk-000/file-000.mp4", "libx264", 5)
    smaller = arm.to_dict()
    smaller["cameras"][0].update(height=40)
    _edit_info(theirs, lambda info: info["features"][CAMERA].update(shape=[40, 64, 3]))
    report = lerobot_to_dataset(theirs, tmp_path / "small", RobotContract.from_dict(smaller))
    assert report.added == 0
    assert "its pictures are 48x64 (height x width); 40x64 is wanted" in report.skipped[0]


def _rename(key: str, *names: str) -> Callable[[dict[str, Any]], None]:
    return lambda info: info["features"][key].update(names=list(names))


DIFFERENCES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "rate": (lambda info: info.update(fps=30), "fps: 30 in the dataset; control_rate_hz is 80 in the contract"),
    "feature": (lambda info: info["features"].pop("action"), "action: not in the dataset, which has ['observation."),
    "names": (
        _rename("action", "ee_velocity_x", "ee_velocity_y", "ee_velocity_z", "grip"),
        "action: the contract has ['gripper_effort'], the dataset does not: its names are ['ee_velocity_x', ",
    ),
    "channels": (
        _rename("action", "ee_velocity_x", "ee_velocity_y", "ee_velocity_z", "grip"),
        "action: the dataset has ['grip'], the contract has no such channel: ['ee_velocity_x', ",
    ),
    "no names": (
        lambda info: info["features"]["observation.state"].update(names=None),
        "observation.state: the dataset gives its 4 elements the names []; one each would be right, ['ee_x', ",
    ),
    "a name twice": (
        _rename("observation.state", *(["ee_x.pos"] * 2), "ee_y", "ee_z"),
        "observation.state: the dataset gives its 4 elements the names ['ee_x.pos', 'ee_x.pos', ",
    ),
    "other suffix": (
        _rename("observation.state", "ee_x.vel", "ee_y", "ee_z", "gripper_opening"),
        "observation.state: the contract has ['ee_x'], the dataset does not",
    ),
    "size": (
        lambda info: info["features"]["observation.state"].update(shape=[5]),
        "observation.state: the dataset gives its 5 elements the names",
    ),
    "dtype": (
        lambda info: info["features"]["action"].update(dtype="int64"),
        "action: int64 of shape (4,) in the dataset; a vector of float32 would be right",
    ),
    "picture size": (
        lambda info: info["features"][CAMERA].update(shape=[3, 480, 640], names=["channels", "height", "width"]),
        f"{CAMERA}: pictures of 480x640 (height x width) in the dataset, 12x10 in the contract",
    ),
    "no picture": (
        lambda info: info["features"][CAMERA].update(dtype="float32"),
        f"{CAMERA}: float32 of shape (12, 10, 3) in the dataset; image or video would be right",
    ),
    "paths": (lambda info: info.update(data_path="../{chunk_index}"), "data_path: '../{chunk_index}'; 'data/chunk-"),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_difference_is_told_before_anything_is_written(
    name: str, theirs: Path, arm: RobotContract, tmp_path: Path
) -> None:
    edit, message = DIFFERENCES[name]
    _edit_info(theirs, edit)
    with pytest.raises(DatasetError) as caught:
        lerobot_to_dataset(theirs, tmp_path / "new", arm)
    assert message in str(caught.value)
    assert "nothing was written" in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_all_differences_are_told_at_once(theirs: Path, robot: RobotContract, tmp_path: Path) -> None:
    for name in ("rate", "names", "no names", "picture size", "paths"):
        _edit_info(theirs, DIFFERENCES[name][0])
    with pytest.raises(DatasetError) as caught:
        lerobot_to_dataset(theirs, tmp_path / "new", robot, "image")
    found = str(caught.value).splitlines()[1:]
    starts = ("body", "fps", "data_path", "observation.state", CAMERA, "action", "action")
    assert [line.startswith(f"  - {start}: ") for line, start in zip(found, starts, strict=True)] == [True] * 7


def _first(index: int) -> int:
    return sum(LENGTHS[:index])


UNUSABLE: dict[str, tuple[str, Callable[[list[dict[str, Any]]], object], str]] = {
    "not finite": (DATA, lambda rows: rows[_first(1) + 3]["action"].__setitem__(0, np.nan), "row 3: not a finite"),
    "no units": (
        DATA,
        lambda rows: rows[_first(1) + 3]["action"].__setitem__(0, 57.3),
        "'gripper_effort' is 57.3 in row 3 (outside in 1 of 7 rows); -1 to 1 would be right",
    ),
    "too long": (DATA, lambda rows: rows[_first(1)]["action"].append(0.0), "does not hold vectors of 4 numbers"),
    "a gap": (DATA, lambda rows: rows[_first(1)].update({"observation.state": None}), "gaps"),
    "off its time": (
        DATA,
        lambda rows: rows[_first(1) + 2].update(timestamp=0.03),
        "row 2 is at 0.0300 s; 0.0250 s (row / fps) would be right",
    ),
    "rows lost": (DATA, lambda rows: rows.pop(_first(1)), "has 6 rows of it; 7 would be right"),
    "two tasks": (INDEX, lambda rows: rows[1].update(tasks=["a", "b"]), "has the instructions ['a', 'b']"),
    "file lost": (INDEX, lambda rows: rows[1].update({"data/file_index": 9}), "file-009.parquet: not there"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_episode_that_cannot_be_used_is_left_out_and_told(
    name: str, ours: Dataset, theirs: Path, arm: RobotContract, tmp_path: Path
) -> None:
    file, edit, message = UNUSABLE[name]
    _edit_rows(theirs / file, edit)
    report = lerobot_to_dataset(theirs, tmp_path / "new", arm)
    assert (report.added, len(report.skipped)) == (2, 1)
    assert report.skipped[0].startswith("episode 1: ")
    assert message in report.skipped[0]
    new = Dataset(tmp_path / "new")
    np.testing.assert_array_equal(new.episode(1).actions, ours.episode(2).actions)


def test_a_dataset_in_other_units_is_refused(theirs: Path, arm: RobotContract, tmp_path: Path) -> None:
    def degrees(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["action"] = [100 + value for value in row["action"]]

    _edit_rows(theirs / DATA, degrees)
    with pytest.raises(DatasetError, match=r"no episode can be used .*; nothing was written") as caught:
        lerobot_to_dataset(theirs, tmp_path / "new", arm)
    assert "(outside in 7 of 7 rows); -0.8 to 0.8 m/s would be right" in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_stopped_half_way_it_goes_on(
    ours: Dataset, theirs: Path, arm: RobotContract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    pictures = ForeignDataset.pictures

    def stopped(self: ForeignDataset, index: int) -> dict[str, np.ndarray]:
        looked.append(index)
        if looked == [0, 1]:
            raise KeyboardInterrupt
        return pictures(self, index)

    monkeypatch.setattr(ForeignDataset, "pictures", stopped)
    with pytest.raises(KeyboardInterrupt):
        lerobot_to_dataset(theirs, tmp_path / "new", arm)
    for added in (2, 0):
        report = lerobot_to_dataset(theirs, tmp_path / "new", arm)
        assert (report.added, report.present, report.skipped) == (added, 3 - added, [])
    assert looked == [0, 1, 1, 2]
    _same_arrays(Dataset(tmp_path / "new"), ours)


def test_datasets_of_two_days_go_into_one(
    ours: Dataset, theirs: Path, arm: RobotContract, tmp_path: Path, make_episode: Callable
) -> None:
    with DatasetWriter(tmp_path / "new", arm, "image") as writer:
        episode = make_episode("image", 0, 4, task="close it", task_name="close it")
        writer.add(dataclasses.replace(episode, actions=episode.actions * np.float32(0.8)))
    report = lerobot_to_dataset(theirs, tmp_path / "new", arm)
    assert (report.added, report.skipped) == (3, [])
    assert [e.seed for e in Dataset(tmp_path / "new").episodes] == [0, 1, 1, 2]


def test_what_it_takes_is_said(theirs: Path, arm: RobotContract, robot: RobotContract, tmp_path: Path) -> None:
    new = tmp_path / "new"
    with pytest.raises(DatasetError, match="holds no robot contract; name the robot"):
        convert(theirs, new)
    with pytest.raises(DatasetError, match=r"several observation sets: name one of \['image', 'state'\]"):
        convert(theirs, new, robot=robot)
    with pytest.raises(DatasetError, match="no observation set 'touch'"):
        convert(theirs, new, "touch", arm)
    for inside in (theirs, theirs / "new", tmp_path / "new" / ".." / "theirs"):
        with pytest.raises(DatasetError, match="which is left as it is"):
            convert(theirs, inside, robot=arm)
    with pytest.raises(DatasetError, match="visuomotor convert DATASET OUTPUT --robot ROBOT"):
        Dataset(theirs)
    _edit_rows(theirs / INDEX, lambda rows: rows.pop())
    with pytest.raises(DatasetError, match=r"lists 2 episodes, but meta/info.json counts 3"):
        convert(theirs, new, robot=arm)
    _edit_rows(theirs / INDEX, lambda rows: rows[1].update(length=None))
    with pytest.raises(DatasetError, match="row 1 is damaged"):
        convert(theirs, new, robot=arm)
    _edit_info(theirs, lambda info: info.update(codebase_version="v2.1"))
    with pytest.raises(DatasetError, match="python -m lerobot.scripts.convert_dataset_v21_to_v30"):
        convert(theirs, new, robot=arm)
    assert not new.exists()
    assert not (theirs / "new").exists()
    assert not (theirs / ".lock").exists()
