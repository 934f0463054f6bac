"""Re-simulation: what was recorded happens again, and it is said where it does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sim.demonstration import demonstrate
from sim.divergence import Divergence
from sim.experts import Expert
from sim.replay import replay_frames, resimulate, resimulate_episode


@pytest.fixture(scope="module")
def episode(world):
    return demonstrate(world("drawer-open"), Expert("drawer-open"), 8)


def test_a_recorded_episode_happens_again_exactly(episode):
    divergence = resimulate_episode(episode, "state", tolerance=0.0)
    assert not divergence.diverged
    assert divergence.max_abs_difference == 0.0
    assert divergence.success
    assert divergence.steps == len(episode)
    assert "all" in str(divergence)


def test_the_first_step_that_differs_is_found(episode):
    actions = episode.actions.copy()
    actions[20, 0] += 0.05
    divergence = resimulate("drawer-open", 8, actions, episode.observations, "state")
    assert divergence.first_step == 21
    assert divergence.feature == "observation.state"
    assert divergence.max_abs_difference > 1e-4
    assert "step 21" in str(divergence)


def test_another_seed_differs_at_once(episode):
    assert resimulate("drawer-open", 9, episode.actions, episode.observations, "state").first_step == 0


def test_a_recording_with_a_nan_differs_there(episode):
    recorded = {"observation.state": episode.observations["observation.state"].copy()}
    recorded["observation.state"][5, 3] = np.nan
    assert resimulate("drawer-open", 8, episode.actions, recorded, "state").first_step == 5


def test_a_recording_that_does_not_fit_is_refused(episode):
    with pytest.raises(ValueError, match="nothing to compare"):
        resimulate("drawer-open", 8, episode.actions, {}, "state")
    with pytest.raises(ValueError, match="is needed"):
        resimulate("drawer-open", 8, episode.actions[:-1], episode.observations, "state")


def test_a_verdict_is_written_where_no_folder_is_yet(tmp_path: Path):
    Divergence(20, 3, "observation.state", 0.5, False).write(tmp_path / "new" / "v.json")
    said = json.loads((tmp_path / "new" / "v.json").read_text())
    assert (said["diverged"], said["first_step"]) == (True, 3)
    assert said["verdict"].startswith("diverges at step 3 of 20")


def test_frames_show_the_episode_from_any_camera(episode):
    frames = list(replay_frames("drawer-open", 8, episode.actions[:9], "corner", (40, 60), every=4))
    assert len(frames) == 4  # before actions 0, 4 and 8, and the end
    assert all(f.shape == (40, 60, 3) and f.dtype == np.uint8 for f in frames)
    assert (frames[0] != frames[-1]).any()
