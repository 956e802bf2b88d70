"""The replay of an online phase: every slot is sampled, nothing of two episodes is joined, the data stay."""

import pytest
import torch

from envs.dataset import Dataset
from envs.replay import Replay

DATA = 6  # transitions of the data set below


def dataset() -> Dataset:
    """Two episodes of three transitions; every entry of row r is r / 100."""
    rows = torch.arange(8) / 100
    return Dataset(rows[:, None], rows[:, None], rows, torch.ones(8), torch.tensor([0, 1, 2, 4, 5, 6]))


def transitions(first: int, count: int, episode_length: int = 3) -> dict:
    """Online transitions number first, ..., first + count - 1; number n's entries are made from n."""
    n = torch.arange(first, first + count)
    return {
        "observations": 1.0 + n[:, None],
        "actions": (n[:, None] + 1) / 1000,
        "rewards": 10.0 + n,
        "masks": (n % episode_length != episode_length - 1).float(),
        "next_observations": 1.5 + n[:, None],
        "episodes": n // episode_length,
    }


def filled(count: int, capacity: int = 5, **options) -> Replay:
    replay = Replay(dataset(), capacity, **options)
    for number in range(count):
        replay.add(transitions(number, 1))
    return replay


def draw(replay: Replay, fields=(), size: int = 4000) -> dict:
    return replay.sample(size, torch.Generator().manual_seed(0), fields)


@pytest.mark.parametrize("count", [1, 3, 5, 6, 13])
def test_every_transition_is_drawn_equally_often(count):
    """Of the data set and of each filled slot, the last one of a full ring too."""
    batch = draw(filled(count))
    held = [10.0 + number for number in range(max(0, count - 5), count)]
    expected = [row / 100 for row in (0, 1, 2, 4, 5, 6)] + held
    values, counts = batch["rewards"].unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor(expected))
    share = 4000 / len(expected)
    assert (counts - share).abs().max() < 5 * share**0.5


def test_a_batch_holds_whole_transitions():
    """Rows of a batch are never mixed of two transitions, also around the ring's end."""
    batch = draw(filled(13))
    online = batch["rewards"] >= 10
    number = batch["rewards"][online] - 10
    torch.testing.assert_close(batch["observations"][online, 0], 1 + number)
    torch.testing.assert_close(batch["next_observations"][online, 0], 1.5 + number)
    torch.testing.assert_close(batch["actions"][online, 0], (number + 1) / 1000)
    torch.testing.assert_close(batch["masks"][online], (number % 3 != 2).float())
    torch.testing.assert_close(batch["next_observations"][~online, 0], batch["observations"][~online, 0] + 0.01)


@pytest.mark.parametrize(
    "count, expected",
    [
        (2, {0: 1, 1: 1}),  # beyond the newest there is an empty slot
        (13, {8: 8, 9: 10, 10: 11, 11: 11, 12: 12}),  # 8 and 11 end their episodes
    ],
)
def test_next_actions_stay_within_an_episode(count, expected):
    """By number: whose action follows; the newest transition's own."""
    batch = draw(filled(count), ("next_actions",))
    following = dict(zip(batch["rewards"].tolist(), (1000 * batch["next_actions"][:, 0]).round().tolist(), strict=True))
    assert {n: following[10.0 + n] - 1 for n in expected} == expected


def test_an_unknown_field_is_refused():
    with pytest.raises(ValueError, match="state_values"):
        draw(filled(3), ("next_actions", "state_values"))


def test_balanced_batches_are_half_data_and_half_new():
    batch = draw(filled(2, balanced=True), ("next_actions",), size=101)
    assert (batch["rewards"] >= 10).tolist() == [False] * 50 + [True] * 51
    assert batch["rewards"][50:].unique().tolist() == [10.0, 11.0]
    assert len(batch["rewards"][:50].unique()) == DATA


def test_the_data_set_leaves_only_when_told_to():
    """With room for two, the third online transition takes the place of the data set's first, and so on."""
    kept = draw(filled(5))["rewards"].unique()
    assert (kept < 10).sum() == DATA
    rewards = draw(filled(5, room=2))["rewards"].unique()
    torch.testing.assert_close(rewards, torch.tensor([0.04, 0.05, 0.06, 10, 11, 12, 13, 14]))
    for balanced in (False, True):
        emptied = draw(filled(9, room=2, balanced=balanced))["rewards"].unique()
        torch.testing.assert_close(emptied, torch.tensor([14.0, 15, 16, 17, 18]))


@pytest.mark.parametrize("block", [1, 2, 4, 7, 13])
def test_blocks_fill_the_same_slots_as_single_transitions(block):
    single, blocks = filled(13), Replay(dataset(), 5)
    for first in range(0, 13, block):
        blocks.add(transitions(first, min(block, 13 - first)))
    assert blocks.added == 13
    for name, column in single.columns.items():
        assert torch.equal(column, blocks.columns[name]), name


def test_newest_are_in_the_order_of_time():
    replay = filled(13)
    assert replay.newest(4)["rewards"].tolist() == [19, 20, 21, 22]
    with pytest.raises(ValueError, match="holds 5"):
        replay.newest(6)
