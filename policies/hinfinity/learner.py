"""PPO under the H-infinity constraint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from contracts.reflection import Reflection
from policies.hinfinity.adversary import Adversary
from policies.hinfinity.config import HInfinityConfig
from policies.hinfinity.figures import Tally, falls_that_pay, force_figures
from policies.hinfinity.forces import DISTURBER, NOBODY
from policies.hinfinity.guarded import Guard, GuardedAdam
from policies.hinfinity.mirror import Mirror
from policies.hinfinity.networks import Disturber, Networks, entropy, kl_divergence, log_probability
from policies.hinfinity.objectives import (
    DualVariable,
    adapt_learning_rate,
    clipped_surrogate,
    clipped_value_loss,
    dissipation,
    generalized_advantage,
    normalized,
)
from policies.hinfinity.rollout import Rollout, Samples, shuffled
from policies.hinfinity.slopes import Shared, Slope, slope
from policies.hinfinity.workers import Workers

LEARNING_RATES = (1e-5, 1e-2)
ESTIMATED = 4  # of so many samples of an update one is for the estimator: it has hundreds of updates a minute
SURPRISE = 0.5  # error of the estimated velocity beyond which it counts linearly, in what the critic sees


def autocast(config: HInfinityConfig, device: torch.device) -> torch.autocast:
    """The precision in which the networks are run on a device."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


class Learner:
    """Makes the networks better from one rollout after another.

    Args:
        config: how.
        networks: all of them, on the device that is to learn.
        cost_bound: largest cost of a step.
        period_s: of a step.
        generator: of the minibatches.
        velocity: where the trunk's velocity stands in what the critic sees.
        workers: who share it.
        mirror: the environment's, by which symmetric networks stay so.

    Attributes:
        learning_rate: of actor and critic, as it is now.
        dual: lambda.
        guard: counts updates that were skipped.
    """

    def __init__(
        self,
        config: HInfinityConfig,
        networks: Networks,
        cost_bound: float,
        period_s: float,
        generator: torch.Generator,
        velocity: slice,
        workers: Workers,
        mirror: Mapping[str, Reflection] | None = None,
    ) -> None:
        self.config, self.networks, self.period_s, self.generator = config, networks, period_s, generator
        self.velocity, self.device = velocity, next(networks.parameters()).device
        self.workers = workers
        self.learning_rate = config.learning_rate
        self.dual = DualVariable(config.lambda_start, config.lambda_rate, config.lambda_max)
        self.guard = Guard()
        kept = Mirror(mirror, networks) if config.mirror and mirror is not None else None
        estimator = list(networks.actor.estimator.parameters())
        acting = [networks.actor.log_std, *networks.actor.body.parameters()]
        walker = [*acting, *networks.critic.parameters()]
        self.estimator = GuardedAdam(estimator, config.gradient_clip, self.guard, kept)
        self.optimizer = GuardedAdam(walker, config.gradient_clip, self.guard, kept)
        # Who has fallen has lost its task for good: were a fall worth no cost, it would be a way to save it.
        self.lost = cost_bound / (1 - config.gamma)
        self.adversary: Adversary | None = None
        if networks.disturber is not None:
            self.adversary = Adversary(config, networks.disturber, self.lost, generator, self.guard, kept)

    @property
    def optimizers(self) -> list[torch.optim.Adam]:
        """All that change the networks."""
        disturbing = [self.adversary.choosing, self.adversary.judging] if self.adversary else []
        return [optimizer.adam for optimizer in (self.optimizer, self.estimator, *disturbing)]

    def renew_disturber(self, fresh: Disturber) -> None:
        """Give the disturber the weights of another one, and forget how it learned."""
        assert self.networks.disturber is not None
        assert self.adversary is not None
        self.networks.disturber.load_state_dict(fresh.state_dict())
        for optimizer in (self.adversary.choosing, self.adversary.judging):
            optimizer.adam.state.clear()

    def learn(self, rollout: Rollout, who: Tensor, fall: Tensor, entropy_weight: float) -> dict[str, float]:
        """All updates from one rollout.

        Args:
            rollout: full, on whatever device.
            who: pushed whom, [N]; NOBODY where nobody was pushed yet. With any of DISTURBER's the constraint counts,
                and the disturber learns too.
            fall: what a fall is worth now, in reward, [N].
            entropy_weight: of the actor's entropy now.

        Returns:
            Figures to log.

        Raises:
            TrainingDiverged: nothing was finite for a while.
        """
        rollout, who, fall = rollout.to(self.device), who.to(self.device), fall.to(self.device)
        if not rollout.finite():
            self.guard.count(False, "what was collected")
            return {"learning/skipped": self.guard.skipped}
        constrained = bool((who == DISTURBER).any())
        samples, figures = self._samples(rollout, who, fall)
        size = math.ceil(len(samples) / self.config.minibatches)
        orders = [shuffled(len(samples), self.generator, self.device) for _ in range(self.config.epochs)]
        epochs = [order.split(size) for order in orders]
        # Neither depends on what actor and critic learn here: they have a core whenever those leave one idle.
        estimating = self.workers.beside(lambda: [self._estimate(samples, epoch) for epoch in epochs])
        disturbing = self.workers.beside(lambda: self._disturb(rollout, who) if constrained else {})
        walking = [self._walk(samples, epoch, entropy_weight) for epoch in epochs]
        means = walking[-1] | estimating.result()[-1]
        figures |= disturbing.result()
        # Once a rollout and not, as rsl_rl does it, after every minibatch: the first ones of a rollout hardly differ
        # from the old policy, so that there the rate rises to several times what the last ones bear.
        kl = means.get("kl", math.inf)
        self.learning_rate = adapt_learning_rate(self.learning_rate, kl, self.config.desired_kl, LEARNING_RATES)
        figures |= {f"learning/{name}": value for name, value in means.items()}
        if self.adversary is not None:
            if constrained:
                self.dual.update(figures.get("constraint/slack", 0.0))
            figures |= {"constraint/lambda": self.dual.value, "constraint/eta": self.config.eta}
        figures |= {
            "learning/std": float(self.networks.actor.log_std.detach().exp().mean()),
            "learning/learning_rate": self.learning_rate,
            "learning/skipped": self.guard.skipped,
        }
        return figures | force_figures(rollout, who, self.period_s)

    def _autocast(self) -> torch.autocast:
        return autocast(self.config, self.device)

    @torch.no_grad()
    def _samples(self, rollout: Rollout, who: Tensor, fall: Tensor) -> tuple[Samples, dict[str, float]]:
        """A rollout with its values, targets and advantages; and figures to log, the constraint's slack a second."""
        config = self.config
        # Where the constraint counts, a fall costs what it is worth besides: the reward minds falls beyond what they
        # cost the task, and lambda would weigh the task against standing.
        constrained = bool((who == DISTURBER).any())
        price = self.lost - fall if constrained else torch.full_like(fall, self.lost)
        fallen = torch.stack((fall, price), dim=1)

        critic = self.networks.critic
        judging = critic.body.acting()

        def judge(split: Tensor) -> Tensor:
            with self._autocast():
                return critic.body.of_split(split, judging).float()

        privileged = self.workers.rows(critic.body.split, rollout.privileged)
        value, next_value = rollout.values(self.workers.rows(judge, privileged), critic, fallen)
        paid = torch.stack((rollout.reward, rollout.cost), dim=-1)
        done = rollout.done[..., None]
        advantage = generalized_advantage(paid, value, next_value, done, config.gamma, config.lam)
        earned, lost = advantage[..., 0], advantage[..., 1]
        earned, scale = normalized(earned, who)
        log_std = self.networks.actor.log_std.clone()
        figures = {"learning/advantage_scale": float(scale.mean())} | falls_that_pay(value[..., 0], fall, who)
        disturbed = (who != NOBODY) & (who == DISTURBER).any()
        if disturbed.any():
            lost = lost - lost[:, disturbed].mean()
            intensity = rollout.force.norm(dim=-1) * self.period_s
            costs = rollout.cost, value[..., 1], next_value[..., 1]
            slack = dissipation(intensity, *costs, disturbed, who == NOBODY, config.eta)
            figures["constraint/slack"] = slack / self.period_s
        parts = {
            "acted_on": rollout.acted_on,
            "privileged": privileged[:-1],
            "action": rollout.action,
            "mean": rollout.mean,
            "log_probability": log_probability(rollout.action, rollout.mean, log_std),
            "value": value,
            "target": value + advantage,
            "advantage": earned,
            "cost_advantage": lost / scale,
            "velocity": rollout.privileged[:-1, :, self.velocity],
            "disturbed": disturbed.expand(rollout.steps, -1),
        }
        flat = {name: part.flatten(0, 1) for name, part in parts.items()}
        return Samples(log_std=log_std, **flat), figures

    def _disturb(self, rollout: Rollout, who: Tensor) -> dict[str, float]:
        """All updates of the disturber."""
        return {} if self.adversary is None else self.adversary.learn(rollout, who, self.period_s, self._autocast())

    def _walk(self, samples: Samples, epoch: Sequence[Tensor], entropy_weight: float) -> dict[str, float]:
        """An epoch of actor and critic, whose minibatches are `epoch`: rows of the samples."""
        actor, critic, tally = self.networks.actor, self.networks.critic, Tally()
        for rows in epoch:
            shared = Shared([actor.body, critic.body], [actor.log_std])

            def work(part: slice, rows: Tensor = rows, shared: Shared = shared) -> Slope:
                return self._walking(samples.take(rows[part]), shared, entropy_weight)

            by = shared.of(self.optimizer.parameters, self.workers.map(work, len(rows)))
            if self.optimizer.descend(by, self.learning_rate, "actor and critic"):
                actor.keep_std()
                tally.add(**by.figures)
        return tally.means()

    def _estimate(self, samples: Samples, epoch: Sequence[Tensor]) -> dict[str, float]:
        """An epoch of the estimator, of a few rows of each minibatch."""
        tally = Tally()
        for rows in epoch:
            shared = Shared([self.networks.actor.estimator])
            by = shared.of(self.estimator.parameters, [self._estimating(samples, rows[::ESTIMATED], shared)])
            if self.estimator.descend(by, self.config.estimator_learning_rate, "the estimator"):
                tally.add(**by.figures)
        return tally.means()

    def _walking(self, samples: Samples, shared: Shared, entropy_weight: float) -> Slope:
        """Of actor and critic."""
        config, actor, critic = self.config, self.networks.actor, self.networks.critic
        acting, judging = shared.acting
        with self._autocast():
            mean = actor.body.of_split(samples.acted_on, acting).float()
            value = critic.body.of_split(samples.privileged, judging).float()
        log_std = actor.log_std
        kl = kl_divergence(samples.mean, samples.log_std, mean.detach(), log_std.detach()).mean()
        ratio = torch.exp(log_probability(samples.action, mean, log_std) - samples.log_probability)
        objective, figures = self.objective(samples, ratio)
        value_loss = clipped_value_loss(value, samples.value, samples.target, config.clip_ratio).mean()
        loss = config.value_weight * value_loss - objective - entropy_weight * entropy(log_std)
        figures |= {"kl": float(kl), "value_loss": float(value_loss.detach())}
        return slope(loss, shared.leaves, len(samples), figures)

    def _estimating(self, samples: Samples, rows: Tensor, shared: Shared) -> Slope:
        """Of the estimator."""
        actor = self.networks.actor
        seen = actor.seen(samples.acted_on.index_select(0, rows))
        velocity = samples.velocity.index_select(0, rows)
        with self._autocast():
            estimate = actor.estimator.of_split(seen, shared.acting[0]).float()
        # Of those that fall, whose velocity nobody can tell, the error counts as it is and not squared.
        loss = huber_loss(estimate, velocity, delta=SURPRISE)
        missed = (estimate.detach() - velocity).square().mean()
        return slope(loss, shared.leaves, len(estimate), {"estimator_loss": float(missed)})

    def objective(self, samples: Samples, ratio: Tensor) -> tuple[Tensor, dict[str, float]]:
        """What the actor maximises: PPO's surrogate + lambda L; and figures of it.

        The gradient of L is that of what the disturber's forces cost: PPO's surrogate of the cost's advantage, which
        sees beyond the step, and not of the single step's C + V(s') - V(s). It is divided by the scale of the reward's
        advantages, as the surrogate is: so lambda weighs lost task reward against reward, whatever their sizes.
        """
        surrogate = clipped_surrogate(ratio, samples.advantage, self.config.clip_ratio).mean()
        figures = {"surrogate": float(surrogate.detach())}
        if not samples.disturbed.any():
            return surrogate, figures
        saved = clipped_surrogate(ratio, -samples.cost_advantage, self.config.clip_ratio)
        return surrogate + self.dual.value * (saved * samples.disturbed).mean(), figures
