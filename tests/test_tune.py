"""harness.tune: which trials a study has, what they are scored on, how it continues, and what it writes."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from algorithms.dipole import DIPOLE, DIPOLEConfig
from common.errors import UserError
from harness import tune as tune_module
from harness.algorithms import ROOT, Algorithm, algorithm_names, load_algorithm
from harness.config_file import config_to_yaml, load_config
from harness.evaluation import EVALUATION_SEED, GRID_SEED, TUNING_SEED, evaluate
from harness.training.one_run import Diverged
from harness.tune import tune
from harness.tuning import study as study_module
from harness.tuning.record import tuning_record
from harness.tuning.search_space import find_search_file, is_search_file, load_space
from tests.toy import PointEnv, toy_task
from tests.toy_run import toy_config, toy_runs

QUICKSTART = "configs/fql/quickstart.yaml"
SPACE = """\
inverse_temperature: {low: 0.5, high: 50.0, log: true}
greediness: [0.0, 1.0, 2.0]
value_aggregation: [min, mean]
num_candidates: {low: 1, high: 4}
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A config and a search space in tmp_path, DIPOLE on the toy task; returns the function that runs the command."""
    pytest.importorskip("optuna", reason="needs requirements-tune.txt")
    config = toy_config("unused", offline_steps=12, checkpoint_interval=5)
    tmp_path.joinpath("small.yaml").write_text(config_to_yaml(config))
    tmp_path.joinpath("small.search.yaml").write_text(SPACE)
    algorithm = Algorithm("dipole", DIPOLEConfig, DIPOLE, toy_runs)
    monkeypatch.setattr(tune_module, "load_algorithm", lambda name: algorithm)
    monkeypatch.setattr(
        "harness.training.one_run.plot_learning_curve", lambda *arguments, **options: None
    )  # most of a toy run's time
    monkeypatch.setattr(tune_module, "load_task", lambda *arguments: toy_task())

    def run(folder: str, trials: int, *flags: str) -> Path:
        arguments = ["--algorithm", "dipole", "--config", str(tmp_path / "small.yaml"), "--trials", str(trials)]
        return tune([*arguments, "--folder", str(tmp_path / folder), *flags])

    return run


def trials_of(folder: Path) -> list:
    return json.loads((folder / "study.json").read_text())["trials"]


def replace_train(monkeypatch, train) -> None:
    algorithm = Algorithm("dipole", DIPOLEConfig, DIPOLE, train)
    monkeypatch.setattr(tune_module, "load_algorithm", lambda name: algorithm)


def interrupt_update(monkeypatch, number: int) -> None:
    """Makes the update of that number, counted over all runs from now on, raise KeyboardInterrupt."""
    update, count = DIPOLE.update, [0]

    def counted(self, batch):
        count[0] += 1
        if count[0] == number:
            raise KeyboardInterrupt
        return update(self, batch)

    monkeypatch.setattr(DIPOLE, "update", counted)


def test_an_interrupted_study_equals_an_uninterrupted_one(toy, tmp_path, monkeypatch, capsys):
    toy("whole", 4)
    with monkeypatch.context() as patch:
        interrupt_update(patch, 12 + 12 + 7)  # in the third trial, after its checkpoint of step 5
        with pytest.raises(KeyboardInterrupt):
            toy("parts", 4)
    assert len(trials_of(tmp_path / "parts")) == 2
    capsys.readouterr()
    toy("parts", 4)
    assert "trial_0002/toy/point/seed_2000000: continuing after 5 of 12 updates" in capsys.readouterr().out
    for name in ("study.json", "best.yaml", "best.tuning.json"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "parts" / name).read_text()


def test_more_trials_continue_the_study_and_fewer_are_refused(toy, tmp_path):
    toy("study", 2)
    begun = trials_of(tmp_path / "study")
    toy("study", 3)
    assert trials_of(tmp_path / "study")[:2] == begun
    with pytest.raises(UserError, match="holds 3 trials, more than --trials 2"):
        toy("study", 2)


def test_another_sampler_seed_gives_other_trials(toy, tmp_path):
    toy("study", 2)
    toy("other", 2, "--sampler_seed", "1")
    first, other = trials_of(tmp_path / "study"), trials_of(tmp_path / "other")
    assert first[0] == other[0] and first[1]["values"] != other[1]["values"]


def test_a_folder_of_another_study_is_refused(toy, tmp_path):
    toy("study", 1)
    with pytest.raises(UserError, match=r"study.json: this study has another config, sampler_seed; choose another"):
        toy("study", 2, "--sampler_seed", "1", "--discount", "0.9")


def test_a_trial_is_scored_on_the_tuning_seeds(toy, tmp_path):
    toy("study", 1, "--training_seeds", "2")
    runs = sorted((tmp_path / "study" / "trial_0000").rglob("seed_*"))
    assert [run.name for run in runs] == ["seed_2000000", "seed_2000001"]
    means = [evaluate(DIPOLE.load(run), PointEnv, 3, TUNING_SEED).returns.mean() for run in runs]
    assert trials_of(tmp_path / "study")[0]["score"] == pytest.approx(sum(means) / 2)
    assert TUNING_SEED > GRID_SEED > EVALUATION_SEED


def test_the_first_trial_is_the_config_and_all_lie_in_the_space(toy, tmp_path):
    toy("study", 4)
    trials, config = trials_of(tmp_path / "study"), load_config(DIPOLEConfig, tmp_path / "small.yaml")
    assert trials[0]["values"] == {name: getattr(config, name) for name in trials[0]["values"]}
    for trial in trials:
        values = trial["values"]
        assert 0.5 <= values["inverse_temperature"] <= 50 and values["greediness"] in (0.0, 1.0, 2.0)
        assert values["value_aggregation"] in ("min", "mean") and values["num_candidates"] in (1, 2, 3, 4)
    assert len({json.dumps(trial["values"]) for trial in trials}) == 4


def test_the_yaml_holds_the_best_trial_and_the_record_says_so(toy, tmp_path):
    out = toy("study", 3, "--discount", "0.9", "--data_dir", "elsewhere")
    trials = trials_of(tmp_path / "study")
    best = max(trials, key=lambda trial: trial["score"])
    base, tuned = load_config(DIPOLEConfig, tmp_path / "small.yaml"), load_config(DIPOLEConfig, out)
    assert tuned == dataclasses.replace(base, discount=0.9, **best["values"])
    record = tuning_record(out)
    assert record["trials"] == 3 and record["task"] == "toy/point" and record["best_score"] == best["score"]
    assert record["training_seeds"] == [TUNING_SEED] and record["evaluation_seed"] == TUNING_SEED
    assert tuning_record(tmp_path / "small.yaml") is None


def test_a_record_beside_a_changed_yaml_is_refused(toy):
    out = toy("study", 1)
    out.write_text(out.read_text().replace("greediness: 0.0", "greediness: 2.0", 1))
    with pytest.raises(UserError, match=r"best.yaml: greediness is 2.0, but best.tuning.json says it was tuned to 0.0"):
        tuning_record(out)


def test_a_diverged_trial_counts_and_is_never_the_best(toy, tmp_path, monkeypatch):
    def train(configs):
        if configs[0].label != "trial_0001":
            raise Diverged("loss is nan")
        return toy_runs(configs)

    replace_train(monkeypatch, train)
    record = tuning_record(toy("study", 3))
    assert [trial["score"] is None for trial in trials_of(tmp_path / "study")] == [True, False, True]
    assert record["trials"] == 3 and record["trials_failed"] == 2 and record["best_trial"] == 1


def test_a_combination_that_the_config_refuses_counts_as_a_trial(toy, tmp_path, monkeypatch, capsys):
    (tmp_path / "both.yaml").write_text("weighting: [sigmoid, none]\ngreediness: [0.0, 1.0]\n")
    monkeypatch.setattr(study_module, "suggest", lambda *arguments: {"weighting": "none", "greediness": 1.0})
    record = tuning_record(toy("study", 2, "--search", str(tmp_path / "both.yaml")))
    assert record["trials"] == 2 and record["trials_failed"] == 1 and record["best_trial"] == 0
    assert "trial 1: greediness is 1, but weighting none trains a single policy" in capsys.readouterr().err


def test_a_study_of_diverged_trials_writes_no_yaml(toy, tmp_path, monkeypatch):
    def train(configs):
        raise Diverged("loss is nan")

    replace_train(monkeypatch, train)
    with pytest.raises(UserError, match="none of 2 trials gave a score"):
        toy("study", 2)
    assert not (tmp_path / "study" / "best.yaml").exists()


def test_equal_values_are_trained_once_and_count_twice(toy, tmp_path, monkeypatch):
    labels = []
    replace_train(monkeypatch, lambda configs: labels.append(configs[0].label) or toy_runs(configs))
    (tmp_path / "two.yaml").write_text("greediness: [0.0, 1.0]\n")
    toy("study", 5, "--search", str(tmp_path / "two.yaml"))
    trials = trials_of(tmp_path / "study")
    assert len(trials) == 5 and len(labels) == 2
    assert len({(trial["values"]["greediness"], trial["score"]) for trial in trials}) == 2


def test_missing_optuna_names_the_pip_command(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
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
        ("greediness: {low: 0.0, high: 1.0, step: 0.1}", "a range has no key step"),
        ("greediness: {low: 0.0, low: 1.0, high: 2.0}", "low is given twice"),
        ("greediness: {low: 1.0, high: 0.0}", "low is 1.0 and high is 0.0, low must be smaller"),
        ("greediness: {low: 0.0, high: 1.0, log: true}", "low is 0.0, it must be above 0"),
        ("inverse_temperature: {low: 1.0, high: 2.0, log: yes}", "log must be true or false"),
        ("weighting: {low: none, high: sigmoid}", "weighting is no number"),
        ("weighting: [sigmoid, sgmoid]", "weighting"),
        ("greediness: [1.0, 2.0]", "the config's own value 0.0 is the first trial, include it"),
        ("discount: [0.9, 1.5]", "discount is 1.5, it must be at most 1"),
        ("offline_steps: [60, 100]", "offline_steps belongs to the run or is a list"),
        ("actor_hidden_dims: [[8, 8], [16, 16]]", "actor_hidden_dims belongs to the run or is a list"),
    ],
)
def test_a_wrong_search_space_is_one_sentence(line, message, tmp_path):
    path = tmp_path / "search.yaml"
    path.write_text(line + "\n")
    with pytest.raises(UserError) as raised:
        load_space(path, toy_config("runs"))
    assert message in str(raised.value) and str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--algorithm", "fql", "--trials", "2"], "give either --task or --config"),
        (["--algorithm", "fql", "--task", "ogbench/cube-double-play-singletask-task1-v0"], "required: --trials"),
        (
            ["--algorithm", "fql", "--trials", "2", "--task", "ogbench/cube-double-play-singletask-task1-v0"],
            "did you mean ogbench/cube-double-play-singletask-task2-v0",
        ),
        (
            ["--algorithm", "iql", "--trials", "2", "--task", "ogbench/cube-double-play-singletask-task2-v0"],
            "configs/iql/ogbench/cube-double-play.yaml, configs/iql/ogbench-256/cube-double-play.yaml",
        ),
        (["--algorithm", "fql", "--config", QUICKSTART, "--trials", "0"], "it must be at least 1"),
        (["--algorithm", "fql", "--config", QUICKSTART, "--trials", "1", "--restart"], "--restart"),
        (
            ["--algorithm", "fql", "--trials", "1", "--config", QUICKSTART, "--out", QUICKSTART],
            "another file",
        ),
    ],
)
def test_a_wrong_command_line_is_one_sentence(flags, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=".") as raised:
        tune(flags)
    assert message in str(raised.value)


@pytest.mark.parametrize("name", algorithm_names())
def test_every_quick_start_and_benchmark_config_has_a_search_space(name):
    config_class = load_algorithm(name).config_class
    folder = ROOT / "configs" / name
    configs = [folder / "quickstart.yaml", *folder.glob("ogbench/*.yaml"), *folder.glob("exorl/*.yaml")]
    for path in configs:
        if not is_search_file(path):
            assert load_space(find_search_file(path), load_config(config_class, path))
