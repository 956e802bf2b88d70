"""Settings by task: every file is one that its algorithms take, and resolves to what runs have always had."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from harness import config as settings
from harness.algorithms import algorithm_names, load_algorithm
from harness.config import (
    MACHINE_OPTIONS,
    RunConfig,
    check_values,
    config_to_yaml,
    field_types,
    flat,
    load_settings,
    stored_config,
)

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "compare")
# The 189 run configs of November 2026, before settings by task: what differed from each class' defaults.
FROZEN = json.loads((ROOT / "tests" / "frozen" / "configs.json").read_text())
VARIANTS = {"ogbench-online": "online", "ogbench-256": "256", "ogbench-local": "local", "greediness": "greediness"}


# What became of fields that are gone, by their frozen values ("*": any).
RETIRED = {
    "composition": {"score": {}},
    "resample_candidates": {"*": {}},
    "networks": {"fql": {}},
    "fourier_features": {"*": {}},
    "target_aggregation": {"mean": {"pessimism": 0.0}, "min": {"pessimism": None}},
}


def config_class(algorithm):
    return load_algorithm(algorithm).config_class


@pytest.mark.parametrize("path", FROZEN["configs"])
def test_settings_equal_the_frozen_configs(path):
    algorithm, suite = path.split("/")[1:3]
    frozen = FROZEN["defaults"][algorithm] | FROZEN["configs"][path]
    variant = "base" if path.endswith("driving/pretrain.yaml") else VARIANTS.get(suite)
    found = load_settings(config_class(algorithm), {"task": frozen["task"]}, variant=variant)
    values = json.loads(json.dumps(flat(found.run, found.config)))
    frozen["sweep"] = frozen.pop("final_report")
    frozen["label"] = frozen["label"] or (f"{algorithm}_{variant}" if variant else algorithm)
    del frozen["wandb_mode"]  # was "disabled" everywhere: W&B is a logger now
    for name in set(RETIRED) & set(frozen):
        value, meanings = frozen.pop(name), RETIRED[name]
        frozen |= meanings["*" if "*" in meanings else value]
    assert {name: values[name] for name in frozen} == frozen


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_every_file_says_where_its_values_come_from_and_repeats_no_default(path):
    text = path.read_text()
    assert text.startswith("# ")
    content = yaml.safe_load(text)
    algorithms = algorithm_names() if path.parent.name == "configs" else (path.parent.name,)
    known = [flat(RunConfig(), config_class(name)()) for name in algorithms]
    defaults = {name: [each[name] for each in known if name in each] for each in known for name in each}
    variants = content.pop("variants", {})
    search = content.pop("search", {})
    for name in [*content, *search, *(key for entry in variants.values() for key in entry)]:
        assert name == "tasks" or name in defaults, f"{name} is a field of no config"
    for name, value in content.items():
        if name not in ("tasks", "task"):
            assert any(value != (list(old) if isinstance(old, tuple) else old) for old in defaults[name]), name


PROTOCOL_B = json.loads((ROOT / "tests" / "golden" / "protocol_b" / "tasks.json").read_text())
FIELDS_OF_QAM = {  # its name of a method's field: ours
    "fql": {"alpha": "distillation_weight"},
    "ifql": {"kappa": "expectile", "num_samples": "num_candidates"},
    "rebrac": {
        "alpha_actor": "actor_bc_weight",
        "actor_noise": "actor_noise",
        "actor_freq": "target_interval",
        "actor_noise_clip": "actor_noise_clip",
    },
    "qsm": {
        "inv_temp": "score_weight",
        "alpha": "bc_weight",
        "clip_sampler_before": "clip_clean",
        "clip_sampler_after": "clip_steps",
        "diffusion_steps": "diffusion_steps",
        "clip_grad_norm": "max_gradient_norm",
    },
}


@pytest.mark.parametrize("algorithm", ["dipole", "fql", "ifql", "rebrac", "qsm"])
def test_protocol_b_has_qams_settings_on_its_50_tasks(algorithm):
    """Against figures read from its experiments/reproduce.py and main.py."""
    common = PROTOCOL_B["common"]
    names = []
    for entry in PROTOCOL_B["tasks"]:
        number = entry["task"].split("-task")[-1]
        names.append(f"ogbench/{entry['data'].removesuffix('-v0')}-singletask-task{number}")
        found = load_settings(config_class(algorithm), {"task": names[-1]}, variant="protocol_b")
        run, config = found.run, found.config
        assert (run.action_chunk, run.sparse, run.batch_size) == (entry["chunk"], entry["sparse"], common["batch_size"])
        assert (run.offline_steps, run.online_steps) == (common["offline_steps"], common["online_steps"])
        assert (run.online_start, run.eval_interval) == (common["start_training"], common["eval_interval"])
        assert (run.eval_episodes, run.keep_offline) == (common["eval_episodes"], True)
        assert (config.discount, config.pessimism) == (entry["discount"], entry["rho"])
        assert (config.num_critics, config.learning_rate) == (common["num_qs"], common["lr"])
        assert config.actor_hidden_dims == config.value_hidden_dims == (512,) * 4
        assert (config.target_rate, config.value_layer_norm) == (common["tau"], common["value_layer_norm"])
        expected = PROTOCOL_B["hyperparameters"][entry["domain"]].get(algorithm, {})
        for theirs, ours in FIELDS_OF_QAM.get(algorithm, {}).items():
            assert getattr(config, ours) == expected[theirs], (names[-1], ours)
        if algorithm == "dipole":
            assert config.target_pessimism == entry["rho"]
    compared = yaml.safe_load((ROOT / "configs" / "compare" / "protocol_b.yaml").read_text())
    assert [name for group in compared["tasks"].values() for name in group] == names
    assert compared["seeds"] == common["seeds"] and algorithm in compared["algorithms"]


def test_there_are_few_files():
    assert len(list((ROOT / "configs").rglob("*.yaml"))) <= 45


@pytest.mark.parametrize("algorithm", algorithm_names())
def test_a_complete_config_is_read_back_equal(algorithm, tmp_path):
    found = load_settings(config_class(algorithm))
    (tmp_path / "config.yaml").write_text(config_to_yaml(found.run, found.config))
    assert stored_config(tmp_path / "config.yaml", config_class(algorithm)) == (found.run, found.config)
    again = load_settings(config_class(algorithm), path=tmp_path / "config.yaml")
    assert (again.run, again.config) == (found.run, found.config)


def test_no_method_has_a_run_field():
    run_fields = {field.name for field in dataclasses.fields(RunConfig)}
    assert set(MACHINE_OPTIONS) < run_fields
    for name in algorithm_names():
        assert not run_fields & {field.name for field in dataclasses.fields(config_class(name))}


@pytest.fixture
def own_settings(tmp_path, monkeypatch):
    """Settings files of a test's own: write(name, text) below a folder that stands for configs/."""
    monkeypatch.setattr(settings, "CONFIGS", tmp_path)

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_later_sources_win(own_settings):
    own_settings(
        "exorl.yaml", "batch_size: 2\nseed: 2\nlog_interval: 2\ntasks:\n  rnd/*: {seed: 3, eval_episodes: 3}\n"
    )
    own_settings(
        "dipole/exorl.yaml",
        "seed: 4\ngreediness: 1.0\nexpectile: 0.5\n"
        "tasks:\n  'x/*, rnd/walker_*': {greediness: 2.0}\n  rnd/*: {shift: 2}\n"
        "variants:\n  fast: {expectile: 0.6, shift: 3, tasks: {rnd/*: {shift: 4}}}\n",
    )
    dipole = config_class("dipole")
    found = load_settings(dipole, {"task": "exorl/rnd/walker_walk", "flow_steps": 7}, variant="fast")
    run, config = found.run, found.config
    assert (run.batch_size, run.eval_episodes, run.seed, run.label) == (2, 3, 4, "dipole_fast")
    assert (config.greediness, config.expectile, config.shift, config.flow_steps) == (2.0, 0.6, 4.0, 7)
    assert found.sources["shift"].endswith("exorl.yaml: line 8")
    assert (found.sources["flow_steps"], found.sources["discount"]) == ("command line", "default")
    shown = found.shown().splitlines()
    assert len(shown) == len(field_types(dipole)) and any(
        line.startswith("flow_steps: 7") and line.endswith("# command line") for line in shown
    )
    other = load_settings(dipole, {"task": "exorl/local_rnd/walker_walk"})
    assert (other.run.eval_episodes, other.config.greediness, other.config.shift) == (50, 1.0, 0.0)


def test_a_protocol_may_set_a_field_that_only_some_methods_have(own_settings):
    own_settings("exorl.yaml", "greediness: 2.0\n")
    assert load_settings(config_class("dipole")).config.greediness == 2.0
    assert not hasattr(load_settings(config_class("iql")).config, "greediness")


def test_a_suite_without_files_has_the_defaults(own_settings):
    found = load_settings(config_class("dipole"), {"task": "own/reach"})
    assert found.files == () and found.config == config_class("dipole")()


WRONG = {
    "seed: -1": "seed is -1, it must be at least 0",
    "seed: 1.5": r"exorl.yaml: line 1: seed must be a whole number such as 10, not 1.5",
    "device: tpu": r"line 1: device must be one of auto, cpu, cuda, not tpu",
    "max_weight: 0": "max_weight is 0.0, it must be above 0",
    "omega: 1": r"line 1: omega is not a field of DIPOLEConfig, did you mean greediness\?",
    "seed: 1\nseed: 2": r"line 2: seed is given twice, keep one",
    "tasks: 3": "line 1: must hold lines such as `seed: 0`, not 3",
    "tasks: {'*': 3}": "line 1: must hold lines such as `seed: 0`, not 3",
    "tasks: {'*': {sed: 3}}": r"line 1: sed is not a field of DIPOLEConfig, did you mean seed\?",
    "tasks: {'*': {task: a/b}}": "line 1: a task is the whole file's; move it to the top, or give --task",
    "logger: [csv, mlflow]": "logger is 'mlflow', choose of csv, tensorboard, wandb",
    "label: a/b": "label is 'a/b', it must name one folder",
    "weighting: none\ngreediness: 1.0": "greediness is 1, but weighting none trains one policy",
    "value_hidden_dims: [512, 0]": "value_hidden_dims is 0, it must be at least 1",
    "first_action_only: true": "first_action_only needs chunks; set action_chunk above 1",
    "online_steps: 3\nonline_start: 4": "online_start is 4, and after 3 online_steps no update would have been made",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_settings_are_refused_in_one_sentence(text, own_settings):
    own_settings("dipole/exorl.yaml", text)
    with pytest.raises(UserError, match=WRONG[text]):
        load_settings(config_class("dipole"))


@pytest.mark.parametrize(
    "inner, message",
    [
        ("task: a/b", "a task is the whole file's"),
        ("variants: {w: {seed: 1}}", "variants is not a field"),
        ("search: {shift: [0]}", "search is not a field"),
        ("tasks: {'*': {task: a/b}}", "a task is the whole file's"),
    ],
)
def test_a_variant_holds_fields_and_tasks_only(inner, message, own_settings):
    own_settings("dipole/exorl.yaml", f"variants: {{v: {{{inner}}}}}")
    with pytest.raises(UserError, match=f"exorl.yaml: line 1: {message}"):
        load_settings(config_class("dipole"), variant="v")


def test_a_typo_in_a_protocols_file_is_refused(own_settings):
    own_settings("exorl.yaml", "batchsize: 2\n")
    with pytest.raises(UserError, match=r"exorl.yaml: line 1: batchsize is not a field .* did you mean batch_size\?"):
        load_settings(config_class("dipole"))


def test_an_unknown_variant_is_refused_with_the_known_ones():
    with pytest.raises(
        UserError, match="--variant offline is in no settings file of dipole for ogbench, .* local, online"
    ):
        load_settings(config_class("dipole"), {"task": "ogbench/scene-play-singletask-task2-v0"}, variant="offline")


def test_values_made_in_python_are_checked_too():
    with pytest.raises(UserError, match="device is 'tpu', choose one of auto, cpu, cuda"):
        check_values(RunConfig(device="tpu"), config_class("dipole")())
