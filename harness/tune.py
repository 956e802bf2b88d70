"""Tunes an algorithm's settings on the default task of a category, with the same number of trials for every method.

    python -m harness.tune --algorithm fql --task ogbench/cube-double-play-singletask-task2-v0 --trials 20

The task names the config below configs/<algorithm>/ to start from (or --config FILE does), and the search space lies
beside it: <name>.search.yaml, or the folder's search.yaml (see harness/tuning/search_space.py). Other flags are fields
of the config, as on the training command line. Needs requirements-tune.txt.

A trial is one training with one value of everything that is searched, the options of act (greediness, num_candidates)
included, and one score: the mean over --training_seeds runs of their last agent, on episodes that start at TUNING_SEED.
No report uses these episodes, nor the training seeds, which start at TUNING_SEED too. An evaluation of a trained agent
at further act options would be one more look at the score, which methods without such options do not get, and some
options (flow_steps) change training as well; so each trial trains anew. The first trial is the config as it is. The
others are those of Optuna's TPE sampler, seeded by --sampler_seed and the trial's number: the same command gives the
same trials. A trial that diverges, or whose values the config refuses together, counts as one. Nothing is pruned.

--folder (default: runs/tuning/<algorithm>/<task>) holds study.json with the finished trials, the trials' run folders,
and at the end

    best.yaml            the config with the best trial's values, --out FILE.yaml puts it elsewhere
    best.tuning.json     beside it, the record that harness/tuning/record.py reads:
        algorithm, base                      what was tuned, and the config that it began from
        trials, trials_failed              the report's column "trials"; how many of them gave no score
        task, score_name                     the report's column "tuned on"
        best_values, best_score, best_trial  searched values by field, their score, their trial's number from 0
        space, sampler, sampler_seed         what was searched, and how
        training_seeds, evaluation_seed, evaluation_episodes, updates, data, versions

The same command continues a study, an interrupted training from its checkpoint; with a larger --trials, it adds trials.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import List, Sequence, Tuple

import torch

from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import make_folder, write_text
from common.names import nearest_names
from envs import load_task
from harness.algorithms import ROOT, Algorithm, load_algorithm
from harness.command_line import parse_config
from harness.config_file import config_to_yaml, load_config, read_mapping
from harness.evaluation import TUNING_SEED
from harness.run_fields import check_run_fields
from harness.tuning.record import record_path
from harness.tuning.search_space import find_search_file, is_search_file, load_space
from harness.tuning.study import PLACE_FIELDS, Study

# ---- What is written ----


def write_best(study: Study, base: Path, out: Path) -> None:
    """Writes the best trial's YAML and its record; PLACE_FIELDS are those of the base config's file, flags aside."""
    import optuna

    number, best = study.best()
    named = [key.value for key, _ in read_mapping(base).value]
    base_config = load_config(study.algorithm.config_class, base)
    places = {name: getattr(base_config, name) for name in PLACE_FIELDS}
    config = dataclasses.replace(study.config, **(places | best.values))
    defaults = study.algorithm.config_class()
    kept = {
        name
        for name, value in dataclasses.asdict(config).items()
        if name in named or name in best.values or (name not in PLACE_FIELDS and value != getattr(defaults, name))
    }
    lines = [line for line in config_to_yaml(config).splitlines() if line.partition(":")[0] in kept]
    count, episodes = len(study.trials), config.eval_episodes
    header = [
        f"# {study.algorithm.name} tuned by harness.tune: the best of {count} trials on {config.task},",
        f"# {study.task.score_name} {best.score:.4g} on {episodes} episodes that no report uses. Begun from {base};",
        f"# searched: {', '.join(study.space)}. All about the study: {record_path(out).name}.",
    ]
    record = {
        "algorithm": study.algorithm.name,
        "base": str(base),
        "trials": count,
        "trials_failed": sum(trial.score is None for trial in study.trials),
        "task": config.task,
        "score_name": study.task.score_name,
        "best_values": best.values,
        "best_score": best.score,
        "best_trial": number,
        "space": study.settings()["space"],
        "sampler": "optuna TPESampler",
        "sampler_seed": study.sampler_seed,
        "training_seeds": list(range(TUNING_SEED, TUNING_SEED + study.training_seeds)),
        "evaluation_seed": TUNING_SEED,
        "evaluation_episodes": episodes,
        "updates": config.offline_steps,
        "data": {name: study.task.identity[name] for name in ("sha256", "source")},
        "versions": {"optuna": optuna.__version__, "torch": torch.__version__},
    }
    make_folder(out.parent, "--out")
    write_text(out, "\n".join([*header, *lines]) + "\n")
    write_text(record_path(out), json.dumps(record, indent=2) + "\n")
    print(f"best: trial {number}, {study.task.score_name} {best.score:.4g}, {best.values}\nwritten: {out}")


# ---- The command ----


def _parse(argv: Sequence[str]) -> Tuple[argparse.Namespace, List[str]]:
    parser = CommandParser("python -m harness.tune", __doc__)
    parser.add_argument("--algorithm", required=True)
    parser.add_argument("--task", help="the task of a config below configs/<algorithm>/: its category's default task")
    parser.add_argument("--config", type=Path, help="the config to begin from, instead of --task")
    parser.add_argument("--search", type=Path, help="the search space (default: beside the config)")
    parser.add_argument("--trials", type=int, required=True, help="the same number for every method of a comparison")
    parser.add_argument("--training_seeds", type=int, default=1, help="runs that a trial's score is the mean of")
    parser.add_argument("--sampler_seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="of the study (default: runs/tuning/<algorithm>/<task>)")
    parser.add_argument("--out", type=Path, help="the YAML file to write (default: best.yaml in the folder)")
    arguments, overrides = parser.parse_known_args(argv)
    for name, smallest in {"trials": 1, "training_seeds": 1, "sampler_seed": 0}.items():
        if getattr(arguments, name) < smallest:
            raise UserError(f"command line: --{name} is {getattr(arguments, name)}; it must be at least {smallest}")
    if (arguments.task is None) == (arguments.config is None):
        raise UserError("command line: give either --task or --config, which names the config to begin from")
    if "--restart" in overrides:
        raise UserError("command line: --restart is not for studies; choose another --folder")
    return arguments, overrides


def config_of_task(algorithm: Algorithm, task: str) -> Path:
    """The config below configs/<algorithm>/ that is for a task. Raises UserError where there is none, or several."""
    folder = ROOT / "configs" / algorithm.name
    files = [path for path in sorted(folder.rglob("*.yaml")) if not is_search_file(path)]
    tasks = {path: load_config(algorithm.config_class, path).task for path in files}
    found = [path for path, its_task in tasks.items() if its_task == task]
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(ROOT)) for path in found)
        raise UserError(f"--task {task}: several configs are for it, choose with --config: {names}")
    if not found:
        hint = nearest_names(task, set(tasks.values()))
        raise UserError(
            f"--task {task}: no config below configs/{algorithm.name}/ is for it{hint}; settings are tuned on the "
            "default task of a category, which its config names"
        )
    return found[0].relative_to(Path.cwd()) if found[0].is_relative_to(Path.cwd()) else found[0]


def require_optuna() -> None:
    """Raises UserError with the command that installs it."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError("optuna is not installed; run: pip install -r requirements-tune.txt") from error


def tune(argv: Sequence[str]) -> Path:
    """`main` without the handling of the user's errors; returns the path of the written YAML. Raises UserError."""
    arguments, overrides = _parse(argv)
    algorithm = load_algorithm(arguments.algorithm)
    base = arguments.config or config_of_task(algorithm, arguments.task)
    config = parse_config(algorithm.config_class, ["--config", str(base), *overrides])
    check_run_fields(config)
    space = load_space(arguments.search or find_search_file(base), config)
    folder = arguments.folder or Path("runs/tuning") / algorithm.name / config.task
    out = arguments.out or folder / "best.yaml"
    if out.suffix != ".yaml" or out.resolve() == base.resolve():
        raise UserError(f"--out {out}: must end in .yaml and be another file than {base}, which the trials begin from")
    require_optuna()
    make_folder(folder, "--folder")
    task = load_task(config.task, config.data_dir, config.collect_episodes, config.in_memory)
    study = Study(algorithm, config, space, task, folder, arguments.sampler_seed, arguments.training_seeds)
    study.load()
    if len(study.trials) > arguments.trials:
        raise UserError(f"{folder}: holds {len(study.trials)} trials, more than --trials {arguments.trials}; raise it")
    study.run(arguments.trials)
    write_best(study, base, out)
    return out


def main() -> None:
    with exit_on_user_error():
        tune(sys.argv[1:])


if __name__ == "__main__":
    main()
