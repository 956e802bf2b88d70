"""FQL: Flow Q-Learning (Park, Li and Levine, ICML 2025, arXiv 2502.02538).

With two critics Q_k(s,a), their targets Qbar_k, a velocity v(s,x,t) and a one-step policy mu(s,z), z ~ N(0, I):

    critics        mean_k E[(Q_k(s,a) - y)^2],  y = r + discount mask mean_k Qbar_k(s', clip(mu(s',z)))
    flow           E[|v(s,x_t,t) - (a - x0)|^2],  x_t = (1 - t) x0 + t a,  x0 ~ N(0, I),  t ~ U[0, 1]
    distillation   E[|mu(s,z) - clip(Euler(v; s,z))|^2]
    policy         distillation_weight distillation - E[mean_k Q_k(s, clip(mu(s,z)))]

so the flow clones the data, and the policy follows the critics near the flow's samples without differentiating
through its steps. Acting takes clip(mu(s,z)) with fresh noise.

    python algorithms/baselines/fql.py --config configs/fql/quickstart.yaml

Differences from the paper, all as in its code (github.com/seohongpark/fql), whose figures were published: flow and
distillation average squared errors over the action dimensions (the paper sums them), and every published weight of the
distillation belongs to the average; all losses are differentiated at the same parameters, and the target critics' step
comes before the gradient step.
Differences from that code: none in the mathematics; a draw of actions that it only logs is left out.

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
VALIDATION_SEED = 0  # losses() draws the same noise at every call


@dataclass(frozen=True)
class FQLConfig:
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
    target_aggregation: str = "mean"  # mean | min over the target critics in the critics' targets (FQL: q_agg)
    distillation_weight: float = 10.0  # alpha: of the distance to the flow's samples in the policy's loss
    normalise_q_loss: bool = False  # divide the policy's Q term by the mean of |Q| (FQL: normalize_q_loss)
    flow_steps: int = 10  # Euler steps of the flow

    def __post_init__(self):
        choices = {"target_aggregation": ("mean", "min")}
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} is {getattr(self, field)!r}; choose one of {', '.join(allowed)}")
        for field in ("batch_size", "flow_steps"):
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
def soft_update(target: nn.Module, online: nn.Module, rate: float) -> None:
    """target <- rate * online + (1 - rate) * target, for every parameter."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)


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


def flow_losses(flow: EnsembleMLP, observations: Tensor, actions: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Errors |v(s, x_t, t) - (a - x0)|^2 [M, B] of the M flows, per action dimension, all at x0 [B, A] and t [B, 1]."""
    x_t = (1 - t) * x0 + t * actions
    velocity = flow(torch.cat([observations, x_t, t], dim=-1))
    return (velocity - (actions - x0)).square().mean(dim=-1)


def sample_flow(flow: EnsembleMLP, observations: Tensor, x: Tensor, flow_steps: int) -> Tensor:
    """Euler steps from noise x [B, A] at t = 0 to actions [B, A], clipped once at the end."""
    for step in range(flow_steps):
        t = torch.full_like(x[:, :1], step / flow_steps)
        x = x + flow(torch.cat([observations, x, t], dim=-1))[0] / flow_steps
    return x.clamp(-1, 1)


def one_step_actions(policy: EnsembleMLP, observations: Tensor, z: Tensor) -> Tensor:
    """mu(s,z) [B, A] at observations [B, O] and noise z [B, A], not clipped."""
    return policy(torch.cat([observations, z], dim=-1))[0]


class FQL(nn.Module):
    """The agent: a flow that clones the data, a one-step policy, and two critics with targets."""

    batch_fields = ()  # columns of a minibatch beyond the usual ones

    def __init__(self, config: FQLConfig, observation_dim: int, action_dim: int):
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
        self.flow = network(1, critic_dim + 1, config.actor_hidden_dims, action_dim, config.actor_layer_norm)
        self.policy = network(1, critic_dim, config.actor_hidden_dims, action_dim, config.actor_layer_norm)
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        # capturable: the step count stays on the device, so that a CUDA graph can hold the step
        self.optimizer = torch.optim.Adam(trainable, lr=config.learning_rate, fused=True, capturable=True)

    def update(self, batch: dict) -> dict:
        """The target critics' step and one gradient step of all networks on a minibatch; detached 0-d metrics."""
        loss, metrics = self._loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        soft_update(self.target_critic, self.critic, self.config.target_rate)  # from before the step, as FQL's code
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
        config = self.config
        observations, actions = batch["observations"], batch["actions"]

        # Critics: the next action is the one-step policy's; averaged over the critics.
        with torch.no_grad():
            z = self.noise.normal(*actions.shape)
            next_actions = one_step_actions(self.policy, batch["next_observations"], z).clamp(-1, 1)
            next_q = q_values(self.target_critic, batch["next_observations"], next_actions)
            next_q = next_q.amin(dim=0) if config.target_aggregation == "min" else next_q.mean(dim=0)
            target_q = batch["rewards"] + config.discount * batch["masks"] * next_q
        q = q_values(self.critic, observations, actions)
        critic_loss = (q - target_q).square().mean()

        # Flow: matching on the data.
        x0, t = self.noise.normal(*actions.shape), self.noise.uniform(len(actions), 1)
        flow_loss = flow_losses(self.flow, observations, actions, x0, t).mean()

        # Policy: near the flow's sample from the same noise, and uphill for the mean critic, which is held fixed.
        z = self.noise.normal(*actions.shape)
        with torch.no_grad():
            flow_actions = sample_flow(self.flow, observations, z, config.flow_steps)
        policy_actions = one_step_actions(self.policy, observations, z)
        distillation_loss = (policy_actions - flow_actions).square().mean()
        policy_q = frozen_q_values(self.critic, observations, policy_actions.clamp(-1, 1)).mean(dim=0)
        q_loss = normalised_q_loss(policy_q) if config.normalise_q_loss else -policy_q.mean()
        actor_loss = flow_loss + config.distillation_weight * distillation_loss + q_loss

        metrics = {
            "critic/loss": critic_loss,
            "critic/q_mean": q.mean(),
            "critic/target_mean": target_q.mean(),
            "actor/loss": actor_loss,
            "actor/flow_loss": flow_loss,
            "actor/distillation_loss": distillation_loss,
            "actor/q_loss": q_loss,
            "actor/q_mean": policy_q.mean(),
        }
        metrics = {name: metric.detach() for name, metric in metrics.items()}
        return critic_loss + actor_loss, metrics

    @torch.no_grad()
    def act(self, observations: Tensor, explore: bool = False) -> Tensor:
        """Actions [N, A] in [-1, 1] for observations [N, O]: the one-step policy's, always with fresh noise.

        `explore` changes nothing: FQL's code explores as it is evaluated.
        """
        z = self.noise.normal(len(observations), self.action_dim)
        return one_step_actions(self.policy, observations, z).clamp(-1, 1)

    def network_evaluations(self) -> int:
        """Evaluations of one network that an action costs: one of the one-step policy."""
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
    def load(cls, run_dir) -> "FQL":
        """The agent of a run folder's checkpoint, on the CPU, for use anywhere."""
        checkpoint = torch.load(Path(run_dir) / "checkpoint.pt", map_location="cpu", weights_only=True)
        agent = cls(FQLConfig(**checkpoint["config"]), checkpoint["observation_dim"], checkpoint["action_dim"])
        agent.load_state_dict(checkpoint["agent"])
        return agent


def train(configs: Sequence[FQLConfig], restart: bool = False) -> List[dict]:
    """Trains an agent for each config on their task's data and evaluates it in the environment; returns the results.

    The configs differ in the seed only. `restart` begins anew where runs are there already.
    """
    from envs import load_task
    from harness.run import run

    task = load_task(configs[0].task, configs[0].data_dir, configs[0].collect_episodes, configs[0].in_memory)
    agents = [FQL(config, task.observation_dim, task.action_dim) for config in configs]
    return run(agents, task, restart)


def main() -> None:
    from harness.command_line import run_command

    run_command(FQLConfig, train)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository root, for envs/ and harness/
    main()
