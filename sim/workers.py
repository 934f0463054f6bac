"""A pool of single-threaded worker processes whose results come back in the order of the work."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import cache, cached_property
from typing import Any, Generic, TypeVar

State = TypeVar("State")
Item = TypeVar("Item")
Result = TypeVar("Result")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PR_SET_PDEATHSIG = 1  # linux/prctl.h
AHEAD = 2  # items a worker may be ahead of the one that is waited for


class Workers(Generic[State]):
    """A context manager around `count` processes; with a count of 1 the work is done in this process.

    Every process makes its own state (an environment, a policy) when its first work comes, and keeps it. The processes
    are spawned, run one thread each, leave Ctrl-C to this process and die with it.

    Args:
        count: number of processes.
        make_state: picklable if there are several.

    Raises:
        ValueError: fewer than 1 worker.
    """

    def __init__(self, count: int, make_state: Callable[[], State]) -> None:
        if count < 1:
            raise ValueError(f"at least 1 worker is needed, not {count}")
        self.count = count
        self._make_state = make_state
        self._pool: ProcessPoolExecutor | None = None
        self._exit = ExitStack()

    def __enter__(self) -> Workers[State]:
        if self.count > 1:
            self._exit.enter_context(_single_threaded_children())
            context = multiprocessing.get_context("spawn")
            arguments = (os.getpid(), self._make_state)
            self._pool = ProcessPoolExecutor(self.count, context, initializer=_become_worker, initargs=arguments)
            self._exit.callback(self._pool.shutdown, wait=True, cancel_futures=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._exit.close()

    def map(self, function: Callable[[State, Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
        """function(state, item) for each item, in order.

        Items are taken only a few ahead, so `items` may be endless; close the generator to drop what was begun.

        Args:
            function: picklable.
            items: picklable, none of them None.

        Raises:
            ChildProcessError: a worker process died.
            Exception: whatever `function` or `make_state` raises.
        """
        if self._pool is None:
            state = self._own_state
            yield from (function(state, item) for item in items)
            return
        source = iter(items)
        pending: deque[tuple[Item, Future[Result]]] = deque()
        try:
            while True:
                while len(pending) < self.count * AHEAD and (item := next(source, None)) is not None:
                    pending.append((item, self._pool.submit(_work, function, item)))
                if not pending:
                    return
                item, future = pending.popleft()
                yield future.result()
        except BrokenProcessPool:
            raise ChildProcessError(f"a worker process died while it worked on {item!r}") from None
        finally:
            for _, future in pending:
                future.cancel()

    @cached_property
    def _own_state(self) -> State:
        return self._make_state()


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Processes started within have one thread of numerical work each; it must be set before they import NumPy."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_factory: Callable[[], Any]  # of a worker process's state; set once, at its start


@cache
def _state() -> Any:
    """Made with the first work and not at the start, so that an error reaches the parent as itself."""
    return _factory()


def _work(function: Callable[[Any, Item], Result], item: Item) -> Result:
    return function(_state(), item)


def _become_worker(parent: int, make_state: Callable[[], Any]) -> None:
    """Leave Ctrl-C to the parent and die with it: a pool's idle worker would otherwise outlive a killed parent."""
    global _factory
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)
    _factory = make_state
