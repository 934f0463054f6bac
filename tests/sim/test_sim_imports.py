"""`sim` is usable without Meta-World, until a world is made."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_METAWORLD = """
import sys
sys.modules["metaworld"] = None  # as if it were not installed
import sim, sim.collect, sim.evaluate, sim.experts, sim.replay
sim.register()
assert len(sim.TASKS) == 50
for make in (lambda: sim.MetaWorldEnv("reach"), lambda: sim.experts.Expert("reach")):
    try:
        make()
    except ImportError as error:
        assert "pip install 'visuomotor[metaworld]'" in str(error), error
    else:
        raise SystemExit("no error")
"""


def _python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)


def test_missing_metaworld_is_an_error_that_says_what_to_install():
    result = _python(WITHOUT_METAWORLD)
    assert result.returncode == 0, result.stderr


def test_importing_sim_imports_neither_metaworld_nor_mujoco():
    result = _python(
        "import sys, sim, sim.evaluate; print(sorted({'metaworld', 'mujoco', 'torch'} & set(sys.modules)))"
    )
    assert result.stdout.strip() == "[]", result.stderr
