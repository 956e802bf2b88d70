"""Updates one by one and as a CUDA graph: on the CPU with a stand-in that makes a replay's updates one by one."""

import pytest
import torch

from algorithms.dipole import DIPOLE
from harness.agent_tools import state_of
from harness.updates import UPDATES_PER_REPLAY, WARM_UP_UPDATES, Updates
from tests.conftest import small_config
from tests.test_agents import assert_equal_states
from tests.test_run import assert_same_run
from tests.toy import toy_task
from tests.toy_run import CONFIG, toy_run


class Replayed(Updates):
    """As on a GPU, but a replay makes its updates then; `replays` counts them over all objects."""

    replays = 0

    def __init__(self, agent, next_batch, generators, captured=True):
        super().__init__(agent, next_batch, generators, captured=True)

    def _capture(self):
        def replay():
            Replayed.replays += 1
            for _ in range(UPDATES_PER_REPLAY):
                self.replay_metrics = self.agent.update(self.next_batch())

        return replay


@pytest.mark.parametrize(
    "changes, replays",
    [
        # updates 3 to 25: 2 replays; to 35: 1; to 50: 1; to 70: 2; to 75: none
        ({"offline_steps": 75, "log_interval": 25, "eval_interval": 35, "checkpoint_interval": 70}, 6),
        # online there is a step in the environment before each update: nothing is replayed, nor captured
        (
            {
                "offline_steps": 2,
                "online_steps": 40,
                "log_interval": 21,
                "eval_interval": 50,
                "checkpoint_interval": 50,
            },
            0,
        ),
        (
            {
                "offline_steps": 20,
                "online_steps": 20,
                "log_interval": 50,
                "eval_interval": 50,
                "checkpoint_interval": 50,
            },
            1,
        ),
    ],
)
def test_replays_of_several_updates_keep_every_row_evaluation_and_checkpoint(tmp_path, monkeypatch, changes, replays):
    """Also where intervals and a replay do not fit together: 3 warm-up updates, then whole replays or single ones."""
    straight = toy_run(tmp_path / "straight", **changes)
    monkeypatch.setattr("harness.train.Updates", Replayed)
    before = Replayed.replays
    assert_same_run(straight, toy_run(tmp_path / "replayed", **changes))
    assert Replayed.replays == before + replays


def test_updates_are_single_until_the_capture_and_where_a_replay_does_not_fit():
    agent, dataset, generator = DIPOLE(CONFIG, 3, 2), toy_task().dataset, torch.Generator()
    updates = Replayed(agent, lambda: dataset.sample(8, generator), [generator])
    assert [updates.advance(100)[0] for _ in range(WARM_UP_UPDATES)] == [1] * WARM_UP_UPDATES
    assert [updates.advance(room)[0] for room in (9, 10, 1, 19)] == [1, UPDATES_PER_REPLAY, 1, UPDATES_PER_REPLAY]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
def test_a_captured_graph_makes_the_updates_of_one_by_one(algorithm):
    """Equal to the bit on the same card, random numbers included."""
    dataset = toy_task().dataset.to("cuda")

    def trained(captured: bool) -> list:
        agent = algorithm.agent_class(small_config(algorithm), 3, 2).to("cuda")
        batches = torch.Generator("cuda").manual_seed(0)
        generators = [agent.noise.generator, batches]
        updates = Updates(agent, lambda: dataset.sample(16, batches, agent.batch_fields), generators, captured)
        made = 0
        while made < 27:
            count, metrics = updates.advance(27 - made)
            made += count
        return [state_of(agent), {name: metric.clone() for name, metric in metrics.items()}]

    for first, second in zip(trained(False), trained(True), strict=True):
        assert_equal_states(first, second)
