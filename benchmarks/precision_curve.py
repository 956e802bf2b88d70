"""What faster matrix products do to learning: DIPOLE's quick start in float32, tf32 and bf16, curves over seeds.

    python -m benchmarks.precision_curve --device cpu --seeds 0 1 2 3 4 --out FOLDER
    python -m benchmarks.precision_curve --device cpu --seeds 0 1 2 3 4 --out FOLDER --report_only

On a CPU the products are emulated (benchmarks/rounded_products.py), on a GPU float32 and tf32 are torch's own switch
(`matmul_precision`). Runs are whole ones, in <out>/runs, without control and report; the same command continues what
was stopped, and more seeds join those that are there. Writes curve.csv, a row for each precision and evaluation, and
curve.png into <out>, and prints the results: means over the seeds with their 95% bootstrap intervals. With
`--report_only` nothing is trained, and the curves end at the last evaluation that all runs have.
"""

import argparse
import contextlib
import dataclasses
from pathlib import Path
from typing import Any, ContextManager, Dict, List, Sequence

import numpy as np
import torch

from algorithms.dipole import DIPOLEConfig, train
from benchmarks.rounded_products import FORMATS, RoundedProducts
from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import make_folder, write_rows_csv
from harness.algorithms import ROOT
from harness.config_file import load_config
from harness.devices import choose_device
from harness.loggers import read_rows
from harness.measurement.table import format_rows, machine
from harness.plots import plot_lines
from harness.run_fields import check_run_fields
from harness.run_folder import SCORE_EVALUATIONS, run_path
from harness.score_statistics import interval, intervals, mean

EVALUATIONS = 10  # of a run
EXACT = "float32"


@dataclasses.dataclass(frozen=True)
class Precision:
    """A line of the figure: torch's switch, or the emulation of a format."""

    name: str
    matmul_precision: str = "highest"
    emulated: bool = False

    @property
    def label(self) -> str:
        return f"{self.name}, emulated" if self.emulated else self.name

    def products(self) -> ContextManager:
        """The block in which matrix products have this precision, once torch's switch is set."""
        return RoundedProducts(self.name) if self.emulated else contextlib.nullcontext()


def precisions_on(device: torch.device) -> List[Precision]:
    """float32 first; on a GPU what torch offers there, on a CPU the emulated formats."""
    if device.type == "cuda":
        return [Precision(EXACT), Precision("tf32", "high")]
    return [Precision(EXACT), *(Precision(name, emulated=True) for name in FORMATS)]


def configs_of(precision: Precision, options: argparse.Namespace) -> List[DIPOLEConfig]:
    """The quick start with these options, a config for each seed. Raises UserError for values out of range."""
    interval = max(1, options.updates // EVALUATIONS)
    config = dataclasses.replace(
        load_config(DIPOLEConfig, ROOT / "configs" / "dipole" / "quickstart.yaml"),
        run_dir=str(options.out / "runs"),
        label=precision.label.replace(", ", "_"),
        data_dir=str(options.data_dir),
        device=options.device,
        matmul_precision=precision.matmul_precision,
        offline_steps=options.updates,
        eval_interval=interval,
        checkpoint_interval=interval,
        eval_episodes=options.episodes,
        eval_environments=options.episodes,
        final_report=(),
    )
    check_run_fields(config)
    return [dataclasses.replace(config, seed=seed) for seed in options.seeds]


def returns_of(configs: Sequence[DIPOLEConfig]) -> Dict[int, List[float]]:
    """{updates: the returns of the seeds} at the evaluations that all the runs have."""
    runs = [
        {int(row["step"]): float(row["return"]) for row in read_rows(run_path(config) / "eval.csv")}
        for config in configs
    ]
    return {step: [run[step] for run in runs] for step in runs[0] if all(step in run for run in runs)}


def curves_of(configs: Dict[Precision, List[DIPOLEConfig]]) -> Dict[Precision, Dict[int, List[float]]]:
    """`returns_of` each precision, at the evaluations that all of them have. Raises UserError where there is none."""
    curves = {precision: returns_of(runs) for precision, runs in configs.items()}
    steps = [step for step in curves[next(iter(curves))] if all(step in curve for curve in curves.values())]
    if not steps:
        raise UserError(
            f"{next(iter(configs.values()))[0].run_dir}: not every run has an evaluation; leave out --report_only"
        )
    return {precision: {step: curve[step] for step in steps} for precision, curve in curves.items()}


def curve_rows(label: str, seeds: Sequence[int], curve: Dict[int, List[float]]) -> List[Dict[str, Any]]:
    """A row for each evaluation of a curve: mean and interval (NaN for a single seed), then each seed's return."""
    low, high = intervals([np.array(list(curve.values()))], mean)
    return [
        {
            "precision": label,
            "updates": updates,
            **rounded({"mean": np.mean(returns), "low": low[index], "high": high[index]}),
            **rounded({f"seed_{seed}": value for seed, value in zip(seeds, returns, strict=True)}),
        }
        for index, (updates, returns) in enumerate(curve.items())
    ]


def rounded(values: Dict[str, float]) -> Dict[str, float]:
    return {name: round(float(value), 2) for name, value in values.items()}


def summary(label: str, curve: Dict[int, List[float]], exact: Dict[int, List[float]]) -> Dict[str, str]:
    """A row of the printed table; differences are from the float32 run of the same seed."""
    steps = list(curve)[-SCORE_EVALUATIONS:]
    last, exact_last = (np.mean([each[step] for step in steps], axis=0) for each in (curve, exact))
    return {
        "precision": label,
        f"after {steps[-1]} updates": with_interval(np.array(curve[steps[-1]])),
        f"mean of the last {len(steps)} evaluations": with_interval(last),
        "difference from float32": with_interval(last - exact_last) if label != EXACT else "",
    }


def with_interval(values: np.ndarray) -> str:
    if len(values) < 2:
        return f"{values.mean():.0f}"
    low, high = interval([values])
    return f"{values.mean():.0f} ({low:.0f} to {high:.0f})"


def parse() -> argparse.Namespace:
    parser = CommandParser("python -m benchmarks.precision_curve", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, the table and the figure")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--updates", type=int, default=10_000, help="of a run, which is evaluated ten times")
    parser.add_argument("--episodes", type=int, default=10, help="of an evaluation")
    parser.add_argument("--data_dir", type=Path, default=ROOT / "data", help="of the quick start's data")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--report_only", action="store_true", help="draw the runs as they are, train nothing")
    options = parser.parse_args()
    if len(set(options.seeds)) < len(options.seeds):
        raise UserError("command line: --seeds has a seed twice, give each once")
    return options


def report(configs: Dict[Precision, List[DIPOLEConfig]], options: argparse.Namespace) -> List[Dict[str, str]]:
    """Writes curve.csv and curve.png of the runs as they are; returns the table's rows. Raises UserError."""
    curves = curves_of(configs)
    rows = [row for each, curve in curves.items() for row in curve_rows(each.label, options.seeds, curve)]
    exact = next(iter(curves.values()))
    lines = {
        each.label: [(row["mean"], row["low"], row["high"]) for row in rows if row["precision"] == each.label]
        for each in curves
    }
    write_rows_csv(rows, options.out / "curve.csv")
    plot_lines(list(exact), lines, options.out / "curve.png", "updates", "return", reference_lines={})
    return [summary(each.label, curve, exact) for each, curve in curves.items()]


def main() -> None:
    with exit_on_user_error():
        options = parse()
        device = choose_device(options.device)
        configs = {precision: configs_of(precision, options) for precision in precisions_on(device)}
        if not options.report_only:
            make_folder(options.out, "--out")
            for precision, runs in configs.items():
                with precision.products():
                    train(runs)
        table = report(configs, options)
        print(f"{machine(device)}, {len(options.seeds)} seeds\n\n{format_rows(table)}")


if __name__ == "__main__":
    main()
