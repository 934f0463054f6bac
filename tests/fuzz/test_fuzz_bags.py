"""A damaged recording gives what is left of it, or a BagError; mending it loses nothing that could still be read."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.highlevel import AnyReader

from contracts import RobotContract
from contracts.robot import JOINT_STATE
from episodes.bag import BagError, BagReader, BagWriter
from episodes.convert import bag_to_dataset, dataset_to_bag
from episodes.data import DatasetError, EpisodeData
from episodes.dataset import Dataset, DatasetWriter
from episodes.messages import message_definition, message_type, serialize
from episodes.opening import open_episode
from episodes.repair import DAMAGED_SUFFIX, repair
from episodes.samples import STRING

LENGTH = 6
Found = Counter[tuple[str, int, bytes]]


def messages(path: Path) -> Found:
    """Every message that can be read, and how often."""
    return Counter((m.topic, m.log_time_ns, m.data) for m in BagReader(path).raw())


class Recordings:
    """A finished recording of two episodes, and the same one as a kill leaves it."""

    def __init__(self, directory: Path, robot: RobotContract) -> None:
        random = np.random.default_rng(0)
        features = robot.observation_features("image")
        with DatasetWriter(directory / "dataset", robot, "image") as writer:
            for seed in (1, 2):
                observations = {f.key: random.integers(0, 200, (LENGTH, *f.shape)).astype(f.dtype) for f in features}
                actions = random.uniform(-1, 1, (LENGTH, 4)).astype(np.float32)
                writer.add(EpisodeData(observations, actions, "open the drawer", "drawer-open", seed, True))
        self.dataset = Dataset(directory / "dataset")
        self.finished = dataset_to_bag(self.dataset, directory / "finished")
        self.torn = directory / "torn"
        with BagWriter(directory / "going", self._topics(), robot) as writer:
            for number, message in enumerate(BagReader(self.finished).raw()):
                writer.write(message.topic, message.data, message.log_time_ns, message.log_time_ns)
                if number % 7 == 0:
                    writer.flush()
            writer.flush()
            shutil.copytree(directory / "going", self.torn)

    def _topics(self) -> list[tuple[str, str, str]]:
        types = {message.topic: message.type for message in BagReader(self.finished).raw()}
        return [(topic, kind, message_definition(kind)) for topic, kind in types.items()]


@pytest.fixture(scope="module")
def recordings(small_robot, tmp_path_factory) -> Recordings:
    return Recordings(tmp_path_factory.mktemp("recordings"), small_robot)


def check_episodes(path: Path, robot: RobotContract) -> int:
    """Open every episode there is; returns how many could be."""
    opened = 0
    for index in range(3):
        try:
            recorded = open_episode(path, index)
        except (BagError, DatasetError) as error:
            assert str(error)
            continue
        data = recorded.data
        arrays = [data.actions, *data.observations.values()]
        assert all(len(array) == len(data) and np.isfinite(array).all() for array in arrays)
        opened += 1
    return opened


@settings(settings.get_profile("fuzz"))
@given(data=st.data(), kind=st.sampled_from(["finished", "torn"]))
def test_what_is_left_of_a_damaged_bag_is_read(
    data, kind, recordings, small_robot, tmp_path, copied, damage_files, digests
) -> None:
    template = getattr(recordings, kind)
    with copied(template, tmp_path) as path:
        touched = damage_files(data.draw, path)
        before = digests(path)
        try:
            found = messages(path)
            list(BagReader(path).messages())
        except BagError as error:
            assert str(path) in str(error)
            return
        check_episodes(path, small_robot)
        assert digests(path) == before, "reading changed the recording"
        files = [file for file in template.glob("*.mcap") if path / file.name not in touched]
        for file in files:
            assert messages(file) <= found, "a file that was not touched is read in full"
        data_of = Counter(data for _, _, data in messages(template).elements())
        copies = 1 + len(touched)  # one file may stand in the place of another
        assert {data for _, _, data in found} <= set(data_of), "what is read was written"
        assert found.total() <= copies * data_of.total()


def read_by_rosbags(path: Path) -> int:
    """How many messages rosbags reads, each decoded if its type is known."""
    with AnyReader([path]) as reader:
        return sum(1 for _ in reader.messages())


@settings(settings.get_profile("fuzz"))
@given(data=st.data(), kind=st.sampled_from(["finished", "torn"]))
def test_mending_loses_nothing(data, kind, recordings, tmp_path, copied, damage_files, digests) -> None:
    recorded = messages(getattr(recordings, kind))
    with copied(getattr(recordings, kind), tmp_path) as path:
        touched = {file.name for file in damage_files(data.draw, path)}
        originals = {name: digest for name, digest in digests(path).items() if name.endswith((".mcap", ".yaml"))}
        try:
            readable = messages(path)
            report = repair(path)
        except BagError as error:
            assert str(path) in str(error)
            after = set(digests(path).values())
            assert set(originals.values()) <= after, "what could not be mended is still there"
            return
        mended = messages(path)
        assert readable <= mended, "a message that could be read before cannot be read now"
        assert set(mended) <= set(recorded), "what is mended was never recorded"
        for file in getattr(recordings, kind).glob("*.mcap"):
            assert file.name in touched or messages(file) <= mended, "a file that was not touched lost something"
        after_names = digests(path)
        assert set(originals.values()) <= set(after_names.values()), "an original is gone"
        assert all(
            after_names.get(name) == digest
            or any(after_names[kept] == digest for kept in after_names if f"{name}{DAMAGED_SUFFIX}" in kept)
            for name, digest in originals.items()
        )
        again = repair(path)
        assert not again.actions, again
        assert again.messages == report.messages
        if report.messages:
            assert read_by_rosbags(path) == report.messages


# --- recordings that are whole, of robots that say nonsense

numbers = st.floats(-1, 1) | st.floats()
texts = st.text(st.characters(codec="utf-8"), max_size=12)


@st.composite
def joint_states(draw: st.DrawFn, names: list[str], time_ns: int) -> Any:
    """A JointState about these names, right or not."""
    if draw(st.booleans()):
        names = draw(st.permutations(names) | st.lists(st.sampled_from(names) | texts, max_size=6))
    count = draw(st.sampled_from([len(names)] * 4 + [0, 1, len(names) + 1]))
    positions = np.array(draw(st.lists(numbers, min_size=count, max_size=count)), dtype=np.float64)
    seconds, nanoseconds = draw(st.sampled_from([divmod(time_ns, 10**9)] * 4 + [(0, 0), (-(2**31), 2**32 - 1)]))
    stamp = message_type("builtin_interfaces/msg/Time")(seconds, nanoseconds)
    header = message_type("std_msgs/msg/Header")(stamp, draw(texts))
    return message_type(JOINT_STATE)(header, list(names), positions, np.empty(0), np.empty(0))


@st.composite
def descriptions(draw: st.DrawFn, robot: RobotContract) -> str:
    """What the `episode` topic says, right or not."""
    right: dict[str, Any] = {
        "robot": robot.name,
        "task": "open the drawer",
        "task_name": "drawer-open",
        "seed": 3,
        "episode": 0,
        "observation_set": "state",
    }
    nonsense = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.lists(st.integers(), max_size=2)
    nonsense |= st.just("\ud800")
    for key in draw(st.lists(st.sampled_from(sorted(right)), max_size=2)):
        right[key] = draw(nonsense | st.just("image"))
    text = json.dumps(right)
    return draw(st.sampled_from([text, text, text, text[:-1], "[]", "", "NaN", "[" * 5000]))


@settings(settings.get_profile("fuzz"))
@given(data=st.data())
def test_recorded_nonsense_is_left_out(data, small_robot, tmp_path, copied) -> None:
    """Nothing of it becomes training data, and nothing else is lost: every message can still be read."""
    robot, name = small_robot, small_robot.name
    channels = [channel.name for channel in robot.command.channels]
    sensor = next(s for s in robot.sensors if s.name == "gripper")
    kinds = {"episode": STRING, "applied_command": JOINT_STATE, sensor.topic: JOINT_STATE}
    bag, dataset = tmp_path / "bag", tmp_path / "dataset"
    for path in (bag, dataset):
        shutil.rmtree(path, ignore_errors=True)
    written: Found = Counter()
    topics = [(f"/{name}/{topic}", kind, message_definition(kind)) for topic, kind in kinds.items()]
    with BagWriter(bag, topics, robot) as writer:

        def write(topic: str, content: bytes, time_ns: int) -> None:
            if data.draw(st.integers(0, 9)) == 0:
                content = data.draw(st.binary(max_size=40) | st.just(content[:-3]))
            writer.write(f"/{name}/{topic}", content, time_ns, time_ns)
            written[f"/{name}/{topic}", time_ns, content] += 1

        description = message_type(STRING)(data=data.draw(descriptions(robot)))
        write("episode", serialize(description, STRING), 10**9)
        for tick in range(data.draw(st.integers(1, 4))):
            time_ns = 10**9 + tick * 12_500_000
            state = data.draw(joint_states(list(sensor.fields), time_ns))
            write(sensor.topic, serialize(state, JOINT_STATE), time_ns)
            write("applied_command", serialize(data.draw(joint_states(channels, time_ns)), JOINT_STATE), time_ns)
    assert messages(bag) == written
    assert not repair(bag).actions
    check_episodes(bag, robot)
    try:
        report = bag_to_dataset(bag, dataset)
    except (BagError, DatasetError) as error:
        assert str(error)
        return
    assert report.added + len(report.skipped) <= 1
    for index in range(report.added):
        added = Dataset(dataset).episode(index)
        assert all(math.isfinite(number) for number in added.actions.flat)


def test_whole_recordings_open(recordings, small_robot) -> None:
    """Otherwise the others would pass by refusing everything."""
    assert check_episodes(recordings.finished, small_robot) == 2
    assert messages(recordings.torn) == messages(recordings.finished)
    assert check_episodes(recordings.torn, small_robot) == 2
