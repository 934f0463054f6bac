"""Files that are either there in full or not at all, and directories that one process at a time may write."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY_SUFFIX = ".tmp"
LOCK_NAME = ".lock"  # in a directory that one process at a time may write


class LockedError(OSError):
    """Another process holds the lock."""


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` once it is complete and on the disk; on an error it never does."""
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_atomic(path: Path, content: bytes) -> None:
    """Put `content` in place of `path`, all or nothing."""
    with atomic_file(path) as file:
        file.write(content)


def write_json(path: Path | str, data: Any) -> None:
    """Put `data` as indented JSON in place of `path`, all or nothing; makes the folders that it lies in.

    A link, or what is no ordinary file (/dev/stdout), is written to and never replaced.
    """
    path = Path(path)
    content = (json.dumps(data, indent=2) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_bytes(content)
    else:
        write_atomic(path, content)


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path` for a file in the making."""
    return path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")


def is_temporary(path: Path) -> bool:
    """True for a name that `temporary_name` made: after a crash such a file is only litter."""
    return path.name.startswith(".") and path.suffix == TEMPORARY_SUFFIX


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Lock:
    """An advisory lock on a file, held until `release` or until the process ends, however it ends."""

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        """Take the lock; `wait` for its holder, or raise LockedError at once."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(self._descriptor)
            raise LockedError(f"{path}: another process holds this lock") from None
        except BaseException:
            os.close(self._descriptor)
            raise

    def release(self) -> None:
        """Give the lock back; a second time does nothing."""
        if self._descriptor >= 0:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # closing alone would not, while a forked child has it open
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()
