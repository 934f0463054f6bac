"""PAD's benchmark: its figures are those that can be worked out by hand, and it compares like with like."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from benchmarks import pad_runs
from benchmarks.pad_metaworld import _compared, _options, _pairs, _run, main
from benchmarks.pad_pictures import picture_table, psnr, squared_error, ssim, write_grid
from benchmarks.pad_runs import PadRun, bootstrap_interval, diffusion_steps, gain, stages, training_seconds
from contracts import PolicyContract, PolicyObservation, load_robot
from episodes.dataset import DatasetWriter, EpisodeData
from episodes.tiles import CAPTION, GAP
from execution.chunk import ActionChunk
from execution.observation import Observation
from policies.runtime.graphs import TensorType
from policies.runtime.pad import painted

CAMERA = "observation.images.corner2"
AHEAD = (4, 8, 12)
SIZE = 24  # pixels
BLUR = 3  # grey levels that the autoencoder of these tests adds


def test_psnr_is_that_of_the_squared_error() -> None:
    dark, light = np.full((SIZE, SIZE, 3), 100, np.uint8), np.full((SIZE, SIZE, 3), 110, np.uint8)
    assert squared_error(dark, light) == squared_error(light, dark) == 100
    assert psnr(100) == pytest.approx(28.1308, abs=1e-4)  # 20 log10(255 / 10)
    assert psnr(0) == 100


def test_ssim_is_that_of_its_definition() -> None:
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (SIZE, 32, 3), dtype=np.uint8)
    assert ssim(picture, picture) == pytest.approx(1)
    assert ssim(picture, 255 - picture) < -0.9, "the same structure, turned round"
    dark, light = np.full((SIZE, SIZE, 3), 50, np.uint8), np.full((SIZE, SIZE, 3), 200, np.uint8)
    assert ssim(dark, light) == pytest.approx((2 * 50 * 200 + 6.5025) / (50**2 + 200**2 + 6.5025))  # of means alone
    noise = random.normal(size=picture.shape)
    noisy = [np.clip(picture + sigma * noise, 0, 255).astype(np.uint8) for sigma in (5, 20, 60)]
    assert 1 > ssim(picture, noisy[0]) > ssim(picture, noisy[1]) > ssim(picture, noisy[2]) > 0


class Oracle:
    """A runtime, session and graphs in one: imagines the picture that is `AHEAD` grey levels lighter than now."""

    imagines: tuple[int, ...] = AHEAD
    camera: str = CAMERA

    def __init__(self, contract: PolicyContract, error: int = 0) -> None:
        self.contract, self.error = contract, error
        self.sampler, self.conditions = self, ("text", "now_pictures")
        encoder = type("Encoder", (), {"__call__": lambda _, i: [np.zeros(1), i[CAMERA].astype(np.float32)]})()
        encoder.inputs = {CAMERA: TensorType((1, 1, SIZE, SIZE, 3), "uint8"), "task": TensorType((1,), "int64")}
        encoder.inputs["observation.state"] = TensorType((1, 1, 4), "float32")
        self.runners = {"encoder": encoder, "picture": lambda i: [(i["pictures"] + BLUR).astype(np.uint8)]}

    def start(self, seed: int, instruction: str | None = None) -> Oracle:
        assert instruction in self.contract.instructions
        return self

    def act(self, observation: Observation) -> ActionChunk | None:
        self.now = observation.values[CAMERA][-1]
        return None

    def imagination(self):
        now = self.now
        return lambda: np.stack([now + periods + self.error for periods in AHEAD])


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> tuple[PolicyContract, Path]:
    """A contract, and a dataset of two tasks whose pictures grow lighter by a level a period from 50 on."""
    robot = load_robot("metaworld_sawyer")
    camera = msgspec.structs.replace(robot.cameras[0], height=SIZE, width=SIZE)
    robot = msgspec.structs.replace(robot, cameras=(camera,))
    features = robot.observation_features("image")
    contract = PolicyContract(
        policy="pad",
        robot=robot.name,
        observation_set="image",
        task="push it\nreach it",
        observations=tuple(PolicyObservation(feature=f) for f in features),
        action=robot.action_feature,
        action_period_s=robot.control_period_s,
        horizon=12,
        execute=4,
    )
    path = tmp_path_factory.mktemp("data") / "heldout"
    with DatasetWriter(path, robot, "image") as writer:
        for seed, (name, length) in enumerate((("push", 29), ("push", 10), ("reach", 21))):
            grey = (50 + np.arange(length, dtype=np.uint8))[:, None, None, None]
            writer.add(
                EpisodeData(
                    observations={
                        CAMERA: np.broadcast_to(grey, (length, SIZE, SIZE, 3)),
                        **{f.key: np.zeros((length, *f.shape), np.float32) for f in features if not f.is_image},
                    },
                    actions=np.zeros((length, 4), np.float32),
                    task=f"{name} it",
                    task_name=name,
                    seed=seed,
                    success=True,
                )
            )
    return contract, path


def test_pictures_are_compared_with_those_of_their_own_time(setting) -> None:
    contract, dataset = setting
    rows = picture_table(Oracle(contract, error=1), dataset, every=8)  # type: ignore[arg-type]
    assert [(row["task"], row["periods"]) for row in rows] == [
        (task, periods) for task in ("push", "reach", "mean") for periods in AHEAD
    ]
    for row in rows:
        assert row["imagined"]["psnr"] == pytest.approx(psnr(1))
        assert row["present"]["psnr"] == pytest.approx(psnr(row["periods"] ** 2))
        assert row["encoded"]["psnr"] == pytest.approx(psnr(BLUR**2))
        lighter, now = row["periods"], np.full((SIZE, SIZE, 3), 50, np.uint8)
        best = painted(now, now + BLUR, (now + BLUR + lighter)[None])[0]
        assert row["best"]["psnr"] == pytest.approx(psnr(squared_error(best, now + lighter)))
        assert 0.95 < row["present"]["ssim"] < row["imagined"]["ssim"] < 1
    # 0, 8, 16 of 29 rows; none of 10; 0, 8 of 21
    assert [row["moments"] for row in rows] == [3, 3, 3, 2, 2, 2, 5, 5, 5]


def test_a_policy_without_pictures_is_refused(setting, monkeypatch) -> None:
    monkeypatch.setattr(Oracle, "imagines", ())
    with pytest.raises(ValueError, match="imagines no pictures"):
        picture_table(Oracle(setting[0]), setting[1])  # type: ignore[arg-type]


def test_the_grid_shows_now_then_what_was_imagined_then_what_happened(setting, tmp_path) -> None:
    contract, dataset = setting
    write_grid(Oracle(contract), dataset, tmp_path / "grid.png")  # type: ignore[arg-type]
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (2 * (CAPTION + 192) + GAP, 7 * 192 + 6 * GAP, 3)
    middle = [grid[CAPTION + 96, 96 + column * (192 + GAP), 0] for column in range(7)]
    assert middle == [58, 62, 66, 70, 62, 66, 70]  # row 8 of 29


def row(task: str, failed: list[int], seeds: tuple[int, ...] = (1, 3, 5, 7)) -> dict:
    return {"task": task, "seeds": list(seeds), "failed_seeds": failed}


def test_a_gain_is_counted_episode_by_episode() -> None:
    better, worse = [row("push", [1]), row("reach", [])], [row("push", [1, 3, 5]), row("reach", [7])]
    found = gain(better, worse)
    assert found["gain"] == pytest.approx(3 / 8)
    assert 0 <= found["ci95"][0] < found["gain"] < found["ci95"][1] <= 0.75
    assert gain(worse, better)["gain"] == -found["gain"]
    assert gain(better, better) == {"gain": 0, "ci95": (0, 0)}
    with pytest.raises(ValueError, match="reach: not the same episodes"):
        gain(better, [worse[0], row("reach", [], seeds=(9, 11, 13, 15))])


def test_a_task_that_always_succeeds_adds_no_uncertainty() -> None:
    assert bootstrap_interval([[1] * 25, [0] * 25]) == (0.5, 0.5)
    low, high = bootstrap_interval([[0, 1] * 50])
    assert [low, high] == pytest.approx([0.402, 0.598], abs=0.011)  # 0.5 -+ 1.96 sqrt(0.25 / 100), in steps of 0.01


def test_every_episode_counts_the_same_in_a_gain_whatever_its_task() -> None:
    """Of 5 episodes of one task and 100 of another; the interval is about the gain, and narrow as of 105."""
    few, many = tuple(range(5)), tuple(range(100))
    found = gain(
        [row("push", [], few), row("reach", [*range(50)], many)], [row("push", [*few], few), row("reach", [], many)]
    )
    assert found["gain"] == pytest.approx((5 - 50) / 105)
    spread = 1.96 * (100 * 0.25) ** 0.5 / 105
    assert found["ci95"] == pytest.approx((found["gain"] - spread, found["gain"] + spread), abs=0.011)


def test_where_two_policies_fail_together_there_is_nothing_to_be_unsure_of() -> None:
    """Paired: on episodes that both win or both lose, the difference is 0, however many of each."""
    hard = [1, 5]
    assert gain([row("push", hard)], [row("push", hard)]) == {"gain": 0, "ci95": (0, 0)}
    with pytest.raises(ValueError, match="push: not the same episodes"):
        gain([row("push", [])], [row("pull", [])])
    with pytest.raises(ValueError, match="shorter"):
        gain([row("push", []), row("pull", [])], [row("push", [])])


def write_state(folder: Path, steps: int, seconds: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    progress = {"progress": json.dumps({"step": steps, "elapsed_s": seconds})}
    safetensors.numpy.save_file({"x": np.zeros(1)}, folder / "training_state.safetensors", metadata=progress)


def test_training_time_is_that_of_all_stages(tmp_path) -> None:
    write_state(tmp_path, 6000, 1800.5)
    write_state(tmp_path / "vae", 1500, 600.25)
    assert stages(tmp_path) == {
        "policy": {"steps": 6000, "seconds": 1800.5},
        "vae": {"steps": 1500, "seconds": 600.25},
    }
    assert training_seconds(tmp_path) == 2400.75


def test_diffusion_policy_gets_the_same_seconds(tmp_path, monkeypatch) -> None:
    """Its first steps, which are slower, do not count; and what was found once stays."""
    calls = []

    def trained(*words, **_) -> None:
        calls.append(words)
        steps = words[words.index("--steps") + 1]
        write_state(words[words.index("--output") + 1], steps, 100 + 0.25 * steps)

    monkeypatch.setattr(pad_runs, "visuomotor", trained)
    assert diffusion_steps(3600, Path("data"), tmp_path) == 14400
    assert len(calls) == 2
    assert diffusion_steps(3590, Path("data"), tmp_path) == 14400, "a run that goes on must not change its mind"
    assert len(calls) == 2
    with pytest.raises(ValueError, match="is for 3600 s, not 99: remove"):
        diffusion_steps(99, Path("data"), tmp_path)


def trained(words: tuple[object, ...]) -> None:
    """What `visuomotor train ... --output FOLDER` leaves, but for its weights."""
    folder = words[words.index("--output") + 1]
    assert isinstance(folder, Path)
    write_state(folder, 10, 1.0)
    (folder / "model.safetensors").write_bytes(b"weights")


def test_a_result_of_other_weights_is_not_taken_for_a_new_one(tmp_path, monkeypatch) -> None:
    ran: list[object] = []

    def runs(*words: object, **_: object) -> None:
        ran.append(words[0])
        if words[0] == "train":
            trained(words)

    monkeypatch.setattr(pad_runs, "visuomotor", runs)
    monkeypatch.setattr("benchmarks.runs.visuomotor", runs)
    monkeypatch.setattr(pad_runs, "is_finished", lambda checkpoint: (checkpoint / "model.safetensors").exists())
    run = PadRun(tmp_path / "run", "pad", ("push",), tmp_path / "data", "image")
    run.train()
    assert ran == ["train", "export"]
    run.bundle.mkdir()
    run.train()
    assert ran == ["train", "export"], "what is there is not made again"
    (run.checkpoint / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match="holds what was made otherwise: remove it"):
        run.train()


def test_on_a_gpu_checkpoints_are_evaluated_and_nothing_is_exported(tmp_path, monkeypatch) -> None:
    ran: list[tuple[object, ...]] = []

    def runs(*words: object, **_: object) -> None:
        ran.append(words)
        if words[0] == "train":
            trained(words)

    monkeypatch.setattr("benchmarks.runs.visuomotor", runs)
    monkeypatch.setattr(pad_runs, "visuomotor", lambda *words, **_: pytest.fail(f"ran {words}"))
    sampling = ("solver", "ddim", "inference_steps", 75)
    run = PadRun(tmp_path / "run", "pad", ("push",), tmp_path / "data", "image", device="cuda", sampling=sampling)
    run.train()
    run.evaluate(5, 0)
    assert [words[0] for words in ran] == ["train", "eval"]
    assert ran[1][1] == run.checkpoint
    assert ran[1][-7:] == ("--device", "cuda", "--sampling", *sampling)


def test_each_run_with_pictures_is_set_against_the_same_without(tmp_path) -> None:
    """And a folder is trained only once, whatever parts need it."""
    words = ["--device", "cuda", "--diffusion-steps", "9", "--parts", "policies", "curves", "why", "cotraining"]
    options = _options([*words, "--output", str(tmp_path), "--json", str(tmp_path / "x.json")])
    parts = _compared(options, _run(options, "nano", "demos50"))
    for part, runs in parts.items():
        assert len({run.folder for run in runs.values()}) == len(runs), part
    pairs = [(parts["curves"][one], parts["curves"][other]) for one, other in _pairs(list(parts["curves"]))]
    assert len(pairs) == 4
    for with_pictures, without in pairs:
        assert with_pictures.dataset == without.dataset
        assert (*with_pictures.training, "--no-predict-images") == without.training
    assert [run.folder.name for run in pairs[-1]] == ["nano", "no_pictures"]
    trained: dict[Path, tuple[object, ...]] = {}
    for run in (run for runs in parts.values() for run in runs.values()):
        assert trained.setdefault(run.folder, run.training) == run.training


def test_what_needs_a_cpu_is_refused_on_a_gpu(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--device", "cuda", "--parts", "policies", "grid", "--json", str(tmp_path / "x.json")])
    assert "grid: for a CPU, which bundles run on; choose other --parts" in capsys.readouterr().err


def test_a_checkpoint_that_is_not_finished_is_refused(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--nano", str(tmp_path), "--output", str(tmp_path / "out"), "--json", str(tmp_path / "x.json")])
    assert "no checkpoint whose training is finished" in capsys.readouterr().err


def test_the_tables_are_of_what_was_run_and_other_parts_stay(tmp_path, monkeypatch) -> None:
    """Everything but the runs themselves: PAD solves all four episodes of both tasks, the others two of each."""
    collected: list[object] = []
    monkeypatch.setattr("benchmarks.pad_runs.visuomotor", lambda *words, **_: collected.append((words[0], words[-1])))
    monkeypatch.setattr("benchmarks.runs.visuomotor", lambda *words, **_: pytest.fail(f"ran {words}"))
    monkeypatch.setattr(PadRun, "train", lambda self: None)
    monkeypatch.setattr("benchmarks.runs.parameters", lambda checkpoint: 1)
    output, result = tmp_path / "runs", tmp_path / "result.json"
    result.write_text(json.dumps({"pictures": "as before", "policies": "older"}))
    for name, failed in (("nano", []), ("no_pictures", [1, 3]), ("diffusion", [5, 7])):
        write_state(output / name / "checkpoint", 10, 600)
        rows = [
            row(task, failed)
            | {"episodes": 4, "successes": 4 - len(failed), "success_rate": 1 - len(failed) / 4, "ci95": [0, 1]}
            | {"inference_ms": {"p50": 1.0}}
            for task in ("push", "reach")
        ]
        (output / name / "eval.json").write_text(json.dumps({"rows": rows}))
        (output / name / "bundle").mkdir()
        (output / name / "bundle" / "manifest.json").write_text(name)
    for name, missed in (("nano", 2.0), ("no_pictures", 3.5)):  # mm, four episodes of two tasks, three poses ahead
        tasks = {task: [[missed, 50.0, 90.0]] * 4 for task in ("push", "reach")}
        (output / name / "poses.json").write_text(json.dumps(tasks))
    (output / "diffusion" / "steps.json").write_text(json.dumps({"steps": 77, "seconds": 600}))
    data = tmp_path / "data"
    words = ["--parts", "policies", "--data", str(data), "--output", str(output), "--json", str(result)]
    with pytest.raises(ValueError, match="eval.json is not of 25 episodes of seed 0: remove it"):
        main(words)
    main([*words, "--episodes", "4"])
    assert collected == [("collect", data / "demos50"), ("collect", data / "heldout")] * 2
    found = json.loads(result.read_text())
    assert found["pictures"] == "as before"
    groups = found["policies"]["groups"]
    assert {name: group["mean_success_rate"] for name, group in groups.items()} == {
        "PAD nano": 1.0, "without predicting pictures": 0.5, "Diffusion Policy": 0.5
    }  # fmt: skip
    assert groups["Diffusion Policy"]["bootstrap_ci95"] == pytest.approx([0.125, 0.875], abs=0.13)
    assert groups["PAD nano"]["training_minutes"] == 10
    assert {gained["gain"] for gained in found["policies"]["gains"].values()} == {0.5}
    poses = found["policies"]["poses"]
    assert {name: each["error_mm"] for name, each in poses["policies"].items()} == {
        "PAD nano": 2.0, "without predicting pictures": 3.5
    }  # fmt: skip
    assert poses["differences"]["PAD nano, over without predicting pictures"] == {
        "error_mm": -1.5,
        "ci95": [-1.5, -1.5],
    }
    (told,) = {tuple(r["training"]) for r in found["policies"]["rows"] if r["group"] == "Diffusion Policy"}
    assert told[:2] == ("--steps", "77")
