"""IQL: Implicit Q-Learning (Kostrikov et al., ICLR 2022, arXiv 2110.06169), with a Gaussian policy.

With V(s), K critics Q_k(s,a), their targets Qbar_k, and the policy pi(a|s) = N(mu(s), I):

    critic loss   sum_k E[(Q_k(s,a) - y)^2],  y = r + discount mask V(s')                 (eq. 6)
    value loss    E[|expectile - 1[u < 0]| u^2],  u = min_k Qbar_k(s,a) - V(s)            (eq. 5)
    policy loss   awr:     -E[w log pi(a|s)],  w = min(exp(beta A), 100),  A = min_k Q_k(s,a) - V(s)    (eq. 7)
                  ddpgbc:  -E[q] / E|q| - bc_weight E[log pi(a|s)],  q = min_k Q_k(s, clip(mu(s)))
    acting        clip(mu(s))

so Q and V are learned without asking for an action outside the data set.

    python algorithms/baselines/iql.py --task exorl/local_sticky_random/cartpole_swingup

Differences from the paper, all as in the code of FQL (Park et al., github.com/seohongpark/fql), whose published figures
this file is for: GELU networks with layer norm in critics and value, a policy of unit variance without tanh and without
decay of its learning rate, the advantage by the online critics (there by the targets), all losses differentiated
at the same parameters (there V, policy and Q in turn), the target critics' step before the gradient step.
The same code has the policy extraction `ddpgbc` (Park et al., "Is value learning really the main bottleneck in offline
RL?", NeurIPS 2024); the paper of IQL has `awr` alone.
Differences from FQL's code: its one `alpha` is inverse_temperature for awr and bc_weight for ddpgbc; a learned
variance is left out.

Needs torch only; training from the command line needs the rest of this repository.
"""

import math
import sys
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Literal, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPSILON = 1e-6  # Flax's default, in FQL's networks (torch's is 1e-5)
COLUMNS = ("observations", "actions", "rewards", "masks", "next_observations")  # of every minibatch
MAX_EXPONENTIAL_WEIGHT = 100.0  # clip of exp(beta A) in IQL's released code
POLICY_OUTPUT_VARIANCE = 0.01  # of the last layer's initial weights over Xavier's, in FQL's Gaussian policies


@dataclass(frozen=True)
class IQLConfig:
    discount: float = 0.99  # gamma
    learning_rate: float = 3e-4  # learning rate of Adam, for all networks
    target_rate: float = 0.005  # tau: target <- tau online + (1 - tau) target
    actor_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # hidden sizes of the policy networks
    value_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # hidden sizes of critics and value
    actor_layer_norm: bool = False  # layer norm in the policy networks
    value_layer_norm: bool = True  # layer norm in critics and value
    num_critics: int = 2  # K
    pessimism: Optional[float] = None  # rho: mean - rho std of the critics, where docs/critics.md says; null: minimum
    expectile: float = 0.9  # expectile of the value regression
    extraction: Literal["awr", "ddpgbc"] = "awr"  # advantage-weighted regression, or policy gradient and cloning
    inverse_temperature: float = 10.0  # beta: multiplies the advantage in the policy's weights
    bc_weight: float = 10.0  # alpha: weight of behaviour cloning in the policy's loss


class Noise(nn.Module):
    """The agent's random numbers, from one generator that follows the agent's device and dtype."""

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)
        self.register_buffer("like", torch.empty(0), persistent=False)

    def _apply(self, fn, recurse=True):  # what .to(), .cuda() and .double() call
        super()._apply(fn, recurse)
        if self.generator.device != self.like.device:
            self.generator = torch.Generator(self.like.device).manual_seed(self.seed)
        return self

    def normal(self, *shape: int) -> Tensor:
        return self.like.new_empty(shape).normal_(generator=self.generator)


class EnsembleMLP(nn.Module):
    """M independent MLPs, evaluated by one batched product per layer: inputs [B, ...] are joined -> [M, B, O].

    Linear -> GELU (tanh form) -> optional layer norm; Xavier-uniform weights, zero biases: the networks of FQL.
    """

    def __init__(self, members: int, sizes: tuple[int, ...], layer_norm: bool, generator: torch.Generator):
        super().__init__()
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        self.norm_scales = nn.ParameterList()
        self.norm_shifts = nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            bound = math.sqrt(6 / (fan_in + fan_out))
            weight = torch.empty(members, fan_in, fan_out)
            self.weights.append(weight.uniform_(-bound, bound, generator=generator))
            self.biases.append(torch.zeros(members, 1, fan_out))
        for size in sizes[1:-1] if layer_norm else ():
            self.norm_scales.append(torch.ones(members, 1, size))
            self.norm_shifts.append(torch.zeros(members, 1, size))

    def forward(self, *inputs: Tensor, member: int | None = None) -> Tensor:
        """All members, or one alone. (Slicing all of them would cost a copy in the backward pass.)"""
        weights, biases, scales, shifts = (
            list(group) if member is None else [parameter[member, None] for parameter in group]
            for group in (self.weights, self.biases, self.norm_scales, self.norm_shifts)
        )
        hidden = torch.cat(inputs, dim=-1)
        hidden = hidden.expand(len(biases[0]), *hidden.shape)
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            if layer > 0:
                hidden = F.gelu(hidden, approximate="tanh")
            if layer > 0 and scales:
                hidden = F.layer_norm(hidden, hidden.shape[-1:], eps=LAYER_NORM_EPSILON)
                hidden = torch.addcmul(shifts[layer - 1], hidden, scales[layer - 1])
            hidden = torch.baddbmm(bias, hidden, weight)
        return hidden


@torch.no_grad()
def soft_update(target: nn.Module, online: nn.Module, rate: float) -> None:
    """target <- rate * online + (1 - rate) * target, for every parameter."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)


def check_columns(agent: nn.Module, columns: dict, names: tuple[str, ...]) -> None:
    """Raises ValueError unless all columns are tensors of N rows, as wide as the agent's, of its dtype and device."""
    like = next(parameter for parameter in agent.parameters() if parameter.requires_grad)
    widths = {
        "observations": [agent.observation_dim],
        "next_observations": [agent.observation_dim],
        "actions": [agent.action_dim],
        "next_actions": [agent.action_dim],
    }
    size = len(columns["observations"])
    for name in (*names, "valid") if "valid" in columns else names:
        column = columns.get(name)
        width = widths.get(name, [])
        found = type(column).__name__
        if isinstance(column, Tensor):
            found = f"{column.dtype} {list(column.shape)} on {column.device}"
        if found != f"{like.dtype} {[size, *width]} on {like.device}":
            wanted = f"{like.dtype} {['N', *width]} on {like.device}".replace("'", "")
            raise ValueError(f"{name} must be {wanted}, not {found} (observations have N = {size})")


def aggregated(q: Tensor, pessimism: float | None) -> Tensor:
    """mean_k q_k - pessimism std_k q_k of K critics' values [K, ...] -> [...]; with None their minimum."""
    if pessimism is None:
        return q.amin(dim=0)
    return q.mean(dim=0) - pessimism * q.std(dim=0, correction=0)


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """mean of |expectile - 1[u < 0]| u^2, with u = `error` of any shape (IQL, eq. 5)."""
    weight = (expectile - (error < 0).to(error)).abs()
    return (weight * error.square()).mean()


def frozen_q_values(critic: EnsembleMLP, observations: Tensor, actions: Tensor) -> Tensor:
    """Values [K, B] of the critics held fixed: gradients reach the actions [B, A] only."""
    frozen = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    return torch.func.functional_call(critic, frozen, (observations, actions)).squeeze(-1)


class IQL(nn.Module):
    """A Gaussian policy, critics with targets, and a state value."""

    act_options = ()  # config fields that act() takes
    batch_fields = ()  # columns of a minibatch beyond the usual ones

    def __init__(self, config: IQLConfig, observation_dim: int, action_dim: int, seed: int = 0):
        super().__init__()
        self.config = config
        self.observation_dim = observation_dim
        self.action_dim = action_dim
        self.noise = Noise(seed)

        def value_network(members: int, input_dim: int) -> EnsembleMLP:
            sizes = (input_dim, *config.value_hidden_dims, 1)
            return EnsembleMLP(members, sizes, config.value_layer_norm, self.noise.generator)

        def policy_network(input_dim: int) -> EnsembleMLP:
            sizes = (input_dim, *config.actor_hidden_dims, action_dim)
            return EnsembleMLP(1, sizes, config.actor_layer_norm, self.noise.generator)

        pair_dim = observation_dim + action_dim
        self.critic = value_network(config.num_critics, pair_dim)
        self.target_critic = value_network(config.num_critics, pair_dim).requires_grad_(False)
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.value = value_network(1, observation_dim)
        self.policy = policy_network(observation_dim)
        self.policy.weights[-1].data *= math.sqrt(POLICY_OUTPUT_VARIANCE)
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        # capturable: the step count stays on the device, so that a CUDA graph can hold the step
        self.optimizer = torch.optim.Adam(trained, lr=config.learning_rate, fused=True, capturable=True)

    def update(self, batch: dict) -> dict:
        """The target critics' step, then one gradient step of all networks; returns detached 0-d metrics.

        batch: tensors of the agent's dtype and device: observations and next_observations [B, O], actions [B, A] in
        [-1, 1], rewards [B], masks [B] (0: no bootstrap), valid [B] of chunks. Raises ValueError for any other shape.
        """
        check_columns(self, batch, (*COLUMNS, *self.batch_fields))
        loss, metrics = self.loss(batch, self.draw(len(batch["actions"])))
        self.optimizer.zero_grad()
        loss.backward()
        soft_update(self.target_critic, self.critic, self.config.target_rate)  # from before the step, as FQL's code
        self.optimizer.step()
        return metrics

    def draw(self, batch_size: int) -> dict:
        """The random numbers of one update: none."""
        return {}

    def loss(self, batch: dict, noise: dict) -> tuple[Tensor, dict]:
        """The sum of all losses at the present parameters, and the metrics: a pure function."""
        batch = {"valid": torch.ones_like(batch["rewards"]), **batch}  # 0: an episode ended within the chunk
        q = self.critic(batch["observations"], batch["actions"]).squeeze(-1)
        value = self.value(batch["observations"])[0, :, 0]
        critic_loss, metrics = self.critic_loss(batch, q)
        value_loss, value_metrics = self.value_loss(batch, value)
        policy_loss, policy_metrics = self.policy_loss(batch, (aggregated(q, self.config.pessimism) - value).detach())
        loss = critic_loss + value_loss + policy_loss
        metrics |= value_metrics | policy_metrics
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    def critic_loss(self, batch: dict, q: Tensor) -> tuple[Tensor, dict]:
        """Temporal differences of the critics' values q [K, B] to the next state's value: summed over the critics."""
        with torch.no_grad():
            next_value = self.value(batch["next_observations"])[0, :, 0]
            target_q = batch["rewards"] + self.config.discount * batch["masks"] * next_value
        loss = (batch["valid"] * (q - target_q).square()).mean(dim=1).sum()
        metrics = {
            "critic/loss": loss,
            "critic/q_mean": q.mean(),
            "critic/target_mean": target_q.mean(),
        }
        return loss, metrics

    def value_loss(self, batch: dict, value: Tensor) -> tuple[Tensor, dict]:
        """Expectile regression of V [B] on the target critics at the data's actions."""
        with torch.no_grad():
            data_q = self.target_critic(batch["observations"], batch["actions"]).squeeze(-1)
            data_q = aggregated(data_q, self.config.pessimism)
        loss = expectile_loss(data_q - value, self.config.expectile)
        return loss, {"value/loss": loss, "value/mean": value.mean()}

    def policy_loss(self, batch: dict, advantage: Tensor) -> tuple[Tensor, dict]:
        """The loss of the chosen extraction; advantage [B] of the data's actions."""
        config = self.config
        mean = self.policy(batch["observations"])[0]
        error = (batch["actions"] - mean).square()
        log_prob = -0.5 * (error + math.log(2 * math.pi)).sum(dim=-1)
        if config.extraction == "awr":
            weights = torch.exp(config.inverse_temperature * advantage).clamp(max=MAX_EXPONENTIAL_WEIGHT)
            loss = -(weights * batch["valid"] * log_prob).mean()
            clipped = (weights == MAX_EXPONENTIAL_WEIGHT).to(weights.dtype)
            metrics = {
                "actor/weight_mean": weights.mean(),
                "actor/weight_clipped": clipped.mean(),
            }
        else:
            q = frozen_q_values(self.critic, batch["observations"], mean.clamp(-1, 1))
            q = aggregated(q, config.pessimism)
            q_loss = -q.mean() / q.detach().abs().mean()  # does not depend on the rewards' scale
            loss = q_loss - config.bc_weight * (batch["valid"] * log_prob).mean()
            metrics = {
                "actor/q_loss": q_loss,
                "actor/q_mean": q.mean(),
            }
        metrics |= {
            "value/advantage_mean": advantage.mean(),
            "value/advantage_std": advantage.std(correction=0),
            "actor/loss": loss,
            "actor/log_prob": log_prob.mean(),
            "actor/mean_error": error.mean(),
        }
        return loss, metrics

    @torch.no_grad()
    def act(self, observations: Tensor, explore: bool = False) -> Tensor:
        """Actions [N, A] in [-1, 1] for observations [N, O]: the policy's mean, or with `explore` a sample.

        The policy's standard deviation is 1 in every dimension, as in FQL's code (constant std, temperature 1).
        """
        check_columns(self, {"observations": observations}, ("observations",))
        actions = self.policy(observations)[0]
        if explore:
            actions = actions + self.noise.normal(*actions.shape)
        return actions.clamp(-1, 1)

    @classmethod
    def load(cls, run_dir: str | Path) -> "IQL":
        """The trained agent of a run folder, on the CPU; needs nothing else of the repository."""
        checkpoint = torch.load(Path(run_dir) / "checkpoint.pt", map_location="cpu", weights_only=True)
        stored = checkpoint["config"]
        config = IQLConfig(**{each.name: stored[each.name] for each in fields(IQLConfig) if each.name in stored})
        agent = cls(config, checkpoint["observation_dim"], checkpoint["action_dim"])
        agent.load_state_dict(checkpoint["agent"]["networks"])
        return agent


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, for envs/ and harness/
    from harness.command_line import main

    main(IQL, IQLConfig)
