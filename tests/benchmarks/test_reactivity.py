"""The reactivity benchmark: the reaction that it measures is the one that there was, and nothing is measured twice."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reactivity import (
    DISTANCE,
    WINDOWS,
    Cell,
    Policy,
    check_bundles,
    draw_move,
    measure,
    reaction_steps,
    show,
)
from contracts import PolicyContract, PolicyObservation, load_robot
from execution.chunk import ActionChunk
from execution.observation import Observation
from sim.environments import MetaWorldEnv
from sim.seeds import episode_seed

PERIOD_NS = 12_500_000
EPISODES = 3


@dataclass
class Watching:
    """Looks every `execute` steps; its gripper closes for good once the object has moved (with `blind`: never)."""

    residual_noise = None

    execute: int
    blind: bool = False
    random: bool = False
    horizon: int = 16

    @property
    def contract(self) -> PolicyContract:
        robot = load_robot("metaworld_sawyer")
        (feature,) = robot.observation_features("state")
        return PolicyContract(
            policy="watching",
            robot=robot.name,
            observation_set="state",
            task="anything",
            observations=(PolicyObservation(feature=feature),),
            action=robot.action_feature,
            action_period_s=robot.control_period_s,
            horizon=self.horizon,
            execute=self.execute,
        )

    def start(self, seed: int, instruction: str | None = None, prefix: int = 0) -> Watching:
        self.place: np.ndarray | None = None
        self.noise = np.random.default_rng() if self.random else None
        return self

    def act(self, observation: Observation) -> ActionChunk:
        place = observation.values["observation.state"][-1, 4:6]
        self.place = place if self.place is None else self.place
        moved = not self.blind and bool(np.abs(place - self.place).max() > 0.01)
        actions = np.zeros((self.horizon, 4))
        actions[:, 3] = 1.0 if moved else -1.0
        if self.noise is not None:
            actions[:, 0] = self.noise.normal()
        return ActionChunk(actions, observation.stamp_ns, PERIOD_NS, self.contract.action.names)


class Loads:
    """Fake policies by the name of their bundle; counts how often one is opened."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.dying: set[str] = set()

    def __call__(self, bundle: Path, execute: int | None) -> Watching:
        self.opened.append(bundle.name)
        if bundle.name in self.dying:
            raise KeyboardInterrupt
        name = bundle.name
        return Watching(execute or 8, name == "blind", name == "random", horizon=8 if name == "short" else 16)


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.rollout.EPISODE_STEPS", 80)


def cell(name: str, execute: int | None = None, delay: int = 0, task: str = "push") -> Cell:
    return Cell(Policy(name, name, execute), task, delay, EPISODES, seed=3)


def pairs(cell: Cell, output: Path) -> list[dict]:
    return json.loads(cell.file(output).read_text())["pairs"]


@pytest.mark.parametrize(
    ("task", "execute", "delay"),
    [("push", 1, 0), ("push", 8, 0), ("push", 1, 4), ("drawer-open", 8, 4), ("pick-place", 8, 4)],
)
def test_the_measured_reaction_is_the_one_that_there_was(tmp_path: Path, task: str, execute: int, delay: int) -> None:
    here = cell("sees", execute, delay, task)
    (row,) = measure([here], tmp_path, 1, Loads())
    expected = [-pair["step"] % execute + delay for pair in pairs(here, tmp_path)]
    assert [pair["reaction"] for pair in pairs(here, tmp_path)] == expected
    assert row["reaction_steps"] == {
        "median": np.median(expected), "p90": np.percentile(expected, 90), "mean": np.mean(expected)
    }  # fmt: skip
    assert row["reaction_minus_delay_steps"]["median"] == np.median(expected) - delay
    assert (row["never_reacted"], row["stopped"], row["delay_ms"]) == (0, 0, 12.5 * delay)
    assert row["moved"] == row["unmoved"]
    assert (row["moved"]["successes"], row["moved"]["success_rate"]) == (0, 0.0)
    assert row["moved"]["ci95"] == pytest.approx([0, 0.5615], abs=1e-4)  # Wilson's interval of 0 in 3, by hand


def test_one_that_never_reacts_is_counted_apart(tmp_path: Path) -> None:
    (row,) = measure([cell("blind", 1)], tmp_path, 1, Loads())
    assert row["never_reacted"] == EPISODES
    assert row["reaction_steps"] is row["reaction_minus_delay_steps"] is None
    show([row])


def test_a_chunk_that_is_over_before_the_delay_is_stops_the_robot(tmp_path: Path) -> None:
    (row,) = measure([cell("short", 1, 8)], tmp_path, 1, Loads())
    assert row["stopped"] == row["never_reacted"] == EPISODES


def test_twins_that_are_none_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="random does not do the same twice on push, seed"):
        measure([cell("random", 1)], tmp_path, 1, Loads())


@pytest.mark.parametrize("task", list(WINDOWS))
def test_moves_are_of_the_seed_alone_and_within_the_tasks_own_places(task: str) -> None:
    env = MetaWorldEnv(task)
    first, last = WINDOWS[task]
    steps, offsets = [], []
    for index in range(40):
        env.begin(episode_seed("eval", 0, index))
        step, offset = draw_move(env, index)
        env.advance(np.array([0.5, 0.0, 0.0, 0.0]))
        again, same = draw_move(env, index)
        assert (step, *np.round(offset, 6)) == (again, *np.round(same, 6))
        low, high = env.world.object_range
        env.move_object(offset)
        assert np.all(env.world.object_place >= low - 1e-4)
        assert np.all(env.world.object_place <= high + 1e-4)
        steps.append(step)
        offsets.append(offset)
    assert first <= min(steps) < max(steps) <= last
    np.testing.assert_allclose(np.linalg.norm(offsets, axis=1), DISTANCE)
    assert len({tuple(np.sign(offset)) for offset in offsets}) == (2 if task == "drawer-open" else 4)
    env.close()


def test_a_benchmark_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    cells = [cell("sees", 1), cell("sees", 1, delay=4), cell("late", 1)]
    loads = Loads()
    loads.dying = {"late"}
    with pytest.raises(KeyboardInterrupt):
        measure(cells, tmp_path, 1, loads)
    assert loads.opened == ["sees", "late"], "one policy is opened once"
    loads.dying, loads.opened = set(), []
    rows = measure(cells, tmp_path, 1, loads)
    assert loads.opened == ["late"]
    assert [(row["policy"], row["delay_steps"]) for row in rows] == [("sees", 0), ("sees", 4), ("late", 0)]


def test_a_cell_of_another_description_is_measured_again(tmp_path: Path) -> None:
    measure([cell("sees", 1)], tmp_path, 1, Loads())
    loads = Loads()
    (row,) = measure([cell("sees", 2)], tmp_path, 1, loads)
    assert loads.opened == ["sees"]
    assert row["execute"] == 2


def test_two_policies_cannot_have_one_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the same name: sees, sees"):
        measure([cell("sees", 1), cell("sees", 2)], tmp_path, 1, Loads())


def test_a_reaction_is_a_tenth_of_the_full_command_in_any_channel() -> None:
    twin = np.zeros((10, 4), dtype=np.float32)
    moved = twin.copy()
    moved[5, 0], moved[7, 1], moved[8, 3] = 0.079, 0.081, 1.0  # of 0.8 m/s and 1
    assert reaction_steps(moved, twin, 3) == 4
    assert reaction_steps(moved, twin[:9], 8) == 0
    assert reaction_steps(moved, twin[:6], 3) is None
    assert reaction_steps(moved[:2], twin, 3) is None


def test_policies_are_given_by_name_bundle_and_pace(tmp_path: Path) -> None:
    assert Policy.parse("a b=runs/{task}-0/bundle") == Policy("a b", "runs/{task}-0/bundle")
    assert Policy.parse("a=runs/x@y/{task}@12") == Policy("a", "runs/x@y/{task}", 12)
    assert Policy.parse("a=runs/{task}-0").bundle("push") == Path("runs/push-0")
    for wrong in ("runs/bundle", "=runs", "a="):
        with pytest.raises(ValueError, match="NAME=BUNDLE"):
            Policy.parse(wrong)
    check_bundles([Policy("here", str(tmp_path))], ["push"])


def test_what_is_missing_is_said_together_with_the_command_that_makes_it(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no runs/carp/push-0/bundle; make it with `python -m benchmarks.carp"):
        check_bundles([Policy.parse("carp=runs/carp/{task}-0/bundle")], ["push"])
    with pytest.raises(ValueError, match="visuomotor export CHECKPOINT --output mine/push"):
        check_bundles([Policy.parse("mine=mine/{task}")], ["push"])
