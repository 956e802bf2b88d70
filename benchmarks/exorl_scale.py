"""Ten million walker transitions: memory and time of conversion, loading and training, in memory and memory-mapped.

python -m benchmarks.exorl_scale --scratch /tmp/exorl_scale

The data are ten local episodes repeated 1000 times by hard links, 3 GB with the converted file. Each step is a process
of its own, whose peak memory the kernel reports. An existing conversion in the scratch folder is used again.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from algorithms.dipole import DIPOLE, DIPOLEConfig
from common.errors import CommandParser, exit_on_user_error
from envs import load_task
from envs.exorl.collect import collect
from envs.exorl.source import episode_file, read_sidecar
from envs.generation_record import RECORD
from envs.task import file_sha256

DIFFERENT_EPISODES = 10
SETS = {"local_repeated": 10_000, "local_small": 100}  # collector: episodes
ROUNDS, UPDATES = 7, 40  # the data sets take turns, so that other work on the machine meets all of them
SIZES = {"actor_hidden_dims": (128, 128), "value_hidden_dims": (128, 128), "flow_steps": 5}
BATCH_SIZES = (256, 1024)
RUN = ["--offline_steps", "1000", "--eval_interval", "1000", "--checkpoint_interval", "1000", "--eval_episodes", "1"]
RUN += ["--sweep", "[]"]


def make_sets(root: Path) -> None:
    original = collect(root, "walker", "random", DIFFERENT_EPISODES)
    files = [original / "buffer" / episode_file("walker", index) for index in range(DIFFERENT_EPISODES)]
    for collector, episodes in SETS.items():
        folder = original.with_name(collector)
        (folder / "buffer").mkdir(parents=True, exist_ok=True)
        record = {**read_sidecar(original), "policy": "random, repeated", "episodes": episodes}
        (folder / RECORD).write_text(json.dumps(record))
        for index in range(episodes):
            link = folder / "buffer" / episode_file("walker", index)
            if not link.exists():
                os.link(files[index % DIFFERENT_EPISODES], link)


def run(name: str, command: list[str]) -> None:
    """Runs `command` and prints its time and its peak memory."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name}: failed")
    wall, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    print(f"{name}: {wall:.0f} s, CPU {cpu:.0f} s, peak memory {usage.ru_maxrss * 1024 / 1e9:.2f} GB", flush=True)


def resident() -> dict[str, float]:
    """GB of this process's memory that is its own, and that is pages of files, which the system may drop."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) * 1024 / 1e9 for name in ("RssAnon", "RssFile")}


def load(root: Path, collector: str, in_memory: bool):
    start, cpu = time.perf_counter(), time.process_time()
    task = load_task(f"exorl/{collector}/walker_walk", str(root), in_memory=in_memory)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"  {len(task.dataset)} transitions loaded in {wall:.1f} s, CPU {cpu:.1f} s; {resident()}", flush=True)
    return task


def part_load(root: Path, in_memory: bool) -> None:
    """Loads and trains for a while: the peak memory without the harness's."""
    start = time.perf_counter()
    task = load(root, "local_repeated", in_memory)
    path = Path(task.identity["path"])
    start = time.perf_counter()
    _, kind = file_sha256(path)
    print(f"  hash of the {path.stat().st_size / 1e9:.2f} GB file ({kind}): {time.perf_counter() - start:.1f} s")
    agent, generator = DIPOLE(DIPOLEConfig(**SIZES), 24, 6), torch.Generator().manual_seed(0)
    for _ in range(UPDATES):
        agent.update(task.dataset.sample(BATCH_SIZES[0], generator))
    print(f"  after {UPDATES} updates {resident()}")


def part_speed(root: Path) -> None:
    """CPU time of an update with its minibatch, on a small data set, on the large one and on the mapped large one."""
    sets = {
        "small": load(root, "local_small", True).dataset,
        "large": load(root, "local_repeated", True).dataset,
        "large, mapped": load(root, "local_repeated", False).dataset,
    }
    for batch_size in BATCH_SIZES:
        agent, generator = DIPOLE(DIPOLEConfig(**SIZES), 24, 6), torch.Generator().manual_seed(0)
        rates = {name: {"updates": [], "minibatches": []} for name in sets}
        for _ in range(ROUNDS):
            for name, dataset in sets.items():
                for label, repeats in (("updates", UPDATES), ("minibatches", 10 * UPDATES)):
                    start = time.process_time()
                    for _ in range(repeats):
                        batch = dataset.sample(batch_size, generator)
                        if label == "updates":
                            agent.update(batch)
                    rates[name][label].append(repeats / (time.process_time() - start))
        for name, measured in rates.items():
            medians = {label: f"{statistics.median(values):.0f}" for label, values in measured.items()}
            ratio = statistics.median(measured["updates"]) / statistics.median(rates["small"]["updates"])
            print(f"  batch {batch_size}, {name}: {medians} per CPU second, updates {ratio:.2f} of small")


@exit_on_user_error()
def main() -> None:
    parser = CommandParser("python -m benchmarks.exorl_scale", __doc__)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for 3 GB of data")
    parser.add_argument("--part", choices=("load", "map", "speed"), help="one step in this process")
    options = parser.parse_args()
    root: Path = options.scratch
    torch.set_num_threads(1)
    if options.part == "speed":
        return part_speed(root)
    if options.part is not None:
        return part_load(root, in_memory=options.part == "load")
    make_sets(root)
    data = ["--data_dir", str(root)]
    for collector in SETS:
        if not (root / "walker" / f"{collector}.h5").exists():
            convert = ["-m", "envs.exorl.tasks", "convert", "walker", "--collector", collector, *data]
            run(f"convert {collector}", convert)
    this = ["-m", "benchmarks.exorl_scale", "--scratch", str(root), "--part"]
    run("load and train", [*this, "load"])
    run("map and train", [*this, "map"])
    run("compare speeds", [*this, "speed"])
    dipole = ["algorithms/dipole.py", "--task", "exorl/local_repeated/walker_walk", "--collect_episodes", "0", *data]
    run("algorithms/dipole.py", [*dipole, "--run_dir", str(root / "runs"), *RUN])


if __name__ == "__main__":
    main()
