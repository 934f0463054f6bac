"""Task and training together: the walking robots learn, stop and go on bit for bit, from Python and from the shell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from policies.export import export
from policies.hinfinity.checkpoint import load_networks
from policies.hinfinity.config import HInfinityConfig
from policies.hinfinity.train import Trainer
from policies.runtime.bundle import is_bundle
from sim.legged.task import training_groups

CHOICES = {
    "actor_widths": (16,), "critic_widths": (16,), "disturber_widths": (8,), "rollout_steps": 6, "warmup": 1,
    "chance_first": 0, "force_start_n": 50.0, "hold": (2, 3), "epochs": 2, "minibatches": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    """Two would wait for each other longer than they work, on so small networks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(output: Path, iterations: int, resume: bool = False, terrain: str = "flat") -> Trainer:
    config = HInfinityConfig.from_dict(CHOICES | {"iterations": iterations})
    with training_groups("go2", terrain, 12, threads=1) as tasks:
        trainer = Trainer(tasks, "go2", config, output, resume)
        trainer.run(progress_bar=False)
    return trainer


def test_resuming_changes_no_bit(tmp_path):
    straight = train(tmp_path / "straight", 5)
    train(tmp_path / "parts", 2)
    parts = train(tmp_path / "parts", 5, resume=True)
    for (name, a), b in zip(straight.networks.state_dict().items(), parts.networks.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert len(straight.collectors) == 2
    for one, other in zip(straight.collectors, parts.collectors, strict=True):
        for name, array in one.environment.snapshot().items():
            np.testing.assert_array_equal(array, other.environment.snapshot()[name], err_msg=name)


def test_from_the_command_line(tmp_path):
    words = [
        sys.executable,
        "-m",
        "visuomotor",
        "train",
        "hinfinity",
        "--output",
        str(tmp_path / "run"),
        "--robot",
        "a1",
    ]
    words += ["--envs", "4", "--disturber", "random", "--rollout-steps", "4", "--actor-widths", "8", "--epochs", "1"]
    for iterations, more in ((1, []), (2, ["--resume"])):
        done = subprocess.run([*words, "--iterations", str(iterations), *more], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "32 steps" in done.stdout
    networks, config = load_networks(tmp_path / "run")
    assert config.robot == "a1"
    assert config.config.disturber == "random"
    assert networks.disturber is None
    assert json.loads((tmp_path / "run" / "config.json").read_text())["locomotion"]["kp"] == 40.0
    assert is_bundle(export(tmp_path / "run", tmp_path / "bundle"))  # with the state that training leaves


@pytest.mark.parametrize(("option", "value", "expected"), [("--robot", "spot", "spot"), ("--gamma", "2", "gamma")])
def test_errors_are_one_message(option, value, expected, tmp_path):
    words = [sys.executable, "-m", "visuomotor", "train", "hinfinity", "--output", str(tmp_path / "run"), option, value]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode != 0
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
