"""The novelty-seeking collector: its reward, its files, and how it continues."""

import dataclasses
import importlib.util
import json
import random

import numpy as np
import pytest
import torch

from common.errors import UserError
from envs import load_task
from envs.exorl.collect import collect, collect_episode
from envs.exorl.domains import DOMAINS
from envs.exorl.environment import ExORLEnvironment
from envs.exorl.tasks import main
from tests.test_exorl import files_of

if importlib.util.find_spec("stable_baselines3") is None:
    pytest.skip("stable-baselines3 (requirements-collect.txt) is not installed", allow_module_level=True)

from envs.exorl import rnd
from envs.exorl.rnd import Novelty, NoveltyReplayBuffer, RNDCollector, RNDParameters

STEPS = 20  # of the short episodes here
TINY = RNDParameters(
    hidden_dims=(8, 8), features=4, batch_size=8, random_steps=30, update_interval=2, replay_capacity=30
)


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch):
    for domain in ("walker", "cheetah"):
        monkeypatch.setitem(DOMAINS, domain, dataclasses.replace(DOMAINS[domain], episode_steps=STEPS))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(rnd, "RNDParameters", lambda: TINY)


def make_novelty(**changes) -> Novelty:
    torch.manual_seed(0)
    return Novelty(6, RNDParameters(hidden_dims=(32, 32), features=16, novelty_learning_rate=3e-3, **changes))


# ---- the reward ----


def test_novelty_falls_where_states_are_revisited_and_stays_where_they_are_not():
    novelty, generator = make_novelty(), torch.Generator().manual_seed(1)
    visited = torch.randn(256, 6, generator=generator)
    elsewhere = 3 + torch.randn(256, 6, generator=generator)
    target = {name: value.clone() for name, value in novelty.target.state_dict().items()}
    novelty.update(visited)
    before = novelty.errors(visited).mean()
    for _ in range(100):
        novelty.update(visited)
    after, novel = novelty.rewards(visited).mean(), novelty.rewards(elsewhere).mean()
    assert novelty.errors(visited).mean() < before / 10
    assert novel > 10 * after
    assert all(torch.equal(value, target[name]) for name, value in novelty.target.state_dict().items())


def test_rewards_are_errors_over_their_running_deviation():
    novelty, generator = make_novelty(), torch.Generator().manual_seed(1)
    batches = torch.randn(5, 64, 6, generator=generator)
    variances = []
    for batch in batches:
        statistics = novelty.observation_statistics
        novelty.update(batch)
        mean, variance = batches[: len(variances) + 1].mean((0, 1)), statistics.running_var
        assert torch.allclose(statistics.running_mean, mean, atol=1e-6)
        assert torch.allclose(variance, batches[: len(variances) + 1].var(1).mean(0), atol=1e-6)
        variances.append(float(novelty.error_statistics.running_var))
    normalised = ((batches[0] - statistics.running_mean) / (statistics.running_var + 1e-5).sqrt()).clamp(-5, 5)
    errors = (novelty.predictor(normalised) - novelty.target(normalised)).square().mean(1, keepdim=True)
    assert torch.allclose(novelty.rewards(batches[0]), errors / variances[-1] ** 0.5, rtol=1e-4)
    assert not novelty.rewards(batches[0]).requires_grad


def test_normalised_observations_are_clipped():
    novelty = make_novelty(observation_clip=2.0)
    assert torch.equal(novelty.rewards(torch.full((1, 6), 50.0)), novelty.rewards(torch.full((1, 6), 80.0)))
    assert not torch.equal(novelty.rewards(torch.full((1, 6), 0.5)), novelty.rewards(torch.full((1, 6), 0.8)))


def test_replay_gives_the_novelty_of_the_reached_states_now():
    environment = ExORLEnvironment("walker", "stand")
    spaces = environment.observation_space, environment.action_space
    novelty = Novelty(24, TINY)
    replay = NoveltyReplayBuffer(64, *spaces, device="cpu", novelty=novelty)
    for value in range(64):
        state = np.full(24, value, np.float32)
        replay.add(state, state + 1, np.zeros(6, np.float32), np.array([123.0]), np.zeros(1), [{}])
    first = replay.sample(64)
    assert torch.equal(first.rewards, novelty.rewards(first.next_observations))
    assert not torch.equal(first.rewards, novelty.rewards(first.observations))
    assert torch.equal(first.next_observations, first.observations + 1)
    replay.sample(64)
    assert not torch.equal(first.rewards, novelty.rewards(first.next_observations))


def test_the_tasks_reward_is_not_seen():
    # The agent's replay holds zeros where the task's reward would be, and novelty takes their place.
    collector = RNDCollector("walker", 0, TINY)
    episode = collector.collect_episode(STEPS)
    assert episode["reward"][1:].all() and not collector.agent.replay_buffer.rewards.any()


# ---- the files ----


@pytest.mark.parametrize("domain", ["walker", "cheetah"])
def test_episodes_have_the_format_of_the_other_collectors(domain):
    collector = RNDCollector(domain, 0, TINY)
    learned = [collector.collect_episode(STEPS) for _ in range(3)][-1]
    uniform = collect_episode(ExORLEnvironment(domain, DOMAINS[domain].tasks[0]), "random", 0, 0, STEPS)
    assert {name: (array.shape, array.dtype) for name, array in learned.items()} == {
        name: (array.shape, array.dtype) for name, array in uniform.items()
    }
    assert not learned["action"][0].any() and learned["reward"][0] == 0 and (learned["discount"] == 1).all()
    assert (np.abs(learned["action"]) <= 1).all() and learned["action"][1:].any(axis=1).all()
    assert collector.agent._n_updates == (3 * STEPS - TINY.random_steps) // TINY.update_interval


def test_stored_actions_lead_through_the_stored_states():
    collector = RNDCollector("walker", 0, TINY)
    episode = [collector.collect_episode(STEPS) for _ in range(2)][1]
    environment = ExORLEnvironment("walker", "stand")
    seeds = np.random.SeedSequence([0, 1]).spawn(2)
    assert np.array_equal(environment.reset(seed=int(seeds[0].generate_state(1)[0]))[0], episode["observation"][0])
    for row in range(1, STEPS + 1):
        observation, reward, *_ = environment.step(episode["action"][row])
        assert np.array_equal(observation, episode["observation"][row])
        assert np.float32(reward) == episode["reward"][row, 0]
        assert np.array_equal(environment.physics_state(), episode["physics"][row])


def test_the_same_seed_gives_the_same_files(tmp_path, tiny):
    one, two, other = (collect(tmp_path / str(n), "walker", "rnd", 3, seed) for n, seed in enumerate((5, 5, 6)))
    assert files_of(one) == files_of(two)
    assert not set(files_of(one).values()) & set(files_of(other).values())


@pytest.mark.parametrize("at", ["between episodes", "before the checkpoint"])
def test_an_interrupted_collection_continues_to_the_same_files(tmp_path, tiny, monkeypatch, at):
    # Replay wraps around (30 of 80 transitions), which continuing has to reproduce as well.
    whole = collect(tmp_path / "whole", "walker", "rnd", 4)
    with monkeypatch.context() as patch:
        saved = torch.save
        stop = {"between episodes": rnd.write_episode, "before the checkpoint": saved}[at]

        def interrupt(*arguments):
            interrupt.calls += 1
            if interrupt.calls == (3 if at == "between episodes" else 2):  # the first checkpoint precedes the episodes
                raise KeyboardInterrupt
            return stop(*arguments)

        interrupt.calls = 0
        owner, name = (rnd, "write_episode") if at == "between episodes" else (torch, "save")
        patch.setattr(owner, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            collect(tmp_path / "begun", "walker", "rnd", 4)
    begun = tmp_path / "begun" / "walker" / "local_rnd"
    assert len(files_of(begun)) == (2 if at == "between episodes" else 1)
    assert "hours" not in json.loads((begun / "generation.json").read_text())
    np.random.seed(99)  # noqa: NPY002
    torch.manual_seed(99)
    assert collect(tmp_path / "begun", "walker", "rnd", 4) == begun
    assert files_of(begun) == files_of(whole)


def test_global_generators_are_left_as_they_were(tmp_path, tiny):
    def draw() -> tuple:
        return random.random(), np.random.random(), float(torch.rand(1))  # noqa: NPY002

    states, threads = (random.getstate(), np.random.get_state(), torch.get_rng_state()), torch.get_num_threads()  # noqa: NPY002
    expected = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    collect(tmp_path, "walker", "rnd", 2)
    assert draw() == expected and torch.get_num_threads() == threads


def test_the_record_says_how_the_set_was_made(tmp_path, tiny):
    task = load_task("exorl/local_rnd/walker_walk", str(tmp_path), collect_episodes=2)
    record = task.identity["generation"]
    assert task.identity["source"] == "locally generated" and task.identity["transitions"] == 2 * STEPS
    assert (record["policy"], record["seed"], record["episodes"]) == ("rnd", 0, 2)
    assert record["parameters"] == {**dataclasses.asdict(TINY), "hidden_dims": [8, 8]}
    assert {"stable-baselines3", "torch", "mujoco"} <= set(record["libraries"])
    assert 0 < record["hours"] < 0.1
    again = collect(tmp_path, "walker", "rnd", 1)  # fewer than are there: nothing to do, and nothing forgotten
    assert json.loads((again / "generation.json").read_text()) == record
    saved = torch.load(again / "collector.pt", weights_only=True)
    torch.save({**saved, "hours": 7.0}, again / "collector.pt")
    longer = json.loads((collect(tmp_path, "walker", "rnd", 3) / "generation.json").read_text())
    assert 7 < longer["hours"] < 7.1 and {**longer, "hours": 0, "episodes": 2} == {**record, "hours": 0}


# ---- wrong input ----


def test_what_the_collector_learned_from_must_be_there(tmp_path, tiny):
    folder = collect(tmp_path, "walker", "rnd", 2)
    (folder / "buffer" / f"episode_000000_{STEPS}.npz").unlink()
    with pytest.raises(UserError, match=f"episode_000000_{STEPS}.npz: missing, and the collector learned from it"):
        collect(tmp_path, "walker", "rnd", 3)
    (folder / "collector.pt").unlink()
    with pytest.raises(UserError, match="collector.pt: missing, so the episodes in .* cannot be continued"):
        collect(tmp_path, "walker", "rnd", 3)


def test_other_parameters_are_not_mixed(tmp_path, tiny, monkeypatch):
    collect(tmp_path, "walker", "rnd", 1)
    monkeypatch.setattr(rnd, "RNDParameters", lambda: dataclasses.replace(TINY, features=5))
    with pytest.raises(UserError, match="generation.json: parameters there"):
        collect(tmp_path, "walker", "rnd", 2)


def test_a_missing_library_is_one_sentence(tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "stable" in name else found(name))
    with pytest.raises(SystemExit) as caught:
        main(["collect", "walker", "--collector", "rnd", "--episodes", "2", "--data_dir", str(tmp_path)])
    assert caught.value.code == 2 and not list(tmp_path.iterdir())
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "`pip install -r requirements-collect.txt`" in error
