"""A bundle acts as the network it was made of, on every engine, without torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from contracts import check_compatible
from execution.observation import Observation
from policies.export import export
from policies.loading import load_runtime
from policies.runtime import BundleError, PolicyOutputError, Runtime
from policies.runtime.bundle import read_bundle
from policies.runtime.graphs import GraphRunner
from policies.tensors import CheckpointError
from tests.policies.diffusion_reference import sampled

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "state-ddim": ("state", {"inference_steps": 10}),
    "image-ddpm": ("image", {"scheduler": "ddpm", "train_timesteps": 20, "inference_steps": 20, "image_history": 2}),
}
BACKENDS = ("openvino", "onnxruntime")


class RecordedNoise:
    """Stands in for a session's generator: the noise that diffusers draws from a torch generator."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def standard_normal(self, shape, dtype):
        return torch.randn(shape, generator=self.generator).numpy().astype(dtype)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, make_checkpoint, tiny):
    """Variant -> (torch policy, checkpoint, bundle)."""
    root = tmp_path_factory.mktemp("exported")
    made = {}
    for name, (observation_set, changes) in VARIANTS.items():
        policy = make_checkpoint(root / name, observation_set, msgspec.structs.replace(tiny, **changes))
        made[name] = (policy, root / name, export(root / name, root / f"{name}-bundle"))
    return made


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_runtime_gives_torchs_actions_for_the_same_noise(variant, backend, exported, make_observation):
    policy, _, bundle = exported[variant]
    observation = make_observation(policy.contract, seed=1, stamp_ns=123_456_789)
    session = Runtime.load(bundle, backend=backend).start(seed=0)
    session.random = RecordedNoise(7)  # type: ignore[assignment]
    chunk = session.act(observation)
    batch = {key: torch.from_numpy(value)[None] for key, value in observation.values.items()}
    expected = sampled(policy, batch, torch.Generator().manual_seed(7))[0].numpy()
    np.testing.assert_allclose(chunk.actions, expected, atol=1e-4)
    assert np.abs(expected).max() > 0.05  # something was compared
    assert (chunk.start_ns, chunk.period_ns, chunk.names) == (123_456_789, 12_500_000, policy.contract.action.names)


@pytest.mark.parametrize("variant", ["state-ddim", "image-ddpm"])
def test_checkpoint_runs_behind_the_same_interface(variant, exported, make_observation):
    policy, checkpoint, bundle = exported[variant]
    observation = make_observation(policy.contract)
    chunks = [load_runtime(path).start(seed=5).act(observation) for path in (checkpoint, bundle)]
    np.testing.assert_allclose(chunks[0].actions, chunks[1].actions, atol=1e-4)


def test_sessions_are_reproducible_and_do_not_share_their_randomness(exported, make_observation):
    policy, _, bundle = exported["state-ddim"]
    runtime = Runtime.load(bundle)
    observation = make_observation(policy.contract)
    first, second, other = runtime.start(1), runtime.start(1), runtime.start(2)
    chunk = first.act(observation)
    assert np.array_equal(chunk.actions, second.act(observation).actions)
    assert not np.array_equal(chunk.actions, other.act(observation).actions)
    assert not np.array_equal(chunk.actions, first.act(observation).actions)  # fresh noise for each chunk
    assert np.array_equal(first.act(observation).actions, [second.act(observation) for _ in range(2)][1].actions)


def test_actions_never_leave_the_range_of_the_data(exported, make_observation, datasets):
    from episodes.dataset import Dataset

    policy, _, bundle = exported["image-ddpm"]
    statistics = Dataset(datasets["image"]).statistics()["action"]
    session = Runtime.load(bundle).start(0)
    for seed in range(3):
        actions = session.act(make_observation(policy.contract, seed)).actions
        assert (actions >= statistics["min"] - 1e-6).all()
        assert (actions <= statistics["max"] + 1e-6).all()


def test_bundle_carries_the_contracts(exported, robot):
    policy, _, bundle = exported["state-ddim"]
    files = read_bundle(bundle)
    assert Runtime.load(bundle).contract == files.contract == policy.contract
    assert files.robot == robot
    check_compatible(files.contract, robot)


def changed(observation: Observation, key: str, value) -> Observation:
    return Observation(observation.stamp_ns, {**observation.values, key: value})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("observation.state", np.zeros((2, 5), np.float32), r"shape \(2, 5\), the policy needs \(2, 4\)"),
        ("observation.state", np.zeros(4, np.float32), r"shape \(4,\)"),
        ("observation.state", np.full((2, 4), np.nan, np.float32), "not finite"),
        ("observation.state", np.full((2, 4), 1e300), "not finite"),  # not after the conversion to float32
        ("observation.state", np.full((2, 4), "1"), "dtype"),
        ("observation.state", None, "lacks|shape"),
        ("observation.images.corner2", np.zeros((2, 96, 96, 3), np.float32), "dtype float32, the policy needs uint8"),
        ("observation.images.corner2", np.zeros((2, 96, 97, 3), np.uint8), "shape"),
        ("observation.images.corner2", np.zeros((1, 96, 96, 3), np.uint8), "history first"),
    ],
)
def test_observation_that_breaks_the_contract_is_refused(key, value, message, exported, make_observation):
    policy, _, bundle = exported["image-ddpm"]
    session = Runtime.load(bundle, backend="onnxruntime").start(0)
    observation = make_observation(policy.contract)
    with pytest.raises(ValueError, match=message):
        session.act(changed(observation, key, value))
    assert session.act(observation).horizon == 16  # and the session is still good


def test_missing_feature_is_named(exported, make_observation):
    policy, _, bundle = exported["state-ddim"]
    with pytest.raises(ValueError, match=r"lacks 'observation.state'"):
        Runtime.load(bundle).start(0).act(Observation(0, {}))


class Broken(GraphRunner):
    """Answers NaN."""

    def __init__(self, whole: GraphRunner) -> None:
        self.inputs, self.outputs = whole.inputs, whole.outputs

    def __call__(self, inputs):
        return [np.full(kind.shape, np.nan, np.float32) for kind in self.outputs]


def test_output_that_is_not_finite_never_becomes_a_chunk(exported, make_observation):
    policy, _, bundle = exported["state-ddim"]
    session = Runtime.load(bundle).start(0)
    session.runners = {**session.runners, "denoiser": Broken(session.runners["denoiser"])}
    with pytest.raises(PolicyOutputError, match="64 of 64 numbers"):
        session.act(make_observation(policy.contract))


def test_unknown_backend_and_unknown_path_are_named(exported, tmp_path):
    _, _, bundle = exported["state-ddim"]
    with pytest.raises(ValueError, match=r"no backend 'tensorrt'.*openvino, onnxruntime"):
        Runtime.load(bundle, backend="tensorrt")  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="neither a bundle"):
        load_runtime(tmp_path / "nothing")


def test_export_keeps_the_model_card_and_replaces_the_rest(exported, tmp_path):
    _, checkpoint, _ = exported["state-ddim"]
    bundle = export(checkpoint, tmp_path / "bundle")
    assert "| task | open the drawer |" in (bundle / "README.md").read_text()
    (bundle / "README.md").write_text("A card.")
    (bundle / "denoiser.onnx").write_bytes(b"old")
    export(checkpoint, bundle)
    assert (bundle / "README.md").read_text() == "A card."
    Runtime.load(bundle)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle"]


@pytest.mark.parametrize("killed", [False, True], ids=["whole", "killed between the two"])
def test_export_replaces_nothing_but_bundles(exported, tmp_path, killed):
    """Recordings and checkpoints lie beside bundles; a slip of --output must not cost them."""
    _, checkpoint, _ = exported["state-ddim"]
    run = tmp_path / "run"
    (run / "bag").mkdir(parents=True)
    (run / "bag" / "bag_0.mcap").write_bytes(b"an episode")
    shutil.copytree(checkpoint, run / "checkpoint")
    for output, held in ((run, "bag, checkpoint"), (run / "checkpoint", "config.json")):
        with pytest.raises(FileExistsError, match=f"holds {held}.*replaces only bundles"):
            export(run / "checkpoint", output)
    with pytest.raises(FileExistsError, match="is no directory"):
        export(run / "checkpoint", run / "bag" / "bag_0.mcap")
    bundle = export(run / "checkpoint", run / "bundle")
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds notes\.txt"):
        export(run / "checkpoint", bundle)
    (bundle / "notes.txt").unlink()
    with pytest.raises(CheckpointError, match="is a bundle already"):
        export(bundle, run / "another")
    (bundle / "README.md").write_text("A card.")
    if killed:
        bundle.rename(run / ".bundle.replaced")
    export(run / "checkpoint", bundle)
    assert (bundle / "README.md").read_text() == "A card."
    assert (run / "bag" / "bag_0.mcap").read_bytes() == b"an episode"
    assert (run / "checkpoint" / "model.safetensors").exists()
    assert sorted(p.name for p in run.iterdir()) == ["bag", "bundle", "checkpoint"]


def test_a_workstation_without_onnx_runtime_exports(exported, tmp_path, monkeypatch):
    """`visuomotor[train]` does not install it."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    bundle = export(exported["state-ddim"][1], tmp_path / "bundle")
    Runtime.load(bundle)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'visuomotor\[onnxruntime\]'"):
        Runtime.load(bundle, backend="onnxruntime")


def test_a_failed_export_leaves_what_was_there_and_nothing_else(exported, tmp_path, monkeypatch):
    _, checkpoint, bundle = exported["state-ddim"]
    shutil.copytree(bundle, tmp_path / "bundle")

    def break_off(graph, path):
        path.write_bytes(b"half a")
        raise OSError("no space left")

    monkeypatch.setattr("policies.export.write_graph", break_off)
    for name in ("bundle", "new"):
        with pytest.raises(OSError, match="no space left"):
            export(checkpoint, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    Runtime.load(tmp_path / "bundle")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_robot_needs_no_torch(backend, exported):
    _, _, bundle = exported["image-ddpm"]
    script = f"""
import sys
import numpy as np
from execution.observation import Observation
from policies.loading import load_runtime
runtime = load_runtime({str(bundle)!r}, {backend!r})
values = {{
    o.feature.key: np.ones((o.history, *o.feature.shape), o.feature.dtype) for o in runtime.contract.observations
}}
print(runtime.start(0).act(Observation(0, values)).horizon)
print([m for m in ("torch", "diffusers", "scipy", "pandas", "mujoco", "onnx") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["16", "[]"]


def test_signals_arrive_after_many_runtimes_have_come_and_gone(exported):
    """Every OpenVINO core takes the process's signal stack and gives back, when it goes, what it found: with several of
    them that could be another's freed memory, and the next Ctrl-C was a segmentation fault."""
    bundle = exported["state-ddim"][2]
    script = f"""
import os, signal
from policies.runtime import Runtime
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
runtimes = [Runtime.load({str(bundle)!r}) for _ in range(3)]
while runtimes:
    runtimes.pop(0)
    os.kill(os.getpid(), signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, 3 * "interrupted\n"), done.stderr


def test_a_checkpoint_can_be_sampled_otherwise_and_a_bundle_cannot(exported, make_observation):
    policy, checkpoint, bundle = exported["state-ddim"]
    observation = make_observation(policy.contract, seed=1, stamp_ns=1)
    chunks = [
        load_runtime(checkpoint, sampling=sampling).start(0).act(observation).actions
        for sampling in (None, {"inference_steps": "10"}, {"inference_steps": "16"})
    ]
    assert np.array_equal(chunks[0], chunks[1])
    assert not np.allclose(chunks[0], chunks[2])
    with pytest.raises(ValueError, match="is a bundle: --device and --sampling are for checkpoints"):
        load_runtime(bundle, sampling={"inference_steps": "16"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(exported):
    _, checkpoint, bundle = exported["state-ddim"]
    with pytest.raises(ValueError, match="sees no GPU; leave --device out"):
        load_runtime(checkpoint, device="cuda")
    with pytest.raises(ValueError, match="is a bundle"):
        load_runtime(bundle, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_gpu_gives_what_the_cpu_gives(variant, exported, make_observation):
    policy, checkpoint, _ = exported[variant]
    observation = make_observation(policy.contract, seed=1, stamp_ns=1)
    cpu, gpu = (load_runtime(checkpoint, device=d).start(0).act(observation).actions for d in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu, cpu, atol=1e-3)
