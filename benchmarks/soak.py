"""Runs the quick start for twelve times its length, evaluating and saving every few seconds, and watches the process.

    python -m benchmarks.soak --out soak                # the whole of it: hours on a laptop
    python -m benchmarks.soak --out soak --minutes 3    # ended by SIGTERM after that time

Memory, open files, threads and child processes are read from /proc (Linux) into <out>/soak.csv and drawn in
<out>/soak.png. The memory is that of the run's process and of its children; a page that they share counts for each.
The run is in <out>/runs; the last line says what grew from the third quarter of the time to the last.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from common.errors import CommandParser, exit_on_user_error

ROOT = Path(__file__).resolve().parents[1]
QUICK_START, UPDATES = "exorl/local_sticky_random/cartpole_swingup", 12 * 10_000
INTERVAL = 500  # updates between evaluations and checkpoints
SECONDS = 2.0  # between two samples


def command(out: Path) -> list[str]:
    """The quick start, longer, without its sweep, and with the environments in a process."""
    changes = {"run_dir": out / "runs", "data_dir": ROOT / "data", "offline_steps": UPDATES, "sweep": "[]"}
    changes |= dict.fromkeys(("log_interval", "eval_interval", "checkpoint_interval"), INTERVAL)
    changes |= {"eval_episodes": 4, "eval_environments": 4, "eval_workers": 1}
    flags = [text for name, value in changes.items() for text in (f"--{name}", str(value))]
    return [sys.executable, str(ROOT / "algorithms" / "dipole.py"), "--task", QUICK_START, *flags]


def children_of(process_id: int) -> list[int]:
    """All processes below a process."""
    tasks = Path(f"/proc/{process_id}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return children + [below for child in children for below in children_of(child)]


def memory_mb(process_id: int) -> float:
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(process_id: int) -> dict[str, float]:
    """What /proc says of a process now; nothing once it has ended, or while a child of it ends."""
    try:
        children = children_of(process_id)
        return {
            "memory (MB)": memory_mb(process_id),
            "memory of children (MB)": sum(map(memory_mb, children)),
            "open files": len(os.listdir(f"/proc/{process_id}/fd")),
            "threads": len(os.listdir(f"/proc/{process_id}/task")),
            "child processes": len(children),
        }
    except (OSError, IndexError):
        return {}


def watch(process: subprocess.Popen, limit: float | None) -> pd.DataFrame:
    """Samples of the process until it ends; it is asked to end after `limit` minutes."""
    rows, started = [], time.monotonic()
    while process.poll() is None:
        minutes = (time.monotonic() - started) / 60
        rows.append({"minutes": minutes, **measure(process.pid)})
        if limit is not None and minutes > limit:
            process.send_signal(signal.SIGTERM)
            process.wait()
        time.sleep(SECONDS)
    return pd.DataFrame(rows).dropna()


def main() -> None:
    parser = CommandParser("python -m benchmarks.soak", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the run and the figures")
    parser.add_argument("--minutes", type=float, help="end it earlier, by SIGTERM")
    with exit_on_user_error():
        options = parser.parse_args()
        options.out.mkdir(parents=True, exist_ok=True)
        with open(options.out / "run.log", "w") as log:
            process = subprocess.Popen(command(options.out), stdout=log, stderr=subprocess.STDOUT)
            rows = watch(process, options.minutes)
        rows.to_csv(options.out / "soak.csv", index=False)
        axes = rows.plot(x="minutes", subplots=True, figsize=(7, 8), ylim=(0, None), backend="matplotlib")
        axes[0].figure.savefig(options.out / "soak.png", dpi=120)
        quarter = len(rows) // 4
        growth = (rows[3 * quarter :].median() - rows[2 * quarter : 3 * quarter].median()).drop("minutes")
        print(f"exit code {process.returncode}; from the third quarter to the last:\n{growth.round(1).to_string()}")


if __name__ == "__main__":
    main()
