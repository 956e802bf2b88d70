"""Comparisons: the checks before the first run, runs in processes of their own, re-evaluations, places, tables."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
from tqdm import tqdm

from algorithms.dipole import DIPOLE
from common.errors import UserError
from common.files import locked
from harness import compare as compare_module
from harness import run_folder
from harness.compare import check_data, compare, in_order
from harness.comparison import reevaluation
from harness.comparison import workers as workers_module
from harness.comparison.matrix import load_comparison
from harness.comparison.reevaluation import is_complete, missing_cells, read_reevaluation, reevaluate
from harness.comparison.results import read_run
from harness.comparison.workers import (
    FAILED,
    FINISHED,
    RUNNING,
    WAITING,
    Attempt,
    announce,
    environment_of,
    move,
    slots_of,
    updates_made,
)
from harness.episodes import read_episodes
from harness.evaluation import EVALUATION_SEED, evaluate
from harness.train import train_run
from tests.toy import PointEnv, toy_task

SMALL = (
    "{threads: 1, offline_steps: 20, eval_interval: 10, eval_episodes: 3, eval_environments: 3, log_interval: 5, "
    "checkpoint_interval: 10, batch_size: 8, actor_hidden_dims: [8], value_hidden_dims: [8]}"
)
SINGLE = "{label: single, evaluation_of: dipole, act: {greediness: 0.0}}"


def toy_comparison(folder: Path, *algorithms: str, seeds: str = "[0]", task: str = "toy/point", overrides: str = SMALL):
    """A comparison of small runs below `folder`."""
    for name in ("dipole", "iql", "fql"):
        own = "flow_steps: 2\nnum_candidates: 2\ngreediness: 1.0\n" if name == "dipole" else ""
        (folder / f"{name}.yaml").write_text(f"task: toy/point\n{own}")
    entries = "\n".join(f"  - {entry}" for entry in algorithms)
    (folder / "matrix.yaml").write_text(
        f"name: toy\nconfig: {folder}/{{algorithm}}.yaml\nrun_dir: {folder}/runs\ntasks: {{toy: [{task}]}}\n"
        f"seeds: {seeds}\noverrides: {overrides}\nnum_candidates: [1, 2]\nalgorithms:\n{entries}\n"
    )
    return load_comparison(folder / "matrix.yaml")


def complete_run(run, cells):
    """What the run's two commands do, on the toy task."""
    train_run(DIPOLE, run.run, run.config, task=toy_task())
    reevaluate(run.folder, cells, toy_task())


@pytest.fixture
def toy_data(monkeypatch):
    """The toy task under every name, in no other folder."""

    def load(run):
        if run.data_dir:
            raise UserError("no such data")
        return toy_task()

    monkeypatch.setattr(compare_module, "load_run_task", load)


@pytest.fixture
def finished(tmp_path, toy_data):
    """(run, cells) of a comparison whose only run is complete."""
    comparison = toy_comparison(tmp_path, "dipole", SINGLE)
    (run,) = comparison.runs
    complete_run(run, comparison.cells(run))
    return run, comparison.cells(run)


# ---- One run ----


def test_a_run_ends_with_a_line_for_each_cell(finished):
    run, cells = finished
    assert is_complete(run, cells) and len(cells) == 4
    lines = read_reevaluation(run.folder)
    assert [{name: str(value) for name, value in cell.items()} for cell in cells] == [
        {name: line[name] for name in cell} for cell, line in zip(cells, lines, strict=True)
    ]
    assert {line["episodes"] for line in lines} == {"3"}
    assert [int(line["network_evaluations"]) for line in lines] == [2 * 2 * 2 + 4, 2 * 2, 2, 2 * 2 + 4]


def test_own_cell_repeats_the_runs_score_on_the_same_episodes(finished):
    run, cells = finished
    scores = [float(line["score"]) for line in read_reevaluation(run.folder)]
    assert scores[0] == json.loads((run.folder / "result.json").read_text())["score"]
    assert len(set(scores)) > 1  # other options act otherwise


def test_single_episodes_are_kept_by_options_and_seed(finished):
    run, cells = finished
    episodes = read_episodes(run.folder)
    assert list(episodes.columns) == [*cells[0], "seed", "return", "success", "length"]
    assert len(episodes) == len(cells) * 3 and set(episodes["seed"]) == {EVALUATION_SEED + i for i in range(3)}
    own = episodes[(episodes["greediness"] == 1.0) & (episodes["num_candidates"] == 2)]
    expected = evaluate(DIPOLE.load(run.folder), PointEnv, 3, EVALUATION_SEED)
    assert own["return"].tolist() == pytest.approx(expected.returns.tolist(), rel=1e-8)
    assert own["success"].isna().all() and set(own["length"]) == {10}


def test_only_missing_cells_are_evaluated_again(finished):
    run, cells = finished
    path = run.folder / "reevaluation.csv"
    kept = path.read_text().splitlines(keepends=True)
    marked = kept[1].replace(",3,", ",33,")  # would be overwritten, if the cell were evaluated again
    path.write_text("".join([kept[0], marked, *kept[2:-1]]))
    assert missing_cells(run.folder, cells) == cells[-1:] and not is_complete(run, cells)
    complete_run(run, cells)
    assert path.read_text().replace("\r", "").splitlines() == [line.strip() for line in [kept[0], marked, *kept[2:]]]
    assert len(read_episodes(run.folder)) == len(cells) * 3


def test_a_run_that_is_trained_on_is_evaluated_anew(finished):
    run, cells = finished
    train_run(DIPOLE, dataclasses.replace(run.run, offline_steps=30), run.config, task=toy_task())
    assert missing_cells(run.folder, cells) == cells and read_episodes(run.folder).empty


def test_a_comparison_of_more_updates_goes_on(finished, tmp_path, capsys):
    more = toy_comparison(tmp_path, "dipole", SINGLE, overrides=SMALL.replace("offline_steps: 20", "offline_steps: 30"))
    (run,) = more.runs
    assert not is_complete(run, more.cells(run)) and not read_run(run).finished
    assert compare(["--config", str(tmp_path / "matrix.yaml"), "--print_commands"]) == 0
    assert "--offline_steps 30" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("batch_size: 8", "batch_size: 9"), "this run has another batch_size"),
        (("offline_steps: 20", "offline_steps: 10"), "this run has another offline_steps"),
    ],
)
def test_no_command_is_printed_for_a_folder_that_holds_another_run(finished, tmp_path, change, message):
    toy_comparison(tmp_path, "dipole", SINGLE, overrides=SMALL.replace(*change))
    with pytest.raises(UserError, match=message):
        compare(["--config", str(tmp_path / "matrix.yaml"), "--print_commands"])


def test_a_finished_run_without_its_evaluations_is_no_picture(finished):
    run, _ = finished
    log = run.folder / "eval.csv"
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    with pytest.raises(UserError, match="eval.csv: has no evaluation of this finished run"):
        read_run(run)


def test_the_evaluation_command_names_its_cells_by_assignments(finished, monkeypatch):
    run, cells = finished
    (run.folder / "reevaluation.csv").unlink()
    monkeypatch.setattr(reevaluation, "load_trained_task", lambda folder, run: toy_task())
    command = run.commands(cells[:2])[1]
    monkeypatch.setattr("sys.argv", command[2:])
    reevaluation.main()
    assert missing_cells(run.folder, cells) == cells[2:]


def test_a_run_that_another_harness_began_is_refused_until_it_is_finished(tmp_path, finished, monkeypatch):
    run, cells = finished
    monkeypatch.setattr(run_folder, "HARNESS_VERSION", 3)
    complete_run(run, cells)  # nothing is left to do
    (run.folder / "result.json").unlink()
    with pytest.raises(UserError, match="began under harness version 2, and this code is version 3"):
        complete_run(run, cells)


def ended(attempt: Attempt) -> str:
    while (state := attempt.poll()) == RUNNING:
        attempt.process.wait()
    return state


def attempt_of(run, cells=({},)):
    return Attempt(run.name, run.folder, run.commands(list(cells)), {"OMP_NUM_THREADS": "1"})


def test_a_failed_process_leaves_its_last_lines_until_a_later_one_succeeds(tmp_path):
    data_dir = tmp_path / "nothing"
    overrides = SMALL.replace("{", f"{{data_dir: {data_dir}, ")
    comparison = toy_comparison(tmp_path, "iql", task="exorl/rnd/walker_walk", overrides=overrides)
    (run,) = comparison.runs
    assert ended(attempt_of(run)) == FAILED
    error = (run.folder / "error.txt").read_text()
    assert "exit code 2" in error and f"no data for walker by rnd: looked for {data_dir}" in error
    assert error.splitlines()[-1] in (run.folder / "log.txt").read_text()
    later = Attempt(run.name, run.folder, [["true"], ["echo", "second"]], {})
    assert ended(later) == FINISHED and not (run.folder / "error.txt").exists()
    assert (run.folder / "log.txt").read_text().splitlines()[-1] == "second"


def test_the_second_command_follows_a_success_only(tmp_path):
    attempt = Attempt("a", tmp_path, [["false"], ["touch", str(tmp_path / "second")]], {})
    assert ended(attempt) == FAILED and not (tmp_path / "second").exists()


def test_a_killed_process_is_told_by_its_signal(finished):
    run, cells = finished
    attempt = attempt_of(run, cells)
    assert attempt.poll() == RUNNING
    attempt.process.kill()
    assert ended(attempt) == FAILED
    error = (run.folder / "error.txt").read_text().splitlines()
    assert error[-1] == "the process was ended by signal SIGKILL (often: out of memory)"


def test_runs_are_grouped_by_comparison_in_wandb(tmp_path):
    assert environment_of(toy_comparison(tmp_path, "iql")) == {"WANDB_RUN_GROUP": "toy"}


# ---- Before the first run ----


@pytest.mark.parametrize(
    ("entry", "flags", "message"),
    [
        (
            "{algorithm: iql, overrides: {offline_steps: 30}}",
            "",
            "offline_steps differs: 20 in dipole; 30 in iql, so",
        ),
        ("iql", "--workers 0", "--workers is 0; it must be at least 1"),
        ("iql", "--restart dipol", "--restart dipol: no variant has this label, choose of dipole, iql"),
        ("{algorithm: iql, overrides: {data_dir: nowhere}}", "--restart", "no such data"),
    ],
)
def test_a_command_that_is_refused_deletes_nothing(finished, tmp_path, entry, flags, message):
    run, _ = finished
    toy_comparison(tmp_path, "dipole", entry)
    with pytest.raises(UserError, match=message):
        compare(["--config", str(tmp_path / "matrix.yaml"), *flags.split()])
    assert (run.folder / "result.json").exists()


def test_mixed_updates_are_allowed_where_asked_for(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_module, "check_data", lambda comparison, restarted: [])
    toy_comparison(tmp_path, "dipole", "{algorithm: iql, overrides: {offline_steps: 30}}")
    assert compare(["--config", str(tmp_path / "matrix.yaml"), "--allow_mixed", "--check"]) == 0


def test_a_folder_of_another_config_is_a_problem(finished, tmp_path):
    comparison = toy_comparison(tmp_path, "{algorithm: dipole, overrides: {discount: 0.5}}", "iql")
    with pytest.raises(UserError, match=r"another discount"):
        check_data(comparison)
    (line,) = check_data(comparison, comparison.runs)
    assert line.startswith("toy/point: locally generated")


def test_the_folders_of_all_runs_are_told_together(finished, tmp_path):
    run, _ = finished
    shutil.copytree(run.folder, run.folder.with_name("seed_1"))
    changed = "{algorithm: dipole, overrides: {discount: 0.5}}"
    with pytest.raises(UserError, match="2 problems:") as error:
        check_data(toy_comparison(tmp_path, changed, seeds="[0, 1]"))
    assert all(f"seed_{seed}" in str(error.value) for seed in (0, 1))


def test_a_task_without_an_environment_is_a_problem(tmp_path, monkeypatch):
    task = dataclasses.replace(toy_task(), make_env=None)
    monkeypatch.setattr(compare_module, "load_run_task", lambda run: task)
    with pytest.raises(UserError, match="toy/point: has no environment, so that there is no score to compare by"):
        check_data(toy_comparison(tmp_path, "iql"))


def test_absent_data_of_all_tasks_are_told_together(tmp_path):
    tasks = "exorl/rnd/walker_walk, exorl/rnd/cheetah_run"
    comparison = toy_comparison(tmp_path, "iql", task=tasks, overrides=f"{{data_dir: {tmp_path}/nothing}}")
    with pytest.raises(UserError) as error:
        check_data(comparison)
    told = str(error.value)
    assert "2 problems:" in told and "no data for walker by rnd" in told and "no data for cheetah by rnd" in told


def test_first_seeds_of_all_variants_come_first(tmp_path):
    comparison = toy_comparison(tmp_path, "dipole", "iql", seeds="[4, 2]")
    order = [(run.variant.label, run.seed) for run in in_order(comparison)]
    assert order == [("dipole", 4), ("iql", 4), ("dipole", 2), ("iql", 2)]


# ---- Places ----


def test_workers_share_the_cores(monkeypatch):
    for available, workers, threads in ((8, 3, "2"), (2, 4, "1")):
        monkeypatch.setattr(workers_module, "cores", lambda available=available: available)
        assert slots_of(workers, []) == [{"OMP_NUM_THREADS": threads}] * workers


def test_runs_are_dealt_round_robin_to_gpus():
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots_of(3, ["2", "5"])] == ["2", "5", "2"]


def test_there_is_a_line_per_change(capsys):
    announce({"a": WAITING, "b": RUNNING, "c": RUNNING}, {"a": RUNNING, "b": FINISHED, "c": RUNNING})
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["[1/3] running: a", "[1/3] finished: b"]


def test_what_a_run_would_stumble_over_is_found_before_any_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_module, "load_run_task", lambda run: toy_task())
    chunks = "{algorithm: iql, label: chunks, overrides: {action_chunk: 5000}}"
    comparison = toy_comparison(tmp_path, "{algorithm: dipole, overrides: {advantage: group}}", chunks)
    with pytest.raises(UserError, match="2 problems") as caught:
        check_data(comparison)
    assert "dipole/toy/point/seed_0: config: these options need the column state_values" in str(caught.value)
    assert "chunks/toy/point/seed_0: " in str(caught.value)


def test_updates_are_read_from_the_end_of_a_log(tmp_path):
    log = tmp_path / "train.csv"
    assert updates_made(log) == 0
    for text in ("", "step,seconds\n"):
        log.write_text(text)
        assert updates_made(log) == 0
    log.write_text("step,seconds\n" + "".join(f"{step},{step / 7}\n" for step in range(1, 5_001)))
    assert updates_made(log) == 5_000


def test_a_terminal_shows_a_bar_of_the_updates(tmp_path, capsys):
    comparison = toy_comparison(tmp_path, "iql")
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    bar = tqdm(total=sum(run.run.total_updates for run in comparison.runs), file=terminal, disable=None, mininterval=0)
    log = comparison.runs[0].folder / "train.csv"
    log.parent.mkdir(parents=True)
    log.write_text("step,seconds\n5,1.0\n")
    move(bar, comparison.runs)
    assert bar.n == 5 and f"5/{bar.total}" in terminal.getvalue()


# ---- The command ----


def test_a_second_command_on_a_comparison_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_module, "check_data", lambda comparison, restarted: [])
    comparison = toy_comparison(tmp_path, "iql")
    comparison.out.mkdir(parents=True)
    with locked(comparison.out / "lock", "held"), pytest.raises(UserError, match="another harness.compare works here"):
        compare(["--config", str(tmp_path / "matrix.yaml")])


def test_commands_are_printed_for_what_is_not_complete(finished, tmp_path, capsys):
    toy_comparison(tmp_path, "dipole", SINGLE, seeds="[0, 1]")
    assert compare(["--config", str(tmp_path / "matrix.yaml"), "--print_commands"]) == 0
    (line,) = [text for text in capsys.readouterr().out.splitlines() if " && " in text]
    train, evaluate = line.split(" && ")
    assert "-m algorithms.dipole " in train and "--seed 1 --label dipole" in train and "seed_1 --act" in evaluate
