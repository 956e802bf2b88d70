"""One network for both policies, told by an input which one it is: the other way to train two policies on one data set.

DIPOLE's pi+ and pi- are networks of their own. Here one network with a polarity input (1 for pi+, -1 for pi-) is made
wider until it has as many parameters as those two together (one network for two policies: CFGRL, arXiv 2505.23458,
figure 7). It is trained as any algorithm, with DIPOLE's settings:

    python -m examples.shared_trunk --config configs/dipole/exorl.yaml --seed 0

A comparison has it as `algorithm: shared_trunk` with a `config` of DIPOLE's (configs/compare/ablations.yaml).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from algorithms.dipole import DIPOLE, DIPOLEConfig, EnsembleMLP
from harness.command_line import main

POLARITIES = (1.0, -1.0)  # of pi+ and pi-
WIDEST = 2.0  # times the hidden sizes that a search for the equal number of parameters tries
STEPS = 1000  # of that search


@dataclass(frozen=True)
class SharedTrunkConfig(DIPOLEConfig):
    def __post_init__(self):
        super().__post_init__()
        if self.num_policies == 1:
            raise ValueError(f"weighting is {self.weighting}, which trains one policy; a shared trunk needs two")


class SharedNetwork(nn.Module):
    """Stands for an EnsembleMLP of two members, of the given sizes: inputs [B, ...] -> [2, B, O], or one of them."""

    def __init__(self, sizes: tuple[int, ...], layer_norm: bool, generator: torch.Generator):
        super().__init__()
        self.network = EnsembleMLP(1, widened(sizes, layer_norm), layer_norm, generator)

    def forward(self, *inputs: Tensor, member: int | None = None) -> Tensor:
        polarities = POLARITIES if member is None else (POLARITIES[member],)
        rows = [torch.cat([*inputs, torch.full_like(inputs[0][:, :1], polarity)], dim=-1) for polarity in polarities]
        return self.network(torch.cat(rows)).view(len(polarities), len(inputs[0]), -1)


def parameter_count(sizes: tuple[int, ...], layer_norm: bool) -> int:
    """Numbers in one member of an EnsembleMLP."""
    weights_and_biases = sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(sizes))
    return weights_and_biases + 2 * sum(sizes[1:-1]) * layer_norm


def widened(sizes: tuple[int, ...], layer_norm: bool) -> tuple[int, ...]:
    """Sizes with one input more and wider layers, whose count is nearest to that of two networks of `sizes`."""

    def scaled(scale: float) -> tuple[int, ...]:
        return (sizes[0] + 1, *(round(scale * size) for size in sizes[1:-1]), sizes[-1])

    wanted = len(POLARITIES) * parameter_count(sizes, layer_norm)
    candidates = [scaled(1 + (WIDEST - 1) * step / STEPS) for step in range(STEPS + 1)]
    return min(candidates, key=lambda candidate: abs(parameter_count(candidate, layer_norm) - wanted))


class SharedTrunk(DIPOLE):
    """DIPOLE whose `flow` is one network for both policies."""

    def __init__(self, config: SharedTrunkConfig, observation_dim: int, action_dim: int, seed: int = 0):
        super().__init__(config, observation_dim, action_dim, seed)
        sizes = (observation_dim + action_dim + 1, *config.actor_hidden_dims, action_dim)
        self.flow = SharedNetwork(sizes, config.actor_layer_norm, self.noise.generator)
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=config.learning_rate, fused=True, capturable=True)


if __name__ == "__main__":
    main(SharedTrunk, SharedTrunkConfig)
