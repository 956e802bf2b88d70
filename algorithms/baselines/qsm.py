"""QSM: Q-score matching (Psenka et al., ICML 2024, arXiv 2312.11752), in its offline form with behaviour cloning.

A diffusion model with T noise levels is the policy; x_t = sqrt(abar_t) a + sqrt(1 - abar_t) eps is an action at level t
and eps_theta predicts the noise in it, which is a negative score. Score matching asks that it be the negative action
gradient of Q, so the policy is trained without sampling from it and without gradients through the chain. With K
critics Q_k, their targets Qbar_k and a weight M_q:

    critic loss   mean_k E[(Q_k(s,a) - y)^2],   y = r + discount mask (mean_k Qbar_k - rho std_k Qbar_k)(s', a')
    policy loss   alpha E[|eps_theta(s, x_t, t) - eps|^2] + E[|eps_theta(s, x_t, t) + M_q g|^2],   t uniform in 1..T,
                  g = mean_k grad_a Qbar_k(s, x_t) at the noisy action, alpha = bc_weight
    sampling      x ~ N(0, I); per level x0 = (x - sqrt(1 - abar_t) eps_theta) / sqrt(abar_t); then
                  `sampler: ancestral`   x <- mean of the posterior q(x_{t-1} | x, x0) + [t > 1] sqrt(beta_t) z
                  `sampler: qam`         x <- x0                                       + [t > 1] sqrt(beta_t) z
                  and x is clipped to [-1, 1] after each level
    acting        of N sampled actions, the one with the largest min_k Q_k(s,a)

abar_t is the product of the 1 - beta_u of the levels u up to t, and
beta_u = 1 - exp(-b_min / T - (b_max - b_min) (2u - 1) / (2 T^2)); |.|^2 is the mean over the action's dimensions.

The published method is online and has no cloning: `bc_weight: 0`, `sampler: ancestral`,
`use_target_critic_gradient: false`, `exploration_noise: 0.1`, T = 5, M_q = 50. Nothing anchors it in the data, so it is
no offline method. The offline form is the baseline of QAM (2026; github.com/ColinQiyangLi/qam, agents/dcgql.py). Its
published scores are with `sampler: qam`, which hands the clean estimate on as the next, less noisy level's sample, and
with M_q from 1 to 10 and alpha from 1 to 30 by domain; the defaults here are those of cube-double.

    python algorithms/baselines/qsm.py --task exorl/local_sticky_random/cartpole_swingup

Differences from QAM's code (JAX): FQL's policy network with sinusoids of the level as an input and two critics, so that
capacity is the same for all methods here (QAM's: learned Fourier features, Mish networks, `num_critics: 10`); single
actions, not chunks of five; an action can be the best of several candidates (there and by default it is one sample).
Further differences of the online paper's code: its critics are separate ReLU networks that take their step before the
policy, its target is the smaller of two critics at an action with exploration noise, and levels start at 0.

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
MIN_BETA, MAX_BETA = 0.1, 10.0  # b_min and b_max of the schedule, in Diffusion-QL's and IDQL's released code
TIME_FEATURES = 16  # sinusoids of the level, in Diffusion-QL's released code
FREQUENCY_RANGE = 1e4  # their angular frequencies go from 1 to 1 / this


@dataclass(frozen=True)
class QSMConfig:
    discount: float = 0.99  # gamma
    learning_rate: float = 3e-4  # learning rate of Adam, for all networks
    max_gradient_norm: float = 1.0  # a gradient of larger L2 norm is scaled down to it; 0: never
    target_rate: float = 0.005  # tau: target <- tau online + (1 - tau) target
    actor_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # hidden sizes of the policy networks
    value_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # hidden sizes of critics and value
    actor_layer_norm: bool = False  # layer norm in the policy networks
    value_layer_norm: bool = True  # layer norm in critics and value
    num_critics: int = 2  # K
    pessimism: Optional[float] = 0.5  # rho: mean - rho std of the critics, where docs/critics.md says; null: minimum
    diffusion_steps: int = 10  # T: noise levels of the diffusion
    score_weight: float = 1.0  # M_q (QAM: inv_temp): the predicted noise is drawn to -M_q times Q's action gradient
    bc_weight: float = 10.0  # alpha: weight of behaviour cloning in the policy's loss
    use_target_critic_gradient: bool = True  # that gradient is the target critics'; false: the online critics'
    sampler: Literal["qam", "ancestral"] = "qam"  # step to the clean estimate, or to the posterior's mean
    clip_clean: bool = False  # clip each level's clean estimate to the action range
    clip_steps: bool = True  # clip each level's sample to the action range
    num_candidates: int = 1  # N: actions sampled per state when acting; the critics choose among them
    noise_scale: float = 1.0  # the start noise is multiplied by it when acting; below 1: nearer to the mean
    exploration_noise: float = 0.0  # standard deviation of the noise on the actions of an online phase


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


def clip_gradients(parameters: list, max_norm: float) -> None:
    """Scales all gradients by max_norm / norm where their joint L2 norm exceeds it, without a synchronisation.

    As in Optax: torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm.
    """
    gradients = [parameter.grad for parameter in parameters]
    norm = torch.nn.utils.get_total_norm(gradients)
    torch._foreach_mul_(gradients, (max_norm / norm).clamp(max=1))


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


def best_candidate(critic: EnsembleMLP, observations: Tensor, candidates: Tensor) -> Tensor:
    """Of candidates [N, C, A], the one with the largest min_k Q_k(s,a): [N, A]."""
    num_states, count, _ = candidates.shape
    if count == 1:
        return candidates[:, 0]
    repeated = observations.repeat_interleave(count, dim=0)
    q = critic(repeated, candidates.flatten(0, 1)).squeeze(-1).amin(dim=0)
    best = q.view(num_states, count).argmax(dim=1)
    return candidates[torch.arange(num_states, device=best.device), best]


def action_gradient(critic: EnsembleMLP, observations: Tensor, actions: Tensor) -> Tensor:
    """g: gradient of the critics' mean by the action, at observations [B, O] and actions [B, A]: [B, A]."""

    def mean_q(actions: Tensor) -> Tensor:
        return critic(observations, actions).squeeze(-1).mean(dim=0).sum()

    if torch.compiler.is_compiling():  # which traces this form only; eagerly it is the slower one
        with torch.no_grad():
            return torch.func.grad(mean_q)(actions)
    with torch.enable_grad():
        actions = actions.detach().requires_grad_(True)
        return torch.autograd.grad(mean_q(actions), actions)[0]


def mean_of_valid(errors: Tensor, batch: dict) -> Tensor:
    """The mean of errors [B, A]; of chunks, that of each one's mean to the power of `valid`, as QAM's code has it.

    So a chunk that is not valid counts 1 and has no gradient.
    """
    return (errors.mean(dim=-1) ** batch["valid"]).mean() if "valid" in batch else errors.mean()


class QSM(nn.Module):
    """A diffusion policy, and critics with targets."""

    act_options = ("num_candidates", "noise_scale")  # config fields that act() takes
    batch_fields = ()  # columns of a minibatch beyond the usual ones
    denoiser_class = Denoiser

    def __init__(self, config: QSMConfig, observation_dim: int, action_dim: int, seed: int = 0):
        super().__init__()
        self.config = config
        self.observation_dim = observation_dim
        self.action_dim = action_dim
        self.noise = Noise(seed)
        pair_dim = observation_dim + action_dim
        value_sizes = (pair_dim, *config.value_hidden_dims, 1)
        actor_sizes = (pair_dim, *config.actor_hidden_dims, action_dim)

        def critics() -> EnsembleMLP:
            return EnsembleMLP(config.num_critics, value_sizes, config.value_layer_norm, self.noise.generator)

        self.critic = critics()
        self.target_critic = critics().requires_grad_(False)
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.denoiser = self.denoiser_class(actor_sizes, config.actor_layer_norm, self.noise.generator)
        self.trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        # capturable: the step count stays on the device, so that a CUDA graph can hold the step
        self.optimizer = torch.optim.Adam(self.trained, lr=config.learning_rate, fused=True, capturable=True)

    def update(self, batch: dict) -> dict:
        """The target critics' step, then one gradient step of all networks; returns detached 0-d metrics.

        batch: tensors of the agent's dtype and device: observations and next_observations [B, O], actions [B, A] in
        [-1, 1], rewards [B], masks [B] (0: no bootstrap), valid [B] of chunks. Raises ValueError for any other shape.
        """
        check_columns(self, batch, (*COLUMNS, *self.batch_fields))
        loss, metrics = self.loss(batch, self.draw(len(batch["actions"])))
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.max_gradient_norm > 0:
            clip_gradients(self.trained, self.config.max_gradient_norm)
        soft_update(self.target_critic, self.critic, self.config.target_rate)  # from before the step, as QAM's code
        self.optimizer.step()
        return metrics

    def draw(self, batch_size: int) -> dict:
        """The random numbers of one update, in the order of QAM's code."""
        num_levels = self.config.diffusion_steps
        return {
            "next_noise": self.noise.normal(batch_size, 1, num_levels + 1, self.action_dim),
            "t": 1 + self.noise.integers(num_levels, batch_size, 1),
            "noise": self.noise.normal(batch_size, self.action_dim),
        }

    def loss(self, batch: dict, noise: dict) -> tuple[Tensor, dict]:
        """The sum of all losses at the present parameters, and the metrics: a pure function."""
        critic_loss, metrics = self.critic_loss(batch, noise["next_noise"])
        policy_loss, policy_metrics = self.policy_loss(batch, noise["noise"], noise["t"])
        loss = critic_loss + policy_loss
        metrics |= policy_metrics
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    def critic_loss(self, batch: dict, next_noise: Tensor) -> tuple[Tensor, dict]:
        """All critics on the same pessimistic target: mean over the critics."""
        config = self.config
        with torch.no_grad():
            next_actions = self.sample(batch["next_observations"], next_noise).squeeze(1)
            next_q = self.target_critic(batch["next_observations"], next_actions).squeeze(-1)
            next_q = aggregated(next_q, config.pessimism)
            target_q = batch["rewards"] + config.discount * batch["masks"] * next_q
        q = self.critic(batch["observations"], batch["actions"]).squeeze(-1)
        valid = batch.get("valid", torch.ones_like(batch["rewards"]))
        loss = (valid * (q - target_q).square()).mean()
        metrics = {
            "critic/loss": loss,
            "critic/q_mean": q.mean(),
            "critic/target_mean": target_q.mean(),
        }
        return loss, metrics

    def policy_loss(self, batch: dict, noise: Tensor, t: Tensor) -> tuple[Tensor, dict]:
        """Draws the noise prediction to the noise of the data and to the negative gradient of Q."""
        config = self.config
        observations = batch["observations"]
        t = t.to(noise.dtype)
        x_t = noised(batch["actions"], noise, signal_level(t, config.diffusion_steps))
        critic = self.target_critic if config.use_target_critic_gradient else self.critic
        gradient = action_gradient(critic, observations, x_t)
        predicted = self.denoiser(observations, x_t, t)
        bc_loss = mean_of_valid((predicted - noise).square(), batch)
        score_loss = mean_of_valid((predicted + config.score_weight * gradient).square(), batch)
        loss = config.bc_weight * bc_loss + score_loss
        metrics = {
            "actor/loss": loss,
            "actor/bc_loss": bc_loss,
            "actor/score_loss": score_loss,
            "actor/q_gradient_norm": gradient.norm(dim=-1).mean(),
        }
        return loss, metrics

    def sample(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions [N, C, A] through all T levels; noise [N, C, T+1, A] is the start and each level's own."""
        config = self.config
        x, *fresh_noises = noise.flatten(0, 1).unbind(dim=1)
        repeated = observations.repeat_interleave(noise.shape[1], dim=0)
        num_levels = len(fresh_noises)
        for step, fresh_noise in enumerate(fresh_noises):
            t = torch.full_like(x[:, :1], num_levels - step)
            level = signal_level(t, num_levels)
            next_level = signal_level(t - 1, num_levels)
            clean = clean_action(x, self.denoiser(repeated, x, t), level)
            if config.clip_clean:
                clean = clean.clamp(-1, 1)
            x = clean if config.sampler == "qam" else posterior_mean(x, clean, level, next_level)
            if step < num_levels - 1:
                x = x + (1 - level / next_level).sqrt() * fresh_noise
            if config.clip_steps:
                x = x.clamp(-1, 1)
        return x.view(*noise.shape[:2], self.action_dim)

    @torch.no_grad()
    def act(self, observations: Tensor, explore: bool = False, **options) -> Tensor:
        """Actions [N, A] in [-1, 1] for observations [N, O]; `options` replace the config's (see act_options).

        `explore` adds Gaussian noise, in the online paper's code of 0.1; in QAM's code, the default, there is none.
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
        actions = self.choose(observations, noise)
        if explore:
            actions = actions + config.exploration_noise * self.noise.normal(*actions.shape)
        return actions.clamp(-1, 1)

    def choose(self, observations: Tensor, noise: Tensor) -> Tensor:
        """The best of the actions from the noise [N, C, T+1, A]: [N, A], a pure function."""
        candidates = self.sample(observations, noise).clamp(-1, 1)
        return best_candidate(self.critic, observations, candidates)

    @classmethod
    def load(cls, run_dir: str | Path) -> "QSM":
        """The trained agent of a run folder, on the CPU; needs nothing else of the repository."""
        checkpoint = torch.load(Path(run_dir) / "checkpoint.pt", map_location="cpu", weights_only=True)
        stored = checkpoint["config"]
        config = QSMConfig(**{each.name: stored[each.name] for each in fields(QSMConfig) if each.name in stored})
        agent = cls(config, checkpoint["observation_dim"], checkpoint["action_dim"])
        agent.load_state_dict(checkpoint["agent"]["networks"])
        return agent


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, for envs/ and harness/
    from harness.command_line import main

    main(QSM, QSMConfig)
