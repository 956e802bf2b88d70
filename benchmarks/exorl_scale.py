"""Ten million walker transitions: time and memory of their conversion, and of loading them, read or memory-mapped.

    python -m benchmarks.exorl_scale --scratch /tmp/exorl_scale

The data are ten local episodes repeated 1000 times by hard links, 3 GB with the converted file. Each step is a process
of its own, whose peak memory the kernel reports.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from common.errors import CommandParser, exit_on_user_error
from envs.exorl.collect import collect
from envs.exorl.source import episode_file, read_sidecar
from envs.generation_record import RECORD

DIFFERENT_EPISODES, EPISODES = 10, 10_000
COLLECTOR = "local_repeated"
LOAD = "import sys; from envs import load_task; load_task(sys.argv[1], sys.argv[2], in_memory=sys.argv[3] == 'read')"


def make_set(root: Path) -> None:
    original = collect(root, "walker", "random", DIFFERENT_EPISODES)
    folder = original.with_name(COLLECTOR)
    (folder / "buffer").mkdir(parents=True, exist_ok=True)
    record = {**read_sidecar(original), "policy": "random, repeated", "episodes": EPISODES}
    (folder / RECORD).write_text(json.dumps(record))
    for index in range(EPISODES):
        link = folder / "buffer" / episode_file("walker", index)
        if not link.exists():
            os.link(original / "buffer" / episode_file("walker", index % DIFFERENT_EPISODES), link)


def run(name: str, *command: str) -> None:
    """Runs Python with `command` and prints its time and its peak memory."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name}: failed")
    wall, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    print(f"{name}: {wall:.1f} s, CPU {cpu:.1f} s, peak memory {usage.ru_maxrss * 1024 / 1e9:.2f} GB", flush=True)


def main() -> None:
    parser = CommandParser("python -m benchmarks.exorl_scale", __doc__)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for 3 GB of data")
    with exit_on_user_error():
        root = str(parser.parse_args().scratch)
        make_set(Path(root))
        convert = ("-m", "envs.exorl.tasks", "convert", "walker", "--collector", COLLECTOR, "--data_dir", root)
        run("convert", *convert)
        run("import alone", "-c", "import envs.exorl.tasks")
        for way in ("read", "mapped"):
            run(f"load, {way}", "-c", LOAD, f"exorl/{COLLECTOR}/walker_walk", root, way)


if __name__ == "__main__":
    main()
