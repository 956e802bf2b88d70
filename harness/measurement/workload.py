"""Updates whose cost is measured: an agent at a benchmark's size, on random rows in place of data."""

import dataclasses

import torch
from torch.utils.flop_counter import FlopCounterMode

from envs.dataset import Dataset
from harness.algorithms import Algorithm, load_algorithm
from harness.compilation import compile_functions
from harness.config import load_settings
from harness.updates import WARM_UP_UPDATES, Updates

ROWS = 100_000  # of the data that minibatches are sampled from


@dataclasses.dataclass(frozen=True)
class Size:
    """Shapes of a benchmark: state and action dimensions, and networks (None: those of the algorithm's own config).

    An algorithm without such networks, such as one of a transformer, has those of its own defaults. width: of the
    matrix product that shows what the machine gives.
    """

    observation_dim: int
    action_dim: int
    hidden_dims: tuple | None
    batch_size: int
    width: int


SIZES = {
    "published": Size(28, 5, (512, 512, 512, 512), 256, 512),  # cube-single with FQL's networks
    "released": Size(28, 5, (512, 512, 512), 256, 512),  # the same with the networks of DIPOLE's released code
    "quickstart": Size(5, 1, None, 256, 128),  # cartpole with the quick start's settings
}


def build_agent(algorithm: Algorithm, size: Size, device: torch.device) -> torch.nn.Module:
    """The algorithm at that size: its default options and the size's networks, or the quick start's settings."""
    if size.hidden_dims is None:
        config = load_settings(algorithm.config_class, {"task": "exorl/local_sticky_random/cartpole_swingup"}).config
    else:
        fields = {field.name for field in dataclasses.fields(algorithm.config_class)}
        dims = {field: size.hidden_dims for field in ("actor_hidden_dims", "value_hidden_dims") if field in fields}
        config = algorithm.config_class(**dims)
    return algorithm.agent_class(config, size.observation_dim, size.action_dim).to(device)


def random_dataset(size: Size, device: torch.device, rows: int = ROWS) -> Dataset:
    """So many rows of uniform numbers."""
    return Dataset(
        observations=torch.rand(rows, size.observation_dim),
        actions=torch.rand(rows, size.action_dim),
        rewards=torch.rand(rows),
        masks=torch.ones(rows),
        valid=torch.arange(rows - 1),
    ).to(device)


def build_updates(name: str, size: Size, dataset: Dataset, captured: bool, compiled: bool = False) -> Updates:
    """Updates of an agent of the algorithm, with minibatches from `dataset`, on its device."""
    device = dataset.observations.device
    agent = build_agent(load_algorithm(name), size, device)
    if compiled:
        compile_functions(agent)
    batches = torch.Generator(device).manual_seed(0)

    def next_batch() -> dict:
        return dataset.sample(size.batch_size, batches, agent.batch_fields)

    return Updates(agent, next_batch, [agent.noise.generator, batches], captured)


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
