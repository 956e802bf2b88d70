"""Updates whose cost is measured: agents of an algorithm at a benchmark's size, on random rows in place of data."""

import dataclasses
from typing import Optional

import torch
from torch.utils.flop_counter import FlopCounterMode

from envs.dataset import Dataset
from harness.algorithms import ROOT, Algorithm, load_algorithm
from harness.config_file import load_config
from harness.training.updates import WARM_UP_UPDATES, Updates

ROWS = 100_000  # of the data that minibatches are sampled from


@dataclasses.dataclass(frozen=True)
class Size:
    """Shapes of a benchmark: state and action dimensions, and networks (None: those of the algorithm's own config).

    An algorithm without such networks, such as one of a transformer, has those of its own defaults. width: of the
    matrix product that shows what the machine gives.
    """

    observation_dim: int
    action_dim: int
    hidden_dims: Optional[tuple]
    batch_size: int
    width: int


SIZES = {
    "published": Size(28, 5, (512, 512, 512, 512), 256, 512),  # cube-single with FQL's networks
    "released": Size(28, 5, (512, 512, 512), 256, 512),  # the same with the networks of DIPOLE's released code
    "quickstart": Size(5, 1, None, 256, 128),  # cartpole with configs/<algorithm>/quickstart.yaml
}


def build_agent(algorithm: Algorithm, size: Size, device: torch.device) -> torch.nn.Module:
    """The algorithm at that size: its default options and the size's networks, or its quick-start config."""
    if size.hidden_dims is None:
        config = load_config(algorithm.config_class, ROOT / "configs" / algorithm.name / "quickstart.yaml")
    else:
        fields = {field.name for field in dataclasses.fields(algorithm.config_class)}
        dims = {field: size.hidden_dims for field in ("actor_hidden_dims", "value_hidden_dims") if field in fields}
        config = dataclasses.replace(algorithm.config_class(), **dims, batch_size=size.batch_size)
    return algorithm.agent_class(config, size.observation_dim, size.action_dim).to(device)


def random_dataset(size: Size, device: torch.device) -> Dataset:
    """ROWS rows of uniform numbers."""
    return Dataset(
        observations=torch.rand(ROWS, size.observation_dim),
        actions=torch.rand(ROWS, size.action_dim),
        rewards=torch.rand(ROWS),
        masks=torch.ones(ROWS),
        valid=torch.arange(ROWS - 1),
    ).to(device)


def build_updates(name: str, size: Size, dataset: Dataset, captured: bool, seeds: int) -> Updates:
    """Updates of so many agents of the algorithm, with minibatches of their own from `dataset`, on its device."""
    device = dataset.observations.device
    algorithm = load_algorithm(name)
    agents = [build_agent(algorithm, size, device) for _ in range(seeds)]
    batches = [torch.Generator(device).manual_seed(seed) for seed in range(seeds)]
    samplers = [
        lambda agent=agent, generator=generator: dataset.sample(size.batch_size, generator, agent.batch_fields)
        for agent, generator in zip(agents, batches, strict=True)
    ]
    generators = [[agent.noise.generator, generator] for agent, generator in zip(agents, batches, strict=True)]
    return Updates(agents, samplers, generators, captured)


def warm_up(updates: Updates) -> Updates:
    """The same after its first updates, the last of which captures the graph."""
    for _ in range(WARM_UP_UPDATES + 1):
        updates.advance(1)
    return updates


def count_flops(agent: torch.nn.Module, batch: dict) -> int:
    """Floating-point operations of one update's matrix products, without fused attention's."""
    with FlopCounterMode(display=False) as counter:
        agent.update(batch)
    return counter.get_total_flops()
