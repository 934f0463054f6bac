"""rsl-rl-lib's PPO (5.x) in our environment, for `benchmarks.locomotion_speed`. Not a dependency of the project."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import torch

from policies.hinfinity.config import HInfinityConfig
from sim.legged.figures import JOINTS
from sim.legged.task import LocomotionTask


class VecEnv:
    """Our environment as rsl_rl wants it (`rsl_rl.env.VecEnv`)."""

    def __init__(self, task: LocomotionTask) -> None:
        self.task = task
        self.num_envs, self.num_actions = task.count, len(JOINTS)
        self.max_episode_length = round(task.config.episode_s / task.period_s)
        self.episode_length_buf = torch.zeros(task.count, dtype=torch.long)
        self.device = "cpu"
        self.cfg: dict[str, Any] = {}

    def get_observations(self) -> Any:
        """What actor and critic see."""
        from tensordict import TensorDict

        parts = {
            "policy": torch.from_numpy(self.task.observation.copy()),
            "critic": torch.from_numpy(self.task.privileged),
        }
        return TensorDict(parts, batch_size=[self.num_envs])

    def step(self, actions: torch.Tensor) -> tuple[Any, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """One control period."""
        step = self.task.step(actions.numpy())
        timed_out = torch.from_numpy(step.timed_out)
        done = (torch.from_numpy(step.fell) | timed_out).long()
        return self.get_observations(), torch.from_numpy(step.reward), done, {"time_outs": timed_out}


def rsl_rl_loop(task: LocomotionTask, config: HInfinityConfig) -> Callable[[], int]:
    """An iteration with the same networks, epochs, minibatches and steps as `config` has."""
    from rsl_rl.runners import OnPolicyRunner

    network = {"class_name": "MLPModel", "activation": "elu", "obs_normalization": False}
    choices = {
        "class_name": "PPO",
        "num_learning_epochs": config.epochs,
        "num_mini_batches": config.minibatches,
        "clip_param": config.clip_ratio,
        "gamma": config.gamma,
        "lam": config.lam,
        "value_loss_coef": config.value_weight,
        "entropy_coef": config.entropy,
        "learning_rate": config.learning_rate,
        "max_grad_norm": config.gradient_clip,
        "schedule": "adaptive",
        "desired_kl": config.desired_kl,
    }
    distribution = {"class_name": "GaussianDistribution", "init_std": config.initial_std, "std_type": "log"}
    settings = {
        "num_steps_per_env": config.rollout_steps,
        "save_interval": 10**9,
        "obs_groups": {"actor": ["policy"], "critic": ["critic"]},
        "actor": network | {"hidden_dims": list(config.actor_widths), "distribution_cfg": distribution},
        "critic": network | {"hidden_dims": list(config.critic_widths)},
        "algorithm": choices,
    }
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its networks
        runner = OnPolicyRunner(VecEnv(task), settings, log_dir=None, device="cpu")

    def work() -> int:
        with contextlib.redirect_stdout(io.StringIO()):  # and a table an iteration
            runner.learn(1)
        return config.rollout_steps * task.count

    return work
