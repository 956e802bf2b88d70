"""Dataset: alignment, sampling and its errors, on two hand-made episodes."""

import numpy as np
import pytest
import torch

from common.errors import UserError
from envs import load_task
from envs.dataset import Dataset
from envs.task import SAMPLE_BLOCK_SIZE, file_sha256
from envs.transitions import ACTION_LIMIT, refuse_non_finite


def two_episodes(**changes) -> Dataset:
    """Episodes of 3 and 2 transitions, rows 0-3 and 4-6; row r holds 10 r, action r / 10, reward r, value -r."""
    rows = torch.arange(7.0)
    arrays = {
        "observations": torch.stack([10 * rows, 10 * rows + 1], dim=1),
        "actions": rows[:, None] / 10,
        "rewards": rows,
        "masks": torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]),
        "valid": torch.tensor([0, 1, 2, 4, 5]),
        "state_values": -rows,
    }
    return Dataset(**{**arrays, **changes})


def test_transitions_are_aligned():
    batch = two_episodes().take(torch.arange(5), fields=("state_values",))
    assert batch["observations"][:, 0].tolist() == [0, 10, 20, 40, 50]
    assert batch["next_observations"].tolist() == [[10, 11], [20, 21], [30, 31], [50, 51], [60, 61]]
    assert torch.equal(batch["actions"][:, 0], torch.tensor([0.0, 0.1, 0.2, 0.4, 0.5]))
    assert batch["rewards"].tolist() == [0, 1, 2, 4, 5]
    assert batch["masks"].tolist() == [1, 1, 0, 1, 1]
    assert batch["state_values"].tolist() == [0, -1, -2, -4, -5]


@pytest.mark.parametrize("recorded, at_the_end", [(True, 0.3), (False, 0.2)])
def test_next_actions_are_of_the_next_row_or_at_an_episodes_end_the_transitions_own(recorded, at_the_end):
    dataset = two_episodes(has_last_actions=recorded).to("cpu")
    next_actions = dataset.take(torch.arange(5), fields=("next_actions",))["next_actions"]
    assert torch.allclose(next_actions[:, 0], torch.tensor([0.1, 0.2, at_the_end, 0.5, 0.5]))


def test_nothing_that_a_loader_fills_in_reaches_an_algorithm():
    """The last row of an episode has an observation only: no field of a minibatch has the rest."""
    filled = two_episodes()
    gaps = {field: getattr(filled, field).clone() for field in ("actions", "rewards", "masks")}
    gaps["state_values"] = filled.columns["state_values"].clone()
    for array in gaps.values():
        array[[3, 6]] = torch.nan
    poisoned = two_episodes(**gaps)
    fields = ("next_actions", "state_values")
    expected, found = (dataset.take(torch.arange(5), fields) for dataset in (filled, poisoned))
    assert expected.keys() == found.keys()
    for field, column in expected.items():
        assert torch.equal(found[field], column), field


@pytest.mark.parametrize("over, clipped", [(1e-7, True), (5e-4, True), (2e-3, False), (9.0, False)])
def test_actions_are_clipped_where_rounding_put_them_outside_and_refused_where_they_are_of_another_scale(over, clipped):
    actions = torch.tensor([-1 - over, 0.5, 1 + over, 0, 0.1, 0.2, 0])[:, None]
    if clipped:
        limited = two_episodes(actions=actions).actions[:, 0]
        assert limited[0] == -torch.tensor(ACTION_LIMIT) and limited[2] == torch.tensor(ACTION_LIMIT)
        assert torch.equal(limited[[1, 3, 4, 5, 6]], actions[[1, 3, 4, 5, 6], 0])
        assert actions[0] == -1 - over  # the caller's tensor stays
    else:
        with pytest.raises(UserError, match="actions of 2 of 5 rows are outside -1 to 1, the first in row 0"):
            two_episodes(actions=actions)


def test_sampling_is_uniform_over_transitions_and_never_takes_a_last_row():
    dataset = two_episodes()
    assert len(dataset) == 5
    batch = dataset.sample(50_000, torch.Generator().manual_seed(0))
    counts = torch.bincount((batch["observations"][:, 0] / 10).long(), minlength=7)
    assert counts[3] == counts[6] == 0
    expected = 10_000
    assert (counts[dataset.valid] - expected).abs().max() < 5 * expected**0.5


def test_to_keeps_everything():
    dataset = two_episodes()
    moved = dataset.to("cpu")
    for field in ("observations", "actions", "rewards", "masks", "valid"):
        assert torch.equal(getattr(moved, field), getattr(dataset, field))
    assert torch.equal(moved.columns["state_values"], dataset.columns["state_values"])


def test_a_data_set_on_the_same_device_shares_its_memory():
    actions = torch.full((5, 1), ACTION_LIMIT)
    masks = torch.ones(()).expand(5)
    dataset = Dataset(torch.zeros(5, 2), actions, torch.zeros(5), masks, torch.arange(4)).to("cpu")
    assert dataset.actions.data_ptr() == actions.data_ptr()
    assert dataset.masks.data_ptr() == masks.data_ptr() and dataset.masks.untyped_storage().nbytes() == 4
    assert dataset.take(torch.tensor([1, 2, 3]))["masks"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "field, value",
    [
        ("observations", torch.zeros(7)),
        ("actions", torch.zeros(6, 1)),
        ("rewards", torch.zeros(7, 1)),
        ("masks", torch.zeros(8)),
        ("state_values", torch.zeros(5)),
        ("valid", torch.tensor([5, 6])),
        ("valid", torch.tensor([-1, 2])),
        ("valid", torch.tensor([2, 1])),
        ("valid", torch.tensor([], dtype=torch.int64)),
    ],
)
def test_shapes_that_do_not_fit_name_the_field(field, value):
    with pytest.raises(ValueError, match=f"^{field}: "):
        two_episodes(**{field: value})


def test_an_unknown_field_is_named():
    with pytest.raises(ValueError, match="unknown field 'returns': next_actions or one of"):
        two_episodes().take(torch.arange(2), fields=("returns",))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_name_the_row(value):
    array = np.zeros((9, 2), np.float32)
    refuse_non_finite("data.h5", "action", array)
    array[4, 1] = value
    with pytest.raises(UserError, match="^data.h5: action holds .* at row 4"):
        refuse_non_finite("data.h5", "action", array)


def test_a_large_file_is_hashed_by_sample(tmp_path, monkeypatch):
    path = tmp_path / "data"
    path.write_bytes(bytes(4 * SAMPLE_BLOCK_SIZE))
    whole, kind = file_sha256(path)
    assert kind == "whole file"
    assert file_sha256(path) == (whole, kind)
    monkeypatch.setattr("envs.task.WHOLE_FILE_LIMIT", SAMPLE_BLOCK_SIZE)
    sample, kind = file_sha256(path)
    assert kind == "sample" and sample != whole
    path.write_bytes(bytes(4 * SAMPLE_BLOCK_SIZE - 1) + b"1")
    assert file_sha256(path)[0] != sample


def test_an_unknown_suite_is_named_with_its_nearest():
    with pytest.raises(UserError, match="unknown suite 'exrl', did you mean exorl"):
        load_task("exrl/rnd/walker_walk")
