"""A recording as training data and a dataset as a recording."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from contracts.messages import sensor_fields
from contracts.robot import RobotContract, Sensor, load_robot
from episodes.bag import BagError, BagReader, BagWriter, Topic
from episodes.convert import bag_to_dataset, dataset_to_bag, recorded_topics
from episodes.data import DatasetError, EpisodeData
from episodes.dataset import Dataset, DatasetWriter
from episodes.messages import (
    deserialize,
    header_message,
    joint_state,
    message_definition,
    message_type,
    number_array,
    serialize,
)
from episodes.opening import convert, open_episode
from episodes.samples import (
    episode_message,
    image_message,
    sensor_message,
)

MS = 1_000_000
START = 5_000 * MS
STATE, BOOL, STRING = "sensor_msgs/msg/JointState", "std_msgs/msg/Bool", "std_msgs/msg/String"
DESCRIPTION = {
    "robot": "metaworld_sawyer",
    "task": "open it",
    "task_name": "open",
    "seed": 7,
    "observation_set": "image",
}
CHANNELS = ["ee_velocity_x", "ee_velocity_y", "ee_velocity_z", "gripper_effort"]


class Recorder:
    """Writes a robot's messages with chosen stamps; `at` is in ms after the start."""

    def __init__(self, path: Path, robot: RobotContract, namespaces: tuple[str, ...] = ()) -> None:
        self.robot = robot
        topics = recorded_topics(robot, robot.observation_features("image"))
        topics.append(Topic(f"/{robot.name}/controller_state", STRING, message_definition(STRING)))
        home, namespaces = f"/{robot.name}/", namespaces or (f"/{robot.name}",)
        self.namespace = f"{namespaces[0]}/"
        moved = {t.name.replace(home, f"{n}/"): t for n in namespaces for t in topics}
        self.writer = BagWriter(path, [topic._replace(name=name) for name, topic in moved.items()], robot)
        self.now = START
        self.off_ms = 0.0  # by which the robot's clock is ahead
        self.also: list[Sensor] = []  # sensors that speak besides those of the image set

    def raw(self, topic: str, message: Any, kind: str) -> None:
        self.now += 1
        self.writer.write(
            topic if topic.startswith("/") else self.namespace + topic, serialize(message, kind), self.now, self.now
        )

    def episode(self, **changes: object) -> None:
        self.raw("episode", episode_message({**DESCRIPTION, **changes}), STRING)

    def sense(self, at: float, value: float) -> None:
        """Every sensor of the image set says `value` (its camera a picture of it)."""
        stamp = START + int((at + self.off_ms) * MS)
        for other in self.also:
            message = sensor_message(self.robot, other, dict.fromkeys(other.fields, value), stamp)
            self.raw(other.topic, message, other.type)
        pose, grip = self.robot.sensors[1:3]
        self.raw(pose.topic, sensor_message(self.robot, pose, dict.fromkeys(pose.fields, value), stamp), pose.type)
        self.raw(grip.topic, sensor_message(self.robot, grip, {"gripper_opening": value}, stamp), grip.type)
        self.see(at, value)

    def see(self, at: float, value: float) -> None:
        camera = self.robot.cameras[0]
        picture = np.full((camera.height, camera.width, 3), value, dtype=np.uint8)
        stamp = START + int((at + self.off_ms) * MS)
        self.raw(camera.topic, image_message(camera, picture, stamp), "sensor_msgs/msg/Image")

    def apply(self, at: float, values: list[float], names: list[str] = CHANNELS) -> None:
        self.raw("applied_command", joint_state(START + int(at * MS), "", names, np.array(values)), STATE)

    def success(self, value: bool) -> None:
        self.raw("success", message_type(BOOL)(data=value), BOOL)


@pytest.fixture
def recorder(tmp_path: Path, robot: RobotContract) -> Recorder:
    return Recorder(tmp_path / "bag", robot)


def _converted(recorder: Recorder, tmp_path: Path) -> tuple[Any, Dataset]:
    recorder.writer.close()
    report = bag_to_dataset(tmp_path / "bag", tmp_path / "dataset")
    return report, Dataset(tmp_path / "dataset")


@pytest.mark.parametrize("observation_set", ["state", "image"])
def test_dataset_to_bag_and_back_is_exact(
    observation_set: str, make_dataset: Callable, same_episode: Callable, tmp_path: Path
) -> None:
    dataset = Dataset(make_dataset(observation_set, (5, 40, 1)))
    report = bag_to_dataset(dataset_to_bag(dataset, tmp_path / "bag"), tmp_path / "back")
    assert (report.added, report.skipped, report.dropped, report.stale, report.problems) == (3, [], 0, 0, [])
    back = Dataset(tmp_path / "back")
    assert back.robot == dataset.robot
    assert back.episodes == dataset.episodes
    for index in range(3):
        assert same_episode(back.episode(index), dataset.episode(index))
    again = bag_to_dataset(tmp_path / "bag", tmp_path / "back")
    assert (again.added, again.present) == (0, 3)


@pytest.mark.parametrize(
    "fields",
    [
        ("FL_thigh_joint", "FR_hip_joint"),
        ("FL_thigh_joint.velocity", "FR_hip_joint.velocity"),
        ("FL_thigh_joint", "FR_hip_joint", "FL_thigh_joint.velocity", "FR_hip_joint.velocity"),
    ],
)
def test_a_dataset_of_a_few_joints_goes_to_a_bag_and_back(
    fields: tuple[str, ...], same_episode: Callable, tmp_path: Path
) -> None:
    """A live JointState must have all of the sensor's joints; such a bag has those that the dataset has."""
    sets = {"few": {"observation.state": list(fields)}}
    go2 = RobotContract.from_dict({**load_robot("go2").to_dict(), "observation_sets": sets})
    random = np.random.default_rng(0)
    seen = {"observation.state": random.normal(size=(4, len(fields))).astype(np.float32)}
    actions = random.normal(size=(4, 12)).astype(np.float32)
    with DatasetWriter(tmp_path / "d", go2, "few") as writer:
        writer.add(EpisodeData(seen, actions, "walk", "flat", 0, True))
    bag_to_dataset(dataset_to_bag(Dataset(tmp_path / "d"), tmp_path / "bag"), tmp_path / "back")
    assert same_episode(Dataset(tmp_path / "back").episode(0), Dataset(tmp_path / "d").episode(0))


def test_a_real_robots_recording_is_training_data_too(
    robot: RobotContract, make_episode: Callable, same_episode: Callable, tmp_path: Path
) -> None:
    """Nobody says what a real robot applied: its rows are the commands that it was sent."""
    real = RobotContract.from_dict({**robot.to_dict(), "body": "external"})
    with DatasetWriter(tmp_path / "d", real, "state") as writer:
        writer.add(make_episode("state", 0))
    bag = dataset_to_bag(Dataset(tmp_path / "d"), tmp_path / "bag")
    assert f"/{real.name}/{real.command.topic}" in {m.topic for m in BagReader(bag).raw()}
    bag_to_dataset(bag, tmp_path / "back")
    assert same_episode(Dataset(tmp_path / "back").episode(0), Dataset(tmp_path / "d").episode(0))


class RealRecorder(Recorder):
    """What a recorder hears of a real robot, whose commands are arrays and of which nobody says how it went."""

    def __init__(self, path: Path, robot: RobotContract, namespaces: tuple[str, ...] = ()) -> None:
        super().__init__(path, RobotContract.from_dict({**robot.to_dict(), "body": "external"}), namespaces)
        self.episodes = 0

    def work(self, *modes: str, commands: float = 0.1, faster: float = 1.0) -> None:
        """A short episode; every run numbers its own from 0."""
        if self.episodes:
            self.writer.split()
        self.now += 1000 * MS
        self.episode(seed=self.episodes, episode=self.episodes)
        self.episodes += 1
        for mode in modes:
            self.raw("controller_state", message_type(STRING)(data=mode), STRING)
        self.drive(commands, faster)

    def drive(self, commands: float, faster: float = 1.0) -> None:
        for _ in range(3):
            self.now += round(self.robot.control_period_s * 1e9 / faster)
            self.sense((self.now - START) / MS, float(self.episodes))
            self.raw(self.robot.command.topic, number_array(np.full(4, commands)), self.robot.command.type)


def test_each_run_of_a_real_robot_adds_its_episodes_once(robot: RobotContract, tmp_path: Path) -> None:
    for day, command in (("monday", 0.1), ("tuesday", 0.2)):
        recorder = RealRecorder(tmp_path / day, robot)
        for episode in range(2):
            recorder.work(commands=command + episode / 2)
        recorder.writer.close()
    for day, added in (("monday", 2), ("tuesday", 2), ("tuesday", 0), ("monday", 0)):
        report = bag_to_dataset(tmp_path / day, tmp_path / "dataset")
        assert (report.added, report.present, report.skipped) == (added, 2 - added, [])
    dataset = Dataset(tmp_path / "dataset")
    assert [e.seed for e in dataset.episodes] == [0, 1, 2, 3]
    assert [float(dataset.episode(i).actions[0, 0]) for i in range(4)] == pytest.approx([0.1, 0.6, 0.2, 0.7])


def test_another_episode_of_a_simulated_scene_is_not_called_present(
    robot: RobotContract, make_episode: Callable, tmp_path: Path
) -> None:
    """Another policy met the same scene; what a seed reproduces must stay one episode."""
    episode = make_episode("state", 0)
    for name in ("one", "other"):
        with DatasetWriter(tmp_path / name, robot, "state") as writer:
            writer.add(episode)
        dataset_to_bag(Dataset(tmp_path / name), tmp_path / f"{name}_bag")
        episode.actions = episode.actions * np.float32(0.5)
    report = bag_to_dataset(tmp_path / "other_bag", tmp_path / "one")
    assert (report.added, report.present) == (0, 0)
    assert f"already has an episode of 'drawer-open' with seed {episode.seed}" in report.skipped[0]


def test_unjudged_episodes_of_a_real_robot_are_learned_from_when_told_so(robot: RobotContract, tmp_path: Path) -> None:
    recorder = RealRecorder(tmp_path / "bag", robot)
    recorder.work()
    recorder.work("stopped", "run", "hold", "run")  # reset from what came before
    recorder.work("run", "hold", "stopped")
    recorder.work()
    recorder.success(False)
    recorder.writer.close()
    for assume, successes in ((False, [False] * 4), (True, [True, True, False, False])):
        said = convert(tmp_path / "bag", tmp_path / f"dataset_{assume}", assume_success=assume)
        assert [e.success for e in Dataset(tmp_path / f"dataset_{assume}").episodes] == successes
        assert "of 3 nobody said, on the topic `success`, how they ended" in said
        assert ("--assume-success" in said) == (not assume)


def test_what_comes_after_success_is_not_learned(robot: RobotContract, tmp_path: Path) -> None:
    """The arm is brought back, and the next episode has not been announced yet."""
    recorder = RealRecorder(tmp_path / "bag", robot)
    recorder.work(commands=0.1)
    recorder.success(True)
    recorder.drive(-0.5)
    recorder.writer.close()
    bag_to_dataset(tmp_path / "bag", tmp_path / "dataset")
    episode = Dataset(tmp_path / "dataset").episode(0)
    assert episode.success
    assert episode.actions[:, 0].tolist() == pytest.approx([0.1] * 3)


@pytest.mark.parametrize(
    ("off_s", "message"), [(0.4, "after it was recorded"), (-0.3, "before it was recorded"), (0.0, None)]
)
def test_stamps_of_another_clock_than_the_recorders_are_refused(
    off_s: float, message: str | None, robot: RobotContract, tmp_path: Path
) -> None:
    """Regression: every row held what was measured 0.4 s later, or one measurement all the time, without a word."""
    recorder = RealRecorder(tmp_path / "bag", robot)
    recorder.off_ms = off_s * 1e3
    recorder.work()
    recorder.writer.close()
    report = bag_to_dataset(tmp_path / "bag", tmp_path / "dataset")
    assert report.added == (message is None)
    if message is not None:
        assert message in report.skipped[0]
        assert f"{abs(off_s):.3g} s" in report.skipped[0]


def test_a_recording_of_another_namespace_is_training_data_too(
    robot: RobotContract, same_episode: Callable, tmp_path: Path
) -> None:
    """Its absolute topics are where the contract says, in each namespace."""
    joints, pose, *others = robot.sensors
    absolute = (joints, msgspec.structs.replace(pose, topic="/end_effector_pose"), *others)
    for name, namespaces in (("home", ()), ("elsewhere", ("/cell/left",))):
        recorder = RealRecorder(tmp_path / name, msgspec.structs.replace(robot, sensors=absolute), namespaces)
        recorder.work("run")
        recorder.success(True)
        recorder.writer.close()
        report = bag_to_dataset(tmp_path / name, tmp_path / f"{name}_dataset")
        assert (report.added, report.dropped, report.problems) == (1, 0, [])
    home, elsewhere = (Dataset(tmp_path / f"{name}_dataset").episode(0) for name in ("home", "elsewhere"))
    assert same_episode(home, elsewhere)
    assert same_episode(open_episode(tmp_path / "elsewhere", 0).data, elsewhere)
    assert "/cell/left/success" in {m.topic for m in BagReader(tmp_path / "elsewhere").raw()}


def test_of_two_robots_in_one_recording_each_learns_its_own(robot: RobotContract, tmp_path: Path) -> None:
    """As `ros2 bag record -a` has them: the second began while the first was at work."""
    recorder = RealRecorder(tmp_path / "bag", robot, ("/left", "/right"))
    recorder.episode(seed=0, episode=0)
    recorder.drive(0.1)
    recorder.namespace = "/right/"
    recorder.episode(seed=0, episode=0)
    recorder.drive(0.2)
    recorder.success(True)
    recorder.namespace = "/left/"
    recorder.drive(0.1)
    recorder.success(False)
    recorder.writer.close()
    report = bag_to_dataset(tmp_path / "bag", tmp_path / "dataset")
    assert (report.added, report.skipped) == (2, [])
    dataset = Dataset(tmp_path / "dataset")
    assert [e.success for e in dataset.episodes] == [False, True]
    assert [dataset.episode(i).actions[:, 0].tolist() for i in range(2)] == [
        pytest.approx([0.1] * 6),
        pytest.approx([0.2] * 3),
    ]


def test_an_arm_and_its_gripper_may_publish_on_one_topic(robot: RobotContract, tmp_path: Path) -> None:
    """Regression: the contract could not say so, and the messages of the one were bad ones of the other."""
    joints, pose, grip, *others = robot.sensors
    shared = (joints, pose, msgspec.structs.replace(grip, topic=joints.topic), *others)
    recorder = RealRecorder(tmp_path / "bag", msgspec.structs.replace(robot, sensors=shared))
    recorder.also = [joints]
    recorder.work()
    recorder.writer.close()
    report = bag_to_dataset(tmp_path / "bag", tmp_path / "dataset")
    assert (report.added, report.dropped, report.problems) == (1, 0, [])
    seen = Dataset(tmp_path / "dataset").episode(0).observations["observation.state"]
    np.testing.assert_array_equal(seen, np.ones((3, 4)))


def test_of_a_sensor_whose_topic_tells_of_other_joints_only_it_is_said_which(
    recorder: Recorder, tmp_path: Path
) -> None:
    recorder.episode()
    recorder.sense(0, 1)
    recorder.apply(1, [0.1, 0, 0, 0])
    recorder.writer.split()
    recorder.episode(seed=5)
    recorder.see(2, 1)
    recorder.raw("gripper_state", joint_state(START + 2 * MS, "", ["finger"], np.array([3.0])), STATE)
    recorder.apply(3, [0.1, 0, 0, 0])
    report, _ = _converted(recorder, tmp_path)
    assert (report.added, len(report.skipped)) == (1, 1)
    assert "none of the joints of 'gripper' came on its topic, but ['finger']" in report.problems


def test_commands_at_another_rate_than_control_are_refused(robot: RobotContract, tmp_path: Path) -> None:
    """They would be carried out faster, or slower, than they were shown."""
    recorder = RealRecorder(tmp_path / "bag", robot)
    for faster in (0.5, 0.95, 2.0):
        recorder.work(faster=faster)
    recorder.writer.close()
    report = bag_to_dataset(tmp_path / "bag", tmp_path / "dataset")
    assert report.added == 1
    assert "its commands come at 40 Hz" in report.skipped[0]
    assert "control_rate_hz, 80, would be right" in report.skipped[0]
    assert "160 Hz" in report.skipped[1]


def test_a_real_robot_that_fell_did_not_walk_as_asked(tmp_path: Path) -> None:
    """Of a real one nobody says that it fell, but its controller stops."""
    go2 = RobotContract.from_dict({**load_robot("go2").to_dict(), "body": "external"})
    joints, imu, _ = go2.sensors
    topics = recorded_topics(go2, go2.observation_features("proprioception"))
    topics.append(Topic("/go2/controller_state", STRING, message_definition(STRING)))
    found = {}
    for name, modes in {"walked": ("stand_up", "run"), "fell": ("stand_up", "run", "damp", "stopped")}.items():
        with BagWriter(tmp_path / name, topics, go2) as writer:
            described = {"task": "flat", "task_name": "flat", "seed": 0, "observation_set": "proprioception"}
            messages = [("episode", STRING, episode_message(described))]
            messages += [("controller_state", STRING, message_type(STRING)(data=mode)) for mode in modes]
            messages.append(("success", BOOL, message_type(BOOL)(data=True)))  # so far: it goes on
            for sensor in (joints, imu):
                values = dict.fromkeys(sensor.fields, 0.5)
                messages.append((sensor.topic, sensor.type, sensor_message(go2, sensor, values, START)))
            messages.append((go2.command.topic, go2.command.type, number_array(np.zeros(12))))
            for topic, kind, message in messages:
                writer.write(f"/go2/{topic}", serialize(message, kind), START, START)
        found[name] = open_episode(tmp_path / name, 0).data.success
    assert found == {"walked": True, "fell": False}


def test_commands_of_a_bag_are_those_executed(tmp_path: Path, robot: RobotContract, make_episode: Callable) -> None:
    episode = make_episode("state", 0)
    episode.executed = episode.actions * np.float32(0.5)
    with DatasetWriter(tmp_path / "d", robot, "state") as writer:
        writer.add(episode)
    bag_to_dataset(dataset_to_bag(Dataset(tmp_path / "d"), tmp_path / "bag"), tmp_path / "back")
    np.testing.assert_array_equal(Dataset(tmp_path / "back").episode(0).actions, episode.executed)


def test_each_tick_sees_the_newest_sample_at_or_before_it(recorder: Recorder, tmp_path: Path) -> None:
    recorder.episode()
    recorder.apply(0, [0.1, 0, 0, 0])  # before any sensor spoke: no row
    recorder.sense(10, 1)
    recorder.apply(10, [0.2, 0, 0, 0])  # a sample of the very moment counts
    recorder.sense(20, 2)
    recorder.sense(31, 3)  # arrives before the command, but was measured after it
    recorder.apply(30, [0.3, 0, 0, 0])
    recorder.see(24, 9)  # arrives late, but was taken before the next command's newest others
    recorder.apply(35, [0.4, 0, 0, 0])
    report, dataset = _converted(recorder, tmp_path)
    assert (report.added, report.dropped, report.stale) == (1, 1, 0)
    episode = dataset.episode(0)
    np.testing.assert_allclose(episode.actions[:, 0], [0.2, 0.3, 0.4], rtol=1e-6)
    np.testing.assert_array_equal(episode.observations["observation.state"][:, 0], [1, 2, 3])
    np.testing.assert_array_equal(episode.observations["observation.images.corner2"][:, 0, 0, 0], [1, 9, 3])
    assert (episode.task, episode.task_name, episode.seed, episode.success) == ("open it", "open", 7, False)


def test_commands_are_mapped_by_name_and_bad_ones_dropped(recorder: Recorder, tmp_path: Path) -> None:
    recorder.episode()
    recorder.sense(0, 1)
    recorder.apply(1, [4, 3, 2, 1], CHANNELS[::-1])
    recorder.apply(2, [1, 2, 3, float("nan")])
    recorder.apply(3, [1, 2, 3], CHANNELS[:3])
    recorder.apply(4, [1, 2, 3, 4], ["a", "b", "c", "d"])
    recorder.apply(5, [1, 2, 3, 4], [*CHANNELS[:3], CHANNELS[0]])
    recorder.raw("applied_command", message_type(BOOL)(data=True), BOOL)
    recorder.success(False)
    recorder.success(True)
    recorder.success(False)
    report, dataset = _converted(recorder, tmp_path)
    episode = dataset.episode(0)
    np.testing.assert_array_equal(episode.actions, [[1, 2, 3, 4]])
    assert episode.success
    assert report.dropped == 5
    assert len(report.problems) == 5
    assert "not finite" in report.problems[0]


def test_bad_sensor_samples_are_left_out_and_old_ones_counted(recorder: Recorder, tmp_path: Path) -> None:
    recorder.episode()
    recorder.sense(0, 1)
    recorder.apply(1, [0.1, 0, 0, 0])
    recorder.raw("gripper_state", joint_state(START + 5 * MS, "", ["gripper_opening"], np.array([np.nan])), STATE)
    recorder.raw("gripper_state", joint_state(START + 6 * MS, "", ["other"], np.array([3.0])), STATE)
    camera = recorder.robot.cameras[0]
    wrong = image_message(camera, np.zeros((camera.height, 4, 3), dtype=np.uint8), START + 7 * MS)
    recorder.raw(camera.topic, wrong, "sensor_msgs/msg/Image")
    recorder.apply(10, [0.2, 0, 0, 0])
    recorder.apply(1000, [0.3, 0, 0, 0])  # the sensors have been silent for a second
    report, dataset = _converted(recorder, tmp_path)
    episode = dataset.episode(0)
    np.testing.assert_array_equal(episode.observations["observation.state"], np.ones((3, 4)))
    assert (report.added, report.stale, report.dropped) == (1, 1, 0)
    assert len(report.problems) == 2, "other joints on the topic are none"


@pytest.mark.parametrize("index", [-1, 3])
def test_an_episode_that_is_not_there_cannot_be_opened(
    index: int, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    dataset = make_dataset("state")
    with pytest.raises(DatasetError, match=f"has no episode {index}; it has 0 to 2"):
        open_episode(dataset, index)
    with pytest.raises(BagError, match=f"has 3 episodes .*, no episode {index}"):
        open_episode(dataset_to_bag(Dataset(dataset), tmp_path / "bag"), index)


def test_converting_says_how_many_periods_were_dropped_or_stale(recorder: Recorder, tmp_path: Path) -> None:
    recorder.episode()
    for at in (0, 1):
        recorder.apply(at, [0.1, 0, 0, 0])  # before any sensor spoke
    recorder.sense(2, 1)
    recorder.apply(2, [0.2, 0, 0, 0])
    for at in (1000, 1010, 1020):
        recorder.apply(at, [0.3, 0, 0, 0])  # the sensors have been silent for a second
    recorder.writer.close()
    said = convert(tmp_path / "bag", tmp_path / "dataset")
    assert "2 control periods left out" in said
    assert "3 control periods kept whose newest sample was older" in said


def test_converting_what_is_whole_says_nothing_of_periods(make_bag: Callable[..., Path], tmp_path: Path) -> None:
    said = convert(make_bag("state"), tmp_path / "dataset")
    assert said == f"dataset: {tmp_path / 'dataset'}: 3 episodes added, 0 were there already"


def test_a_picture_of_another_frame_is_left_out(recorder: Recorder, tmp_path: Path) -> None:
    """Another camera took it; live, the policy node refuses it too."""
    recorder.episode()
    recorder.sense(0, 1)
    camera = recorder.robot.cameras[0]
    wrong = image_message(camera, np.full((camera.height, camera.width, 3), 5, dtype=np.uint8), START + 1)
    wrong.header.frame_id = "other"
    recorder.raw(camera.topic, wrong, "sensor_msgs/msg/Image")
    recorder.apply(10, [0.2, 0, 0, 0])
    report, dataset = _converted(recorder, tmp_path)
    assert (dataset.episode(0).observations["observation.images.corner2"] == 1).all()
    assert "frame 'other', not 'corner2'" in report.problems[0]


def test_a_padded_image_is_read(recorder: Recorder, tmp_path: Path) -> None:
    """A camera driver may end each row with bytes that are no picture."""
    recorder.episode()
    recorder.sense(0, 1)
    camera = recorder.robot.cameras[0]
    message = image_message(camera, np.full((camera.height, camera.width, 3), 5, dtype=np.uint8), START + 1)
    padded = np.full((camera.height, camera.width * 3 + 2), 99, dtype=np.uint8)
    padded[:, :-2] = 5
    message = type(message)(
        message.header, message.height, message.width, message.encoding, 0, camera.width * 3 + 2, padded.reshape(-1)
    )
    recorder.raw(camera.topic, message, "sensor_msgs/msg/Image")
    recorder.apply(10, [0.2, 0, 0, 0])
    _, dataset = _converted(recorder, tmp_path)
    assert (dataset.episode(0).observations["observation.images.corner2"] == 5).all()


def test_an_unusable_episode_is_skipped_with_its_reason(recorder: Recorder, tmp_path: Path) -> None:
    recorder.episode(seed=1)
    recorder.writer.split()
    recorder.episode(seed=None)
    recorder.sense(0, 1)
    recorder.apply(1, [0.1, 0, 0, 0])
    recorder.writer.split()
    recorder.episode(seed=3)
    recorder.sense(50, 1)
    recorder.apply(51, [0.1, 0, 0, 0])
    report, dataset = _converted(recorder, tmp_path)
    assert [e.seed for e in dataset.episodes] == [3]
    assert len(report.skipped) == 2
    assert "episode 0: has no control period" in report.skipped[0]
    assert "episode 1: its description has no task_name and seed" in report.skipped[1]


def test_a_torn_recording_converts_as_far_as_it_goes(make_bag: Callable[..., Path], tmp_path: Path) -> None:
    path = make_bag("state", (30, 600))
    file = path / f"{path.name}_1.mcap"
    file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2])
    report = bag_to_dataset(path, tmp_path / "out")
    assert report.added == 2
    assert 0 < Dataset(tmp_path / "out").episodes[1].length < 600
    assert "cut off" in report.problems[0]


def test_a_recording_that_says_too_little_is_refused(tmp_path: Path, robot: RobotContract) -> None:
    topics = recorded_topics(robot, robot.observation_features("state"))
    with BagWriter(tmp_path / "a", topics) as writer:
        text = serialize(message_type(STRING)(data=json.dumps({"seed": 1})), STRING)
        writer.write(f"/{robot.name}/episode", text, 1, 1)
    with pytest.raises(BagError, match="name the robot"):
        bag_to_dataset(tmp_path / "a", tmp_path / "out")
    with pytest.raises(BagError, match="observation set"):
        bag_to_dataset(tmp_path / "a", tmp_path / "out", robot=robot)
    with BagWriter(tmp_path / "b", topics, robot):
        pass
    with pytest.raises(BagError, match="no episode"):
        bag_to_dataset(tmp_path / "b", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_imu_is_read_as_it_was_written() -> None:
    go2 = load_robot("go2")
    imu = next(s for s in go2.sensors if s.name == "imu")
    values = dict(zip(imu.fields, (0.0, 0.6, 0.0, 0.8, 0.1, 0.2, 0.3, 1.0, 2.0, 9.81), strict=True))
    written = serialize(sensor_message(go2, imu, values, START), imu.type)
    assert sensor_fields(deserialize(written, imu.type), imu) == (imu.fields, tuple(values.values()))


@pytest.mark.parametrize(
    ("part", "spoil", "said"),
    [
        ("imu", lambda m: setattr(m.orientation, "w", 0.0), "a quaternion of length 0 is no orientation"),
        ("imu", lambda m: m.orientation_covariance.__setitem__(0, -1.0), "gives no orientation"),
        ("imu", lambda m: setattr(m.header, "frame_id", "base"), "frame 'base', not"),
        ("imu", lambda m: setattr(m.angular_velocity, "x", 1e300), "not finite in 32 bits"),
        ("joint_states", lambda m: m.name.__setitem__(0, m.name[1]), "a joint stands twice"),
        ("joint_states", lambda m: m.name.__setitem__(0, "tail"), "['FL_hip_joint', 'FL_hip_joint.velocity'] missing"),
        ("velocity_command", lambda m: setattr(m.linear, "z", np.nan), "nan"),
    ],
)
def test_what_a_live_robot_refuses_is_no_training_data(
    part: str, spoil: Callable[[Any], object], said: str, tmp_path: Path
) -> None:
    go2 = load_robot("go2")
    (feature,) = features = go2.observation_features("proprioception")
    with BagWriter(tmp_path / "bag", recorded_topics(go2, features), go2) as writer:

        def write(topic: str, kind: str, message: Any, stamp: int) -> None:
            writer.write(f"/go2/{topic}", serialize(message, kind), stamp, stamp)

        def sense(sensor: Sensor, shift: float, stamp: int, spoil: Callable[[Any], object] | None = None) -> None:
            values = {name: shift + i for i, name in enumerate(sensor.fields)}
            if sensor.name == "imu":
                values |= dict(zip(sensor.fields, (0.0, 0.0, 0.0, 1.0), strict=False))
            message = sensor_message(go2, sensor, values, stamp)
            if spoil is not None:
                spoil(message)
            write(sensor.topic, sensor.type, message, stamp)

        description = {"task": "flat", "task_name": "flat", "seed": 3, "observation_set": "proprioception"}
        write("episode", STRING, episode_message(description), START)
        for tick in range(2):
            stamp = START + 20 * MS * tick
            for sensor in go2.sensors:
                sense(sensor, 100.0 * tick, stamp, spoil if tick and sensor.name == part else None)
            write("applied_command", STATE, joint_state(stamp + 1, "", list(go2.joint_names), np.zeros(12)), stamp + 1)
    report = bag_to_dataset(tmp_path / "bag", tmp_path / "dataset")
    assert [said in problem for problem in report.problems] == [True, False]  # and that pushes are not known
    seen = Dataset(tmp_path / "dataset").episode(0).observations["observation.state"]
    spoiled = {name for sensor in go2.sensors if sensor.name == part for name in sensor.fields}
    for name, (before, after) in zip(feature.names, seen.T, strict=True):
        assert (before == after) == (name in spoiled or name in go2.orientation_fields), name


def test_a_walk_holds_velocities_what_was_asked_for_and_what_pushed(tmp_path: Path) -> None:
    """Silence, or none for longer than its time-out, is a request of 0; success is not to have fallen."""
    go2 = load_robot("go2")
    joints, imu, asked = go2.sensors
    wrench, half = "geometry_msgs/msg/WrenchStamped", asked.timeout_s / 2
    (feature,) = features = go2.observation_features("proprioception")
    kinds = [*recorded_topics(go2, features), ("/go2/applied_push", wrench, message_definition(wrench))]
    with BagWriter(tmp_path / "bag", kinds, go2) as writer:

        def write(topic: str, kind: str, message: Any, stamp: int) -> None:
            writer.write(f"/go2/{topic}", serialize(message, kind), stamp, stamp)

        description = {"task": "flat", "task_name": "flat", "seed": 3, "observation_set": "proprioception"}
        write("episode", STRING, episode_message(description), START)
        for tick, request in enumerate((None, 0.7, None, None, 0.2)):  # a quarter of a second apart
            stamp = START + round(tick * half * 1e9)
            measured = {name: float(i + 100 * tick) for i, name in enumerate(joints.fields)}
            write(joints.topic, joints.type, sensor_message(go2, joints, measured, stamp), stamp)
            write(imu.topic, imu.type, sensor_message(go2, imu, dict.fromkeys(imu.fields, 0.5), stamp), stamp)
            if request is not None:
                values = dict(zip(asked.fields, (request, 0.0, -request), strict=True))
                write(asked.topic, asked.type, sensor_message(go2, asked, values, stamp), stamp)
            moment = stamp + 1
            write("applied_command", STATE, joint_state(moment, "", list(go2.joint_names), np.zeros(12)), moment)
            if tick == 2:
                continue  # this period's push was lost: it is none, and not the one before
            vector = message_type("geometry_msgs/msg/Vector3")
            acting = message_type("geometry_msgs/msg/Wrench")(vector(0.1 * tick, 0.0, 0.0), vector(0.0, 0.0, 0.0))
            write("applied_push", wrench, message_type(wrench)(header_message(moment, "world"), acting), moment)
        write("success", BOOL, message_type(BOOL)(data=False), moment)
    data = open_episode(tmp_path / "bag", 0).data
    seen = dict(zip(feature.names, data.observations["observation.state"].T, strict=True))
    assert seen["command_x"].tolist() == pytest.approx([0.0, 0.7, 0.7, 0.0, 0.2])
    assert seen["command_yaw"].tolist() == pytest.approx([0.0, -0.7, -0.7, 0.0, -0.2])
    assert seen["FL_hip_joint"].tolist() == [0.0, 100.0, 200.0, 300.0, 400.0]
    assert seen["FL_hip_joint.velocity"].tolist() == [12.0, 112.0, 212.0, 312.0, 412.0]
    assert data.pushes is not None
    assert data.pushes.tolist() == [[0.1 * tick * (tick != 2), 0.0, 0.0] for tick in range(5)]
    assert not data.success


def test_episodes_of_one_file_keep_their_own_rows(recorder: Recorder, tmp_path: Path) -> None:
    """Another recorder may put several episodes into a file."""
    for seed, (begin, value) in enumerate(((0, 0.1), (100, 0.2))):
        recorder.episode(seed=seed)
        recorder.sense(begin, seed)
        for tick in range(1, 4):
            recorder.apply(begin + tick, [value, 0, 0, 0])
    report, dataset = _converted(recorder, tmp_path)
    assert (report.added, report.dropped) == (2, 0)
    for seed, value in enumerate((0.1, 0.2)):
        assert dataset.episode(seed).actions[:, 0].tolist() == pytest.approx([value] * 3)


def test_commands_that_were_recorded_late_stand_at_their_own_time(recorder: Recorder, tmp_path: Path) -> None:
    recorder.episode()
    recorder.sense(0, 1)
    for at in (10, 30, 20):
        recorder.apply(at, [at / 100, 0, 0, 0])
    _, dataset = _converted(recorder, tmp_path)
    assert dataset.episode(0).actions[:, 0].tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_a_real_robots_command_of_another_size_is_left_out(robot: RobotContract, tmp_path: Path) -> None:
    recorder = RealRecorder(tmp_path / "bag", robot)
    recorder.work()
    recorder.raw(recorder.robot.command.topic, number_array(np.zeros(3)), recorder.robot.command.type)
    recorder.writer.close()
    report = bag_to_dataset(tmp_path / "bag", tmp_path / "dataset")
    assert (report.added, report.dropped) == (1, 1)
    assert "3 elements; 4 would be right" in report.problems[0]
