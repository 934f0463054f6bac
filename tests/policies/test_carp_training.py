"""CARP's training: two stages that stop and go on bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from policies.carp.config import CarpConfig
from policies.carp.tokenizer import Quantizer
from policies.checkpoint import is_checkpoint
from policies.config import TrainingConfig
from policies.tensors import CheckpointError, read_tensors
from policies.train import train_policy
from policies.trainer import Trainer, TrainingResult
from policies.training_state import STATE_FILE

FILES = ("model.safetensors", STATE_FILE, "tokenizer/model.safetensors", f"tokenizer/{STATE_FILE}")
TOKENIZER_STEPS = 110  # the first codes are rare, and so revived, at step 50
STEPS = 6


@pytest.fixture(scope="module")
def short(tiny_carp) -> CarpConfig:
    return msgspec.structs.replace(tiny_carp, codes=8, dropout=0.0, tokenizer_steps=TOKENIZER_STEPS)


@pytest.fixture(scope="module")
def training() -> TrainingConfig:
    """Gradients are clipped in every step, so that whatever wrongly counts as one makes a difference."""
    return TrainingConfig(steps=STEPS, batch_size=4, warmup_steps=2, learning_rate=1e-3, gradient_clip=0.3, threads=1)


def train(dataset: Path, output: Path, policy: CarpConfig, training: TrainingConfig, **options) -> TrainingResult:
    return train_policy("carp", dataset, output, policy, training, progress_bar=False, **options)


def stop_after(monkeypatch: pytest.MonkeyPatch, stage: str, steps: int) -> None:
    """Send this process SIGTERM in the middle of a step of a stage."""
    step = Trainer._step

    def interrupted(self, model, number):
        if self.name == stage and number == steps - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, model, number)

    monkeypatch.setattr(Trainer, "_step", interrupted)


def different(one: Path, other: Path, name: str) -> list[str]:
    """Tensors of a file that two runs do not have in common, to the last bit."""
    a, b = (read_tensors(run / name)[0] for run in (one, other))
    return [key for key in a.keys() | b.keys() if key not in a or key not in b or not torch.equal(a[key], b[key])]


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "state": ("state", {}),
    "state-dropout": ("state", {"dropout": 0.2, "modulation": "block"}),
    "image": ("image", {"shift_pixels": 3}),
}


@pytest.fixture(scope="module")
def straight(datasets, short, training, tmp_path_factory) -> Callable[[str], Path]:
    """Variant -> the run of a training that nothing interrupted."""
    root = tmp_path_factory.mktemp("straight")

    def run(variant: str) -> Path:
        observation_set, changes = VARIANTS[variant]
        if not (root / variant).exists():
            config = msgspec.structs.replace(short, **changes)
            result = train(datasets[observation_set], root / variant, config, training)
            assert (result.steps, result.interrupted, result.checkpoint) == (STEPS, False, root / variant)
        return root / variant

    return run


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("stage", "steps"), [("tokenizer", 30), ("", 3)])
def test_stopped_in_either_stage_and_resumed_it_ends_with_the_same_bits(
    stage, steps, variant, straight, datasets, short, training, tmp_path, monkeypatch
):
    observation_set, changes = VARIANTS[variant]
    config = msgspec.structs.replace(short, **changes)
    whole = straight(variant)
    stop_after(monkeypatch, stage, steps)
    first = train(datasets[observation_set], tmp_path, config, training)
    assert (first.steps, first.interrupted) == (steps, True)
    assert (tmp_path / "model.safetensors").exists() == (stage == "")  # no checkpoint of half a policy
    monkeypatch.undo()
    second = train(datasets[observation_set], tmp_path, config, training, resume=True)
    assert (second.steps, second.interrupted) == (STEPS, False)
    assert {name: different(whole, tmp_path, name) for name in FILES} == {name: [] for name in FILES}


def test_the_second_stage_is_the_same_in_a_process_that_has_not_done_the_first(
    straight, datasets, short, training, tmp_path
):
    """As after a stop between the two."""
    shutil.copytree(straight("state") / "tokenizer", tmp_path / "tokenizer")
    shutil.copy(straight("state") / "config.json", tmp_path)
    assert train(datasets["state"], tmp_path, short, training, resume=True).steps == STEPS
    assert {name: different(straight("state"), tmp_path, name) for name in FILES} == {name: [] for name in FILES}


def test_a_signal_in_the_last_step_of_the_first_stage_stops_the_training(
    straight, datasets, short, training, tmp_path, monkeypatch
):
    stop_after(monkeypatch, "tokenizer", TOKENIZER_STEPS)
    first = train(datasets["state"], tmp_path, short, training)
    assert first.interrupted
    assert not is_checkpoint(tmp_path)  # the second stage has not begun
    monkeypatch.undo()
    assert not train(datasets["state"], tmp_path, short, training, resume=True).interrupted
    assert different(straight("state"), tmp_path, "model.safetensors") == []


def test_the_second_stage_keeps_the_first_ones_averaged_weights(straight):
    run = straight("state")
    after, _ = read_tensors(run / "model.safetensors")
    before, _ = read_tensors(run / "tokenizer" / "model.safetensors")
    state, _ = read_tensors(run / "tokenizer" / STATE_FILE)
    names = [name for name in before if name.startswith("tokenizer.")]
    assert set(names) == {name for name in after if name.startswith("tokenizer.")}
    assert [name for name in names if not torch.equal(before[name], after[name])] == []
    averaged = [name for name in names if f"average.{name}" in state]
    assert averaged
    assert [name for name in averaged if not torch.equal(state[f"average.{name}"], after[name])] == []
    optimised = {name for name in read_tensors(run / STATE_FILE)[0] if name.startswith("exp_avg.")}
    assert optimised
    assert not [name for name in optimised if "tokenizer" in name]


def test_codes_were_revived_after_the_resume(straight, datasets, short, training, tmp_path, monkeypatch):
    """Or the test above would not notice if what decides about it were lost."""
    revive = Quantizer.revive
    calls = []

    def only_once(self, latent, generator):
        calls.append(1)
        if len(calls) == 1:  # in step 25; the next is step 50
            revive(self, latent, generator)

    monkeypatch.setattr(Quantizer, "revive", only_once)
    stop_after(monkeypatch, "", 1)
    train(datasets["state"], tmp_path, short, training)
    assert len(calls) > 1
    assert "tokenizer.quantizer.codebook" in different(straight("state"), tmp_path, "tokenizer/model.safetensors")


def test_output_of_another_run_is_not_overwritten(straight, datasets, short, training):
    run = straight("state")
    before = {name: (run / name).read_bytes() for name in FILES}
    with pytest.raises(CheckpointError, match="already holds a training run"):
        train(datasets["state"], run, short, training)
    changed = msgspec.structs.replace(short, tokenizer_learning_rate=1e-4)
    with pytest.raises(CheckpointError, match=r"policy.tokenizer_learning_rate: was 0.004, is now 0.0001"):
        train(datasets["state"], run, changed, training, resume=True)
    assert train(datasets["state"], run, short, training, resume=True).steps == STEPS  # finished: nothing to do
    assert {name: (run / name).read_bytes() for name in FILES} == before


def test_a_run_stopped_in_its_first_stage_is_not_overwritten_either(datasets, short, training, tmp_path, monkeypatch):
    stop_after(monkeypatch, "tokenizer", 2)
    train(datasets["state"], tmp_path, short, training)
    with pytest.raises(CheckpointError, match="already holds a training run"):
        train(datasets["state"], tmp_path, short, training)
