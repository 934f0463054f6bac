"""Where things lie in a LeRobotDataset v3.0, and what its info.json says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from contracts.feature import Feature
from contracts.robot import RobotContract
from contracts.serialization import ContractError
from episodes.data import DatasetError

VERSION = "v3.0"
CHUNK_SIZE = 1000  # files in a directory
EPISODES_PER_INDEX_FILE = 50  # rows of meta/episodes/*/file-*.parquet: one such file is rewritten an episode
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
INDEX_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
INFO = Path("meta/info.json")
TASKS = Path("meta/tasks.parquet")
STATS = Path("meta/stats.json")
EXECUTED = "action.executed"
SCALARS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
MAX_META_BYTES = 50_000_000
UPGRADE = (
    "LeRobot 0.4 or newer makes v3.0 of v2.1: python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=NAME "
    "(in 0.4: lerobot.datasets.v30.convert_dataset_v21_to_v30)"
)


class StoredFeature(msgspec.Struct, kw_only=True):
    """A feature as info.json describes it."""

    dtype: str
    shape: tuple[int, ...]
    names: list[str] | dict[str, Any] | None = None  # a dict only in what others wrote


class Provenance(msgspec.Struct, kw_only=True):
    """What we add to LeRobot's info.json: whose data it is."""

    robot: dict[str, Any]
    observation_set: str


class Info(msgspec.Struct, kw_only=True):
    """meta/info.json; keys that we do not know are left alone."""

    codebase_version: str
    fps: int
    robot_type: str | None = None
    total_episodes: int
    total_frames: int
    total_tasks: int
    chunks_size: int
    data_files_size_in_mb: int = 100
    video_files_size_in_mb: int = 200
    data_path: str
    video_path: str | None = None
    splits: dict[str, str] = {}
    features: dict[str, StoredFeature]
    visuomotor: Provenance | None = None


def data_file(root: Path, episode: int) -> Path:
    """The parquet file of one episode."""
    return root / DATA_PATH.format(chunk_index=episode // CHUNK_SIZE, file_index=episode % CHUNK_SIZE)


def index_file(root: Path, number: int) -> Path:
    """The `number`th file of episode rows."""
    return root / INDEX_PATH.format(chunk_index=number // CHUNK_SIZE, file_index=number % CHUNK_SIZE)


def frames_per_second(robot: RobotContract) -> int:
    """LeRobot's whole-number rate; the exact one stays in the robot's contract."""
    return max(1, round(robot.control_rate_hz))


def stored_features(robot: RobotContract, observation_set: str, executed: bool) -> dict[str, StoredFeature]:
    """Every feature of a dataset, in the order of its columns."""
    features = {f.key: _stored(f) for f in robot.observation_features(observation_set)}
    features["action"] = _stored(robot.action_feature)
    if executed:
        features[EXECUTED] = _stored(robot.action_feature)
    return features | {key: StoredFeature(dtype=dtype, shape=(1,)) for key, dtype in SCALARS.items()}


def _stored(feature: Feature) -> StoredFeature:
    dtype = "image" if feature.is_image else feature.dtype
    return StoredFeature(dtype=dtype, shape=feature.shape, names=list(feature.names))


def new_info(robot: RobotContract, observation_set: str, executed: bool) -> Info:
    """info.json of a dataset without an episode."""
    return Info(
        codebase_version=VERSION,
        fps=frames_per_second(robot),
        robot_type=robot.name,
        total_episodes=0,
        total_frames=0,
        total_tasks=0,
        chunks_size=CHUNK_SIZE,
        data_path=DATA_PATH,
        splits={"train": "0:0"},
        features=stored_features(robot, observation_set, executed),
        visuomotor=Provenance(robot=robot.to_dict(), observation_set=observation_set),
    )


def encode_info(info: Info) -> bytes:
    """info.json's text."""
    return msgspec.json.format(msgspec.json.encode(info), indent=2)


def read_info(root: Path) -> tuple[Info, RobotContract]:
    """info.json and the robot's contract in it.

    Raises:
        DatasetError: there is none, it is damaged, or it is not a dataset of this project in the layout v3.0.
    """
    path = root / INFO
    info = read_any_info(root)
    if info.visuomotor is None:
        raise DatasetError(
            f"{path}: has no entry 'visuomotor' (robot contract, observation set): not recorded by this project; "
            "`visuomotor convert DATASET OUTPUT --robot ROBOT` makes of it a dataset that can be learned from"
        )
    _check_layout(path, info)
    try:
        robot = RobotContract.from_dict(info.visuomotor.robot, source=f"{path}: visuomotor.robot")
        expected = stored_features(robot, info.visuomotor.observation_set, EXECUTED in info.features)
    except ContractError as error:
        raise DatasetError(str(error)) from None
    except ValueError as error:
        raise DatasetError(f"{path}: visuomotor.observation_set: {error}") from None
    if list(expected.items()) != list(info.features.items()):
        raise DatasetError(
            f"{path}: features do not fit its robot contract: {_first_difference(expected, info.features)}"
        )
    return info, robot


def read_any_info(root: Path) -> Info:
    """info.json of a LeRobotDataset v3.0, recorded by this project or by others.

    Raises:
        DatasetError: there is none, it is damaged, or of another version.
    """
    path = root / INFO
    try:
        info = msgspec.json.decode(read_bounded(path), type=Info)
    except FileNotFoundError:
        raise DatasetError(f"{path}: not there, so {root} is not a dataset (LeRobotDataset v3.0)") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise DatasetError(f"{path}: not the info.json of a LeRobotDataset v3.0: {error}") from None
    if info.codebase_version != VERSION:
        hint = f"; {UPGRADE}" if info.codebase_version.startswith("v2") else ""
        raise DatasetError(f"{path}: codebase_version is {info.codebase_version!r}; {VERSION!r} would be right{hint}")
    if info.fps <= 0 or min(info.total_episodes, info.total_frames, info.total_tasks) < 0:
        raise DatasetError(f"{path}: fps must be above 0 and totals not below 0")
    return info


def _check_layout(path: Path, info: Info) -> None:
    """Only the one layout that we write is read; templates of others are never followed."""
    wanted = {"chunks_size": CHUNK_SIZE, "data_path": DATA_PATH}
    for key, value in wanted.items():
        if getattr(info, key) != value:
            raise DatasetError(f"{path}: {key} is {getattr(info, key)!r}; {value!r} would be right")


def _first_difference(expected: dict[str, StoredFeature], found: dict[str, StoredFeature]) -> str:
    for key in [*expected, *found]:
        if expected.get(key) != found.get(key):
            return f"{key} is {found.get(key)}; {expected.get(key)} would be right"
    return f"their order is {list(found)}; {list(expected)} would be right"


def read_bounded(path: Path) -> bytes:
    """A metadata file's bytes. Raises DatasetError when it is far larger than metadata can be, OSError as usual."""
    if path.stat().st_size > MAX_META_BYTES:
        raise DatasetError(
            f"{path}: {path.stat().st_size} bytes is more than the {MAX_META_BYTES} that metadata may have"
        )
    return path.read_bytes()
