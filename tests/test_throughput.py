"""The cost of updates: operations counted, table and CSV of the command."""

import csv

import torch

from benchmarks import throughput
from benchmarks.throughput import (
    MIN_CALLS,
    SIZES,
    Size,
    build_agent,
    build_updates,
    count_flops,
    random_dataset,
    update_rate,
)
from harness.algorithms import load_algorithm


def test_operations_of_one_linear_layer():
    class Linear(torch.nn.Module):
        def update(self, batch):
            return batch["observations"] @ torch.ones(3, 5)

    assert count_flops(Linear(), {"observations": torch.ones(7, 3)}) == 2 * 7 * 3 * 5


def test_the_gradient_of_a_networks_input_counts_as_another_product():
    class Gradient(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 5)

        def update(self, batch):
            states = batch["observations"].requires_grad_()
            torch.autograd.grad(self.layer(states).sum(), states)

    assert count_flops(Gradient(), {"observations": torch.ones(7, 3)}) == 2 * (2 * 7 * 3 * 5)


def test_quick_start_size_is_the_quick_start_config():
    agent = build_agent(load_algorithm("dipole"), SIZES["quickstart"], torch.device("cpu"))
    assert (agent.config.actor_hidden_dims, agent.config.flow_steps) == ((128, 128), 5)


def test_precisions_have_rows_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SIZES, "quickstart", Size(5, 1, (8,), 16, 8))
    command = ["throughput", "--algorithm", "iql", "--size", "quickstart", "--seconds", "0.01", "--device", "cpu"]
    command += ["--precision", "highest", "medium"]
    monkeypatch.setattr("sys.argv", [*command, "--csv", str(tmp_path / "t.csv")])
    throughput.main()
    assert "| quickstart | iql |" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [row["precision"] for row in rows] == ["highest", "medium"]
    assert {row["mode"] for row in rows} == {"eager"}
    assert min(float(row["updates_per_second"]) for row in rows) > 0
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_rate_is_of_updates_per_second_of_the_clock():
    size = Size(5, 1, (8,), 16, 8)
    updates = build_updates(load_algorithm("iql"), size, random_dataset(size, torch.device("cpu")))
    clock = iter(range(100))  # a second passes between two looks at the clock
    assert update_rate(updates, 1, lambda: None, lambda: next(clock)) == MIN_CALLS
