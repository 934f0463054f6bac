"""The tree installs with pip and builds with colcon: the second is what a robot's workspace does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A colcon workspace with the tracked files of this tree as its one package, built."""
    workspace = tmp_path_factory.mktemp("workspace")
    package = workspace / "src" / "visuomotor"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        if (ROOT / name).is_file() and not name.startswith(("zoo/", "tests/", "docs/")):
            (package / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, package / name)
    colcon = Path(sys.executable).with_name("colcon")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    built = subprocess.run(
        [colcon, "build", "--event-handlers", "console_direct+"],
        cwd=workspace, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return workspace / "install" / "visuomotor"


def test_colcon_installs_what_ros_looks_for(workspace: Path) -> None:
    share = workspace / "share"
    assert (share / "ament_index/resource_index/packages/visuomotor").is_file()
    assert (share / "visuomotor/package.xml").is_file()
    assert {f.name for f in (share / "visuomotor/launch").iterdir()} == {
        f.name for f in (ROOT / "launch").glob("*.launch.py")
    }
    executables = {f.name for f in (workspace / "lib/visuomotor").iterdir()}
    assert {"policy_node", "controller_node", "mujoco_node", "recorder_node", "replay_node"} <= executables


def test_the_built_package_stands_alone(workspace: Path) -> None:
    """Everything imported comes from the install space: nothing was forgotten in packages or package data."""
    site = next((workspace / "lib").glob("python*/site-packages"))
    code = (
        "import contracts, execution.controller, policies.runtime, ros_nodes.graph, visuomotor;"
        "print(contracts.load_robot('metaworld_sawyer').name, contracts.__file__)"
        ";from ros_nodes.middleware import LOCAL, NETWORK; open(LOCAL), open(NETWORK)"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd="/", env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.split()[0] == "metaworld_sawyer"
    assert str(site) in result.stdout


def test_every_dependency_says_why_it_is_here() -> None:
    in_list = False
    project, _ = (ROOT / "pyproject.toml").read_text().split("[tool.", 1)
    for line in project.splitlines():
        if line.endswith("= [") or "= [ #" in line:
            in_list = True
        elif line.startswith("]"):
            in_list = False
        elif in_list and line.strip().startswith('"') and "visuomotor[" not in line and "::" not in line:
            assert "#" in line, f"no reason given: {line.strip()}"
