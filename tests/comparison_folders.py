"""Run folders of made-up comparisons, for the tests of reports: no training is needed."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.files import write_rows_csv
from harness import run_files
from harness.algorithms import load_algorithm
from harness.comparison.matrix import Comparison, PlannedRun, Row, Variant
from harness.config import RunConfig, config_to_yaml

STEPS = (250, 500, 750, 1000)
OGBENCH = {"suite": "ogbench", "path": "/data/ogbench/cube-double-play-v0.npz", "source": "official"}
EXORL = {"suite": "exorl", "path": "/data/walker/rnd.h5", "collector": "rnd", "source": "official"}
LOCAL = {"suite": "exorl", "path": "/data/cartpole/local.h5", "collector": "local_x", "source": "locally generated"}
LOCAL |= {"domain": "cartpole", "reward_task": "swingup", "score_range": [0.0, 1000.0], "episode_return_mean": 108.0}
LOCAL |= {"episode_return_best": 343.0, "sha256": "1" * 64, "transitions": 100_000, "episodes": 100}


def walker(task: str) -> dict:
    """Identity of ExORL's official walker data."""
    return EXORL | {"domain": "walker", "reward_task": task, "score_range": [0.0, 1000.0], "sha256": "2" * 64}


def cube_double(number: int) -> dict:
    """Identity of OGBench's official cube-double-play data."""
    return OGBENCH | {"dataset": "cube-double-play", "reward_task": number, "sha256": "3" * 64}


@dataclasses.dataclass(frozen=True)
class Data:
    """A task's name, category, score and the identity of its data set."""

    task: str
    category: str
    score_name: str
    identity: dict


def comparison_of(
    folder: Path, variants: Sequence[Variant], rows: Sequence[Row], data: Sequence[Data], seeds: Sequence[int], **fields
) -> Comparison:
    """The plan: all variants on all tasks with all seeds; fields: of every run or method."""
    runs = []
    of_a_run = {field.name for field in dataclasses.fields(RunConfig)}
    for variant in variants:
        values = {"offline_steps": STEPS[-1]} | fields | variant.overrides
        own = {name: value for name, value in values.items() if name not in of_a_run}
        config = load_algorithm(variant.algorithm).config_class(**own)
        shared = {name: value for name, value in values.items() if name in of_a_run}
        for one in data:
            for seed in seeds:
                run = RunConfig(one.task, seed, variant.label, run_dir=str(folder / "runs"), **shared)
                runs.append(PlannedRun(variant, one.task, one.category, seed, run, config))
    tasks: dict[str, tuple] = {}
    for one in data:
        tasks[one.category] = (*tasks.get(one.category, ()), one.task)
    path = folder / "made_up.yaml"
    return Comparison("made up", "For a test.", path, tuple(runs), tuple(rows), tuple(seeds), tasks, folder)


def fill(
    comparison: Comparison, data: Sequence[Data], score: Callable[[PlannedRun, dict[str, Any]], float | None]
) -> None:
    """Writes the folder of every run whose own cell has a score; score(run, act options) is the final score."""
    by_task = {one.task: one for one in data}
    for run in comparison.runs:
        final = score(run, run.own_cell())
        if final is not None:
            write_run(run, by_task[run.task], final, [(cell, score(run, cell)) for cell in comparison.cells(run)])


def write_run(run: PlannedRun, data: Data, final: float, cells: Sequence[tuple], **environment) -> None:
    """A finished run, whose evaluations rise in a straight line: the mean of the last three is 3/4 of `final`."""
    folder = run.folder
    folder.mkdir(parents=True, exist_ok=True)
    begun = {
        "algorithm": run.variant.algorithm,
        "run_id": "1",
        "data": data.identity,
        "environment": {},
        "compiled": False,
        "stretches": [],
        "device": "cpu",
        "threads": 1,
        "parameters": 1_234,
        "harness_version": 2,
        "platform": "Linux",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
    }
    result = {
        "score_name": data.score_name,
        "offline_score": final / 2,
        "score": final,
        "score_last_evaluations": 0.75 * final,
        "evaluations_averaged": 3,
        "episodes": run.run.eval_episodes,
        "step": run.run.offline_steps + run.run.online_steps,
        "seconds": 360.0,
    }
    (folder / "config.yaml").write_text(config_to_yaml(run.run, run.config))
    (folder / "environment.json").write_text(json.dumps(begun | environment))
    (folder / "result.json").write_text(json.dumps(result))
    evaluations = [{"step": step, "seconds": step / 50, data.score_name: final * step / STEPS[-1]} for step in STEPS]
    write_rows_csv(evaluations, folder / "eval.csv")
    write_rows_csv([{"step": step, "updates_per_second": 50.0} for step in STEPS], folder / "train.csv")
    lines = [
        {**cell, "score": score, "score_std": 0.0, "episodes": run.run.eval_episodes, "network_evaluations": 7}
        for cell, score in cells
    ]
    write_rows_csv(lines, folder / run_files.REEVALUATION)
