"""The run: its folder, exact continuation after any end, and training that evaluation does not change."""

import csv
import dataclasses
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from algorithms.dipole import DIPOLE
from common.errors import UserError
from common.files import remove_abandoned, replacing, write_text
from harness import run_files
from harness.config_file import load_config
from harness.csv_log import CsvLog
from harness.run import run
from harness.run_fields import check_run_fields
from harness.run_folder import RunFolder, load_agent, remove_run, run_path
from tests.test_agents import assert_equal_states
from tests.toy import PointEnv, toy_task
from tests.toy_run import CONFIG, toy_config, toy_run

ROOT = Path(__file__).resolve().parents[1]


def checkpoint_of(config) -> dict:
    return torch.load(run_path(config) / "checkpoint.pt", weights_only=True)


def assert_same_end(first, second) -> None:
    """Equal parameters, optimiser, random state and next batch, bit for bit."""
    first, second = checkpoint_of(first), checkpoint_of(second)
    assert first["loop"]["step"] == second["loop"]["step"]
    assert torch.equal(first["loop"]["batches"], second["loop"]["batches"])
    assert_equal_states(first["agent"], second["agent"])


def rows_of(path: Path) -> list:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def without_times(rows: list) -> list:
    return [{k: v for k, v in row.items() if "seconds" not in k and "per_second" not in k} for row in rows]


def assert_same_run(first, second) -> None:
    """The same end, and the same logged rows."""
    assert_same_end(first, second)
    for name in ("train.csv", "eval.csv"):
        rows = [without_times(rows_of(run_path(config) / name)) for config in (first, second)]
        assert rows[0] == rows[1]


def start(run_dir: Path, *changes: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.toy_run", str(run_dir), *changes]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_step(process: subprocess.Popen, path: Path, step: int) -> None:
    """Returns once train.csv holds a row of `step` or later."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        if path.exists() and any(int(row["step"]) >= step for row in CsvLog(path).rows):
            return
        time.sleep(0.005)
    raise TimeoutError(f"{path} never reached step {step}")


def test_folder_holds_what_a_run_is(tmp_path):
    config = toy_config(tmp_path, label="variant", seed=5)
    result = toy_run(config)
    folder = tmp_path / "variant" / "toy" / "point" / "seed_5"
    assert run_path(config) == folder
    assert load_config(type(config), folder / "config.yaml") == config
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["algorithm"] == "dipole" and environment["data"] == toy_task().identity
    assert [int(row["step"]) for row in rows_of(folder / "train.csv")] == list(range(5, 61, 5))
    evaluations = rows_of(folder / "eval.csv")
    assert [int(row["step"]) for row in evaluations] == [20, 40, 60]
    returns = [float(row["return"]) for row in evaluations]
    assert result == json.loads((folder / "result.json").read_text())
    assert result["score"] == pytest.approx(returns[-1])
    assert result["score_last_evaluations"] == pytest.approx(sum(returns) / 3)
    assert (folder / "learning_curve.png").stat().st_size > 0
    assert {path.name for path in folder.iterdir()} <= set(run_files.ALL)


def test_training_lowers_the_critic_loss(tmp_path):
    config = toy_config(tmp_path, offline_steps=300, log_interval=20, eval_interval=300, learning_rate=3e-3)
    toy_run(config)
    losses = [float(row["critic/loss"]) for row in rows_of(run_path(config) / "train.csv")]
    assert losses[-1] < 0.5 * losses[0]


def test_validation_losses_are_logged(tmp_path):
    config = toy_config(tmp_path)
    toy_run(config, validation=True)
    row = rows_of(run_path(config) / "train.csv")[-1]
    assert {f"validation/{name}" for name in row if "/" in name and "validation" not in name} <= row.keys()
    without = toy_config(tmp_path, label="without")
    toy_run(without)
    assert_same_end(config, without)


def test_evaluation_never_changes_training(tmp_path):
    configs = [
        toy_config(tmp_path, label="often", eval_interval=7, eval_episodes=4),
        toy_config(tmp_path, label="seldom", eval_interval=60, eval_environments=2),
    ]
    for config in configs:
        toy_run(config)
    assert_same_end(*configs)


def test_kill_and_continue_equals_a_straight_run(tmp_path):
    """kill -9 between checkpoints; the continued run ends bit-identical, with the same rows."""
    straight, killed = toy_config(tmp_path / "straight"), toy_config(tmp_path / "killed")
    toy_run(straight)
    log = run_path(killed) / "train.csv"
    process = start(tmp_path / "killed")
    wait_for_step(process, log, 25)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL and not (run_path(killed) / "result.json").exists()
    assert checkpoint_of(killed)["loop"]["step"] < 60
    toy_run(killed)
    assert_same_end(straight, killed)
    for name in ("train.csv", "eval.csv"):
        assert without_times(rows_of(run_path(straight) / name)) == without_times(rows_of(run_path(killed) / name))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint(tmp_path, number):
    straight, stopped = toy_config(tmp_path / "straight"), toy_config(tmp_path / "stopped")
    changes = {"offline_steps": 600, "checkpoint_interval": 600, "eval_interval": 600}
    straight, stopped = (dataclasses.replace(config, **changes) for config in (straight, stopped))
    toy_run(straight)
    process = start(tmp_path / "stopped", *(f"{name}={value}" for name, value in changes.items()))
    wait_for_step(process, run_path(stopped) / "train.csv", 25)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number, output
    assert "the same command continues" in output and "Traceback" not in output
    assert 25 <= checkpoint_of(stopped)["loop"]["step"] < 600
    toy_run(stopped)
    assert_same_end(straight, stopped)


class SignallingEnv(PointEnv):
    """Sends its process SIGTERM in the first step of the third evaluation."""

    resets = 0

    def reset(self, **options):
        type(self).resets += 1
        return super().reset(**options)

    def step(self, action):
        if type(self).resets == 3 * CONFIG.eval_episodes and self.steps == 0:
            type(self).resets += 1
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(action)


def test_a_signal_during_an_evaluation_repeats_it(tmp_path, capsys):
    straight, stopped = toy_config(tmp_path / "straight"), toy_config(tmp_path / "stopped")
    toy_run(straight)
    task = dataclasses.replace(toy_task(), make_env=SignallingEnv)
    with pytest.raises(SystemExit) as exit:
        run([DIPOLE(stopped, task.observation_dim, task.action_dim)], task)
    assert exit.value.code == 128 + signal.SIGTERM
    assert checkpoint_of(stopped)["loop"]["step"] == 60 and len(rows_of(run_path(stopped) / "eval.csv")) == 2
    toy_run(stopped)
    assert_same_end(straight, stopped)
    evaluations = [without_times(rows_of(run_path(config) / "eval.csv")) for config in (straight, stopped)]
    assert evaluations[0] == evaluations[1]


def test_a_finished_run_is_not_trained_again(tmp_path, capsys):
    config = toy_config(tmp_path)
    first = toy_run(config)
    written = (run_path(config) / "checkpoint.pt").stat().st_mtime_ns
    assert toy_run(config) == first
    assert (run_path(config) / "checkpoint.pt").stat().st_mtime_ns == written
    assert "not trained again" in capsys.readouterr().out


def test_another_config_is_refused_with_its_fields(tmp_path):
    toy_run(toy_config(tmp_path))
    with pytest.raises(UserError, match=r"discount \(0.995 there, 0.9 asked\), greediness") as error:
        toy_run(toy_config(tmp_path, discount=0.9, greediness=1.0))
    assert "--restart" in str(error.value) and "\n" not in str(error.value)
    toy_run(toy_config(tmp_path, device="auto"))  # where it runs may differ


def test_changed_data_is_refused(tmp_path):
    config = toy_config(tmp_path)
    toy_run(config)
    path = run_path(config) / "environment.json"
    path.write_text(path.read_text().replace('"sha256": "0"', '"sha256": "1"'))
    with pytest.raises(UserError, match="data set has changed"):
        toy_run(config)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "truncated", "foreign"])
def test_a_broken_checkpoint_is_refused_and_kept(tmp_path, content):
    config = toy_config(tmp_path)
    toy_run(config)
    path = run_path(config) / "checkpoint.pt"
    (run_path(config) / "result.json").unlink()
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif content == "foreign":
        torch.save({"format": 1, "algorithm": "other"}, path)
    else:
        path.write_bytes(content)
    kept = path.read_bytes()
    with pytest.raises(UserError, match="checkpoint.pt: is ") as error:
        toy_run(config)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == kept


def test_restart_deletes_the_run_and_nothing_else(tmp_path, capsys):
    config = toy_config(tmp_path)
    toy_run(config)
    (run_path(config) / "notes.txt").write_text("mine")
    remove_run(config)
    assert "deleting config.yaml" in capsys.readouterr().out
    assert [path.name for path in run_path(config).iterdir()] == ["notes.txt"]
    toy_run(dataclasses.replace(config, discount=0.5))


@pytest.mark.parametrize(
    "field, value",
    [
        ("eval_interval", 0),
        ("threads", -1),
        ("threads", 2**40),
        ("seed", 2**70),
        ("device", "gpu"),
        ("wandb_mode", "on"),
        ("matmul_precision", "bf16"),
        ("label", "../other"),
        ("learning_rate", -1.0),
        ("actor_hidden_dims", (8, 0)),
        ("discount", 1.5),
    ],
)
def test_run_fields_out_of_range_are_refused_by_name(tmp_path, field, value):
    with pytest.raises(UserError, match=f"config: {field} is"):
        check_run_fields(toy_config(tmp_path, **{field: value}))


@pytest.mark.parametrize("name", ["environment.json", "result.json", "config.yaml", "eval.csv"])
@pytest.mark.parametrize("content", ["", "{}", "[1]", "x,y\n1,2\n"])
def test_damaged_run_files_are_refused_by_name(tmp_path, name, content):
    config = toy_config(tmp_path)
    toy_run(config)
    (run_path(config) / name).write_text(content)
    if name == "eval.csv" and content == "":
        return  # no evaluation yet
    with pytest.raises(UserError, match=name) as error:
        toy_run(config)
    assert "--restart" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"step,return\nmany,1\n", b"step,\xff\n1,2\n"])
def test_a_log_that_is_no_text_of_numbered_rows_is_refused(tmp_path, content):
    config = toy_config(tmp_path)
    toy_run(config)
    (run_path(config) / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match="train.csv: is damaged"):
        toy_run(config)


def test_a_checkpoint_without_its_config_is_refused(tmp_path):
    config = toy_config(tmp_path)
    toy_run(config)
    (run_path(config) / "config.yaml").unlink()
    with pytest.raises(UserError, match="without config.yaml"):
        toy_run(dataclasses.replace(config, discount=0.5))


def test_a_checkpoint_of_another_version_of_the_algorithm_is_refused(tmp_path):
    config = toy_config(tmp_path)
    toy_run(config)
    path = run_path(config) / run_files.CHECKPOINT
    checkpoint = torch.load(path, weights_only=True)
    networks = checkpoint["agent"]["networks"]
    networks["actor.weights.0"] = networks.pop("flow.weights.0")
    torch.save(checkpoint, path)
    with pytest.raises(
        UserError, match="does not fit this version of the algorithm .*Missing key.*--restart"
    ) as caught:
        load_agent(DIPOLE, run_path(config), "dipole")
    assert "\n" not in str(caught.value)
    (run_path(config) / run_files.RESULT).unlink()  # as if the run had been stopped
    with pytest.raises(UserError, match="does not fit this version"):
        toy_run(config)


def test_a_column_that_the_data_have_not_is_refused_before_anything_is_written(tmp_path):
    config = toy_config(tmp_path, advantage="group")
    with pytest.raises(
        UserError, match=r"need the column state_values, of which the data of .* have none.*\(advantage: critic\)"
    ):
        toy_run(config)
    assert not run_path(config).exists()


def test_a_second_process_on_a_run_is_refused(tmp_path):
    config = toy_config(tmp_path)
    with RunFolder(config, toy_task().identity).lock(), pytest.raises(UserError, match="another process"):
        toy_run(config)
    toy_run(config)


def test_divergence_keeps_the_last_checkpoint(tmp_path):
    """A learning rate that overflows is found at the next log row and no checkpoint of it is written."""
    config = toy_config(tmp_path, learning_rate=1e3, log_interval=1, eval_interval=60, checkpoint_interval=1)
    task = toy_task()
    agent = DIPOLE(config, task.observation_dim, task.action_dim)
    with torch.no_grad():
        agent.value.biases[-1].fill_(1e30)
    with pytest.raises(UserError, match="learning_rate"):
        run([agent], task)
    path = run_path(config) / "checkpoint.pt"
    assert not path.exists() or all(
        torch.isfinite(tensor).all() for tensor in torch.load(path, weights_only=True)["agent"]["networks"].values()
    )


def test_the_precision_of_products_is_torchs_and_part_of_the_run(tmp_path):
    before = torch.get_float32_matmul_precision()
    try:
        toy_run(toy_config(tmp_path, matmul_precision="high"))
        assert torch.get_float32_matmul_precision() == "high"
        with pytest.raises(UserError, match=r"another matmul_precision \(high there, highest asked\)"):
            toy_run(toy_config(tmp_path))
        toy_run(toy_config(tmp_path, matmul_precision="high", cuda_graphs=False))  # how it is computed may differ
    finally:
        torch.set_float32_matmul_precision(before)


def test_restart_is_refused_before_it_deletes(tmp_path):
    config = toy_config(tmp_path)
    toy_run(config)
    task = toy_task()
    wrong = dataclasses.replace(config, eval_interval=0)
    with pytest.raises(UserError, match="eval_interval"):
        run([DIPOLE(wrong, task.observation_dim, task.action_dim)], task, restart=True)
    assert (run_path(config) / "checkpoint.pt").exists()


def test_what_a_killed_process_left_is_removed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    stale, foreign = tmp_path / f".a.txt.{process.pid}.tmp", tmp_path / f".a.txt.{os.getpid()}.tmp"
    stale.write_text("half")
    write_text(tmp_path / "a.txt", "whole")
    remove_abandoned(tmp_path)
    assert not stale.exists() and not foreign.exists()
    assert (tmp_path / "a.txt").read_text() == "whole"


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
    reopened.keep_until(2)
    reopened.append({"step": 3, "a": 1.0, "b": 5})
    assert [(row["step"], row["b"]) for row in rows_of(log.path)] == [("1", ""), ("2", "3"), ("3", "5")]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "checkpoint.pt"
    write_text(path, "old")
    with pytest.raises(OSError), replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_another_device_starts_its_random_streams_from_seed_and_step(tmp_path, capsys):
    """A checkpoint of another kind of device is continued, and the change is said."""
    config = toy_config(tmp_path)
    toy_run(config)
    path = run_path(config) / "checkpoint.pt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["loop"] |= {"device": "cuda", "step": 40, "batches": torch.zeros(16, dtype=torch.uint8)}
    checkpoint["agent"]["noise"] = torch.zeros(16, dtype=torch.uint8)  # a CUDA generator's state has 16 bytes
    torch.save(checkpoint, path)
    (run_path(config) / "result.json").unlink()
    toy_run(config)
    assert "now on cpu instead of cuda" in capsys.readouterr().out
    assert checkpoint_of(config)["loop"]["step"] == CONFIG.offline_steps


def test_final_report_compares_data_control_and_grid(tmp_path, capsys):
    config = toy_config(tmp_path, final_report=("greediness=0,1", "num_candidates=1,2"))
    toy_run(config)
    printed = capsys.readouterr().out
    assert (tmp_path / "dipole_behaviour_cloning" / "toy" / "point" / "seed_0" / "result.json").exists()
    assert len(rows_of(run_path(config) / "greediness.csv")) == 4
    lines = [line.split() for line in printed.splitlines()]
    assert [line[0] for line in lines if line and line[0].startswith("dipole")] == ["dipole_behaviour_cloning"] * 2 + [
        "dipole"
    ] * 4
    assert "greediness.png" in printed
    toy_run(config)  # a finished run reports again without training
    with pytest.raises(UserError, match="did you mean greediness"):
        toy_run(toy_config(tmp_path, label="wrong", final_report=("omega=1",)))


def test_the_control_of_another_run_is_refused_before_training(tmp_path):
    report = ("num_candidates=1",)
    toy_run(toy_config(tmp_path, final_report=report))
    (run_path(toy_config(tmp_path)) / "config.yaml").unlink()
    for name in ("checkpoint.pt", "result.json"):
        (run_path(toy_config(tmp_path)) / name).unlink()
    with pytest.raises(UserError, match="dipole_behaviour_cloning.*another discount"):
        toy_run(toy_config(tmp_path, final_report=report, discount=0.5))
    assert not (run_path(toy_config(tmp_path)) / "checkpoint.pt").exists()


def wandb_records(path: Path) -> list:
    """The records of a .wandb file: after 7 bytes, LevelDB's log format (32 KiB blocks of checksummed fragments)."""
    data, position, fragments, records = path.read_bytes(), 7, [], []
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:  # no room for a fragment's header: the block's padding
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        fragments.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole, or the last fragment
            records.append(b"".join(fragments))
            fragments = []
    return records


def test_wandb_offline_writes_the_rows(tmp_path):
    wandb_internal_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    config = toy_config(tmp_path, wandb_mode="offline")
    toy_run(config)
    (path,) = run_path(config).rglob("*.wandb")
    logged = {}
    for data in wandb_records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.history.item:
            logged.setdefault("/".join(item.nested_key) or item.key, []).append(json.loads(item.value_json))
    evaluations = rows_of(run_path(config) / "eval.csv")
    assert logged["evaluation/return"] == pytest.approx([float(row["return"]) for row in evaluations])
    assert len(logged["training/critic/loss"]) == 12
