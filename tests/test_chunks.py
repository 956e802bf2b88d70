"""Chunks against the QAM repository's figures, in the data and online; environments; sparse rewards; many files."""

import dataclasses
import itertools
import pickle
import weakref
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from common.errors import UserError
from envs import load_environment, load_task
from envs.chunks import Chunk, ChunkedDataset, chunked
from envs.dataset import ACTION_LIMIT, Dataset
from envs.ogbench.collect import ManipulationCollector
from envs.ogbench.tasks import sha256_of_ends
from envs.replay import Replay
from envs.shards import Shards, refill
from envs.task import Task, sparse
from envs.wrappers import STEPS, ChunkedEnvironment, single_steps
from tests.toy import EPISODE_LENGTH, PointEnv, toy_dataset, toy_task
from tests.toy_run import toy_run

FIGURES = Path(__file__).parent / "golden" / "protocol_b" / "chunks.npz"
DISCOUNT = 0.99
LENGTHS = (1, 3, 5)
BATCH = ("observations", "actions", "rewards", "masks", "next_observations", "valid")


@pytest.fixture(scope="module")
def figures() -> dict:
    """60 transitions, data/, 15 online ones after them, online/, and what the reference's code makes of their windows.

    {qam,buffer}/h{1,3,5}/<field>: by start index, of the data alone and of both; the last position of each window.
    """
    with np.load(FIGURES) as arrays:
        return dict(arrays)


def reference_data(figures: dict) -> Dataset:
    """The data set of data/: after each episode a row for its last state, of which nothing else may be read."""
    data = {name: figures[f"data/{name}"] for name in ("observations", "actions", "rewards", "masks", "terminals")}
    ends = data.pop("terminals") == 1
    rows = np.arange(len(ends)) + np.cumsum(ends) - ends
    arrays = {name: np.full((rows[-1] + 2, *column.shape[1:]), np.nan) for name, column in data.items()}
    for name, column in data.items():
        arrays[name][rows] = column
    arrays["observations"][rows[ends] + 1] = figures["data/next_observations"][ends]
    return Dataset(**arrays, valid=rows)


def expected_batch(figures: dict, source: str, length: int) -> dict:
    """The reference's batch of all its start indices, with this project's bootstrap factor."""
    batch = {name: figures[f"{source}/h{length}/{name}"] for name in BATCH}
    batch["actions"] = batch["actions"].reshape(len(batch["actions"]), -1)
    batch["masks"] = DISCOUNT ** (length - 1) * batch["masks"]
    return {name: torch.tensor(column, dtype=torch.float32) for name, column in batch.items()}


def assert_same_batch(batch: dict, expected: dict) -> None:
    assert batch.keys() == expected.keys()
    for name, column in expected.items():
        exact = {} if name in ("rewards", "masks") else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(batch[name], column, msg=lambda text, name=name: f"{name}: {text}", **exact)


def transition(number: int, episode_length: int) -> dict:
    """Online transition `number`, in episodes of that length."""
    n = torch.tensor([float(number)])
    return {
        "observations": n[:, None],
        "actions": n[:, None] / 100,
        "rewards": n,
        "masks": torch.ones(1),
        "next_observations": n[:, None] + 0.5,
        "episodes": torch.tensor([number // episode_length]),
    }


def small_data(episodes: int = 3, steps: int = 4) -> Dataset:
    """Every entry of row r is -r / 100, of which each episode has one more than transitions."""
    rows = -torch.arange(episodes * (steps + 1)) / 100
    valid = [row for row in range(len(rows)) if (row + 1) % (steps + 1)]
    return Dataset(rows[:, None], rows[:, None], rows, torch.ones(len(rows)), torch.tensor(valid))


# ---- The reference's figures ----


@pytest.mark.parametrize("length", LENGTHS)
def test_chunks_of_the_data_are_the_references(figures, length):
    """For every start index that it can draw, and for no other."""
    dataset = ChunkedDataset(reference_data(figures), Chunk(length, DISCOUNT))
    expected = expected_batch(figures, "qam", length)
    assert len(dataset) == len(expected["valid"])
    assert_same_batch(dataset.take(torch.arange(len(dataset))), expected)
    drawn = dataset.draw(10_000, torch.Generator().manual_seed(0))
    assert drawn.unique().tolist() == list(range(len(dataset)))


@pytest.mark.parametrize("length", LENGTHS)
def test_chunks_of_data_and_online_transitions_are_the_references(figures, length):
    """Also those across the seam, and in the episode that is not over yet."""
    data = reference_data(figures)
    replay = Replay(ChunkedDataset(data, Chunk(length, DISCOUNT)) if length > 1 else data, capacity=20)
    online = {name.removeprefix("online/"): array for name, array in figures.items() if name.startswith("online/")}
    ends = online.pop("terminals")
    online["episodes"] = np.cumsum(ends) - ends
    replay.add({name: torch.tensor(array) for name, array in online.items()})
    expected = expected_batch(figures, "buffer", length)
    starts = torch.arange(len(expected["valid"]))
    if length == 1:
        expected.pop("valid")  # all 1
    assert_same_batch(replay.take_joint(starts), expected)
    drawn = replay.sample(20_000, torch.Generator().manual_seed(0))["observations"]
    assert len(drawn.unique(dim=0)) == len(starts)


# ---- Beyond the reference ----


def test_h_step_returns_keep_single_actions(figures):
    """And all else as for chunks."""
    data = reference_data(figures)
    chunks, returns = (ChunkedDataset(data, Chunk(3, DISCOUNT, first_only)) for first_only in (False, True))
    for starts in (torch.arange(len(chunks)), torch.tensor([5])):
        batch = chunks.take(starts)
        assert_same_batch(returns.take(starts), batch | {"actions": batch["actions"][:, :2]})
    replays = [Replay(dataset, capacity=5) for dataset in (chunks, returns)]
    for replay, number in itertools.product(replays, range(4)):
        replay.add(
            {name: value.expand(1, 2) if value.ndim > 1 else value for name, value in transition(number, 3).items()}
        )
    batch = replays[0].take_joint(torch.arange(62))
    assert_same_batch(replays[1].take_joint(torch.arange(62)), batch | {"actions": batch["actions"][:, :2]})


def test_next_actions_are_the_following_chunks_of_the_episode():
    """Otherwise the own ones: the episodes here have 4 transitions, so few chunks of 2 have a next."""
    for chunk, has_next in ((Chunk(2, DISCOUNT), {0}), (Chunk(2, DISCOUNT, first_action_only=True), {0, 1})):
        dataset = ChunkedDataset(small_data(), chunk)
        starts = torch.arange(len(dataset))
        batch = dataset.take(starts, ("next_actions",))
        following = torch.where(torch.tensor([int(start) % 4 in has_next for start in starts]), starts + 2, starts)
        assert torch.equal(batch["next_actions"], dataset.take(following)["actions"])
        replay = Replay(dataset, capacity=20)
        for number in range(10):
            replay.add(transition(number, 4))
        numbers = torch.arange(10 - 2 + 1)
        batch = replay.take(numbers, ("next_actions",))
        goes_on = [number % 4 in has_next and number + 2 + chunk.actions <= 10 for number in numbers.tolist()]
        following = torch.where(torch.tensor(goes_on), numbers + 2, numbers)
        assert torch.equal(batch["next_actions"], replay.take(following)["actions"])


def test_windows_of_a_full_ring_are_in_the_order_of_time():
    replay = Replay(ChunkedDataset(small_data(), Chunk(3, 1.0)), capacity=7)
    for number in range(17):
        replay.add(transition(number, 4))
    batch = replay.take(torch.arange(5))  # 10 is the oldest that is left, 16 the newest; 12 and 16 begin episodes
    assert (100 * batch["actions"]).round().tolist() == [[n, n + 1, n + 2] for n in range(10, 15)]
    assert batch["valid"].tolist() == [0, 0, 1, 1, 0]
    assert batch["rewards"].tolist() == [10 + 11, 11, 12 + 13 + 14, 13 + 14 + 15, 14 + 15]
    assert batch["next_observations"][:, 0].tolist() == [11.5, 11.5, 14.5, 15.5, 15.5]


def test_balanced_batches_join_nothing():
    """Halves are of data and ring alone; until the ring holds a chunk, all is drawn from both together."""
    replay = Replay(ChunkedDataset(small_data(), Chunk(3, 1.0)), capacity=20, balanced=True)
    for number in range(4):
        batch = replay.sample(101, torch.Generator().manual_seed(0))
        online = (batch["observations"][:, 0] > 0).sum()
        assert online == (51 if number >= 3 else 0)
        replay.add(transition(number + 1, 10))
    old, new = batch["actions"].split([50, 51])
    assert (old <= 0).all() and (new > 0).all()


@pytest.mark.parametrize("room, expected", [(3, range(2, 12)), (0, range(5, 12))])
def test_the_oldest_data_leave_chunk_by_chunk(room, expected):
    replay = Replay(ChunkedDataset(small_data(), Chunk(3, 1.0)), capacity=9, room=room)
    for number in range(5):
        replay.add(transition(number + 1, 10))
    starts = replay.sample(5000, torch.Generator().manual_seed(0))["observations"].unique()
    rows = [row for row in range(15) if (row + 1) % 5]
    assert starts.tolist() == pytest.approx(sorted([-rows[number] / 100 for number in expected] + [1, 2, 3]))


def test_a_ring_that_cannot_hold_a_chunk_is_refused():
    with pytest.raises(UserError, match=r"action_chunk is 3, .* room for 2: raise replay_capacity"):
        Replay(ChunkedDataset(small_data(), Chunk(3, 1.0)), capacity=2, room=0)


def test_columns_and_devices_are_kept():
    data = small_data().replaced(columns={"state_values": torch.arange(15.0)})
    dataset = ChunkedDataset(data, Chunk(3, DISCOUNT))
    assert dataset.take(torch.tensor([0, 5]), ("state_values",))["state_values"].tolist() == [0, 6]
    with pytest.raises(ValueError, match="unknown field 'costs'"):
        dataset.take(torch.tensor([0]), ("costs",))
    moved = dataset.to("meta")
    assert all(value.device.type == "meta" for value in vars(moved).values() if isinstance(value, torch.Tensor))
    assert moved.columns["state_values"].device.type == "meta"
    assert moved.chunk == dataset.chunk and len(moved) == len(dataset)


# ---- The task ----


class Countdown(gymnasium.Env):
    """Reward = the action; it ends by success with the 7th step, or by a limit."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, limit: int = 7):
        self.limit = limit

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.steps < self.limit, "a step after the end"
        self.steps += 1
        done = self.steps == self.limit
        return np.full(1, self.steps, np.float32), action[0], done, False, {"success": float(done)}


def test_a_chunk_is_executed_open_loop_up_to_the_end_of_the_episode():
    environment = ChunkedEnvironment(Countdown(), 5)
    assert environment.action_space.shape == (5,) and environment.action_space.high.tolist() == [1] * 5
    environment.reset(seed=0)
    chunk = np.array([0.5, 0.25, -1, 1, 1], np.float32)
    observation, reward, terminated, truncated, info = environment.step(chunk)
    assert (observation.tolist(), reward, terminated, truncated) == ([5], 1.75, False, False)
    assert info == {"success": 0.0, STEPS: 5}
    observation, reward, terminated, truncated, info = environment.step(chunk)
    assert (observation.tolist(), reward, terminated, truncated) == ([7], 0.75, True, False)
    assert info == {"success": 1.0, STEPS: 2}


def test_a_chunked_task_fits_together():
    task = toy_task(validation=True)
    chunks = chunked(task, 4, DISCOUNT)
    assert (chunks.action_dim, chunks.observation_dim) == (8, 3)
    environment = pickle.loads(pickle.dumps(chunks.make_env))()
    assert environment.action_space.shape == (8,) == chunks.dataset.take(torch.arange(1))["actions"].shape[1:]
    assert chunks.validation.chunk == chunks.dataset.chunk == Chunk(4, DISCOUNT)
    assert isinstance(single_steps(chunks.make_env)(), PointEnv) and single_steps(PointEnv) is PointEnv
    environment.reset(seed=0)
    steps = [environment.step(np.zeros(8, np.float32))[-1][STEPS] for _ in range(3)]
    assert sum(steps) == EPISODE_LENGTH
    returns = chunked(task, 4, DISCOUNT, first_action_only=True)
    assert returns.action_dim == 2 and returns.make_env is PointEnv and "valid" in returns.dataset.take(torch.arange(1))
    assert chunked(task, 1, DISCOUNT) is task
    assert chunked(dataclasses.replace(task, make_env=None), 4, DISCOUNT).make_env is None


def test_a_chunk_longer_than_every_episode_is_refused():
    with pytest.raises(UserError, match=f"no episode has the {EPISODE_LENGTH + 1} transitions of a chunk"):
        chunked(toy_task(), EPISODE_LENGTH + 1, DISCOUNT)
    with pytest.raises(UserError, match="transitions of a chunk"):
        chunked(toy_task(), 10_000, DISCOUNT)
    assert chunked(toy_task(), EPISODE_LENGTH, DISCOUNT).dataset.whole.sum() == 40  # one of each episode


def test_sparse_rewards_say_only_whether_all_is_reached():
    data = small_data().replaced(rewards=torch.tensor([-2.0, -1.0, 0.0, -9.0, -1.0]).repeat(3))
    task = dataclasses.replace(toy_task(), dataset=data, validation=data, make_env=Countdown)
    changed = sparse(task)
    for dataset in (changed.dataset, changed.validation):
        assert dataset.rewards.tolist() == [-1, -1, 0, -1, -1] * 3
        assert torch.equal(dataset.masks, data.masks)
    assert data.rewards[0] == -2
    environment = pickle.loads(pickle.dumps(changed.make_env))()
    environment.reset(seed=0)
    assert [environment.step(np.array([action]))[1] for action in (-0.5, 0.0, 0.5)] == [-1, 0, -1]
    chunks = chunked(changed, 2, 1.0).dataset
    assert chunks.take(torch.tensor([0, 1, 2]))["rewards"].tolist() == [-2, -1, -1]


@pytest.mark.parametrize("change", [{}, {"reward_shift": -1.0}])
def test_sparse_rewards_are_for_rewards_that_count_what_is_missing(change):
    positive = toy_dataset() if not change else small_data()
    with pytest.raises(UserError, match="toy/point has other rewards: set it to false"):
        sparse(dataclasses.replace(toy_task(), dataset=positive, **change))


def test_a_runs_record_gives_the_environment_back():
    name = "ogbench/scene-play-singletask-task1-v0"  # whose own reward is far below -1 at first
    bounds = {"action_low": [-2.0, -2.0], "action_high": [2.0, 2.0]}
    task = dataclasses.replace(toy_task(), dataset=small_data(), environment=bounds)
    task = chunked(sparse(task), 3, DISCOUNT)
    record = task.record()
    assert record["action_high"] == [2.0] * 6 and record["action_dim"] == 6
    loaded = load_environment(name, record, {})
    environment = loaded.make_env()
    environment.reset(seed=0)
    *_, reward, _, _, info = environment.step(np.zeros(15, np.float32))
    assert (reward, info[STEPS]) == (-3, 3) and loaded.action_dim == 6
    environment.close()


# ---- Data sets of many files ----


def part(number: float, episodes: int = 2) -> Dataset:
    """A file's data set: all rewards are `number`."""
    data = small_data(episodes)
    return data.replaced(rewards=torch.full_like(data.rewards, number))


def shards(sizes=(2, 2, 2), alive=None) -> Shards:
    """Files 0, 1, ... with so many episodes, each for 10 updates; at most one is in memory where `alive` is given."""

    def load(path: Path) -> Dataset:
        if alive is not None:
            assert all(reference() is None for reference in alive), "two parts in memory"
        loaded = part(float(path.name), sizes[int(path.name)])
        if alive is not None:
            alive.append(weakref.ref(loaded.observations))
        return loaded

    return Shards([Path(str(number)) for number in range(len(sizes))], load, interval=10)


@pytest.mark.parametrize(
    "step, number, until", [(0, 0, 10), (9, 0, 1), (10, 1, 10), (25, 2, 5), (30, 0, 10), (47, 1, 3)]
)
def test_the_step_tells_which_file_is_read(step, number, until):
    """The same after any history: a run that continues reads on where it was."""
    fresh, used = shards(), shards()
    for earlier in range(0, step, 3):
        used.advance_to(earlier)
    for dataset in (fresh, used):
        assert dataset.advance_to(step) == until
        assert dataset.sample(8, torch.Generator().manual_seed(0))["rewards"].tolist() == [number] * 8


def test_one_part_is_in_memory_and_changes_apply_to_each():
    alive = []
    dataset = shards(alive=alive).map(lambda data: ChunkedDataset(data, Chunk(2, 1.0))).to("cpu")
    replay = Replay(dataset, capacity=5)
    for step in range(0, 60, 10):
        dataset.advance_to(step)
        batch = dataset.take(torch.arange(2))
        assert batch["rewards"].tolist() == [2 * (step // 10 % 3)] * 2 and batch["actions"].shape == (2, 2)
        assert torch.equal(replay.take_joint(torch.arange(2))["rewards"], batch["rewards"])
    assert len(alive) == 6 and len(dataset) == 7
    with pytest.raises(AttributeError, match="read in parts has no replaced"):
        dataset.replaced(rewards=None)


def test_parts_of_other_sizes_are_refused():
    with pytest.raises(UserError, match="^1: has not as many rows and transitions as 0"):
        shards(sizes=(2, 3)).advance_to(10)


def test_a_part_is_refilled_in_place():
    """As on a GPU, where a recorded graph reads from the same memory ever after."""
    first, second = (ChunkedDataset(part(number), Chunk(2, 1.0)) for number in (1.0, 2.0))
    for dataset, column in ((first, 3.0), (second, 4.0)):
        dataset.columns = {"costs": torch.full((10,), column)}
    places = {name: value.data_ptr() for name, value in vars(first).items() if isinstance(value, torch.Tensor)}
    refill(first, second)
    assert places == {name: vars(first)[name].data_ptr() for name in places}
    indices = torch.arange(7)
    assert_same_batch(first.take(indices, ("costs",)), second.take(indices, ("costs",)))


def test_a_run_reads_the_files_in_turn_and_goes_on_where_it_was(tmp_path):
    """Each one once for its updates, in both phases, and after a continuation that one which is due."""
    read = []

    def load(path: Path) -> Dataset:
        read.append(path.name)
        return toy_dataset()

    def task() -> Task:
        read.clear()
        return dataclasses.replace(toy_task(), dataset=Shards([Path(name) for name in "abc"], load, interval=10))

    changes = {"action_chunk": 2, "checkpoint_interval": 45}
    toy_run(tmp_path, task=task(), offline_steps=45, **changes)
    assert "".join(read) == "abcab"
    toy_run(tmp_path, task=task(), offline_steps=55, online_steps=20, **changes)
    assert "".join(read) == "abcab"  # the first to begin with, the second as it is due for update 46


LARGE_TASK, LARGE_FOLDER = "ogbench/puzzle-4x4-play-100m-singletask-task1-v0", "puzzle-4x4-play-100m-v0"


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A folder with three files in the form of the 100M sets, and the first one's validation data."""
    root = tmp_path_factory.mktemp("large")
    (root / LARGE_FOLDER).mkdir()
    collector = ManipulationCollector("puzzle-4x4", "play", 20)
    for number in range(3):
        episode = collector(0, 0, number)
        episode["actions"][0] = 1.0
        np.savez(root / LARGE_FOLDER / f"puzzle-4x4-play-v0-{number:03}.npz", **episode)
    np.savez(root / LARGE_FOLDER / "puzzle-4x4-play-v0-000-val.npz", **episode)
    return root


def test_a_large_set_is_read_file_by_file(large):
    task = load_task(LARGE_TASK, str(large))
    identity = task.identity
    assert (identity["files"], identity["transitions"], identity["episodes"]) == (3, 60, 3)
    assert identity["sha256"] == sha256_of_ends(
        [large / LARGE_FOLDER / f"puzzle-4x4-play-v0-{n:03}.npz" for n in range(3)]
    )
    assert identity["source"] == "unknown" and identity["dataset"] == "puzzle-4x4-play-100m"
    assert len(task.validation) == 20 and task.dataset.interval == 1000
    task = chunked(sparse(task), 5, DISCOUNT)
    for step, number in ((0, 0), (1000, 1), (2500, 2), (3000, 0)):
        task.dataset.advance_to(step)
        with np.load(large / LARGE_FOLDER / f"puzzle-4x4-play-v0-{number:03}.npz") as file:
            batch = task.dataset.take(torch.arange(16))
            assert np.array_equal(batch["observations"], file["observations"][:16])
            assert np.array_equal(batch["actions"][:, :5], file["actions"][:16])
    assert batch["actions"][0, 0] == 1.0 > ACTION_LIMIT  # not clipped
    assert batch["rewards"].tolist() == pytest.approx([-sum(DISCOUNT**k for k in range(5))] * 16)


def test_the_identity_of_a_large_set_is_that_of_all_its_files(large, tmp_path):
    folder = tmp_path / LARGE_FOLDER
    folder.mkdir()
    paths = sorted((large / LARGE_FOLDER).iterdir())
    for path in paths:
        (folder / path.name).write_bytes(path.read_bytes())
    copies = sorted(folder.iterdir())
    assert sha256_of_ends(copies) == sha256_of_ends(paths) != sha256_of_ends(paths[:-1])
    third = folder / "puzzle-4x4-play-v0-002.npz"
    third.write_bytes((folder / "puzzle-4x4-play-v0-001.npz").read_bytes())
    assert sha256_of_ends(copies) != sha256_of_ends(paths)
    third.write_bytes(third.read_bytes()[:1000])
    with pytest.raises(UserError, match="002.npz: truncated or not an OGBench data set"):
        load_task(LARGE_TASK, str(tmp_path))


def test_a_large_set_that_is_absent_is_said_how_to_get(tmp_path):
    with pytest.raises(
        UserError, match=f"{LARGE_FOLDER}: has no data: fetch its 100 files with `wget .*{LARGE_FOLDER}/`"
    ):
        load_task(LARGE_TASK, str(tmp_path))
