"""A writer that dies at any moment leaves a dataset that opens with every finished episode."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from contracts.robot import RobotContract
from episodes import files
from episodes.dataset import Dataset, DatasetError, DatasetWriter

FOREVER = """
import sys
import numpy as np
from contracts.robot import load_robot
from episodes.data import EpisodeData
from episodes.dataset import DatasetWriter
robot = load_robot("metaworld_sawyer")
writer = DatasetWriter(sys.argv[1], robot, "state")
print("open", flush=True)
for seed in range(len(writer), 100_000):
    state = np.full((3, 39), seed, dtype=np.float32)
    writer.add(EpisodeData({"observation.state": state}, np.zeros((3, 4)), f"task {seed // 5}", "t", seed, True))
    print(seed, flush=True)
"""


def test_sigkill_at_any_moment_loses_no_finished_episode(tmp_path: Path, child: Callable) -> None:
    path, moments, finished = tmp_path / "d", random.Random(0), -1
    for _ in range(8):
        process = child(FOREVER, path)
        assert process.stdout.readline() == "open\n"
        time.sleep(moments.uniform(0.0, 0.15))
        process.kill()
        said = [int(line) for line in process.stdout.read().split()]
        process.wait()
        finished = max([finished, *said])
        dataset = Dataset(path)
        assert len(dataset) in (finished + 1, finished + 2), "an episode that add() had finished is gone"
        finished = len(dataset) - 1
        for episode in dataset.episodes:
            data = dataset.episode(episode.index)
            assert (data.observations["observation.state"] == episode.seed).all()
            assert data.task == f"task {episode.seed // 5}"
    assert finished > 8, "the writer was always killed before it could write anything"


class _Crash(BaseException):
    """The process ends here, as far as the disk is concerned."""


@pytest.mark.parametrize("survived", range(10))
def test_a_crash_between_any_two_writes_is_mended(
    survived: int,
    tmp_path: Path,
    robot: RobotContract,
    make_episode: Callable,
    same_episode: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After `survived` more files have got their names, nothing at all is written or cleaned up."""
    path = tmp_path / "d"
    writer = DatasetWriter(path, robot, "image")
    writer.add(make_episode("image", 0))
    left = [survived]

    def sync(directory: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise _Crash

    monkeypatch.setattr(files, "sync_directory", sync)
    added = 1
    with contextlib.suppress(_Crash):
        for seed in range(1, 9):
            writer.add(make_episode("image", seed, task=f"task {seed}"))
            added += 1
    assert left[0] < 0, "it never crashed"
    monkeypatch.undo()
    writer._lock.release()  # the end of the process would
    (path / "meta" / ".info.json.77.tmp").write_text("torn")
    (path / "data" / "chunk-000" / ".file-007.parquet.77.tmp").write_text("torn")

    assert len(Dataset(path)) in (added, added + 1)
    with DatasetWriter(path, robot, "image") as again:
        count = len(again)
        assert count in (added, added + 1)
        again.add(make_episode("image", 100, task="after"))
    dataset = Dataset(path)
    assert [e.seed for e in dataset.episodes] == [*range(count), 100]
    assert same_episode(dataset.episode(count), make_episode("image", 100, task="after"))
    names = sorted(file.name for file in path.rglob("*.parquet") if "data" in file.parts)
    assert names == [f"file-{index:03d}.parquet" for index in range(count + 1)]
    assert not list(path.rglob("*.tmp"))
    info_episodes = dataset.statistics()["action"]["count"]
    assert info_episodes == sum(e.length for e in dataset.episodes)


def test_a_full_disk_is_an_error_and_the_writer_goes_on(
    tmp_path: Path, robot: RobotContract, make_episode: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with DatasetWriter(tmp_path / "d", robot, "state") as writer:
        writer.add(make_episode("state", 0))
        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            writer.add(make_episode("state", 1))
        monkeypatch.undo()
        writer.add(make_episode("state", 2))
    assert [e.seed for e in Dataset(tmp_path / "d").episodes] == [0, 2]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_lost_index_is_not_taken_for_a_crash(make_dataset: Callable, robot: RobotContract) -> None:
    """Cleaning up after a crash must never delete finished episodes whose rows somebody lost."""
    path = make_dataset("state")
    (path / "meta/episodes/chunk-000/file-000.parquet").unlink()
    with pytest.raises(DatasetError, match="meta/info.json counts 3"):
        DatasetWriter(path, robot, "state")
    assert len(list((path / "data").rglob("*.parquet"))) == 3


def test_an_index_that_is_older_than_the_data_costs_no_episode(make_dataset: Callable, robot: RobotContract) -> None:
    """All of meta may come back from an older copy: what looks like a crash is more than one episode."""
    path = make_dataset("state")
    (path / "meta/episodes/chunk-000/file-000.parquet").unlink()
    info = json.loads((path / "meta/info.json").read_text())
    info |= {"total_episodes": 0, "total_frames": 0}
    (path / "meta/info.json").write_text(json.dumps(info))
    before = {file: file.read_bytes() for file in (path / "data").rglob("*.parquet")}
    with pytest.raises(DatasetError, match=r"file-000\.parquet: no row of meta/episodes names this data"):
        DatasetWriter(path, robot, "state")
    assert {file: file.read_bytes() for file in (path / "data").rglob("*.parquet")} == before
