"""Damaged and foreign files: an error that names the file, or exactly what was written; never anything else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from episodes.dataset import Dataset, DatasetError

DATA = "data/chunk-000/file-001.parquet"
INDEX = "meta/episodes/chunk-000/file-000.parquet"


def _everything(path: Path) -> list[Any]:
    dataset = Dataset(path)
    statistics = dataset.statistics()
    arrays = dataset.arrays()
    episodes = [dataset.episode(index) for index in range(len(dataset))]
    return [dataset.episodes, episodes, statistics, arrays]


def _edit_json(file: Path, edit: Callable[[Any], None]) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def _edit_table(file: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(edit(pq.read_table(file)), file)


def _replaced(name: str, values: list[Any], kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    def edit(table: pa.Table) -> pa.Table:
        return table.set_column(table.schema.get_field_index(name), name, pa.array(values, kind))

    return edit


def _no_robot(info: dict) -> None:
    del info["visuomotor"]


def _bad_robot(info: dict) -> None:
    info["visuomotor"]["robot"]["control_rate_hz"] = "fast"


def _other_names(info: dict) -> None:
    info["features"]["action"]["names"].reverse()


def _follow(info: dict) -> None:
    info["data_path"] = "../../etc/{chunk_index.__class__}"


VECTOR = pa.list_(pa.float32(), 4)
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no info": ("meta/info.json", Path.unlink, "not a dataset"),
    "info is no JSON": ("meta/info.json", lambda f: f.write_text("{"), "info.json"),
    "info is a list": ("meta/info.json", lambda f: f.write_text("[]"), "info.json"),
    "info nested too deep": ("meta/info.json", lambda f: f.write_text("[" * 100_000), "info.json"),
    "older version": ("meta/info.json", lambda f: _edit_json(f, lambda i: i.update(codebase_version="v2.1")), "v3.0"),
    "path that leads elsewhere": ("meta/info.json", lambda f: _edit_json(f, _follow), "data_path"),
    "somebody else's": ("meta/info.json", lambda f: _edit_json(f, _no_robot), "visuomotor"),
    "bad contract": ("meta/info.json", lambda f: _edit_json(f, _bad_robot), "control_rate_hz"),
    "other order of names": ("meta/info.json", lambda f: _edit_json(f, _other_names), "action"),
    "no data": (DATA, Path.unlink, "file-001"),
    "cut data": (DATA, lambda f: f.write_bytes(f.read_bytes()[:-40]), "file-001"),
    "data is text": (DATA, lambda f: f.write_text("hello"), "file-001"),
    "rows missing": (DATA, lambda f: _edit_table(f, lambda t: t.slice(1)), "has 6 rows"),
    "column missing": (DATA, lambda f: _edit_table(f, lambda t: t.drop_columns(["action"])), "action"),
    "column of another type": (DATA, lambda f: _edit_table(f, _replaced("action", [1] * 7, pa.int64())), "action"),
    "NaN": (DATA, lambda f: _edit_table(f, _replaced("action", [[float("nan")] * 4] * 7, VECTOR)), "not a finite"),
    "a gap": (DATA, lambda f: _edit_table(f, _replaced("action", [None] + [[0.0] * 4] * 6, VECTOR)), "gaps"),
    "no picture": (
        DATA,
        lambda f: _edit_table(f, _replaced("observation.images.corner2", [None] * 7, IMAGE)),
        "picture",
    ),
    "picture is no PNG": (
        DATA,
        lambda f: _edit_table(f, _replaced("observation.images.corner2", [{"bytes": b"GIF89a"}] * 7, IMAGE)),
        "not a readable PNG",
    ),
    "no rows": (INDEX, Path.unlink, "counts 3"),
    "rows cut": (INDEX, lambda f: f.write_bytes(f.read_bytes()[:200]), "file-000"),
    "row lost in the middle": (
        INDEX,
        lambda f: _edit_table(f, lambda t: pa.concat_tables([t.slice(0, 1), t.slice(2)])),
        "episode_index",
    ),
    "tasks lost": ("meta/tasks.parquet", Path.unlink, "tasks.parquet"),
    "stats damaged": ("meta/stats.json", lambda f: f.write_text("{}"), "delete the file"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_an_error_that_names_the_file(name: str, make_dataset: Callable[..., Path]) -> None:
    path = make_dataset("image", (3, 7, 2))
    relative, damage, message = DAMAGE[name]
    damage(path / relative)
    with pytest.raises(DatasetError, match=message) as caught:
        _everything(path)
    assert str(path) in str(caught.value)


def test_an_index_file_missing_between_others_is_noticed(make_dataset: Callable[..., Path]) -> None:
    path = make_dataset("state")
    shutil.copy(path / INDEX, path / "meta/episodes/chunk-000/file-002.parquet")
    with pytest.raises(DatasetError, match="file-001"):
        Dataset(path)


def test_statistics_are_worked_out_where_the_file_is_missing_or_old(make_dataset: Callable[..., Path]) -> None:
    path = make_dataset("state")
    wanted = Dataset(path).statistics()["action"]["q10"]
    _edit_json(path / "meta/stats.json", lambda stats: stats["index"].update(count=[1]))
    assert (Dataset(path).statistics()["action"]["q10"] == wanted).all()
    (path / "meta/stats.json").unlink()
    assert (Dataset(path).statistics()["action"]["q10"] == wanted).all()


@pytest.fixture
def reference(make_dataset: Callable[..., Path]) -> Path:
    """A dataset to make damaged copies of."""
    return make_dataset("image")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(data=st.data())
def test_flipped_and_cut_bytes_never_change_what_is_read(data: st.DataObject, reference: Path) -> None:
    before = _everything(reference)
    path = reference.with_name("copy")
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(reference, path, ignore=shutil.ignore_patterns(".cache"))
    name = data.draw(st.sampled_from([DATA, INDEX, "meta/tasks.parquet"]))
    content = bytearray((path / name).read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
            content[place] ^= 1 << data.draw(st.integers(0, 7))
    (path / name).write_bytes(content)
    try:
        after = _everything(path)
    except DatasetError as error:
        assert str(path) in str(error)
        return
    assert after[0] == before[0]
    for one, other in zip(before[1], after[1], strict=True):
        assert (one.actions == other.actions).all()
        assert all((one.observations[key] == other.observations[key]).all() for key in one.observations)
