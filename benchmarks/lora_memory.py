"""Memory and time of two adapters on one frozen planner, of training all its weights, and of two full copies of it.

python -m benchmarks.lora_memory --width 768 --blocks 12

A planner of that size is written as a pre-training run writes it. Each case is a process of its own: one loads it only;
two fine-tune it with algorithms/dipole_lora.py; one trains two full copies by the same eq. 9 and Adam. Printed are
numbers of parameters, resident memory above what the process had before it loaded anything, after a few updates and at
its peak, the size of a checkpoint, and CPU-seconds of the last update.
"""

import dataclasses
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import torch

from algorithms._planner import make_planner
from algorithms.dipole_lora import DIPOLELoRA, DIPOLELoRAConfig
from common.errors import CommandParser, exit_on_user_error
from harness.agent_tools import state_of

OBSERVATION_DIM, ACTION_DIM = 147, 13  # of driving/bandit
TOKENS = (6, 9, 12, 12, 12, 24, *[9] * 8)
BATCH_SIZE = 2  # few, so that what an update keeps for its gradient is little beside the weights
UPDATES = 3  # the first makes Adam's moments
MEGABYTE = 1e6
CASES = ("the frozen base alone", "base and two adapters", "all weights of the base", "two full copies")


def resident() -> float:
    """Megabytes of this process that are in memory now."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024 / MEGABYTE


def random_batch() -> dict:
    shapes = {"observations": (OBSERVATION_DIM,), "actions": (ACTION_DIM,), "rewards": (), "state_values": ()}
    return {name: torch.rand(BATCH_SIZE, *shape) for name, shape in shapes.items()}


def write_base(config: DIPOLELoRAConfig, path: Path) -> None:
    """A checkpoint of a planner with random weights."""
    agent = DIPOLELoRA(config, OBSERVATION_DIM, ACTION_DIM)
    sizes = {"observation_dim": OBSERVATION_DIM, "action_dim": ACTION_DIM}
    checkpoint = {
        "algorithm": "dipole_lora",
        "config": dataclasses.asdict(config),
        **sizes,
        "agent": state_of(agent),
    }
    torch.save(checkpoint, path)


def load(config: DIPOLELoRAConfig) -> torch.nn.Module:
    return make_planner(config, OBSERVATION_DIM, ACTION_DIM, torch.Generator())


def updated(update) -> float:
    """CPU-seconds of the last of a few updates."""
    for _ in range(UPDATES):
        start = time.process_time()
        update(random_batch())
    return time.process_time() - start


def full_copies(config: DIPOLELoRAConfig) -> tuple:
    """Two planners that both train by eq. 9, the state that a checkpoint holds, and CPU-seconds of an update."""
    copies = torch.nn.ModuleList(load(config) for _ in range(2))
    optimizer = torch.optim.Adam(copies.parameters(), lr=config.learning_rate, fused=True, capturable=True)

    def update(batch: dict) -> None:
        noise, t = torch.randn_like(batch["actions"]), torch.rand(BATCH_SIZE, 1)
        x = (1 - t) * noise + t * batch["actions"]
        weight = torch.sigmoid(batch["rewards"] - batch["state_values"])
        loss = torch.zeros(())
        for copy, weights in zip(copies, (weight, 1 - weight), strict=True):
            errors = (copy(batch["observations"], x, t) - batch["actions"] + noise).square().mean(dim=-1)
            loss = loss + (weights * errors).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = updated(update)
    return copies, {"networks": copies.state_dict(), "optimizer": optimizer.state_dict()}, seconds


def fine_tuned(config: DIPOLELoRAConfig) -> tuple:
    agent = DIPOLELoRA(config, OBSERVATION_DIM, ACTION_DIM)
    seconds = updated(agent.update)
    return agent, state_of(agent), seconds


def measure(case: str, config: DIPOLELoRAConfig, connection) -> None:
    """Sends the case's row."""
    DIPOLELoRA(DIPOLELoRAConfig(), OBSERVATION_DIM, ACTION_DIM).update(random_batch())  # torch's own start
    before = resident()
    if case == "two full copies":
        module, state, seconds = full_copies(config)
    elif case == "base and two adapters":
        module, state, seconds = fine_tuned(config)
    elif case == "all weights of the base":
        whole = dataclasses.replace(config, stage="finetune_all", weighting="exponential")
        module, state, seconds = fine_tuned(whole)
    else:
        module, state, seconds = load(config).requires_grad_(False), {}, 0.0
    after, peak = resident(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE
    size = 0.0
    if state:
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, Path(folder) / "state.pt")
            size = (Path(folder) / "state.pt").stat().st_size / MEGABYTE
    counts = [
        sum(p.numel() for p in module.parameters() if p.requires_grad or not trained) for trained in (False, True)
    ]
    connection.send((*(count / 1e6 for count in counts), after - before, peak - before, size, seconds))


@exit_on_user_error()
def main() -> None:
    parser = CommandParser("python -m benchmarks.lora_memory", __doc__)
    parser.add_argument("--width", type=int, default=768, help="of the planner")
    parser.add_argument("--blocks", type=int, default=12, help="of the planner")
    parser.add_argument("--rank", type=int, default=64, help="of each adapter")
    options = parser.parse_args()
    sizes = {"planner_width": options.width, "planner_blocks": options.blocks, "planner_heads": 4}
    pretrain = DIPOLELoRAConfig(token_sizes=TOKENS, **sizes)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        write_base(pretrain, path)
        config = dataclasses.replace(pretrain, stage="finetune", base=str(path), adapter_rank=options.rank)
        print(
            "| | parameters, millions | trained | memory, MB | peak, MB | checkpoint, MB | CPU-s an update |\n"
            "|---|---|---|---|---|---|---|"
        )
        for case in CASES:
            ours, theirs = context.Pipe()
            process = context.Process(target=measure, args=(case, config, theirs))
            process.start()
            theirs.close()
            row = ours.recv()
            process.join()
            print(f"| {case} | {' | '.join(f'{value:,.1f}' for value in row)} |", flush=True)


if __name__ == "__main__":
    main()
