"""A study: the space of a method's settings, trials of it in Optuna's journal, and what each is scored on.

A space is as a settings file's `search` table has it, for single values of the method's own fields:

    inverse_temperature: {low: 0.1, high: 100.0, log: true}   # a range; log: equal ratios are equally likely
    num_candidates: [1, 4, 16]                                # choices

The settings' own values must lie in it, because they are the first trial of every study.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from common.errors import UserError
from envs.task import Task
from harness.algorithms import Algorithm
from harness.config import MACHINE_OPTIONS, Settings, check_values, flat
from harness.config_file import decode, form_of, named, read_keys, shown, unknown_field
from harness.devices import choose_device
from harness.divergence import Diverged
from harness.evaluation import TUNING_SEED, evaluate
from harness.run_folder import load_agent, load_run_task, run_path, with_chunks
from harness.train import train_run

JOURNAL = "journal.log"
PLACE_FIELDS = (*MACHINE_OPTIONS, "seed")  # not part of what is tuned
Space = dict[str, BaseDistribution]


# ---- The space ----


def read_space(entries: Mapping[str, tuple[yaml.Node, str]], settings: Settings) -> Space:
    """The space of {field: (node, where)} around the settings. Raises UserError."""
    config = settings.config
    kinds = {field.name: field.type for field in dataclasses.fields(config)}
    space: Space = {}
    for name, (node, where) in entries.items():
        if name not in kinds:
            raise unknown_field(where, name, type(config).__name__, kinds)
        if form_of(kinds[name])[0] == "list":
            raise UserError(f"{where}: {name} is a list, search single values")
        space[name], ends = _distribution(name, kinds[name], node, where)
        with named(f"{where}: {name}"):
            for value in ends:
                check_values(settings.run, dataclasses.replace(config, **{name: value}))
        own, is_range = getattr(config, name), isinstance(node, yaml.MappingNode)
        if not (ends[0] <= own <= ends[-1] if is_range else own in ends):
            raise UserError(f"{where}: {name}: the settings' own value {own} is the first trial, include it")
    return space


def _distribution(name: str, kind: Any, node: yaml.Node, where: str) -> tuple[BaseDistribution, list]:
    """A field's distribution with the values that must be allowed: the ends of a range, or all choices."""
    if isinstance(node, yaml.MappingNode):
        if kind not in (int, float):
            raise UserError(f"{where}: {name} is no number, list its values as [value, value]")
        values = read_keys(where.partition(": line")[0], node, {"low": kind, "high": kind, "log": bool}, "a range")
        if not {"low", "high"} <= values.keys():
            raise UserError(f"{where}: {name}: a range needs low and high")
        with named(f"{where}: {name}"):  # what Optuna says of them
            distribution = (IntDistribution if kind is int else FloatDistribution)(**values)
        return distribution, [values["low"], values["high"]]
    elements = node.value if isinstance(node, yaml.SequenceNode) else ()
    values = [decode(element, kind, f"{where}: {name}") for element in elements]
    if len(values) < 2 or len(set(values)) < len(values):
        raise UserError(f"{where}: {name} is {shown(node)}, give two or more different values or {{low: , high: }}")
    return CategoricalDistribution(values), values


# ---- The study ----


@dataclasses.dataclass
class Study:
    """What one command searches: the settings are the first trial's."""

    algorithm: Algorithm
    settings: Settings
    space: Space
    task: Task
    folder: Path
    sampler_seed: int
    training_seeds: int

    def __post_init__(self) -> None:
        """Opens the study of the folder, or begins it. Raises UserError where the folder holds another one."""
        run = self.settings.run  # each trial's run changes the task that it is given in the same way
        self.make_env = with_chunks(load_run_task(run, self.task), run, self.settings.config).make_env
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = JournalStorage(JournalFileBackend(str(self.folder / JOURNAL)))
        name = f"{self.algorithm.name} on {self.settings.run.task}"
        known = optuna.get_all_study_names(storage)
        self.study = optuna.create_study(
            storage=storage, study_name=known[0] if known else name, direction="maximize", load_if_exists=True
        )
        asked = self.must_agree()
        stored = self.study.user_attrs.get("settings", asked)
        differing = [name for name in asked if stored.get(name) != asked[name]]
        if differing:
            raise UserError(
                f"{self.folder / JOURNAL}: this study has another {', '.join(differing)}; choose another --folder"
            )
        self.study.set_user_attr("settings", asked)
        if not self.study.trials:
            self.study.enqueue_trial({name: getattr(self.settings.config, name) for name in self.space})

    def must_agree(self) -> dict:
        """What must be equal for a study to be continued, as JSON."""
        fields = flat(self.settings.run, self.settings.config).items()
        settings = {
            "algorithm": self.algorithm.name,
            "config": {name: value for name, value in fields if name not in PLACE_FIELDS},
            "space": {name: json.loads(distribution_to_json(each)) for name, each in self.space.items()},
            "sampler_seed": self.sampler_seed,
            "training_seeds": self.training_seeds,
            "data": self.task.identity["sha256"],
        }
        return json.loads(json.dumps(settings))

    def trials(self) -> list[FrozenTrial]:
        """The trials that have values, the last one perhaps unfinished; without one that a kill cut off before."""
        return [trial for trial in self.study.trials if trial.params.keys() == self.space.keys()]

    def finished(self) -> list[FrozenTrial]:
        return [trial for trial in self.trials() if trial.state.is_finished()]

    def run(self, trials: int) -> None:
        """Finishes trials until there are `trials`."""
        done = self.finished()
        while len(done) < trials:
            number, (trial, values) = len(done), self.next_trial()
            known = [other.value for other in done if other.params == values]
            print(f"trial {number}: {values}" + (", as an earlier one" if known else ""), flush=True)
            score = known[0] if known else self.score(number, values)  # equal runs give equal scores
            self.study.tell(trial, score, state=TrialState.FAIL if score is None else TrialState.COMPLETE)
            print(f"trial {number}: " + ("no score" if score is None else f"{self.task.score_name} {score:.4g}"))
            done = self.finished()

    def next_trial(self) -> tuple[int, dict[str, Any]]:
        """(Optuna's number, values) of the trial that was interrupted, else of a new one.

        The sampler is seeded by the trial's number, because its random state is in none of Optuna's storages: a study
        that is continued proposes what an uninterrupted one does.
        """
        trials = self.trials()
        if trials and not trials[-1].state.is_finished():
            return trials[-1].number, trials[-1].params
        seed = int(np.random.SeedSequence([self.sampler_seed, len(trials)]).generate_state(1)[0])
        self.study.sampler = optuna.samplers.TPESampler(seed=seed)
        trial = self.study.ask(self.space)
        return trial.number, trial.params

    def score(self, number: int, values: dict[str, Any]) -> float | None:
        """Trains and evaluates a trial; None where it diverges or the config refuses its values together."""
        scores, own = [], self.settings.run
        try:
            config = dataclasses.replace(self.settings.config, **values)
            check_values(self.settings.run, config)
        except (ValueError, UserError) as error:  # of the values together; alone they were checked before the study
            print(f"trial {number}: {error}", file=sys.stderr)
            return None
        try:
            for seed in range(TUNING_SEED, TUNING_SEED + self.training_seeds):
                # A run's own evaluation, on other episodes, is never read and kept short.
                short = {"eval_interval": own.total_updates, "eval_episodes": 1, "sweep": ()}
                place = {"run_dir": str(self.folder), "label": f"trial_{number:04d}", "seed": seed}
                run = dataclasses.replace(own, **place, **short)
                train_run(self.algorithm.agent_class, run, config, task=self.task)
                agent = load_agent(self.algorithm.agent_class, run_path(run), self.algorithm.name)
                agent = agent.to(choose_device(own.device))
                episodes = (self.task.episodes(own.eval_episodes), TUNING_SEED, own.eval_environments, own.eval_workers)
                scores.append(evaluate(agent, self.make_env, *episodes).scores(self.task.score_name).mean())
        except (Diverged, FloatingPointError) as error:
            print(f"trial {number}: {error}", file=sys.stderr)
            return None
        return math.fsum(scores) / len(scores)

    def best(self) -> tuple[int, FrozenTrial]:
        """Number and content of the best trial, the first of equals. Raises UserError where none has a score."""
        scored = [each for each in enumerate(self.finished()) if each[1].state == TrialState.COMPLETE]
        if not scored:
            count = len(self.finished())
            raise UserError(f"{self.folder}: none of {count} trials gave a score (see their messages above)")
        return max(scored, key=lambda each: each[1].value)
