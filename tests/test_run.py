"""The run: its folder, exact continuation after any end, and training that evaluation does not change."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from algorithms.dipole import DIPOLE, DIPOLEConfig
from common.errors import UserError
from common.files import remove_abandoned, replacing, write_text
from harness import average, run_files
from harness.config import RunConfig, stored_config
from harness.loggers import CsvLog
from harness.run_folder import RunFolder, load_agent, load_run, remove_run, run_path
from tests.test_agents import assert_equal_states
from tests.toy import PointEnv, toy_task
from tests.toy_run import RUN, toy_folder, toy_run, toy_settings

ROOT = Path(__file__).resolve().parents[1]


def checkpoint_of(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def environment_of(folder: Path) -> dict:
    return json.loads((folder / "environment.json").read_text())


def rows_of(path: Path) -> list:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def rows_without_times(folder: Path, name: str) -> list:
    rows = rows_of(folder / name)
    return [{k: v for k, v in row.items() if "seconds" not in k and "per_second" not in k} for row in rows]


def assert_same_end(first: Path, second: Path) -> None:
    """Equal parameters, optimiser, random state and next batch, bit for bit."""
    first, second = checkpoint_of(first), checkpoint_of(second)
    assert first["loop"]["step"] == second["loop"]["step"]
    assert torch.equal(first["loop"]["batches"], second["loop"]["batches"])
    assert_equal_states(first["agent"], second["agent"])


def assert_same_run(first: Path, second: Path) -> None:
    """The same end, and the same logged rows."""
    assert_same_end(first, second)
    for name in ("train.csv", "eval.csv"):
        assert rows_without_times(first, name) == rows_without_times(second, name)


def start(run_dir: Path, **changes) -> subprocess.Popen:
    texts = [f"{name}={value}" for name, value in changes.items()]
    command = [sys.executable, "-m", "tests.toy_run", str(run_dir), *texts]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_step(process: subprocess.Popen, path: Path, step: int) -> None:
    """Returns once train.csv holds a row of `step` or later."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        if path.exists() and CsvLog(path).last_step >= step:
            return
        time.sleep(0.005)
    raise TimeoutError(f"{path} never reached step {step}")


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """The folder of a run that nothing interrupted."""
    torch.set_num_threads(1)
    return toy_run(tmp_path_factory.mktemp("straight"))


# ---- What it writes ----


def test_folder_holds_what_a_run_is(tmp_path, capsys):
    folder = toy_run(tmp_path, drawn=True, label="variant", seed=5)
    assert folder == tmp_path / "variant" / "toy" / "point" / "seed_5"
    run, config = toy_settings(tmp_path, label="variant", seed=5)
    assert stored_config(folder / "config.yaml", DIPOLEConfig) == (run, config)
    assert (load_run(folder)[0].agent_class, *load_run(folder)[1:]) == (DIPOLE, run, config)
    environment = environment_of(folder)
    assert environment["algorithm"] == "dipole" and environment["data"] == toy_task().identity
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert environment["commit"] == (head or None) and isinstance(environment["dirty"], bool)
    assert [int(row["step"]) for row in rows_of(folder / "train.csv")] == list(range(5, 61, 5))
    evaluations = rows_of(folder / "eval.csv")
    assert [int(row["step"]) for row in evaluations] == [20, 40, 60]
    returns = [float(row["return"]) for row in evaluations]
    result = json.loads((folder / "result.json").read_text())
    assert result["score"] == pytest.approx(returns[-1])
    assert result["score_last_evaluations"] == pytest.approx(sum(returns) / 3)
    assert (folder / "learning_curve.png").stat().st_size > 0
    assert {path.name for path in folder.iterdir()} <= set(run_files.ALL)
    printed = capsys.readouterr().out.splitlines()  # not a terminal's: a line at every row
    assert [line.split(" of 60 updates, ")[0].strip() for line in printed if "per second" in line] == [
        str(step) for step in range(5, 61, 5)
    ]


def test_training_lowers_the_critic_loss(tmp_path):
    folder = toy_run(tmp_path, offline_steps=300, log_interval=20, eval_interval=300, learning_rate=3e-3)
    losses = [float(row["critic/loss"]) for row in rows_of(folder / "train.csv")]
    assert losses[-1] < 0.5 * losses[0]


def test_validation_losses_are_logged_and_change_nothing(tmp_path, straight):
    folder = toy_run(tmp_path, task=toy_task(validation=True))
    row = rows_of(folder / "train.csv")[-1]
    metrics = [name for name in row if "/" in name and "validation" not in name]
    assert metrics and {f"validation/{name}" for name in metrics} <= row.keys()
    assert_same_end(folder, straight)


def test_evaluation_never_changes_training(tmp_path, straight):
    assert_same_end(straight, toy_run(tmp_path, label="often", eval_interval=7, eval_episodes=4))
    assert_same_end(straight, toy_run(tmp_path, label="processes", eval_environments=2, eval_workers=1))


def test_a_task_without_an_environment_trains_without_a_score(tmp_path, straight, capsys):
    task = dataclasses.replace(toy_task(validation=True), make_env=None)
    folder = toy_run(tmp_path, task=task)
    assert capsys.readouterr().out.count("has no environment") == 1
    result = json.loads((folder / "result.json").read_text())
    assert (result["score"], result["offline_score"], result["step"]) == (None, None, 60)
    assert "validation/critic/loss" in rows_of(folder / "train.csv")[-1]
    assert not (folder / "eval.csv").exists() and not (folder / "learning_curve.png").exists()
    assert_same_end(folder, straight)
    for changes in ({"online_steps": 5}, {"sweep": ("greediness=0,1",)}):
        with pytest.raises(UserError, match=f"{next(iter(changes))} needs an environment, and toy/point has none"):
            toy_run(tmp_path / "other", task=task, **changes)
    assert not (tmp_path / "other").exists()


def test_act_options_are_swept_after_training(tmp_path, capsys):
    changes = {"sweep": ("greediness=0,1", "num_candidates=1,2")}
    identity = toy_task().identity | {"episode_return_mean": 3.25, "episode_return_best": 7.5}
    task = dataclasses.replace(toy_task(), identity=identity)
    folder = toy_run(tmp_path, task=task, **changes)
    printed = capsys.readouterr().out
    assert "evaluating dipole at 4 settings: greediness=0,1, num_candidates=1,2" in printed
    lines = [line.split() for line in printed[printed.index("locally generated") :].splitlines()]
    assert [line[:3] for line in lines if "data:" in line] == [
        ["data:", "mean", "episode"],
        ["data:", "best", "episode"],
    ]
    assert sum(line[:1] == ["dipole"] for line in lines) == 4
    assert len(rows_of(folder / "greediness.csv")) == 4
    for name in ("greediness.png", "learning_curve.png"):
        assert str(folder / name) in printed
    toy_run(tmp_path, task=task, **changes)  # a finished run sweeps again without training
    assert "not trained again" in capsys.readouterr().out
    with pytest.raises(UserError, match="omega is not an option"):
        toy_run(tmp_path, label="wrong", sweep=("omega=1",))
    assert not toy_folder(tmp_path, label="wrong").exists()


# ---- Ends and continuations ----


def test_kill_and_continue_equals_a_straight_run(tmp_path, straight):
    """kill -9 between checkpoints; the continued run ends bit-identical, with the same rows."""
    folder = toy_folder(tmp_path)
    process = start(tmp_path)
    wait_for_step(process, folder / "train.csv", 25)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL and not (folder / "result.json").exists()
    assert checkpoint_of(folder)["loop"]["step"] < 60
    assert_same_run(straight, toy_run(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint(tmp_path, number):
    changes = {"offline_steps": 600, "checkpoint_interval": 600, "eval_interval": 600}
    stopped = toy_folder(tmp_path / "stopped", **changes)
    process = start(tmp_path / "stopped", **changes)
    wait_for_step(process, stopped / "train.csv", 25)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number, output
    assert "the same command continues" in output and "Traceback" not in output
    assert 25 <= checkpoint_of(stopped)["loop"]["step"] < 600
    assert_same_end(toy_run(tmp_path / "straight", **changes), toy_run(tmp_path / "stopped", **changes))


class SignallingEnv(PointEnv):
    """Sends its process SIGTERM in the first step of evaluation `number`."""

    resets, number = 0, 3

    def reset(self, **options):
        type(self).resets += 1
        return super().reset(**options)

    def step(self, action):
        if type(self).resets == self.number * RUN.eval_episodes and self.steps == 0:
            type(self).resets += 1
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(action)


def test_a_signal_during_an_evaluation_repeats_it(tmp_path, straight):
    with pytest.raises(SystemExit) as exit:
        toy_run(tmp_path, task=dataclasses.replace(toy_task(), make_env=SignallingEnv))
    assert exit.value.code == 128 + signal.SIGTERM
    folder = toy_folder(tmp_path)
    assert checkpoint_of(folder)["loop"]["step"] == 60 and len(rows_of(folder / "eval.csv")) == 2
    assert_same_run(straight, toy_run(tmp_path))


def test_a_finished_run_is_not_trained_again(tmp_path, capsys):
    folder = toy_run(tmp_path)
    files = {path: path.read_bytes() for path in folder.iterdir()}
    toy_run(tmp_path)
    assert {path: path.read_bytes() for path in folder.iterdir()} == files
    assert "not trained again" in capsys.readouterr().out


@pytest.mark.parametrize(
    "first, more",
    [
        ({}, {"offline_steps": 100}),
        ({}, {"online_steps": 40}),
        ({"online_steps": 20}, {"online_steps": 40}),
        ({"replay_capacity": 15, "online_steps": 20}, {"replay_capacity": 15, "online_steps": 40}),
    ],
)
def test_a_finished_run_is_trained_longer(tmp_path, first, more):
    """It ends, bit for bit, as the run that was as long from its beginning."""
    folder = toy_run(tmp_path / "longer", **first)
    assert toy_run(tmp_path / "longer", **more) == folder
    assert json.loads((folder / "result.json").read_text())["step"] == 100
    assert yaml.safe_load((folder / "config.yaml").read_text()).items() >= more.items()
    assert_same_run(folder, toy_run(tmp_path / "straight", **more))
    with pytest.raises(UserError, match="steps .100 there, 60 asked|steps .40 there, "):
        toy_run(tmp_path / "longer", **first)


def test_the_offline_phase_of_an_online_run_does_not_grow(tmp_path):
    toy_run(tmp_path, online_steps=20)
    with pytest.raises(UserError, match=r"another offline_steps \(60 there, 80 asked\); choose"):
        toy_run(tmp_path, online_steps=20, offline_steps=80)


def test_what_sweeps_of_a_shorter_training_wrote_goes_with_it(tmp_path):
    folder = toy_run(tmp_path, offline_steps=20, sweep=("greediness=0,1",))
    assert {"greediness.csv", "greediness.png", "episodes.csv"} <= {path.name for path in folder.iterdir()}
    toy_run(tmp_path, offline_steps=40)
    assert not [path.name for path in folder.iterdir() if "greediness" in path.name or path.name == "episodes.csv"]


def test_a_task_that_is_given_is_changed_as_the_config_says(tmp_path):
    folder = toy_run(tmp_path, task=toy_task(), offline_steps=20, normalize_observations=True, max_episode_steps=3)
    assert rows_of(folder / "eval.csv")[-1]["length"] == "3"
    record = environment_of(folder)["environment"]
    assert record["max_episode_steps"] == 3 and len(record["observation_mean"]) == 3


def test_validation_data_of_another_width_are_refused_before_anything_is_written(tmp_path):
    task = toy_task(validation=True)
    wide = task.validation
    wide.observations = torch.cat([wide.observations, wide.observations[:, :1]], dim=1)
    with pytest.raises(UserError, match="observations have 4 numbers in the validation data and 3 in the others"):
        toy_run(tmp_path, task=task, offline_steps=20)
    assert not list(tmp_path.iterdir())


def test_a_restart_mends_a_config_that_is_no_text(tmp_path):
    folder = toy_run(tmp_path, offline_steps=20)
    (folder / "config.yaml").write_bytes(b"\xff\xfe")
    toy_run(tmp_path, offline_steps=20, restart=True)
    assert load_run(folder)[1].offline_steps == 20


def test_a_run_that_is_being_trained_longer_is_not_finished(tmp_path):
    folder = toy_run(tmp_path)
    with pytest.raises(SystemExit):
        SignallingEnv.resets, SignallingEnv.number = 0, 1
        toy_run(tmp_path, offline_steps=100, task=dataclasses.replace(toy_task(), make_env=SignallingEnv))
    assert not (folder / "result.json").exists() and checkpoint_of(folder)["loop"]["step"] == 80


def test_the_machine_of_every_stretch_is_recorded_and_its_change_said(tmp_path, monkeypatch, capsys):
    stretches = []
    for steps, threads, torch_version in ((20, 1, "2.13.0"), (40, 1, "2.13.0"), (60, 2, "2.13.0"), (80, 2, "2.14.0")):
        monkeypatch.setattr(
            "harness.machine._version", lambda package, version=torch_version: version if package == "torch" else None
        )
        folder = toy_run(tmp_path, offline_steps=steps, threads=threads)
        stretches.append([(each["from_step"], each["threads"]) for each in environment_of(folder)["stretches"]])
        printed = capsys.readouterr().out
        assert ("from update 40 on with threads 2 instead of 1; numbers may" in printed) == (steps == 60)
        assert ("from update 60 on with torch 2.14.0 instead of 2.13.0; numbers may" in printed) == (steps == 80)
    assert stretches == [[(0, 1)], [(0, 1)], [(0, 1), (40, 2)], [(0, 1), (40, 2), (60, 2)]]


def test_another_device_starts_its_random_streams_from_seed_and_step(tmp_path, capsys):
    """A checkpoint of another kind of device is continued, and the change is said."""
    folder = toy_run(tmp_path)
    checkpoint = checkpoint_of(folder)
    checkpoint["loop"] |= {"device": "cuda", "step": 40, "batches": torch.zeros(16, dtype=torch.uint8)}
    checkpoint["agent"]["noise"] = torch.zeros(16, dtype=torch.uint8)  # a CUDA generator's state has 16 bytes
    torch.save(checkpoint, folder / "checkpoint.pt")
    (folder / "result.json").unlink()
    toy_run(tmp_path)
    assert "now on cpu instead of cuda" in capsys.readouterr().out
    assert checkpoint_of(folder)["loop"]["step"] == RUN.offline_steps


# ---- Refusals ----


def test_a_config_made_in_python_needs_a_label():
    with pytest.raises(ValueError, match="RunConfig: label is None, name the run's folder"):
        run_path(RunConfig())


def test_another_config_is_refused_with_its_fields(tmp_path):
    folder = toy_run(tmp_path)
    with pytest.raises(UserError, match=r"another discount \(0.995 there, 0.9 asked\), greediness") as error:
        toy_run(tmp_path, discount=0.9, greediness=1.0)
    assert "--restart" in str(error.value) and "\n" not in str(error.value)
    toy_run(tmp_path, device="auto", cuda_graphs=False)  # where it runs may differ
    advice = f"python -m harness.evaluate {folder} --greediness 1.0 --num_candidates 4"
    with pytest.raises(UserError, match=f"is finished, with another greediness .*: {advice}$"):
        toy_run(tmp_path, greediness=1.0, num_candidates=4)
    (folder / "result.json").unlink()  # its evaluations to come would differ
    with pytest.raises(UserError, match="another greediness .*--restart"):
        toy_run(tmp_path, greediness=1.0)


def test_every_thread_of_a_run_rounds_subnormal_numbers_to_zero():
    """In a process of its own, which has made no parallel operation yet; else such numbers take half the speed."""
    code = (
        "import torch; from harness.devices import set_up_torch; from harness.config import RunConfig\n"
        "set_up_torch(RunConfig(label='a', threads=2)); small = torch.full((1 << 20,), 1e-20)\n"
        "print(torch.get_num_threads(), (small * small).view(torch.int32).count_nonzero().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "0"]


def test_the_precision_of_products_is_torchs_and_part_of_the_run(tmp_path):
    before = torch.get_float32_matmul_precision()
    try:
        toy_run(tmp_path, matmul_precision="high")
        assert torch.get_float32_matmul_precision() == "high"
        with pytest.raises(UserError, match=r"another matmul_precision \(high there, highest asked\)"):
            toy_run(tmp_path)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "truncated", "foreign"])
def test_a_broken_checkpoint_is_refused_and_kept(tmp_path, content):
    folder = toy_run(tmp_path, offline_steps=20)
    path = folder / "checkpoint.pt"
    (folder / "result.json").unlink()
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif content == "foreign":
        torch.save({"format": 1, "algorithm": "other"}, path)
    else:
        path.write_bytes(content)
    kept = path.read_bytes()
    with pytest.raises(UserError, match="checkpoint.pt: is ") as error:
        toy_run(tmp_path, offline_steps=20)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == kept


WRONG_FIELDS = {"data": 5, "environment": None, "run_id": 1, "stretches": 5, "harness_version": "2", "compiled": "no"}


@pytest.mark.parametrize(
    "name, content",
    [
        *((name, text) for name in ("environment.json", "result.json", "config.yaml") for text in (b"", b"{}", b"[1]")),
        ("eval.csv", b"x,y\n1,2\n"),
        ("eval.csv", b"step,length\n20,1\n"),
        ("eval.csv", b"step,return\n20,high\n"),
        *(("result.json", change) for change in ({"step": "40"}, {"score": "high"})),
        *(("environment.json", {name: value}) for name, value in WRONG_FIELDS.items()),
        ("train.csv", b"step,return\nmany,1\n"),
        ("train.csv", b"step,\xff\n1,2\n"),
    ],
)
def test_damaged_run_files_are_refused_by_name(tmp_path, name, content):
    """content: the file's, or fields of a good JSON file that are changed."""
    folder, message = toy_run(tmp_path, offline_steps=20), name
    if isinstance(content, dict):
        message += "".join(f": {field} is {json.dumps(value)}; put" for field, value in content.items())
        content = json.dumps(json.loads((folder / name).read_text()) | content).encode()
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        toy_run(tmp_path, offline_steps=20)
    assert "--restart" in str(error.value) and "\n" not in str(error.value)


def test_a_checkpoint_without_its_config_is_refused(tmp_path):
    folder = toy_run(tmp_path, offline_steps=20)
    (folder / "config.yaml").unlink()
    with pytest.raises(UserError, match="without config.yaml"):
        toy_run(tmp_path, offline_steps=20, discount=0.5)


def test_a_checkpoint_of_another_version_of_the_algorithm_is_refused(tmp_path):
    folder = toy_run(tmp_path, offline_steps=20)
    checkpoint = checkpoint_of(folder)
    networks = checkpoint["agent"]["networks"]
    networks["actor.weights.0"] = networks.pop("flow.weights.0")
    torch.save(checkpoint, folder / "checkpoint.pt")
    with pytest.raises(
        UserError, match="does not fit this version of the algorithm .*Missing key.*--restart"
    ) as caught:
        load_agent(DIPOLE, folder, "dipole")
    assert "\n" not in str(caught.value)
    (folder / "result.json").unlink()  # as if the run had been stopped
    with pytest.raises(UserError, match="does not fit this version"):
        toy_run(tmp_path, offline_steps=20)


def test_what_is_refused_is_refused_before_anything_is_written_or_deleted(tmp_path):
    with pytest.raises(UserError, match="need the column state_values, which the data of toy/point lack"):
        toy_run(tmp_path, advantage="group")
    assert not list(tmp_path.iterdir())
    folder = toy_run(tmp_path, offline_steps=20)
    with pytest.raises(UserError, match="need the column state_values"):
        toy_run(tmp_path, offline_steps=20, advantage="group", restart=True)
    assert (folder / "checkpoint.pt").exists()


def test_a_second_process_on_a_run_is_refused(tmp_path):
    folder = toy_run(tmp_path, offline_steps=20)
    before = sorted(path.name for path in folder.iterdir())
    for restart in (False, True):  # a restart deletes nothing of a run at work, its lock least of all
        with (
            RunFolder(*toy_settings(tmp_path, offline_steps=20), toy_task()),
            pytest.raises(UserError, match="another process is running this"),
        ):
            toy_run(tmp_path, offline_steps=20, restart=restart)
    assert sorted(path.name for path in folder.iterdir()) == before
    toy_run(tmp_path, offline_steps=20, restart=True)


def test_restart_deletes_the_run_and_nothing_else(tmp_path, capsys):
    """Its sweep, its replay and what a comparison adds go too; the user's own files stay."""
    folder = toy_run(tmp_path, offline_steps=20, online_steps=5, sweep=("greediness=0,1",), keep_checkpoints=True)
    assert (folder / "greediness.csv").exists() and list((folder / "replay").iterdir())
    theirs, ours = ("notes.txt", "notes.csv"), ("log.txt", "error.txt", "reevaluation.csv", "divergence.json")
    for name in (*theirs, *ours, "evaluation.csv"):
        (folder / name).write_text("x")
    for name in ("greediness.csv", "episodes.csv", "lock"):  # of an evaluation of a kept checkpoint
        (folder / "checkpoints" / "20" / name).write_text("x")
    remove_run(toy_settings(tmp_path)[0])
    assert "deleting config.yaml" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "notes.csv", "notes.txt"]
    toy_run(tmp_path, offline_steps=20, discount=0.5)
    toy_run(tmp_path, offline_steps=20, restart=True)
    assert yaml.safe_load((folder / "config.yaml").read_text())["discount"] == 0.995


def test_every_checkpoint_is_kept_as_a_run_of_its_own(tmp_path, straight):
    folder = toy_run(tmp_path, checkpoint_interval=10, keep_checkpoints=True)
    kept = {int(path.name): path for path in (folder / "checkpoints").iterdir()}
    assert sorted(kept) == list(range(10, RUN.offline_steps + 1, 10))
    assert_same_end(kept[RUN.offline_steps], straight)
    shorter = toy_run(tmp_path / "shorter", offline_steps=10)
    for name, tensor in DIPOLE.load(shorter).state_dict().items():
        torch.testing.assert_close(DIPOLE.load(kept[10]).state_dict()[name], tensor, rtol=0, atol=0)
    _, run, _ = load_run(kept[10])
    assert run.keep_checkpoints


def test_a_kept_checkpoint_that_could_not_be_written_is_made_up(tmp_path):
    folder = tmp_path / "dipole" / "toy" / "point" / "seed_0"
    folder.mkdir(parents=True)
    (folder / "checkpoints").touch()
    with pytest.raises(UserError, match="cannot be"):
        toy_run(tmp_path, checkpoint_interval=10, keep_checkpoints=True)
    (folder / "checkpoints").unlink()
    toy_run(tmp_path, checkpoint_interval=10, keep_checkpoints=True)
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"10", "20", "30", "40", "50", "60"}


def test_checkpoints_of_other_networks_have_no_average(tmp_path):
    folder = toy_run(tmp_path, checkpoint_interval=30, keep_checkpoints=True)
    other = toy_run(tmp_path / "other", offline_steps=30, actor_hidden_dims=(4, 4))
    shutil.copy(other / "checkpoint.pt", folder / "checkpoints" / "30")
    with pytest.raises(UserError, match="checkpoints: does not fit this version"):
        average.average(folder, 2)


def test_the_average_of_kept_checkpoints_is_one_more_checkpoint(tmp_path, capsys):
    folder = toy_run(tmp_path, checkpoint_interval=10, keep_checkpoints=True)
    steps = [RUN.offline_steps - 20, RUN.offline_steps - 10, RUN.offline_steps]
    average.main([str(folder), "--last", "3"])
    out = folder / "checkpoints" / f"average_{steps[0]}_{steps[-1]}"
    assert f"written: {out}" in capsys.readouterr().out
    states = [DIPOLE.load(folder / "checkpoints" / str(step)).state_dict() for step in steps]
    for name, tensor in DIPOLE.load(out).state_dict().items():
        torch.testing.assert_close(tensor, sum(state[name] for state in states) / 3, rtol=1e-6, atol=1e-8)
        assert not name.startswith("flow") or not torch.equal(tensor, states[-1][name])
    assert load_run(out) == load_run(folder / "checkpoints" / str(steps[-1]))
    with pytest.raises(SystemExit) as raised:
        average.main([str(folder), "--last", "30"])
    assert raised.value.code == 2 and "keeps 6 checkpoints, and --last is 30" in capsys.readouterr().err


# ---- Files ----


def test_what_a_killed_process_left_is_removed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    stale, foreign = tmp_path / f".a.txt.{process.pid}.tmp", tmp_path / f".a.txt.{os.getpid()}.tmp"
    stale.write_text("half")
    write_text(tmp_path / "a.txt", "whole")
    remove_abandoned(tmp_path)
    assert not stale.exists() and not foreign.exists()
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "checkpoint.pt"
    write_text(path, "old")
    with pytest.raises(OSError), replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["checkpoint.pt"]
