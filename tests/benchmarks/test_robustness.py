"""How walking policies are compared: the same episodes for all, a fall counts once, what was measured is kept."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import robustness, robustness_episodes
from benchmarks.robustness_episodes import Episodes, Settings, cell_description, key, measure, run_episodes
from benchmarks.robustness_regimes import REGIMES, Condition, chosen, drawn_forces, make_task
from benchmarks.robustness_statistics import differences, group_rows
from benchmarks.robustness_walkers import Walker, load_walker
from contracts.locomotion import LocomotionContract
from episodes.report import wilson_interval
from policies.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from policies.export import export
from policies.hinfinity.checkpoint import LocomotionCheckpoint
from policies.hinfinity.config import HInfinityConfig
from policies.tensors import write_tensors
from sim.legged.batch import BatchedQuadruped
from sim.legged.episode import TaskConfig
from sim.legged.figures import GO2
from sim.legged.privileged import PRIVILEGED_SIZE
from sim.legged.randomization import NOMINAL
from sim.legged.task import LocomotionTask, locomotion_contract
from sim.legged.terrain import flat

TINY = HInfinityConfig(actor_widths=(8,), critic_widths=(8,), disturber="none")
UNDISTURBED = Condition(REGIMES["undisturbed"], 0.0)
SUDDEN = REGIMES["sudden"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch, tmp_path):
    """Two would wait for each other longer than they work, on so few robots; and MuJoCo writes a log where it runs."""
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings(**choices) -> Settings:
    return Settings(**{"episodes": 4, "episode_s": 0.6, "threads": 1, "attack_envs": 4, "attack_steps": 1} | choices)


def stander(act=lambda observation: np.zeros((len(observation), 12), dtype=np.float32)) -> Walker:
    """A policy that stands at its default pose."""
    return Walker(Path("stands"), "go2", "stands", act)


def checkpoint(path: Path, seed: int = 0, size: float = 1.0, **locomotion) -> Path:
    """An untrained policy; one of large `size` kicks about."""
    contract = LocomotionContract.from_dict(locomotion_contract(GO2, 0.02).to_dict() | locomotion)
    environment = {"commands": {"forward": 1.0, "left": 1.0, "turn": 1.0, "start": 1.0}, "terrain": {"kinds": []}}
    config = LocomotionCheckpoint(
        config=TINY, locomotion=contract, robot="go2", privileged_size=PRIVILEGED_SIZE, environment=environment
    )
    torch.manual_seed(seed)
    tensors = dict(config.build().state_dict())
    tensors["actor.body.2.weight"] *= size
    path.mkdir(parents=True)
    (path / CONFIG_FILE).write_text(config.to_json())
    write_tensors(path / WEIGHTS_FILE, tensors, {})
    return path


# -- episodes ----------------------------------------------------------------------------------------------------------


def test_episodes_are_the_same_whatever_happens_in_others():
    config = TaskConfig(command_s=0.3, random_ages=False)
    runs = []
    for size in (0.0, 1500.0):
        push = np.zeros((4, 3))
        push[:2, 1] = size
        robots = BatchedQuadruped(GO2, flat(), 4, 7, NOMINAL, pool=1, threads=1)
        with LocomotionTask(robots, 7, config, restart=False) as task:
            fell, trace = np.zeros(4, dtype=bool), []
            for _ in range(50):
                fell |= task.step(np.zeros((4, 12), dtype=np.float32), push).fell
                trace.append((task.command.copy(), task.observation[2:].copy()))
        runs.append((fell, *(np.stack(parts) for parts in zip(*trace, strict=True))))
    (fell, commands, seen), (pushed_fell, pushed_commands, pushed_seen) = runs
    assert not fell.any()
    assert pushed_fell.tolist() == [True, True, False, False]
    np.testing.assert_array_equal(commands, pushed_commands)
    np.testing.assert_array_equal(seen, pushed_seen)
    changes = np.flatnonzero((np.diff(commands, axis=0) != 0).any(axis=(1, 2)))
    assert changes.tolist() == [13, 28, 43]  # drawn anew every 15 steps


def test_commands_are_full_ones_and_measurements_noisy():
    with make_task("go2", UNDISTURBED, 200, 7, 1, 20.0, restart=False) as task:
        largest = np.abs(task.command).max(axis=0)
        assert ((largest > 0.9) & (largest <= 1)).all()
        assert task.config.command_s == 10
        assert len(np.unique(task.observation[:, 6])) > 100  # gravity, of robots put down level


def test_a_fall_counts_once_and_ends_the_episode():
    pushed = np.array([[0, 900, 0], [0, 0, 0], [0, 900, 0], [0, 0, 0]], dtype=float)
    given = []

    def forces(step, privileged):
        given.append(step)
        return pushed if step >= 20 else 0 * pushed

    steps: list[int] = []
    found = run_episodes(stander(), UNDISTURBED, settings(episode_s=2.0), forces, steps.append)
    assert found.survived.tolist() == [False, True, False, True]
    assert not found.diverged.any()
    assert not found.left.any()
    np.testing.assert_allclose(found.alive_s[[1, 3]], 2.0)
    assert ((found.alive_s[[0, 2]] > 0.4) & (found.alive_s[[0, 2]] < 1.2)).all()
    assert found.tracking_error[0] > found.tracking_error[1] > 0
    np.testing.assert_allclose(found.push[[1, 3]], 0)
    assert (found.push[[0, 2], 1] > 100).all()  # in the end, to the left
    assert len(given) == 100
    everybody = run_episodes(
        stander(), UNDISTURBED, settings(episode_s=2.0), lambda step, _: pushed[[0, 0, 2, 2]], steps.append
    )
    assert not everybody.survived.any()
    assert sum(steps) == 2 * 100 * 4  # the bar comes to its end although nobody was left


def test_robots_whose_physics_went_astray_have_not_survived():
    blast = np.zeros((4, 3))
    blast[1] = 1e9
    found = run_episodes(stander(), UNDISTURBED, settings(), lambda step, _: blast, lambda steps: None)
    assert found.diverged.tolist() == [False, True, False, False]
    assert found.survived.tolist() == [True, False, True, True]
    assert np.isfinite(found.tracking_error).all()


def test_a_cell_is_the_same_again_and_on_any_number_of_threads(tmp_path):
    walker = load_walker(checkpoint(tmp_path / "kicks", size=30.0))
    condition = Condition(REGIMES["continuous"], 150.0)
    cells = [measure(walker, condition, settings(threads=threads)) for threads in (1, 2)]
    other = measure(walker, condition, settings(seed=1))
    assert cells[0] == cells[1]
    assert cells[0]["episodes"]["tracking_error"] != other["episodes"]["tracking_error"]


# -- regimes -----------------------------------------------------------------------------------------------------------


def test_continuous_forces_are_bounded_along_each_axis_and_held():
    seen = np.zeros((300, 0), dtype=np.float32)
    small, large = (drawn_forces(Condition(REGIMES["continuous"], f), 300, 100, 3) for f in (30.0, 150.0))
    assert small is not None
    assert large is not None
    trace = np.stack([small(step, seen) for step in range(100)])
    assert (np.abs(trace).max(axis=(0, 1)) > 28).all()
    assert np.abs(trace).max() <= 30
    changes = np.flatnonzero((np.diff(trace, axis=0) != 0).any(axis=(1, 2)))
    assert changes.tolist() == [24, 49, 74]
    np.testing.assert_allclose(large(60, seen), 5 * trace[60])


def test_sudden_pushes_are_horizontal_and_last_half_a_second_every_four():
    push = drawn_forces(Condition(SUDDEN, 200.0), 50, 1000, 3)
    assert push is not None
    trace = np.stack([push(step, np.zeros((50, 0), dtype=np.float32)) for step in range(1000)])
    size = np.linalg.norm(trace, axis=-1)
    np.testing.assert_allclose(size[size > 0], 200)
    assert ((size > 0).reshape(5, 200, 50).sum(axis=1) == 25).all()
    assert (trace[..., 2] == 0).all()
    sectors = np.arctan2(trace[..., 1], trace[..., 0])[size > 0] // (np.pi / 2)
    assert set(sectors.tolist()) == {-2, -1, 0, 1}
    assert drawn_forces(UNDISTURBED, 50, 1000, 3) is None


def test_conditions_reach_the_physics():
    def task(regime, level):
        return make_task("go2", Condition(REGIMES[regime], level), 2, 0, 1, 20.0, restart=False)

    with task("undisturbed", 0) as plain, task("payload", 4) as heavy, task("friction", 0.2) as icy:
        mass, heavier = (t.robots.pool.models[0].body_mass.sum() for t in (plain, heavy))
        assert heavier == pytest.approx(mass + 4)
        feet = icy.robots.pool.models[0].geom_priority > 0
        assert icy.robots.pool.models[0].geom_friction[feet, 0] == pytest.approx(0.2)
        assert plain.robots.delay.tolist() == [0, 0]
    with task("latency", 20) as late:
        assert late.robots.delay.tolist() == [4, 4]  # physics steps of 5 ms


def test_rough_ground_is_of_one_kind_everywhere():
    with make_task("go2", Condition(REGIMES["terrain-stairs_down"], 0), 4, 0, 1, 20.0, restart=False) as task:
        ground = task.robots.terrain
        assert ground.heights is not None
        assert np.abs(task.robots.state.position[:, :2]).max() < 0.6
        along_x = ground.height(np.stack((np.arange(-35, 35, 0.02), np.zeros(3500)), axis=1))
        rises = np.unique(np.round(np.diff(ground.heights[720], axis=0), 6))
        assert set(np.abs(rises)) == {0.0, 0.14}  # halfway from 0.05 to 0.23 m
        assert along_x.max() == pytest.approx(along_x[1750])
        assert (np.abs(np.diff(along_x)) > 0.01).sum() > 100


def test_regimes_are_chosen_by_name():
    assert [str(c) for c in chosen(["latency", "undisturbed"])] == [
        "latency 0 ms", "latency 5 ms", "latency 10 ms", "latency 20 ms", "undisturbed",
    ]  # fmt: skip
    assert len(chosen(["terrain", "terrain-rough"])) == 9
    assert {c.regime.name for c in chosen(["all"])} == set(REGIMES)
    assert [str(c) for c in chosen(["sudden:250,400", "latency:15"])] == [
        "sudden 250 N",
        "sudden 400 N",
        "latency 15 ms",
    ]
    for wrong, why in (
        ("wind", "no regime 'wind'; there are undisturbed, continuous"),
        ("undisturbed:5", "undisturbed has no levels"),
        ("terrain:5", "terrain has no levels"),
        ("sudden:hard", "sudden:hard: levels are numbers"),
        ("sudden:-5", "sudden:-5: levels must be finite and not negative"),
        ("sudden:250 sudden:300", "sudden is named twice; its levels go together: sudden:250,300"),
    ):
        with pytest.raises(ValueError, match=why):
            chosen(wrong.split())


# -- policies ----------------------------------------------------------------------------------------------------------


def test_a_bundle_walks_as_its_checkpoint(tmp_path):
    made = checkpoint(tmp_path / "made")
    walkers = [load_walker(made), load_walker(export(made, tmp_path / "bundle"))]
    seen = np.random.default_rng(0).normal(size=(5, 270)).astype(np.float32)
    first, second = (walker.act(seen) for walker in walkers)
    assert first.shape == (5, 12)
    assert np.abs(first).max() > 0.01
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_only_bundles_need_onnx_runtime_and_the_lack_of_it_is_told(tmp_path, monkeypatch, capsys):
    made = checkpoint(tmp_path / "made")
    bundle = export(made, tmp_path / "bundle")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    groups = robustness.load_groups([str(made)], 1)
    assert set(robustness.head(settings(), groups)["versions"]) == {"python", "mujoco", "numpy", "torch", "visuomotor"}
    with pytest.raises(SystemExit):
        run(monkeypatch, "--policies", bundle)
    assert "pip install 'visuomotor[onnxruntime]'" in capsys.readouterr().err


def test_policies_that_cannot_be_compared_are_refused(tmp_path):
    one, two = (str(checkpoint(tmp_path / name, seed)) for seed, name in enumerate(("one", "two")))
    stiff = str(checkpoint(tmp_path / "stiff", kp=80.0))
    groups = robustness.load_groups([f"pair={one},{two}"], 1)
    assert [walker.path.name for walker in groups["pair"]] == ["one", "two"]
    assert list(robustness.load_groups([one], 1)) == ["one"]
    for texts, expected in (
        ([stiff], "its kp are not those of the simulated go2"),
        ([f"a={one}", f"a={two}"], "two groups are called a"),
        ([f"a={one}", f"b={one}"], "one and the same"),
        ([str(tmp_path / "nothing")], "nothing"),
    ):
        with pytest.raises(ValueError, match=expected):
            robustness.load_groups(texts, 1)


# -- the whole ---------------------------------------------------------------------------------------------------------


def run(monkeypatch, *words: object) -> None:
    sizes = ("--episodes", 3, "--seconds", 1, "--threads", 1, "--cache", "cache", "--json", "result.json")
    monkeypatch.setattr("sys.argv", ["robustness", *map(str, (*words, *sizes))])
    monkeypatch.setattr(robustness, "Settings", lambda **options: settings(**options | {"attack_steps": 1}))
    robustness.main()


def test_the_same_command_goes_on_where_it_stopped(monkeypatch, tmp_path, capsys):
    for seed, name in enumerate(("a0", "a1", "b0")):
        checkpoint(tmp_path / name, seed)
    monkeypatch.setitem(REGIMES, "sudden", replace(SUDDEN, levels=(60.0, 300.0)))
    monkeypatch.setitem(REGIMES, "adversary", replace(REGIMES["adversary"], levels=(30.0,)))
    words = ("--policies", "a=a0,a1", "b=b0", "--regimes", "sudden", "adversary")
    run(monkeypatch, *words)
    first = json.loads(Path("result.json").read_text())
    assert [(row["policy"], row["level"]) for row in first["rows"] if row["regime"] == "sudden"] == [
        ("a0", 60), ("a1", 60), ("b0", 60), ("a0", 300), ("a1", 300), ("b0", 300),
    ]  # fmt: skip
    assert {(row["regime"], row["level"]) for row in first["differences"]} == {
        ("sudden", 60), ("sudden", 300), ("sudden", None), ("adversary", 30),
    }  # fmt: skip
    assert first["settings"]["episodes"] == 3
    assert first["versions"]["mujoco"]
    assert all(row["attack"]["steps"] > 0 for row in first["rows"] if row["regime"] == "adversary")
    assert "sudden all" in capsys.readouterr().out

    measured = []

    def watched(walker, condition, *rest):
        measured.append((walker.path.name, str(condition)))
        return measure(walker, condition, *rest)

    monkeypatch.setattr(robustness, "measure", watched)
    lost = [
        file for file in Path("cache/cells").iterdir() if json.loads(file.read_text())["description"]["level"] == 30
    ]
    assert len(lost) == 3
    lost[0].unlink()
    Path("result.json").unlink()
    run(monkeypatch, *words)
    assert len(measured) == 1  # with the disturber that was kept
    assert json.loads(Path("result.json").read_text()) == first
    checkpoint(tmp_path / "other", 5)
    (tmp_path / "b0" / WEIGHTS_FILE).write_bytes((tmp_path / "other" / WEIGHTS_FILE).read_bytes())
    measured.clear()
    run(monkeypatch, *words)
    assert measured == [("b0", name) for name in ("sudden 60 N", "sudden 300 N", "adversary 30 N")]


def test_what_was_measured_by_an_earlier_protocol_is_not_taken(monkeypatch):
    """Of the first one, joint targets were not clipped to the joints' limits."""
    condition = Condition(REGIMES["adversary"], 30.0)
    cell = cell_description(stander(), condition, settings())
    monkeypatch.setattr(robustness_episodes, "PROTOCOL", 1)
    old = cell_description(stander(), condition, settings())
    assert key(old) != key(cell)
    assert key(old["attack"]) != key(cell["attack"])


def test_the_help_names_every_regime_and_mistakes_are_one_line(monkeypatch, capsys):
    for words, expected in (
        (["--help"], "terrain-stairs_up"),
        (["--policies", "nowhere"], "nowhere"),
        (["--policies", "nowhere", "--regimes", "wind"], "no regime 'wind'"),
        (["--policies", "nowhere", "--episodes", "0"], "not at least 1"),
    ):
        monkeypatch.setattr("sys.argv", ["robustness", *words])
        with pytest.raises(SystemExit) as raised:
            robustness.main()
        output = capsys.readouterr()
        assert raised.value.code == (0 if words == ["--help"] else 2)
        assert expected in output.out + output.err


# -- statistics --------------------------------------------------------------------------------------------------------


def episodes(survived, error=0.5, push=None) -> Episodes:
    survived = np.array(survived, dtype=bool)
    nothing = np.zeros(len(survived), dtype=bool)
    push = np.zeros((len(survived), 3)) if push is None else np.array(push)
    alive_s = np.where(survived, 20.0, 3.0)
    return Episodes(survived, nothing, nothing, alive_s, np.full(len(survived), error), push)


def test_falls_are_told_apart_by_where_the_robot_was_pushed():
    push = [[100, 10, 50], [90, -20, 70], [-10, 100, 0], [0, -80, 0], [0, 0, 0]]
    (row,) = group_rows("a", {Condition(SUDDEN, 300.0): [episodes([False, False, False, True, False], push=push)]})
    pushed = row["pushed_when_falling"]
    assert pushed["falls"] == 4
    assert {name: count for name, count in pushed["toward"].items() if count} == {"forward": 2, "left": 1}
    np.testing.assert_allclose(pushed["push_n"], (45, 22.5, 30))


def test_differences_are_paired_by_episode():
    rng = np.random.default_rng(0)
    hard = rng.random(200) < 0.5  # nobody survives these
    lucky = rng.random(200) < 0.1
    a, b = episodes(~hard), episodes(~hard & ~lucky)
    (row,) = differences({"a": {UNDISTURBED: [a]}, "b": {UNDISTURBED: [b]}})
    assert row["survival"] == pytest.approx((~hard & lucky).mean())
    low, high = row["ci95"]
    assert 0 < low < row["survival"] < high < row["survival"] + 0.06  # unpaired it would be + 0.1
    (same,) = differences({"a": {UNDISTURBED: [a]}, "c": {UNDISTURBED: [a]}})
    bound = wilson_interval(0, 200)[1]
    assert same["survival"] == 0
    assert same["ci95"] == (-bound, bound)


def test_training_seeds_that_differ_widen_the_interval():
    good, bad = episodes([True] * 200), episodes([False] * 200)
    middle = episodes([True, False] * 100)
    (row,) = differences({"mixed": {UNDISTURBED: [good, bad, good]}, "even": {UNDISTURBED: [middle]}})
    low, high = row["ci95"]
    assert row["survival"] == pytest.approx(2 / 3 - 1 / 2)
    assert low < -0.4
    assert high > 0.4


def test_runs_of_one_training_seed_are_compared_with_each_other():
    """Seeds differ by a half, and the first group is better by a tenth in each of them."""
    ranks = np.arange(200)
    first = [episodes(ranks < survive) for survive in (60, 160)]
    second = [episodes(ranks < survive) for survive in (40, 140)]
    (row,) = differences({"a": {UNDISTURBED: first}, "b": {UNDISTURBED: second}})
    low, high = row["ci95"]
    assert row["survival"] == pytest.approx(0.1)
    assert 0 < low < high < 0.2


def test_a_regime_as_a_whole_is_the_mean_over_its_levels():
    regime = replace(SUDDEN, levels=(60.0, 300.0))
    weak, strong = Condition(regime, 60.0), Condition(regime, 300.0)
    cells = {weak: [episodes([True] * 50, 0.2)], strong: [episodes([True, False] * 25, 0.4)]}
    first, second, whole = group_rows("a", cells)
    assert (first["survival"], second["survival"], whole["survival"]) == (1, 0.5, 0.75)
    assert first["ci95"] == wilson_interval(50, 50)
    assert second["force_n"] == 300
    assert whole["tracking_error"] == pytest.approx(0.3)
    low, high = whole["ci95"]
    assert 0.65 < low < 0.75 < high < 0.85
    assert len(group_rows("a", {weak: cells[weak]})) == 1  # not yet whole


def test_a_mean_of_episodes_lies_within_two_standard_errors() -> None:
    """Of one policy the bootstrap is that of its episodes: 1.96 of their deviation over the root of their number."""
    error = np.random.default_rng(2).normal(0.4, 0.1, 400)
    (row,) = group_rows("a", {UNDISTURBED: [replace(episodes([True] * 400), tracking_error=error)]})
    spread = 1.96 * error.std() / 20
    expected = (error.mean() - spread, error.mean() + spread)
    assert row["tracking_error_ci95"] == pytest.approx(expected, abs=0.05 * spread)


def test_groups_of_other_sizes_are_compared_by_their_means() -> None:
    """What differs from seed to seed counts in full: there is nobody to pair a run with."""
    ranks = np.arange(200)
    first = [episodes(ranks < survive) for survive in (60, 160)]
    second = [episodes(ranks < survive) for survive in (40, 140, 90)]
    (row,) = differences({"a": {UNDISTURBED: first}, "b": {UNDISTURBED: second}})
    low, high = row["ci95"]
    assert row["survival"] == pytest.approx(0.55 - 0.45)
    assert low < -0.15
    assert high > 0.35


def test_a_difference_is_the_first_minus_the_second_of_what_both_have() -> None:
    """Of conditions that only one group was measured in nothing is said; a better tracker has a negative difference."""
    weak, strong = Condition(SUDDEN, 60.0), Condition(SUDDEN, 300.0)
    good, bad = episodes([True] * 10, 0.2), episodes([True, False] * 5, 0.3)
    rows = differences({"a": {weak: [good], strong: [good]}, "b": {weak: [bad]}, "c": {weak: [bad]}})
    assert [(row["first"], row["second"], row["level"]) for row in rows] == [
        ("a", "b", 60), ("a", "c", 60), ("b", "c", 60),
    ]  # fmt: skip
    assert [row["survival"] for row in rows] == [0.5, 0.5, 0]
    assert [row["tracking_error"] for row in rows] == pytest.approx([-0.1, -0.1, 0])
    assert rows[0]["tracking_error_ci95"] == pytest.approx((-0.1, -0.1))


def test_where_all_survive_every_level_there_is_still_doubt() -> None:
    """As much as of one level's episodes, which are the same robots and commands in all of them."""
    regime = replace(SUDDEN, levels=(60.0, 300.0))
    for survives, expected in ((True, wilson_interval(50, 50)), (False, wilson_interval(0, 50))):
        cells = {Condition(regime, level): [episodes([survives] * 50)] * 3 for level in regime.levels}
        *_, whole = group_rows("a", cells)
        assert whole["level"] is None
        assert whole["ci95"] == expected


def test_there_is_no_mean_over_a_regime_until_all_of_its_levels_are_measured() -> None:
    regime = replace(SUDDEN, levels=(60.0, 150.0, 300.0))
    cells = {Condition(regime, level): [episodes([True] * 5)] for level in regime.levels[:2]}
    assert [row["level"] for row in group_rows("a", cells)] == [60, 150]
    cells[Condition(regime, 300.0)] = [episodes([False] * 5)]
    assert [row["level"] for row in group_rows("a", cells)] == [60, 150, 300, None]


def test_the_row_of_a_group_counts_all_of_its_policies_episodes() -> None:
    """Survivors, robots that diverged, that left the ground, and how long all stood, each over all policies."""
    first, second = episodes([True, True, False, False]), episodes([True, False, False, False])
    second = replace(second, diverged=~second.survived, left=np.array([True, False, False, False]))
    first = replace(first, push=np.array([[0.0, 0, 0]] * 2 + [[10.0, 0, 0]] * 2))
    (row,) = group_rows("a", {UNDISTURBED: [first, second]})
    counts = {name: row[name] for name in ("episodes", "survived", "diverged", "left_the_ground", "policies")}
    assert counts == {"episodes": 8, "survived": 3, "diverged": 3, "left_the_ground": 1, "policies": 2}
    assert (row["survival"], row["lowest"], row["highest"]) == (3 / 8, 0.25, 0.5)
    assert row["ci95"] == wilson_interval(3, 8)
    assert row["alive_s"] == pytest.approx((3 * 20 + 5 * 3) / 8)
    assert row["pushed_when_falling"]["falls"] == 2  # who diverged is no fall
    assert row["pushed_when_falling"]["toward"]["forward"] == 2
