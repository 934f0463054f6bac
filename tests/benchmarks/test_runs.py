"""What benchmarks keep: a result is only ever shown for what it is of."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import runs
from benchmarks.runs import PolicyRun
from sim.seeds import episode_seed


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the commands that were run; an export writes a bundle, and an evaluation a result."""
    given: list[str] = []

    def run(name: str, *arguments: Any, **_: Any) -> None:
        given.append(name)
        words = [str(argument) for argument in arguments]
        if name == "export":
            bundle = Path(words[words.index("--output") + 1])
            bundle.mkdir()
            (bundle / "manifest.json").write_text(f"bundle {len(given)}")
        if name == "eval":
            seeds = [episode_seed("eval", 0, index) for index in range(2)]
            Path(words[words.index("--json") + 1]).write_text(json.dumps({"seeds": seeds}))

    monkeypatch.setattr(runs, "visuomotor", run)
    return given


def test_what_is_kept_is_not_taken_for_what_was_trained_otherwise(tmp_path: Path, commands: list[str]) -> None:
    """A short trial would stand in the table beside the steps of the long training."""
    trial = PolicyRun(tmp_path / "run", "diffusion", ("reach",), tmp_path / "data", training=("--steps", 100))
    for _ in range(2):
        trial.train()
        trial.evaluate(2, seed=0)
    assert commands == ["train", "export", "eval"]
    longer = dataclasses.replace(trial, training=("--steps", 6000))
    with pytest.raises(ValueError, match=r"made\.json: .*run holds what was made otherwise: remove it"):
        longer.train()


def test_a_result_is_not_taken_for_that_of_another_bundle(tmp_path: Path, commands: list[str]) -> None:
    run = PolicyRun(tmp_path / "run", "diffusion", ("reach",), tmp_path / "data")
    run.train()
    run.evaluate(2, seed=0)
    (run.bundle / "manifest.json").write_text("trained again")
    with pytest.raises(ValueError, match="holds what was made otherwise"):
        run.evaluate(2, seed=0)
    (run.bundle / "manifest.json").write_text("bundle 2")
    with pytest.raises(ValueError, match="is not of 3 episodes of seed 0"):
        run.evaluate(3, seed=0)
