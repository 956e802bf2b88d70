"""Several seeds side by side in one process: each is, bit for bit, the run that it would be alone."""

import dataclasses
import json
import signal
import sys

import pytest
import torch

from algorithms.dipole import DIPOLE
from common.errors import UserError
from harness.run import run
from harness.run_folder import run_path
from harness.training import loop as loop_module
from harness.training.loop import Loop, complete
from harness.training.one_run import Diverged
from harness.training.updates import UPDATES_PER_REPLAY, WARM_UP_UPDATES, Updates
from tests.test_run import assert_same_run, checkpoint_of, rows_of, start, wait_for_step
from tests.toy import toy_task
from tests.toy_run import toy_config, toy_run, toy_runs

SEEDS = (3, 0, 7)


def configs_of(run_dir, **changes) -> list:
    return [toy_config(run_dir, seed=seed, **changes) for seed in SEEDS]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The configs of seeds that were trained one by one."""
    configs = configs_of(tmp_path_factory.mktemp("alone"))
    for config in configs:
        toy_run(config)
    return configs


def test_seeds_side_by_side_equal_seeds_alone(tmp_path, alone, capsys):
    configs = configs_of(tmp_path)
    results = toy_runs(configs)
    for config, straight, result in zip(configs, alone, results, strict=True):
        assert_same_run(config, straight)
        assert result == json.loads((run_path(config) / "result.json").read_text())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == [str(run_path(config)) for config in configs]
    assert [line.split(":")[0] for line in lines[3:6]] == ["seed 3", "seed 0", "seed 7"]


def test_seeds_with_online_phases(tmp_path):
    changes = {"offline_steps": 20, "online_steps": 20}
    together, straight = configs_of(tmp_path / "together", **changes), configs_of(tmp_path / "alone", **changes)
    toy_runs(together)
    for config, single in zip(together, straight, strict=True):
        toy_run(single)
        assert_same_run(config, single)


def test_a_seed_that_is_behind_catches_up_and_a_finished_one_rests(tmp_path, alone, capsys):
    """One seed is finished, one was killed after its first checkpoint, one is new."""
    finished, killed, new = configs_of(tmp_path)
    toy_run(finished)
    process = start(tmp_path, f"seed={killed.seed}")
    wait_for_step(process, run_path(killed) / "train.csv", 25)
    process.kill()
    process.wait()
    stood = checkpoint_of(killed)["loop"]["step"]
    assert 20 <= stood < 60
    toy_runs([finished, killed, new])
    for config, straight in zip((finished, killed, new), alone, strict=True):
        assert_same_run(config, straight)
    printed = capsys.readouterr().out
    assert f"continuing after {stood} of 60 updates" in printed and "not trained again" in printed


def test_the_slowest_seeds_are_advanced_first(tmp_path, monkeypatch):
    """Those that are behind advance until they meet the others; then all advance together."""
    advanced, updates_of = [], Loop._updates_of

    def noting(self, trainings):
        advanced.append([training.config.seed for training in trainings])
        return updates_of(self, trainings)

    configs = configs_of(tmp_path, offline_steps=25, eval_interval=50)
    toy_run(dataclasses.replace(configs[0], checkpoint_interval=10))
    (run_path(configs[0]) / "result.json").unlink()
    checkpoint = torch.load(run_path(configs[0]) / "checkpoint.pt", weights_only=True)
    assert checkpoint["loop"]["step"] == 25
    monkeypatch.setattr(loop_module.Loop, "_updates_of", noting)
    toy_runs(configs)
    assert advanced == [[0, 7]] * 25


def test_a_signal_leaves_a_checkpoint_of_every_seed(tmp_path):
    changes = {"offline_steps": 600, "checkpoint_interval": 600, "eval_interval": 600}
    configs, straight = configs_of(tmp_path / "stopped", **changes), toy_config(tmp_path / "alone", seed=7, **changes)
    toy_run(straight)
    process = start(tmp_path / "stopped", "seeds=[3,0,7]", *(f"{name}={value}" for name, value in changes.items()))
    wait_for_step(process, run_path(configs[-1]) / "train.csv", 25)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    steps = [checkpoint_of(config)["loop"]["step"] for config in configs]
    assert 25 <= steps[0] < 600 and len(set(steps)) == 1
    toy_runs(configs)
    assert_same_run(configs[-1], straight)


class DivergingSeed(DIPOLE):
    """Seed 0 overflows in its update 27."""

    def update(self, batch):
        self.updates = getattr(self, "updates", 0) + 1
        if self.config.seed == 0 and self.updates == 27:
            with torch.no_grad():
                self.value.biases[-1].fill_(float("inf"))
        return super().update(batch)


def test_a_seed_that_diverges_does_not_stop_the_others(tmp_path, alone, capsys):
    configs = configs_of(tmp_path)
    with pytest.raises(Diverged, match="seed_0: .* after 30 updates"):
        run([DivergingSeed(config, 3, 2) for config in configs], toy_task())
    assert "seed_0" in capsys.readouterr().out
    assert not (run_path(configs[1]) / "result.json").exists() and checkpoint_of(configs[1])["loop"]["step"] == 20
    for index in (0, 2):
        assert_same_run(configs[index], alone[index])


def test_runs_that_differ_in_more_than_the_seed_are_refused(tmp_path):
    agents = [DIPOLE(toy_config(tmp_path, seed=seed, discount=0.9 + seed / 100), 3, 2) for seed in (0, 1)]
    with pytest.raises(ValueError, match="their seed only"):
        complete(agents, toy_task())


def test_a_run_of_another_config_is_refused_before_any_seed_is_trained(tmp_path):
    toy_run(toy_config(tmp_path, seed=7, discount=0.5))
    with pytest.raises(UserError, match="seed_7.*another discount"):
        toy_runs(configs_of(tmp_path))
    assert not (run_path(configs_of(tmp_path)[0]) / "checkpoint.pt").exists()


def test_final_reports_of_seeds_have_their_own_controls(tmp_path, capsys):
    toy_runs(configs_of(tmp_path, final_report=("num_candidates=1,2",)))
    printed = capsys.readouterr().out
    for seed in SEEDS:
        assert (tmp_path / "dipole_behaviour_cloning" / "toy" / "point" / f"seed_{seed}" / "result.json").exists()
        assert len(rows_of(tmp_path / "dipole" / "toy" / "point" / f"seed_{seed}" / "evaluation.csv")) == 2
        assert printed.count(f", seed {seed}\n") == 1
    assert "not trained again" not in printed


def test_seeds_are_separate_runs_in_weights_and_biases(tmp_path):
    pytest.importorskip("wandb")
    configs = configs_of(tmp_path, wandb_mode="offline")
    toy_runs(configs)
    assert [len(list(run_path(config).rglob("*.wandb"))) for config in configs] == [1, 1, 1]


# ---- What a CUDA graph changes in the loop, tried with a stand-in that makes the updates one by one ----


class Replayed(Updates):
    """As on a GPU, but a replay makes its updates then; `replays` counts them over all objects."""

    replays = 0

    def __init__(self, agents, samplers, generators, captured):
        super().__init__(agents, samplers, generators, captured=False)
        self.captured = True

    def _capture(self):
        self.metrics = [{} for _ in self.agents]

        def replay():
            Replayed.replays += 1
            for kept, new in zip(self.metrics, self._update(UPDATES_PER_REPLAY), strict=True):
                kept.update(new)

        self.replay = replay


def test_replays_of_several_updates_keep_every_row_evaluation_and_checkpoint(tmp_path, monkeypatch):
    """Also where intervals and the stride do not fit together: 3 warm-up updates, then whole replays or single ones."""
    changes = {"offline_steps": 75, "log_interval": 25, "eval_interval": 35, "checkpoint_interval": 70}
    configs, straight = configs_of(tmp_path / "replayed", **changes), configs_of(tmp_path / "alone", **changes)
    for config in straight:
        toy_run(config)
    monkeypatch.setattr(loop_module, "Updates", Replayed)
    toy_runs(configs)
    for config, single in zip(configs, straight, strict=True):
        assert_same_run(config, single)
    # updates 3 to 25: 2 replays; to 35: 1; to 50: 1; to 70: 2; to 75: none
    assert Replayed.replays == 6


class KilledAfter15(DIPOLE):
    """Its process ends in its update 16."""

    def update(self, batch):
        self.updates = getattr(self, "updates", 0) + 1
        if self.updates == 16:
            raise SystemExit
        return super().update(batch)


def test_a_replay_does_not_carry_a_seed_past_one_that_is_ahead(tmp_path, monkeypatch):
    """A lead of 11 updates, which neither an interval nor the replays' stride meets: 4 single updates, then 7 more."""
    advanced, advance = [], Replayed.advance

    def noting(self, count):
        advanced.append((len(self.agents), count))
        return advance(self, count)

    changes = {"offline_steps": 50, "log_interval": 50, "eval_interval": 50, "checkpoint_interval": 50}
    together, straight = configs_of(tmp_path / "together", **changes), configs_of(tmp_path / "alone", **changes)
    for config in straight:
        toy_run(config)
    ahead = dataclasses.replace(together[0], checkpoint_interval=11)
    with pytest.raises(SystemExit):
        run([KilledAfter15(ahead, 3, 2)], toy_task())
    assert checkpoint_of(ahead)["loop"]["step"] == 11
    monkeypatch.setattr(loop_module, "Updates", Replayed)
    monkeypatch.setattr(Replayed, "advance", noting)
    toy_runs(together)
    assert advanced[:11] == [(2, 1)] * 11, "those behind meet the one ahead"
    assert all(agents == 3 for agents, _ in advanced[11:]) and (3, UPDATES_PER_REPLAY) in advanced
    for config, single in zip(together, straight, strict=True):
        assert_same_run(config, single)


def test_updates_are_single_until_the_capture():
    agents = [DIPOLE(toy_config("unused", seed=seed), 3, 2) for seed in (0, 1)]
    dataset = toy_task().dataset
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    samplers = [lambda generator=generator: dataset.sample(8, generator) for generator in generators]
    updates = Replayed(agents, samplers, [[generator] for generator in generators], True)
    strides = []
    for _ in range(WARM_UP_UPDATES + 1):
        strides.append(updates.stride)
        metrics = updates.advance(1)
    assert strides == [1] * (WARM_UP_UPDATES + 1) and updates.stride == UPDATES_PER_REPLAY
    assert [set(metric) for metric in metrics] == [set(agents[0].losses(samplers[0]()))] * 2
    before = Replayed.replays
    updates.advance(2 * UPDATES_PER_REPLAY + 3)
    assert Replayed.replays == before + 2 and updates.made == WARM_UP_UPDATES + 1 + 2 * UPDATES_PER_REPLAY + 3


def test_the_command_line_trains_seeds(tmp_path, monkeypatch):
    """`--seeds` through the algorithm file's own train()."""
    import algorithms.dipole as dipole

    monkeypatch.setattr("envs.load_task", lambda *arguments: toy_task())
    flags = {name: getattr(toy_config(tmp_path), name) for name in ("log_interval", "eval_interval", "batch_size")}
    argv = ["dipole.py", "--seeds", "4", "5", "--run_dir", str(tmp_path), "--offline_steps", "20", "--device", "cpu"]
    argv += ["--eval_episodes", "1", "--actor_hidden_dims", "[8]", "--value_hidden_dims", "[8]", "--task", "toy/point"]
    argv += [f"--{name}={value}" for name, value in flags.items()]
    monkeypatch.setattr(sys, "argv", argv)
    dipole.main()
    assert sorted(path.name for path in (tmp_path / "dipole" / "toy" / "point").iterdir()) == ["seed_4", "seed_5"]


# ---- On a GPU ----

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")


@needs_gpu
@pytest.mark.parametrize("count", [1, 3])
def test_a_captured_graph_makes_the_updates_of_one_by_one(algorithm, count):
    """Equal to the bit on the same card, random numbers included, for one agent and for several on parallel streams."""
    from tests.conftest import small_config

    dataset = toy_task().dataset.to("cuda")

    def trained(captured: bool) -> list:
        agents = [algorithm.agent_class(small_config(algorithm, seed=seed), 3, 2).to("cuda") for seed in range(count)]
        batches = [torch.Generator("cuda").manual_seed(seed) for seed in range(count)]
        samplers = [
            lambda agent=agent, generator=generator: dataset.sample(16, generator, agent.batch_fields)
            for agent, generator in zip(agents, batches, strict=True)
        ]
        generators = [[agent.noise.generator, batch] for agent, batch in zip(agents, batches, strict=True)]
        updates = Updates(agents, samplers, generators, captured)
        for advance in [1] * (WARM_UP_UPDATES + 1) + [2 * UPDATES_PER_REPLAY + 3]:
            metrics = updates.advance(advance)
        return [agent.state_dict() for agent in agents] + [{k: v.clone() for k, v in m.items()} for m in metrics]

    from tests.test_agents import assert_equal_states

    for first, second in zip(trained(False), trained(True), strict=True):
        assert_equal_states(first, second)
