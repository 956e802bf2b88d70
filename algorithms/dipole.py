"""DIPOLE: Dichotomous Diffusion Policy Optimization (Liang et al., ICLR 2026, arXiv 2601.00898), flow-matching form.

With the advantage A(s,a) = min_k Qbar_k(s,a) - V(s), behaviour policy mu, inverse temperature beta, greediness omega:

    target policy    pi*  ~ mu sigma(beta A) exp(omega beta A)                                (eq. 6)
                          = [mu sigma(beta A)]^(1+omega) / [mu (1 - sigma(beta A))]^omega     (eq. 7)
    two policies     pi+  ~ mu sigma(beta A)          pi- ~ mu (1 - sigma(beta A))            (eq. 8)
    critic loss      sum_k E[mean_j (Q_k(s,a) - y_j)^2],  y_j = r + discount mask Qbar_j(s', a'),  a' from the policy
    value loss       E[|expectile - 1[u < 0]| u^2],  u = min_k Qbar_k(s,a) - V(s)             (IQL, eq. 5)
    policy loss      E[w |v+ - (a - x0)|^2] + E[(1-w) |v- - (a - x0)|^2],  w = sigma(beta A + k)   (eq. 9)
                     at x_t = (1 - t) x0 + t a,  x0 ~ N(0, I),  t ~ U[0, 1]
    sampling         v = (1+omega) v+ - omega v-,  Euler steps from x ~ N(0, I)               (eq. 10)
    acting           of N sampled actions, the one with the largest min_k Q_k(s,a)

Both regressions have weights in [0, 1], and omega is chosen when acting, without retraining.

    python algorithms/dipole.py --task exorl/local_sticky_random/cartpole_swingup

Not the paper's but the released code's (docs/dipole.md): velocities in place of noise predictions, the shift k, and
|.|^2 as the mean over the action's dimensions.
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
SATURATION_MARGIN = 0.01  # a weight this close to 0 or 1 counts as saturated


@dataclass(frozen=True)
class DIPOLEConfig:
    discount: float = 0.995  # gamma
    learning_rate: float = 3e-4  # learning rate of Adam, for all networks
    target_rate: float = 0.005  # tau: target <- tau online + (1 - tau) target
    actor_hidden_dims: tuple[int, ...] = (512, 512, 512)  # hidden sizes of the policy networks
    value_hidden_dims: tuple[int, ...] = (512, 512, 512)  # hidden sizes of critics and value
    actor_layer_norm: bool = False  # layer norm in the policy networks
    value_layer_norm: bool = True  # layer norm in critics and value
    num_critics: int = 2  # K
    pessimism: Optional[float] = None  # rho: mean - rho std of the critics, where docs/critics.md says; null: minimum
    expectile: float = 0.9  # expectile of the value regression
    value_aggregation: Literal["min", "mean"] = "min"  # in the value loss: as `pessimism` says, or their mean
    target_pessimism: Optional[float] = 0.0  # rho of the critics' targets; 0: each on every head's target
    inverse_temperature: float = 1.0  # beta: multiplies the advantage in the policy's weights
    advantage: Literal["critic", "group"] = "critic"  # Q - V, or reward - state_values of the data, on one-step tasks
    shift: float = 0.0  # k: moves the sigmoid's active region
    weighting: Literal["sigmoid", "imitation", "exponential", "indicator", "none"] = "sigmoid"  # others: ablations
    max_weight: Optional[float] = 100.0  # clip of the exponential weights, as in IQL's released code; null: no clip
    greediness: float = 0.0  # omega when acting; 0: pi+ alone, -1: pi- alone
    target_greediness: float = 0.0  # omega of the next actions in the critics' targets
    num_candidates: int = 32  # N: actions sampled per state when acting; the critics choose among them
    noise_scale: float = 1.0  # the start noise is multiplied by it when acting; below 1: nearer to the mean
    target_candidates: int = 1  # N of the next actions in the critics' targets
    flow_steps: int = 10  # Euler steps of the flow

    @property
    def num_policies(self) -> int:
        return 1 if self.weighting in ("exponential", "none") else 2

    def __post_init__(self):
        check_greediness(self, "greediness")
        check_greediness(self, "target_greediness")


def check_greediness(config, name: str) -> None:
    """Raises ValueError unless the policies that the config trains can be combined to that greediness (eq. 10)."""
    omega = getattr(config, name)
    if omega < -1:
        raise ValueError(f"{name} is {omega:g}; it starts at -1, the negative policy alone")
    if omega != 0 and config.num_policies == 1:
        raise ValueError(f"{name} is {omega:g}, but weighting {config.weighting} trains one policy; set {name} to 0")


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


def policy_weights(config, advantage: Tensor) -> Tensor:
    """Regression weights of pi+ and pi-: advantage [B] -> [2, B]; [1, B] where there is one policy."""
    scaled = config.inverse_temperature * advantage
    if config.weighting == "none":  # behaviour cloning
        return torch.ones_like(advantage)[None]
    if config.weighting == "exponential":  # eq. 4
        return torch.exp(scaled).clamp(min=0, max=config.max_weight)[None]
    if config.weighting == "indicator":  # CFGRL-style: pi+ ~ mu 1[A >= 0]
        positive = (advantage >= 0).to(advantage)
    else:  # eq. 8
        positive = torch.sigmoid(scaled + config.shift)
    if config.weighting == "sigmoid":
        return torch.stack([positive, 1 - positive])
    return torch.stack([positive, torch.ones_like(positive)])  # pi- = mu


def composed_velocity(flow: EnsembleMLP, observations: Tensor, x: Tensor, t: float, greediness: float) -> Tensor:
    """v = (1 + omega) v+ - omega v- (eq. 10): [B, A]. Only the networks that omega uses are evaluated."""
    inputs = (observations, x, torch.full_like(x[:, :1], t))
    if greediness == 0:
        return flow(*inputs, member=0)[0]
    if greediness == -1:
        return flow(*inputs, member=1)[0]
    positive, negative = flow(*inputs)
    return (1 + greediness) * positive - greediness * negative


def best_candidate(critic: EnsembleMLP, observations: Tensor, candidates: Tensor) -> Tensor:
    """Of candidates [N, C, A], the one with the largest min_k Q_k(s,a): [N, A]."""
    num_states, count, _ = candidates.shape
    if count == 1:
        return candidates[:, 0]
    repeated = observations.repeat_interleave(count, dim=0)
    q = critic(repeated, candidates.flatten(0, 1)).squeeze(-1).amin(dim=0)
    best = q.view(num_states, count).argmax(dim=1)
    return candidates[torch.arange(num_states, device=best.device), best]


class DIPOLE(nn.Module):
    """A positive and a negative policy, critics with targets, and a state value."""

    act_options = ("greediness", "num_candidates", "flow_steps", "noise_scale")  # config fields that act() takes

    def __init__(self, config: DIPOLEConfig, observation_dim: int, action_dim: int, seed: int = 0):
        super().__init__()
        self.config = config
        self.observation_dim = observation_dim
        self.action_dim = action_dim
        self.batch_fields = ("state_values",) if config.advantage == "group" else ()  # beyond the usual columns
        self.noise = Noise(seed)

        def value_network(members: int, input_dim: int) -> EnsembleMLP:
            sizes = (input_dim, *config.value_hidden_dims, 1)
            return EnsembleMLP(members, sizes, config.value_layer_norm, self.noise.generator)

        pair_dim = observation_dim + action_dim
        self.critic = value_network(config.num_critics, pair_dim)
        self.target_critic = value_network(config.num_critics, pair_dim).requires_grad_(False)
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.value = value_network(1, observation_dim)
        flow_sizes = (pair_dim + 1, *config.actor_hidden_dims, action_dim)
        self.flow = EnsembleMLP(config.num_policies, flow_sizes, config.actor_layer_norm, self.noise.generator)
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        # capturable: the step count stays on the device, so that a CUDA graph can hold the step
        self.optimizer = torch.optim.Adam(trained, lr=config.learning_rate, fused=True, capturable=True)

    def update(self, batch: dict) -> dict:
        """One gradient step of all networks, then the target critics' step; returns detached 0-d metrics.

        batch: tensors of the agent's dtype and device: observations and next_observations [B, O], actions [B, A] in
        [-1, 1], rewards [B], masks [B] (0: no bootstrap), valid [B] of chunks; state_values [B] if in `batch_fields`.
        """
        check_columns(self, batch, (*COLUMNS, *self.batch_fields))
        loss, metrics = self.loss(batch, self.draw(len(batch["actions"])))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        soft_update(self.target_critic, self.critic, self.config.target_rate)
        return metrics

    def draw(self, batch_size: int) -> dict:
        """The random numbers of one update, in the order of the released code."""
        return {
            "next_x0": self.noise.normal(batch_size, self.config.target_candidates, self.action_dim),
            "x0": self.noise.normal(batch_size, self.action_dim),
            "t": self.noise.uniform(batch_size, 1),
        }

    def loss(self, batch: dict, noise: dict) -> tuple[Tensor, dict]:
        """The sum of all losses at the present parameters, and the metrics: a pure function."""
        batch = {"valid": torch.ones_like(batch["rewards"]), **batch}  # 0: an episode ended within the chunk
        with torch.no_grad():
            data_q = self.target_critic(batch["observations"], batch["actions"]).squeeze(-1)
        value = self.value(batch["observations"])[0, :, 0]
        if self.config.advantage == "group":
            advantage = batch["rewards"] - batch["state_values"]
        else:
            advantage = aggregated(data_q, self.config.pessimism) - value.detach()

        critic_loss, metrics = self.critic_loss(batch, noise["next_x0"])
        value_loss, value_metrics = self.value_loss(data_q, value)
        policy_loss, policy_metrics = self.policy_loss(batch, advantage, noise["x0"], noise["t"])
        loss = critic_loss + value_loss + policy_loss
        metrics |= value_metrics | policy_metrics
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    def critic_loss(self, batch: dict, next_x0: Tensor) -> tuple[Tensor, dict]:
        """Temporal differences of each critic to all target heads: mean over the heads, sum over the critics."""
        config = self.config
        next_observations = batch["next_observations"]
        with torch.no_grad():
            next_actions = self.choose(next_observations, next_x0, config.target_greediness, config.flow_steps)
            next_q = self.target_critic(next_observations, next_actions).squeeze(-1)
            if config.target_pessimism != 0:
                next_q = aggregated(next_q, config.target_pessimism)[None]
            target_q = batch["rewards"] + config.discount * batch["masks"] * next_q  # [K, B], or [1, B]
        q = self.critic(batch["observations"], batch["actions"]).squeeze(-1)
        loss = (batch["valid"] * (q[:, None] - target_q).square()).mean(dim=(1, 2)).sum()
        metrics = {
            "critic/loss": loss,
            "critic/q_mean": q.mean(),
            "critic/target_mean": target_q.mean(),
        }
        return loss, metrics

    def value_loss(self, data_q: Tensor, value: Tensor) -> tuple[Tensor, dict]:
        """Expectile regression of V [B] on the target critics at the data's actions [K, B]."""
        pessimism = 0 if self.config.value_aggregation == "mean" else self.config.pessimism
        loss = expectile_loss(aggregated(data_q, pessimism) - value, self.config.expectile)
        return loss, {"value/loss": loss, "value/mean": value.mean()}

    def policy_loss(self, batch: dict, advantage: Tensor, x0: Tensor, t: Tensor) -> tuple[Tensor, dict]:
        """Weighted flow matching (eq. 9) of both policies at the same x0 [B, A] and t [B, 1]."""
        actions = batch["actions"]
        weights = policy_weights(self.config, advantage)
        x_t = (1 - t) * x0 + t * actions
        velocity = self.flow(batch["observations"], x_t, t)
        losses = (weights * batch["valid"] * (velocity - (actions - x0)).square().mean(dim=-1)).mean(dim=1)

        positive = weights[0]
        saturated = torch.minimum(positive.abs(), (positive - 1).abs()) < SATURATION_MARGIN
        metrics = {
            "value/advantage_mean": advantage.mean(),
            "value/advantage_std": advantage.std(correction=0),
            "actor/positive_loss": losses[0],
            "actor/weight_mean": positive.mean(),
            "actor/weight_std": positive.std(correction=0),
            "actor/weight_max": positive.amax(),
            "actor/weight_saturated": saturated.to(positive).mean(),
        }
        if len(losses) == 2:
            metrics["actor/negative_loss"] = losses[1]
        return losses.sum(), metrics

    @torch.no_grad()
    def act(self, observations: Tensor, explore: bool = False, **options) -> Tensor:
        """Actions [N, A] in [-1, 1] for observations [N, O]; `options` replace the config's (see act_options).

        `explore` changes nothing: the policy is stochastic already. Raises ValueError for an impossible greediness.
        """
        config = replace(self.config, **options)
        check_columns(self, {"observations": observations}, ("observations",))
        x0 = config.noise_scale * self.noise.normal(len(observations), config.num_candidates, self.action_dim)
        return self.choose(observations, x0, config.greediness, config.flow_steps)

    def choose(self, observations: Tensor, x0: Tensor, greediness: float, flow_steps: int) -> Tensor:
        """The best of the actions from the noise x0 [N, C, A]: [N, A], a pure function."""
        candidates = self.sample(observations, x0, greediness, flow_steps)
        return best_candidate(self.critic, observations, candidates)

    def sample(self, observations: Tensor, x0: Tensor, greediness: float, flow_steps: int) -> Tensor:
        """Actions [N, C, A] by Euler steps from the noise x0 [N, C, A] at t = 0, clipped once at the end."""
        x = x0.flatten(0, 1)
        repeated = observations.repeat_interleave(x0.shape[1], dim=0)
        for step in range(flow_steps):
            x = x + composed_velocity(self.flow, repeated, x, step / flow_steps, greediness) / flow_steps
        return x.clamp(-1, 1).view_as(x0)

    @classmethod
    def load(cls, run_dir: str | Path) -> "DIPOLE":
        """The trained agent of a run folder, on the CPU; needs nothing else of the repository."""
        checkpoint = torch.load(Path(run_dir) / "checkpoint.pt", map_location="cpu", weights_only=True)
        stored = checkpoint["config"]
        config = DIPOLEConfig(**{each.name: stored[each.name] for each in fields(DIPOLEConfig) if each.name in stored})
        agent = cls(config, checkpoint["observation_dim"], checkpoint["action_dim"])
        agent.load_state_dict(checkpoint["agent"]["networks"])
        return agent


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for envs/ and harness/
    from harness.command_line import main

    main(DIPOLE, DIPOLEConfig)
