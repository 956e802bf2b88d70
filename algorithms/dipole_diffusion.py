"""DIPOLE (Dichotomous Diffusion Policy Optimization, Liang et al., ICLR 2026, arXiv 2601.00898) as noise prediction.

Advantage A, critics, value, both policies' weights, greediness omega and acting are those of dipole.py; with the noise
predictions eps+ and eps- of its two policies, and |.|^2 as the mean over the action's dimensions

    policy loss      E[w |eps+ - eps|^2] + E[(1-w) |eps- - eps|^2],  w = sigma(beta A + k)    (eq. 9)
    sampling         eps = (1+omega) eps+ - omega eps-,  denoising from x ~ N(0, I)           (eq. 10)

x_t = sqrt(abar_t) a + sqrt(1 - abar_t) eps, eps ~ N(0, I), at a level t from 1 to T, with `signal_level`'s abar_t. A
step of the sampler, from level t to a lower s, is ancestral (DDPM, Ho et al. 2020) with eta = 1 and deterministic
(DDIM, Song et al. 2021, eq. 12 and 16) with eta = 0:

    x0  = clip((x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)),   eps' = (x_t - sqrt(abar_t) x0) / sqrt(1 - abar_t)
    x_s = sqrt(abar_s) x0 + sqrt(1 - abar_s - v) eps' + sqrt(v) z,   z ~ N(0, I)
    v   = eta^2 (1 - abar_s) / (1 - abar_t) (1 - abar_t / abar_s)

    python algorithms/dipole_diffusion.py --task exorl/local_sticky_random/cartpole_swingup

The paper leaves schedule, T and time input open: the schedule is that of Diffusion-QL and IDQL, T = 10 that of QAM's
baselines, the time input Diffusion-QL's sinusoids.
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
MIN_BETA, MAX_BETA = 0.1, 10.0  # b_min and b_max of the schedule, in Diffusion-QL's and IDQL's released code
TIME_FEATURES = 16  # sinusoids of the level, in Diffusion-QL's released code
FREQUENCY_RANGE = 1e4  # their angular frequencies go from 1 to 1 / this


@dataclass(frozen=True)
class DIPOLEDiffusionConfig:
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
    diffusion_steps: int = 10  # T: noise levels of the diffusion
    denoising_steps: int = 10  # steps of the sampler through the T levels, evenly spaced; at most T
    stochasticity: float = 1.0  # eta of the sampler; 1: ancestral (DDPM), 0: deterministic (DDIM)

    @property
    def num_policies(self) -> int:
        return 1 if self.weighting in ("exponential", "none") else 2

    def __post_init__(self):
        check_greediness(self, "greediness")
        check_greediness(self, "target_greediness")
        if self.denoising_steps > self.diffusion_steps:
            raise ValueError(f"denoising_steps is {self.denoising_steps}; it is at most diffusion_steps")


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

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator, device=self.like.device)


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


def signal_level(t: Tensor, diffusion_steps: int) -> Tensor:
    """abar at level t, 0 to T, of any shape: the product of 1 - beta_u up to t, in closed form."""
    fraction = t / diffusion_steps
    return torch.exp(-MIN_BETA * fraction - (MAX_BETA - MIN_BETA) / 2 * fraction.square())


def time_features(t: Tensor) -> Tensor:
    """Sines and cosines of the level, at frequencies in geometric progression: t [B, 1] -> [B, TIME_FEATURES]."""
    half = TIME_FEATURES // 2
    exponents = torch.arange(half, dtype=t.dtype, device=t.device) / (half - 1)
    angles = t * FREQUENCY_RANGE**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def composed_noise(denoiser: EnsembleMLP, observations: Tensor, x: Tensor, t: Tensor, greediness: float) -> Tensor:
    """eps = (1 + omega) eps+ - omega eps- (eq. 10): [B, A]. Only the networks that omega uses are evaluated."""
    inputs = (observations, x, time_features(t))
    if greediness == 0:
        return denoiser(*inputs, member=0)[0]
    if greediness == -1:
        return denoiser(*inputs, member=1)[0]
    positive, negative = denoiser(*inputs)
    return (1 + greediness) * positive - greediness * negative


def denoising_step(
    config,
    x: Tensor,
    predicted: Tensor,
    t: Tensor,
    next_t: Tensor,
    fresh_noise: Tensor,
) -> Tensor:
    """x [B, A] from level t to the lower next_t (both [B, 1]), given the policies' combined noise prediction [B, A].

    Each policy's own estimate must not be clipped: at high levels both would be at one bound, their difference 0.
    """
    level = signal_level(t, config.diffusion_steps)
    next_level = signal_level(next_t, config.diffusion_steps)
    clean = ((x - (1 - level).sqrt() * predicted) / level.sqrt()).clamp(-1, 1)
    remaining = (x - level.sqrt() * clean) / (1 - level).sqrt()
    variance = config.stochasticity**2 * (1 - next_level) / (1 - level) * (1 - level / next_level)
    return next_level.sqrt() * clean + (1 - next_level - variance).sqrt() * remaining + variance.sqrt() * fresh_noise


def best_candidate(critic: EnsembleMLP, observations: Tensor, candidates: Tensor) -> Tensor:
    """Of candidates [N, C, A], the one with the largest min_k Q_k(s,a): [N, A]."""
    num_states, count, _ = candidates.shape
    if count == 1:
        return candidates[:, 0]
    repeated = observations.repeat_interleave(count, dim=0)
    q = critic(repeated, candidates.flatten(0, 1)).squeeze(-1).amin(dim=0)
    best = q.view(num_states, count).argmax(dim=1)
    return candidates[torch.arange(num_states, device=best.device), best]


class DIPOLEDiffusion(nn.Module):
    """A positive and a negative policy, critics with targets, and a state value."""

    act_options = ("greediness", "num_candidates", "denoising_steps", "noise_scale")  # config fields that act() takes

    def __init__(self, config: DIPOLEDiffusionConfig, observation_dim: int, action_dim: int, seed: int = 0):
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
        sizes = (pair_dim + TIME_FEATURES, *config.actor_hidden_dims, action_dim)
        self.denoiser = EnsembleMLP(config.num_policies, sizes, config.actor_layer_norm, self.noise.generator)
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
        """The random numbers of one update."""
        config = self.config
        chain = (config.target_candidates, config.denoising_steps + 1, self.action_dim)
        return {
            "next_noise": self.noise.normal(batch_size, *chain),
            "noise": self.noise.normal(batch_size, self.action_dim),
            "t": 1 + self.noise.integers(config.diffusion_steps, batch_size, 1),
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

        critic_loss, metrics = self.critic_loss(batch, noise["next_noise"])
        value_loss, value_metrics = self.value_loss(data_q, value)
        policy_loss, policy_metrics = self.policy_loss(batch, advantage, noise["noise"], noise["t"])
        loss = critic_loss + value_loss + policy_loss
        metrics |= value_metrics | policy_metrics
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    def critic_loss(self, batch: dict, next_noise: Tensor) -> tuple[Tensor, dict]:
        """Temporal differences of each critic to all target heads: mean over the heads, sum over the critics."""
        config = self.config
        next_observations = batch["next_observations"]
        with torch.no_grad():
            next_actions = self.choose(next_observations, next_noise, config.target_greediness)
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

    def policy_loss(self, batch: dict, advantage: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, dict]:
        """Weighted noise prediction (eq. 9) of both policies at the same noise [B, A] and level t [B, 1]."""
        t = t.to(noise)
        weights = policy_weights(self.config, advantage)
        level = signal_level(t, self.config.diffusion_steps)
        x_t = level.sqrt() * batch["actions"] + (1 - level).sqrt() * noise
        predicted = self.denoiser(batch["observations"], x_t, time_features(t))
        losses = (weights * batch["valid"] * (predicted - noise).square().mean(dim=-1)).mean(dim=1)

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

        `explore` changes nothing: the policy is stochastic already. Raises ValueError for an impossible option.
        """
        config = replace(self.config, **options)
        check_columns(self, {"observations": observations}, ("observations",))
        count, steps = config.num_candidates, config.denoising_steps
        noise = self.noise.normal(len(observations), count, steps + 1, self.action_dim)
        noise[:, :, 0] *= config.noise_scale
        return self.choose(observations, noise, config.greediness)

    def choose(self, observations: Tensor, noise: Tensor, greediness: float) -> Tensor:
        """The best of the actions from the noise [N, C, S+1, A]: [N, A], a pure function."""
        candidates = self.sample(observations, noise, greediness)
        return best_candidate(self.critic, observations, candidates)

    def sample(self, observations: Tensor, noise: Tensor, greediness: float) -> Tensor:
        """Actions [N, C, A] by S steps from level T to 0; noise [N, C, S+1, A] is the start and each step's own."""
        num_steps = noise.shape[2] - 1
        x, *fresh_noises = noise.flatten(0, 1).unbind(dim=1)
        repeated = observations.repeat_interleave(noise.shape[1], dim=0)
        steps = range(num_steps, -1, -1)
        levels = [torch.full_like(x[:, :1], self.config.diffusion_steps * step // num_steps) for step in steps]
        for t, next_t, fresh_noise in zip(levels, levels[1:], fresh_noises, strict=False):
            predicted = composed_noise(self.denoiser, repeated, x, t, greediness)
            x = denoising_step(self.config, x, predicted, t, next_t, fresh_noise)
        return x.view(*noise.shape[:2], self.action_dim)

    @classmethod
    def load(cls, run_dir: str | Path) -> "DIPOLEDiffusion":
        """The trained agent of a run folder, on the CPU; needs nothing else of the repository."""
        checkpoint = torch.load(Path(run_dir) / "checkpoint.pt", map_location="cpu", weights_only=True)
        stored = checkpoint["config"]
        config = DIPOLEDiffusionConfig(
            **{each.name: stored[each.name] for each in fields(DIPOLEDiffusionConfig) if each.name in stored}
        )
        agent = cls(config, checkpoint["observation_dim"], checkpoint["action_dim"])
        agent.load_state_dict(checkpoint["agent"]["networks"])
        return agent


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for envs/ and harness/
    from harness.command_line import main

    main(DIPOLEDiffusion, DIPOLEDiffusionConfig)
