"""A dataset with damaged files is read truly or refused by name; neither reading nor appending loses what is left."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import RobotContract
from episodes.data import DatasetError, EpisodeData, checked_episode
from episodes.dataset import Dataset, DatasetWriter

LENGTHS = (5, 5, 7)
SET = "image"
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def episode(robot: RobotContract, seed: int, length: int) -> EpisodeData:
    """An episode of random numbers."""
    random = np.random.default_rng(seed)
    observations = {
        f.key: random.integers(0, 256, (length, *f.shape), dtype=np.uint8)
        if f.is_image
        else random.normal(size=(length, *f.shape)).astype(np.float32)
        for f in robot.observation_features(SET)
    }
    actions = random.uniform(-1, 1, (length, 4)).astype(np.float32)
    task = "open the drawer" if seed % 2 else "close it"
    return EpisodeData(observations, actions, task, "drawer-open", seed, True, executed=actions * np.float32(0.5))


def same(a: EpisodeData, b: EpisodeData) -> bool:
    """Bit for bit; what was executed only where the dataset says that it knows it."""
    pairs = [(a.actions, b.actions)] + [(a.observations[key], b.observations[key]) for key in a.observations]
    if a.executed is not None and b.executed is not None:
        pairs.append((a.executed, b.executed))
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in pairs)


class Whole:
    """A whole dataset, its statistics and unpacked arrays included, and what is in it."""

    def __init__(self, path: Path, robot: RobotContract) -> None:
        self.path = path
        self.robot = robot
        self.episodes = [episode(robot, seed, length) for seed, length in enumerate(LENGTHS)]
        with self.writer(path) as writer:
            for data in self.episodes:
                writer.add(data)
        Dataset(path).arrays()

    def writer(self, path: Path) -> DatasetWriter:
        return DatasetWriter(path, self.robot, SET)


@pytest.fixture(scope="module")
def whole(small_robot, tmp_path_factory) -> Whole:
    return Whole(tmp_path_factory.mktemp("template") / "dataset", small_robot)


def data_file(path: Path, index: int) -> Path:
    return path / f"data/chunk-000/file-{index:03d}.parquet"


def names_a_file(error: DatasetError, path: Path) -> bool:
    """The message says where in the dataset something is wrong."""
    return str(path) in str(error)


def read_everything(path: Path, originals: list[EpisodeData], touched: set[Path]) -> None:
    """Read all there is, each part by itself: exact where its file was not touched, never anything but DatasetError."""
    try:
        dataset = Dataset(path)
    except DatasetError as error:
        assert names_a_file(error, path), error
        return
    features = dataset.robot.observation_features(dataset.observation_set)
    for index in range(len(dataset)):
        try:
            data = dataset.episode(index)
        except DatasetError as error:
            assert names_a_file(error, path), error
            continue
        checked_episode(data, features, dataset.robot.action_feature)
        if data_file(path, index) not in touched:
            assert same(data, originals[index])
            assert data.executed is not None or path / "meta/info.json" in touched
        assert not any(same(data, other) for other in originals if other is not originals[index]), "files were mixed up"
    try:
        dataset.statistics()
    except DatasetError as error:
        assert names_a_file(error, path), error
    try:
        arrays = dataset.arrays()
    except DatasetError as error:
        assert names_a_file(error, path), error
        return
    if any(".cache" in str(file) for file in touched):
        return  # it is only looked at whether it could be what it should be
    for index, (start, end) in enumerate(zip(arrays.starts, arrays.ends, strict=True)):
        if data_file(path, index) not in touched:
            np.testing.assert_array_equal(arrays.actions[start:end], originals[index].actions)


@settings(settings.get_profile("fuzz"))
@given(data=st.data())
def test_damaged_files_are_read_truly_or_refused(data, whole, tmp_path, copied, damage_files, digests) -> None:
    with copied(whole.path, tmp_path) as path:
        touched = damage_files(data.draw, path)
        before = {name: digest for name, digest in digests(path).items() if not name.startswith(".cache")}
        read_everything(path, whole.episodes, touched)
        after = digests(path)
        assert before == {name: after.get(name) for name in before}, "reading changed the dataset"


@settings(settings.get_profile("fuzz"))
@given(data=st.data(), file=st.sampled_from(["meta/info.json", "meta/stats.json"]))
def test_json_that_says_something_else_is_read_truly_or_refused(data, file, whole, tmp_path, copied) -> None:
    with copied(whole.path, tmp_path) as path:
        content = json.loads((path / file).read_text())
        place, key = content, data.draw(st.sampled_from(sorted(content)))
        while isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
            place, key = place[key], data.draw(st.sampled_from(sorted(place[key])))
        if data.draw(st.booleans()):
            place[key] = data.draw(anything)
        else:
            del place[key]
        text = json.dumps(content)
        (path / file).write_bytes(text.encode("utf-8", "surrogatepass"))
        read_everything(path, whole.episodes, {path / file})


@settings(settings.get_profile("fuzz"))
@given(data=st.data())
def test_appending_to_a_damaged_dataset_loses_nothing(data, whole, tmp_path, copied, damage_files, digests) -> None:
    with copied(whole.path, tmp_path) as path:
        touched = damage_files(data.draw, path)
        before = digests(path)
        kept = {name for name in before if name.startswith("data/")} - {str(t.relative_to(path)) for t in touched}
        try:
            with whole.writer(path) as writer:
                writer.add(episode(whole.robot, 99, 4))
        except DatasetError as error:
            assert names_a_file(error, path), error
        after = digests(path)
        assert {name: before[name] for name in kept} == {name: after.get(name) for name in kept}
        read_everything(path, [*whole.episodes, episode(whole.robot, 99, 4)], touched)


# --- episodes that are not what they should be


def bad_array(draw: st.DrawFn, array: np.ndarray) -> Any:
    """An array that no dataset may take: not finite, of another shape, length or kind of number."""
    kinds = ["value", "longer", "shorter", "wider", "narrower", "flat", "scalar", "empty", "text", "complex", "objects"]
    kind = draw(st.sampled_from(kinds))
    if kind == "value":
        if array.dtype == np.uint8:
            return array.astype(draw(st.sampled_from([np.float32, np.int64, np.bool_])))
        wide = array.astype(np.float64)
        at = tuple(draw(st.integers(0, n - 1)) for n in wide.shape)
        wide[at] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e300, -3.5e38]))
        with np.errstate(over="ignore"):
            return wide if draw(st.booleans()) else wide.astype(np.float32)
    changed = {
        "longer": lambda: np.concatenate([array, array[:1]]),
        "shorter": lambda: array[:-1],
        "wider": lambda: np.concatenate([array, array], axis=1),
        "narrower": lambda: array[:, :-1],
        "flat": lambda: array.reshape(-1),
        "scalar": lambda: np.array(array.flat[0]),
        "empty": lambda: array[:0],
        "text": lambda: array.astype(str),
        "complex": lambda: array.astype(np.complex64),
        "objects": lambda: array.astype(object),
    }
    return changed[kind]()


@st.composite
def bad_episodes(draw: st.DrawFn, good: EpisodeData) -> EpisodeData:
    """A copy with one thing wrong."""
    bad = copy.copy(good)
    bad.observations = dict(good.observations)
    what = draw(st.sampled_from(["observation", "actions", "executed", "missing", "extra", "text", "seed"]))
    key = draw(st.sampled_from(sorted(bad.observations)))
    if what == "observation":
        bad.observations[key] = bad_array(draw, bad.observations[key])
    elif what in ("actions", "executed"):
        setattr(bad, what, bad_array(draw, good.actions))
    elif what == "missing":
        del bad.observations[key]
    elif what == "extra":
        bad.observations[draw(st.text(max_size=8))] = good.actions
    elif what == "text":
        field = draw(st.sampled_from(["task", "task_name"]))
        setattr(bad, field, draw(st.none() | st.just("") | st.integers() | st.binary() | st.just("open\ud800")))
    else:
        bad.seed = draw(st.none() | st.floats() | st.text() | st.integers(min_value=2**63) | st.just(0))  # type: ignore[assignment]
    return bad


@settings(settings.get_profile("fuzz"))
@given(data=st.data())
def test_a_bad_episode_is_refused_and_changes_nothing(data, whole, tmp_path, copied, digests) -> None:
    good = episode(whole.robot, 50, 4)
    with copied(whole.path, tmp_path) as path, whole.writer(path) as writer:
        before = digests(path)
        for _ in range(3):
            bad = data.draw(bad_episodes(good))
            with pytest.raises(DatasetError):
                writer.add(bad)
        assert digests(path) == before
        assert len(writer) == len(whole.episodes)
        writer.add(good)
        assert same(Dataset(path).episode(len(whole.episodes)), good)
