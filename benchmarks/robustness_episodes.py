"""What becomes of robots in a condition: the part of `benchmarks.robustness` that simulates."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.robustness_regimes import PERIOD_S, Condition, Forces, drawn_forces, make_task
from benchmarks.robustness_walkers import Walker
from policies.hinfinity.attack import Attack, Attacker, attack_config, new_disturber
from policies.hinfinity.networks import Disturber
from policies.tensors import load_strictly, read_tensors, write_tensors

STARTS, FORCES, TRAINING, DRAWS = range(4)  # what seeds are for: no two draw the same numbers
PROTOCOL = 3  # raised when what is measured changes, so that no cell of before is taken for one of now
ATTACK_PROTOCOL = 3  # the same for how disturbers are trained
BEFORE_FALL_S = 0.5  # how far back `Episodes.push` looks
DESCRIPTION = "attack"  # in the metadata of a kept disturber

OnSteps = Callable[[int], object]


@dataclass(frozen=True)
class Settings:
    """What all cells have in common.

    Attributes:
        episodes: of a cell, all stepped together.
        seed: of the commands, the starts, the noise and the forces.
        episode_s: longest, s.
        threads: of the simulation; no result depends on them.
        attack_steps: control periods, of all robots together, that a disturber of `adversary` is trained for.
        attack_envs: robots that it is trained on.
        cache: where trained disturbers are kept.
    """

    episodes: int = 200
    seed: int = 0
    episode_s: float = 20.0
    threads: int = 2
    attack_steps: int = 1_000_000
    attack_envs: int = 256
    cache: Path = Path("runs/robustness")

    def sub_seed(self, purpose: int) -> int:
        """A seed for one of STARTS, FORCES, TRAINING, DRAWS."""
        return int(np.random.SeedSequence((self.seed, purpose)).generate_state(1)[0])

    @property
    def steps(self) -> int:
        """Control periods of an episode."""
        return round(self.episode_s / PERIOD_S)


@dataclass(frozen=True, eq=False)
class Episodes:
    """What became of each episode of a cell; episode i of one policy is episode i of every other.

    Attributes:
        survived: it did not fall and the physics held, [E].
        diverged: the physics did not hold, [E].
        left: it came to the border of the ground, where it was stopped; it survived, [E].
        alive_s: until it fell or was stopped, s, [E].
        tracking_error: of the horizontal velocity, mean over that time, m/s, [E].
        push: mean force in the last half second of that time, heading frame (forward, left, up), N, [E, 3].
    """

    survived: NDArray[np.bool_]
    diverged: NDArray[np.bool_]
    left: NDArray[np.bool_]
    alive_s: NDArray[np.float64]
    tracking_error: NDArray[np.float64]
    push: NDArray[np.float64]

    def to_dict(self) -> dict[str, list[Any]]:
        """In plain data."""
        return {name: value.tolist() for name, value in vars(self).items()}

    @staticmethod
    def from_dict(data: dict[str, list[Any]]) -> Episodes:
        """What `to_dict` gave."""
        return Episodes(**{name: np.array(value) for name, value in data.items()})


# -- episodes ----------------------------------------------------------------------------------------------------------


def run_episodes(
    walker: Walker, condition: Condition, settings: Settings, forces: Forces | None, on_steps: OnSteps
) -> Episodes:
    """All episodes of a cell at once, each until it falls or its time is over.

    `on_steps` is told how many steps were made or, in the end, need not be.
    """
    count, steps = settings.episodes, settings.steps
    seed = settings.sub_seed(STARTS)
    alive = np.ones(count, dtype=np.bool_)
    fell, diverged, left = (np.zeros(count, dtype=np.bool_) for _ in range(3))
    age, counted, error, push = np.zeros(count), np.zeros(count), np.zeros(count), np.zeros((count, 3))
    lately: deque[NDArray[np.float64]] = deque(maxlen=round(BEFORE_FALL_S / PERIOD_S))
    step = 0
    with make_task(walker.robot, condition, count, seed, settings.threads, settings.episode_s, restart=False) as task:
        while step < steps and alive.any():
            force = None if forces is None else forces(step, task.privileged) * alive[:, None]
            result = task.step(walker.act(task.observation), force)
            lately.append(np.zeros((count, 3)) if force is None else force)
            step += 1
            age += alive
            counted += alive & ~result.broken
            error += np.where(alive, result.velocity_error, 0.0)  # 0 where the physics went astray
            fell |= alive & result.fell
            diverged |= alive & result.broken
            left |= alive & result.timed_out & ~result.broken & (step < steps)
            ended = alive & (result.fell | result.timed_out)
            push[ended] = np.mean(lately, axis=0)[ended]
            alive &= ~ended
            on_steps(count)
    on_steps((steps - step) * count)
    return Episodes(
        survived=~(fell | diverged),
        diverged=diverged,
        left=left,
        alive_s=age * task.period_s,
        tracking_error=error / np.maximum(counted, 1),
        push=push,
    )


def measure(
    walker: Walker, condition: Condition, settings: Settings, on_steps: OnSteps = lambda steps: None
) -> dict[str, Any]:
    """A cell: {"episodes": as `Episodes.to_dict` has it, "attack": how the disturber's training went, or None}."""
    if condition.regime.name == "adversary":
        disturber, training = trained_disturber(walker, condition, settings, on_steps)
        attacker = Attacker(disturber, condition.level, settings.episodes, settings.sub_seed(DRAWS))
        episodes = run_episodes(walker, condition, settings, lambda _, seen: attacker.force(seen), on_steps)
        return {"episodes": episodes.to_dict(), "attack": training}
    forces = drawn_forces(condition, settings.episodes, settings.steps, settings.sub_seed(FORCES))
    return {"episodes": run_episodes(walker, condition, settings, forces, on_steps).to_dict(), "attack": None}


def total_steps(condition: Condition, settings: Settings) -> int:
    """About what `measure` makes of them: control periods of all robots together."""
    attack = settings.attack_steps if condition.regime.name == "adversary" else 0
    return attack + settings.steps * settings.episodes


# -- the adversary -----------------------------------------------------------------------------------------------------


def trained_disturber(
    walker: Walker, condition: Condition, settings: Settings, on_steps: OnSteps
) -> tuple[Disturber, dict[str, float]]:
    """The disturber of a policy at a bound, trained unless it is in the cache; and how its training went."""
    seed = settings.sub_seed(TRAINING)
    described = attack_description(walker, condition, settings)
    file = settings.cache / "attacks" / f"{key(described)}.safetensors"
    with make_task(walker.robot, condition, settings.attack_envs, seed, settings.threads, 20.0, restart=True) as task:
        if file.exists():
            tensors, metadata = read_tensors(file)
            kept = json.loads(metadata[DESCRIPTION])
            disturber = new_disturber(task.privileged.shape[1], attack_config(condition.level, seed))
            load_strictly(disturber, tensors, str(file))
            on_steps(settings.attack_steps)
            return disturber, kept["training"]
        attack = Attack(task, walker.act, condition.level, seed)
        training = attack.run(settings.attack_steps, on_steps)
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {"description": described, "training": training}
    write_tensors(file, attack.disturber.state_dict(), {DESCRIPTION: json.dumps(kept)})
    return attack.disturber, training


def attack_description(walker: Walker, condition: Condition, settings: Settings) -> dict[str, Any]:
    """All that the disturber depends on, in plain data."""
    return {
        "protocol": [PROTOCOL, ATTACK_PROTOCOL],
        "policy": walker.digest,
        "force_n": condition.force_n,
        "steps": settings.attack_steps,
        "envs": settings.attack_envs,
        "seed": settings.seed,
    }


def cell_description(walker: Walker, condition: Condition, settings: Settings) -> dict[str, Any]:
    """All that a cell's numbers depend on, in plain data."""
    import mujoco

    adversary = condition.regime.name == "adversary"
    return {
        "protocol": PROTOCOL,
        "policy": walker.digest,
        "regime": condition.regime.name,
        "level": condition.level,
        "episodes": settings.episodes,
        "seed": settings.seed,
        "episode_s": settings.episode_s,
        "mujoco": mujoco.__version__,
        "attack": attack_description(walker, condition, settings) if adversary else None,
    }


def key(description: dict[str, Any]) -> str:
    """A short name of a description, one-to-one."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:20]
