"""Files that are there in full or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from episodes.files import write_json


def test_json_is_written_into_folders_that_are_made(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "deep" / "v.json", {"a": [1, 2]})
    write_json(tmp_path / "new" / "deep" / "v.json", {"a": [3]})
    assert (tmp_path / "new" / "deep" / "v.json").read_text() == '{\n  "a": [\n    3\n  ]\n}\n'
    assert [entry.name for entry in (tmp_path / "new" / "deep").iterdir()] == ["v.json"]


def test_what_is_no_json_leaves_the_older_file(tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text("older")
    with pytest.raises(TypeError):
        write_json(tmp_path / "v.json", {"a": object()})
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("v.json", "older")]


def test_a_link_and_a_pipe_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    """As /dev/stdout is, which root could replace for the whole machine."""
    (tmp_path / "link").symlink_to("file")
    write_json(tmp_path / "link", [1])
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "file").read_text()) == [1]
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_json(tmp_path / "pipe", [2])
    assert json.loads(os.read(reader, 100)) == [2]
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
