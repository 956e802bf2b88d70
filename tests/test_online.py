"""The online phase: the protocol, exploration, and exact continuation after any end."""

import contextlib
import dataclasses
import io
import json
import multiprocessing
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from algorithms.dipole import DIPOLE
from algorithms.dipole_lora import DIPOLELoRAConfig
from common.errors import UserError
from envs.chunks import chunked
from harness import run_files
from harness.config import RunConfig
from harness.loggers import CsvLog
from harness.online import FIRST_SEED, OnlinePhase
from harness.run_folder import RunFolder, read_checkpoint, run_path, with_chunks
from harness.train import train_run
from tests.conftest import small_config
from tests.test_agents import make_agent
from tests.test_run import assert_same_run, checkpoint_of, rows_of
from tests.toy import EPISODE_LENGTH, PointEnv, toy_dataset, toy_task
from tests.toy_run import toy_folder, toy_run, toy_settings

OFFLINE, ONLINE, INTERVAL = 60, 60, 20
SPAWNED = multiprocessing.get_context("forkserver")  # a kill must not meet what this process holds
SPAWNED.set_forkserver_preload(["tests.toy_run", "torch._dynamo"])  # what takes seconds to import


def online_run(run_dir) -> RunConfig:
    return toy_settings(run_dir, **with_defaults({}))[0]


def with_defaults(changes: dict) -> dict:
    return {"online_steps": ONLINE, "checkpoint_interval": INTERVAL, **changes}


def train(run_dir, make_env=PointEnv, **changes) -> Path:
    """Trains the online run with these changes; returns its folder."""
    task = dataclasses.replace(toy_task(), make_env=make_env)
    return toy_run(run_dir, task=task, **with_defaults(changes))


def interrupt(run_dir, make_env=None, **changes) -> Path:
    """The same, until its environment breaks it off."""
    with pytest.raises(InterruptedError):
        train(run_dir, make_env or InterruptedEnv, **changes)
    return toy_folder(run_dir, **with_defaults(changes))


def parts_of(folder) -> list:
    """The arrays of the replay's files, in the order of time."""
    return [dict(np.load(path)) for path in sorted((folder / "replay").iterdir())]


def transitions_of(folder) -> dict:
    parts = parts_of(folder)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_same_online_run(first, second) -> None:
    """Equal agents, random states, logged rows and transitions, bit for bit."""
    assert_same_run(first, second)
    first, second = transitions_of(first), transitions_of(second)
    assert all(np.array_equal(first[name], second[name]) for name in first)


class InterruptedEnv(PointEnv):
    """Raises InterruptedError at online step `at`, counted over the episodes of one environment."""

    at = 35

    def reset(self, *, seed=None, options=None):
        self.is_online = seed is not None and seed >= FIRST_SEED
        self.online_steps = getattr(self, "online_steps", 0)
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.online_steps += self.is_online
        if self.online_steps == self.at:
            raise InterruptedError
        return super().step(action)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of a run that was never interrupted."""
    torch.set_num_threads(1)
    return train(tmp_path_factory.mktemp("straight"))


def test_both_phases_are_in_the_folder(straight):
    folder, result = straight, json.loads((straight / "result.json").read_text())
    scores = {int(row["step"]): float(row["return"]) for row in rows_of(folder / "eval.csv")}
    assert list(scores) == [20, 40, 60, 80, 100, 120]
    assert (result["offline_score"], result["score"]) == pytest.approx((scores[60], scores[120]))
    assert result["offline_score"] != result["score"] and result["step"] == OFFLINE + ONLINE
    rows = rows_of(folder / "train.csv")
    assert [row["exploration/length"] for row in rows] == [""] * 13 + [str(EPISODE_LENGTH)] * 11
    assert {path.name for path in folder.iterdir()} <= {*run_files.ALL, "replay"}


def test_evaluation_checkpoint_and_log_row_at_the_end_of_the_offline_phase(tmp_path):
    """Also where no interval ends there."""
    folder = interrupt(tmp_path, offline_steps=33, checkpoint_interval=500, eval_interval=500, log_interval=500)
    assert checkpoint_of(folder)["loop"]["step"] == 33
    for name in ("train.csv", "eval.csv"):
        assert [int(row["step"]) for row in rows_of(folder / name)] == [33]


def test_an_online_phase_to_come_changes_nothing_before_it(tmp_path):
    class Closed(InterruptedEnv):
        at = 1

    assert_same_run(toy_run(tmp_path / "offline"), interrupt(tmp_path / "online", Closed))


def test_transitions_are_what_happened(straight):
    """Each step once; the rest of an episode follows its start; seeds and actions give the rewards again."""
    recorded = transitions_of(straight)
    assert len(recorded["rewards"]) == ONLINE
    assert recorded["episodes"].tolist() == [step // EPISODE_LENGTH for step in range(ONLINE)]
    assert np.all(recorded["masks"] == 1)  # its episodes are truncated, and truncation bootstraps
    within = np.arange(ONLINE) % EPISODE_LENGTH != EPISODE_LENGTH - 1
    assert np.array_equal(recorded["next_observations"][:-1][within[:-1]], recorded["observations"][1:][within[:-1]])
    starts = recorded["observations"][::EPISODE_LENGTH, 0]
    assert len(set(starts.tolist())) == len(starts)
    rewards = 1 - np.abs(recorded["next_observations"][:, 0] - 0.5)
    np.testing.assert_allclose(recorded["rewards"], rewards, atol=1e-6)


class Recorder(torch.nn.Module):
    """An agent that acts 0.25 and remembers the options it was asked with."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def act(self, observations, **options):
        self.asked.append(options)
        return torch.full((len(observations), 2), 0.25)


class EndingEnv(PointEnv):
    """Terminates in an episode's third step, and truncates every second episode before that."""

    episode = -1

    def reset(self, **options):
        self.episode += 1
        return super().reset(**options)

    def step(self, action):
        observation, reward, *_ = super().step(action)
        return observation, reward, self.steps == 3, self.steps == 2 and self.episode % 2 == 1, {"success": 1.0}


def test_termination_masks_truncation_bootstraps_and_the_task_shifts_rewards(tmp_path):
    task = dataclasses.replace(toy_task(), make_env=EndingEnv, reward_shift=-1.0)
    agent, phase = Recorder(), OnlinePhase(online_run(tmp_path), task, toy_dataset(), tmp_path)
    with contextlib.closing(phase):
        for _ in range(9):
            phase.step(agent)
    newest = phase.replay.newest(9)
    assert newest["episodes"].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3]
    assert newest["masks"].tolist() == [1, 1, 0, 1, 1, 1, 1, 0, 1]
    torch.testing.assert_close(newest["rewards"], -(newest["next_observations"][:, 0] - 0.5).abs())
    assert agent.asked == [{"explore": True}] * 9 and newest["actions"].unique().tolist() == [0.25]
    assert phase.metrics()["exploration/success"] == 1.0 and phase.metrics()["exploration/length"] == 3


class ChunkRecorder(Recorder):
    """Its action number i of query q is q + i / 10, in both entries."""

    def act(self, observations, **options):
        super().act(observations)
        return torch.tensor([[len(self.asked) / 100 + step / 1000 for step in (0, 1) for _ in range(2)]])


def test_a_chunk_is_executed_to_the_end_of_the_episode_and_no_further(tmp_path):
    """Of episodes of 3, 2, 3 and 2 steps, single transitions are kept; their windows are what is sampled."""
    task = chunked(dataclasses.replace(toy_task(), make_env=EndingEnv), 2, 0.99)
    phase = OnlinePhase(online_run(tmp_path), task, task.dataset, tmp_path)
    agent = ChunkRecorder()
    with contextlib.closing(phase):
        for _ in range(10):
            phase.step(agent)
    taken = (1000 * phase.replay.newest(10)["actions"][:, 0]).round().tolist()
    assert taken == [10, 11, 20, 30, 31, 40, 41, 50, 60, 61]
    assert phase.replay.sample(5, torch.Generator())["actions"].shape == (5, 4)


def test_a_method_without_a_discount_has_no_chunks(tmp_path):
    run, config = toy_settings(tmp_path, action_chunk=2)[0], DIPOLELoRAConfig()
    with pytest.raises(UserError, match="action_chunk must be 1 for dipole_lora, which discounts nothing"):
        with_chunks(toy_task(), run, config)


@pytest.mark.parametrize("start, updates", [(0, ONLINE), (1, ONLINE), (21, ONLINE - 20)])
def test_online_updates_begin_with_the_step_that_is_named(tmp_path, monkeypatch, start, updates):
    made = []
    update = DIPOLE.update
    monkeypatch.setattr(DIPOLE, "update", lambda agent, batch: made.append(1) or update(agent, batch))
    folder = train(tmp_path, online_start=start, log_interval=10)
    assert len(made) == OFFLINE + updates
    without = [row["step"] for row in rows_of(folder / run_files.TRAIN_LOG) if not row["critic/loss"]]
    assert without == ([] if start <= 1 else ["70", "80"])
    assert len(transitions_of(folder)["rewards"]) == ONLINE


def test_an_evaluation_counts_environment_steps(tmp_path):
    folder = train(tmp_path, action_chunk=4)
    assert {row["length"] for row in rows_of(folder / run_files.EVAL_LOG)} == {str(EPISODE_LENGTH)}
    assert json.loads((folder / "environment.json").read_text())["environment"]["action_chunk"] == 4


def test_what_is_not_finite_is_refused(tmp_path):
    class Broken(PointEnv):
        def _observation(self):
            return np.full(3, np.nan if self.steps else 0.0, dtype=np.float32)

    task = dataclasses.replace(toy_task(), make_env=Broken)
    with contextlib.closing(OnlinePhase(online_run(tmp_path), task, toy_dataset(), tmp_path)) as phase:
        with pytest.raises(FloatingPointError, match="online episode 0"):
            phase.step(Recorder())
        agent = Recorder()
        agent.act = lambda observations, explore: torch.full((1, 2), np.nan)
        with pytest.raises(FloatingPointError, match="act"):
            phase.step(agent)
    assert phase.replay.added == 0


# ---- Exploration ----


def test_every_algorithm_trains_online(algorithm, tmp_path):
    """Both phases with both ways to sample; only the exploration rule of the file decides the actions."""
    config = small_config(algorithm)
    for balanced in (False, True):
        changes = {"offline_steps": 3, "online_steps": 14, "balanced_sampling": balanced, "label": f"b{balanced}"}
        run, _ = toy_settings(tmp_path, **changes)
        assert train_run(algorithm.agent_class, run, config, task=toy_task())["step"] == 17
        recorded = transitions_of(run_path(run))
        assert recorded["episodes"].tolist() == [0] * 10 + [1] * 4
        assert np.abs(recorded["actions"]).max() <= 1 and len(np.unique(recorded["actions"])) > 7


def explored(agent, explore: bool, rows: int = 4000) -> torch.Tensor:
    """Actions in one state, with the noise from its start."""
    agent.noise.generator.manual_seed(0)
    return agent.act(torch.ones(rows, 3), explore=explore)


# Standard deviation and largest size of the noise that exploring adds, before the clip to [-1, 1].
ADDED_NOISE = {"iql": (1.0, np.inf), "rebrac": (0.2, 0.5)}


def test_exploration_rule(algorithm):
    """A deterministic policy gets its paper's noise; a stochastic one acts as it does when it is evaluated."""
    agent = make_agent(algorithm)
    acting, exploring = explored(agent, False), explored(agent, True)
    if algorithm.name not in ADDED_NOISE:
        assert torch.equal(acting, exploring) and len(exploring.unique()) > 100
        return
    deviation, largest = ADDED_NOISE[algorithm.name]
    noise = exploring - acting
    assert len(acting.unique()) == 2 and noise.abs().max() <= largest + 1e-6
    expected = torch.randn(100_000, generator=torch.Generator().manual_seed(1)) * deviation
    expected = (acting[0, 0] + expected.clamp(-largest, largest)).clamp(-1, 1).std()
    assert exploring[:, 0].std() == pytest.approx(expected.item(), rel=0.05)


def test_qsm_explores_with_the_published_online_noise_where_asked():
    from harness.algorithms import load_algorithm

    qsm = load_algorithm("qsm")
    plain, noisy = make_agent(qsm), make_agent(qsm, exploration_noise=0.1)
    inside = explored(plain, True).abs() < 0.5
    difference = (explored(noisy, True) - explored(plain, True))[inside]
    assert difference.std().item() == pytest.approx(0.1, rel=0.1)
    assert torch.equal(explored(noisy, False), explored(plain, False))


# ---- Continuing ----


@pytest.mark.parametrize("changes", [{"replay_capacity": 7}, {"replay_capacity": 25, "keep_offline": False}])
def test_a_full_ring_continues_bit_for_bit(tmp_path, capsys, changes):
    """With fewer slots than transitions between two checkpoints, and with several files for one ring."""
    changes["checkpoint_interval"] = 15
    straight = train(tmp_path / "straight", **changes)
    folder = interrupt(tmp_path / "stopped", **changes)
    assert checkpoint_of(folder)["loop"]["step"] == OFFLINE + 30
    for part in parts_of(folder):
        assert len(part["rewards"]) == min(15, changes.get("replay_capacity", 15))
    train(tmp_path / "stopped", **changes)
    assert "cannot be repeated" not in capsys.readouterr().out
    assert_same_online_run(straight, folder)


class InMidEpisode(InterruptedEnv):
    at = 30


@pytest.mark.parametrize("changes", [{}, {"action_chunk": 3, "online_start": 10}])
def test_the_interrupted_episode_is_played_again(tmp_path, capsys, changes):
    """From a checkpoint five steps into an episode and two into a chunk, in no step of which the agent acts anew."""
    changes |= {"checkpoint_interval": 25, "offline_steps": 50}
    straight = train(tmp_path / "straight", **changes)
    folder = interrupt(tmp_path / "stopped", InMidEpisode, **changes)
    assert checkpoint_of(folder)["loop"]["online"]["steps"] == 5
    train(tmp_path / "stopped", **changes)
    assert "cannot be repeated" not in capsys.readouterr().out
    assert_same_online_run(straight, folder)


def test_an_episode_whose_start_the_ring_has_lost_is_left(tmp_path, capsys):
    changes = {"checkpoint_interval": 25, "replay_capacity": 3, "offline_steps": 50, "online_steps": 40}
    folder = interrupt(tmp_path, InMidEpisode, **changes)
    train(tmp_path, **changes)
    assert json.loads((folder / "result.json").read_text())["step"] == 90
    assert "online episode 2 cannot be repeated from its seed: its rest is lost" in capsys.readouterr().out


def test_an_environment_that_does_not_repeat_begins_a_new_episode(tmp_path, capsys):
    """Nothing of what was recorded is lost, and the cut episode is not joined with the next."""

    class Unrepeatable(InterruptedEnv):
        at, made = 27, 0

        def __init__(self):
            type(self).made += 1

        def step(self, action):
            observation, *rest = super().step(action)
            return observation + np.float32(1e-3 * self.made), *rest

    changes = {"checkpoint_interval": 25, "offline_steps": 50}
    folder = interrupt(tmp_path, Unrepeatable, **changes)
    Unrepeatable.at = None
    train(tmp_path, Unrepeatable, **changes)
    assert "online episode 2 cannot be repeated" in capsys.readouterr().out
    episodes = transitions_of(folder)["episodes"].tolist()
    assert episodes == [0] * 10 + [1] * 10 + [2] * 5 + [3] * 10 + [4] * 10 + [5] * 10 + [6] * 5


@pytest.mark.parametrize("damage", ["absent", "cut short", "another's"])
def test_a_damaged_replay_file_is_refused_by_name(tmp_path, damage):
    (path,) = (interrupt(tmp_path) / "replay").iterdir()
    content = path.read_bytes()
    if damage == "absent":
        path.unlink()
    elif damage == "cut short":
        path.write_bytes(content[:-100])
    else:
        changed = dict(np.load(io.BytesIO(content))) | {"rewards": np.zeros(20, np.float32)}
        np.savez(path, **changed)
    with pytest.raises(UserError, match=f"{path.name}: .*--restart") as error:
        train(tmp_path)
    assert "\n" not in str(error.value)
    path.write_bytes(content)
    train(tmp_path)


def test_files_after_the_checkpoint_are_removed(tmp_path, straight):
    """What a process wrote that was killed between the replay's file and the checkpoint is written again."""
    run = interrupt(tmp_path)
    folder = run / "replay"
    (folder / "part_000000100.npz").write_bytes(b"half")
    (folder / "part_000000093.npz").write_bytes(b"half")
    train(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [f"part_{step:09}.npz" for step in (80, 100, 120)]
    assert_same_online_run(straight, run)


def test_a_checkpoint_of_another_phase_is_refused(tmp_path):
    path = interrupt(tmp_path) / "checkpoint.pt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["loop"]["online"] = {"added": 0, "parts": []}
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="checkpoint.pt: is of update 80, but of 0 environment steps"):
        train(tmp_path)


def background(run_dir) -> multiprocessing.Process:
    process = SPAWNED.Process(target=train, args=(run_dir,))
    process.start()
    return process


def kill_and_check(run_dir, process, straight) -> None:
    """Kills the run's process; all it left is readable and recent; continued, it ends as if never interrupted."""
    process.kill()
    process.join()
    folder = run_path(online_run(run_dir))
    step = 0
    if (folder / "checkpoint.pt").exists():
        checkpoint = read_checkpoint(folder / "checkpoint.pt", "dipole")
        step = checkpoint["loop"]["step"]
        (run, config), task, cpu = toy_settings(run_dir, **with_defaults({})), toy_task(), torch.device("cpu")
        online = OnlinePhase(run, task, task.dataset, folder)
        with RunFolder(run, config, task) as opened:
            assert opened.train_log.last_step - step <= INTERVAL
            assert opened.resume(DIPOLE(config, 3, 2), cpu, torch.Generator(), online)[0] == step
        assert online.replay.added == max(0, step - OFFLINE)
    train(run_dir)
    assert_same_online_run(straight, folder)


def wait_for_row(run_dir, step: int) -> None:
    """Returns once train.csv has a row of `step` or later."""
    log, deadline = run_path(online_run(run_dir)) / "train.csv", time.monotonic() + 120
    while step and not (log.exists() and CsvLog(log).last_step >= step):
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("step", [25, 75, 105])
def test_kill_loses_at_most_one_checkpoint_interval(tmp_path, straight, step):
    """kill -9 in the offline phase, in the first online interval and in a later one."""
    process = background(tmp_path)
    wait_for_row(tmp_path, step)
    kill_and_check(tmp_path, process, straight)


@pytest.mark.slow
def test_kill_at_random_moments(tmp_path, straight):
    """kill -9 at 20 moments spread over the whole run: up to 0.1 s after the row of a random step was written."""
    moments, killed = random.Random(0), []
    for index in range(20):
        folder = tmp_path / str(index)
        process = background(folder)
        wait_for_row(folder, int((OFFLINE + ONLINE - 5) * (index + moments.random()) / 20))
        time.sleep(moments.uniform(0, 0.1))
        kill_and_check(folder, process, straight)
        killed.append(process.exitcode == -signal.SIGKILL)
    assert sum(killed) >= 15  # the others had finished in those 0.1 s
