"""FQL: Flow Q-Learning (Park, Li and Levine, ICML 2025, arXiv 2502.02538).

With K critics Q_k(s,a), their targets Qbar_k, a velocity v(s,x,t) and a one-step policy mu(s,z), z ~ N(0, I):

    critic loss    mean_k E[(Q_k(s,a) - y)^2],  y = r + discount mask mean_k Qbar_k(s', clip(mu(s',z)))
    flow loss      E[|v(s,x_t,t) - (a - x0)|^2],  x_t = (1 - t) x0 + t a,  x0 ~ N(0, I),  t ~ U[0, 1]
    policy loss    distillation_weight E[|mu(s,z) - clip(Euler(v; s,z))|^2] - E[mean_k Q_k(s, clip(mu(s,z)))]
    acting         clip(mu(s,z)) with fresh noise

so the flow clones the data, and the policy follows the critics near the flow's samples without differentiating
through its steps.

    python algorithms/baselines/fql.py --task exorl/local_sticky_random/cartpole_swingup

Differences from the paper, all as in its code (github.com/seohongpark/fql), whose figures were published: flow and
distillation average squared errors over the action dimensions (the paper sums them), and every published weight of the
distillation belongs to the average; all losses are differentiated at the same parameters, and the target critics' step
comes before the gradient step.
Differences from that code: none in the mathematics; a draw of actions that it only logs is left out.

Needs torch only; training from the command line needs the rest of this repository.
"""

import math
import sys
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPSILON = 1e-6  # Flax's default, in FQL's networks (torch's is 1e-5)
COLUMNS = ("observations", "actions", "rewards", "masks", "next_observations")  # of every minibatch


@dataclass(frozen=True)
class FQLConfig:
    discount: float = 0.99  # gamma
    learning_rate: float = 3e-4  # learning rate of Adam, for all networks
    target_rate: float = 0.005  # tau: target <- tau online + (1 - tau) target
    actor_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # hidden sizes of the policy networks
    value_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # hidden sizes of critics and value
    actor_layer_norm: bool = False  # layer norm in the policy networks
    value_layer_norm: bool = True  # layer norm in critics and value
    num_critics: int = 2  # K
    pessimism: Optional[float] = 0.0  # rho: mean - rho std of the critics, where docs/critics.md says; null: minimum
    distillation_weight: float = 10.0  # alpha: weight of the distance to the flow's samples in the policy's loss
    normalise_q_loss: bool = False  # divide the policy's Q term by the mean of |Q| (FQL: normalize_q_loss)
    flow_steps: int = 10  # Euler steps of the flow
    num_candidates: int = 1  # N: actions sampled per state when acting; the critics choose among them
    noise_scale: float = 1.0  # the start noise is multiplied by it when acting; below 1: nearer to the mean
    target_candidates: int = 1  # N of the next actions in the critics' targets


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


def frozen_q_values(critic: EnsembleMLP, observations: Tensor, actions: Tensor) -> Tensor:
    """Values [K, B] of the critics held fixed: gradients reach the actions [B, A] only."""
    frozen = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    return torch.func.functional_call(critic, frozen, (observations, actions)).squeeze(-1)


class FQL(nn.Module):
    """A flow that clones the data, a one-step policy, and critics with targets."""

    act_options = ("num_candidates", "noise_scale")  # config fields that act() takes
    batch_fields = ()  # columns of a minibatch beyond the usual ones

    def __init__(self, config: FQLConfig, observation_dim: int, action_dim: int, seed: int = 0):
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
        self.flow = policy_network(pair_dim + 1)
        self.policy = policy_network(pair_dim)
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
        """The random numbers of one update, in the order of the released code."""
        size = (batch_size, self.action_dim)
        return {
            "next_z": self.noise.normal(batch_size, self.config.target_candidates, self.action_dim),
            "x0": self.noise.normal(*size),
            "t": self.noise.uniform(batch_size, 1),
            "z": self.noise.normal(*size),
        }

    def loss(self, batch: dict, noise: dict) -> tuple[Tensor, dict]:
        """The sum of all losses at the present parameters, and the metrics: a pure function."""
        batch = {"valid": torch.ones_like(batch["rewards"]), **batch}  # 0: an episode ended within the chunk
        critic_loss, metrics = self.critic_loss(batch, noise["next_z"])
        flow_loss = self.flow_loss(batch, noise["x0"], noise["t"])
        policy_loss, policy_metrics = self.policy_loss(batch, noise["z"])
        actor_loss = flow_loss + policy_loss
        loss = critic_loss + actor_loss
        metrics |= {"actor/loss": actor_loss, "actor/flow_loss": flow_loss} | policy_metrics
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    def critic_loss(self, batch: dict, next_z: Tensor) -> tuple[Tensor, dict]:
        """Temporal differences to the target critics at the one-step policy's action: mean over the critics."""
        config = self.config
        with torch.no_grad():
            next_actions = self.best_action(batch["next_observations"], next_z)
            next_q = self.target_critic(batch["next_observations"], next_actions).squeeze(-1)
            next_q = aggregated(next_q, config.pessimism)
            target_q = batch["rewards"] + config.discount * batch["masks"] * next_q
        q = self.critic(batch["observations"], batch["actions"]).squeeze(-1)
        loss = (batch["valid"] * (q - target_q).square()).mean()
        metrics = {
            "critic/loss": loss,
            "critic/q_mean": q.mean(),
            "critic/target_mean": target_q.mean(),
        }
        return loss, metrics

    def flow_loss(self, batch: dict, x0: Tensor, t: Tensor) -> Tensor:
        """Flow matching on the data, from the noise x0 [B, A] at the times t [B, 1]."""
        actions = batch["actions"]
        x_t = (1 - t) * x0 + t * actions
        velocity = self.flow(batch["observations"], x_t, t)[0]
        return (batch["valid"][:, None] * (velocity - (actions - x0)).square()).mean()

    def policy_loss(self, batch: dict, z: Tensor) -> tuple[Tensor, dict]:
        """Near the flow's sample from the same noise z [B, A], and uphill for the mean critic, which is held fixed."""
        config, observations = self.config, batch["observations"]
        with torch.no_grad():
            flow_actions = self.sample(observations, z)
        actions = self.policy(observations, z)[0]
        distillation_loss = (actions - flow_actions).square().mean()
        q = frozen_q_values(self.critic, observations, actions.clamp(-1, 1)).mean(dim=0)
        q_loss = -q.mean()
        if config.normalise_q_loss:
            q_loss = q_loss / q.detach().abs().mean()
        loss = config.distillation_weight * distillation_loss + q_loss
        metrics = {
            "actor/distillation_loss": distillation_loss,
            "actor/q_loss": q_loss,
            "actor/q_mean": q.mean(),
        }
        return loss, metrics

    def sample(self, observations: Tensor, x: Tensor) -> Tensor:
        """The flow's actions [B, A] by Euler steps from the noise x [B, A] at t = 0, clipped once at the end."""
        for step in range(self.config.flow_steps):
            t = torch.full_like(x[:, :1], step / self.config.flow_steps)
            x = x + self.flow(observations, x, t)[0] / self.config.flow_steps
        return x.clamp(-1, 1)

    def best_action(self, observations: Tensor, z: Tensor) -> Tensor:
        """Of the one-step policy's actions with the noise z [N, C, A], those that the critics' mean prefers: [N, A]."""
        repeated = observations.repeat_interleave(z.shape[1], dim=0)
        actions = self.policy(repeated, z.flatten(0, 1))[0].clamp(-1, 1)
        if z.shape[1] == 1:
            return actions
        q = self.critic(repeated, actions).mean(dim=0).view(z.shape[:2])
        return actions.view_as(z)[torch.arange(len(z), device=z.device), q.argmax(dim=1)]

    @torch.no_grad()
    def act(self, observations: Tensor, explore: bool = False, **options) -> Tensor:
        """Actions [N, A] in [-1, 1] for observations [N, O]; `options` replace the config's (see act_options).

        `explore` changes nothing: FQL's code explores as it is evaluated, always with fresh noise.
        """
        config = replace(self.config, **options)
        check_columns(self, {"observations": observations}, ("observations",))
        noise = config.noise_scale * self.noise.normal(len(observations), config.num_candidates, self.action_dim)
        return self.best_action(observations, noise)

    @classmethod
    def load(cls, run_dir: str | Path) -> "FQL":
        """The trained agent of a run folder, on the CPU; needs nothing else of the repository."""
        checkpoint = torch.load(Path(run_dir) / "checkpoint.pt", map_location="cpu", weights_only=True)
        stored = checkpoint["config"]
        config = FQLConfig(**{each.name: stored[each.name] for each in fields(FQLConfig) if each.name in stored})
        agent = cls(config, checkpoint["observation_dim"], checkpoint["action_dim"])
        agent.load_state_dict(checkpoint["agent"]["networks"])
        return agent


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, for envs/ and harness/
    from harness.command_line import main

    main(FQL, FQLConfig)
