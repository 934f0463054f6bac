"""MuJoCo worlds as Gymnasium environments, scripted experts, data collection, evaluation and re-simulation.

Importing it registers the environments, so `gymnasium.make("sim:visuomotor/drawer-open-v3")` needs nothing else.

`sim` is handed policies as callables and never imports them. Meta-World and MuJoCo are imported when the first
environment is made, so the rest works, and says what is missing, where they are not installed.
"""

from __future__ import annotations

from gymnasium.envs.registration import register as register_env
from gymnasium.envs.registration import registry

from sim.environments import MetaWorldEnv
from sim.tasks import EPISODE_STEPS, TASKS

__all__ = ["TASKS", "MetaWorldEnv", "register"]

NAMESPACE = "visuomotor"


def register() -> None:
    """Register `visuomotor/<task>-v3` for all 50 tasks, with the state observation set unless `gymnasium.make` is told.

    Done when `sim` is imported, which is how Gymnasium 1.x finds environments. Calling it again changes nothing.
    """
    for task in TASKS:
        env_id = f"{NAMESPACE}/{task}-v3"
        if env_id in registry:
            continue
        register_env(
            id=env_id,
            entry_point="sim.environments:MetaWorldEnv",
            kwargs={"task": task},
            max_episode_steps=EPISODE_STEPS,
        )


register()
