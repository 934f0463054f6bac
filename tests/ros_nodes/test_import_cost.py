"""What a robot loads is light: its computer is small, and a node that died must be back soon."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "diffusers", "mujoco", "scipy", "pandas", "gymnasium", "metaworld")
AT_MOST_S = 1.5
CODE = """
import json, sys, time
start = time.perf_counter()
import {modules}
seconds = time.perf_counter() - start
print(json.dumps([seconds, [name for name in {heavy} if name in sys.modules]]))
"""


@pytest.mark.parametrize("modules", ["ros_nodes.controller_node", "ros_nodes.policy_node, policies.runtime, openvino"])
def test_a_robots_nodes_import_fast_and_load_nothing_that_trains_or_simulates(modules: str) -> None:
    code = CODE.format(modules=modules, heavy=HEAVY)
    found = []
    for _ in range(3):  # the best of three: the first one reads from disk
        run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        seconds, heavy = json.loads(run.stdout)
        assert heavy == []
        found.append(seconds)
    assert min(found) < AT_MOST_S, found
