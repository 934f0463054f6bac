"""Episodes as parquet tables, and back, in LeRobot v3's columns."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from episodes.data import DatasetError, EpisodeInfo
from episodes.files import atomic_file
from episodes.layout import CHUNK_SIZE, EPISODES_PER_INDEX_FILE, StoredFeature
from episodes.statistics import NAMES, Statistics

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PNG_COMPRESSION = 1  # of 9: more costs three times as long and saves a tenth
PANDAS_TASKS = {  # LeRobot looks a task up in the pandas index, which this describes
    "index_columns": ["task"],
    "column_indexes": [
        {
            "name": None,
            "field_name": None,
            "pandas_type": "unicode",
            "numpy_type": "object",
            "metadata": {"encoding": "UTF-8"},
        }
    ],
    "columns": [
        {
            "name": "task_index",
            "field_name": "task_index",
            "pandas_type": "int64",
            "numpy_type": "int64",
            "metadata": None,
        },
        {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
    ],
    "creator": {"library": "pyarrow", "version": pa.__version__},
    "pandas_version": "2.2.0",
}


def column_type(feature: StoredFeature) -> pa.DataType:
    """The column's type: image struct, plain scalar for shape [1], else a list of fixed size."""
    if feature.dtype == "image":
        return IMAGE_TYPE
    scalar = pa.float32() if feature.dtype == "float32" else pa.int64()
    return scalar if feature.shape == (1,) else pa.list_(scalar, feature.shape[0])


def to_column(feature: StoredFeature, values: np.ndarray) -> pa.Array:
    """[T, *shape] (or [T] of a scalar) as a parquet column; images as PNG."""
    if feature.dtype == "image":
        encoded = pa.array([_encode_png(image) for image in values], pa.binary())
        paths = pa.array([f"frame-{row:06d}.png" for row in range(len(values))], pa.string())
        return pa.StructArray.from_arrays([encoded, paths], fields=list(IMAGE_TYPE))
    if feature.shape == (1,):
        return pa.array(values.reshape(-1), column_type(feature))
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), feature.shape[0])


def from_column(path: Path, key: str, feature: StoredFeature, column: pa.ChunkedArray) -> np.ndarray:
    """The column as [T, *shape] ([T] of a LeRobot scalar). Raises DatasetError."""
    if column.type != column_type(feature):
        raise DatasetError(f"{path}: column {key!r} has type {column.type}; {column_type(feature)} would be right")
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # pyarrow keeps an empty column chunked
        array = pa.concat_arrays(array.chunks) if array.chunks else pa.array([], array.type)
    if feature.dtype == "image":
        return _decode_images(path, key, feature, array)
    flat = array if feature.shape == (1,) else array.flatten()
    if array.null_count or flat.null_count:
        raise DatasetError(f"{path}: column {key!r} has gaps (null); every row needs numbers")
    values = flat.to_numpy(zero_copy_only=False).reshape(len(array), *feature.shape)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        raise DatasetError(f"{path}: column {key!r}, row {row}: not a finite number")
    return values


def _encode_png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=PNG_COMPRESSION)
    return buffer.getvalue()


def _decode_images(path: Path, key: str, feature: StoredFeature, array: pa.StructArray) -> np.ndarray:
    """Every picture as uint8 [T, height, width, 3]; its size is checked before a pixel is unpacked."""
    height, width, _ = feature.shape
    images = np.empty((len(array), *feature.shape), dtype=np.uint8)
    for row, encoded in enumerate(array.field("bytes")):
        content = encoded.as_py()
        where = f"{path}: column {key!r}, row {row}"
        if content is None:
            raise DatasetError(f"{where}: holds no picture; PNG bytes would be right")
        try:
            with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
                if picture.size != (width, height) or picture.mode != "RGB":
                    size = f"{picture.size[0]}x{picture.size[1]} {picture.mode}"
                    raise DatasetError(f"{where}: the picture is {size}; {width}x{height} RGB would be right")
                images[row] = np.asarray(picture)
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(f"{where}: not a readable PNG ({error})") from None
    return images


def write_table(path: Path, table: pa.Table) -> None:
    """Write a parquet file, all or nothing, one row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        rows = max(1, table.num_rows)
        pq.write_table(table, file, compression="snappy", row_group_size=rows, write_page_checksum=True)


def read_table(path: Path, columns: list[str] | None = None, episode: int | None = None) -> pa.Table:
    """Read a parquet file, or its rows of one episode.

    Raises:
        DatasetError: it is missing, damaged, or lacks one of `columns`.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if columns is not None:
                missing = [column for column in columns if column not in file.schema_arrow.names]
                if missing:
                    raise DatasetError(f"{path}: has no column {missing}; it has {file.schema_arrow.names[:20]}")
            if episode is None:
                return file.read(columns=columns)
        only = [("episode_index", "=", episode)]  # skips row groups of other episodes
        return pq.read_table(path, columns=columns, filters=only, partitioning=None, page_checksum_verification=True)
    except DatasetError:
        raise
    except FileNotFoundError:
        raise DatasetError(f"{path}: not there, but the dataset's index names it") from None
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DatasetError(f"{path}: damaged or not a parquet file ({error})") from None


def tasks_table(tasks: list[str]) -> pa.Table:
    """meta/tasks.parquet: the index of every task, with its text as the index of a pandas frame."""
    schema = pa.schema(
        [("task_index", pa.int64()), ("task", pa.string())], metadata={"pandas": json.dumps(PANDAS_TASKS)}
    )
    return pa.table([pa.array(range(len(tasks)), pa.int64()), pa.array(tasks, pa.string())], schema=schema)


def episode_row(info: EpisodeInfo, start: int, statistics: dict[str, Statistics]) -> pa.Table:
    """One row of meta/episodes; `start` is the index of the episode's first frame in the dataset."""
    number = info.index // EPISODES_PER_INDEX_FILE
    whole = {
        "episode_index": info.index,
        "length": info.length,
        "data/chunk_index": info.index // CHUNK_SIZE,
        "data/file_index": info.index % CHUNK_SIZE,
        "dataset_from_index": start,
        "dataset_to_index": start + info.length,
        "meta/episodes/chunk_index": number // CHUNK_SIZE,
        "meta/episodes/file_index": number % CHUNK_SIZE,
        "seed": info.seed,
    }
    columns: dict[str, pa.Array] = {key: pa.array([value], pa.int64()) for key, value in whole.items()}
    columns["tasks"] = pa.array([[info.task]], pa.list_(pa.string()))
    columns["task_name"] = pa.array([info.task_name], pa.string())
    columns["success"] = pa.array([info.success], pa.bool_())
    for key, values in statistics.items():
        for name in NAMES:
            columns[f"stats/{key}/{name}"] = pa.array([values[name].tolist()], _statistics_type(values[name]))
    return pa.table(columns)


def _statistics_type(values: np.ndarray) -> pa.DataType:
    """A list for each axis of the figure."""
    kind = pa.from_numpy_dtype(values.dtype)
    for _ in range(values.ndim):
        kind = pa.list_(kind)
    return kind
