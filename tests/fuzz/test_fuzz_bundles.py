"""A damaged bundle is refused with a BundleError, or it is whole and acts; nothing that lies in one crashes a robot."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import RobotContract, check_compatible
from contracts.compare import ContractMismatch
from execution.observation import Observation
from policies.runtime import BundleError, PolicyOutputError, Runtime
from policies.runtime.bundle import CARD_FILE, CONTRACT_FILE, MANIFEST_FILE, ROBOT_FILE, SAMPLER_FILE, write_manifest

GRAPHS = ("encoder.onnx", "denoiser.onnx", "decoder.onnx")
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
near = st.integers(-2, 200) | st.floats(-10, 10)
"""Numbers that may pass for one of the sizes, steps and coefficients."""


def load_and_act(path: Path, backend: str, robot: RobotContract) -> bool:
    """False if the bundle is refused; a bundle that loads also acts, or says what is wrong with its output."""
    try:
        runtime = Runtime.load(path, backend=backend)  # type: ignore[arg-type]
        check_compatible(runtime.contract, robot)
    except (BundleError, ContractMismatch) as error:
        assert str(error)
        return False
    random = np.random.default_rng(0)
    values = {
        o.feature.key: random.integers(0, 256, (o.history, *o.feature.shape)).astype(o.feature.dtype)
        for o in runtime.contract.observations
    }
    try:
        chunk = runtime.start(seed=0).act(Observation(stamp_ns=1, values=values))
    except PolicyOutputError:
        return True
    assert chunk.names == robot.action_feature.names
    assert all(math.isfinite(number) for number in chunk.actions.flat)
    return True


@settings(settings.get_profile("fuzz"))
@given(data=st.data(), backend=st.sampled_from(["openvino", "onnxruntime"]))
def test_a_damaged_bundle_is_refused(data, backend, bundle, robot, tmp_path, copied, damage_files) -> None:
    with copied(bundle, tmp_path) as path:
        touched = damage_files(data.draw, path)
        loaded = load_and_act(path, backend, robot)
        assert not loaded or touched <= {path / MANIFEST_FILE, path / CARD_FILE}, "its manifest did not notice"


@settings(settings.get_profile("fuzz"))
@given(data=st.data(), backend=st.sampled_from(["openvino", "onnxruntime"]))
def test_graphs_of_anything_are_refused_or_act(data, backend, bundle, robot, tmp_path, copied, damage_files) -> None:
    """The manifest is made anew, so that the damage reaches the engines."""
    with copied(bundle, tmp_path) as path:
        damage_files(data.draw, path, [path / name for name in GRAPHS])
        write_manifest(path)
        load_and_act(path, backend, robot)


@settings(settings.get_profile("fuzz"))
@given(data=st.data(), file=st.sampled_from([CONTRACT_FILE, SAMPLER_FILE, ROBOT_FILE, MANIFEST_FILE]))
def test_json_that_says_something_else_is_refused_or_fits(data, file, bundle, robot, tmp_path, copied) -> None:
    with copied(bundle, tmp_path) as path:
        content: Any = json.loads((path / file).read_text())
        place, key = content, data.draw(st.sampled_from(sorted(content)))
        while isinstance(place[key], dict | list) and place[key] and data.draw(st.integers(0, 3)):
            place = place[key]
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        how = data.draw(st.sampled_from(["anything", "near", "twice", "gone"]))
        if how == "twice" and isinstance(place, list):
            place.append(place[key])
        elif how == "gone":
            del place[key]
        else:
            place[key] = data.draw(anything if how == "anything" else near)
        (path / file).write_bytes(json.dumps(content).encode("utf-8", "surrogatepass"))
        if file != MANIFEST_FILE:
            write_manifest(path)
        load_and_act(path, "onnxruntime", robot)


def test_the_whole_bundle_acts(bundle, robot) -> None:
    """Otherwise the others would pass by refusing everything."""
    assert load_and_act(bundle, "openvino", robot)
    assert load_and_act(bundle, "onnxruntime", robot)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_in_the_place_of_another_is_refused(name, bundle, robot, tmp_path, copied) -> None:
    with copied(bundle, tmp_path) as path:
        for other in set(GRAPHS) - {name}:
            (path / name).write_bytes((bundle / other).read_bytes())
            write_manifest(path)
            assert not load_and_act(path, "openvino", robot)
