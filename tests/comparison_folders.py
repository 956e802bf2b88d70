"""Run folders of made-up comparisons, for the tests of reports: no training is needed."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence

from common.files import write_rows_csv
from harness import run_files
from harness.algorithms import load_algorithm
from harness.comparison.matrix import Comparison, PlannedRun, Row, Variant
from harness.config_file import config_to_yaml

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
    """The plan: all variants on all tasks with all seeds; fields: of every config."""
    runs = []
    for variant in variants:
        config_class = load_algorithm(variant.algorithm).config_class
        for one in data:
            for seed in seeds:
                own = {"task": one.task, "seed": seed, "label": variant.label, "run_dir": str(folder / "runs")}
                config = config_class(**({"offline_steps": STEPS[-1]} | fields | variant.overrides | own))
                runs.append(PlannedRun(variant, one.task, one.category, seed, config))
    tasks: Dict[str, tuple] = {}
    for one in data:
        tasks[one.category] = (*tasks.get(one.category, ()), one.task)
    path = folder / "made_up.yaml"
    return Comparison("made up", "For a test.", path, tuple(runs), tuple(rows), tuple(seeds), tasks, folder)


def fill(
    comparison: Comparison, data: Sequence[Data], score: Callable[[PlannedRun, Dict[str, Any]], Optional[float]]
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
    config = run.config
    begun = {
        "algorithm": run.variant.algorithm,
        "data": data.identity,
        "device": "cpu",
        "threads": 1,
        "parameters": 1_234,
        "platform": "Linux",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
    }
    result = {
        "score_name": data.score_name,
        "offline_score": final / 2,
        "score": final,
        "score_last_evaluations": 0.75 * final,
        "evaluations_averaged": 3,
        "episodes": config.eval_episodes,
        "step": config.offline_steps + config.online_steps,
        "seconds": 360.0,
    }
    (folder / "config.yaml").write_text(config_to_yaml(config))
    (folder / "environment.json").write_text(json.dumps(begun | environment))
    (folder / "result.json").write_text(json.dumps(result))
    evaluations = [{"step": step, data.score_name: final * step / STEPS[-1]} for step in STEPS]
    write_rows_csv(evaluations, folder / "eval.csv")
    write_rows_csv([{"step": step, "updates_per_second": 50.0} for step in STEPS], folder / "train.csv")
    lines = [
        {**cell, "score": score, "score_std": 0.0, "episodes": config.eval_episodes, "network_evaluations": 7}
        for cell, score in cells
    ]
    write_rows_csv(lines, folder / run_files.REEVALUATION)
