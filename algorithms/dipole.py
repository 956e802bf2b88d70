"""DIPOLE: Dichotomous Diffusion Policy Optimization (Liang et al., ICLR 2026, arXiv 2601.00898), in flow-matching form.

With G = A(s,a) = Q(s,a) - V(s), behaviour policy mu, inverse temperature beta and greediness omega:

    target policy    pi*  ~ mu sigma(beta G) exp(omega beta G)                                (eq. 6)
                          = [mu sigma(beta G)]^(1+omega) / [mu (1 - sigma(beta G))]^omega     (eq. 7)
    two policies     pi+  ~ mu sigma(beta G)          pi- ~ mu (1 - sigma(beta G))            (eq. 8)
    training         E[w |v+ - (a - x0)|^2] + E[(1-w) |v- - (a - x0)|^2],  w = sigma(beta A + k)   (eq. 9)
    critics          sum_k E[mean_j (Q_k(s,a) - y_j)^2],  y_j = r + discount mask Qbar_j(s', a'),  a' of the policy
    value            E[|expectile - 1[u < 0]| u^2],  u = min_k Qbar_k(s,a) - V(s)             (IQL, eq. 5)
    sampling         v = (1+omega) v+ - omega v-,  Euler steps from x ~ N(0, I)               (eq. 10)
    acting           of N sampled actions the one with the largest min_k Q_k(s,a)

so both regressions have weights in [0, 1] and omega is chosen when acting, without training again.
Q and V are learned as in IQL: V by expectile regression on the target critics, Q by temporal differences, but with
the next action sampled from the policy.

    python algorithms/dipole.py --config configs/dipole/quickstart.yaml

Differences from the paper: flow-matching velocities take the place of noise predictions, as in the released
reinforcement-learning code (algorithms/dipole_diffusion.py holds the noise-prediction form), and the sigmoid has that
code's shift k, which the theory does not have.
Differences from the released code (JAX):
  - the seed is used, and acting takes a batch of states; omega when acting is a field (there an argument nobody sets);
  - with omega = 0 the negative network is not evaluated when sampling: the same numbers for half the work;
  - x0 and t are drawn once for both policies (there the same draw is made twice from one key);
  - additions, off by default: `weighting` (the ablations), `composition: resample`, validation losses.

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


@dataclass(frozen=True)
class DIPOLEConfig:
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
    composition: str = "score"  # score (eq. 10) | resample (candidates of pi+ by exp(omega beta Q))
    greediness: float = 0.0  # omega when acting; 0 = pi+ alone, -1 = pi- alone
    target_greediness: float = 0.0  # omega of the next actions in the critics' targets
    num_candidates: int = 32  # N: sampled actions per state when acting; the critics choose among them
    target_candidates: int = 1  # the same for the next actions in the critics' targets
    resample_candidates: int = 16  # draws of pi+ per resampled action
    flow_steps: int = 10  # Euler steps of the flow

    def __post_init__(self):
        choices = {
            "advantage": ("critic", "group"),
            "weighting": ("sigmoid", "exponential", "indicator", "none"),
            "composition": ("score", "resample"),
            "value_aggregation": ("min", "mean"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} is {getattr(self, field)!r}; choose one of {', '.join(allowed)}")
        for field in ("batch_size", "num_candidates", "target_candidates", "resample_candidates", "flow_steps"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1")
        if self.max_weight is not None and self.max_weight <= 0:
            raise ValueError(f"max_weight is {self.max_weight:g}; it must be above 0, or null for none")
        for field in ("greediness", "target_greediness"):
            greediness = getattr(self, field)
            if self.composition == "score":
                check_greediness(self.weighting, greediness, field)
            elif greediness < 0:
                raise ValueError(
                    f"{field} is {greediness:g}; composition resample has no negative policy; set 0 or more"
                )


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


def flow_losses(flow: EnsembleMLP, observations: Tensor, actions: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Errors |v(s, x_t, t) - (a - x0)|^2 [M, B] of the M flows, per action dimension, all at x0 [B, A] and t [B, 1]."""
    x_t = (1 - t) * x0 + t * actions
    velocity = flow(torch.cat([observations, x_t, t], dim=-1))
    return (velocity - (actions - x0)).square().mean(dim=-1)


def composed_velocity(flow: EnsembleMLP, observations: Tensor, x: Tensor, t: float, greediness: float) -> Tensor:
    """v = (1 + omega) v+ - omega v- (eq. 10) at observations [B, O] and x [B, A]: [B, A]."""
    inputs = torch.cat([observations, x, torch.full_like(x[:, :1], t)], dim=-1)
    if greediness == 0:
        return flow(inputs, slice(0, 1))[0]
    if greediness == -1:
        return flow(inputs, slice(1, 2))[0]
    positive, negative = flow(inputs)
    return (1 + greediness) * positive - greediness * negative


def sample_composed(flow: EnsembleMLP, observations: Tensor, x: Tensor, greediness: float, flow_steps: int) -> Tensor:
    """Euler steps from noise x [B, A] at t = 0 to actions [B, A], clipped once at the end."""
    for step in range(flow_steps):
        x = x + composed_velocity(flow, observations, x, step / flow_steps, greediness) / flow_steps
    return x.clamp(-1, 1)


def resample(actions: Tensor, log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Draws one of R candidates by its weight: actions [..., R, A], log_weights and uniform [..., R] -> [..., A].

    The Gumbel-max trick, which needs neither a branch nor a synchronisation with the device.
    """
    gumbel = -torch.log(-torch.log(uniform.clamp(min=torch.finfo(uniform.dtype).tiny)))
    drawn = (log_weights + gumbel).argmax(dim=-1)[..., None, None]
    return actions.gather(-2, drawn.expand(*drawn.shape[:-1], actions.shape[-1])).squeeze(-2)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """1 / sum of squared normalised weights, between 1 and R: log_weights [..., R] -> [...]."""
    return 1 / torch.softmax(log_weights, dim=-1).square().sum(dim=-1)


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


class DIPOLE(nn.Module):
    """The agent: a positive and a negative policy, two critics with targets, and a state value."""

    # What makes a run of the same budget its control: cloning, with critics of its own to choose among candidates.
    control = {"label": "behaviour_cloning", "weighting": "none", "greediness": 0.0, "target_greediness": 0.0}
    without_column = {"state_values": "advantage: critic"}  # the option that does without a column of batch_fields

    def __init__(self, config: DIPOLEConfig, observation_dim: int, action_dim: int):
        super().__init__()
        self.config = config
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.noise = Noise(config.seed)
        num_policies = 1 if is_single_policy(config.weighting) else 2
        # Columns of a minibatch beyond the usual ones.
        self.batch_fields = ("state_values",) if config.advantage == "group" else ()

        def network(members, input_dim, hidden_dims, output_dim, layer_norm):
            return EnsembleMLP(members, input_dim, hidden_dims, output_dim, layer_norm, self.noise.generator)

        critic_dim, flow_dim = observation_dim + action_dim, observation_dim + action_dim + 1
        self.critic = network(2, critic_dim, config.value_hidden_dims, 1, config.value_layer_norm)
        self.target_critic = network(2, critic_dim, config.value_hidden_dims, 1, config.value_layer_norm)
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.target_critic.requires_grad_(False)
        self.value = network(1, observation_dim, config.value_hidden_dims, 1, config.value_layer_norm)
        self.flow = network(num_policies, flow_dim, config.actor_hidden_dims, action_dim, config.actor_layer_norm)
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
            candidates, drawn_q = self._sample(
                next_observations, config.target_greediness, config.target_candidates, config.flow_steps
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

        # Policies: weighted flow matching (eq. 9), both at the same x0 and t.
        if config.advantage == "group":
            advantage = batch["rewards"] - batch["state_values"]
        else:
            advantage = smallest_data_q - value.detach()
        weights = policy_weights(
            config.weighting, advantage, config.inverse_temperature, config.shift, config.max_weight
        )
        x0, t = self.noise.normal(*actions.shape), self.noise.uniform(len(actions), 1)
        policy_losses = (weights * flow_losses(self.flow, observations, actions, x0, t)).mean(dim=1)

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
        if config.composition == "resample":
            log_weights = config.greediness * config.inverse_temperature * drawn_q
            metrics["actor/effective_sample_size"] = effective_sample_size(log_weights).mean()
        metrics = {name: metric.detach() for name, metric in metrics.items()}
        return critic_loss + value_loss + policy_losses.sum(), metrics

    def _sample(
        self, observations: Tensor, greediness: float, count: int, flow_steps: int
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """`count` actions per state [N, count, A] of that greediness; for `resample` also the values [N, count, R]."""
        config, num_states = self.config, len(observations)
        draws = count * (config.resample_candidates if config.composition == "resample" else 1)
        x = self.noise.normal(num_states, draws, self.action_dim).flatten(0, 1)
        flow_greediness = 0.0 if config.composition == "resample" else greediness
        actions = sample_composed(self.flow, repeat_rows(observations, draws), x, flow_greediness, flow_steps)
        actions = actions.view(num_states, draws, self.action_dim)
        if config.composition == "score":
            return actions, None
        q = smallest_q(self.target_critic, observations, actions).view(num_states, count, -1)
        uniform = self.noise.uniform(num_states, draws).view_as(q)
        log_weights = greediness * config.inverse_temperature * q
        return resample(actions.view(*q.shape, self.action_dim), log_weights, uniform), q

    @torch.no_grad()
    def act(
        self,
        observations: Tensor,
        greediness: Optional[float] = None,
        num_candidates: Optional[int] = None,
        flow_steps: Optional[int] = None,
        explore: bool = False,
    ) -> Tensor:
        """Actions [N, A] in [-1, 1] for observations [N, O]; an option left out is the config's.

        `explore` changes nothing: the policy samples anyway, and the released code has this one acting rule.
        Raises ValueError for options that the config would refuse, such as a greediness without policy.
        """
        acting = self._acting_config(greediness=greediness, num_candidates=num_candidates, flow_steps=flow_steps)
        candidates, _ = self._sample(observations, acting.greediness, acting.num_candidates, acting.flow_steps)
        return best_candidate(self.critic, observations, candidates)

    def network_evaluations(
        self,
        greediness: Optional[float] = None,
        num_candidates: Optional[int] = None,
        flow_steps: Optional[int] = None,
    ) -> int:
        """Evaluations of one network (each policy, each critic counts) that an action with these options costs."""
        acting = self._acting_config(greediness=greediness, num_candidates=num_candidates, flow_steps=flow_steps)
        selection = 2 * acting.num_candidates if acting.num_candidates > 1 else 0
        if acting.composition == "resample":
            return acting.num_candidates * acting.resample_candidates * (acting.flow_steps + 2) + selection
        policies = 1 if acting.greediness in (0, -1) else 2
        return acting.num_candidates * acting.flow_steps * policies + selection

    def _acting_config(self, **options) -> DIPOLEConfig:
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
    def load(cls, run_dir) -> "DIPOLE":
        """The agent of a run folder's checkpoint, on the CPU, for use anywhere."""
        checkpoint = torch.load(Path(run_dir) / "checkpoint.pt", map_location="cpu", weights_only=True)
        agent = cls(DIPOLEConfig(**checkpoint["config"]), checkpoint["observation_dim"], checkpoint["action_dim"])
        agent.load_state_dict(checkpoint["agent"])
        return agent


def train(configs: Sequence[DIPOLEConfig], restart: bool = False) -> List[dict]:
    """Trains an agent for each config on their task's data and evaluates it in the environment; returns the results.

    The configs differ in the seed only. `restart` begins anew where runs are there already.
    """
    from envs import load_task
    from harness.run import run

    task = load_task(configs[0].task, configs[0].data_dir, configs[0].collect_episodes, configs[0].in_memory)
    agents = [DIPOLE(config, task.observation_dim, task.action_dim) for config in configs]
    return run(agents, task, restart)


def main() -> None:
    from harness.command_line import run_command

    run_command(DIPOLEConfig, train)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root, for envs/ and harness/
    main()
