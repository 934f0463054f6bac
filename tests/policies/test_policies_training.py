"""Training: it learns, it stops and goes on bit for bit, and it says what is wrong."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from episodes.data import EpisodeData
from episodes.dataset import Dataset, DatasetWriter
from episodes.files import temporary_name
from policies import trainer, training_state
from policies.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_checkpoint
from policies.config import TrainingConfig
from policies.diffusion.policy import DiffusionPolicy
from policies.stopping import TrainingDiverged
from policies.tensors import CheckpointError, read_tensors, write_tensors
from policies.train import train_policy
from policies.trainer import Trainer
from policies.training_state import STATE_FILE
from tests.policies.diffusion_reference import sampled


def train(dataset, output, policy, training, **options):
    return train_policy("diffusion", dataset, output, policy, training, progress_bar=False, **options)


def stop_after(monkeypatch, steps):
    """Send this process SIGTERM in the middle of a step, as a cluster that wants its machine back does."""
    step = Trainer._step

    def interrupted(self, model, number):
        if number == steps - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, model, number)

    monkeypatch.setattr(Trainer, "_step", interrupted)


@pytest.mark.parametrize("observation_set", ["state", "image"])
def test_stopped_and_resumed_training_ends_with_the_same_bits(
    observation_set, datasets, tiny, quick, tmp_path, monkeypatch
):
    straight = train(datasets[observation_set], tmp_path / "straight", tiny, quick)
    assert (straight.steps, straight.interrupted) == (20, False)
    stop_after(monkeypatch, 10)
    first = train(datasets[observation_set], tmp_path / "stopped", tiny, quick)
    assert (first.steps, first.interrupted) == (10, True)
    monkeypatch.undo()
    second = train(datasets[observation_set], tmp_path / "stopped", tiny, quick, resume=True)
    assert (second.steps, second.interrupted) == (20, False)
    for name in ("model.safetensors", STATE_FILE):  # weights, averages, both moments of every parameter
        expected, found = (read_tensors(tmp_path / run / name)[0] for run in ("straight", "stopped"))
        assert expected.keys() == found.keys()
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    assert second.loss == pytest.approx(straight.loss, abs=0.5)


def test_another_seed_gives_other_weights(datasets, tiny, quick, tmp_path):
    short = msgspec.structs.replace(quick, steps=2)
    train(datasets["state"], tmp_path / "a", tiny, short)
    train(datasets["state"], tmp_path / "b", tiny, msgspec.structs.replace(short, seed=1))
    a, b = (read_tensors(tmp_path / run / "model.safetensors")[0] for run in "ab")
    assert not torch.equal(a["unet.film.weight"], b["unet.film.weight"])


def test_overfits_a_tiny_dataset_and_gives_its_actions_back(robot, tmp_path, tiny):
    """The state is the moment within the only episode: after seconds the policy knows what comes next."""
    moment = np.linspace(0, 1, 40, dtype=np.float32)[:, None]
    waves = [0.4 * np.sin(6 * moment), 0.2 * moment, -moment, np.ones_like(moment)]
    actions = np.hstack(waves).astype(np.float32)
    with DatasetWriter(tmp_path / "data", robot, "state") as writer:
        writer.add(EpisodeData({"observation.state": np.repeat(moment, 39, axis=1)}, actions, "t", "t", 0, True))
    config = msgspec.structs.replace(tiny, widths=(64,), kernel_size=5, state_history=1, inference_steps=10)
    training = TrainingConfig(steps=500, batch_size=32, learning_rate=1e-2, threads=1, precision="fp32")
    train(tmp_path / "data", tmp_path / "run", config, training)
    policy, _ = load_checkpoint(tmp_path / "run")
    assert isinstance(policy, DiffusionPolicy)
    rows = np.arange(24)
    states = torch.from_numpy(np.repeat(moment[rows, None], 39, axis=2))
    found = sampled(policy, {"observation.state": states}, torch.Generator().manual_seed(0)).numpy()
    expected = actions[rows[:, None] + np.arange(16)]
    ranges = np.ptp(actions, axis=0)[:3]
    assert (np.abs(found - expected)[..., :3] / ranges).mean() < 0.12
    assert (np.abs(found - expected[:, ::-1])[..., :3] / ranges).mean() > 0.2  # the order of the actions is learned too
    np.testing.assert_allclose(found[..., 3], 1, atol=1e-6)  # never varied, so never varies


def test_learning_rate_warms_up_and_falls_to_zero():
    config = TrainingConfig(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [config.learning_rate_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)


def test_output_of_another_run_is_not_overwritten(datasets, tiny, quick, tmp_path):
    short = msgspec.structs.replace(quick, steps=1)
    train(datasets["state"], tmp_path, tiny, short)
    with pytest.raises(CheckpointError, match="already holds a training run"):
        train(datasets["state"], tmp_path, tiny, short)
    longer = msgspec.structs.replace(short, steps=2)
    wider = msgspec.structs.replace(tiny, widths=(32, 64))
    with pytest.raises(
        CheckpointError, match=r"(?s)policy.widths: was \[16, 32\], is now \[32, 64\].*config.steps: was 1"
    ):
        train(datasets["state"], tmp_path, wider, longer, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_checkpoint_without_its_state_is_not_trained_over(datasets, tiny, quick, tmp_path, resume):
    """Its state may have been removed to save space, or stayed with the colleague who trained it."""
    short = msgspec.structs.replace(quick, steps=1)
    train(datasets["state"], tmp_path, tiny, short)
    (tmp_path / STATE_FILE).unlink()
    before = {name: (tmp_path / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)}
    with pytest.raises(CheckpointError, match=f"holds a checkpoint without its {STATE_FILE}"):
        train(datasets["state"], tmp_path, tiny, msgspec.structs.replace(short, seed=1), resume=resume)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_run_whose_last_save_was_cut_off_resumes_to_its_final_weights(datasets, tiny, quick, tmp_path, monkeypatch):
    """The disk is full at the second of the two files that a save writes."""
    short = msgspec.structs.replace(quick, steps=2)
    train(datasets["state"], tmp_path / "whole", tiny, short)
    stop_after(monkeypatch, 1)
    train(datasets["state"], tmp_path / "cut", tiny, short)
    monkeypatch.undo()
    written = []

    def write(path, tensors, metadata):
        written.append(path)
        if len(written) == 2:
            raise OSError("no space left on device")
        write_tensors(path, tensors, metadata)

    for module in (trainer, training_state):
        monkeypatch.setattr(module, "write_tensors", write)
    with pytest.raises(OSError, match="no space"):
        train(datasets["state"], tmp_path / "cut", tiny, short, resume=True)
    monkeypatch.undo()
    assert train(datasets["state"], tmp_path / "cut", tiny, short, resume=True).steps == 2
    ended = [(tmp_path / run / WEIGHTS_FILE).read_bytes() for run in ("whole", "cut")]
    assert ended[0] == ended[1]


def test_what_a_killed_run_left_half_written_is_cleared_away(datasets, tiny, quick, tmp_path):
    half = temporary_name(tmp_path / WEIGHTS_FILE)
    half.write_bytes(b"half")
    mine = tmp_path / "notes.tmp"
    mine.write_text("not ours")
    train(datasets["state"], tmp_path, tiny, msgspec.structs.replace(quick, steps=1))
    assert not half.exists()
    assert mine.read_text() == "not ours"


def test_where_the_file_system_knows_no_locks_it_warns_and_trains(datasets, tiny, quick, tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="Function not implemented; see to it that nobody else trains"):
        result = train(datasets["state"], tmp_path, tiny, msgspec.structs.replace(quick, steps=1))
    assert result.steps == 1


def test_a_finished_run_resumes_to_nothing(datasets, tiny, quick, tmp_path):
    short = msgspec.structs.replace(quick, steps=2)
    train(datasets["state"], tmp_path, tiny, short)
    before = (tmp_path / STATE_FILE).read_bytes()
    assert train(datasets["state"], tmp_path, tiny, short, resume=True).steps == 2
    assert (tmp_path / STATE_FILE).read_bytes() == before


def test_diverging_training_stops_and_keeps_the_last_good_checkpoint(datasets, tiny, quick, tmp_path, monkeypatch):
    step = Trainer._step

    def poisoned(self, model, number):
        if number == 3:
            self.save()
            next(iter(self.policy.parameters())).data.fill_(float("nan"))
        return step(self, model, number)

    monkeypatch.setattr(Trainer, "_step", poisoned)
    with pytest.raises(TrainingDiverged, match="step 3: the loss is nan"):
        train(datasets["state"], tmp_path, tiny, quick)
    load_checkpoint(tmp_path)  # refuses what is not finite


def test_checkpoints_are_written_while_it_runs(datasets, tiny, quick, tmp_path, monkeypatch):
    saved = []
    save = Trainer.save

    def counted(self):
        saved.append(self.progress.step)
        save(self)

    monkeypatch.setattr(Trainer, "save", counted)
    train(datasets["state"], tmp_path, tiny, msgspec.structs.replace(quick, steps=3, checkpoint_every_s=1e-9))
    assert saved == [1, 2, 3, 3]
    assert not list(tmp_path.glob(".*writing"))


def test_damaged_training_state_is_refused(datasets, tiny, quick, tmp_path):
    short = msgspec.structs.replace(quick, steps=1)
    train(datasets["state"], tmp_path, tiny, short)
    state = tmp_path / STATE_FILE
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        train(datasets["state"], tmp_path, tiny, short, resume=True)


def test_curves_are_logged(datasets, tiny, quick, tmp_path):
    train(datasets["state"], tmp_path, tiny, msgspec.structs.replace(quick, steps=40))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("training/loss")] == [20, 40]
    assert {"training/learning_rate", "training/gradient_norm"} <= set(events.Tags()["scalars"])


SCRIPT = """
import sys
import msgspec
from policies.config import TrainingConfig
from policies.diffusion.config import DiffusionConfig
from policies.diffusion.policy import DiffusionPolicy
from policies.train import train_policy
policy = msgspec.json.decode(sys.argv[3], type=DiffusionConfig)
training = msgspec.json.decode(sys.argv[4], type=TrainingConfig)
result = train_policy("diffusion", sys.argv[1], sys.argv[2], policy, training, progress_bar=False)
print("interrupted" if result.interrupted else "finished", result.steps)
"""


def command(dataset: Path, output: Path, policy, training) -> list[str]:
    return [str(dataset), str(output), policy.to_json(), training.to_json()]


def test_ctrl_c_saves_and_ends_cleanly(datasets, tiny, quick, tmp_path):
    endless = msgspec.structs.replace(quick, steps=1_000_000, checkpoint_every_s=0.05)
    arguments = command(datasets["state"], tmp_path, tiny, endless)
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / STATE_FILE).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(CheckpointError, match="another process is training into this folder"):
        train(datasets["state"], tmp_path, tiny, endless, resume=True)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    word, steps = output.split()
    assert word == "interrupted"
    assert json.loads(read_tensors(tmp_path / STATE_FILE)[1]["progress"])["step"] == int(steps) > 0


def test_accelerate_trains_in_two_processes(datasets, tiny, quick, tmp_path):
    """Both processes contribute: the result is neither that of one process nor of one with the same batch twice."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    short = msgspec.structs.replace(quick, steps=3, precision="fp32")
    # What `accelerate launch` starts itself for several GPUs; for CPUs its command wants MPI.
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", str(script)]
    done = subprocess.run(
        [*launch, *command(datasets["state"], tmp_path / "two", tiny, short)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished 3") == 2
    train(datasets["state"], tmp_path / "one", tiny, short)
    one, two = (read_tensors(tmp_path / run / "model.safetensors")[0] for run in ("one", "two"))
    assert one.keys() == two.keys()
    assert not torch.equal(one["unet.film.weight"], two["unet.film.weight"])
    assert torch.equal(one["actions.half_range"], two["actions.half_range"])
    assert len(Dataset(datasets["state"]).episodes) == 4
