"""Runs a node's module so that it cannot outlive its supervisor.

`python -m ros_nodes.tether SIGTERM <the supervisor's pid> ros_nodes.controller_node --ros-args ...`
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1  # linux/prctl.h
GRACE_S = 3.0


def tether(orphan_signal: signal.Signals, parent: int) -> None:
    """Ask the kernel to send `orphan_signal` when the parent dies, and kill this process group GRACE_S later.

    Args:
        parent: pid of who started this process. It may have died since, and then somebody else is the parent now.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(orphan_signal), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the kernel was asked
        os.kill(os.getpid(), orphan_signal)
    if orphan_signal != signal.SIGKILL:
        threading.Thread(target=_end_with, args=(parent,), name="tether", daemon=True).start()


def _end_with(parent: int) -> None:
    """Kill the whole group a grace time after `parent` has died: a node that hangs on SIGTERM ends too."""
    while os.getppid() == parent:
        time.sleep(0.5)
    time.sleep(GRACE_S)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def main() -> None:
    """Tether this process, then become the node."""
    orphan_signal, parent, module, *arguments = sys.argv[1:]
    tether(signal.Signals[orphan_signal], int(parent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
