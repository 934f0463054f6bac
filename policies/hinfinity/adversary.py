"""How the disturber learns: by a PPO of its own, to do much harm with little force."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.hinfinity.config import HInfinityConfig
from policies.hinfinity.figures import Tally
from policies.hinfinity.forces import DISTURBER
from policies.hinfinity.guarded import Guard, GuardedAdam
from policies.hinfinity.mirror import Mirror
from policies.hinfinity.networks import Disturber, entropy, log_probability
from policies.hinfinity.objectives import clipped_surrogate, generalized_advantage
from policies.hinfinity.rollout import Rollout, shuffled


class Adversary:
    """Maximises the discounted sum of C - price |d|, pushing as much one way as the other in the mean.

    The disturber decides only where a new force begins, and is paid for every step until the next: advantages are
    estimated step by step, and those of the deciding steps count.
    """

    def __init__(
        self,
        config: HInfinityConfig,
        disturber: Disturber,
        lost: float,
        generator: torch.Generator,
        guard: Guard,
        mirror: Mirror | None = None,
    ) -> None:
        """`lost`: what a fall costs the task from then on; `mirror` keeps a symmetric disturber so."""
        self.config, self.disturber, self.generator = config, disturber, generator
        worst = config.disturber_fall * lost
        self.unit = worst if worst > 0 else 1.0  # so that what it values is of the order of 1
        self.fallen = torch.tensor([[worst / self.unit]], device=disturber.policy.log_std.device)
        # Apart: the gradient of what forces are worth is the larger one, and would leave no norm to that of choosing.
        self.choosing = GuardedAdam(disturber.policy.parameters(), config.gradient_clip, guard, mirror)
        self.judging = GuardedAdam(disturber.value.parameters(), config.gradient_clip, guard, mirror)

    def learn(self, rollout: Rollout, who: Tensor, period_s: float, autocast: torch.autocast) -> dict[str, float]:
        """All updates from one rollout; figures to log. Raises TrainingDiverged."""
        decided = rollout.decided
        if int(decided.sum()) < 2:  # nothing to compare
            return {}
        config, disturber, tally = self.config, self.disturber, Tally()
        with torch.no_grad():
            with autocast:
                value, next_value = rollout.values(disturber.worth(rollout.privileged), disturber.worth, self.fallen)
            value, next_value = value.squeeze(-1), next_value.squeeze(-1)
            gain = (rollout.cost - config.disturber_price * rollout.force.norm(dim=-1) * period_s) / self.unit
            lam = config.disturber_lam
            advantage = generalized_advantage(gain, value, next_value, rollout.done, config.gamma, lam)
            chosen = advantage[decided]
            chosen = (chosen - chosen.mean()) / (chosen.std() + 1e-8)
            seen, raw = rollout.privileged[:-1][decided], rollout.raw_force[decided]
            before = log_probability(raw, disturber.policy(seen), disturber.policy.log_std)
        rows = (who == DISTURBER).nonzero().squeeze(1)
        all_seen = rollout.privileged[:-1, rows].flatten(0, 1)
        target = (value + advantage)[:, rows].flatten()
        for _ in range(config.epochs):
            samples = shuffled(len(all_seen), self.generator, target.device).chunk(config.minibatches)
            for sample in samples:
                decision = shuffled(len(seen), self.generator, target.device)  # all: they are few
                watched, looked, drew = all_seen[sample], seen[decision], raw[decision]
                with autocast:
                    worth = disturber.worth(watched).squeeze(-1)
                mean, log_std = disturber.policy(looked), disturber.policy.log_std
                ratio = torch.exp(log_probability(drew, mean, log_std) - before[decision])
                surrogate = clipped_surrogate(ratio, chosen[decision], config.clip_ratio).mean()
                value_loss = ((worth - target[sample]) ** 2).mean()
                loss = config.disturber_balance * mean.mean(dim=0).square().sum() - surrogate
                loss = loss - config.disturber_entropy * entropy(log_std)
                self.choosing.step(loss, config.disturber_learning_rate, "the disturber")
                self.judging.step(value_loss, config.disturber_learning_rate, "the disturber's values")
                disturber.policy.keep_std()
                tally.add(surrogate=float(surrogate.detach()), value_loss=float(value_loss.detach()))
        std = float(disturber.policy.log_std.detach().exp().mean())
        return {f"disturber/{name}": value for name, value in (tally.means() | {"std": std}).items()}
