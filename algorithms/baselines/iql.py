"""IQL: Implicit Q-Learning (Kostrikov et al., ICLR 2022, arXiv 2110.06169), with a Gaussian policy.

With V(s), two critics Q_k(s,a), their targets Qbar_k, and the policy pi(a|s) = N(mu(s), I):

    value     E[|expectile - 1[u < 0]| u^2],  u = min_k Qbar_k(s,a) - V(s)            (eq. 5)
    critics   sum_k E[(Q_k(s,a) - y)^2],  y = r + discount mask V(s')                 (eq. 6)
    policy    awr:     -E[w log pi(a|s)],  w = min(exp(beta A), 100),  A = min_k Q_k(s,a) - V(s)    (eq. 7)
              ddpgbc:  -E[q] / E|q| - bc_weight E[log pi(a|s)],  q = min_k Q_k(s, clip(mu(s)))

so that no action outside the data set is asked for while Q and V are learned. Acting takes clip(mu(s)).

    python algorithms/baselines/iql.py --config configs/iql/quickstart.yaml

Differences from the paper, all as in the code of FQL (Park et al., github.com/seohongpark/fql), whose published figures
this file is for: GELU networks with layer norm in critics and value, a policy of unit variance without tanh and without
decay of its learning rate, the advantage by the online critics (there by the targets), all losses differentiated
at the same parameters (there V, policy and Q in turn), the target critics' step before the gradient step.
The same code has the policy extraction `ddpgbc` (Park et al., "Is value learning really the main bottleneck in offline
RL?", NeurIPS 2024); the paper of IQL has `awr` alone.
Differences from FQL's code: its one `alpha` is inverse_temperature for awr and bc_weight for ddpgbc; a learned
variance is left out.
For OGBench's manipulation tasks the published figures are those of networks of 256 units (FQL's paper, appendix E.2).

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
MAX_EXPONENTIAL_WEIGHT = 100.0  # clip of exp(beta A) in IQL's released code
POLICY_OUTPUT_VARIANCE = 0.01  # of the last layer's initial weights over Xavier's, in FQL's Gaussian policies


@dataclass(frozen=True)
class IQLConfig:
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
    expectile: float = 0.9  # of the value regression
    extraction: str = "awr"  # awr (advantage-weighted regression) | ddpgbc (policy gradient and behaviour cloning)
    inverse_temperature: float = 10.0  # beta: multiplies the advantage in the policy's weights
    bc_weight: float = 10.0  # alpha: weight of behaviour cloning in the policy's loss

    def __post_init__(self):
        choices = {"extraction": ("awr", "ddpgbc")}
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} is {getattr(self, field)!r}; choose one of {', '.join(allowed)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")


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


@torch.no_grad()
def scale_output(network: EnsembleMLP, variance: float) -> None:
    """Makes the variance of the last layer's initial weights so many times smaller or larger."""
    network.weights[-1].mul_(math.sqrt(variance))


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


def advantage_weights(advantage: Tensor, inverse_temperature: float) -> Tensor:
    """w = min(exp(beta A), 100) of advantages [B] (eq. 7): [B]."""
    return torch.exp(inverse_temperature * advantage).clamp(max=MAX_EXPONENTIAL_WEIGHT)


def gaussian_log_prob(mean: Tensor, actions: Tensor) -> Tensor:
    """log N(actions; mean, I), summed over the action dimensions: [B, A] twice -> [B]."""
    return -0.5 * ((actions - mean).square() + math.log(2 * math.pi)).sum(dim=-1)


class IQL(nn.Module):
    """The agent: a Gaussian policy, two critics with targets, and a state value."""

    batch_fields = ()  # columns of a minibatch beyond the usual ones

    def __init__(self, config: IQLConfig, observation_dim: int, action_dim: int):
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
        self.value = network(1, observation_dim, config.value_hidden_dims, 1, config.value_layer_norm)
        self.policy = network(1, observation_dim, config.actor_hidden_dims, action_dim, config.actor_layer_norm)
        scale_output(self.policy, POLICY_OUTPUT_VARIANCE)
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
        """The metrics of a validation batch, without gradient; no loss of this method draws noise."""
        return self._loss(batch)[1]

    def _loss(self, batch: dict) -> Tuple[Tensor, dict]:
        """The sum of all losses at the present parameters, and the metrics."""
        config = self.config
        observations, actions = batch["observations"], batch["actions"]
        with torch.no_grad():
            data_q = q_values(self.target_critic, observations, actions).amin(dim=0)
            next_value = self.value(batch["next_observations"])[0].squeeze(-1)
            target_q = batch["rewards"] + config.discount * batch["masks"] * next_value

        # Value: expectile regression on the smaller target critic (eq. 5).
        value = self.value(observations)[0].squeeze(-1)
        value_loss = expectile_loss(data_q - value, config.expectile)

        # Critics: on the value of the next state, averaged over the batch and summed over the critics (eq. 6).
        q = q_values(self.critic, observations, actions)
        critic_loss = (q - target_q).square().mean(dim=1).sum()

        # Policy: by the online critics and value, held fixed.
        advantage = (q.amin(dim=0) - value).detach()
        actor_loss, actor_metrics = self._actor_loss(observations, actions, advantage)

        metrics = {
            "critic/loss": critic_loss,
            "critic/q_mean": q.mean(),
            "critic/target_mean": target_q.mean(),
            "value/loss": value_loss,
            "value/mean": value.mean(),
            "value/advantage_mean": advantage.mean(),
            "value/advantage_std": advantage.std(correction=0),
            "actor/loss": actor_loss,
            **actor_metrics,
        }
        metrics = {name: metric.detach() for name, metric in metrics.items()}
        return critic_loss + value_loss + actor_loss, metrics

    def _actor_loss(self, observations: Tensor, actions: Tensor, advantage: Tensor) -> Tuple[Tensor, dict]:
        """The loss of the chosen extraction with its metrics; advantage [B] of the data's actions."""
        config = self.config
        mean = self.policy(observations)[0]
        log_prob = gaussian_log_prob(mean, actions)
        metrics = {"actor/log_prob": log_prob.mean(), "actor/mean_error": (mean - actions).square().mean()}
        if config.extraction == "awr":
            weights = advantage_weights(advantage, config.inverse_temperature)
            metrics["actor/weight_mean"] = weights.mean()
            metrics["actor/weight_clipped"] = (weights == MAX_EXPONENTIAL_WEIGHT).to(weights.dtype).mean()
            return -(weights * log_prob).mean(), metrics
        q = frozen_q_values(self.critic, observations, mean.clamp(-1, 1)).amin(dim=0)
        q_loss, bc_loss = normalised_q_loss(q), -log_prob.mean()
        return q_loss + config.bc_weight * bc_loss, metrics | {"actor/q_loss": q_loss, "actor/q_mean": q.mean()}

    @torch.no_grad()
    def act(self, observations: Tensor, explore: bool = False) -> Tensor:
        """Actions [N, A] in [-1, 1] for observations [N, O]: the policy's mean, or with `explore` a sample of it.

        The policy's standard deviation is 1 in every dimension, as in FQL's code (constant std, temperature 1).
        """
        actions = self.policy(observations)[0]
        if explore:
            actions = actions + self.noise.normal(*actions.shape)
        return actions.clamp(-1, 1)

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
    def load(cls, run_dir) -> "IQL":
        """The agent of a run folder's checkpoint, on the CPU, for use anywhere."""
        checkpoint = torch.load(Path(run_dir) / "checkpoint.pt", map_location="cpu", weights_only=True)
        agent = cls(IQLConfig(**checkpoint["config"]), checkpoint["observation_dim"], checkpoint["action_dim"])
        agent.load_state_dict(checkpoint["agent"])
        return agent


def train(configs: Sequence[IQLConfig], restart: bool = False) -> List[dict]:
    """Trains an agent for each config on their task's data and evaluates it in the environment; returns the results.

    The configs differ in the seed only. `restart` begins anew where runs are there already.
    """
    from envs import load_task
    from harness.run import run

    task = load_task(configs[0].task, configs[0].data_dir, configs[0].collect_episodes, configs[0].in_memory)
    agents = [IQL(config, task.observation_dim, task.action_dim) for config in configs]
    return run(agents, task, restart)


def main() -> None:
    from harness.command_line import run_command

    run_command(IQLConfig, train)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository root, for envs/ and harness/
    main()
