"""The dataset as a foreign reader sees it: plain pyarrow, JSON and Pillow, nothing of ours."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from contracts.robot import RobotContract

STATISTICS = {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}


def test_info_says_what_lerobot_expects(make_dataset: Callable[..., Path], robot: RobotContract) -> None:
    info = json.loads((make_dataset() / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert info["fps"] == 80
    assert isinstance(info["fps"], int)
    assert (info["robot_type"], info["total_episodes"], info["total_frames"], info["total_tasks"]) == (
        robot.name,
        3,
        15,
        1,
    )
    assert info["chunks_size"] == 1000
    assert info["splits"] == {"train": "0:3"}
    assert info["data_path"] == "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    assert info["video_path"] is None
    features = info["features"]
    names = ["ee_x", "ee_y", "ee_z", "gripper_opening"]
    assert features["observation.state"] == {"dtype": "float32", "shape": [4], "names": names}
    assert features["observation.images.corner2"]["dtype"] == "image"
    assert features["observation.images.corner2"]["shape"] == [12, 10, 3]
    assert features["timestamp"] == {"dtype": "float32", "shape": [1], "names": None}
    for key in ("frame_index", "episode_index", "index", "task_index"):
        assert features[key] == {"dtype": "int64", "shape": [1], "names": None}


def test_data_columns_have_lerobots_types_and_values(make_dataset: Callable[..., Path], make_episode: Callable) -> None:
    path = make_dataset()
    tables = [pq.read_table(file) for file in sorted((path / "data").glob("*/*.parquet"))]
    assert tables[0].schema.field("action").type == pa.list_(pa.float32(), 4)
    assert tables[0].schema.field("timestamp").type == pa.float32()
    assert tables[0].schema.field("observation.images.corner2").type == pa.struct(
        [("bytes", pa.binary()), ("path", pa.string())]
    )
    whole = pa.concat_tables(tables)
    assert whole.column("index").to_pylist() == list(range(15))
    assert whole.column("episode_index").to_pylist() == [0] * 5 + [1] * 7 + [2] * 3
    assert whole.column("frame_index").to_pylist() == [*range(5), *range(7), *range(3)]
    assert whole.column("task_index").to_pylist() == [0] * 15
    frame = np.array(whole.column("frame_index"))
    np.testing.assert_allclose(np.array(whole.column("timestamp")), frame / 80, atol=1e-6)
    episode = make_episode("image", 1)
    np.testing.assert_array_equal(np.array(tables[1].column("action").to_pylist(), dtype=np.float32), episode.actions)
    png = tables[1].column("observation.images.corner2")[4].as_py()["bytes"]
    picture = Image.open(io.BytesIO(png))
    assert picture.format == "PNG"
    np.testing.assert_array_equal(np.asarray(picture), episode.observations["observation.images.corner2"][4])


def test_files_are_snappy_with_one_row_group_an_episode(make_dataset: Callable[..., Path]) -> None:
    files = sorted((make_dataset() / "data").glob("*/*.parquet"))
    assert [file.name for file in files] == ["file-000.parquet", "file-001.parquet", "file-002.parquet"]
    for file in files:
        content = pq.read_metadata(file)
        assert content.num_row_groups == 1
        assert content.row_group(0).column(0).compression == "SNAPPY"


def test_task_text_is_the_pandas_index(make_dataset: Callable[..., Path]) -> None:
    table = pq.read_table(make_dataset() / "meta/tasks.parquet")
    described = json.loads(table.schema.metadata[b"pandas"])
    assert described["index_columns"] == ["task"]
    assert {column["field_name"] for column in described["columns"]} == {"task_index", "task"}
    assert table.to_pylist() == [{"task_index": 0, "task": "open the drawer"}]


def test_episode_rows_are_complete_and_contiguous(make_dataset: Callable[..., Path]) -> None:
    rows = pq.read_table(make_dataset() / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["episode_index"] for row in rows] == [0, 1, 2]
    assert [row["length"] for row in rows] == [5, 7, 3]
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in rows] == [(0, 5), (5, 12), (12, 15)]
    assert [(row["data/chunk_index"], row["data/file_index"]) for row in rows] == [(0, 0), (0, 1), (0, 2)]
    assert {(row["meta/episodes/chunk_index"], row["meta/episodes/file_index"]) for row in rows} == {(0, 0)}
    assert [row["tasks"] for row in rows] == [["open the drawer"]] * 3
    for key, shape in {"action": (4,), "observation.images.corner2": (3, 1, 1), "timestamp": (1,)}.items():
        found = {name.rsplit("/", 1)[1] for name in rows[0] if name.startswith(f"stats/{key}/")}
        assert found == STATISTICS
        assert np.array(rows[1][f"stats/{key}/q90"]).shape == shape
        assert np.array(rows[1][f"stats/{key}/count"]).tolist() == [7]


def test_stats_json_covers_every_feature(make_dataset: Callable[..., Path]) -> None:
    path = make_dataset()
    info = json.loads((path / "meta/info.json").read_text())
    stats = json.loads((path / "meta/stats.json").read_text())
    assert set(stats) == set(info["features"])
    assert all(set(entry) == STATISTICS for entry in stats.values())
    assert np.array(stats["observation.images.corner2"]["mean"]).shape == (3, 1, 1)
    assert np.min(stats["observation.images.corner2"]["min"]) >= 0
    assert np.max(stats["observation.images.corner2"]["max"]) <= 1
    assert stats["index"]["count"] == [15]


def test_one_element_vectors_are_plain_scalars(tmp_path: Path, robot: RobotContract) -> None:
    from episodes.data import EpisodeData
    from episodes.dataset import Dataset, DatasetWriter

    plain = robot.to_dict()
    plain["observation_sets"]["grip"] = {"observation.state": ["gripper_opening"]}
    small = RobotContract.from_dict(plain)
    values = np.arange(3, dtype=np.float32)[:, None]
    with DatasetWriter(tmp_path / "d", small, "grip") as writer:
        writer.add(EpisodeData({"observation.state": values}, np.zeros((3, 4)), "grip", "grip", 0, True))
    table = pq.read_table(tmp_path / "d/data/chunk-000/file-000.parquet")
    assert table.schema.field("observation.state").type == pa.float32()
    np.testing.assert_array_equal(Dataset(tmp_path / "d").episode(0).observations["observation.state"], values)
