"""QSM: Q-score matching (Psenka et al., ICML 2024, arXiv 2312.11752), in its offline form with behaviour cloning.

A diffusion model with T noise levels is the policy; x_t = sqrt(abar_t) a + sqrt(1 - abar_t) eps is an action at level t
and eps_theta predicts the noise in it, which is a negative score. Score matching asks that it be the negative action
gradient of Q, so the policy is trained without sampling from it and without gradients through the chain. With K
critics Q_k, their targets Qbar_k and a weight M_q:

    critics     mean over k of E[(Q_k(s,a) - y)^2],   y = r + discount mask (mean_k Qbar_k - rho std_k Qbar_k)(s', a')
    score       L_qsm = E[|eps_theta(s, x_t, t) + M_q g|^2],   g = mean_k grad_a Qbar_k(s, x_t) at the noisy action
    cloning     L_bc = E[|eps_theta(s, x_t, t) - eps|^2],   the same x_t, t uniform in 1..T
    policy      alpha L_bc + L_qsm, alpha = bc_weight; least at eps_theta = (alpha E[eps | x_t] - M_q g) / (1 + alpha)
    sampling    x ~ N(0, I); per level x0 = (x - sqrt(1 - abar_t) eps_theta) / sqrt(abar_t); then
                `sampler: ancestral`   x <- mean of the posterior q(x_{t-1} | x, x0) + [t > 1] sqrt(beta_t) z
                `sampler: qam`         x <- x0                                       + [t > 1] sqrt(beta_t) z
                and x is clipped to [-1, 1] after each level

abar_t is the product of the 1 - beta_u of the levels u up to t, and
beta_u = 1 - exp(-b_min / T - (b_max - b_min) (2u - 1) / (2 T^2)).

The published method is online and has no cloning: `bc_weight: 0`, `sampler: ancestral`,
`use_target_critic_gradient: false`, `exploration_noise: 0.1`, T = 5, M_q = 50. It has no anchor in the data, so it is
no offline method.
The offline form is the baseline of QAM (2026; github.com/ColinQiyangLi/qam, agents/dcgql.py). Its published scores are
with `sampler: qam`, which hands the estimate of the clean action on as the sample of the next, less noisy level, and
with M_q from 1 to 10 and alpha from 1 to 30 by domain; the defaults here are those of cube-double.

    python algorithms/baselines/qsm.py --config configs/qsm/quickstart.yaml

Differences from QAM's code (JAX):
  - `networks: fql` (the default) takes FQL's policy network, with sinusoids of the level as an input, and two critics,
    so that capacity is the same for all methods here. QAM's are `networks: published` and `num_critics: 10`: learned
    Fourier features of the level, a Mish network that encodes them, and a Mish network;
  - single actions, not chunks of five;
  - an action can be the best of several candidates by the critics, as in the other methods; there and by default it
    is one sample.
Further differences of the online paper's code: its critics are separate ReLU networks that take their step before the
policy, its target is the smaller of two critics at an action with exploration noise, and levels start at 0.

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
VALIDATION_SEED = 0  # losses() draws the same noise at every call
MIN_BETA, MAX_BETA = 0.1, 10.0  # b_min and b_max of the schedule, in Diffusion-QL's and IDQL's released code
TIME_FEATURES = 16  # sinusoids of the level, in Diffusion-QL's released code
FREQUENCY_RANGE = 1e4  # their angular frequencies go from 1 to 1 / this
FOURIER_SCALE = 0.2  # standard deviation of the initial frequencies, in QSM's and QAM's released code


@dataclass(frozen=True)
class QSMConfig:
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
    discount: float = 0.99  # gamma
    learning_rate: float = 3e-4  # of Adam, for all networks
    max_gradient_norm: float = 1.0  # a gradient of larger L2 norm is scaled down to it; 0 = never
    target_rate: float = 0.005  # tau: target <- tau online + (1 - tau) target
    networks: str = "fql"  # fql (its activation and initialisation) | published (the method's own)
    actor_hidden_dims: Tuple[int, ...] = (512, 512, 512, 512)  # hidden sizes of the policy networks
    value_hidden_dims: Tuple[int, ...] = (512, 512, 512, 512)  # hidden sizes of critics and value
    actor_layer_norm: bool = False  # layer norm in the policy networks
    value_layer_norm: bool = True  # layer norm in critics and value
    fourier_features: int = 64  # learned features of the level in the published policy network
    num_critics: int = 2  # K
    pessimism: float = 0.5  # rho: standard deviations of the target critics taken off their mean
    diffusion_steps: int = 10  # T: noise levels of the diffusion
    score_weight: float = 1.0  # M_q (QAM: inv_temp): the predicted noise is drawn to -M_q times Q's action gradient
    bc_weight: float = 10.0  # alpha: weight of behaviour cloning in the policy's loss
    use_target_critic_gradient: bool = True  # that gradient is the target critics', else the online critics'
    sampler: str = "qam"  # qam (steps to the clean estimate) | ancestral (steps to the posterior's mean)
    clip_clean: bool = False  # clip each level's clean estimate to the action range
    clip_steps: bool = True  # clip each level's sample to the action range
    num_candidates: int = 1  # N: sampled actions per state when acting; the critics choose among them
    exploration_noise: float = 0.0  # standard deviation of the noise on the actions of an online phase

    def __post_init__(self):
        choices = {"networks": ("fql", "published"), "sampler": ("qam", "ancestral")}
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} is {getattr(self, field)!r}; choose one of {', '.join(allowed)}")
        for field in ("batch_size", "num_critics", "diffusion_steps", "num_candidates"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1")
        if self.fourier_features < 2 or self.fourier_features % 2 > 0:
            raise ValueError(f"fourier_features is {self.fourier_features}; it must be even, a cosine and a sine each")


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


class MishMLP(EnsembleMLP):
    """The same perceptrons with Mish for GELU: inputs [B, I] or [M, B, I] -> [M, B, output_dim]."""

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs.expand(len(self.biases[0]), *inputs.shape[-2:])
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            if layer < len(self.weights) - 1:
                hidden = F.mish(hidden)
                if len(self.norm_scales) > 0:
                    hidden = F.layer_norm(hidden, hidden.shape[-1:], eps=LAYER_NORM_EPSILON)
                    hidden = torch.addcmul(self.norm_shifts[layer], hidden, self.norm_scales[layer])
        return hidden


@torch.no_grad()
def soft_update(target: nn.Module, online: nn.Module, rate: float) -> None:
    """target <- rate * online + (1 - rate) * target, for every parameter."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)


def clip_gradients(parameters: list, max_norm: float) -> None:
    """Scales all gradients by max_norm / norm where their joint L2 norm exceeds it, without a synchronisation.

    As in Optax: torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm.
    """
    gradients = [parameter.grad for parameter in parameters]
    norm = torch.nn.utils.get_total_norm(gradients)
    torch._foreach_mul_(gradients, (max_norm / norm).clamp(max=1))


def q_values(critic: EnsembleMLP, observations: Tensor, actions: Tensor) -> Tensor:
    """Values [M, B] of the M critics at observations [B, O] and actions [B, A]."""
    return critic(torch.cat([observations, actions], dim=-1)).squeeze(-1)


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


class FQLDenoiser(nn.Module):
    """FQL's policy network as a noise predictor: observations [B, O], x [B, A], level t [B, 1] -> noise [B, A]."""

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_dims: Tuple[int, ...],
        layer_norm: bool,
        generator: torch.Generator,
    ):
        super().__init__()
        input_dim = observation_dim + action_dim + TIME_FEATURES
        self.mlp = EnsembleMLP(1, input_dim, hidden_dims, action_dim, layer_norm, generator)

    def forward(self, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return self.mlp(torch.cat([observations, x, time_features(t)], dim=-1))[0]


class FourierDenoiser(nn.Module):
    """QSM's and QAM's published network: observations [B, O], x [B, A], level t [B, 1] -> noise [B, A]."""

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_dims: Tuple[int, ...],
        layer_norm: bool,
        fourier_features: int,
        generator: torch.Generator,
    ):
        super().__init__()
        frequencies = FOURIER_SCALE * torch.randn(fourier_features // 2, 1, generator=generator)
        self.frequencies = nn.Parameter(frequencies)
        self.encoder = MishMLP(1, fourier_features, hidden_dims[:-1], hidden_dims[-1], False, generator)
        input_dim = action_dim + observation_dim + hidden_dims[-1]
        self.body = MishMLP(1, input_dim, hidden_dims, action_dim, layer_norm, generator)

    def forward(self, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        angles = 2 * math.pi * t @ self.frequencies.T
        encoded = self.encoder(torch.cat([angles.cos(), angles.sin()], dim=-1))[0]
        return self.body(torch.cat([x, observations, encoded], dim=-1))[0]


def noised(actions: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """x_t: actions [B, A] with noise [B, A] mixed in at abar = `level` [B, 1]."""
    return level.sqrt() * actions + (1 - level).sqrt() * noise


def clean_action(x: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """x0: what is left of x [B, A] at abar = `level` [B, 1] without the predicted noise [B, A], not clipped."""
    return (x - (1 - level).sqrt() * noise) / level.sqrt()


def posterior_mean(x: Tensor, clean: Tensor, level: Tensor, next_level: Tensor) -> Tensor:
    """Mean of q(x_{t-1} | x_t, x0) for x and clean [B, A], abar_t and abar_{t-1} [B, 1] (Ho et al., 2020, eq. 7)."""
    alpha = level / next_level
    return (next_level.sqrt() * (1 - alpha) * clean + alpha.sqrt() * (1 - next_level) * x) / (1 - level)


def sample_levels(
    denoiser: nn.Module,
    observations: Tensor,
    noise: Tensor,
    diffusion_steps: int,
    sampler: str,
    clip_clean: bool,
    clip_steps: bool,
) -> Tensor:
    """Through all T levels by either sampler: noise [B, T+1, A], the start and each level's own -> actions [B, A]."""
    x, *fresh_noise = noise.unbind(dim=1)
    for step, fresh in enumerate(fresh_noise):
        t = torch.full_like(x[:, :1], diffusion_steps - step)
        level, next_level = signal_level(t, diffusion_steps), signal_level(t - 1, diffusion_steps)
        clean = clean_action(x, denoiser(observations, x, t), level)
        if clip_clean:
            clean = clean.clamp(-1, 1)
        x = clean if sampler == "qam" else posterior_mean(x, clean, level, next_level)
        if step < diffusion_steps - 1:
            x = x + (1 - level / next_level).sqrt() * fresh
        if clip_steps:
            x = x.clamp(-1, 1)
    return x


def pessimistic_q(q: Tensor, pessimism: float) -> Tensor:
    """mean - rho std over the critics, the std of the population: q [K, B] -> [B]."""
    return q.mean(dim=0) - pessimism * q.std(dim=0, correction=0)


def action_gradient(critic: EnsembleMLP, observations: Tensor, actions: Tensor) -> Tensor:
    """g: gradient of the critics' mean by the action, at observations [B, O] and actions [B, A]: [B, A]."""
    with torch.enable_grad():
        actions = actions.detach().requires_grad_(True)
        q = q_values(critic, observations, actions).mean(dim=0)
        return torch.autograd.grad(q.sum(), actions)[0]


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


class QSM(nn.Module):
    """The agent: a diffusion policy, and critics with targets."""

    batch_fields = ()  # columns of a minibatch beyond the usual ones

    def __init__(self, config: QSMConfig, observation_dim: int, action_dim: int):
        super().__init__()
        self.config = config
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.noise = Noise(config.seed)
        generator = self.noise.generator

        def network(members, input_dim, hidden_dims, output_dim, layer_norm):
            return EnsembleMLP(members, input_dim, hidden_dims, output_dim, layer_norm, generator)

        critic_dim = observation_dim + action_dim
        self.critic = network(config.num_critics, critic_dim, config.value_hidden_dims, 1, config.value_layer_norm)
        self.target_critic = network(
            config.num_critics, critic_dim, config.value_hidden_dims, 1, config.value_layer_norm
        )
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.target_critic.requires_grad_(False)
        settings = observation_dim, action_dim, config.actor_hidden_dims, config.actor_layer_norm
        if config.networks == "published":
            self.denoiser = FourierDenoiser(*settings, config.fourier_features, generator)
        else:
            self.denoiser = FQLDenoiser(*settings, generator)
        self.trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        # capturable: the step count stays on the device, so that a CUDA graph can hold the step
        self.optimizer = torch.optim.Adam(self.trainable, lr=config.learning_rate, fused=True, capturable=True)

    def update(self, batch: dict) -> dict:
        """One gradient step of all networks on a minibatch, and the target critics' step; detached 0-d metrics."""
        loss, metrics = self._loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.max_gradient_norm > 0:
            clip_gradients(self.trainable, self.config.max_gradient_norm)
        soft_update(self.target_critic, self.critic, self.config.target_rate)  # before the step, as QAM's code does
        self.optimizer.step()
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
        config, observations, actions = self.config, batch["observations"], batch["actions"]
        with torch.no_grad():
            next_actions = self._sample(batch["next_observations"], 1).squeeze(1)
            next_q = q_values(self.target_critic, batch["next_observations"], next_actions)
            next_q = pessimistic_q(next_q, config.pessimism)
            target_q = batch["rewards"] + config.discount * batch["masks"] * next_q

        # Critics: all on the same target, averaged over the critics.
        q = q_values(self.critic, observations, actions)
        critic_loss = (q - target_q).square().mean()

        # Policy: its noise prediction is drawn to the noise of the data and to the negative gradient of Q.
        t = (1 + self.noise.integers(config.diffusion_steps, len(actions), 1)).to(actions.dtype)
        noise = self.noise.normal(*actions.shape)
        x_t = noised(actions, noise, signal_level(t, config.diffusion_steps))
        gradient_critic = self.target_critic if config.use_target_critic_gradient else self.critic
        gradient = action_gradient(gradient_critic, observations, x_t)
        predicted = self.denoiser(observations, x_t, t)
        bc_loss = (predicted - noise).square().mean()
        score_loss = (predicted + config.score_weight * gradient).square().mean()
        actor_loss = config.bc_weight * bc_loss + score_loss

        metrics = {
            "critic/loss": critic_loss,
            "critic/q_mean": q.mean(),
            "critic/target_mean": target_q.mean(),
            "actor/loss": actor_loss,
            "actor/bc_loss": bc_loss,
            "actor/score_loss": score_loss,
            "actor/q_gradient_norm": gradient.norm(dim=-1).mean(),
        }
        return critic_loss + actor_loss, {name: metric.detach() for name, metric in metrics.items()}

    def _sample(self, observations: Tensor, count: int) -> Tensor:
        """`count` actions per state: observations [N, O] -> [N, count, A]."""
        config, num_states = self.config, len(observations)
        noise = self.noise.normal(num_states, count, config.diffusion_steps + 1, self.action_dim).flatten(0, 1)
        actions = sample_levels(
            self.denoiser,
            repeat_rows(observations, count),
            noise,
            config.diffusion_steps,
            config.sampler,
            config.clip_clean,
            config.clip_steps,
        )
        return actions.view(num_states, count, self.action_dim)

    @torch.no_grad()
    def act(self, observations: Tensor, num_candidates: Optional[int] = None, explore: bool = False) -> Tensor:
        """Actions [N, A] in [-1, 1] for observations [N, O]; an option left out is the config's.

        `explore` adds Gaussian noise, in the online paper's code of 0.1; in QAM's code, the default, there is none.
        """
        count = self._acting_config(num_candidates=num_candidates).num_candidates
        actions = best_candidate(self.critic, observations, self._sample(observations, count).clamp(-1, 1))
        if explore:
            actions = actions + self.config.exploration_noise * self.noise.normal(*actions.shape)
        return actions.clamp(-1, 1)

    def network_evaluations(self, num_candidates: Optional[int] = None) -> int:
        """Evaluations of one network (each policy, each critic counts) that an action with these options costs."""
        count = self._acting_config(num_candidates=num_candidates).num_candidates
        return count * self.config.diffusion_steps + (self.config.num_critics * count if count > 1 else 0)

    def _acting_config(self, **options) -> QSMConfig:
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
    def load(cls, run_dir) -> "QSM":
        """The agent of a run folder's checkpoint, on the CPU, for use anywhere."""
        checkpoint = torch.load(Path(run_dir) / "checkpoint.pt", map_location="cpu", weights_only=True)
        agent = cls(QSMConfig(**checkpoint["config"]), checkpoint["observation_dim"], checkpoint["action_dim"])
        agent.load_state_dict(checkpoint["agent"])
        return agent


def train(configs: Sequence[QSMConfig], restart: bool = False) -> List[dict]:
    """Trains an agent for each config on their task's data and evaluates it in the environment; returns the results.

    The configs differ in the seed only. `restart` begins anew where runs are there already.
    """
    from envs import load_task
    from harness.run import run

    task = load_task(configs[0].task, configs[0].data_dir, configs[0].collect_episodes, configs[0].in_memory)
    agents = [QSM(config, task.observation_dim, task.action_dim) for config in configs]
    return run(agents, task, restart)


def main() -> None:
    from harness.command_line import run_command

    run_command(QSMConfig, train)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository root, for envs/ and harness/
    main()
