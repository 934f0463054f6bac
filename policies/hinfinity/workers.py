"""Rows of samples, shared out among threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

LEARNING_ROWS = 3072  # of a part: so many that its arithmetic takes far longer than its Python

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Threads that each do the whole work on a part of the rows.

    PyTorch shares out every operation by itself, and waits for its threads at the end of each: networks of this size
    are hardly quicker by that. Parts are the same for any number of threads, and so is what comes of them.

    Args:
        threads: how many work at the same time.
        device: of the rows. On a GPU they are one part, which is shared out there.
    """

    def __init__(self, threads: int, device: torch.device) -> None:
        self._whole = device.type != "cpu"
        self._pool, self._beside = _pool(threads), _pool(1)
        self._alone = threads == 1

    def map(self, work: Callable[[slice], Result], count: int, rows: int = LEARNING_ROWS) -> list[Result]:
        """What comes of each part of `count` rows, with `rows` in each, in order. Inside `single_threaded`."""
        size = count if self._whole else rows
        return self.each(work, [slice(start, start + size) for start in range(0, count, size)])

    def each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """What comes of each item, in order. Inside `single_threaded`. Errors are raised when nobody works any more."""
        if self._alone or len(items) == 1:
            return [work(item) for item in items]
        begun = [self._pool.submit(work, item) for item in items]
        wait(begun)
        return [each.result() for each in begun]

    def beside(self, work: Callable[[], Result]) -> Future[Result]:
        """Begin what nothing depends on that is done until its result is asked for; with one thread, do it at once."""
        if not self._alone:
            return self._beside.submit(work)
        done: Future[Result] = Future()
        done.set_result(work())
        return done

    def rows(self, function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        """A function of each row of `values` [..., K], without gradients: [..., M]."""
        flat = values.flatten(end_dim=-2)

        @torch.no_grad()
        def work(part: slice) -> Tensor:
            return function(flat[part])

        return torch.cat(self.map(work, len(flat))).unflatten(0, values.shape[:-1])


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads whose every operation is done by themselves."""
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


@contextmanager
def single_threaded() -> Iterator[None]:
    """Every operation is done by the thread that asks for it, until the end of the `with` statement."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
