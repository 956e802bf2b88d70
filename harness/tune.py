"""Tunes a method's settings on one task, with the same number of trials for every method.

    python -m harness.tune --algorithm fql --task ogbench/cube-double-play-singletask-task2-v0 --trials 20

The search begins from the task's settings (configs/<algorithm>/<suite>.yaml, or --config FILE) in the space of their
`search` table (or --search FILE, {field: values}). Other flags are those of the training command line. Needs
requirements-tune.txt.

A trial is one training with one value of everything that is searched, the options of act (greediness, num_candidates)
included, and one score: the mean over --training_seeds runs of their last agent, on episodes that start at TUNING_SEED.
No report uses these episodes, nor the training seeds, which start at TUNING_SEED too. The first trial is the settings
as they are. The others are those of Optuna's TPE sampler, seeded by --sampler_seed and the trial's number: the same
command gives the same trials. A trial that diverges, or whose values the config refuses together, counts as one.
Nothing is pruned.

--folder (default: runs/tuning/<algorithm>/<task>) holds journal.log, which optuna-dashboard opens, the trials' run
folders, and at the end best.yaml (or --out FILE.yaml), the settings with the best trial's values, and beside it
best.tuning.json: what was searched, on what, and how it ended. The same command continues a study, an interrupted
training from its checkpoint; with a larger --trials, it adds trials. docs/tuning.md.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from common.errors import CommandParser, UserError, check_at_least, exit_on_user_error
from common.files import make_folder, readable, write_text
from envs import load_task
from harness.algorithms import load_algorithm
from harness.command_line import parse_command
from harness.config import flat
from harness.config_file import as_yaml, places_by_key, read_mapping
from harness.evaluation import TUNING_SEED
from harness.tuning.record import record_path


def write_best(study, out: Path) -> None:
    """Writes the settings of the best trial and the study's record beside them."""
    import optuna

    from harness.tuning.study import PLACE_FIELDS

    number, best = study.best()
    settings, values = study.settings, best.params
    config = dataclasses.replace(settings.config, **values)
    fields = flat(settings.run, config).items()
    lines = [f"{name}: {as_yaml(value)}" for name, value in fields if name not in PLACE_FIELDS]
    finished, run = study.finished(), settings.run
    score = f"{study.task.score_name} {best.value:.4g}"
    header = [
        f"# {study.algorithm.name} tuned by harness.tune: the best of {len(finished)} trials on {run.task}, {score}.",
        f"# searched: {', '.join(study.space)}. All about the study: {record_path(out).name}.",
    ]
    record = {
        "algorithm": study.algorithm.name,
        "base": [readable(path) for path in settings.files],
        "trials": len(finished),
        "trials_failed": sum(trial.value is None for trial in finished),
        "task": run.task,
        "score_name": study.task.score_name,
        "best_values": values,
        "best_score": best.value,
        "best_trial": number,
        "space": study.must_agree()["space"],
        "sampler_seed": study.sampler_seed,
        "training_seeds": list(range(TUNING_SEED, TUNING_SEED + study.training_seeds)),
        "evaluation_seed": TUNING_SEED,
        "evaluation_episodes": run.eval_episodes,
        "updates": run.offline_steps,
        "data": {name: study.task.identity[name] for name in ("sha256", "source")},
        "versions": {"optuna": optuna.__version__, "torch": torch.__version__},
    }
    make_folder(out.parent, "--out")
    write_text(out, "\n".join([*header, *lines]) + "\n")
    write_text(record_path(out), json.dumps(record, indent=2) + "\n")
    print(f"best: trial {number}, {score}, {values}\nwritten: {out}")


# ---- The command ----


def tune(argv: Sequence[str]) -> Path:
    """`main` without the handling of the user's errors; returns the path of the written YAML. Raises UserError."""
    parser = CommandParser("python -m harness.tune", __doc__)
    parser.add_argument("--algorithm", required=True)
    parser.add_argument("--search", type=Path, help="the search space (default: the settings' `search` table)")
    parser.add_argument("--trials", type=int, required=True, help="the same number for every method of a comparison")
    parser.add_argument("--training_seeds", type=int, default=1, help="runs that a trial's score is the mean of")
    parser.add_argument("--sampler_seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="of the study (default: runs/tuning/<algorithm>/<task>)")
    parser.add_argument("--out", type=Path, help="the YAML file to write (default: best.yaml in the folder)")
    arguments, others = parser.parse_known_args(argv)
    check_at_least(arguments, trials=1, training_seeds=1)
    for flag in ("--restart", "--seeds", "--show"):
        if flag in others:
            raise UserError(f"command line: {flag} is not for studies; choose another --folder for another study")
    algorithm = load_algorithm(arguments.algorithm)
    settings = parse_command(algorithm.config_class, others).settings
    run = settings.run
    try:
        from harness.tuning.study import Study, read_space
    except ImportError as error:
        raise UserError("optuna is not installed; run: pip install -r requirements-tune.txt") from error
    search = arguments.search
    entries = places_by_key(search, read_mapping(search)) if search else settings.search
    if not entries:
        files = ", ".join(readable(path) for path in settings.files) or "the defaults"
        raise UserError(f"{files}: there is no `search` table for {run.task}; write one, or give --search FILE")
    space = read_space(entries, settings)
    folder = arguments.folder or Path("runs/tuning") / algorithm.name / run.task
    out = arguments.out or folder / "best.yaml"
    if out.suffix != ".yaml" or out.resolve() in [path.resolve() for path in settings.files]:
        raise UserError(f"--out {out}: must end in .yaml and be none of the files that the trials begin from")
    task = load_task(run.task, run.data_dir, run.collect_episodes, run.in_memory, run.max_episode_steps)
    if task.make_env is None:
        raise UserError(f"{task.name}: has no environment, so that there is no score to tune by")
    make_folder(folder, "--folder")
    study = Study(algorithm, settings, space, task, folder, arguments.sampler_seed, arguments.training_seeds)
    if len(study.finished()) > arguments.trials:
        count = len(study.finished())
        raise UserError(f"{folder}: holds {count} trials, more than --trials {arguments.trials}; raise it")
    study.run(arguments.trials)
    write_best(study, out)
    return out


def main() -> None:
    with exit_on_user_error():
        tune(sys.argv[1:])


if __name__ == "__main__":
    main()
