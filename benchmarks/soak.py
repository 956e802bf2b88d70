"""Runs the quick start for twelve times its length, evaluating and saving every few seconds, and watches the process.

    python -m benchmarks.soak --out soak                # the whole of it: hours on a laptop
    python -m benchmarks.soak --out soak --minutes 3    # ended by SIGTERM after that time

Memory, open files, threads and child processes are read from /proc (Linux) into <out>/soak.csv, drawn in
<out>/soak.png and printed as a table. The memory is that of the run's process and of its children; a page that they
share counts for each. The run itself is in <out>/runs, the last line says what grew over the second half.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import CommandParser, exit_on_user_error
from harness import run_files
from harness.loggers import read_rows

ROOT = Path(__file__).resolve().parents[1]
QUICK_START, QUICK_START_UPDATES = "exorl/local_sticky_random/cartpole_swingup", 10_000
TABLE_ROWS = 12


def children_of(process_id: int) -> list[int]:
    """All processes below a process."""
    below: list[int] = []
    for task in Path(f"/proc/{process_id}/task").iterdir():
        for child in (task / "children").read_text().split():
            below += [int(child), *children_of(int(child))]
    return below


def memory_mb(process_id: int) -> float:
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(process_id: int) -> dict[str, float] | None:
    """What /proc says of a process now; None once it has ended, or while a child of it ends."""
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
        return None


def command(options: argparse.Namespace) -> list[str]:
    """The quick start, longer, without its sweep, and with the environments in a process."""
    changes = {
        "run_dir": options.out / "runs",
        "offline_steps": options.factor * QUICK_START_UPDATES,
        "log_interval": options.interval,
        "eval_interval": options.interval,
        "checkpoint_interval": options.interval,
        "eval_episodes": 4,
        "eval_environments": 4,
        "eval_workers": 1,
        "sweep": "[]",
        "data_dir": options.data_dir,
    }
    flags = [text for name, value in changes.items() for text in (f"--{name}", str(value))]
    return [sys.executable, str(ROOT / "algorithms" / "dipole.py"), "--task", QUICK_START, *flags]


def watch(process: subprocess.Popen, options: argparse.Namespace) -> pd.DataFrame:
    """Samples of the process until it ends; it is asked to end after options.minutes."""
    rows, started = [], time.monotonic()
    while process.poll() is None:
        measured = measure(process.pid)
        minutes = (time.monotonic() - started) / 60
        if measured is not None:
            rows.append({"minutes": minutes, **measured})
        if options.minutes is not None and minutes > options.minutes:
            process.send_signal(signal.SIGTERM)
            process.wait()
        time.sleep(options.seconds)
    return pd.DataFrame(rows)


def growth(rows: pd.DataFrame) -> str:
    """How much each column grew from the third quarter of the time to the last, by their medians."""
    third, last = rows[len(rows) // 2 : 3 * len(rows) // 4], rows[3 * len(rows) // 4 :]
    if third.empty or last.empty:
        return "too short to say what grew"
    changes = (last.median() - third.median()).drop("minutes")
    return "from the third to the last quarter: " + ", ".join(f"{name} {by:+.1f}" for name, by in changes.items())


def main() -> None:
    parser = CommandParser("python -m benchmarks.soak", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the run and the figures")
    parser.add_argument("--factor", type=int, default=12, help="times the quick start's length")
    parser.add_argument("--interval", type=int, default=500, help="updates between evaluations and checkpoints")
    parser.add_argument("--minutes", type=float, help="end it earlier, by SIGTERM")
    parser.add_argument("--seconds", type=float, default=2.0, help="between two samples")
    parser.add_argument("--data_dir", type=Path, default=ROOT / "data", help="of the quick start's data")
    with exit_on_user_error():
        options = parser.parse_args()
        options.out.mkdir(parents=True, exist_ok=True)
        with open(options.out / "run.log", "w") as log:
            process = subprocess.Popen(command(options), stdout=log, stderr=subprocess.STDOUT)
            rows = watch(process, options)
        rows.to_csv(options.out / "soak.csv", index=False)
        axes = rows.plot(x="minutes", subplots=True, figsize=(7, 8), ylim=(0, None), legend=False, backend="matplotlib")
        for axis, name in zip(axes, rows.columns[1:], strict=True):
            axis.set_ylabel(name, fontsize=8)
        axes[0].figure.savefig(options.out / "soak.png", dpi=120)
        evaluations = len(read_rows(next(options.out.rglob(run_files.EVAL_LOG))))
        shown = np.linspace(0, len(rows) - 1, min(TABLE_ROWS, len(rows))).astype(int)
        print(rows.iloc[shown].round(1).to_string(index=False))
        print(f"exit code {process.returncode}, {evaluations} evaluations, {len(rows)} samples; {growth(rows)}")


if __name__ == "__main__":
    main()
