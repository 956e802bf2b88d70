"""DIPOLE (Dichotomous Diffusion Policy Optimization, Liang et al., ICLR 2026, arXiv 2601.00898) as noise prediction.

With G = A(s,a) = Q(s,a) - V(s), behaviour policy mu, inverse temperature beta and greediness omega:

    target policy    pi*  ~ mu sigma(beta G) exp(omega beta G)                                (eq. 6)
                          = [mu sigma(beta G)]^(1+omega) / [mu (1 - sigma(beta G))]^omega     (eq. 7)
    two policies     pi+  ~ mu sigma(beta G)          pi- ~ mu (1 - sigma(beta G))            (eq. 8)
    training         E[w |eps - eps+|^2] + E[(1-w) |eps - eps-|^2],  w = sigma(beta A + k)    (eq. 9)
    critics          sum_k E[mean_j (Q_k(s,a) - y_j)^2],  y_j = r + discount mask Qbar_j(s', a'),  a' of the policy
    value            E[|expectile - 1[u < 0]| u^2],  u = min_k Qbar_k(s,a) - V(s)             (IQL, eq. 5)
    sampling         eps = (1+omega) eps+ - omega eps-,  denoising from x ~ N(0, I)           (eq. 10)
    acting           of N sampled actions the one with the largest min_k Q_k(s,a)

The diffusion preserves variance and has T levels: x_t = sqrt(abar_t) a + sqrt(1 - abar_t) eps, where abar_t is the
product of 1 - beta_u over u = 1..t, beta_u = 1 - exp(-b_min / T - (b_max - b_min) (2u - 1) / (2 T^2)).
A step of the sampler goes from level t to a lower level s:

    x0  = clip((x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)),   eps' = (x_t - sqrt(abar_t) x0) / sqrt(1 - abar_t)
    x_s = sqrt(abar_s) x0 + sqrt(1 - abar_s - v) eps' + sqrt(v) z,   z ~ N(0, I)
    v   = eta^2 (1 - abar_s) / (1 - abar_t) (1 - abar_t / abar_s)

eta = 1 is ancestral sampling (DDPM, Ho et al. 2020), eta = 0 deterministic (DDIM, Song et al. 2021, eq. 12 and 16).

    python algorithms/dipole_diffusion.py --task exorl/local_sticky_random/cartpole_swingup

This is algorithms/dipole.py with another process. Q, V, the weights, the choice among candidates, the ablations and
the defaults are that file's; its `composition: resample` is left out, since it does not depend on the process.
Differences from the paper, which does not give the schedule, T and the time input of its noise predictions:
  - the schedule is that of Diffusion-QL and IDQL (both T = 5); T = 10 is that of QAM's diffusion baselines, and makes
    an action cost as much as 10 Euler steps of the flow form;
  - the time input is Diffusion-QL's sinusoids of the level, without the two layers that follow them there;
  - the shift k comes from the released flow-matching code; the theory does not have it.

Needs only torch and numpy; train() also needs this repository's envs/ and harness/, which define rewards and masks.
"""

import math
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPSILON = 1e-6  # Flax's default, in FQL's networks (torch's is 1e-5)
SATURATION_MARGIN = 0.01  # a weight this close to 0 or 1 counts as saturated
VALIDATION_SEED = 0  # losses() draws the same noise at every call
MIN_BETA, MAX_BETA = 0.1, 10.0  # b_min and b_max of the schedule, in Diffusion-QL's and IDQL's released code
TIME_FEATURES = 16  # sinusoids of the level, in Diffusion-QL's released code
FREQUENCY_RANGE = 1e4  # their angular frequencies go from 1 to 1 / this


@dataclass(frozen=True)
class DIPOLEDiffusionConfig:
    task: str = "exorl/local_sticky_random/cartpole_swingup"  # <suite>/<name>: the data set and its environment
    data_dir: Optional[str] = None  # folder of the data sets; null = the suite's own default
    collect_episodes: int = 0  # collect so many episodes of an absent local set first; 0 = stop and say how
    in_memory: bool = True  # false: observations stay in the file, memory-mapped (exorl only)
    run_dir: str = "runs"  # a run's folder is <run_dir>/<label>/<task>/seed_<seed>
    label: Optional[str] = None  # name of a variant in folders and tables; null = the algorithm's name
    seed: int = 0  # of networks, minibatches and noise
    device: str = "auto"  # auto | cpu | cuda
    threads: int = 0  # CPU threads of torch; 0 = torch's choice
    matmul_precision: str = "highest"  # of float32 products: highest | high (tf32 on GPUs) | medium; see docs/gpu.md
    cuda_graphs: bool = True  # on a GPU replay recorded updates; false = one by one, the same numbers more slowly
    offline_steps: int = 1_000_000  # updates on the data set
    online_steps: int = 0  # environment steps after those, each followed by an update
    balanced_sampling: bool = False  # online minibatches half of data and half of new transitions; else uniform
    replay_capacity: int = 2_000_000  # online transitions kept; with keep_offline false, of both together
    keep_offline: bool = True  # false: beyond the capacity the data set's oldest transitions make room first
    log_interval: int = 5_000  # updates between rows of train.csv
    checkpoint_interval: int = 50_000  # updates between checkpoints
    eval_interval: int = 100_000  # updates between evaluations
    eval_episodes: int = 50  # episodes of an evaluation
    eval_environments: int = 50  # episodes that advance together as one batch
    eval_workers: int = 0  # processes that host the environments, beside training if `threads` allow; 0 = this one
    final_report: Tuple[str, ...] = ()  # act options swept after training, e.g. ["greediness=0,1"]; empty = no report
    wandb_mode: str = "disabled"  # disabled | offline | online
    wandb_project: str = "dipole"  # Weights & Biases project

    batch_size: int = 256  # transitions of a minibatch
    discount: float = 0.995  # gamma
    learning_rate: float = 3e-4  # of Adam, for all networks
    target_rate: float = 0.005  # tau: target <- tau online + (1 - tau) target
    actor_hidden_dims: Tuple[int, ...] = (512, 512, 512)  # hidden sizes of the policy networks
    value_hidden_dims: Tuple[int, ...] = (512, 512, 512)  # hidden sizes of critics and value
    actor_layer_norm: bool = False  # layer norm in the policy networks
    value_layer_norm: bool = True  # layer norm in critics and value
    expectile: float = 0.9  # of the value regression
    value_aggregation: str = "min"  # min | mean over the target critics in the value loss
    inverse_temperature: float = 1.0  # beta: multiplies the advantage in the policy's weights
    advantage: str = "critic"  # critic (Q - V) | group (reward - state_values of the data, on one-step tasks)
    shift: float = 0.0  # k: moves the sigmoid's active region
    weighting: str = "sigmoid"  # sigmoid (DIPOLE) | exponential (eq. 4) | indicator (CFGRL-style) | none (cloning)
    max_weight: Optional[float] = 100.0  # clip of the exponential weights, as in IQL's released code; null = none
    greediness: float = 0.0  # omega when acting; 0 = pi+ alone, -1 = pi- alone
    target_greediness: float = 0.0  # omega of the next actions in the critics' targets
    num_candidates: int = 32  # N: sampled actions per state when acting; the critics choose among them
    target_candidates: int = 1  # the same for the next actions in the critics' targets
    diffusion_steps: int = 10  # T: noise levels of the diffusion
    denoising_steps: int = 10  # steps of the sampler through the T levels, evenly spaced; at most T
    stochasticity: float = 1.0  # eta of the sampler: 1 = ancestral (DDPM), 0 = deterministic (DDIM)

    def __post_init__(self):
        choices = {
            "advantage": ("critic", "group"),
            "weighting": ("sigmoid", "exponential", "indicator", "none"),
            "value_aggregation": ("min", "mean"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} is {getattr(self, field)!r}; choose one of {', '.join(allowed)}")
        for field in ("batch_size", "num_candidates", "target_candidates", "diffusion_steps"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1")
        if self.max_weight is not None and self.max_weight <= 0:
            raise ValueError(f"max_weight is {self.max_weight:g}; it must be above 0, or null for none")
        for field in ("greediness", "target_greediness"):
            check_greediness(self.weighting, getattr(self, field), field)
        check_denoising_steps(self, self.denoising_steps)
        if not 0 <= self.stochasticity <= 1:
            raise ValueError(f"stochasticity is {self.stochasticity:g}; it lies between 0 (DDIM) and 1 (DDPM)")


class Noise(nn.Module):
    """The random numbers of one agent: one generator, in the dtype and on the device the agent has been moved to."""

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed
        self.register_buffer("like", torch.empty(0), persistent=False)
        self.generator = torch.Generator().manual_seed(seed)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self.generator.device != self.like.device:
            self.generator = torch.Generator(self.like.device).manual_seed(self.seed)
        return self

    def _options(self) -> dict:
        return {"generator": self.generator, "device": self.like.device}

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self.like.dtype, **self._options())

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, dtype=self.like.dtype, **self._options())

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, **self._options())


class EnsembleMLP(nn.Module):
    """M independent multi-layer perceptrons, evaluated together by one batched product per layer.

    Each hidden layer is linear -> GELU (tanh form) -> layer norm if asked for; Xavier-uniform weights, zero biases
    (the networks of FQL, github.com/seohongpark/fql). forward: inputs [B, I] or [M, B, I] -> [M, B, output_dim];
    `members` evaluates a slice of the M only.
    """

    def __init__(
        self,
        num_members: int,
        input_dim: int,
        hidden_dims: Tuple[int, ...],
        output_dim: int,
        layer_norm: bool,
        generator: torch.Generator,
    ):
        super().__init__()
        sizes = list(pairwise((input_dim, *hidden_dims, output_dim)))
        bounds = [math.sqrt(6 / (fan_in + fan_out)) for fan_in, fan_out in sizes]
        self.weights = nn.ParameterList(
            torch.empty(num_members, *size).uniform_(-bound, bound, generator=generator)
            for size, bound in zip(sizes, bounds, strict=True)
        )
        self.biases = nn.ParameterList(torch.zeros(num_members, 1, fan_out) for _, fan_out in sizes)
        normed = hidden_dims if layer_norm else ()
        self.norm_scales = nn.ParameterList(torch.ones(num_members, 1, size) for size in normed)
        self.norm_shifts = nn.ParameterList(torch.zeros(num_members, 1, size) for size in normed)

    def forward(self, inputs: Tensor, members: Optional[slice] = None) -> Tensor:
        groups = [list(group) for group in (self.weights, self.biases, self.norm_scales, self.norm_shifts)]
        if members is not None:  # only then: the gradient of a slice is a copy of the whole
            groups = [[parameter[members] for parameter in group] for group in groups]
        weights, biases, scales, shifts = groups
        hidden = inputs.expand(len(biases[0]), *inputs.shape[-2:])
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            if layer < len(weights) - 1:
                hidden = F.gelu(hidden, approximate="tanh")
                if scales:
                    hidden = F.layer_norm(hidden, hidden.shape[-1:], eps=LAYER_NORM_EPSILON)
                    hidden = torch.addcmul(shifts[layer], hidden, scales[layer])
        return hidden


@torch.no_grad()
def soft_update(target: nn.Module, online: nn.Module, rate: float) -> None:
    """target <- rate * online + (1 - rate) * target, for every parameter."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """mean of |expectile - 1[u < 0]| u^2, with u = `difference` of any shape (Kostrikov et al., IQL, eq. 5)."""
    weight = (expectile - (difference < 0).to(difference.dtype)).abs()
    return (weight * difference.square()).mean()


def q_values(critic: EnsembleMLP, observations: Tensor, actions: Tensor) -> Tensor:
    """Values [M, B] of the M critics at observations [B, O] and actions [B, A]."""
    return critic(torch.cat([observations, actions], dim=-1)).squeeze(-1)


def is_single_policy(weighting: str) -> bool:
    """Whether the weighting trains one policy only, without a negative one."""
    return weighting in ("exponential", "none")


def check_greediness(weighting: str, greediness: float, field: str) -> None:
    """Raises ValueError where that weighting trains no policies that eq. 10 could combine to that greediness."""
    if greediness < -1:
        raise ValueError(f"{field} is {greediness:g}; it starts at -1, the negative policy alone")
    if is_single_policy(weighting) and greediness != 0:
        raise ValueError(
            f"{field} is {greediness:g}, but weighting {weighting} trains a single policy; set {field} to 0"
        )


def check_denoising_steps(config: DIPOLEDiffusionConfig, denoising_steps: int) -> None:
    """Raises ValueError where `config` has no such steps through its levels."""
    if not 1 <= denoising_steps <= config.diffusion_steps:
        raise ValueError(
            f"denoising_steps is {denoising_steps}; it must be from 1 to diffusion_steps, {config.diffusion_steps}"
        )


def policy_weights(
    weighting: str, advantage: Tensor, inverse_temperature: float, shift: float, max_weight: Optional[float]
) -> Tensor:
    """Regression weights: advantage [B] -> [2, B] (positive, negative policy), or [1, B] of a single policy."""
    scaled = inverse_temperature * advantage
    if weighting == "sigmoid":  # eq. 8
        positive = torch.sigmoid(scaled + shift)
        return torch.stack([positive, 1 - positive])
    if weighting == "exponential":  # eq. 4
        weights = torch.exp(scaled)
        return (weights if max_weight is None else weights.clamp(max=max_weight))[None]
    if weighting == "indicator":  # pi+ ~ mu 1[A >= 0], pi- = mu
        return torch.stack([(advantage >= 0).to(advantage.dtype), torch.ones_like(advantage)])
    return torch.ones_like(advantage)[None]


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


def denoising_losses(
    denoiser: EnsembleMLP, observations: Tensor, actions: Tensor, noise: Tensor, t: Tensor, diffusion_steps: int
) -> Tensor:
    """Errors [M, B] of all policies' noise predictions at the same noise [B, A] and level t [B, 1] (eq. 9)."""
    x_t = noised(actions, noise, signal_level(t, diffusion_steps))
    predicted = denoiser(torch.cat([observations, x_t, time_features(t)], dim=-1))
    return (predicted - noise).square().mean(dim=-1)


def composed_noise(denoiser: EnsembleMLP, observations: Tensor, x: Tensor, t: Tensor, greediness: float) -> Tensor:
    """eps = (1 + omega) eps+ - omega eps- (eq. 10) at observations [B, O], x [B, A] and level t [B, 1]: [B, A]."""
    inputs = torch.cat([observations, x, time_features(t)], dim=-1)
    if greediness == 0:
        return denoiser(inputs, slice(0, 1))[0]
    if greediness == -1:
        return denoiser(inputs, slice(1, 2))[0]
    positive, negative = denoiser(inputs)
    return (1 + greediness) * positive - greediness * negative


def clean_estimate(x: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """The action [B, A] that x [B, A] holds at that level (abar, [B, 1]) if `noise` [B, A] is in it, clipped.

    `noise` is the combined prediction. Eq. 10 is linear in the two noises, and so is this estimate as long as it is
    not clipped. The division by sqrt(abar) puts either branch's own estimate far outside the action range at high
    levels: clipping each first would set both to the same bound, and their difference, all that omega multiplies, to 0.
    """
    return ((x - (1 - level).sqrt() * noise) / level.sqrt()).clamp(-1, 1)


def denoising_step(
    x: Tensor, clean: Tensor, level: Tensor, next_level: Tensor, fresh_noise: Tensor, stochasticity: float
) -> Tensor:
    """x [B, A] at `level` to x at `next_level` (both abar, [B, 1]), given the clipped clean action [B, A].

    The noise that stays in x is what the clipped action leaves of it, not the prediction, as in DDPM's posterior.
    """
    variance = stochasticity**2 * (1 - next_level) / (1 - level) * (1 - level / next_level)
    remaining = (x - level.sqrt() * clean) / (1 - level).sqrt()
    return next_level.sqrt() * clean + (1 - next_level - variance).sqrt() * remaining + variance.sqrt() * fresh_noise


def sample_denoiser(
    denoiser: EnsembleMLP,
    observations: Tensor,
    noise: Tensor,
    greediness: float,
    diffusion_steps: int,
    stochasticity: float,
) -> Tensor:
    """S steps from level T to 0, where x is the clipped estimate itself: noise [B, S+1, A] to actions [B, A].

    The first noise is the start, the others are the steps' own.
    """
    x, *fresh_noises = noise.unbind(dim=1)
    levels = [diffusion_steps * step // len(fresh_noises) for step in range(len(fresh_noises), -1, -1)]
    for (t, next_t), fresh_noise in zip(pairwise(levels), fresh_noises, strict=True):
        t, next_t = torch.full_like(x[:, :1], t), torch.full_like(x[:, :1], next_t)
        level, next_level = signal_level(t, diffusion_steps), signal_level(next_t, diffusion_steps)
        clean = clean_estimate(x, composed_noise(denoiser, observations, x, t, greediness), level)
        x = denoising_step(x, clean, level, next_level, fresh_noise, stochasticity)
    return x


def repeat_rows(observations: Tensor, count: int) -> Tensor:
    """[N, O] -> [N * count, O], each row `count` times in a row."""
    return observations.repeat_interleave(count, dim=0)


def smallest_q(critic: EnsembleMLP, observations: Tensor, actions: Tensor) -> Tensor:
    """min over the critics at observations [N, O] for each of the candidate actions [N, C, A]: [N, C]."""
    num_states, count, _ = actions.shape
    inputs = torch.cat([repeat_rows(observations, count), actions.flatten(0, 1)], dim=-1)
    return critic(inputs).squeeze(-1).amin(dim=0).view(num_states, count)


def best_candidate(critic: EnsembleMLP, observations: Tensor, candidates: Tensor) -> Tensor:
    """Of candidates [N, C, A] the one that the smallest critic values most: [N, A]."""
    if candidates.shape[1] == 1:
        return candidates[:, 0]
    best = smallest_q(critic, observations, candidates).argmax(dim=1)
    return candidates[torch.arange(len(candidates), device=candidates.device), best]


class DIPOLEDiffusion(nn.Module):
    """The agent: a positive and a negative policy, two critics with targets, and a state value."""

    # What makes a run of the same budget its control: cloning, with critics of its own to choose among candidates.
    control = {"label": "behaviour_cloning", "weighting": "none", "greediness": 0.0, "target_greediness": 0.0}
    without_column = {"state_values": "advantage: critic"}  # the option that does without a column of batch_fields

    def __init__(self, config: DIPOLEDiffusionConfig, observation_dim: int, action_dim: int):
        super().__init__()
        self.config = config
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.noise = Noise(config.seed)
        num_policies = 1 if is_single_policy(config.weighting) else 2
        # Columns of a minibatch beyond the usual ones.
        self.batch_fields = ("state_values",) if config.advantage == "group" else ()

        def network(members, input_dim, hidden_dims, output_dim, layer_norm):
            return EnsembleMLP(members, input_dim, hidden_dims, output_dim, layer_norm, self.noise.generator)

        critic_dim, denoiser_dim = observation_dim + action_dim, observation_dim + action_dim + TIME_FEATURES
        self.critic = network(2, critic_dim, config.value_hidden_dims, 1, config.value_layer_norm)
        self.target_critic = network(2, critic_dim, config.value_hidden_dims, 1, config.value_layer_norm)
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.target_critic.requires_grad_(False)
        self.value = network(1, observation_dim, config.value_hidden_dims, 1, config.value_layer_norm)
        self.denoiser = network(
            num_policies, denoiser_dim, config.actor_hidden_dims, action_dim, config.actor_layer_norm
        )
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        # capturable: the step count stays on the device, so that a CUDA graph can hold the step
        self.optimizer = torch.optim.Adam(trainable, lr=config.learning_rate, fused=True, capturable=True)

    def update(self, batch: dict) -> dict:
        """One gradient step of all networks on a minibatch, then the target critics' step; detached 0-d metrics."""
        loss, metrics = self._loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        soft_update(self.target_critic, self.critic, self.config.target_rate)
        return metrics

    @torch.no_grad()
    def losses(self, batch: dict) -> dict:
        """The metrics of a validation batch: no gradient, and noise of its own, so that training is not changed."""
        training_noise, self.noise = self.noise, Noise(VALIDATION_SEED).to(self.noise.like)
        try:
            return self._loss(batch)[1]
        finally:
            self.noise = training_noise

    def _loss(self, batch: dict) -> Tuple[Tensor, dict]:
        """The sum of all losses at the present parameters, and the metrics."""
        config = self.config
        observations, actions, next_observations = batch["observations"], batch["actions"], batch["next_observations"]
        with torch.no_grad():
            candidates = self._sample(
                next_observations, config.target_greediness, config.target_candidates, config.denoising_steps
            )
            next_actions = best_candidate(self.critic, next_observations, candidates)
            next_q = q_values(self.target_critic, next_observations, next_actions)
            target_q = batch["rewards"] + config.discount * batch["masks"] * next_q  # [2, B], not aggregated
            data_q = q_values(self.target_critic, observations, actions)
            smallest_data_q = data_q.amin(dim=0)
            aggregated_q = smallest_data_q if config.value_aggregation == "min" else data_q.mean(dim=0)

        # Value: expectile regression on the target critics.
        value = self.value(observations)[0, :, 0]
        value_loss = expectile_loss(aggregated_q - value, config.expectile)

        # Critics: each on the target heads of both, averaged over the heads and summed over the critics.
        q = q_values(self.critic, observations, actions)
        critic_loss = (q[:, None] - target_q[None]).square().mean(dim=(1, 2)).sum()

        # Policies: weighted noise prediction (eq. 9), both at the same noise and level.
        if config.advantage == "group":
            advantage = batch["rewards"] - batch["state_values"]
        else:
            advantage = smallest_data_q - value.detach()
        weights = policy_weights(
            config.weighting, advantage, config.inverse_temperature, config.shift, config.max_weight
        )
        noise = self.noise.normal(*actions.shape)
        t = (1 + self.noise.integers(config.diffusion_steps, len(actions), 1)).to(noise.dtype)
        errors = denoising_losses(self.denoiser, observations, actions, noise, t, config.diffusion_steps)
        policy_losses = (weights * errors).mean(dim=1)

        saturated = (weights[0].abs() < SATURATION_MARGIN) | ((weights[0] - 1).abs() < SATURATION_MARGIN)
        metrics = {
            "critic/loss": critic_loss,
            "critic/q_mean": q.mean(),
            "critic/target_mean": target_q.mean(),
            "value/loss": value_loss,
            "value/mean": value.mean(),
            "value/advantage_mean": advantage.mean(),
            "value/advantage_std": advantage.std(correction=0),
            "actor/positive_loss": policy_losses[0],
            "actor/weight_mean": weights[0].mean(),
            "actor/weight_std": weights[0].std(correction=0),
            "actor/weight_max": weights[0].amax(),
            "actor/weight_saturated": saturated.to(q.dtype).mean(),
        }
        if len(policy_losses) > 1:
            metrics["actor/negative_loss"] = policy_losses[1]
        metrics = {name: metric.detach() for name, metric in metrics.items()}
        return critic_loss + value_loss + policy_losses.sum(), metrics

    def _sample(self, observations: Tensor, greediness: float, count: int, denoising_steps: int) -> Tensor:
        """`count` actions per state, [N, count, A], of that greediness."""
        config, num_states = self.config, len(observations)
        noise = self.noise.normal(num_states, count, denoising_steps + 1, self.action_dim).flatten(0, 1)
        states = repeat_rows(observations, count)
        actions = sample_denoiser(
            self.denoiser, states, noise, greediness, config.diffusion_steps, config.stochasticity
        )
        return actions.view(num_states, count, self.action_dim)

    @torch.no_grad()
    def act(
        self,
        observations: Tensor,
        greediness: Optional[float] = None,
        num_candidates: Optional[int] = None,
        denoising_steps: Optional[int] = None,
        explore: bool = False,
    ) -> Tensor:
        """Actions [N, A] in [-1, 1] for observations [N, O]; an option left out is the config's.

        `explore` changes nothing: the policy samples anyway, and the released code has this one acting rule.
        Raises ValueError for a greediness that this agent has no policies for, or more steps than it has levels.
        """
        acting = self._acting_config(
            greediness=greediness, num_candidates=num_candidates, denoising_steps=denoising_steps
        )
        candidates = self._sample(observations, acting.greediness, acting.num_candidates, acting.denoising_steps)
        return best_candidate(self.critic, observations, candidates)

    def network_evaluations(
        self,
        greediness: Optional[float] = None,
        num_candidates: Optional[int] = None,
        denoising_steps: Optional[int] = None,
    ) -> int:
        """Evaluations of one network (each policy, each critic counts) that an action with these options costs."""
        acting = self._acting_config(
            greediness=greediness, num_candidates=num_candidates, denoising_steps=denoising_steps
        )
        selection = 2 * acting.num_candidates if acting.num_candidates > 1 else 0
        policies = 1 if acting.greediness in (0, -1) else 2
        return acting.num_candidates * acting.denoising_steps * policies + selection

    def _acting_config(self, **options) -> DIPOLEDiffusionConfig:
        """The config with the given act options in place of its own; raises ValueError for an impossible one."""
        return replace(self.config, **{name: value for name, value in options.items() if value is not None})

    def state_dict(self) -> dict:
        """Everything an exact continuation needs: tensors and plain numbers only."""
        return {
            "networks": super().state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "noise": self.noise.generator.get_state(),
        }

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state["networks"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.noise.generator.set_state(state["noise"])

    @classmethod
    def load(cls, run_dir) -> "DIPOLEDiffusion":
        """The agent of a run folder's checkpoint, on the CPU, for use anywhere."""
        checkpoint = torch.load(Path(run_dir) / "checkpoint.pt", map_location="cpu", weights_only=True)
        agent = cls(
            DIPOLEDiffusionConfig(**checkpoint["config"]), checkpoint["observation_dim"], checkpoint["action_dim"]
        )
        agent.load_state_dict(checkpoint["agent"])
        return agent


def train(configs: Sequence[DIPOLEDiffusionConfig], restart: bool = False) -> List[dict]:
    """Trains an agent for each config on their task's data and evaluates it in the environment; returns the results.

    The configs differ in the seed only. `restart` begins anew where runs are there already.
    """
    from envs import load_task
    from harness.run import run

    task = load_task(configs[0].task, configs[0].data_dir, configs[0].collect_episodes, configs[0].in_memory)
    agents = [DIPOLEDiffusion(config, task.observation_dim, task.action_dim) for config in configs]
    return run(agents, task, restart)


def main() -> None:
    from harness.command_line import run_command

    run_command(DIPOLEDiffusionConfig, train)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root, for envs/ and harness/
    main()
