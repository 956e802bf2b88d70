"""ExORL at scale: killed and simultaneous conversions, memory of loading, mapped observations, the page's reader."""

import dataclasses
import json
import os
import re
import signal
import threading
import time
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from common.errors import UserError
from common.files import locked
from envs import load_task
from envs.dataset import Dataset
from envs.exorl import convert as conversion
from envs.exorl.convert import convert
from envs.exorl.domains import DOMAINS
from envs.transitions import ACTION_LIMIT

STEPS, EPISODES = 20, 7


def cartpole_episode(seed: int) -> dict:
    """An episode's arrays of random numbers: conversion does not ask whether physics made them."""
    generator = np.random.default_rng(seed)
    widths, rows = DOMAINS["cartpole"], STEPS + 1
    return {
        "observation": generator.normal(size=(rows, widths.observation_dim)).astype(np.float32),
        "action": generator.uniform(-1, 1, (rows, widths.action_dim)).astype(np.float32),
        "reward": generator.random((rows, 1), np.float32),
        "discount": np.ones((rows, 1), np.float32),
        "physics": generator.normal(size=(rows, widths.physics_dim)),
    }


def write_episode(buffer: Path, index: int, seed: int) -> None:
    np.savez(buffer / f"episode_{index:06d}_{STEPS}.npz", **cartpole_episode(seed))


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A folder with the set cartpole/rnd of seven short episodes, which are converted two at a time."""
    shorter = dataclasses.replace(DOMAINS["cartpole"], episode_steps=STEPS, tasks=("balance",))
    monkeypatch.setitem(DOMAINS, "cartpole", shorter)
    monkeypatch.setattr(conversion, "BLOCK_EPISODES", 2)
    buffer = tmp_path / "data" / "cartpole" / "rnd" / "buffer"
    buffer.mkdir(parents=True)
    for index in range(EPISODES):
        write_episode(buffer, index, seed=index)
    return tmp_path / "data"


def test_a_killed_conversion_leaves_no_file_and_the_next_one_makes_it(root):
    process = os.fork()
    if process == 0:
        try:
            conversion._read = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
            convert(root, "cartpole", "rnd")
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
    assert sorted(path.suffix for path in (root / "cartpole").iterdir()) == ["", ".tmp"]
    task = load_task("exorl/rnd/cartpole_balance", str(root))
    assert task.identity["episodes"] == EPISODES and len(task.dataset) == EPISODES * STEPS
    assert sorted(path.name for path in (root / "cartpole").iterdir()) == ["rnd", "rnd.h5"]


def test_a_second_process_waits_and_takes_the_firsts_file(root, monkeypatch):
    path, waiting = root / "cartpole" / "rnd.h5", threading.Event()

    def announce(folder):
        waiting.set()
        return locked(folder)

    monkeypatch.setattr(conversion, "_write", None)
    with locked(path.parent):
        monkeypatch.setattr(conversion, "locked", announce)
        second = threading.Thread(target=convert, args=(root, "cartpole", "rnd"))
        second.start()
        assert waiting.wait(10)
        time.sleep(0.05)
        assert second.is_alive()
        path.write_bytes(b"made by the first")
    second.join(10)
    assert not second.is_alive() and path.read_bytes() == b"made by the first"


# ---- loading ----


def test_loading_copies_nothing_large(tmp_path, monkeypatch):
    monkeypatch.setattr("envs.transitions.ROWS_AT_ONCE", 1000)
    episodes, steps = 50, 1000
    rows, generator = episodes * (steps + 1), np.random.default_rng(0)
    path = tmp_path / "walker" / "rnd.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["observation"] = generator.normal(size=(rows, 24)).astype(np.float32)
        file["action"] = generator.uniform(-1.0005, 1.0005, (rows, 6)).astype(np.float32)
        file["reward_walk"] = generator.random(rows, np.float32)
        file["episode_start"] = np.arange(episodes) * (steps + 1)
        file["episode_length"] = np.full(episodes, steps)
        file.attrs.update(format="exorl", version=1, source="official", episodes=episodes, transitions=episodes * steps)
        file.attrs.update(collector="rnd", domain="walker", generation=json.dumps(None))

    def peak(in_memory: bool) -> float:
        """Bytes per row that numpy held at most while the data set was loaded; torch's are asserted on."""
        tracemalloc.start()
        try:
            dataset = load_task("exorl/rnd/walker_walk", str(tmp_path), in_memory=in_memory).dataset
            assert len(dataset) == episodes * steps and dataset.masks.untyped_storage().nbytes() == 4
            assert dataset.actions.max() == torch.tensor(ACTION_LIMIT)
            return tracemalloc.get_traced_memory()[1] / rows
        finally:
            tracemalloc.stop()

    load_task("exorl/rnd/walker_walk", str(tmp_path))  # imports are not counted
    monkeypatch.setattr(torch.Tensor, "clamp", None)  # it would copy the actions
    columns = 4 * (24 + 6 + 1) + 8 + 1  # with `valid` and what it is made of
    allowed = 2  # 100 kB: the blocks of the finite check, h5py's objects
    assert columns <= peak(in_memory=True) < columns + allowed
    assert columns - 4 * 24 <= peak(in_memory=False) < columns - 4 * 24 + allowed


def test_a_data_set_on_the_same_device_shares_its_memory():
    actions = torch.full((5, 1), ACTION_LIMIT)
    masks = torch.ones(()).expand(5)
    dataset = Dataset(torch.zeros(5, 2), actions, torch.zeros(5), masks, torch.arange(4)).to("cpu")
    assert dataset.actions.data_ptr() == actions.data_ptr()
    assert dataset.masks.data_ptr() == masks.data_ptr() and dataset.masks.untyped_storage().nbytes() == 4
    assert dataset.take(torch.tensor([1, 2, 3]))["masks"].tolist() == [1, 1, 1]


def test_mapped_and_loaded_data_are_the_same(root):
    loaded = load_task("exorl/rnd/cartpole_balance", str(root))
    path = Path(loaded.identity["path"])
    before = path.read_bytes()
    mapped = load_task("exorl/rnd/cartpole_balance", str(root), in_memory=False)
    assert mapped.identity == loaded.identity
    expected, found = (
        task.dataset.sample(500, torch.Generator().manual_seed(0), fields=("next_actions",))
        for task in (loaded, mapped)
    )
    assert list(expected) == list(found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    mapped.dataset.observations.zero_()  # stays in memory
    assert path.read_bytes() == before


def test_only_what_can_be_mapped_is_mapped(root):
    with h5py.File(convert(root, "cartpole", "rnd"), "r+") as file:
        observations = file["observation"][:]
        del file["observation"]
        file.create_dataset("observation", data=observations, compression="gzip")
    assert np.array_equal(load_task("exorl/rnd/cartpole_balance", str(root)).dataset.observations, observations)
    with pytest.raises(UserError, match="rnd.h5: compressed, .* cannot be memory-mapped: set in_memory to true"):
        load_task("exorl/rnd/cartpole_balance", str(root), in_memory=False)
    with pytest.raises(UserError, match="in_memory: false is for exorl data sets only, not for minari/D4RL/pen"):
        load_task("minari/D4RL/pen/human-v2", str(root), in_memory=False)


# ---- the documented reader ----


def test_the_documented_reader_gives_transitions(root, monkeypatch):
    text = (Path(__file__).parents[1] / "docs" / "exorl.md").read_text()
    lines = re.search(r"\n\n((?:    .*\n)*    import h5py.*\n(?:    .*\n)+)", text)[1].replace("\n    ", "\n")
    path = convert(root, "cartpole", "rnd")
    monkeypatch.chdir(path.parent)
    names = {}
    exec(lines.strip().replace("reward_walk", "reward_balance"), names)
    observations, actions, rewards, next_observations = names["transition"]
    dataset = load_task("exorl/rnd/cartpole_balance", str(root)).dataset
    everything = dataset.take(torch.arange(len(dataset)))
    rows = [names["rows"].tolist().index(row) for row in names["batch"]]
    assert len(rows) == 1024 and len(names["rows"]) == EPISODES * STEPS
    assert np.array_equal(observations, everything["observations"][rows])
    assert np.allclose(actions, everything["actions"][rows], atol=1.1e-5)
    assert np.array_equal(rewards, everything["rewards"][rows])
    assert np.array_equal(next_observations, everything["next_observations"][rows])
