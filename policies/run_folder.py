"""The folder of a training run: one process at a time, and nothing half written left in it."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from episodes.files import LOCK_NAME, Lock, LockedError, is_temporary
from policies.tensors import CheckpointError

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of file systems, such as Lustre mounted without them


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Let no other process train into a folder meanwhile, and clear away what one that was killed left half written.

    Each file is whole at any time, but two runs that save in turns would leave the weights of one beside the state of
    the other. Where the file system knows no locks, a warning says so and nothing else is done.

    Raises:
        CheckpointError: another process trains into it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = Lock(folder / LOCK_NAME)
    except LockedError:
        raise CheckpointError(
            f"{folder}: another process is training into this folder; wait for it to end, or choose another one"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(f"{folder}: {error.strerror}; see to it that nobody else trains into it", stacklevel=2)
        yield
        return
    with lock:
        for path in folder.rglob("*"):
            if is_temporary(path):
                path.unlink(missing_ok=True)
        yield
