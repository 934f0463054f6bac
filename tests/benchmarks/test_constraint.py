"""The constraint's curves, read from what training leaves."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.constraint import CURVES, main
from policies.hinfinity.config import HInfinityConfig
from policies.hinfinity.train import Trainer
from sim.legged.task import training_groups


def train(output: Path, iterations: int, disturber: str = "hinfinity") -> None:
    config = HInfinityConfig.from_dict(
        {
            "disturber": disturber, "iterations": iterations, "actor_widths": (16,), "critic_widths": (16,),
            "disturber_widths": (8,), "rollout_steps": 6, "warmup": 1, "chance_first": 1, "settle": (0, 0),
            "force_start_n": 50.0, "hold": (2, 3), "minibatches": 2, "epochs": 1, "eta": 0.01,
        }
    )  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with training_groups("go2", "flat", 24, threads=1) as tasks:
        Trainer(tasks, "go2", config, output, (output / "config.json").exists()).run(progress_bar=False)
    torch.set_num_threads(before)


def test_a_run_that_was_resumed_has_every_figure_and_a_picture(tmp_path, monkeypatch):
    train(tmp_path / "run", 4)
    train(tmp_path / "run", 6)
    figures, picture = tmp_path / "figures.json", tmp_path / "curves.png"
    words = ["constraint", str(tmp_path / "run"), "--json", str(figures), "--picture", str(picture)]
    monkeypatch.setattr(sys, "argv", words)
    main()
    (row,) = json.loads(figures.read_text())
    assert (row["eta"], row["iterations"]) == (0.01, 6)
    assert all(math.isfinite(row[name]) for name in CURVES)
    assert 0 < row["force of the disturber, N"] <= row["limit by the disturber, N"] < row["limit by chance, N"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_run_that_nobody_disturbed_is_refused_by_name(tmp_path, monkeypatch):
    train(tmp_path / "calm", 2, disturber="none")
    monkeypatch.setattr(sys, "argv", ["constraint", str(tmp_path / "calm")])
    with pytest.raises(SystemExit, match="calm: no disturber was at work there"):
        main()
