"""The first words of a bundle's model card: what the files themselves know. People add how well it works."""

from __future__ import annotations

from pathlib import Path

from contracts import PolicyContract
from policies.parts import Parts
from policies.runtime.sampler import LocomotionSampler


def model_card(parts: Parts, bundle: Path, files: Path) -> str:
    """Markdown about the bundle that will be `bundle`, whose graphs lie in the directory `files`."""
    contract = parts.contract
    size = sum(file.stat().st_size for file in files.glob("*.onnx")) / 1e6
    rows = {
        "policy": contract.policy,
        "robot": contract.robot,
        "task": ", ".join(contract.task.splitlines()),
        "sees": _observations(contract),
        "gives": _actions(contract),
        "size": f"{size:.1f} MB",
        **parts.told,
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    return f"""# {contract.policy} on {contract.robot}: {rows["task"]}

| | |
| --- | --- |
{table}

{_usage(parts, bundle)}

The runtime reads `manifest.json` and checks every file against it; this card may be edited.
Not functional safety: a real robot needs a hardware emergency stop within reach.
"""


def _observations(contract: PolicyContract) -> str:
    parts = [
        f"`{o.feature.key}` ({'x'.join(map(str, o.feature.shape))}, the latest {o.history})"
        for o in contract.observations
    ]
    return f"{', '.join(parts)} of the set `{contract.observation_set}`"


def _actions(contract: PolicyContract) -> str:
    elements = zip(contract.action.names, contract.action.units, strict=True)
    named = ", ".join(f"{name} [{unit}]" for name, unit in elements)
    period_ms = contract.action_period_s * 1e3
    executed = f"of which {contract.execute} {'is' if contract.execute == 1 else 'are'}"
    return f"{contract.horizon} actions, {period_ms:g} ms apart, {executed} executed: {named}"


def _usage(parts: Parts, bundle: Path) -> str:
    robot = parts.contract.robot
    if isinstance(parts.sampler, LocomotionSampler):
        how = "--task flat --velocity 0.5 0 0"
        return f"""    visuomotor run --robot {robot} --policy {bundle.name} {how} --output runs/{robot}

A `geometry_msgs/msg/Twist` on the robot's topic for it says where to go; `--velocity` sends it (to send your own, leave
that out and set `ROS_DOMAIN_ID=0`). What exceeds the velocity commands above is cut, and silence means to stand. The
robot first stands up, slowly. When the policy or the measurements are lost, it sinks: only the joints' damping acts."""
    return f"""    visuomotor eval {bundle.name} --task TASK
    visuomotor run --robot {robot} --policy {bundle.name} --task TASK --output runs/TASK"""
