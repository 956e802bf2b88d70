"""Updates per second of algorithms/dipole.py against the same update in JAX (benchmarks/jax_dipole.py), in one run.

    python -m benchmarks.against_jax --size released published quickstart --csv FILE
    python -m benchmarks.against_jax --device cuda --precision highest high

Rounds of the two follow each other, and each round gives one ratio, so that what else the machine does meets both; the
table holds the smallest, the median and the largest of the rounds. With `--compile` ours is measured compiled, too; on
a GPU each update by update and as a CUDA graph, and JAX is waited for as rarely as the graph. On a CPU both use all
cores, or so many as `taskset` leaves. `--clock cpu` gives updates per second of CPU time, of all threads together, for
a machine that is busy with other work.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# JAX would take three quarters of the GPU's memory at its first use; it reads this when it is imported.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import torch
from tqdm import tqdm

from benchmarks.jax_dipole import compiled_update, random_state
from benchmarks.throughput import (
    PRECISIONS,
    SIZES,
    build_updates,
    count_flops,
    random_dataset,
    rate,
    show,
    spread,
    update_rate,
    waiting_for,
    warm_up,
)
from common.errors import CommandParser, UserError, exit_on_user_error
from envs.dataset import Dataset
from harness.algorithms import load_algorithm
from harness.devices import choose_device
from harness.updates import UPDATES_PER_REPLAY

# What JAX calls torch's precisions; its own default on a GPU is tf32.
JAX_PRECISIONS = {"highest": "highest", "high": "tensorfloat32", "medium": "bfloat16"}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class JaxUpdates:
    """JAX's updates of a config on transitions of `dataset`; `advance` makes some, `wait` until they are made."""

    def __init__(self, config: Any, batch_size: int, dataset: Dataset, device: jax.Device, precision: str):
        rows = dataset.valid.cpu()
        arrays = {name: getattr(dataset, name).cpu()[rows] for name in ("observations", "actions", "rewards", "masks")}
        arrays["next_observations"] = dataset.observations.cpu()[rows + 1]
        self.device, self.precision = device, precision
        with jax.default_device(device):
            self.data = {name: jnp.asarray(array.numpy()) for name, array in arrays.items()}
            dims = arrays["observations"].shape[1], arrays["actions"].shape[1]
            self.state, self.key = random_state(config, *dims, seed=0), jax.random.key(0)
        self.update = compiled_update(config, batch_size)
        self.losses: dict[str, jax.Array] = {}

    def advance(self, count: int) -> None:
        with jax.default_device(self.device), jax.default_matmul_precision(self.precision):
            for _ in range(count):
                self.state, self.key, self.losses = self.update(self.state, self.data, self.key)

    def wait(self) -> None:
        jax.block_until_ready((self.state, self.key, self.losses))


def measure(
    size_name: str,
    precisions: Sequence[str],
    rounds: int,
    seconds: float,
    device: torch.device,
    clock: Callable[[], float],
    compiled: bool,
) -> list[dict[str, Any]]:
    """A row per precision and way of making our updates: both speeds and their ratio, each as it varied by rounds."""
    size, dataset = SIZES[size_name], random_dataset(SIZES[size_name], device)
    jax_device = jax.devices("gpu" if device.type == "cuda" else "cpu")[0]
    per_call = UPDATES_PER_REPLAY if device.type == "cuda" else 1
    rows = []
    for precision in precisions:
        torch.set_float32_matmul_precision(precision)
        ways = {"eager": (False, False)} | ({"compiled": (False, True)} if compiled else {})  # captured, compiled
        if device.type == "cuda":
            ways |= {f"{name} graph": (True, each) for name, (_, each) in ways.items()}
        ours = {
            name: warm_up(build_updates(load_algorithm("dipole"), size, dataset, *way)) for name, way in ways.items()
        }
        config = ours["eager"].agent.config
        theirs = JaxUpdates(config, size.batch_size, dataset, jax_device, JAX_PRECISIONS[precision])
        speeds: dict[str, list[float]] = {name: [] for name in (*ways, "jax")}
        for _ in tqdm(range(rounds), desc=f"{size_name} {precision}", leave=False, disable=None):
            for name, updates in ours.items():
                speeds[name].append(update_rate(updates, seconds, waiting_for(device), clock))
            theirs_per_second = rate(lambda: theirs.advance(per_call), seconds, theirs.wait, clock)  # noqa: B023
            speeds["jax"].append(theirs_per_second * per_call)
        flops = count_flops(ours["eager"].agent, ours["eager"].next_batch())
        for name in ways:
            ratios = [mine / other for mine, other in zip(speeds[name], speeds["jax"], strict=True)]
            rows.append(
                {
                    "size": size_name,
                    "precision": precision,
                    "mode": name,
                    "megaflop_per_update": round(flops / 1e6, 1),
                    **spread("updates_per_second", speeds[name]),
                    **spread("jax_updates_per_second", speeds["jax"]),
                    **spread("ratio", ratios),
                }
            )
    torch.set_float32_matmul_precision(PRECISIONS[0])
    return rows


def main() -> None:
    parser = CommandParser("python -m benchmarks.against_jax", __doc__)
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=["released", "published", "quickstart"])
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["highest"], help="of products")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each of the two in each round")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of torch; 0 = torch's choice")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--compile", action="store_true", help="measure our compiled updates, too")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: of all threads, for a busy machine")
    parser.add_argument("--csv", type=Path, help="also write the rows there")
    with exit_on_user_error():
        options = parser.parse_args()
        if options.rounds < 1:
            raise UserError(f"--rounds is {options.rounds}, set it to 1 or more")
        device = choose_device(options.device)
        if options.threads:
            torch.set_num_threads(options.threads)
        arguments = options.precision, options.rounds, options.seconds, device, CLOCKS[options.clock], options.compile
        rows = [row for size in options.size for row in measure(size, *arguments)]
        show(rows, device, options.csv, f", jax {jax.__version__}")


if __name__ == "__main__":
    main()
