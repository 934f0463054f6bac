"""The pool: in order, errors as they were raised, nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, time
from sim.workers import Workers

def make():
    if {fail!r}: raise FileNotFoundError("no such bundle")
    return os.getpid()

def work(state, item):
    if item == "die": os._exit(3)
    if item == "wait":
        os.write(1, f"{{state}}\\n".encode())  # one write: print makes two of it when Python is unbuffered
        time.sleep(60)
    if item == "raise": raise ValueError("item was bad")
    time.sleep(0.02 * (5 - item))
    return item, state == os.getpid(), os.environ["OMP_NUM_THREADS"]

if __name__ == "__main__":
    with Workers(2, make) as pool:
        try:
            print(list(pool.map(work, {items!r})), flush=True)
        except Exception as error:
            print(type(error).__name__, error, flush=True)
"""


@pytest.fixture
def run_pool(tmp_path):
    """Start a script that maps `work` over items with two processes; the script's own file makes `work` picklable."""

    def run(items, fail=False) -> subprocess.Popen[str]:
        script = tmp_path / "pool_script.py"
        script.write_text(textwrap.dedent(SCRIPT.format(items=items, fail=fail)))
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        return subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)

    return run


def test_results_come_in_the_order_of_the_work_from_single_threaded_processes(run_pool):
    out, _ = run_pool([0, 1, 2, 3, 4]).communicate(timeout=60)
    assert out.strip() == str([(item, True, "1") for item in range(5)])


def test_errors_arrive_as_they_were_raised(run_pool):
    out, _ = run_pool([1, "raise", 2]).communicate(timeout=60)
    assert out.strip() == "ValueError item was bad"
    out, _ = run_pool([1, 2], fail=True).communicate(timeout=60)
    assert out.strip() == "FileNotFoundError no such bundle"


def test_a_worker_that_dies_is_an_error_that_says_so(run_pool):
    out, _ = run_pool([1, "die", 2]).communicate(timeout=60)
    assert out.startswith("ChildProcessError a worker process died")


def test_workers_die_with_a_killed_parent(run_pool):
    process = run_pool(["wait", "wait"])
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_alive(pid) for pid in workers)


def _alive(pid: int) -> bool:
    """Running, and not a zombie that waits for init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
