"""DQL: Diffusion Q-Learning (Wang, Hunt & Zhou, ICLR 2023, arXiv 2208.06193).

A diffusion model with T noise levels is the policy; x_t = sqrt(abar_t) a + sqrt(1 - abar_t) eps is an action at level t
and eps_theta predicts the noise in it. With two critics Q_k, their targets Qbar_k and an EMA copy of the policy:

    critics     sum over k of E[(Q_k(s,a) - y)^2],   y = r + discount mask min_k max_c Qbar_k(s', a'_c)
                with C next actions a'_c of the EMA policy (C = 1, or 10 for the max-Q backup)
    cloning     L_bc = E[|eps_theta(s, x_t, t) - eps|^2],   t uniform in 1..T
    policy      L_bc - eta E[Q_i(s, a0)] / E|Q_j(s, a0)|,   (i, j) = (1, 2) or (2, 1) by a fair coin per update,
                where a0 is sampled with gradients through all T steps of the chain; the divisor has none
    sampling    x ~ N(0, I); per level x0 = (x - sqrt(1 - abar_t) eps_theta) / sqrt(abar_t), clipped to [-1, 1];
                x <- mean of the posterior q(x_{t-1} | x, x0) + its standard deviation times z
    acting      N samples; one is drawn with probabilities softmax(min_k Qbar_k)

abar_t is the product of the 1 - beta_u of the levels u up to t, and
beta_u = 1 - exp(-b_min / T - (b_max - b_min) (2u - 1) / (2 T^2)).
The critics take their step first; the policy's loss is evaluated with the new ones.

    python algorithms/baselines/dql.py --config configs/dql/quickstart.yaml

Differences from the paper and its released code (PyTorch):
  - `networks: fql` (the default) takes FQL's networks, so that capacity is the same for all methods here: GELU and
    layer norm, 4 x 512, with sinusoids of the level as an input of the policy. The published networks are
    `networks: published` with `actor_hidden_dims` and `value_hidden_dims` [256, 256, 256], `value_layer_norm: false`:
    Mish, two layers that encode the sinusoids, PyTorch's initialisation;
  - eta, the max-Q backup, the clipping norm and the policy's learning rate are set per D4RL task there; the defaults
    here are those of the released agent, with the schedule and T of its command line;
  - levels are numbered 1 to T (there 0 to T - 1; the published network is still given t - 1);
  - its learning-rate decay takes one step per 50,000 updates of a cosine as long as the number of epochs, which leaves
    0.999 of the rate at the end; it is off here and `decay_length: 2000` turns it on;
  - rewards are the task's: there they are standardised or shifted in some domains; the last policy is evaluated, there
    the best by online evaluation.

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


@dataclass(frozen=True)
class DQLConfig:
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
    actor_learning_rate: float = 3e-4  # of the policy's Adam
    critic_learning_rate: float = 3e-4  # of the critics' Adam
    decay_length: int = 0  # steps of a cosine decay of the learning rates from all to nothing; 0 = no decay
    decay_interval: int = 50_000  # updates between steps of that decay
    max_gradient_norm: float = 1.0  # a gradient of larger L2 norm is scaled down to it; 0 = never
    target_rate: float = 0.005  # tau: target <- tau online + (1 - tau) target
    ema_rate: float = 0.005  # the same for the EMA policy, whose actions the critics' targets use
    ema_start: int = 1_000  # updates before the EMA policy first moves; until then it is the initial one
    ema_interval: int = 5  # updates between moves of the EMA policy
    networks: str = "fql"  # fql (its activation and initialisation) | published (the method's own)
    actor_hidden_dims: Tuple[int, ...] = (512, 512, 512, 512)  # hidden sizes of the policy networks
    value_hidden_dims: Tuple[int, ...] = (512, 512, 512, 512)  # hidden sizes of critics and value
    actor_layer_norm: bool = False  # layer norm in the policy networks
    value_layer_norm: bool = True  # layer norm in critics and value
    diffusion_steps: int = 5  # T: noise levels of the diffusion
    q_weight: float = 1.0  # eta: weight of the normalised Q in the policy's loss
    backup_candidates: int = 1  # C: next actions per state, of which a target critic takes its best; 10 = max-Q backup
    num_candidates: int = 50  # N: sampled actions per state when acting; the critics choose among them

    def __post_init__(self):
        if self.networks not in ("fql", "published"):
            raise ValueError(f"networks is {self.networks!r}; choose one of fql, published")
        for field in (
            "batch_size",
            "decay_interval",
            "ema_interval",
            "diffusion_steps",
            "backup_candidates",
            "num_candidates",
        ):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1")


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
def initialise_as_torch(mlp: EnsembleMLP, generator: torch.Generator) -> EnsembleMLP:
    """Redraws weights and biases as torch.nn.Linear does: uniform within 1 / sqrt(fan in)."""
    for weight, bias in zip(mlp.weights, mlp.biases, strict=True):
        bound = 1 / math.sqrt(weight.shape[-2])
        weight.uniform_(-bound, bound, generator=generator)
        bias.uniform_(-bound, bound, generator=generator)
    return mlp


@torch.no_grad()
def soft_update(target: nn.Module, online: nn.Module, rate: float) -> None:
    """target <- rate * online + (1 - rate) * target, for every parameter."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)


@torch.no_grad()
def gated_soft_update(target: nn.Module, online: nn.Module, rate: float, gate: Tensor) -> None:
    """soft_update where the 0-d boolean `gate` is true, which stays on the device; otherwise nothing."""
    for parameter, online_parameter in zip(target.parameters(), online.parameters(), strict=True):
        parameter.lerp_(online_parameter, rate * gate.to(parameter.dtype))


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


class SinusoidDenoiser(nn.Module):
    """DQL's published network: observations [B, O], x [B, A], level t [B, 1] -> noise [B, A]."""

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
        encoder = MishMLP(1, TIME_FEATURES, (2 * TIME_FEATURES,), TIME_FEATURES, False, generator)
        body = MishMLP(1, input_dim, hidden_dims, action_dim, layer_norm, generator)
        self.encoder, self.body = initialise_as_torch(encoder, generator), initialise_as_torch(body, generator)

    def forward(self, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        encoded = self.encoder(time_features(t - 1))[0]
        return self.body(torch.cat([x, encoded, observations], dim=-1))[0]


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


def sample_chain(denoiser: nn.Module, observations: Tensor, noise: Tensor, diffusion_steps: int) -> Tensor:
    """All T steps of the chain, differentiable: noise [B, T+1, A], the start and each step's own -> actions [B, A].

    The last step has neither noise nor a share of x: it returns the clean estimate, which is clipped already.
    """
    x, *fresh_noise = noise.unbind(dim=1)
    for step, fresh in enumerate(fresh_noise):
        t = torch.full_like(x[:, :1], diffusion_steps - step)
        level, next_level = signal_level(t, diffusion_steps), signal_level(t - 1, diffusion_steps)
        clean = clean_action(x, denoiser(observations, x, t), level).clamp(-1, 1)
        variance = (1 - level / next_level) * (1 - next_level) / (1 - level)
        x = posterior_mean(x, clean, level, next_level) + variance.sqrt() * fresh
    return x


def crossed_q_loss(q: Tensor, coin: Tensor) -> Tensor:
    """- mean Q_1 / mean |Q_2| where the uniform 0-d `coin` is above 1/2, else with the critics exchanged: q [2, B]."""
    ratios = q.mean(dim=1) / q.abs().mean(dim=1).detach().flip(0)
    return -torch.where(coin > 0.5, ratios[0], ratios[1])


def cosine_decay(step: Tensor, length: int) -> Tensor:
    """Factor of the learning rate at a 0-d `step` of `length`: 1 at the start, 0 at the end."""
    return (1 + torch.cos(math.pi * step / length)) / 2


def resample(actions: Tensor, log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Draws one of R candidates by its weight: actions [..., R, A], log_weights and uniform [..., R] -> [..., A].

    The Gumbel-max trick, which needs neither a branch nor a synchronisation with the device.
    """
    gumbel = -torch.log(-torch.log(uniform.clamp(min=torch.finfo(uniform.dtype).tiny)))
    drawn = (log_weights + gumbel).argmax(dim=-1)[..., None, None]
    return actions.gather(-2, drawn.expand(*drawn.shape[:-1], actions.shape[-1])).squeeze(-2)


def repeat_rows(observations: Tensor, count: int) -> Tensor:
    """[N, O] -> [N * count, O], each row `count` times in a row."""
    return observations.repeat_interleave(count, dim=0)


def candidate_q(critic: EnsembleMLP, observations: Tensor, actions: Tensor) -> Tensor:
    """Each critic at observations [N, O] for each of the candidate actions [N, C, A]: [2, N, C]."""
    num_states, count, _ = actions.shape
    inputs = torch.cat([repeat_rows(observations, count), actions.flatten(0, 1)], dim=-1)
    return critic(inputs).view(-1, num_states, count)


class DQL(nn.Module):
    """The agent: a diffusion policy with its EMA copy, and two critics with targets."""

    batch_fields = ()  # columns of a minibatch beyond the usual ones

    def __init__(self, config: DQLConfig, observation_dim: int, action_dim: int):
        super().__init__()
        self.config = config
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.noise = Noise(config.seed)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))  # made so far, on the device
        generator, published = self.noise.generator, config.networks == "published"

        def network(members, input_dim, hidden_dims, output_dim, layer_norm):
            settings = members, input_dim, hidden_dims, output_dim, layer_norm, generator
            return initialise_as_torch(MishMLP(*settings), generator) if published else EnsembleMLP(*settings)

        critic_dim = observation_dim + action_dim
        self.critic = network(2, critic_dim, config.value_hidden_dims, 1, config.value_layer_norm)
        self.target_critic = network(2, critic_dim, config.value_hidden_dims, 1, config.value_layer_norm)
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.target_critic.requires_grad_(False)
        denoiser_class = SinusoidDenoiser if published else FQLDenoiser
        settings = observation_dim, action_dim, config.actor_hidden_dims, config.actor_layer_norm, generator
        self.denoiser, self.ema_denoiser = denoiser_class(*settings), denoiser_class(*settings)
        self.ema_denoiser.load_state_dict(self.denoiser.state_dict())
        self.ema_denoiser.requires_grad_(False)
        # capturable: the step count stays on the device, so that a CUDA graph can hold the step
        self.critic_optimizer = torch.optim.Adam(
            self.critic.parameters(), lr=config.critic_learning_rate, fused=True, capturable=True
        )
        self.actor_optimizer = torch.optim.Adam(
            self.denoiser.parameters(), lr=config.actor_learning_rate, fused=True, capturable=True
        )

    def update(self, batch: dict) -> dict:
        """The critics' gradient step, the policy's with the new critics, then the targets'; detached 0-d metrics."""
        config = self.config
        self._decay_learning_rates()
        critic_loss, critic_metrics = self._critic_loss(batch)
        self._step(self.critic_optimizer, self.critic, critic_loss)
        actor_loss, actor_metrics = self._actor_loss(batch)
        self._step(self.actor_optimizer, self.denoiser, actor_loss)
        moves = (self.updates >= config.ema_start) & (self.updates % config.ema_interval == 0)
        gated_soft_update(self.ema_denoiser, self.denoiser, config.ema_rate, moves)
        soft_update(self.target_critic, self.critic, config.target_rate)
        self.updates += 1
        return critic_metrics | actor_metrics

    def _decay_learning_rates(self) -> None:
        """Sets the optimisers' rates to 0-d tensors computed on the device, which a CUDA graph can replay."""
        config = self.config
        if config.decay_length > 0:
            step = (self.updates // config.decay_interval).to(next(self.parameters()).dtype)
            factor = cosine_decay(step, config.decay_length)
            self.critic_optimizer.param_groups[0]["lr"] = config.critic_learning_rate * factor
            self.actor_optimizer.param_groups[0]["lr"] = config.actor_learning_rate * factor

    def _step(self, optimizer: torch.optim.Adam, network: nn.Module, loss: Tensor) -> None:
        parameters = list(network.parameters())
        optimizer.zero_grad()
        loss.backward(inputs=parameters)  # the policy's loss leaves no gradient in the critics
        if self.config.max_gradient_norm > 0:
            nn.utils.clip_grad_norm_(parameters, self.config.max_gradient_norm)  # adds 1e-6 to the norm, as theirs
        optimizer.step()

    @torch.no_grad()
    def losses(self, batch: dict) -> dict:
        """The metrics of a validation batch: no gradient, and noise of its own, so that training is not changed."""
        training_noise, self.noise = self.noise, Noise(VALIDATION_SEED).to(self.noise.like)
        try:
            return self._critic_loss(batch)[1] | self._actor_loss(batch)[1]
        finally:
            self.noise = training_noise

    def _critic_loss(self, batch: dict) -> Tuple[Tensor, dict]:
        """Both critics on the smaller of the target critics' best values of the EMA policy's next actions."""
        with torch.no_grad():
            next_actions = self._sample(self.ema_denoiser, batch["next_observations"], self.config.backup_candidates)
            next_q = candidate_q(self.target_critic, batch["next_observations"], next_actions)
            target_q = batch["rewards"] + self.config.discount * batch["masks"] * next_q.amax(dim=-1).amin(dim=0)
        q = q_values(self.critic, batch["observations"], batch["actions"])
        loss = (q - target_q).square().mean(dim=1).sum()
        metrics = {"critic/loss": loss, "critic/q_mean": q.mean(), "critic/target_mean": target_q.mean()}
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    def _actor_loss(self, batch: dict) -> Tuple[Tensor, dict]:
        """Cloning, and the normalised Q of an action sampled through the whole chain."""
        config, observations, actions = self.config, batch["observations"], batch["actions"]
        t = (1 + self.noise.integers(config.diffusion_steps, len(actions), 1)).to(actions.dtype)
        noise = self.noise.normal(*actions.shape)
        x_t = noised(actions, noise, signal_level(t, config.diffusion_steps))
        bc_loss = (self.denoiser(observations, x_t, t) - noise).square().mean()

        sampled = self._sample(self.denoiser, observations, 1).squeeze(1)
        q = q_values(self.critic, observations, sampled)
        q_loss = crossed_q_loss(q, self.noise.uniform())
        loss = bc_loss + config.q_weight * q_loss
        metrics = {"actor/loss": loss, "actor/bc_loss": bc_loss, "actor/q_loss": q_loss, "actor/q_mean": q.mean()}
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    def _sample(self, denoiser: nn.Module, observations: Tensor, count: int) -> Tensor:
        """`count` actions per state of that policy: observations [N, O] -> [N, count, A]."""
        num_states, num_steps = len(observations), self.config.diffusion_steps
        noise = self.noise.normal(num_states, count, num_steps + 1, self.action_dim).flatten(0, 1)
        actions = sample_chain(denoiser, repeat_rows(observations, count), noise, num_steps)
        return actions.view(num_states, count, self.action_dim)

    @torch.no_grad()
    def act(self, observations: Tensor, num_candidates: Optional[int] = None, explore: bool = False) -> Tensor:
        """Actions [N, A] in [-1, 1] for observations [N, O]; an option left out is the config's.

        One of the candidates is drawn with probabilities softmax(min over the target critics). `explore` changes
        nothing: that is a sample already, and the released code has no online phase with another rule.
        """
        count = self._acting_config(num_candidates=num_candidates).num_candidates
        candidates = self._sample(self.denoiser, observations, count)
        if count == 1:
            return candidates[:, 0]
        q = candidate_q(self.target_critic, observations, candidates).amin(dim=0)
        return resample(candidates, q, self.noise.uniform(*q.shape))

    def network_evaluations(self, num_candidates: Optional[int] = None) -> int:
        """Evaluations of one network (each policy, each critic counts) that an action with these options costs."""
        count = self._acting_config(num_candidates=num_candidates).num_candidates
        return count * self.config.diffusion_steps + (2 * count if count > 1 else 0)

    def _acting_config(self, **options) -> DQLConfig:
        """The config with the given act options in place of its own; raises ValueError for an impossible one."""
        return replace(self.config, **{name: value for name, value in options.items() if value is not None})

    def state_dict(self) -> dict:
        """Everything an exact continuation needs: tensors and plain numbers only."""
        return {
            "networks": super().state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "noise": self.noise.generator.get_state(),
        }

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state["networks"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.actor_optimizer.load_state_dict(state["actor_optimizer"])
        self.noise.generator.set_state(state["noise"])

    @classmethod
    def load(cls, run_dir) -> "DQL":
        """The agent of a run folder's checkpoint, on the CPU, for use anywhere."""
        checkpoint = torch.load(Path(run_dir) / "checkpoint.pt", map_location="cpu", weights_only=True)
        agent = cls(DQLConfig(**checkpoint["config"]), checkpoint["observation_dim"], checkpoint["action_dim"])
        agent.load_state_dict(checkpoint["agent"])
        return agent


def train(configs: Sequence[DQLConfig], restart: bool = False) -> List[dict]:
    """Trains an agent for each config on their task's data and evaluates it in the environment; returns the results.

    The configs differ in the seed only. `restart` begins anew where runs are there already.
    """
    from envs import load_task
    from harness.run import run

    task = load_task(configs[0].task, configs[0].data_dir, configs[0].collect_episodes, configs[0].in_memory)
    agents = [DQL(config, task.observation_dim, task.action_dim) for config in configs]
    return run(agents, task, restart)


def main() -> None:
    from harness.command_line import run_command

    run_command(DQLConfig, train)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository root, for envs/ and harness/
    main()
