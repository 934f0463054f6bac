"""The rules of the house: imports run one way, and what a robot loads stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("contracts", "execution", "episodes", "sim", "policies", "ros_nodes", "benchmarks")
MAY_IMPORT = {
    "contracts": set(),
    "execution": {"contracts"},
    "episodes": {"contracts"},
    "sim": {"contracts", "execution", "episodes"},
    "policies": {"contracts", "execution", "episodes"},
    "ros_nodes": {"contracts", "execution", "episodes", "sim", "policies"},
    "benchmarks": set(ROOMS) | {"visuomotor"},
}
ROS_PACKAGES = {"rclpy", "launch", "launch_ros"}
FORBIDDEN = {
    "contracts": {"torch", "mujoco", "rclpy"},
    "execution": {"torch", "mujoco", "rclpy"},
    "episodes": {"torch", "mujoco", "rclpy"},
    "sim": {"torch", "rclpy"},
    "policies": {"mujoco", "rclpy"},
    "policies/runtime": {"torch", "diffusers", "mujoco", "rclpy"},
    "ros_nodes": {"torch", "diffusers"},
    "benchmarks": set(),
}


def _imports(file: Path) -> set[str]:
    """Top-level names of every module that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"{room} is empty"
    for file in files:
        imported = _imports(file)
        rooms = (imported & {*ROOMS, "visuomotor"}) - {room}
        assert rooms <= MAY_IMPORT[room], f"{file.relative_to(ROOT)} imports {sorted(rooms - MAY_IMPORT[room])}"


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_stay_free_of_what_they_must_not_need(room: str) -> None:
    for file in sorted((ROOT / room).rglob("*.py")):
        wrong = _imports(file) & FORBIDDEN[room]
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


@pytest.mark.parametrize("room", ["contracts", "execution", "episodes"])
def test_light_rooms_load_nothing_heavy(room: str) -> None:
    """Not even through a dependency of a dependency."""
    modules = [str(f.relative_to(ROOT).with_suffix("")).replace("/", ".") for f in (ROOT / room).glob("*.py")]
    heavy = ("torch", "mujoco", "rclpy", "pandas")
    code = f"import sys, {', '.join(modules)}; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_ros_package_that_is_imported_is_asked_for() -> None:
    """Otherwise `rosdep install` leaves it out, and a node fails on a robot that lacks it."""
    files = [*(ROOT / "ros_nodes").rglob("*.py"), *(ROOT / "launch").glob("*.py")]
    imported = set().union(*map(_imports, files))
    of_ros = {name for name in imported if name.endswith(("_msgs", "_srvs", "_interfaces")) or name in ROS_PACKAGES}
    assert of_ros > ROS_PACKAGES
    asked = {depend.text for depend in ElementTree.parse(ROOT / "package.xml").iter("exec_depend")}
    assert of_ros <= asked, f"package.xml lacks {sorted(of_ros - asked)}"


def test_launch_is_no_package() -> None:
    """An __init__.py would hide ROS's own `launch` from everyone who has this tree on the path."""
    assert not (ROOT / "launch" / "__init__.py").exists()


def test_checkpoints_and_recordings_are_never_code() -> None:
    for room in ROOMS:
        for file in (ROOT / room).rglob("*.py"):
            text = file.read_text()
            for wrong in ("torch.load(", "pickle.load", "allow_pickle=True", "import pickle"):
                assert wrong not in text, f"{file.relative_to(ROOT)} uses {wrong}"


def test_architecture_page_names_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    rooms = {name.split("/")[0] for name in tracked if "/" in name and not name.startswith(".")} - {"resource"}
    assert not {room for room in rooms if f"`{room}/`" not in page}
