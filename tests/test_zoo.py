"""The bundles that come with the project: small, documented, and they do what their card says, ROS 2 included."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from contracts import PolicyContract, check_compatible
from policies.loading import load_runtime
from sim.cameras import fitting_robot
from sim.evaluate import evaluate_tasks

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = sorted(path.parent for path in (ROOT / "zoo").glob("*/manifest.json"))
WALKERS = [bundle for bundle in BUNDLES if bundle.name.startswith("hinfinity")]
ARMS = [bundle for bundle in BUNDLES if bundle not in WALKERS]
MAX_MEGABYTES = 12
TIMELY = 0.4  # of the time after which a chunk is over: who infers for longer is late in what it does
STITCHED = {"carp-drawer-open": ("--stitching", "prefix")}  # through ROS, where it can
TRIED = {
    "carp-mt10": "window-open",
    "pad-nano": "drawer-open",
}  # of a bundle whose name is no task: one of those that it knows


def task_of(bundle: Path) -> str:
    return TRIED.get(bundle.name) or next(task for task in ("drawer-open", "push") if task in bundle.name)


def test_the_zoo_is_not_empty() -> None:
    expected = {"diffusion-drawer-open", "diffusion-drawer-open-image", "carp-drawer-open", "carp-mt10"}
    expected |= {"streaming-push", "pad-nano", "hinfinity-go2", "hinfinity-aliengo"}
    assert expected <= {bundle.name for bundle in BUNDLES}


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_a_bundle_is_small_and_says_how_it_was_made_and_measured(bundle: Path) -> None:
    size = sum(file.stat().st_size for file in bundle.iterdir())
    assert size <= MAX_MEGABYTES * 1e6
    traced = [file.name for file in bundle.glob("*.onnx") if b".py" in file.read_bytes()]
    assert not traced, f"{traced} name the files that they were made by, where they were made"
    card = (bundle / "README.md").read_text()
    learned = ("benchmarks.robustness",) if bundle in WALKERS else ("visuomotor collect", "visuomotor eval")
    for command in ("visuomotor train", "visuomotor export", *learned):
        assert command in card, f"the card does not name `{command}`"
    assert re.search(r"\d+ of \d+", card), "the card gives no measured success"


@pytest.mark.parametrize("bundle", ARMS, ids=lambda path: path.name)
def test_a_bundle_solves_its_task(bundle: Path) -> None:
    """4 of 5 unseen episodes, the same ones every time: a policy that learned nothing solves none."""
    runtime = load_runtime(bundle)
    check_compatible(runtime.contract, fitting_robot(runtime.contract))
    (result,) = evaluate_tasks(lambda: runtime, [task_of(bundle)], episodes=5, seed=1)
    assert result.successes >= 4, result


@pytest.mark.realtime
@pytest.mark.parametrize("bundle", ARMS, ids=lambda path: path.name)
def test_a_bundle_solves_its_task_through_ros(bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "visuomotor", "run", "--robot", "metaworld_sawyer", "--task", task_of(bundle)]
    command += ["--policy", str(bundle), "--episodes", "2", "--output", str(tmp_path)]
    command += STITCHED.get(bundle.name, ())
    command += ["--json", str(tmp_path / "run.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = json.loads((tmp_path / "run.json").read_text())
    assert abs(run["control"]["rate_hz"] - 80) < 2
    if bundle.name.startswith("streaming"):
        ages = {int(age): count for age, count in run["action_age_steps"].items()}
        assert min(ages) == 1  # the robot's tick follows the measurements of the tick before
        fresh = sum(count for age, count in ages.items() if age <= 3)
        assert fresh > 0.7 * sum(ages.values()), ages  # acting out chunks of eight, a policy has two or three in eight
        assert 0 < run["residual_noise"]["mean"] <= run["residual_noise"]["max"] < 1
    assert_replayed(tmp_path / "bag")
    contract = PolicyContract.load(bundle / "contract.json")
    slack_ms = 1e3 * (contract.horizon - contract.execute) * contract.action_period_s
    if run["inference_ms"]["p50"] > TIMELY * slack_ms and not run["successes"]:
        pytest.skip(f"this machine infers in {run['inference_ms']['p50']:.0f} ms, too slow for the task in real time")
    assert run["successes"] >= 1


@pytest.mark.realtime
@pytest.mark.parametrize("bundle", WALKERS, ids=lambda path: path.name)
def test_a_walker_goes_as_told_and_is_pushed_through_ros(bundle: Path, tmp_path: Path) -> None:
    """It gets up from its belly, walks for 7 s with 0.5 m/s, is pushed three times, and all of it happens again."""
    robot = json.loads((bundle / "robot.json").read_text())["name"]
    command = [sys.executable, "-m", "visuomotor", "run", "--robot", robot, "--task", "flat", "--steps", "500"]
    command += ["--policy", str(bundle), "--velocity", "0.5", "0", "0", "--push", "30", "--push-every", "3"]
    command += ["--output", str(tmp_path), "--json", str(tmp_path / "run.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["successes"] == 1
    assert run["figures"]["pushes"] == 3
    assert run["figures"]["distance_m"] > 1.5
    assert_replayed(tmp_path / "bag")


def assert_replayed(bag: Path) -> None:
    command = [sys.executable, "-m", "visuomotor", "replay", str(bag)]
    replayed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert "are the same" in replayed.stdout
