"""The baselines of the fql repository: published figures, parameters and targets, acting."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from harness.agent_tools import validation_metrics
from harness.algorithms import load_algorithm
from tests.golden import checker, fql_family

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"
CASES = ("iql_awr", "iql_ddpgbc", "fql", "ifql", "rebrac")
OBSERVATION_DIM, ACTION_DIM, BATCH = 5, 2, 8
SMALL = {"actor_hidden_dims": (16, 16, 16), "value_hidden_dims": (16, 16), "actor_layer_norm": True}
VARIANTS = {
    "iql": ("iql", {}),
    "iql-ddpgbc": ("iql", {"extraction": "ddpgbc", "value_layer_norm": False}),
    "ifql": ("ifql", {"num_candidates": 3, "flow_steps": 2}),
    "fql": ("fql", {"flow_steps": 2}),
    "fql-min": ("fql", {"flow_steps": 2, "pessimism": None, "normalise_q_loss": True}),
    "rebrac": ("rebrac", {"actor_interval": 1}),
    "rebrac-delayed": ("rebrac", {"actor_bc_weight": 0.5, "critic_bc_weight": 0.3}),
}


@pytest.fixture(params=VARIANTS)
def variant(request):
    """(algorithm name, config fields) of each variant in turn."""
    name, fields = VARIANTS[request.param]
    return name, SMALL | fields


def make_agent(name, fields):
    algorithm = load_algorithm(name)
    return algorithm.agent_class(algorithm.config_class(**fields), OBSERVATION_DIM, ACTION_DIM).double()


def make_batch(seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "observations": normal(BATCH, OBSERVATION_DIM),
        "actions": normal(BATCH, ACTION_DIM).tanh(),
        "rewards": normal(BATCH),
        "masks": (normal(BATCH) > -1).double(),
        "next_observations": normal(BATCH, OBSERVATION_DIM),
        "next_actions": normal(BATCH, ACTION_DIM).tanh(),
    }


def parameters(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def targets(agent):
    """{name of a target: (target network, its online network)}."""
    return {
        name: (network, getattr(agent, name.removeprefix("target_")))
        for name, network in agent.named_children()
        if name.startswith("target_")
    }


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case, monkeypatch):
    monkeypatch.setattr(checker, "ADAPTERS", checker.ADAPTERS | fql_family.ADAPTERS)
    differences = checker.check_case(GOLDEN / f"{case}.npz")
    assert max(differences.values()) <= checker.TOLERANCE


@pytest.mark.parametrize("name, field", [("iql", "const_std"), ("rebrac", "tanh_squash")])
def test_refuses_a_case_of_another_policy(name, field):
    with pytest.raises(UserError, match=f"config.{field} of the case is False"):
        fql_family.ADAPTERS[name].config_fields({"agent_name": name, field: False})


def test_adapters_name_every_parameter_of_deeper_networks(variant):
    name, fields = variant
    agent = make_agent(name, fields)
    named = fql_family.ADAPTERS[name].parameters(agent)
    assert sum(view.numel() for view in named.values()) == sum(each.numel() for each in agent.parameters())


def test_updates_move_every_parameter_and_every_target_by_its_rate(variant):
    name, fields = variant
    agent = make_agent(name, fields)
    interval = getattr(agent.config, "actor_interval", 1)
    initial, keys = parameters(agent), set()
    for step in range(1, 5):  # a policy that moves at the second step differs from its target at the fourth
        before = {key: (parameters(target), parameters(online)) for key, (target, online) in targets(agent).items()}
        keys.add(frozenset(agent.update(make_batch(step))))
        rate = agent.config.target_rate if step % interval == 0 else 0.0
        for key, (old_target, old_online) in before.items():
            for parameter, value in parameters(getattr(agent, key)).items():
                expected = rate * old_online[parameter] + (1 - rate) * old_target[parameter]
                torch.testing.assert_close(value, expected, rtol=0, atol=1e-16 if rate == 0 else 1e-14)
    assert len(keys) == 1
    unmoved = [key for key, value in parameters(agent).items() if torch.equal(value, initial[key])]
    assert not unmoved


@pytest.mark.parametrize("name", ["iql", "rebrac"])
def test_explores_only_when_asked(name):
    agent, observations = make_agent(name, SMALL), make_batch(1)["observations"]
    actions = agent.act(observations)
    assert torch.equal(actions, agent.act(observations))
    noise = agent.act(observations, explore=True) - actions
    assert (noise != 0).all()
    if name == "rebrac":
        assert noise.abs().max() <= agent.config.actor_noise_clip


def test_ifql_takes_the_candidate_that_the_smaller_critic_prefers():
    agent = make_agent("ifql", SMALL)
    observations = make_batch(1)["observations"]
    state = agent.noise.generator.get_state()
    chosen = agent.act(observations, num_candidates=4, flow_steps=3)
    agent.noise.generator.set_state(state)
    candidates = agent.noise.normal(BATCH, 4, ACTION_DIM)
    for row in range(BATCH):
        rows = observations[row].expand(4, -1)
        x = candidates[row]
        for step in range(3):
            x = x + agent.flow(rows, x, torch.full((4, 1), step / 3).double())[0] / 3
        x = x.clamp(-1, 1)
        q = agent.critic(rows, x).squeeze(-1).min(dim=0).values
        torch.testing.assert_close(chosen[row], x[q.argmax()].detach())


def test_fql_options_follow_their_formulas():
    fields = SMALL | {"flow_steps": 2, "pessimism": None, "normalise_q_loss": True}
    agent, batch = make_agent("fql", fields), make_batch(1)
    noise = agent.draw(BATCH)
    _, metrics = agent.loss(batch, noise)

    def q(critic, observations, actions):
        return critic(batch[observations], actions).squeeze(-1)

    def policy(observations, z):
        return agent.policy(batch[observations], z)[0].clamp(-1, 1)

    next_q = (
        q(agent.target_critic, "next_observations", policy("next_observations", noise["next_z"][:, 0]))
        .min(dim=0)
        .values
    )
    errors = q(agent.critic, "observations", batch["actions"]) - (batch["rewards"] + 0.99 * batch["masks"] * next_q)
    torch.testing.assert_close(metrics["critic/loss"], errors.square().mean().detach())
    policy_q = q(agent.critic, "observations", policy("observations", noise["z"])).mean(dim=0)
    torch.testing.assert_close(metrics["actor/q_loss"], (-policy_q.mean() / policy_q.abs().mean()).detach())


class PlainReBRAC:
    """ReBRAC once more, with separate critics and actor, each with its gradient, and an Adam of its own."""

    def __init__(self, agent):
        self.config = agent.config
        self.networks = {
            name: [self._layers(network, member) for member in range(len(network.weights[0]))]
            for name, network in agent.named_children()
            if name != "noise"
        }
        self.moments = {}

    def _layers(self, network, member):
        lists = (network.weights, network.biases, network.norm_scales, network.norm_shifts)
        return [[parameter[member].detach().clone() for parameter in each] for each in lists]

    def forward(self, layers, inputs):
        weights, biases, scales, shifts = layers
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            inputs = inputs @ weight + bias
            if i < len(weights) - 1:
                inputs = F.gelu(inputs, approximate="tanh")
                if scales:
                    inputs = F.layer_norm(inputs, inputs.shape[-1:], scales[i][0], shifts[i][0], eps=1e-6)
        return inputs

    def q(self, name, observations, actions):
        inputs = torch.cat([observations, actions], dim=1)
        return [self.forward(layers, inputs)[:, 0] for layers in self.networks[name]]

    def policy(self, name, observations):
        return self.forward(self.networks[name][0], observations).tanh()

    def leaves(self, name):
        return [parameter for layers in self.networks[name] for group in layers for parameter in group]

    def gradient(self, loss, name):
        return torch.autograd.grad(loss, self.leaves(name))

    def update(self, batch, noise, step):
        for name in ("critic", "policy"):
            for leaf in self.leaves(name):
                leaf.requires_grad_(True)
        config, full = self.config, step % self.config.actor_interval == 0
        critic_gradient = self.gradient(self.critic_loss(batch, noise), "critic")
        if full:
            policy_gradient = self.gradient(self.policy_loss(batch), "policy")
        else:
            policy_gradient = [torch.zeros_like(leaf) for leaf in self.leaves("policy")]
        with torch.no_grad():
            if full:
                for name in ("critic", "policy"):
                    for target, online in zip(self.leaves("target_" + name), self.leaves(name), strict=True):
                        target.copy_(config.target_rate * online + (1 - config.target_rate) * target)
            self.adam("critic", critic_gradient, step)
            self.adam("policy", policy_gradient, step)

    def critic_loss(self, batch, noise):
        config = self.config
        with torch.no_grad():
            next_actions = self.policy("target_policy", batch["next_observations"])
            next_actions = (next_actions + (config.actor_noise * noise).clip(-0.5, 0.5)).clip(-1, 1)
            next_q = torch.minimum(*self.q("target_critic", batch["next_observations"], next_actions))
            next_q -= config.critic_bc_weight * (next_actions - batch["next_actions"]).square().sum(dim=1)
            target = batch["rewards"] + config.discount * batch["masks"] * next_q
        first, second = self.q("critic", batch["observations"], batch["actions"])
        return ((first - target).square().mean() + (second - target).square().mean()) / 2

    def policy_loss(self, batch):
        actions = self.policy("policy", batch["observations"])
        q = torch.minimum(*self.q("critic", batch["observations"], actions))
        penalty = (actions - batch["actions"]).square().sum(dim=1).mean()
        return -q.mean() / q.abs().mean().item() + self.config.actor_bc_weight * penalty

    def adam(self, name, gradients, step):
        for i, (leaf, gradient) in enumerate(zip(self.leaves(name), gradients, strict=True)):
            first, second = self.moments.get((name, i), (0, 0))
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.square()
            self.moments[name, i] = first, second
            step_size = self.config.learning_rate / (1 - 0.9**step)
            leaf -= step_size * first / ((second / (1 - 0.999**step)).sqrt() + 1e-8)


def test_rebrac_schedule_equals_a_plain_computation():
    fields = SMALL | {"actor_interval": 2, "actor_bc_weight": 0.5, "critic_bc_weight": 0.3, "learning_rate": 1e-2}
    agent = make_agent("rebrac", fields)
    plain = PlainReBRAC(agent)
    for step in range(1, 6):
        noise = 3 * agent.noise.normal(BATCH, ACTION_DIM)  # some of it beyond the clip
        training_noise, agent.noise = agent.noise, checker.RecordedNoise([noise.numpy()])
        agent.update(make_batch(step))
        agent.noise = training_noise
        plain.update(make_batch(step), noise, step)
        for name in plain.networks:
            ours = getattr(agent, name)
            for member, layers in enumerate(plain.networks[name]):
                for theirs, parameter in zip(sum(layers, []), ours.parameters(), strict=True):
                    torch.testing.assert_close(parameter[member], theirs, rtol=0, atol=1e-12)


def test_rebrac_validates_at_the_present_parameters():
    """The metrics are the same whether the present update moves the policy or not."""
    agent = make_agent("rebrac", SMALL | {"critic_bc_weight": 0.3})
    before = validation_metrics(agent, make_batch(9))
    agent.updates += 1
    assert validation_metrics(agent, make_batch(9)) == before
