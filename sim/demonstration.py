"""One episode of a scripted expert."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from episodes.data import EpisodeData
from sim.environments import MetaWorldEnv
from sim.experts import Expert
from sim.tasks import EPISODE_STEPS

STEPS_AFTER_SUCCESS = 10
"""Steps recorded after success, so that a policy learns to stay there."""

NOISE_STREAM = 0x0A27
"""Keeps the generator of the noise apart from the one that places the objects."""


def demonstrate(env: MetaWorldEnv, expert: Expert, seed: int, noise: float = 0.0) -> EpisodeData:
    """Let `expert` solve the episode of `seed`; everything in the result follows from the arguments.

    With `noise`, Gaussian noise is added to the executed end-effector velocity while the label stays the expert's own
    action for the state that the noise led to (DART: Laskey et al. 2017), so that the policy learns to come back. The
    gripper is not disturbed. What was executed is then in `executed`.

    Args:
        env: of the same task.
        expert: of the same task.
        seed: of the episode.
        noise: standard deviation, as a fraction of the full command.
    """
    generator = np.random.default_rng([NOISE_STREAM, seed])
    deviation = noise * np.array([c.max if c.measured_by else 0.0 for c in env.robot.command.channels])
    observation, _ = env.reset(seed=seed)
    observations: list[dict[str, npt.NDArray[np.generic]]] = []
    labels, executed = [], []
    success = False
    remaining = EPISODE_STEPS
    while remaining > 0:
        label = expert.act(env)
        disturbed = label + deviation * generator.standard_normal(len(label))
        observations.append(observation)
        labels.append(label)
        observation, _, terminated, _, _ = env.step(disturbed if noise else label)
        executed.append(env.applied_action)
        remaining -= 1
        if terminated and not success:
            success = True
            remaining = min(remaining, STEPS_AFTER_SUCCESS)
    return EpisodeData(
        observations={key: np.stack([o[key] for o in observations]) for key in observations[0]},
        actions=np.stack(labels),
        task=env.instruction,
        task_name=env.task,
        seed=seed,
        success=success,
        executed=np.stack(executed) if noise else None,
    )
