"""DQL: Diffusion Q-Learning (Wang, Hunt & Zhou, ICLR 2023, arXiv 2208.06193).

The policy is a diffusion model of T levels: eps_theta predicts eps from x_t = sqrt(abar_t) a + sqrt(1 - abar_t) eps.
With K critics Q_k, their targets Qbar_k, an EMA copy of the policy, and |.|^2 the mean over the action's dimensions:

    critic loss   sum_k E[(Q_k(s,a) - y)^2],   y = r + discount mask min_k max_c Qbar_k(s', a'_c)
                  with C next actions a'_c of the EMA policy (C = 1, or 10 for the max-Q backup)
    policy loss   E[|eps_theta(s, x_t, t) - eps|^2] - eta E[Q_i(s, a0)] / E|Q_j(s, a0)|,   t uniform in 1..T,
                  (i, j) = (1, 2) or (2, 1) by a coin, a0 with gradients through all T steps; the divisor has none
    sampling      x ~ N(0, I); per level x0 = (x - sqrt(1 - abar_t) eps_theta) / sqrt(abar_t), clipped to [-1, 1];
                  x <- mean of the posterior q(x_{t-1} | x, x0) + its standard deviation times z
    acting        of N sampled actions, one drawn with probabilities softmax(min_k Qbar_k)

`signal_level` gives abar_t. The critics step first; the policy's loss is evaluated with the new ones.

    python algorithms/baselines/dql.py --task exorl/local_sticky_random/cartpole_swingup

Differences from the paper and its code: docs/dql.md. Of more than two critics, i and j are the first and the last.
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
MIN_BETA, MAX_BETA = 0.1, 10.0  # b_min and b_max of the schedule, in Diffusion-QL's and IDQL's released code
TIME_FEATURES = 16  # sinusoids of the level, in Diffusion-QL's released code
FREQUENCY_RANGE = 1e4  # their angular frequencies go from 1 to 1 / this


@dataclass(frozen=True)
class DQLConfig:
    discount: float = 0.99  # gamma
    actor_learning_rate: float = 3e-4  # learning rate of the policy's Adam
    critic_learning_rate: float = 3e-4  # learning rate of the critics' Adam
    decay_length: int = 0  # length of the cosine learning-rate decay, in decay steps; 0: off
    decay_interval: int = 50_000  # updates between steps of that decay
    max_gradient_norm: float = 1.0  # a gradient of larger L2 norm is scaled down to it; 0: never
    target_rate: float = 0.005  # tau: target <- tau online + (1 - tau) target
    ema_rate: float = 0.005  # the same for the EMA policy, whose actions the critics' targets use
    ema_start: int = 1_000  # updates before the EMA policy first moves; until then it is the initial one
    ema_interval: int = 5  # updates between moves of the EMA policy
    actor_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # hidden sizes of the policy networks
    value_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # hidden sizes of critics and value
    actor_layer_norm: bool = False  # layer norm in the policy networks
    value_layer_norm: bool = True  # layer norm in critics and value
    num_critics: int = 2  # K
    pessimism: Optional[float] = None  # rho: mean - rho std of the critics, where docs/critics.md says; null: minimum
    diffusion_steps: int = 5  # T: noise levels of the diffusion
    q_weight: float = 1.0  # eta: weight of the normalised Q in the policy's loss
    backup_candidates: int = 1  # C: next actions per state, of which a target critic takes its best; 10: max-Q backup
    num_candidates: int = 50  # N: actions sampled per state when acting; the critics choose among them
    noise_scale: float = 1.0  # the start noise is multiplied by it when acting; below 1: nearer to the mean


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


class Denoiser(nn.Module):
    """FQL's policy network as a noise predictor: observations [B, O], x [B, A], level t [B, 1] -> noise [B, A]."""

    def __init__(self, sizes: tuple[int, ...], layer_norm: bool, generator: torch.Generator):
        super().__init__()
        self.mlp = EnsembleMLP(1, (sizes[0] + TIME_FEATURES, *sizes[1:]), layer_norm, generator)

    def forward(self, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return self.mlp(observations, x, time_features(t))[0]


@torch.no_grad()
def soft_update(target: nn.Module, online: nn.Module, rate: float) -> None:
    """target <- rate * online + (1 - rate) * target, for every parameter."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)


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


def noised(actions: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """x_t: actions [B, A] with noise [B, A] mixed in at abar = `level` [B, 1]."""
    return level.sqrt() * actions + (1 - level).sqrt() * noise


def clean_action(x: Tensor, predicted: Tensor, level: Tensor) -> Tensor:
    """x0: what is left of x [B, A] at abar = `level` [B, 1] without the predicted noise [B, A], not clipped."""
    return (x - (1 - level).sqrt() * predicted) / level.sqrt()


def posterior_mean(x: Tensor, clean: Tensor, level: Tensor, next_level: Tensor) -> Tensor:
    """Mean of q(x_{t-1} | x_t, x0) for x and clean [B, A], abar_t and abar_{t-1} [B, 1] (Ho et al., 2020, eq. 7)."""
    alpha = level / next_level
    mixture = next_level.sqrt() * (1 - alpha) * clean + alpha.sqrt() * (1 - next_level) * x
    return mixture / (1 - level)


def resample(actions: Tensor, log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Draws one of R candidates by its weight: actions [..., R, A], log_weights and uniform [..., R] -> [..., A]."""
    # The Gumbel-max trick needs neither a branch nor a synchronisation with the device.
    gumbel = -torch.log(-torch.log(uniform.clamp(min=torch.finfo(uniform.dtype).tiny)))
    drawn = (log_weights + gumbel).argmax(dim=-1)[..., None, None]
    return torch.take_along_dim(actions, drawn, dim=-2).squeeze(-2)


class DQL(nn.Module):
    """A diffusion policy with its EMA copy, and critics with targets."""

    act_options = ("num_candidates", "noise_scale")  # config fields that act() takes
    batch_fields = ()  # columns of a minibatch beyond the usual ones
    losses = ("critic_loss", "policy_loss")  # pure functions, one for each optimiser step of an update
    critic_class = EnsembleMLP
    denoiser_class = Denoiser

    def __init__(self, config: DQLConfig, observation_dim: int, action_dim: int, seed: int = 0):
        super().__init__()
        self.config = config
        self.observation_dim = observation_dim
        self.action_dim = action_dim
        self.noise = Noise(seed)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))  # made so far, on the device
        pair_dim = observation_dim + action_dim
        value_sizes = (pair_dim, *config.value_hidden_dims, 1)
        actor_sizes = (pair_dim, *config.actor_hidden_dims, action_dim)

        def critics() -> nn.Module:
            return self.critic_class(config.num_critics, value_sizes, config.value_layer_norm, self.noise.generator)

        def policy() -> nn.Module:
            return self.denoiser_class(actor_sizes, config.actor_layer_norm, self.noise.generator)

        self.critic = critics()
        self.target_critic = critics().requires_grad_(False)
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.denoiser = policy()
        self.ema_denoiser = policy().requires_grad_(False)
        self.ema_denoiser.load_state_dict(self.denoiser.state_dict())
        # capturable: the step count stays on the device, so that a CUDA graph can hold the step
        self.critic_optimizer = torch.optim.Adam(
            self.critic.parameters(),
            lr=config.critic_learning_rate,
            fused=True,
            capturable=True,
        )
        self.actor_optimizer = torch.optim.Adam(
            self.denoiser.parameters(),
            lr=config.actor_learning_rate,
            fused=True,
            capturable=True,
        )

    def update(self, batch: dict) -> dict:
        """The critics' gradient step, the policy's with the new critics, then the targets'; detached 0-d metrics.

        batch: tensors of the agent's dtype and device: observations and next_observations [B, O], actions [B, A] in
        [-1, 1], rewards [B], masks [B] (0: no bootstrap), valid [B] of chunks. Raises ValueError for any other shape.
        """
        check_columns(self, batch, (*COLUMNS, *self.batch_fields))
        config = self.config
        noise = self.draw(len(batch["actions"]))
        self.decay_learning_rates()
        critic_loss, critic_metrics = self.critic_loss(batch, noise["next_noise"])
        self.step(self.critic_optimizer, self.critic, critic_loss)
        policy_loss, policy_metrics = self.policy_loss(batch, noise)
        self.step(self.actor_optimizer, self.denoiser, policy_loss)
        started = self.updates >= config.ema_start
        due = self.updates % config.ema_interval == 0
        gated_soft_update(self.ema_denoiser, self.denoiser, config.ema_rate, started & due)
        soft_update(self.target_critic, self.critic, config.target_rate)
        self.updates += 1
        metrics = critic_metrics | policy_metrics
        return {name: metric.detach() for name, metric in metrics.items()}

    def decay_learning_rates(self) -> None:
        """Sets the optimisers' rates to 0-d tensors computed on the device, which a CUDA graph can replay."""
        config = self.config
        if config.decay_length > 0:
            step = (self.updates // config.decay_interval).to(next(self.parameters()))
            angle = math.pi * step / config.decay_length
            factor = (1 + torch.cos(angle)) / 2  # from 1 at the start to 0 at the end
            self.critic_optimizer.param_groups[0]["lr"] = config.critic_learning_rate * factor
            self.actor_optimizer.param_groups[0]["lr"] = config.actor_learning_rate * factor

    def step(self, optimizer: torch.optim.Adam, network: nn.Module, loss: Tensor) -> None:
        """One step of one network alone, with the released code's clipping of its gradient."""
        parameters = list(network.parameters())
        optimizer.zero_grad()
        loss.backward(inputs=parameters)  # the policy's loss leaves no gradient in the critics
        if self.config.max_gradient_norm > 0:
            nn.utils.clip_grad_norm_(parameters, self.config.max_gradient_norm)  # adds 1e-6 to the norm, as theirs
        optimizer.step()

    def draw(self, batch_size: int) -> dict:
        """The random numbers of one update, in the order of the released code."""
        config = self.config
        chain = (config.diffusion_steps + 1, self.action_dim)
        return {
            "next_noise": self.noise.normal(batch_size, config.backup_candidates, *chain),
            "t": 1 + self.noise.integers(config.diffusion_steps, batch_size, 1),
            "noise": self.noise.normal(batch_size, self.action_dim),
            "chain": self.noise.normal(batch_size, 1, *chain),
            "coin": self.noise.uniform(),
        }

    def loss(self, batch: dict, noise: dict) -> tuple[Tensor, dict]:
        """Both losses and all metrics at the present parameters (an update takes the critics' step in between)."""
        critic_loss, metrics = self.critic_loss(batch, noise["next_noise"])
        policy_loss, policy_metrics = self.policy_loss(batch, noise)
        loss = critic_loss + policy_loss
        metrics |= policy_metrics
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    def critic_loss(self, batch: dict, next_noise: Tensor) -> tuple[Tensor, dict]:
        """All critics on the least of the target critics' best values of the EMA policy's next actions."""
        with torch.no_grad():
            next_actions = self.sample(self.ema_denoiser, batch["next_observations"], next_noise)
            next_q = self.candidate_q(batch["next_observations"], next_actions).amax(dim=-1)
            next_q = aggregated(next_q, self.config.pessimism)
            target_q = batch["rewards"] + self.config.discount * batch["masks"] * next_q
        q = self.critic(batch["observations"], batch["actions"]).squeeze(-1)
        valid = batch.get("valid", torch.ones_like(batch["rewards"]))
        loss = (valid * (q - target_q).square()).mean(dim=1).sum()
        metrics = {
            "critic/loss": loss,
            "critic/q_mean": q.mean(),
            "critic/target_mean": target_q.mean(),
        }
        return loss, metrics

    def policy_loss(self, batch: dict, noise: dict) -> tuple[Tensor, dict]:
        """Cloning, and the normalised Q of an action sampled through the whole chain."""
        config, observations = self.config, batch["observations"]
        t = noise["t"].to(noise["noise"].dtype)
        x_t = noised(batch["actions"], noise["noise"], signal_level(t, config.diffusion_steps))
        valid = batch.get("valid", torch.ones_like(batch["rewards"]))
        errors = (self.denoiser(observations, x_t, t) - noise["noise"]).square()
        bc_loss = (valid[:, None] * errors).mean()

        sampled = self.sample(self.denoiser, observations, noise["chain"]).squeeze(1)
        q = self.critic(observations, sampled).squeeze(-1)
        ratios = q.mean(dim=1) / q.abs().mean(dim=1).detach().flip(0)
        q_loss = -torch.where(noise["coin"] > 0.5, ratios[0], ratios[-1])
        loss = bc_loss + config.q_weight * q_loss
        metrics = {
            "actor/loss": loss,
            "actor/bc_loss": bc_loss,
            "actor/q_loss": q_loss,
            "actor/q_mean": q.mean(),
        }
        return loss, metrics

    def candidate_q(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Each target critic at observations [N, O] for each of the candidate actions [N, C, A]: [K, N, C]."""
        num_states, count, _ = actions.shape
        repeated = observations.repeat_interleave(count, dim=0)
        q = self.target_critic(repeated, actions.flatten(0, 1))
        return q.view(-1, num_states, count)

    def sample(self, denoiser: nn.Module, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions [N, C, A] by the whole chain, differentiable; noise [N, C, T+1, A] is the start and each step's own.

        The last step has neither noise nor a share of x: it returns the clean estimate, which is clipped already.
        """
        x, *fresh_noises = noise.flatten(0, 1).unbind(dim=1)
        repeated = observations.repeat_interleave(noise.shape[1], dim=0)
        num_levels = len(fresh_noises)
        for step, fresh_noise in enumerate(fresh_noises):
            t = torch.full_like(x[:, :1], num_levels - step)
            level = signal_level(t, num_levels)
            next_level = signal_level(t - 1, num_levels)
            clean = clean_action(x, denoiser(repeated, x, t), level).clamp(-1, 1)
            variance = (1 - level / next_level) * (1 - next_level) / (1 - level)
            x = posterior_mean(x, clean, level, next_level) + variance.sqrt() * fresh_noise
        return x.view(*noise.shape[:2], self.action_dim)

    @torch.no_grad()
    def act(self, observations: Tensor, explore: bool = False, **options) -> Tensor:
        """Actions [N, A] in [-1, 1] for observations [N, O]; `options` replace the config's (see act_options).

        `explore` changes nothing: this is a sample already, and the released code has no online phase.
        """
        config = replace(self.config, **options)
        check_columns(self, {"observations": observations}, ("observations",))
        noise = self.noise.normal(
            len(observations),
            config.num_candidates,
            config.diffusion_steps + 1,
            self.action_dim,
        )
        noise[:, :, 0] *= config.noise_scale
        if config.num_candidates == 1:
            return self.sample(self.denoiser, observations, noise)[:, 0]
        return self.choose(observations, noise, self.noise.uniform(*noise.shape[:2]))

    def choose(self, observations: Tensor, noise: Tensor, uniform: Tensor) -> Tensor:
        """Of the actions from the noise [N, C, T+1, A], one drawn by value with uniform [N, C]: [N, A], pure."""
        candidates = self.sample(self.denoiser, observations, noise)
        q = self.candidate_q(observations, candidates).amin(dim=0)
        return resample(candidates, q, uniform)

    @classmethod
    def load(cls, run_dir: str | Path) -> "DQL":
        """The trained agent of a run folder, on the CPU; needs nothing else of the repository."""
        checkpoint = torch.load(Path(run_dir) / "checkpoint.pt", map_location="cpu", weights_only=True)
        stored = checkpoint["config"]
        config = DQLConfig(**{each.name: stored[each.name] for each in fields(DQLConfig) if each.name in stored})
        agent = cls(config, checkpoint["observation_dim"], checkpoint["action_dim"])
        agent.load_state_dict(checkpoint["agent"]["networks"])
        return agent


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, for envs/ and harness/
    from harness.command_line import main

    main(DQL, DQLConfig)
