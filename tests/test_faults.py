"""Faults of the machine and of others' code, one test for each: what happens, and that nothing is lost."""

import dataclasses
import errno
import functools
import json
import math
import os
import resource
import time
from pathlib import Path

import pytest
import torch

from algorithms.dipole import DIPOLE
from common.errors import UserError, exit_on_user_error
from envs.task import file_sha256
from harness import evaluation
from harness.config import RANGES
from harness.devices import BATCH_STREAM, seeded_generator
from harness.divergence import Diverged
from harness.environment_processes import EnvironmentProcesses
from harness.environment_rows import EnvironmentFailure
from harness.evaluation import Evaluator, evaluate
from harness.loggers import CsvLog
from tests.test_evaluation import SEED, Agent, RandomWalk, same
from tests.test_run import assert_same_end, assert_same_run, checkpoint_of, rows_of
from tests.toy import toy_task
from tests.toy_run import toy_folder, toy_run

# ---- the disk ----


@pytest.fixture
def file_limit():
    """A function that bounds the size of every file this process writes; lifted at the end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_during_a_checkpoint_keeps_the_last_one(tmp_path, monkeypatch, file_limit):
    """Torch's own writer meets the limit (an error of its own, no OSError); then the run ends as an undisturbed one."""
    straight, full = toy_run(tmp_path / "straight"), toy_folder(tmp_path / "full")
    save = torch.save

    def save_to_full_disk(checkpoint, path):
        if checkpoint["loop"]["step"] == 40:
            file_limit(4096)
        save(checkpoint, path)

    monkeypatch.setattr(torch, "save", save_to_full_disk)
    with pytest.raises(UserError, match="checkpoint.pt: cannot be written .*the same command continues") as caught:
        toy_run(tmp_path / "full")
    assert "\n" not in str(caught.value)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.undo()
    assert checkpoint_of(full)["loop"]["step"] == 20
    assert not [path for path in full.iterdir() if path.suffix == ".tmp"]
    assert_same_end(straight, toy_run(tmp_path / "full"))


def test_a_full_disk_during_a_csv_row_leaves_a_readable_log(tmp_path, monkeypatch, capsys):
    straight = toy_run(tmp_path / "straight")
    append = CsvLog.append

    def append_half(log, row):
        if row["step"] == 35:
            with open(log.path, "a") as file:
                file.write("35,0.1")
            raise OSError(errno.ENOSPC, "No space left on device", str(log.path))
        append(log, row)

    monkeypatch.setattr(CsvLog, "append", append_half)
    with pytest.raises(SystemExit) as exit, exit_on_user_error():
        toy_run(tmp_path / "full")
    assert exit.value.code == 2
    assert capsys.readouterr().err.endswith(
        "train.csv: No space left on device; make room and give the same command again\n"
    )
    monkeypatch.undo()
    assert_same_run(straight, toy_run(tmp_path / "full"))


def test_a_read_only_run_folder_is_refused_before_training(tmp_path, monkeypatch):
    access = os.access  # tests run as root, who may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    with pytest.raises(UserError, match="cannot be written to; change its permissions or set run_dir elsewhere"):
        toy_run(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sha256", "validation_sha256", "environment_sha256"])
def test_a_changed_data_file_is_refused_at_resume(tmp_path, name):
    data = tmp_path / "data.bin"

    def train(content: bytes):
        identity = toy_task().identity | {"path": str(data)}
        data.write_bytes(content)
        identity[name] = file_sha256(data)[0]
        return toy_run(tmp_path, task=dataclasses.replace(toy_task(), identity=identity), offline_steps=20)

    train(b"0123456789")
    with pytest.raises(UserError, match="data.bin: the data set has changed since this run began"):
        train(b"0123456788")


# ---- numbers ----


class Diverging(DIPOLE):
    """Its value network's bias jumps to infinity in update 27."""

    updates = 0

    def update(self, batch):
        self.updates += 1
        if self.updates == 27:
            with torch.no_grad():
                self.value.biases[-1].fill_(float("inf"))
        return super().update(batch)


class DivergingByData(DIPOLE):
    """Overflows in an update whose minibatch holds the observation `bad`."""

    def update(self, batch):
        scale = torch.where(batch["observations"][:, 0] == self.bad, 1e30, 1.0)
        return super().update(batch | {"rewards": batch["rewards"] * scale})


def diverge(run_dir, agent_class, **changes) -> tuple[Path, str]:
    """(folder, message) of a run that diverges."""
    with pytest.raises(Diverged, match="learning_rate") as caught:
        toy_run(run_dir, agent_class, **changes)
    assert "\n" not in str(caught.value)
    return toy_folder(run_dir, **changes), str(caught.value)


def test_a_learning_rate_that_overflows_leaves_no_bad_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setitem(RANGES, "learning_rate", (0, math.inf))
    folder, _ = diverge(tmp_path, DIPOLE, learning_rate=1e38, log_interval=1, eval_interval=60, checkpoint_interval=1)
    path = folder / "checkpoint.pt"
    assert not path.exists() or all(
        torch.isfinite(tensor).all() for tensor in checkpoint_of(folder)["agent"]["networks"].values()
    )


def test_a_divergence_is_traced_to_its_update_and_minibatch(tmp_path, monkeypatch):
    """The loss of one transition overflows; the report names the update, its minibatch and the term."""
    dataset, batches = toy_task().dataset, seeded_generator(torch.device("cpu"), 0, BATCH_STREAM)
    draws = [dataset.draw(8, batches) for _ in range(60)]
    seen, update = set(draws[0].tolist()), 27
    for draw in draws[1 : update - 1]:
        seen |= set(draw.tolist())
    bad = next(number for number in draws[update - 1].tolist() if number not in seen)
    monkeypatch.setattr(DivergingByData, "bad", dataset.take(torch.tensor([bad]))["observations"][0, 0], raising=False)
    folder, message = diverge(tmp_path, DivergingByData, log_interval=30, checkpoint_interval=10)
    report = json.loads((folder / "divergence.json").read_text())
    assert checkpoint_of(folder)["loop"]["step"] == report["repeated_from"] == 20
    assert report["update"] == update and report["transitions"] == draws[update - 1].tolist()
    assert report["rows"] == dataset.valid[draws[update - 1]].tolist()
    assert report["not_finite"][0] == "critic/loss is inf" and report["metrics"]["critic/loss"] == "inf"
    assert "after 30 updates; it began in update 27 with critic/loss is inf, see " in message
    state = checkpoint_of(folder)["agent"]["networks"]
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_a_divergence_that_does_not_repeat_is_still_refused(tmp_path):
    """Its cause is outside the checkpoint: the run stops all the same, before anything is evaluated or saved."""
    folder, message = diverge(tmp_path, Diverging, log_interval=60, checkpoint_interval=20, eval_interval=30)
    assert "could not be repeated" in message and "after 30 updates" in message
    assert checkpoint_of(folder)["loop"]["step"] == 20
    assert not (folder / "eval.csv").exists()


# ---- environments in processes ----


class Faulty(RandomWalk):
    """Dies, hangs or fails in the third step of an episode."""

    def __init__(self, fault: str):
        self.fault = fault

    def step(self, action):
        if self.time == 2:
            if self.fault == "dies":
                os._exit(11)
            if self.fault == "hangs":
                time.sleep(3600)
            raise ZeroDivisionError("simulated failure")
        return super().step(action)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (
            "dies",
            UserError,
            r"environments-0, .* in the episodes with seeds \[500, 501\]: ended with exit code 11; give",
        ),
        ("hangs", UserError, r"in the episodes with seeds \[500, 501\]: gave no answer for 1 s; give the same command"),
        ("raises", EnvironmentFailure, r"(?s)seed 500 failed.*ZeroDivisionError: simulated failure"),
    ],
)
def test_a_process_that_fails_ends_the_evaluation_and_the_next_one_has_a_new_process(fault, error, message):
    class Patient(EnvironmentProcesses):
        def step(self, *arguments):
            self.seconds_to_answer = 1.0  # an answer is quick, a new process needs seconds for its imports
            return super().step(*arguments)

    with Evaluator(functools.partial(Faulty, fault), environments=2, workers=1) as evaluator:
        evaluator.rows = Patient(evaluator.make_env, 1)
        (process,) = evaluator.rows.processes
        with pytest.raises(error, match=message):
            evaluator.evaluate(Agent(), 2, SEED)
        assert not process.is_alive()
        evaluator.make_env = RandomWalk
        assert same(evaluator.evaluate(Agent(), 2, SEED), evaluate(Agent(), RandomWalk, 2, SEED))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n20 GiB"),
        MemoryError("Unable to allocate 7 TiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_in_an_evaluation_is_one_sentence_after_the_checkpoint(tmp_path, monkeypatch, error):
    straight, folder = toy_run(tmp_path / "straight"), toy_folder(tmp_path / "short")
    act = DIPOLE.act

    def act_or_fail(agent, observations, **options):
        if checkpoint_of(folder)["loop"]["step"] == 40:
            raise error
        return act(agent, observations, **options)

    monkeypatch.setattr(DIPOLE, "act", act_or_fail)
    with pytest.raises(UserError, match="out of memory with 3 environments .*lower eval_environments") as caught:
        toy_run(tmp_path / "short")
    assert "\n" not in str(caught.value)
    assert checkpoint_of(folder)["loop"]["step"] == 40
    monkeypatch.undo()
    assert_same_end(straight, toy_run(tmp_path / "short"))


class Greedy(RandomWalk):
    def reset(self, **options):
        raise MemoryError("no room")


def test_out_of_memory_in_an_environment_is_one_sentence():
    with pytest.raises(UserError, match=r"out of memory with 2 environments at a time \(no room\); lower"):
        evaluate(Agent(), Greedy, 2, SEED)


# ---- the clock ----


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, monkeypatch):
    straight = toy_run(tmp_path / "straight")
    now = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    folder = toy_run(tmp_path / "backwards")
    assert_same_end(straight, folder)
    rows = rows_of(folder / "train.csv")
    assert all(float(row["updates_per_second"]) > 0 for row in rows)
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)
    assert evaluate(Agent(), RandomWalk, 2, SEED).lengths.sum() > 0


def test_durations_are_of_the_clock_that_cannot_go_backwards():
    """perf_counter and monotonic never do (PEP 418); time.time does when a machine corrects its clock."""
    root = Path(evaluation.__file__).parents[1]
    sources = [path for folder in ("harness", "algorithms") for path in (root / folder).rglob("*.py")]
    assert len(sources) > 20
    assert not [path.name for path in sources if "time.time()" in path.read_text()]
