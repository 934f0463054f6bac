"""Run the project's own commands, as a user would type them, and say what was run."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


class CommandFailed(RuntimeError):
    """A command ended with an error; the message names the command and its exit code."""


def visuomotor(*arguments: object, threads: int | None = None, log: Path | None = None) -> float:
    """Run `visuomotor ARGUMENTS`, echoed, and wait for it.

    Args:
        arguments: of the command line.
        threads: what torch and OpenMP may use; None leaves it to them.
        log: a file that takes the output, after what it holds; None shows it.

    Returns:
        Seconds that it took.

    Raises:
        CommandFailed: it exited non-zero.
    """
    words = [str(argument) for argument in arguments]
    print("\n$ visuomotor " + shlex.join(words), flush=True)
    began = time.monotonic()
    output = log.open("a") if log else None
    try:
        code = subprocess.run(
            [sys.executable, "-m", "visuomotor", *words], env=environment(threads), stdout=output, stderr=output
        ).returncode
    finally:
        if output:
            output.close()
    if code:
        where = f"; see {log}" if log else ""
        raise CommandFailed(f"`visuomotor {words[0]}` failed with exit code {code}{where}")
    return time.monotonic() - began


def side_by_side(works: Sequence[Callable[[], object]], jobs: int | None = None) -> None:
    """Do all of them, `jobs` at once (None: as many as there are cores); after an error or Ctrl-C begin no other."""
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        begun = [pool.submit(work) for work in works]
        try:
            for work in begun:
                work.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def environment(threads: int | None = None) -> dict[str, str]:
    """This process's environment, with threads that sleep while they wait."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment
