"""The cost of updates: operations counted, time attributed to its part, table, CSV and figure of the command."""

import csv
import time

import pytest
import torch

from harness import throughput
from harness.algorithms import load_algorithm
from harness.measurement import (
    MIN_CALLS,
    PARTS,
    SIZES,
    Size,
    build_agent,
    build_updates,
    count_flops,
    random_dataset,
    time_split,
    update_rate,
)

PAUSE = 0.05  # seconds, against well under a millisecond for everything else of the toy


class Pausing(torch.autograd.Function):
    """The identity, which takes PAUSE in the direction asked for."""

    @staticmethod
    def forward(ctx, inputs, forward, backward):
        ctx.pause = PAUSE * backward
        time.sleep(PAUSE * forward)
        return inputs.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.pause)
        return gradient, None, None


class Network(torch.nn.Module):
    def __init__(self, forward, backward):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.pauses = forward, backward

    def forward(self, inputs):
        return Pausing.apply(inputs * self.weight, *self.pauses)


class Toy(torch.nn.Module):
    """A policy that pauses when it samples, or a critic that pauses in its backward pass."""

    def __init__(self, policy=(0, 0), critic=(0, 0)):
        super().__init__()
        self.policy, self.critic = Network(*policy), Network(*critic)
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.1)

    def update(self, batch):
        with torch.no_grad():
            target = self.policy(batch["observations"])
        self.optimizer.zero_grad()
        (self.critic(batch["observations"]) - target).square().mean().backward()
        self.optimizer.step()


@pytest.mark.parametrize(
    ("agent", "slow_part"),
    [
        (Toy(policy=(1, 0)), "target actions"),
        (Toy(critic=(1, 0)), "critics"),
        (Toy(critic=(0, 1)), "critics"),  # its backward operations, outside of the marked forward pass
    ],
)
def test_time_belongs_to_the_part_that_spent_it(agent, slow_part):
    batch = {"observations": torch.ones(4)}
    shares = time_split(agent, lambda: batch, updates=2)
    assert tuple(shares) == PARTS
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=shares.get) == slow_part
    assert not agent.critic._forward_hooks and not agent.policy._forward_pre_hooks


def test_sampling_counts_as_data():
    batch = {"observations": torch.ones(4)}
    shares = time_split(Toy(), lambda: (time.sleep(PAUSE), batch)[1], updates=2)
    assert max(shares, key=shares.get) == "data"


def test_an_agent_without_sampled_targets_spends_nothing_on_them():
    size = SIZES["quickstart"]
    agent, dataset = (
        build_agent(load_algorithm("iql"), size, torch.device("cpu")),
        random_dataset(size, torch.device("cpu")),
    )
    generator = torch.Generator().manual_seed(0)
    shares = time_split(agent, lambda: dataset.sample(8, generator, agent.batch_fields), updates=2)
    assert shares["target actions"] == 0
    assert min(shares[part] for part in PARTS if part != "target actions") > 0


def test_operations_of_one_linear_layer():
    class Linear(torch.nn.Module):
        def update(self, batch):
            return batch["observations"] @ torch.ones(3, 5)

    assert count_flops(Linear(), {"observations": torch.ones(7, 3)}) == 2 * 7 * 3 * 5


def test_quick_start_size_is_the_quick_start_config():
    agent = build_agent(load_algorithm("dipole"), SIZES["quickstart"], torch.device("cpu"))
    assert (agent.config.actor_hidden_dims, agent.config.flow_steps) == ((128, 128), 5)


def test_command_writes_table_csv_and_figure(tmp_path, monkeypatch, capsys):
    command = ["throughput", "--algorithm", "iql", "--size", "quickstart", "--seconds", "0.01"]
    monkeypatch.setattr("sys.argv", [*command, "--csv", str(tmp_path / "t.csv"), "--plot", str(tmp_path / "t.png")])
    throughput.main()
    assert "| quickstart | iql |" in capsys.readouterr().out
    (row,) = csv.DictReader((tmp_path / "t.csv").open())
    assert float(row["updates_per_second"]) > 0
    assert sum(float(row[part]) for part in PARTS) == pytest.approx(1, abs=0.01)
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_precisions_have_rows_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SIZES, "quickstart", Size(5, 1, (8,), 16, 8))
    command = ["throughput", "--algorithm", "iql", "--size", "quickstart", "--seconds", "0.01", "--device", "cpu"]
    command += ["--precision", "highest", "medium"]
    drawn = []
    monkeypatch.setattr(
        throughput,
        "plot_time_split",
        lambda rows, *_: drawn.extend({key: str(value) for key, value in row.items()} for row in rows),
    )
    monkeypatch.setattr("sys.argv", [*command, "--csv", str(tmp_path / "t.csv"), "--plot", str(tmp_path / "t.png")])
    throughput.main()
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [row["precision"] for row in rows] == ["highest", "medium"]
    assert {row["mode"] for row in rows} == {"eager"}
    assert torch.get_float32_matmul_precision() == "highest"
    assert drawn == rows[:1]


def test_the_rate_is_of_updates_per_second_of_the_clock():
    size = Size(5, 1, (8,), 16, 8)
    updates = build_updates(load_algorithm("iql"), size, random_dataset(size, torch.device("cpu")))
    clock = iter(range(100))  # a second passes between two looks at the clock
    assert update_rate(updates, 1, lambda: None, lambda: next(clock)) == MIN_CALLS
