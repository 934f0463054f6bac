"""Symmetric networks do the mirror image in a mirror, and stay symmetric whatever they learn."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from contracts.reflection import VECTOR, joined, unchanged
from policies.hinfinity.config import HInfinityConfig
from policies.hinfinity.forces import SEEN
from policies.hinfinity.guarded import Guard, GuardedAdam
from policies.hinfinity.mirror import Mirror
from policies.hinfinity.networks import Networks
from policies.hinfinity.slopes import Shared, slope
from policies.tensors import CheckpointError

CONFIG = HInfinityConfig(
    actor_widths=(16, 8), critic_widths=(12, 8), disturber_widths=(8, 6), estimator_widths=(8, 8), precision="fp32"
)
SEES, PRIVILEGED, ACTS = 7, 6, 4
SIDES = {  # elements that change places, with their signs or without, and elements that stay
    "observation": (np.array([1, 0, 2, 3, 5, 4, 6]), np.array([1, 1, -1, 1, -1, -1, -1], dtype=np.float32)),
    "privileged": (np.array([0, 2, 1, 3, 4, 5]), np.array([-1, 1, 1, -1, 1, 1], dtype=np.float32)),
    "action": (np.array([2, 3, 0, 1]), np.array([-1, 1, -1, 1], dtype=np.float32)),
}


def make(seed: int = 0) -> tuple[Networks, Mirror]:
    torch.manual_seed(seed)
    networks = Networks(CONFIG, SEES, PRIVILEGED + SEEN, ACTS)
    mirror = Mirror(SIDES, networks)
    mirror.begin()
    return networks, mirror


def shown(values: Tensor, reflection: tuple[np.ndarray, np.ndarray]) -> Tensor:
    """Each row as a mirror shows it; what follows the reflection's elements stays."""
    order, sign = reflection
    image = values.clone()
    image[:, : len(order)] = values[:, order] * torch.from_numpy(sign)
    return image


def outputs(networks: Networks, seen: Tensor, privileged: Tensor) -> Mapping[str, Tensor]:
    disturber = networks.disturber
    assert disturber is not None
    return {
        "action": networks.actor(seen),
        "velocity": networks.actor.velocity(seen),
        "values": networks.critic(privileged),
        "force": disturber.policy(privileged),
        "worth": disturber.worth(privileged),
    }


def assert_symmetric(networks: Networks) -> None:
    generator = torch.Generator().manual_seed(5)
    seen = torch.randn(20, SEES, generator=generator)
    privileged = torch.randn(20, PRIVILEGED + SEEN, generator=generator)
    here = outputs(networks, seen, privileged)
    there = outputs(networks, shown(seen, SIDES["observation"]), shown(privileged, SIDES["privileged"]))
    for name, value in here.items():
        kind = {"action": SIDES["action"], "velocity": VECTOR, "force": VECTOR}.get(name)
        torch.testing.assert_close(there[name], value if kind is None else shown(value, kind), atol=1e-6, rtol=1e-4)
        assert value.std(dim=0).min() > 1e-3  # nothing is the same because it is always the same


def test_networks_do_the_mirror_image_in_a_mirror():
    assert_symmetric(make()[0])


def test_half_the_arithmetic_gives_the_same_values_and_gradients():
    """As plain layers with the same weights; the gradient is the mean of both sides'."""
    networks, mirror = make()
    actor, disturber = networks.actor, networks.disturber
    assert disturber is not None
    observation, privileged = SIDES["observation"], joined(SIDES["privileged"], unchanged(SEEN))
    for network, sees, gives in (
        (actor.body, joined(observation, VECTOR), SIDES["action"]),
        (actor.estimator, observation, VECTOR),
        (networks.critic.body, privileged, unchanged(2)),
        (disturber.policy.body, privileged, VECTOR),
        (disturber.value, privileged, unchanged(1)),
    ):
        assert network.symmetric
        plain = copy.deepcopy(network)
        plain.symmetric = False
        seen = torch.randn(30, network.inputs, requires_grad=True)
        wanted = torch.randn(30, network.linears[-1].out_features)
        torch.testing.assert_close(network(seen), plain(seen), atol=1e-6, rtol=1e-4)
        (network(seen) * wanted).sum().backward()
        mirror.gradients(network.parameters())
        found = [tensor.grad for tensor in (seen, *network.parameters())]
        sides = (plain(seen) * wanted).sum(), (plain(shown(seen, sees)) * shown(wanted, gives)).sum()
        expected = torch.autograd.grad((sides[0] + sides[1]) / 2, [seen, *plain.parameters()])
        for gradient, right in zip(found, expected, strict=True):
            torch.testing.assert_close(gradient, right, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_the_body_takes_holds_what_the_estimator_takes(symmetric):
    actor = make()[0].actor
    actor.body.symmetric = actor.estimator.symmetric = symmetric
    seen = torch.randn(4, 5, SEES)
    assert torch.equal(actor.seen(actor.split(seen, torch.randn(4, 5, 3))), actor.estimator.split(seen))


@pytest.mark.parametrize("symmetric", [True, False])
def test_parts_of_a_minibatch_make_the_whole(symmetric):
    """Of unequal parts, each sample counts the same: loss, figures and gradients are those of all at once."""
    network = make()[0].actor.body
    network.symmetric = symmetric
    seen, parameters = network.split(torch.randn(10, network.linears[0].in_features)), list(network.parameters())
    whole = network.of_split(seen).square().mean()
    shared = Shared([network])
    parts = []
    for rows in (seen[:7], seen[7:]):
        loss = network.of_split(rows, shared.acting[0]).square().mean()
        parts.append(slope(loss, shared.leaves, len(rows), {"twice": 2 * float(loss.detach())}))
    found = shared.of(parameters, parts)
    assert found.loss == pytest.approx(float(whole.detach()))
    assert found.figures["twice"] == pytest.approx(2 * found.loss)
    for gradient, expected in zip(found.gradients, torch.autograd.grad(whole, parameters), strict=True):
        torch.testing.assert_close(gradient, expected)


def test_weights_are_as_large_as_they_were_drawn():
    torch.manual_seed(3)
    config = msgspec.structs.replace(CONFIG, actor_widths=(256, 128))
    networks = Networks(config, SEES, PRIVILEGED + SEEN, ACTS)
    before = [float(layer.weight.detach().std()) for layer in networks.actor.body if isinstance(layer, torch.nn.Linear)]
    Mirror(SIDES, networks).begin()
    after = [float(layer.weight.detach().std()) for layer in networks.actor.body if isinstance(layer, torch.nn.Linear)]
    assert after == pytest.approx(before, rel=0.1)


def test_what_is_learned_on_one_side_is_learned_on_the_other():
    """From samples of one side only, networks come to do the right thing on both, and stay symmetric to the last bit.

    Deviations of actions of either side stay alike.
    """
    networks, mirror = make()
    generator = torch.Generator().manual_seed(1)
    seen = torch.randn(64, SEES, generator=generator)
    seen[:, 0] = seen[:, 0].abs()  # one side
    wanted = torch.stack((seen[:, 0], seen[:, 1], seen[:, 2], seen[:, 3]), dim=1)
    actor = networks.actor
    optimizer = GuardedAdam([actor.log_std, *actor.body.parameters()], 10.0, Guard(), mirror)

    def loss(seen: Tensor, wanted: Tensor) -> Tensor:
        return ((actor(seen) - wanted) ** 2).mean()

    there = shown(seen, SIDES["observation"]), shown(wanted, SIDES["action"])
    before = loss(*there).item()
    for _ in range(300):
        optimizer.step(loss(seen, wanted) + (actor.log_std * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum(), 1e-2, "actor")
    assert loss(seen, wanted).item() < 0.1 * before
    assert loss(*there).item() == pytest.approx(loss(seen, wanted).item(), rel=1e-3)
    mirror.go_on_from("here")
    assert_symmetric(networks)
    assert torch.equal(actor.log_std[:2], actor.log_std[2:])


def test_networks_that_are_not_symmetric_are_named():
    networks, mirror = make()
    mirror.go_on_from("runs/here")
    with torch.no_grad():
        next(networks.critic.parameters())[0, 0] += 1e-6
    mirror.go_on_from("runs/here")
    assert_symmetric(networks)  # what rounding did is made good
    with torch.no_grad():
        next(networks.critic.parameters())[0, 0] += 0.1
    with pytest.raises(CheckpointError, match="runs/here: not the same networks on both sides"):
        mirror.go_on_from("runs/here")
