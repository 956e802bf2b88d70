"""ReBRAC: Revisited Behaviour-Regularised Actor-Critic (Tarasov et al., NeurIPS 2023, arXiv 2305.09836).

TD3+BC with the cloning penalty in the critics' targets too. With two critics Q_k(s,a), a policy mu(s) in (-1, 1),
targets Qbar_k and mubar, noise e = clip(actor_noise z), z ~ N(0, I), and the data's next action b':

    next action  a' = clip(mubar(s') + e)
    critics      mean_k E[(Q_k(s,a) - y)^2],  y = r + discount mask (min_k Qbar_k(s',a') - critic_bc_weight |a' - b'|^2)
    policy       -E[q] / E|q| + actor_bc_weight E[|mu(s) - a|^2],  q = min_k Q_k(s, mu(s))

The policy, the target critics and the target policy move at every actor_interval-th update only.

    python algorithms/baselines/rebrac.py --config configs/rebrac/quickstart.yaml

Both weights are 0 by default, as in the reference code, which sets them for each task: without them nothing keeps the
policy near the data.

Differences from the paper, all as in the code of FQL (Park et al., github.com/seohongpark/fql), whose published figures
this file is for: FQL's networks, learning rate and batch size, the critics' loss averaged over the critics, all losses
differentiated at the same parameters, the targets' step before the gradient step. One Adam holds all networks, so that
in an update that skips the policy its gradient is zero but its momentum still moves it.
Differences from FQL's code: none in the mathematics.

Needs only torch and numpy; train() also needs this repository's envs/ and harness/, which define rewards and masks.
"""

import math
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPSILON = 1e-6  # Flax's default, in FQL's networks (torch's is 1e-5)
POLICY_OUTPUT_VARIANCE = 0.01  # of the last layer's initial weights over Xavier's, in FQL's Gaussian policies
VALIDATION_SEED = 0  # losses() draws the same noise at every call


@dataclass(frozen=True)
class ReBRACConfig:
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
    target_rate: float = 0.005  # tau: target <- tau online + (1 - tau) target
    actor_hidden_dims: Tuple[int, ...] = (512, 512, 512, 512)  # hidden sizes of the policy networks
    value_hidden_dims: Tuple[int, ...] = (512, 512, 512, 512)  # hidden sizes of critics and value
    actor_layer_norm: bool = False  # layer norm in the policy networks
    value_layer_norm: bool = True  # layer norm in critics and value
    actor_bc_weight: float = 0.0  # of the squared distance to the data's action in the policy's loss
    critic_bc_weight: float = 0.0  # of the squared distance to the data's next action in the critics' targets
    actor_interval: int = 2  # updates between those of the policy and of all targets
    actor_noise: float = 0.2  # standard deviation of the noise on next actions and when exploring
    actor_noise_clip: float = 0.5  # largest size of that noise

    def __post_init__(self):
        for field in ("batch_size", "actor_interval"):
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


@torch.no_grad()
def scale_output(network: EnsembleMLP, variance: float) -> None:
    """Makes the variance of the last layer's initial weights so many times smaller or larger."""
    network.weights[-1].mul_(math.sqrt(variance))


@torch.no_grad()
def gated_soft_update(target: nn.Module, online: nn.Module, rate: float, gate: Tensor) -> None:
    """soft_update where the 0-d boolean `gate` is true, which stays on the device; otherwise nothing."""
    for parameter, online_parameter in zip(target.parameters(), online.parameters(), strict=True):
        parameter.lerp_(online_parameter, rate * gate.to(parameter.dtype))


def q_values(critic: EnsembleMLP, observations: Tensor, actions: Tensor) -> Tensor:
    """Values [M, B] of the M critics at observations [B, O] and actions [B, A]."""
    return critic(torch.cat([observations, actions], dim=-1)).squeeze(-1)


def frozen_q_values(critic: EnsembleMLP, observations: Tensor, actions: Tensor) -> Tensor:
    """The same values [2, B] with the critics held fixed: gradients reach the actions [B, A] only."""
    frozen = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    inputs = torch.cat([observations, actions], dim=-1)
    return torch.func.functional_call(critic, frozen, (inputs,)).squeeze(-1)


def normalised_q_loss(q: Tensor) -> Tensor:
    """-mean q / mean |q| for q [B], the denominator held fixed: the loss does not depend on the rewards' scale."""
    return -q.mean() / q.detach().abs().mean()


def squashed_actions(policy: EnsembleMLP, observations: Tensor) -> Tensor:
    """mu(s) = tanh of the network's output at observations [B, O]: [B, A]."""
    return torch.tanh(policy(observations)[0])


def squared_distance(actions: Tensor, data_actions: Tensor) -> Tensor:
    """|a - a_data|^2, summed over the action dimensions: [B, A] twice -> [B]."""
    return (actions - data_actions).square().sum(dim=-1)


class ReBRAC(nn.Module):
    """The agent: a deterministic policy and two critics, all with targets."""

    batch_fields = ("next_actions",)  # columns of a minibatch beyond the usual ones

    def __init__(self, config: ReBRACConfig, observation_dim: int, action_dim: int):
        super().__init__()
        self.config = config
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.noise = Noise(config.seed)

        def network(members, input_dim, hidden_dims, output_dim, layer_norm):
            return EnsembleMLP(members, input_dim, hidden_dims, output_dim, layer_norm, self.noise.generator)

        critic_dim = observation_dim + action_dim
        self.critic = network(2, critic_dim, config.value_hidden_dims, 1, config.value_layer_norm)
        self.target_critic = network(2, critic_dim, config.value_hidden_dims, 1, config.value_layer_norm)
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.target_critic.requires_grad_(False)
        self.policy = network(1, observation_dim, config.actor_hidden_dims, action_dim, config.actor_layer_norm)
        scale_output(self.policy, POLICY_OUTPUT_VARIANCE)
        self.target_policy = network(1, observation_dim, config.actor_hidden_dims, action_dim, config.actor_layer_norm)
        self.target_policy.load_state_dict(self.policy.state_dict())
        self.target_policy.requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))  # made so far, on the device
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        # capturable: the step count stays on the device, so that a CUDA graph can hold the step
        self.optimizer = torch.optim.Adam(trainable, lr=config.learning_rate, fused=True, capturable=True)

    def update(self, batch: dict) -> dict:
        """The targets' step and one gradient step on a minibatch, as the schedule has them; detached 0-d metrics."""
        self.updates += 1
        active = self.updates % self.config.actor_interval == 0
        critic_loss, actor_loss, metrics = self._loss(batch)
        self.optimizer.zero_grad()
        (critic_loss + active * actor_loss).backward()  # a skipped policy's gradient is zero, which Adam still takes
        gated_soft_update(self.target_critic, self.critic, self.config.target_rate, active)  # before the step, as FQL
        gated_soft_update(self.target_policy, self.policy, self.config.target_rate, active)
        self.optimizer.step()
        return metrics

    @torch.no_grad()
    def losses(self, batch: dict) -> dict:
        """The metrics of a validation batch: no gradient, and noise of its own, so that training is not changed."""
        training_noise, self.noise = self.noise, Noise(VALIDATION_SEED).to(self.noise.like)
        try:
            return self._loss(batch)[-1]
        finally:
            self.noise = training_noise

    def _loss(self, batch: dict) -> Tuple[Tensor, Tensor, dict]:
        """The losses of the critics and of the policy at the present parameters, and the metrics."""
        config = self.config
        observations, actions = batch["observations"], batch["actions"]

        # Critics: on the target policy's action with noise, which the penalty includes.
        with torch.no_grad():
            next_actions = self._noisy(squashed_actions(self.target_policy, batch["next_observations"]))
            next_distance = squared_distance(next_actions, batch["next_actions"])
            next_q = q_values(self.target_critic, batch["next_observations"], next_actions).amin(dim=0)
            next_q = next_q - config.critic_bc_weight * next_distance
            target_q = batch["rewards"] + config.discount * batch["masks"] * next_q
        q = q_values(self.critic, observations, actions)
        critic_loss = (q - target_q).square().mean()

        # Policy: uphill for the smaller critic, near the data.
        policy_actions = squashed_actions(self.policy, observations)
        policy_q = frozen_q_values(self.critic, observations, policy_actions).amin(dim=0)
        q_loss, bc_loss = normalised_q_loss(policy_q), squared_distance(policy_actions, actions).mean()
        actor_loss = q_loss + config.actor_bc_weight * bc_loss

        metrics = {
            "critic/loss": critic_loss,
            "critic/q_mean": q.mean(),
            "critic/target_mean": target_q.mean(),
            "critic/next_distance": next_distance.mean(),
            "actor/loss": actor_loss,
            "actor/q_loss": q_loss,
            "actor/bc_loss": bc_loss,
            "actor/q_mean": policy_q.mean(),
        }
        metrics = {name: metric.detach() for name, metric in metrics.items()}
        return critic_loss, actor_loss, metrics

    def _noisy(self, actions: Tensor) -> Tensor:
        """Actions [B, A] with clipped noise, in [-1, 1]."""
        noise = self.config.actor_noise * self.noise.normal(*actions.shape)
        return (actions + noise.clamp(-self.config.actor_noise_clip, self.config.actor_noise_clip)).clamp(-1, 1)

    @torch.no_grad()
    def act(self, observations: Tensor, explore: bool = False) -> Tensor:
        """Actions [N, A] in [-1, 1] for observations [N, O]: the policy's, with `explore` with clipped noise.

        The noise is that of the next actions, as in FQL's code.
        """
        actions = squashed_actions(self.policy, observations)
        return self._noisy(actions) if explore else actions

    def network_evaluations(self) -> int:
        """Evaluations of one network that an action costs: one of the policy."""
        return 1

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
    def load(cls, run_dir) -> "ReBRAC":
        """The agent of a run folder's checkpoint, on the CPU, for use anywhere."""
        checkpoint = torch.load(Path(run_dir) / "checkpoint.pt", map_location="cpu", weights_only=True)
        agent = cls(ReBRACConfig(**checkpoint["config"]), checkpoint["observation_dim"], checkpoint["action_dim"])
        agent.load_state_dict(checkpoint["agent"])
        return agent


def train(configs: Sequence[ReBRACConfig], restart: bool = False) -> List[dict]:
    """Trains an agent for each config on their task's data and evaluates it in the environment; returns the results.

    The configs differ in the seed only. `restart` begins anew where runs are there already.
    """
    from envs import load_task
    from harness.run import run

    task = load_task(configs[0].task, configs[0].data_dir, configs[0].collect_episodes, configs[0].in_memory)
    agents = [ReBRAC(config, task.observation_dim, task.action_dim) for config in configs]
    return run(agents, task, restart)


def main() -> None:
    from harness.command_line import run_command

    run_command(ReBRACConfig, train)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository root, for envs/ and harness/
    main()
