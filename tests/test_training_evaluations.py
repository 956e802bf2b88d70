"""Evaluations beside training: the same numbers as at once, nothing lost at any end, and no process left behind."""

import dataclasses
import functools
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from algorithms.dipole import DIPOLE
from common.errors import UserError
from harness.csv_log import CsvLog
from harness.environment_rows import EnvironmentFailure
from harness.run import run
from harness.run_folder import run_path
from harness.training import evaluations as evaluations_module
from harness.training.evaluations import Evaluations, can_run_beside
from tests.test_run import assert_same_run, checkpoint_of, rows_of
from tests.toy import PointEnv, toy_task
from tests.toy_run import toy_config, toy_run, toy_runs

CPU, SPAWNED = torch.device("cpu"), multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    """So that threads: 1 leaves a core, on any machine."""
    monkeypatch.setattr(evaluations_module.os, "cpu_count", lambda: 2)


class WaitingEnv(PointEnv):
    """Its first reset waits until the file `marker` is there, as a slow environment would."""

    def __init__(self, marker: Path):
        self.marker = marker

    def reset(self, **options):
        deadline = time.monotonic() + 60
        while not self.marker.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return super().reset(**options)


class FailingEnv(PointEnv):
    def step(self, action):
        raise ZeroDivisionError


class GreedyEnv(PointEnv):
    def reset(self, **options):
        raise MemoryError("no room")


def train(config, make_env) -> dict:
    task = dataclasses.replace(toy_task(), make_env=make_env)
    return run([DIPOLE(config, 3, 2)], task)[0]


def train_waiting(config, marker: Path) -> None:
    """For a process of its own."""
    evaluations_module.os.cpu_count = lambda: 2
    train(config, functools.partial(WaitingEnv, marker))


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The config of a run that evaluates at once."""
    config = toy_config(tmp_path_factory.mktemp("straight"))
    toy_run(config)
    return config


@pytest.mark.parametrize(
    ("workers", "threads", "device", "expected"),
    [(0, 1, "cpu", False), (1, 1, "cpu", True), (2, 2, "cpu", False), (1, 0, "cpu", False), (1, 0, "cuda", True)],
)
def test_evaluations_run_beside_training_where_cores_are_left(tmp_path, workers, threads, device, expected):
    config = toy_config(tmp_path, eval_workers=workers, threads=threads)
    assert can_run_beside(config, torch.device(device)) is expected


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_beside_training_is_bit_equal_to_at_once(tmp_path, straight, seeds):
    configs = [toy_config(tmp_path, seed=seed, eval_workers=1) for seed in seeds]
    toy_runs(configs)
    assert_same_run(configs[0], straight)
    assert not multiprocessing.active_children()


def test_training_goes_on_and_a_checkpoint_keeps_the_unfinished_evaluation(tmp_path, straight):
    """The evaluation of step 20 is not finished at the checkpoint of step 40; kill -9; the next call finishes it."""
    config, marker = toy_config(tmp_path, eval_workers=1, eval_interval=30), tmp_path / "marker"
    process = SPAWNED.Process(target=train_waiting, args=(config, marker))
    process.start()
    log = run_path(config) / "train.csv"
    wait_until(lambda: log.exists() and any(int(row["step"]) >= 55 for row in CsvLog(log).rows))
    process.kill()
    process.join()
    kept = checkpoint_of(config)["loop"]
    assert kept["step"] == 40 and kept["evaluation"]["step"] == 30
    assert not (run_path(config) / "eval.csv").exists()
    marker.touch()
    train(config, functools.partial(WaitingEnv, marker))
    at_once = toy_config(tmp_path / "at_once", eval_interval=30)
    toy_run(at_once)
    assert_same_run(config, at_once)


def test_an_unfinished_evaluation_is_made_at_once_where_no_workers_are_asked_for_any_more(tmp_path):
    config, marker = toy_config(tmp_path, eval_workers=1, eval_interval=30), tmp_path / "marker"
    process = SPAWNED.Process(target=train_waiting, args=(config, marker))
    process.start()
    wait_until(lambda: (run_path(config) / "checkpoint.pt").exists() and checkpoint_of(config)["loop"]["step"] == 40)
    process.kill()
    process.join()
    toy_run(dataclasses.replace(config, eval_workers=0))
    at_once = toy_config(tmp_path / "at_once", eval_interval=30)
    toy_run(at_once)
    assert_same_run(config, at_once)


def test_a_row_that_was_written_after_the_checkpoint_is_not_made_twice(tmp_path):
    """The evaluation was finished between the checkpoint that holds its snapshot and the end of the process."""
    config = toy_config(tmp_path, eval_interval=30)
    toy_run(config)
    folder = run_path(config)
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    snapshot = evaluations_module.take_snapshot(DIPOLE(config, 3, 2))
    checkpoint["loop"]["evaluation"] = {
        "step": 30,
        "snapshot": torch.frombuffer(bytearray(snapshot), dtype=torch.uint8),
    }
    torch.save(checkpoint, folder / "checkpoint.pt")
    (folder / "result.json").unlink()
    before = rows_of(folder / "eval.csv")
    toy_run(config)
    assert rows_of(folder / "eval.csv") == before
    assert "evaluation" not in checkpoint_of(config)["loop"]


def test_the_checkpoint_of_a_finished_run_keeps_no_snapshot(tmp_path):
    """The evaluation of step 40 is unfinished at the last checkpoint, which is written again when all are in."""
    config, marker = toy_config(tmp_path, eval_workers=1, eval_interval=40), tmp_path / "marker"
    process = SPAWNED.Process(target=train_waiting, args=(config, marker))
    process.start()
    wait_until(lambda: (run_path(config) / "checkpoint.pt").exists() and checkpoint_of(config)["loop"]["step"] == 60)
    assert checkpoint_of(config)["loop"]["evaluation"]["step"] == 40
    marker.touch()
    process.join(60)
    assert process.exitcode == 0 and "evaluation" not in checkpoint_of(config)["loop"]
    at_once = toy_config(tmp_path / "at_once", eval_interval=40)
    toy_run(at_once)
    assert_same_run(config, at_once)


def test_a_signal_does_not_wait_for_the_evaluation(tmp_path, straight):
    config, marker = toy_config(tmp_path, eval_workers=1), tmp_path / "marker"
    process = SPAWNED.Process(target=train_waiting, args=(config, marker))
    process.start()
    log = run_path(config) / "train.csv"
    wait_until(lambda: log.exists() and any(int(row["step"]) >= 25 for row in CsvLog(log).rows))
    process.terminate()
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM
    kept = checkpoint_of(config)["loop"]
    assert kept["evaluation"]["step"] == 20 < kept["step"]
    marker.touch()
    train(config, functools.partial(WaitingEnv, marker))
    assert_same_run(config, straight)


def processes_of(group: int) -> list:
    """The commands of the living processes of a process group."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if os.getpgid(int(folder.name)) == group and (folder / "cmdline").read_bytes():
                    found.append((folder / "cmdline").read_text())
            except (ProcessLookupError, FileNotFoundError):
                pass
    return found


def train_in_a_group(config, marker: Path) -> None:
    os.setpgid(0, 0)
    train_waiting(config, marker)


def test_no_process_outlives_a_killed_run(tmp_path):
    config, marker = toy_config(tmp_path, eval_workers=1), tmp_path / "marker"
    process = SPAWNED.Process(target=train_in_a_group, args=(config, marker))
    process.start()
    wait_until(lambda: len(processes_of(process.pid)) >= 3)  # the run, its evaluations, their environments
    process.kill()
    process.join()
    marker.touch()  # an environment's process ends after the step that it is in
    wait_until(lambda: not [command for command in processes_of(process.pid) if "spawn_main" in command])


@pytest.mark.parametrize(
    ("make_env", "error", "message"),
    [(FailingEnv, EnvironmentFailure, "ZeroDivisionError"), (GreedyEnv, UserError, "lower eval_environments")],
)
def test_what_goes_wrong_beside_training_ends_the_run_with_its_message(tmp_path, make_env, error, message):
    with pytest.raises(error, match=message):
        train(toy_config(tmp_path, eval_workers=1), make_env)
    assert not multiprocessing.active_children()


def test_the_death_of_the_process_is_told(tmp_path):
    config = toy_config(tmp_path, eval_workers=1)
    agent = DIPOLE(config, 3, 2)
    with Evaluations(toy_task(), agent, CPU) as evaluations:
        evaluations.evaluator.process.kill()
        evaluations.evaluator.process.join()
        with pytest.raises(EnvironmentFailure, match=r"process of the evaluations ended \(exit code -9\)"):
            evaluations.submit(agent, lambda result: None)
            evaluations.collect(wait=True)


def test_results_come_in_the_order_of_the_snapshots_and_are_those_of_their_time(tmp_path):
    """A snapshot is not the agent as it is when its turn comes."""
    config, results = toy_config(tmp_path, eval_workers=1), []
    agent = DIPOLE(config, 3, 2)
    with Evaluations(toy_task(), agent, CPU) as beside:
        for index in range(3):
            beside.submit(agent, lambda result, index=index: results.append((index, result)))
            for _ in range(5):
                agent.update(toy_task().dataset.sample(8, torch.Generator().manual_seed(index)))
        beside.collect(wait=True)
    again = DIPOLE(config, 3, 2)
    with Evaluations(toy_task(), again, torch.device("cpu")) as evaluations:
        for index in range(3):
            evaluations.submit(again, lambda result, index=index: results.append((index, result)))
            evaluations.collect(wait=True)
            for _ in range(5):
                again.update(toy_task().dataset.sample(8, torch.Generator().manual_seed(index)))
    assert [index for index, _ in results] == [0, 1, 2, 0, 1, 2]
    for (_, first), (_, second) in zip(results[:3], results[3:], strict=True):
        assert np.array_equal(first.returns, second.returns)
    assert not np.array_equal(results[0][1].returns, results[2][1].returns)
