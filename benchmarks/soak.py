"""Runs the quick start for twelve times its length, evaluating and saving every few seconds, and watches the process.

    python -m benchmarks.soak --out soak                # the whole of it: hours on a laptop
    python -m benchmarks.soak --out soak --minutes 3    # ended by SIGTERM after that time

Memory, open files, threads and child processes are read from /proc (Linux) into <out>/soak.csv, drawn in
<out>/soak.png and printed as a table. The memory is that of the run's process and of its children; a page that they
share counts for each. The run itself is in <out>/runs, the last line says what grew over the second half.
"""

import argparse
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from common.errors import CommandParser, exit_on_user_error
from harness.loggers import read_rows

ROOT = Path(__file__).resolve().parents[1]
QUICK_START, QUICK_START_UPDATES = "exorl/local_sticky_random/cartpole_swingup", 10_000
COLUMNS = {
    "memory_mb": "memory (MB)",
    "child_memory_mb": "memory of children (MB)",
    "files": "open files",
    "threads": "threads",
    "children": "child processes",
}
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
            "memory_mb": memory_mb(process_id),
            "child_memory_mb": sum(map(memory_mb, children)),
            "files": len(os.listdir(f"/proc/{process_id}/fd")),
            "threads": len(os.listdir(f"/proc/{process_id}/task")),
            "children": len(children),
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


def watch(process: subprocess.Popen, options: argparse.Namespace) -> list[dict[str, float]]:
    """Samples of the process until it ends; it is asked to end after options.minutes."""
    rows, started = [], time.monotonic()
    while process.poll() is None:
        measured = measure(process.pid)
        seconds = time.monotonic() - started
        if measured is not None:
            rows.append({"seconds": seconds, **measured})
        if options.minutes is not None and seconds > 60 * options.minutes:
            process.send_signal(signal.SIGTERM)
            process.wait()
        time.sleep(options.seconds)
    return rows


def table(rows: list[dict[str, float]]) -> str:
    """Some of the rows, evenly spaced, as aligned text."""
    chosen = [rows[index] for index in np.linspace(0, len(rows) - 1, min(TABLE_ROWS, len(rows))).astype(int)]
    lines = ["  ".join(["minutes", *COLUMNS.values()])]
    for row in chosen:
        numbers = [f"{row['seconds'] / 60:.1f}", *(f"{row[name]:.0f}" for name in COLUMNS)]
        widths = [len("minutes"), *map(len, COLUMNS.values())]
        lines.append("  ".join(text.rjust(width) for text, width in zip(numbers, widths, strict=True)))
    return "\n".join(lines)


def growth(rows: list[dict[str, float]]) -> str:
    """How much each column grew from the third quarter of the time to the last, by their medians."""
    third, last = rows[len(rows) // 2 : 3 * len(rows) // 4], rows[3 * len(rows) // 4 :]
    if not third or not last:
        return "too short to say what grew"
    changes = {
        title: np.median([row[name] for row in last]) - np.median([row[name] for row in third])
        for name, title in COLUMNS.items()
    }
    return "from the third to the last quarter: " + ", ".join(f"{title} {by:+.1f}" for title, by in changes.items())


def draw(rows: list[dict[str, float]], path: Path) -> None:
    plt.switch_backend("agg")  # no window
    figure, axes = plt.subplots(len(COLUMNS), 1, figsize=(7, 8), sharex=True, layout="constrained")
    for axis, (name, title) in zip(axes, COLUMNS.items(), strict=True):
        axis.plot([row["seconds"] / 60 for row in rows], [row[name] for row in rows])
        axis.set_ylabel(title, fontsize=8)
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("minutes")
    figure.savefig(path, dpi=120)


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
        with open(options.out / "soak.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, ["seconds", *COLUMNS])
            writer.writeheader()
            writer.writerows(rows)
        evaluations = len(read_rows(next(options.out.rglob("eval.csv"))))
        draw(rows, options.out / "soak.png")
        print(table(rows))
        print(f"exit code {process.returncode}, {evaluations} evaluations, {len(rows)} samples; {growth(rows)}")


if __name__ == "__main__":
    main()
