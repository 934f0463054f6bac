"""What tests of several rooms share: a walking policy that was never trained, and patience with a shared machine."""

from __future__ import annotations

from pathlib import Path

import pytest

HELD_TO_THE_CLOCK = (
    "ros_nodes", "fuzz/test_fuzz_graph.py", "fuzz/test_fuzz_policy_node.py", "execution/test_deadline.py"
)  # fmt: skip
TRIES = 3
BREATH_S = 5  # before another try: a stall of the machine takes a while


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is held to the clock. A shared machine can stall for longer than the bounds are: another try then.

    What is broken fails every time; the report lists each try that failed.
    """
    tests = Path(__file__).parent
    for item in items:
        if item.path.relative_to(tests).as_posix().startswith(HELD_TO_THE_CLOCK):
            item.add_marker(pytest.mark.realtime)
        if item.get_closest_marker("realtime"):
            item.add_marker(pytest.mark.flaky(reruns=TRIES - 1, reruns_delay=BREATH_S))


@pytest.fixture(scope="session")
def walking_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a Go2, without a training state: a small network that moves its legs a little, whatever it sees."""
    import torch

    from policies.checkpoint import CONFIG_FILE, WEIGHTS_FILE
    from policies.hinfinity.checkpoint import LocomotionCheckpoint
    from policies.hinfinity.config import HInfinityConfig
    from policies.tensors import write_tensors
    from sim.legged.figures import GO2
    from sim.legged.task import locomotion_contract

    config = LocomotionCheckpoint(
        config=HInfinityConfig(actor_widths=(16, 16), critic_widths=(8,), disturber="none"),
        locomotion=locomotion_contract(GO2, 0.02),
        robot="go2",
        privileged_size=79,
        environment={"commands": {"forward": 1.0, "left": 0.8, "turn": 1.0, "start": 0.5}, "environments": 12},
    )
    path = tmp_path_factory.mktemp("walking")
    torch.manual_seed(0)
    networks = config.build()
    with torch.no_grad():
        networks.actor.body[-1].weight.mul_(10)  # type: ignore[operator]
    (path / CONFIG_FILE).write_text(config.to_json())
    write_tensors(path / WEIGHTS_FILE, networks.state_dict(), {})
    return path


@pytest.fixture(scope="session")
def walking_bundle(walking_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, exported."""
    from policies.export import export

    return export(walking_checkpoint, tmp_path_factory.mktemp("bundles") / "walking")
