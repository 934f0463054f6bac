"""Runs of several methods and seeds, as whoever compares them starts, stops and continues them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.commands import environment
from policies.checkpoint import WEIGHTS_FILE
from policies.hinfinity.checkpoint import load_networks


@contextmanager
def begin(folder: Path, iterations: int, methods: str = "random", jobs: int = 1) -> Iterator[subprocess.Popen]:
    """Runs of two seeds in a process group of their own, as a shell starts them.

    Whoever runs the tests in the background has SIGINT ignored, and so would all that they start.
    """
    words = f"--terrain flat --envs 8 --methods {methods} --seeds 0 1 --iterations {iterations} --jobs {jobs}".split()
    runs = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.locomotion_runs", "--output", str(folder), *words],
        env=environment(1), start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        yield runs
    finally:  # a run that went on would take a core from all tests after this one
        with suppress(ProcessLookupError):
            os.killpg(runs.pid, signal.SIGKILL)
        runs.wait()


def test_ctrl_c_saves_a_run_and_the_same_command_goes_on(tmp_path):
    log = tmp_path / "random-0.log"
    with begin(tmp_path, 100_000) as runs:
        latest = time.monotonic() + 90
        while not (log.exists() and re.search(r" [3-9]/100000 ", log.read_text())):
            assert runs.poll() is None
            assert time.monotonic() < latest
            time.sleep(0.1)
        os.killpg(runs.pid, signal.SIGINT)
        said, _ = runs.communicate(timeout=60)
    assert runs.returncode == 1
    assert "the same command goes on" in said
    _, made = load_networks(tmp_path / "random-0")
    assert (made.config.disturber, made.config.seed) == ("random", 0)
    assert not (tmp_path / "random-1").exists()  # stopped is stopped: nothing begins after it
    first = (tmp_path / "random-0" / WEIGHTS_FILE).read_bytes()
    with begin(tmp_path, 3, "random none", jobs=2) as again:  # fewer than the first one has
        assert again.wait(timeout=180) == 0
    assert (tmp_path / "random-0" / WEIGHTS_FILE).read_bytes() == first
    for seed in (0, 1):
        assert load_networks(tmp_path / f"none-{seed}")[1].config.disturber == "none"
    weights = [(tmp_path / run / WEIGHTS_FILE).read_bytes() for run in ("random-1", "none-1", "random-0", "none-0")]
    assert weights[0] == weights[1]  # the same until somebody is pushed: trained once, and copied
    assert weights[2] != weights[3]  # what is further is not what to begin with
    assert "/100000 " in log.read_text()  # a run's log is of all its parts
