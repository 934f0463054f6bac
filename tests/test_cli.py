"""The command line, as a user meets it: it explains itself, works from end to end, and its errors are one message."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from contracts.robot import RobotContract
from episodes.dataset import Dataset, DatasetWriter
from policies.run_folder import alone_in
from policies.runtime import PolicyOutputError
from sim.collect import ExpertFailed
from visuomotor import app, main

ZOO = Path(__file__).parents[1] / "zoo" / "diffusion-drawer-open"
RUN_ZOO = ["run", "--robot", "metaworld_sawyer", "--policy", str(ZOO), "--task", "drawer-open", "--output", "elsewhere"]

COMMANDS = {  # and an option whose meaning its help must tell
    "collect": "--noise",
    "train diffusion": "--resume",
    "train carp": "--top-k",
    "train streaming": "--evaluations",
    "train pad": "--video-fraction",
    "train hinfinity": "--disturber",
    "eval": "--latency-steps",
    "export": "--sampling",
    "run": "--instruction",
    "replay": "--speed",
    "convert": "--observations",
    "repair": "Mend",
    "bench latency": "99th percentile",
}


def visuomotor(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command line and wait for it."""
    return subprocess.run(
        [sys.executable, "-m", "visuomotor", *map(str, arguments)], cwd=cwd, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two demonstrations, collected by the command."""
    path = tmp_path_factory.mktemp("cli") / "dataset"
    done = visuomotor("collect", "drawer-open", "--episodes", 2, "--output", path)
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = visuomotor(*command.split(), "--help")
    assert done.returncode == 0
    assert COMMANDS[command] in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["collect", "open-sesame", "--output", "x"], "open-sesame"),
        (["eval", "nowhere", "--task", "drawer-open"], "nowhere"),
        (["export", "nowhere", "--output", "x"], "nowhere"),
        (["run", "--robot", "hal9000", "--policy", "nowhere", "--task", "push", "--output", "x"], "hal9000"),
        (["eval", str(ZOO), "--task", "drawer-open", "--stitching", "prefix"], "choose another stitching"),
        ([*RUN_ZOO, "--stitching", "prefix", "--prefix", "4"], "choose another stitching"),
        ([*RUN_ZOO, "--namespace", "2nd"], "'2nd' is no namespace of a robot"),
        (["replay", "nowhere"], "nowhere"),
        (["repair", "nowhere"], "nowhere"),
        (["convert", "nowhere", "elsewhere"], "nowhere"),
        (["train", "diffusion", "--dataset", "nowhere", "--output", "x"], "nowhere"),
    ],
)
def test_a_mistake_is_one_message_that_names_it(arguments: list[str], expected: str, tmp_path: Path) -> None:
    done = visuomotor(*arguments, cwd=tmp_path)
    assert done.returncode != 0
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "elsewhere").exists()


def test_a_reader_that_has_seen_enough_ends_it_quietly() -> None:
    command = [sys.executable, "-m", "visuomotor", "train", "hinfinity", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141


def test_ctrl_c_ends_it_quietly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "visuomotor", "collect", "reach", "--episodes", "1000", "--output", "d"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "reach" not in process.stderr.read(20):  # of its progress bar
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert "Traceback" not in said
        assert process.wait() == 130, said


def test_two_do_not_train_into_one_folder(tmp_path: Path) -> None:
    with alone_in(tmp_path / "run"):
        done = visuomotor("train", "hinfinity", "--envs", "8", "--output", "run", cwd=tmp_path)
    assert done.returncode == 1
    assert "another process is training into this folder" in done.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.parametrize("error", [ExpertFailed, PolicyOutputError, ChildProcessError])
def test_what_is_foreseen_to_fail_is_one_message(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        raise error("ask for fewer")

    monkeypatch.setattr(app, "cli", fail)
    with pytest.raises(SystemExit, match="visuomotor: ask for fewer"):
        main()


def test_a_package_that_is_missing_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        import torch  # noqa: F401

    monkeypatch.setattr(app, "cli", fail)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match=r"torch.*pip install 'visuomotor\[train\]'"):
        main()


def test_training_on_scenes_of_evaluations_is_told(dataset: Path, tmp_path: Path) -> None:
    source, recorded = Dataset(dataset), tmp_path / "recorded"
    with DatasetWriter(recorded, source.robot, source.observation_set) as writer:
        for index in range(2):
            writer.add(dataclasses.replace(source.episode(index), seed=index))
    said = []
    for episodes in (dataset, recorded):
        done = visuomotor(
            "train", "diffusion", "--dataset", episodes, "--output", tmp_path / episodes.name, "--steps", 1
        )
        assert done.returncode == 0, done.stderr
        said.append("1 of the 2 episodes" in done.stderr and "with another --seed" in done.stderr)
    assert said == [False, True]


def test_a_dataset_without_a_contract_is_learned_from_by_the_one_that_the_user_wrote(
    dataset: Path, tmp_path: Path
) -> None:
    source, theirs = Dataset(dataset), tmp_path / "theirs"
    shutil.copytree(dataset, theirs, ignore=shutil.ignore_patterns(".*"))
    info = json.loads((theirs / "meta/info.json").read_text())
    del info["visuomotor"]
    (theirs / "meta/info.json").write_text(json.dumps(info))
    plain = {**source.robot.to_dict(), "name": "my_arm", "body": "external"}
    (tmp_path / "my_arm.yaml").write_text(RobotContract.from_dict(plain).to_json())  # JSON is YAML
    options = ("--robot", tmp_path / "my_arm.yaml", "--assume-success")
    done = visuomotor("convert", theirs, tmp_path / "mine", *options)
    assert "--observations" in done.stderr
    done = visuomotor("convert", theirs, tmp_path / "mine", *options, "--observations", "state")
    assert "2 episodes added" in done.stdout, done.stderr
    np.testing.assert_array_equal(Dataset(tmp_path / "mine").arrays().actions, source.arrays().actions)
    small = ("--widths", 16, 32, "--timestep-dim", 16, "--batch-size", 8, "--steps", 2)
    done = visuomotor("train", "diffusion", "--dataset", tmp_path / "mine", "--output", tmp_path / "checkpoint", *small)
    assert "2 steps" in done.stdout, done.stderr


def test_collecting_again_adds_nothing(dataset: Path) -> None:
    before = {p: p.read_bytes() for p in dataset.rglob("*.parquet")}
    done = visuomotor("collect", "drawer-open", "--episodes", 2, "--output", dataset)
    assert "2 demonstrations (0 tried now" in done.stdout
    assert {p: p.read_bytes() for p in dataset.rglob("*.parquet")} == before


def test_a_demonstration_replays_to_the_bit_and_on_video(dataset: Path, tmp_path: Path) -> None:
    done = visuomotor(
        "replay", dataset, "--episode", 1, "--video", tmp_path / "replay.mp4", "--json", tmp_path / "replay.json"
    )
    assert done.returncode == 0, done.stderr
    verdict = json.loads((tmp_path / "replay.json").read_text())
    assert not verdict["diverged"]
    assert verdict["success"]
    assert (tmp_path / "replay.mp4").stat().st_size > 10_000


def test_an_episode_that_the_dataset_does_not_have_is_refused(dataset: Path) -> None:
    done = visuomotor("replay", dataset, "--episode", 7)
    assert done.returncode != 0
    assert "0 to 1" in done.stderr


def test_a_dataset_becomes_a_bag_and_a_dataset_again(dataset: Path, tmp_path: Path) -> None:
    assert visuomotor("convert", dataset, tmp_path / "bag").returncode == 0
    assert "all" in visuomotor("replay", tmp_path / "bag").stdout
    done = visuomotor("convert", tmp_path / "bag", tmp_path / "again")
    assert "2 episodes added" in done.stdout, done.stderr
    assert visuomotor("replay", tmp_path / "again", "--episode", 1).returncode == 0
