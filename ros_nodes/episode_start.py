"""What a policy is told at the start of each episode of a run, checked before anything starts. Imports no ROS."""

from __future__ import annotations

from contracts import RobotContract
from policies.runtime.bundle import Bundle
from policies.runtime.runtime import episode_start


def choose_instruction(robot: RobotContract, task: str, given: str | None = None) -> str:
    """What the policy is asked to do: the text `given`, or else what the task asks for (`task_text`).

    Raises:
        ValueError: the simulated body has no such task.
    """
    text = task_text(robot, task)
    return given or text


def task_text(robot: RobotContract, task: str) -> str:
    """What a task asks for, in words: Meta-World's sentence, a quadruped's terrain, or the text itself on a real robot.

    Raises:
        ValueError: the simulated body has no such task.
    """
    if robot.body == "external":  # whose computer has no simulator
        return task
    if robot.body == "quadruped":
        from sim.legged.terrain import TERRAINS

        if task not in TERRAINS:
            raise ValueError(f"no terrain {task!r} for {robot.name}; there are {', '.join(TERRAINS)}")
        return task
    from sim.tasks import instruction

    return instruction(task)


def check_start(bundle: Bundle, instruction: str, prefix: int) -> None:
    """Refuse what `policies.runtime.Runtime.start` would refuse, without making the graphs ready to run.

    Raises:
        ValueError: the policy does not know the instruction (it lists those known), or cannot do the prefix.
    """
    try:
        episode_start(bundle.contract, bundle.sampler, 0, instruction, prefix)
    except ValueError as error:
        raise ValueError(f"{bundle.path}: {error}") from None
