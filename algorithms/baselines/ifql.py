"""IFQL: implicit flow Q-learning, the baseline of FQL's paper (Park et al., ICML 2025, arXiv 2502.02538).

IDQL (Hansen-Estruch et al., 2023, arXiv 2304.10573) with a flow in place of its diffusion policy. With V(s), K
critics Q_k(s,a), their targets Qbar_k, and a velocity v(s,x,t):

    critic loss   sum_k E[(Q_k(s,a) - y)^2],  y = r + discount mask V(s')                 (IQL, eq. 6)
    value loss    E[|expectile - 1[u < 0]| u^2],  u = min_k Qbar_k(s,a) - V(s)            (IQL, eq. 5)
    policy loss   E[|v(s,x_t,t) - (a - x0)|^2],  x_t = (1 - t) x0 + t a,  x0 ~ N(0, I),  t ~ U[0, 1]
    acting        of N actions sampled by Euler steps of v, the one with the largest min_k Q_k(s,a)

so the policy clones the data and the critics choose among its samples.

    python algorithms/baselines/ifql.py --task exorl/local_sticky_random/cartpole_swingup

Differences from IDQL, all as in the code of FQL (github.com/seohongpark/fql): the flow, FQL's networks without a moving
average of the policy, the choice by the online critics (there by the targets), all losses differentiated at the same
parameters, the target critics' step before the gradient step, and squared errors averaged over the action dimensions.
Differences from FQL's code: acting takes a batch of states, and each call can choose num_candidates and flow_steps.

Needs torch only; training from the command line needs the rest of this repository.
"""

import math
import sys
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPSILON = 1e-6  # Flax's default, in FQL's networks (torch's is 1e-5)
COLUMNS = ("observations", "actions", "rewards", "masks", "next_observations")  # of every minibatch


@dataclass(frozen=True)
class IFQLConfig:
    discount: float = 0.99  # gamma
    learning_rate: float = 3e-4  # learning rate of Adam, for all networks
    target_rate: float = 0.005  # tau: target <- tau online + (1 - tau) target
    actor_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # hidden sizes of the policy networks
    value_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # hidden sizes of critics and value
    actor_layer_norm: bool = False  # layer norm in the policy networks
    value_layer_norm: bool = True  # layer norm in critics and value
    num_critics: int = 2  # K
    pessimism: Optional[float] = None  # rho: mean - rho std of the critics, where docs/critics.md says; null: minimum
    critic_reduction: Literal["sum", "mean"] = "sum"  # of the critics' losses (FQL's code; QAM's: mean)
    expectile: float = 0.9  # expectile of the value regression
    num_candidates: int = 32  # N: actions sampled per state when acting; the critics choose among them
    noise_scale: float = 1.0  # the start noise is multiplied by it when acting; below 1: nearer to the mean
    flow_steps: int = 10  # Euler steps of the flow


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

    def uniform(self, *shape: int) -> Tensor:
        return self.like.new_empty(shape).uniform_(generator=self.generator)


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


def best_candidate(critic: EnsembleMLP, observations: Tensor, candidates: Tensor) -> Tensor:
    """Of candidates [N, C, A], the one with the largest min_k Q_k(s,a): [N, A]."""
    num_states, count, _ = candidates.shape
    if count == 1:
        return candidates[:, 0]
    repeated = observations.repeat_interleave(count, dim=0)
    q = critic(repeated, candidates.flatten(0, 1)).squeeze(-1).amin(dim=0)
    best = q.view(num_states, count).argmax(dim=1)
    return candidates[torch.arange(num_states, device=best.device), best]


class IFQL(nn.Module):
    """A flow policy, critics with targets, and a state value."""

    act_options = ("num_candidates", "flow_steps", "noise_scale")  # config fields that act() takes
    batch_fields = ()  # columns of a minibatch beyond the usual ones

    def __init__(self, config: IFQLConfig, observation_dim: int, action_dim: int, seed: int = 0):
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
        self.flow = policy_network(pair_dim + 1)
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
        """The random numbers of one update, in the order of FQL's code."""
        return {
            "x0": self.noise.normal(batch_size, self.action_dim),
            "t": self.noise.uniform(batch_size, 1),
        }

    def loss(self, batch: dict, noise: dict) -> tuple[Tensor, dict]:
        """The sum of all losses at the present parameters, and the metrics: a pure function."""
        batch = {"valid": torch.ones_like(batch["rewards"]), **batch}  # 0: an episode ended within the chunk
        critic_loss, metrics = self.critic_loss(batch)
        value_loss, value_metrics = self.value_loss(batch)
        policy_loss = self.policy_loss(batch, noise["x0"], noise["t"])
        loss = critic_loss + value_loss + policy_loss
        metrics |= value_metrics | {"actor/flow_loss": policy_loss}
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    def critic_loss(self, batch: dict) -> tuple[Tensor, dict]:
        """Temporal differences of the critics to the next state's value: summed over the critics, or averaged."""
        with torch.no_grad():
            next_value = self.value(batch["next_observations"])[0, :, 0]
            target_q = batch["rewards"] + self.config.discount * batch["masks"] * next_value
        q = self.critic(batch["observations"], batch["actions"]).squeeze(-1)
        losses = (batch["valid"] * (q - target_q).square()).mean(dim=1)
        loss = losses.sum() if self.config.critic_reduction == "sum" else losses.mean()
        metrics = {
            "critic/loss": loss,
            "critic/q_mean": q.mean(),
            "critic/target_mean": target_q.mean(),
        }
        return loss, metrics

    def value_loss(self, batch: dict) -> tuple[Tensor, dict]:
        """Expectile regression on the target critics at the data's actions."""
        with torch.no_grad():
            data_q = self.target_critic(batch["observations"], batch["actions"]).squeeze(-1)
            data_q = aggregated(data_q, self.config.pessimism)
        value = self.value(batch["observations"])[0, :, 0]
        loss = expectile_loss(data_q - value, self.config.expectile)
        metrics = {
            "value/loss": loss,
            "value/mean": value.mean(),
            "value/advantage_std": (data_q - value).std(correction=0),
        }
        return loss, metrics

    def policy_loss(self, batch: dict, x0: Tensor, t: Tensor) -> Tensor:
        """Flow matching on the data without weights, from the noise x0 [B, A] at the times t [B, 1]."""
        actions = batch["actions"]
        x_t = (1 - t) * x0 + t * actions
        velocity = self.flow(batch["observations"], x_t, t)[0]
        return (batch["valid"][:, None] * (velocity - (actions - x0)).square()).mean()

    @torch.no_grad()
    def act(self, observations: Tensor, explore: bool = False, **options) -> Tensor:
        """Actions [N, A] in [-1, 1] for observations [N, O]; `options` replace the config's (see act_options).

        `explore` changes nothing: the flow samples already, and FQL's code explores as it is evaluated.
        """
        config = replace(self.config, **options)
        check_columns(self, {"observations": observations}, ("observations",))
        x0 = config.noise_scale * self.noise.normal(len(observations), config.num_candidates, self.action_dim)
        return self.choose(observations, x0, config.flow_steps)

    def choose(self, observations: Tensor, x0: Tensor, flow_steps: int) -> Tensor:
        """The best of the actions from the noise x0 [N, C, A]: [N, A], a pure function."""
        candidates = self.sample(observations, x0, flow_steps)
        return best_candidate(self.critic, observations, candidates)

    def sample(self, observations: Tensor, x0: Tensor, flow_steps: int) -> Tensor:
        """Actions [N, C, A] by Euler steps from the noise x0 [N, C, A] at t = 0, clipped once at the end."""
        x = x0.flatten(0, 1)
        repeated = observations.repeat_interleave(x0.shape[1], dim=0)
        for step in range(flow_steps):
            t = torch.full_like(x[:, :1], step / flow_steps)
            x = x + self.flow(repeated, x, t)[0] / flow_steps
        return x.clamp(-1, 1).view_as(x0)

    @classmethod
    def load(cls, run_dir: str | Path) -> "IFQL":
        """The trained agent of a run folder, on the CPU; needs nothing else of the repository."""
        checkpoint = torch.load(Path(run_dir) / "checkpoint.pt", map_location="cpu", weights_only=True)
        stored = checkpoint["config"]
        config = IFQLConfig(**{each.name: stored[each.name] for each in fields(IFQLConfig) if each.name in stored})
        agent = cls(config, checkpoint["observation_dim"], checkpoint["action_dim"])
        agent.load_state_dict(checkpoint["agent"]["networks"])
        return agent


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, for envs/ and harness/
    from harness.command_line import main

    main(IFQL, IFQLConfig)
