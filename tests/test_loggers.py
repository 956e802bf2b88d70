"""Where a run's rows go: CSV logs that survive a crash, TensorBoard, and Weights & Biases read back from its files."""

import dataclasses
import json
import struct
import sys
import time
from pathlib import Path

import pytest

from common.errors import UserError
from harness.loggers import CsvLog
from tests.test_run import environment_of, rows_of
from tests.toy import PointEnv, toy_task
from tests.toy_run import RUN, toy_run


def test_csv_header_grows_and_cut_rows_are_dropped(tmp_path):
    log = CsvLog(tmp_path / "log.csv")
    log.append({"step": 1, "a": 0.5})
    log.append({"step": 2, "a": 0.25, "b": 3})
    log.append({"step": 3, "b": 4})
    assert rows_of(log.path) == [
        {"step": "1", "a": "0.5", "b": ""},
        {"step": "2", "a": "0.25", "b": "3"},
        {"step": "3", "a": "", "b": "4"},
    ]
    with open(log.path, "a") as file:
        file.write("4,0.1")  # what a crash leaves of a row
    reopened = CsvLog(log.path)
    assert reopened.last_step == 3
    reopened.keep_until(2)
    reopened.append({"step": 3, "a": 1.0, "b": 5})
    assert [(row["step"], row["b"]) for row in rows_of(log.path)] == [("1", ""), ("2", "3"), ("3", "5")]


class CrashingEnv(PointEnv):
    """Ends its process's run in the second evaluation."""

    resets = 0

    def reset(self, **options):
        type(self).resets += 1
        if self.resets > RUN.eval_episodes:
            raise KeyboardInterrupt
        return super().reset(**options)


def crash(run_dir, **changes) -> None:
    """Trains for 40 updates, the last 10 of them after the last checkpoint."""
    CrashingEnv.resets = 0
    with pytest.raises(KeyboardInterrupt):
        toy_run(run_dir, task=dataclasses.replace(toy_task(), make_env=CrashingEnv), checkpoint_interval=30, **changes)


# ---- Weights & Biases ----


def wandb_records(path: Path) -> list:
    """The records of a .wandb file: after 7 bytes, LevelDB's log format (32 KiB blocks of checksummed fragments)."""
    wandb_internal_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    data, position, fragments, records = path.read_bytes(), 7, [], []
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:  # no room for a fragment's header: the block's padding
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        fragments.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole, or the last fragment
            records.append(wandb_internal_pb2.Record())
            records[-1].ParseFromString(b"".join(fragments))
            fragments = []
    return records


def whole_records(path: Path) -> list:
    """The records once the last of a run is there: W&B's own process may write after finish() has returned."""
    deadline, records = time.monotonic() + 30, wandb_records(path)
    while not any(record.HasField("exit") for record in records):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        records = wandb_records(path)
    return records


def values_of(items) -> dict:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


@pytest.mark.parametrize("ending", ["straight", "resumed"])
def test_wandb_gets_every_row_of_every_seed_on_an_axis_of_updates(tmp_path, ending):
    pytest.importorskip("wandb")
    changes = {"logger": ("csv", "wandb"), "wandb_mode": "offline"}
    ids = set()
    for seed in (0, 1):
        if ending == "resumed":
            crash(tmp_path, seed=seed, **changes)
        folder = toy_run(tmp_path, seed=seed, **changes)
        paths = sorted(folder.rglob("*.wandb"))
        assert len(paths) == (2 if ending == "resumed" else 1)
        records = [record for path in paths for record in whole_records(path)]
        rows = [values_of(record.history.item) for record in records if record.HasField("history")]
        for name, group in (("train.csv", "training"), ("eval.csv", "evaluation")):
            logged = {row["updates"]: row for row in rows if any(key.startswith(group) for key in row)}
            expected = rows_of(folder / name)
            assert sorted(logged) == [int(row["step"]) for row in expected]
            for row in expected:
                for key, value in row.items():
                    if key != "step":
                        assert logged[int(row["step"])][f"{group}/{key}"] == pytest.approx(float(value))
        axes = {record.metric.glob_name: record.metric.step_metric for record in records if record.HasField("metric")}
        assert axes["*"] == "updates"
        (run,) = {record.run.run_id for record in records if record.HasField("run")}
        ids.add(run)
        shown = next(values_of(record.run.config.update) for record in records if record.HasField("run"))
        environment = environment_of(folder)
        for key in ("algorithm", "data", "versions", "commit", "threads"):
            assert shown[key] == environment[key]
        assert shown["seed"] == seed and shown["discount"] == 0.995
    assert len(ids) == 2


@pytest.mark.parametrize("changes", [{"restart": True}, {"offline_steps": 80}])
def test_wandb_that_refuses_costs_nothing(tmp_path, monkeypatch, changes):
    """Without a key, asked for before a restart deletes; and at its start, before a longer run forgets its result."""
    wandb = pytest.importorskip("wandb")
    folder = toy_run(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def refuse(**options):
        raise wandb.errors.AuthenticationError("not today")

    monkeypatch.setattr(wandb, "login", lambda prompt: "restart" not in changes)
    monkeypatch.setattr(wandb, "init", refuse)
    reason = "there is no API key, or WANDB_MODE forbids to log in" if "restart" in changes else "not today"
    with pytest.raises(UserError, match=f"wandb: {reason}; mend it, or set --wandb_mode offline"):
        toy_run(tmp_path, logger=("wandb",), **changes)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    toy_run(tmp_path, logger=("wandb",))  # finished: there is nothing to send


# ---- TensorBoard ----


def test_tensorboard_gets_every_row_once_after_a_kill_too(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    changes = {"logger": ("tensorboard", "csv")}
    crash(tmp_path, **changes)
    folder = toy_run(tmp_path, **changes)
    events = event_accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    for name, group in (("train.csv", "training"), ("eval.csv", "evaluation")):
        for column in ("seconds", "critic/loss" if group == "training" else "return"):
            scalars, rows = events.Scalars(f"{group}/{column}"), rows_of(folder / name)
            assert [event.step for event in scalars] == [int(row["step"]) for row in rows]
            assert [event.value for event in scalars] == pytest.approx([float(row[column]) for row in rows])
    toy_run(tmp_path, restart=True, **changes)
    assert len(list((folder / "tensorboard").iterdir())) == 1


def test_tensorboard_that_is_not_installed_is_one_sentence(tmp_path, monkeypatch):
    find_spec = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tensorboard" else find_spec(name))
    monkeypatch.delitem(sys.modules, "tensorboard", raising=False)
    with pytest.raises(UserError, match="tensorboard is absent; pip install -r requirements-tensorboard.txt"):
        toy_run(tmp_path, logger=("tensorboard",))
    assert not list(tmp_path.iterdir())
