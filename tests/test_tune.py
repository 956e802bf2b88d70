"""harness.tune: which trials a study has, what they are scored on, how it continues, and what it writes."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="needs requirements-tune.txt")

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from algorithms.dipole import DIPOLE, DIPOLEConfig
from common.errors import UserError
from envs.chunks import chunked
from harness import tune as tune_module
from harness.algorithms import ROOT, algorithm_names, load_algorithm
from harness.config import load_settings
from harness.config_file import places_by_key, read_mapping
from harness.divergence import Diverged
from harness.evaluation import EVALUATION_SEED, GRID_SEED, TUNING_SEED, evaluate
from harness.tune import tune
from harness.tuning import study as study_module
from harness.tuning.record import tuning_record
from harness.tuning.study import read_space
from tests.toy import PointEnv, toy_task

SETTINGS = """\
task: toy/point
device: cpu
threads: 1
offline_steps: 12
checkpoint_interval: 5
eval_episodes: 3
eval_environments: 3
batch_size: 8
actor_hidden_dims: [8, 8]
value_hidden_dims: [8, 8]
flow_steps: 2
num_candidates: 2
search:
  inverse_temperature: {low: 0.5, high: 50.0, log: true}
  greediness: [0.0, 1.0, 2.0]
  value_aggregation: [min, mean]
  tasks:
    point: {num_candidates: {low: 1, high: 4}}
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A settings file in tmp_path, DIPOLE on the toy task; returns the function that runs the command."""
    tmp_path.joinpath("small.yaml").write_text(SETTINGS)
    monkeypatch.setattr(tune_module, "load_task", lambda *_: toy_task())

    def run(folder: str, trials: int, *flags: str) -> Path:
        arguments = ["--algorithm", "dipole", "--config", str(tmp_path / "small.yaml"), "--trials", str(trials)]
        return tune([*arguments, "--folder", str(tmp_path / folder), *flags])

    return run


def trials_of(folder: Path) -> list:
    """The trials as Optuna itself reads them from the journal."""
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    (study,) = storage.get_all_studies()
    return storage.get_all_trials(study._study_id)


def values_and_scores(folder: Path) -> list:
    return [(trial.params, trial.value, trial.state) for trial in trials_of(folder)]


def interrupt_update(monkeypatch, number: int) -> None:
    """Makes the update of that number, counted over all runs from now on, raise KeyboardInterrupt."""
    update, count = DIPOLE.update, [0]

    def counted(self, batch):
        count[0] += 1
        if count[0] == number:
            raise KeyboardInterrupt
        return update(self, batch)

    monkeypatch.setattr(DIPOLE, "update", counted)


def test_trials_normalise_observations_once(toy, tmp_path):
    """The task that the command has loaded is changed by each run, as train_run changes one that is given."""
    toy("study", 1, "--normalize_observations", "true")
    record = tmp_path / "study" / "trial_0000" / "toy" / "point" / "seed_2000000" / "environment.json"
    expected = toy_task().dataset.observations.mean(dim=0).tolist()
    assert json.loads(record.read_text())["environment"]["observation_mean"] == pytest.approx(expected, abs=1e-6)


def test_a_trial_with_chunks_is_scored_with_chunks(toy, tmp_path):
    """By hand: an environment step for each action of a chunk, not a chunk for each step."""
    toy("study", 1, "--action_chunk", "2")
    agent = DIPOLE.load(tmp_path / "study" / "trial_0000" / "toy" / "point" / "seed_2000000")
    expected = evaluate(agent, chunked(toy_task(), 2, 0.99).make_env, 3, TUNING_SEED).returns.mean()
    assert trials_of(tmp_path / "study")[0].value == pytest.approx(expected)


def test_an_interrupted_study_equals_an_uninterrupted_one(toy, tmp_path, monkeypatch, capsys):
    toy("whole", 4)
    with monkeypatch.context() as patch:
        interrupt_update(patch, 12 + 12 + 7)  # in the third trial, after its checkpoint of step 5
        with pytest.raises(KeyboardInterrupt):
            toy("parts", 4)
    states = [trial.state for trial in trials_of(tmp_path / "parts")]
    assert states == [TrialState.COMPLETE] * 2 + [TrialState.RUNNING]
    capsys.readouterr()
    toy("parts", 4)
    assert "trial_0002/toy/point/seed_2000000: continuing after 5 of 12 updates" in capsys.readouterr().out
    assert values_and_scores(tmp_path / "whole") == values_and_scores(tmp_path / "parts")
    for name in ("best.yaml", "best.tuning.json"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "parts" / name).read_text()


def test_more_trials_continue_the_study_and_fewer_are_refused(toy, tmp_path):
    toy("study", 2)
    begun = values_and_scores(tmp_path / "study")
    toy("study", 3)
    assert values_and_scores(tmp_path / "study")[:2] == begun
    with pytest.raises(UserError, match="holds 3 trials, more than --trials 2"):
        toy("study", 2)


def test_another_sampler_seed_gives_other_trials(toy, tmp_path):
    toy("study", 2)
    toy("other", 2, "--sampler_seed", "1")
    first, other = values_and_scores(tmp_path / "study"), values_and_scores(tmp_path / "other")
    assert first[0] == other[0] and first[1][0] != other[1][0]


def test_a_folder_of_another_study_is_refused(toy, tmp_path):
    toy("study", 1)
    with pytest.raises(UserError, match=r"journal.log: this study has another config, sampler_seed; choose another"):
        toy("study", 2, "--sampler_seed", "1", "--discount", "0.9")


def test_a_trial_is_scored_on_the_tuning_seeds(toy, tmp_path):
    toy("study", 1, "--training_seeds", "2")
    runs = sorted((tmp_path / "study" / "trial_0000").rglob("seed_*"))
    assert [run.name for run in runs] == ["seed_2000000", "seed_2000001"]
    means = [evaluate(DIPOLE.load(run), PointEnv, 3, TUNING_SEED).returns.mean() for run in runs]
    assert trials_of(tmp_path / "study")[0].value == pytest.approx(sum(means) / 2)
    assert TUNING_SEED > GRID_SEED > EVALUATION_SEED


def test_the_first_trial_is_the_config_and_all_lie_in_the_space(toy, tmp_path):
    toy("study", 4)
    trials = trials_of(tmp_path / "study")
    config = load_settings(DIPOLEConfig, path=tmp_path / "small.yaml").config
    assert trials[0].params == {name: getattr(config, name) for name in trials[0].params}
    for values in (trial.params for trial in trials):
        assert 0.5 <= values["inverse_temperature"] <= 50 and values["greediness"] in (0.0, 1.0, 2.0)
        assert values["value_aggregation"] in ("min", "mean") and values["num_candidates"] in (1, 2, 3, 4)
    assert len({json.dumps(trial.params) for trial in trials}) == 4


def test_the_yaml_holds_the_best_trial_and_the_record_says_so(toy, tmp_path):
    out = toy("study", 3, "--discount", "0.9", "--data_dir", "elsewhere")
    best = max(trials_of(tmp_path / "study"), key=lambda trial: trial.value)
    base, tuned = (load_settings(DIPOLEConfig, path=path) for path in (tmp_path / "small.yaml", out))
    assert tuned.config == dataclasses.replace(base.config, discount=0.9, **best.params)
    assert (tuned.run.offline_steps, tuned.run.batch_size, tuned.run.task) == (12, 8, "toy/point")
    assert tuned.run.data_dir is None  # where a study ran is not what was tuned
    record = tuning_record(out)
    assert record["trials"] == 3 and record["task"] == "toy/point" and record["best_score"] == best.value
    assert record["training_seeds"] == [TUNING_SEED] and record["evaluation_seed"] == TUNING_SEED
    assert tuning_record(tmp_path / "small.yaml") is None


def test_a_record_beside_a_changed_yaml_is_refused(toy):
    out = toy("study", 1)
    text = out.read_text()
    assert "\ngreediness: 0.0\n" in text
    out.write_text(text.replace("\ngreediness: 0.0\n", "\ngreediness: 2.0\n"))
    with pytest.raises(UserError, match=r"best.yaml: greediness is 2.0, but best.tuning.json says it was tuned to 0.0"):
        tuning_record(out)


@pytest.fixture
def trained(monkeypatch):
    """Labels of the runs that were trained; those in `diverging` diverge."""
    labels, diverging, train_run = [], set(), study_module.train_run

    def train(agent_class, run, config, task):
        labels.append(run.label)
        if run.label in diverging:
            raise Diverged("loss is nan")
        return train_run(agent_class, run, config, task=task)

    monkeypatch.setattr(study_module, "train_run", train)
    return labels, diverging


def test_a_diverged_trial_counts_and_is_never_the_best(toy, tmp_path, trained):
    trained[1].update(["trial_0000", "trial_0002"])
    record = tuning_record(toy("study", 3))
    assert [trial.state == TrialState.FAIL for trial in trials_of(tmp_path / "study")] == [True, False, True]
    assert record["trials"] == 3 and record["trials_failed"] == 2 and record["best_trial"] == 1


def test_a_study_of_diverged_trials_writes_no_yaml(toy, tmp_path, trained):
    trained[1].update(["trial_0000", "trial_0001"])
    with pytest.raises(UserError, match="none of 2 trials gave a score"):
        toy("study", 2)
    assert not (tmp_path / "study" / "best.yaml").exists()


def test_a_combination_that_the_config_refuses_counts_as_a_trial(toy, tmp_path, capsys):
    (tmp_path / "both.yaml").write_text("weighting: [sigmoid, none]\ngreediness: [0.0, 1.0]\n")
    record = tuning_record(toy("study", 8, "--search", str(tmp_path / "both.yaml")))
    refused = [trial for trial in trials_of(tmp_path / "study") if trial.state == TrialState.FAIL]
    assert record["trials"] == 8 and record["trials_failed"] == len(refused) > 0
    assert all(trial.params == {"weighting": "none", "greediness": 1.0} for trial in refused)
    assert "greediness is 1, but weighting none trains" in capsys.readouterr().err


def test_equal_values_are_trained_once_and_count_twice(toy, tmp_path, trained):
    (tmp_path / "two.yaml").write_text("greediness: [0.0, 1.0]\n")
    toy("study", 5, "--search", str(tmp_path / "two.yaml"))
    trials = trials_of(tmp_path / "study")
    assert len(trials) == 5 and len(trained[0]) == 2
    assert len({(trial.params["greediness"], trial.value) for trial in trials}) == 2


def test_missing_optuna_names_the_pip_command(toy, tmp_path, monkeypatch):
    for name in ("optuna", "harness.tuning.study"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="run: pip install -r requirements-tune.txt"):
        toy("study", 1)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("greedines: [0.0, 1.0]", "line 1: greedines is not a field of DIPOLEConfig, did you mean greediness?"),
        ("greediness: [0.0, high]", "line 1: greediness must be a finite number"),
        ("num_candidates: [1, 2.5]", "line 1: num_candidates must be a whole number"),
        ("greediness: [0.0]", "give two or more different values"),
        ("greediness: [0.0, 0]", "give two or more different values"),
        ("greediness: 0.5", "give two or more different values"),
        ("greediness: {low: 0.0}", "a range needs low and high"),
        ("greediness: {low: 0.0, high: 1.0, step: 0.1}", "step is not a field of a range, it has low, high, log"),
        ("greediness: {low: 0.0, low: 1.0, high: 2.0}", "low is given twice"),
        ("greediness: {low: 1.0, high: 0.0}", "greediness: `low <= high` must hold, but got (low=1.0, high=0.0)"),
        ("greediness: {low: 0.0, high: 1.0, log: true}", "greediness: `low > 0` must hold"),
        ("inverse_temperature: {low: 1.0, high: 2.0, log: yes}", "log must be true or false"),
        ("weighting: {low: none, high: sigmoid}", "weighting is no number"),
        ("weighting: [sigmoid, sgmoid]", "weighting"),
        ("greediness: [2.0, 3.0]", "the settings' own value 1.0 is the first trial, include it"),
        ("discount: [0.9, 1.5]", "discount is 1.5, it must be at most 1"),
        ("offline_steps: [60, 100]", "offline_steps is not a field of DIPOLEConfig"),
        ("actor_hidden_dims: [[8, 8], [16, 16]]", "actor_hidden_dims is a list, search single values"),
    ],
)
def test_a_wrong_search_space_is_one_sentence(line, message, tmp_path):
    path = tmp_path / "search.yaml"
    path.write_text(line + "\n")
    with pytest.raises(UserError) as raised:
        read_space(places_by_key(path, read_mapping(path)), load_settings(DIPOLEConfig))
    assert message in str(raised.value) and str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--algorithm", "fql", "--task", "exorl/rnd/walker_walk"], "required: --trials"),
        (["--algorithm", "fql", "--trials", "2", "--task", "own/reach"], "there is no `search` table for own/reach"),
        (["--algorithm", "fql", "--trials", "1", "--training_seeds", "0"], "it must be at least 1"),
        (["--algorithm", "fql", "--trials", "0"], "--trials is 0; it must be at least 1"),
        (["--algorithm", "fql", "--trials", "1", "--restart"], "--restart"),
        (["--algorithm", "fql", "--trials", "1", "--seeds", "1"], "--seeds"),
        (["--algorithm", "fql", "--trials", "1", "--out", "configs/fql/exorl.yaml"], "none of the files"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(flags, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=".") as raised:
        tune(flags)
    assert message in str(raised.value)


BENCHMARKS = ("exorl/local_sticky_random/cartpole_swingup", "exorl/rnd/walker_walk")
BENCHMARKS += ("ogbench/cube-double-play-singletask-task2-v0",)


@pytest.mark.parametrize("task", BENCHMARKS)
@pytest.mark.parametrize("name", algorithm_names())
def test_every_benchmark_setting_has_a_search_space(name, task):
    if name.startswith("dipole_") and task != BENCHMARKS[0]:
        pytest.skip("these forms have settings for the quick start only")
    settings = load_settings(load_algorithm(name).config_class, {"task": task})
    assert read_space(settings.search, settings)
