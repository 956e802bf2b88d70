"""Memory and checkpoint of two adapters on one frozen planner, of training all its weights, and of two full copies.

    python -m benchmarks.lora_memory --width 768 --blocks 12

A planner of that size is written as a pre-training run writes it. Each case is a process of its own: two fine-tune it
with algorithms/dipole_lora.py; one trains two full copies by the same eq. 9 and Adam. Printed are resident memory after
a few updates above what the process had before it loaded anything, the size of a checkpoint and CPU-seconds of an
update.
"""

import dataclasses
import io
import multiprocessing
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
CASES = {
    "base and two adapters": {},
    "all weights of the base": {"stage": "finetune_all", "weighting": "exponential"},
    "two full copies": None,
}


def resident() -> float:
    """Megabytes of this process that are in memory now."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024 / 1e6


def megabytes(state: dict) -> float:
    """What a checkpoint of that state takes."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.tell() / 1e6


class FullCopies:
    """Two planners that both train by eq. 9."""

    def __init__(self, config: DIPOLELoRAConfig):
        sizes = (config, OBSERVATION_DIM, ACTION_DIM, torch.Generator())
        self.copies = torch.nn.ModuleList(make_planner(*sizes) for _ in range(2))
        self.optimizer = torch.optim.Adam(
            self.copies.parameters(), lr=config.learning_rate, fused=True, capturable=True
        )

    def update(self, batch: dict) -> None:
        noise, t = torch.randn_like(batch["actions"]), torch.rand(BATCH_SIZE, 1)
        x = (1 - t) * noise + t * batch["actions"]
        weight = torch.sigmoid(batch["rewards"] - batch["state_values"])
        loss = torch.zeros(())
        for copy, weights in zip(self.copies, (weight, 1 - weight), strict=True):
            errors = (copy(batch["observations"], x, t) - batch["actions"] + noise).square().mean(dim=-1)
            loss = loss + (weights * errors).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def state(self) -> dict:
        return {"networks": self.copies.state_dict(), "optimizer": self.optimizer.state_dict()}


def measure(case: str, config: DIPOLELoRAConfig) -> tuple:
    """(memory in MB, checkpoint in MB, CPU-seconds of the last update) of a case."""
    shapes = {"observations": (OBSERVATION_DIM,), "actions": (ACTION_DIM,), "rewards": (), "state_values": ()}
    batch = {name: torch.rand(BATCH_SIZE, *shape) for name, shape in shapes.items()}
    DIPOLELoRA(DIPOLELoRAConfig(), OBSERVATION_DIM, ACTION_DIM).update(batch)  # torch's own start
    before, changes = resident(), CASES[case]
    if changes is None:
        agent = FullCopies(config)
    else:
        agent = DIPOLELoRA(dataclasses.replace(config, **changes), OBSERVATION_DIM, ACTION_DIM)
    for _ in range(UPDATES):
        start = time.process_time()
        agent.update(batch)
    seconds, memory = time.process_time() - start, resident() - before
    return memory, megabytes(agent.state() if changes is None else state_of(agent)), seconds


def main() -> None:
    parser = CommandParser("python -m benchmarks.lora_memory", __doc__)
    parser.add_argument("--width", type=int, default=768, help="of the planner")
    parser.add_argument("--blocks", type=int, default=12, help="of the planner")
    with exit_on_user_error(), tempfile.TemporaryDirectory() as folder:
        options = parser.parse_args()
        sizes = {"planner_width": options.width, "planner_blocks": options.blocks, "planner_heads": 4}
        pretrain = DIPOLELoRAConfig(token_sizes=TOKENS, **sizes)
        base = {"algorithm": "dipole_lora", "config": dataclasses.asdict(pretrain)}
        base |= {"observation_dim": OBSERVATION_DIM, "action_dim": ACTION_DIM}
        path = Path(folder) / "checkpoint.pt"
        torch.save(base | {"agent": state_of(DIPOLELoRA(pretrain, OBSERVATION_DIM, ACTION_DIM))}, path)
        config = dataclasses.replace(pretrain, stage="finetune", base=str(path), adapter_rank=64)
        for case in CASES:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                memory, checkpoint, seconds = pool.apply(measure, (case, config))
            print(f"{case}: memory {memory:,.0f} MB, checkpoint {checkpoint:,.0f} MB, {seconds:.2f} CPU-s an update")


if __name__ == "__main__":
    main()
