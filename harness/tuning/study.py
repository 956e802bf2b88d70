"""A study: trials of an algorithm's settings, what each is scored on, and how it is continued (harness/tune.py)."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from common.errors import UserError
from common.files import write_text
from envs.task import Task
from harness.algorithms import Algorithm
from harness.devices import choose_device
from harness.evaluation import TUNING_SEED, evaluate
from harness.run_fields import FREE_FIELDS
from harness.run_folder import read_json, run_path
from harness.training.one_run import Diverged
from harness.tuning.search_space import Space

STUDY_FILE = "study.json"
PLACE_FIELDS = (*FREE_FIELDS, "label", "seed", "final_report", "threads")  # not part of what is tuned


class RefusedValues(ValueError):
    """The config refuses a trial's values together; alone they were checked before the study."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A finished trial: its values by field, and its score, None where it diverged or the config refused them."""

    values: Dict[str, Any]
    score: Optional[float]


@dataclasses.dataclass
class Study:
    """What one command searches: `config` is the first trial's; the finished trials are in folder/study.json."""

    algorithm: Algorithm
    config: Any
    space: Space
    task: Task
    folder: Path
    sampler_seed: int
    training_seeds: int
    trials: List[Trial] = dataclasses.field(default_factory=list)

    def settings(self) -> dict:
        """What must be equal for a study to be continued, as JSON."""
        fields = {name: value for name, value in dataclasses.asdict(self.config).items() if name not in PLACE_FIELDS}
        settings = {
            "algorithm": self.algorithm.name,
            "config": fields,
            "space": {name: dimension.as_json() for name, dimension in self.space.items()},
            "sampler_seed": self.sampler_seed,
            "training_seeds": self.training_seeds,
            "data": self.task.identity["sha256"],
        }
        return json.loads(json.dumps(settings))

    def load(self) -> None:
        """Reads the finished trials. Raises UserError where the folder holds another study."""
        path = self.folder / STUDY_FILE
        if not path.exists():
            return
        stored, settings = read_json(path, needed=("settings", "trials")), self.settings()
        differing = [name for name in settings if stored["settings"].get(name) != settings[name]]
        if differing:
            raise UserError(f"{path}: this study has another {', '.join(differing)}; choose another --folder")
        self.trials = [Trial(**trial) for trial in stored["trials"]]

    def save(self) -> None:
        content = {"settings": self.settings(), "trials": [dataclasses.asdict(trial) for trial in self.trials]}
        write_text(self.folder / STUDY_FILE, json.dumps(content, indent=2) + "\n")

    def run(self, trials: int) -> None:
        """Finishes trials until there are `trials`."""
        progress = tqdm(total=trials, initial=len(self.trials), desc="tuning", unit="trial", disable=None)
        while len(self.trials) < trials:
            number, values = len(self.trials), self.next_values()
            known = [trial.score for trial in self.trials if trial.values == values]
            print(f"trial {number}: {values}" + (", as an earlier one" if known else ""), flush=True)
            score = known[0] if known else self.score(number, values)  # equal runs give equal scores
            self.trials.append(Trial(values, score))
            self.save()
            print(f"trial {number}: " + ("no score" if score is None else f"{self.task.score_name} {score:.4g}"))
            progress.update()
        progress.close()

    def next_values(self) -> Dict[str, Any]:
        """The values of the next trial: a function of the settings and of the finished trials only."""
        if not self.trials:
            return {name: getattr(self.config, name) for name in self.space}
        return suggest(self.space, self.trials, self.sampler_seed)

    def score(self, number: int, values: Dict[str, Any]) -> Optional[float]:
        """Trains and evaluates a trial; None where it diverges or the config refuses its values together."""
        seeds, scores = range(TUNING_SEED, TUNING_SEED + self.training_seeds), []
        try:
            configs = [self.trial_config(number, seed, values) for seed in seeds]
            self.algorithm.train(configs)
            for config in configs:
                agent = self.algorithm.agent_class.load(run_path(config)).to(choose_device(config.device))
                result = evaluate(
                    agent,
                    self.task.make_env,
                    self.config.eval_episodes,
                    TUNING_SEED,
                    self.config.eval_environments,
                    self.config.eval_workers,
                )
                scores.append(result.scores(self.task.score_name).mean())
        except (Diverged, FloatingPointError, RefusedValues) as error:
            print(f"trial {number}: {error}", file=sys.stderr)
            return None
        return math.fsum(scores) / len(scores)

    def trial_config(self, number: int, seed: int, values: Dict[str, Any]) -> Any:
        """The config of one run of a trial; its own evaluation, on other episodes, is never read and kept short."""
        changes = {
            "run_dir": str(self.folder),
            "label": f"trial_{number:04d}",
            "seed": seed,
            "eval_interval": self.config.offline_steps,
            "eval_episodes": 1,
            "eval_environments": 1,
            "final_report": (),
            "wandb_mode": "disabled",
        }
        try:
            return dataclasses.replace(self.config, **(changes | values))
        except ValueError as error:
            raise RefusedValues(error) from error

    def best(self) -> Tuple[int, Trial]:
        """Number and content of the best trial, the first of equals. Raises UserError where all diverged."""
        scored = [(number, trial) for number, trial in enumerate(self.trials) if trial.score is not None]
        if not scored:
            raise UserError(f"{self.folder}: none of {len(self.trials)} trials gave a score (see their messages above)")
        return max(scored, key=lambda each: each[1].score)


def suggest(space: Space, trials: Sequence[Trial], sampler_seed: int) -> Dict[str, Any]:
    """The values that Optuna's TPE sampler proposes after these trials.

    The study is built anew from its trials, and the sampler seeded by their number, because a sampler's random state is
    in none of Optuna's storages: a study that was continued would draw its first values again.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = int(np.random.SeedSequence([sampler_seed, len(trials)]).generate_state(1)[0])
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    distributions = {name: dimension.distribution() for name, dimension in space.items()}
    for trial in trials:
        complete = trial.score is not None
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.FAIL,
                params={name: dimension.to_parameter(trial.values[name]) for name, dimension in space.items()},
                distributions=distributions,
                value=trial.score,
            )
        )
    parameters = study.ask(distributions).params
    return {name: dimension.from_parameter(parameters[name]) for name, dimension in space.items()}
