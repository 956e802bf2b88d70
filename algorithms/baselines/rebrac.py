"""ReBRAC: Revisited Behaviour-Regularised Actor-Critic (Tarasov et al., NeurIPS 2023, arXiv 2305.09836).

TD3+BC with the cloning penalty in the critics' targets too. With K critics Q_k(s,a), a policy mu(s) in (-1, 1),
targets Qbar_k and mubar, noise e = clip(actor_noise z), z ~ N(0, I), and the data's next action b':

    critic loss   mean_k E[(Q_k(s,a) - y)^2],
                  y = r + discount mask (min_k Qbar_k(s',a') - critic_bc_weight |a' - b'|^2)
                  with the next action a' = clip(mubar(s') + e)
    policy loss   -E[q] / E|q| + actor_bc_weight E[|mu(s) - a|^2],  q = min_k Q_k(s, mu(s))
    acting        mu(s)

The policy, the target critics and the target policy move at every actor_interval-th update only.

    python algorithms/baselines/rebrac.py --task exorl/local_sticky_random/cartpole_swingup

Both weights are 0 by default, as in the reference code, which sets them for each task: without them nothing keeps the
policy near the data.

Differences from the paper, all as in the code of FQL (Park et al., github.com/seohongpark/fql), whose published figures
this file is for: FQL's networks, learning rate and batch size, the critics' loss averaged over the critics, all losses
differentiated at the same parameters, the targets' step before the gradient step. One Adam holds all networks, so that
in an update that skips the policy its gradient is zero but its momentum still moves it.
Differences from FQL's code: none in the mathematics.

Needs torch only; training from the command line needs the rest of this repository.
"""

import math
import sys
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPSILON = 1e-6  # Flax's default, in FQL's networks (torch's is 1e-5)
COLUMNS = ("observations", "actions", "rewards", "masks", "next_observations")  # of every minibatch
POLICY_OUTPUT_VARIANCE = 0.01  # of the last layer's initial weights over Xavier's, in FQL's Gaussian policies


@dataclass(frozen=True)
class ReBRACConfig:
    discount: float = 0.99  # gamma
    learning_rate: float = 3e-4  # learning rate of Adam, for all networks
    target_rate: float = 0.005  # tau: target <- tau online + (1 - tau) target
    actor_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # hidden sizes of the policy networks
    value_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # hidden sizes of critics and value
    actor_layer_norm: bool = False  # layer norm in the policy networks
    value_layer_norm: bool = True  # layer norm in critics and value
    num_critics: int = 2  # K
    pessimism: Optional[float] = None  # rho: mean - rho std of the critics, where docs/critics.md says; null: minimum
    actor_bc_weight: float = 0.0  # weight of the squared distance to the data's action in the policy's loss
    critic_bc_weight: float = 0.0  # weight of that to the data's next action in the critics' targets
    actor_interval: int = 2  # updates between those of the policy
    target_interval: Optional[int] = None  # updates between those of all targets; null: as the policy
    actor_noise: float = 0.2  # standard deviation of the noise on next actions and when exploring
    actor_noise_clip: float = 0.5  # largest size of that noise
    noisy_evaluation: bool = False  # act with that noise in evaluations too, as QAM's code


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
def gated_soft_update(target: nn.Module, online: nn.Module, rate: float, gate: Tensor) -> None:
    """soft_update where the 0-d boolean `gate` is true, which stays on the device; otherwise nothing."""
    for parameter, online_parameter in zip(target.parameters(), online.parameters(), strict=True):
        parameter.lerp_(online_parameter, rate * gate.to(parameter.dtype))


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


class ReBRAC(nn.Module):
    """A deterministic policy and critics, all with targets."""

    act_options = ()  # config fields that act() takes

    def __init__(self, config: ReBRACConfig, observation_dim: int, action_dim: int, seed: int = 0):
        super().__init__()
        self.config = config
        self.observation_dim = observation_dim
        self.action_dim = action_dim
        self.batch_fields = ("next_actions",) if config.critic_bc_weight != 0 else ()  # beyond the usual columns
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
        self.policy = policy_network(observation_dim)
        self.policy.weights[-1].data *= math.sqrt(POLICY_OUTPUT_VARIANCE)
        self.target_policy = policy_network(observation_dim).requires_grad_(False)
        self.target_policy.load_state_dict(self.policy.state_dict())
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))  # made so far, on the device
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        # capturable: the step count stays on the device, so that a CUDA graph can hold the step
        self.optimizer = torch.optim.Adam(trained, lr=config.learning_rate, fused=True, capturable=True)

    def update(self, batch: dict) -> dict:
        """The targets' step and one gradient step, as the schedule has them; returns detached 0-d metrics.

        batch: tensors of the agent's dtype and device: observations and next_observations [B, O], actions [B, A] in
        [-1, 1], rewards [B], masks [B] in [0, 1] (0: no bootstrapping); next_actions [B, A], the
        data's, if in `batch_fields`; valid [B] of chunks. Raises ValueError for any other shape.
        """
        check_columns(self, batch, (*COLUMNS, *self.batch_fields))
        self.updates += 1
        loss, metrics = self.loss(batch, self.draw(len(batch["actions"])))
        self.optimizer.zero_grad()
        loss.backward()
        # From before the step, as FQL's code.
        gate = self.is_due(self.config.target_interval or self.config.actor_interval)
        gated_soft_update(self.target_critic, self.critic, self.config.target_rate, gate)
        gated_soft_update(self.target_policy, self.policy, self.config.target_rate, gate)
        self.optimizer.step()
        return metrics

    def is_due(self, interval: int) -> Tensor:
        """Whether the present update is one of every `interval`: 0-d, on the device."""
        return self.updates % interval == 0

    def draw(self, batch_size: int) -> dict:
        """The random numbers of one update."""
        return {"next_noise": self.noise.normal(batch_size, self.action_dim)}

    def loss(self, batch: dict, noise: dict) -> tuple[Tensor, dict]:
        """The losses that the present update differentiates, and all metrics: a pure function."""
        batch = {"valid": torch.ones_like(batch["rewards"]), **batch}  # 0: an episode ended within the chunk
        critic_loss, metrics = self.critic_loss(batch, noise["next_noise"])
        policy_loss, policy_metrics = self.policy_loss(batch)
        # A skipped gradient is zero, which Adam still takes.
        loss = critic_loss + self.is_due(self.config.actor_interval) * policy_loss
        metrics |= policy_metrics
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    def critic_loss(self, batch: dict, next_noise: Tensor) -> tuple[Tensor, dict]:
        """Temporal differences to the target policy's noisy action, whose distance to the data's is a penalty."""
        config = self.config
        with torch.no_grad():
            next_actions = torch.tanh(self.target_policy(batch["next_observations"])[0])
            next_actions = self.perturbed(next_actions, next_noise)
            next_q = self.target_critic(batch["next_observations"], next_actions).squeeze(-1)
            next_q = aggregated(next_q, config.pessimism)
            if config.critic_bc_weight != 0:
                next_distance = (next_actions - batch["next_actions"]).square().sum(dim=-1)
                next_q = next_q - config.critic_bc_weight * next_distance
            target_q = batch["rewards"] + config.discount * batch["masks"] * next_q
        q = self.critic(batch["observations"], batch["actions"]).squeeze(-1)
        loss = (batch["valid"] * (q - target_q).square()).mean()
        metrics = {
            "critic/loss": loss,
            "critic/q_mean": q.mean(),
            "critic/target_mean": target_q.mean(),
        }
        if config.critic_bc_weight != 0:
            metrics["critic/next_distance"] = next_distance.mean()
        return loss, metrics

    def policy_loss(self, batch: dict) -> tuple[Tensor, dict]:
        """Uphill for the critics, which are held fixed, and near the data."""
        actions = torch.tanh(self.policy(batch["observations"])[0])
        q = aggregated(frozen_q_values(self.critic, batch["observations"], actions), self.config.pessimism)
        q_loss = -q.mean() / q.detach().abs().mean()  # does not depend on the rewards' scale
        bc_loss = (batch["valid"] * (actions - batch["actions"]).square().sum(dim=-1)).mean()
        loss = q_loss + self.config.actor_bc_weight * bc_loss
        metrics = {
            "actor/loss": loss,
            "actor/q_loss": q_loss,
            "actor/bc_loss": bc_loss,
            "actor/q_mean": q.mean(),
        }
        return loss, metrics

    def perturbed(self, actions: Tensor, noise: Tensor) -> Tensor:
        """Actions [B, A] with clipped noise of standard normal numbers [B, A], in [-1, 1]."""
        config = self.config
        noise = (config.actor_noise * noise).clamp(-config.actor_noise_clip, config.actor_noise_clip)
        return (actions + noise).clamp(-1, 1)

    @torch.no_grad()
    def act(self, observations: Tensor, explore: bool = False) -> Tensor:
        """Actions [N, A] in [-1, 1] for observations [N, O]: the policy's, with `explore` with clipped noise.

        The noise is that of the next actions, as in FQL's code.
        """
        check_columns(self, {"observations": observations}, ("observations",))
        actions = torch.tanh(self.policy(observations)[0])
        if explore or self.config.noisy_evaluation:
            actions = self.perturbed(actions, self.noise.normal(*actions.shape))
        return actions

    @classmethod
    def load(cls, run_dir: str | Path) -> "ReBRAC":
        """The trained agent of a run folder, on the CPU; needs nothing else of the repository."""
        checkpoint = torch.load(Path(run_dir) / "checkpoint.pt", map_location="cpu", weights_only=True)
        stored = checkpoint["config"]
        config = ReBRACConfig(**{each.name: stored[each.name] for each in fields(ReBRACConfig) if each.name in stored})
        agent = cls(config, checkpoint["observation_dim"], checkpoint["action_dim"])
        agent.load_state_dict(checkpoint["agent"]["networks"])
        return agent


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, for envs/ and harness/
    from harness.command_line import main

    main(ReBRAC, ReBRACConfig)
