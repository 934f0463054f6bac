"""Checkpoints and bundles that were damaged, mixed up or made up are refused with the reason."""

from __future__ import annotations

import json
import shutil

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.checkpoint import load_checkpoint
from policies.export import export
from policies.loading import load_runtime
from policies.runtime import BundleError, Runtime
from policies.runtime.bundle import write_manifest
from policies.tensors import CheckpointError, read_tensors, write_tensors


@pytest.fixture(scope="module")
def whole(tmp_path_factory, make_checkpoint, tiny):
    """A checkpoint and its bundle, not to be changed."""
    root = tmp_path_factory.mktemp("whole")
    make_checkpoint(root / "checkpoint", "state", tiny)
    make_checkpoint(root / "wider", "state", msgspec.structs.replace(tiny, widths=(32, 32)))
    return root / "checkpoint", export(root / "checkpoint", root / "bundle"), export(root / "wider", root / "other")


@pytest.fixture
def checkpoint(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "checkpoint")


@pytest.fixture
def bundle(whole, tmp_path):
    return shutil.copytree(whole[1], tmp_path / "bundle")


def test_every_difference_of_the_weights_is_listed(checkpoint):
    tensors, _ = read_tensors(checkpoint / "model.safetensors")
    del tensors["unet.film.bias"]
    tensors["surplus"] = torch.zeros(3)
    tensors["actions.center"] = torch.zeros(5)
    tensors["actions.half_range"] = torch.tensor([1, 1, 1, float("nan")])
    tensors["unet.film.weight"] = tensors["unet.film.weight"].half()
    write_tensors(checkpoint / "model.safetensors", tensors, {})
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(checkpoint)
    for part in (
        "missing: unet.film.bias",
        "not of this network: surplus",
        "actions.center: is torch.float32 (5,), must be torch.float32 (4,)",
        "actions.half_range: has numbers that are not finite",
        "unet.film.weight: is torch.float16",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("policy", "widths"), [16, 33], "multiple of 8"),
        (("policy", "colour"), "red", "colour"),
        (("contract", "policy"), "magic", "no policy 'magic'"),
        (("contract", "action_period_s"), "fast", "action_period_s"),
        (("policy", "widths"), [32, 32], "not this network's weights"),
    ],
)
def test_configuration_that_does_not_fit_is_refused(path, value, message, checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config[path[0]][path[1]] = value
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_truncated_or_missing_file_of_a_checkpoint_is_named(name, checkpoint):
    file = checkpoint / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(checkpoint)
    file.unlink()
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(checkpoint)


def test_a_disk_that_fails_while_weights_are_written_leaves_the_old_ones_alone(tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    write_tensors(file, {"weight": torch.ones(3)}, {"step": "1"})

    def fail(descriptor):
        raise OSError("input/output error")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="input/output error"):
        write_tensors(file, {"weight": torch.zeros(3)}, {"step": "2"})
    assert read_tensors(file)[1] == {"step": "1"}
    assert list(tmp_path.iterdir()) == [file]


FILES = [
    "manifest.json",
    "contract.json",
    "robot.json",
    "sampler.json",
    "encoder.onnx",
    "denoiser.onnx",
    "decoder.onnx",
]


@pytest.mark.parametrize("name", FILES)
def test_truncated_or_missing_file_of_a_bundle_is_named(name, bundle):
    file = bundle / name
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(BundleError, match=name):
        Runtime.load(bundle)
    file.unlink()
    with pytest.raises(BundleError, match=name):
        load_runtime(bundle)


@pytest.mark.parametrize("name", FILES)
def test_file_that_was_tampered_with_but_listed_anew_is_refused(name, bundle):
    """What the checksums cannot see is found by reading."""
    if name == "manifest.json":
        (bundle / name).write_text('{"format": 2, "files": {}}')
    else:
        (bundle / name).write_bytes(b"\x08\x07nonsense")
        write_manifest(bundle)
    for backend in ("openvino", "onnxruntime"):
        with pytest.raises(BundleError, match=name):
            Runtime.load(bundle, backend=backend)


@pytest.mark.parametrize("name", FILES[1:])
def test_bundle_without_one_of_its_files_is_refused(name, bundle):
    (bundle / name).unlink()
    write_manifest(bundle)
    with pytest.raises(BundleError, match=f"lists no {name}|lacks {name}"):
        Runtime.load(bundle)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(("graph", "other"), [("encoder", "decoder"), ("decoder", "encoder"), ("denoiser", "encoder")])
def test_mixed_up_graphs_are_refused(graph, other, backend, bundle):
    shutil.copy(bundle / f"{other}.onnx", bundle / f"{graph}.onnx")
    write_manifest(bundle)
    with pytest.raises(BundleError, match=rf"{graph}.onnx: (takes|gives) .*must"):
        Runtime.load(bundle, backend=backend)


def test_graph_of_another_policy_with_the_same_shapes_is_seen_by_its_checksum(whole, bundle):
    shutil.copy(whole[2] / "denoiser.onnx", bundle / "denoiser.onnx")
    with pytest.raises(BundleError, match="denoiser.onnx"):
        Runtime.load(bundle)


def test_contract_that_the_graphs_do_not_keep_is_refused(bundle):
    contract = json.loads((bundle / "contract.json").read_text())
    contract["horizon"] = 8
    (bundle / "contract.json").write_text(json.dumps(contract))
    write_manifest(bundle)
    with pytest.raises(BundleError, match=r"denoiser.onnx: takes .*\[1, 16, 4\].*must take .*\[1, 8, 4\]"):
        Runtime.load(bundle)


def test_manifest_cannot_reach_outside_of_the_bundle(bundle):
    (bundle.parent / "secret.onnx").write_bytes(b"x")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["../secret.onnx"] = {"bytes": 1, "sha256": "0"}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="not a plain file name"):
        Runtime.load(bundle)


@pytest.mark.fuzz
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_is_found(data, whole, tmp_path_factory):
    name = data.draw(st.sampled_from(FILES))
    original = (whole[1] / name).read_bytes()
    place = data.draw(st.integers(0, len(original) - 1))
    bits = data.draw(st.integers(1, 255))
    copy = tmp_path_factory.mktemp("flipped") / "bundle"
    shutil.copytree(whole[1], copy)
    (copy / name).write_bytes(original[:place] + bytes([original[place] ^ bits]) + original[place + 1 :])
    try:
        Runtime.load(copy)
    except BundleError:
        return
    # A byte of white space in the manifest may change without changing what it says.
    assert name == "manifest.json"
    assert json.loads((copy / name).read_text()) == json.loads(original)
