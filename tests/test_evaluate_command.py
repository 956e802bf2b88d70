"""harness.evaluate: the grid of act options, its sweep, its table, figures and files."""

import csv
import dataclasses
import json
from types import SimpleNamespace

import gymnasium
import matplotlib.image
import numpy as np
import pytest
import torch
from torch import nn

import harness.evaluate
import harness.run_folder
from algorithms.dipole import DIPOLE, Noise
from common.errors import UserError
from envs.task import Task
from harness.config import RunConfig, config_to_yaml
from harness.evaluate import Cell, format_table, rows_of, show_and_write, sweep
from harness.evaluation import GRID_SEED, EvaluationResult, evaluate
from harness.grid import parse_grid
from harness.plots import plot_learning_curve, plot_sweep
from harness.run_folder import HARNESS_VERSION, load_policy, load_run_task, run_path
from harness.train import train_run
from tests.test_arrays import pendulum
from tests.toy import toy_checkpoint
from tests.toy_run import toy_settings

TOY_RUN = RunConfig(task="toy/target", label="toy", data_dir="data", threads=1, eval_episodes=4, eval_environments=3)
IDENTITY = {"sha256": "0", "source": "made up", "episode_return_mean": 1.5, "episode_return_best": 3.0}


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    greediness: float = 0.0
    num_candidates: int = 4
    flow_steps: int = 10
    single_policy: bool = False

    def __post_init__(self):
        if self.single_policy and self.greediness:
            raise ValueError("greediness must be 0 with a single policy")
        if self.greediness < -1:
            raise ValueError(f"greediness is {self.greediness:g}; it starts at -1")


class Toy(nn.Module):
    """Acts by its greediness: the return grows with it."""

    act_options = ("greediness", "num_candidates", "flow_steps")
    observation_dim = 2

    def __init__(self, config=None):
        super().__init__()
        self.noise, self.network = Noise(0), nn.Linear(1, 1)
        self.config, self.calls = config or ToyConfig(), []

    @torch.no_grad()
    def act(self, observations, greediness=0.0, num_candidates=4, flow_steps=10):
        self.calls.append((greediness, num_candidates, flow_steps))
        self.network(observations[:, :1].repeat(num_candidates * flow_steps, 1))
        return torch.full((len(observations), 1), float(greediness)) + 0.1 * self.noise.normal(len(observations), 1)

    @classmethod
    def load(cls, run_dir):
        torch.load(run_dir / "checkpoint.pt", weights_only=True)
        return cls()


class Plain(Toy):
    """An agent without act options."""

    act_options = ()

    def act(self, observations, explore=False):
        self.network(observations[:, :1])
        return 0.1 * self.noise.normal(len(observations), 1)


class Target(gymnasium.Env):
    """Two steps; the reward is the action, success a sum above 1."""

    seeds = []

    def reset(self, *, seed=None, options=None):
        Target.seeds.append(seed)
        self.total, self.time = 0.0, 0
        return np.zeros(2), {}

    def step(self, action):
        self.total, self.time = self.total + float(action[0]), self.time + 1
        return np.zeros(2), float(action[0]), False, self.time == 2, {"success": self.total > 1}


def toy_task(score_name="return", make_env=Target, **identity):
    return Task("toy/target", None, None, make_env, 2, 1, score_name, IDENTITY | identity)


def cell_of(scores, greediness=0.0, num_candidates=1):
    """A cell of two-step episodes with these returns."""
    options = {"greediness": greediness, "num_candidates": num_candidates, "flow_steps": 10}
    scores = np.asarray(scores, dtype=np.float64)
    result = EvaluationResult(scores, np.full(len(scores), 2), None, 0.0)
    return Cell(options, GRID_SEED, result, 10 * num_candidates)


def spread(mean, count=50):
    return mean + np.linspace(-1, 1, count)


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    folder = tmp_path / "seed_0"
    folder.mkdir()
    (folder / "config.yaml").write_text(config_to_yaml(TOY_RUN, ToyConfig()))
    record = {"algorithm": "toy", "run_id": "1", "data": IDENTITY, "environment": toy_task().record()}
    record |= {"harness_version": HARNESS_VERSION, "compiled": False, "versions": {}, "stretches": []}
    (folder / "environment.json").write_text(json.dumps(record))
    torch.save(toy_checkpoint("toy"), folder / "checkpoint.pt")
    algorithm = SimpleNamespace(name="toy", config_class=ToyConfig, agent_class=Toy)
    made = SimpleNamespace(folder=folder, algorithm=algorithm, loaded=[], task=toy_task())
    monkeypatch.setattr(harness.run_folder, "load_algorithm", lambda name: {"toy": algorithm}[name])
    monkeypatch.setattr(
        harness.run_folder, "load_environment", lambda *arguments: made.loaded.append(arguments) or made.task
    )
    return made


def command(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["evaluate", *map(str, arguments)])
    harness.evaluate.main()


def rows_in(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# ---- Grids ----


def test_grid_values_have_the_types_of_the_config():
    grid = parse_grid(("greediness=0, 1,1,-0.5", "num_candidates=1,16"), Toy, ToyConfig())
    assert grid == {"greediness": [0.0, 1.0, -0.5], "num_candidates": [1, 16]}
    assert [type(values[0]) for values in grid.values()] == [float, int]
    assert parse_grid((), Plain, ToyConfig()) == {}


@pytest.mark.parametrize(
    "assignments, agent, config, message",
    [
        (["omega=1"], Toy, {}, "omega is not an option .* has: greediness, num_candidates, flow_steps$"),
        (["single_policy=true"], Toy, {}, "single_policy is not an option"),
        (["greediness=1"], Plain, {}, "greediness is not an option .* has: none$"),
        (["num_candidates=1.5"], Toy, {}, "num_candidates=1.5: .*whole number"),
        (["num_candidates=0"], Toy, {}, "act options: .*num_candidates is 0, it must be at least 1"),
        (["greediness=0,"], Toy, {}, "greediness="),
        (["greediness"], Toy, {}, "greediness=value,value"),
        (["greediness=0", "greediness=1"], Toy, {}, "write each option once"),
        (["greediness=0,-2"], Toy, {}, "act options: greediness is -2; it starts at -1"),
        (["greediness=0,1"], Toy, {"single_policy": True}, "act options: greediness must be 0 with a single policy"),
    ],
)
def test_wrong_grids_are_explained(assignments, agent, config, message):
    with pytest.raises(UserError, match=message):
        parse_grid(assignments, agent, ToyConfig(**config))


# ---- Sweeps ----


def test_sweep_runs_every_cell_on_the_same_seeds():
    Target.seeds.clear()
    agent = Toy()
    cells = sweep(agent, toy_task(), TOY_RUN, {"greediness": [0.0, 1.0], "num_candidates": [1, 2]}, episodes=5)
    rows = rows_of(cells, toy_task())
    settings = [(0.0, 1, 10), (0.0, 2, 10), (1.0, 1, 10), (1.0, 2, 10)]
    assert [(row["greediness"], row["num_candidates"], row["flow_steps"]) for row in rows] == settings
    assert set(agent.calls) == set(settings)
    assert Target.seeds == 4 * [GRID_SEED + episode for episode in range(5)]
    assert rows[0]["return"] == rows[1]["return"] == pytest.approx(0.0, abs=0.3)
    for row in rows:
        assert row["return_low"] <= row["return"] <= row["return_high"]
        assert row["network_evaluations"] == 10 * row["num_candidates"]
        assert (row["episodes"], row["length"]) == (5, 2.0)
        difference = 2.0 * row["greediness"]  # the same noise in every cell, so that nothing else differs
        assert [row[f"difference{end}"] for end in ("", "_low", "_high")] == pytest.approx([difference] * 3, abs=1e-5)
    successes = sweep(agent, toy_task("success"), TOY_RUN, {"greediness": [0.0, 1.0]})
    rows = rows_of(successes, toy_task("success"))
    assert [(row["success"], row["success_low"], row["success_high"]) for row in rows] == [(0, 0, 0), (1, 1, 1)]
    assert rows[0]["episodes"] == TOY_RUN.eval_episodes


def test_differences_are_paired_by_episode():
    """The intervals of the two means overlap by far, and that of their difference is +0.30 [0.10, 0.50]."""
    random = np.random.default_rng(0)
    first, noise = random.normal(0, 2, 50), random.normal(0, 1, 50)
    second = first + 0.3 + 0.72 * (noise - noise.mean()) / noise.std()
    cells = [cell_of(first, 0.0), cell_of(second, 1.0)]
    low, high = rows_of(cells, toy_task())
    assert low["return_high"] > high["return"] and high["return_low"] < low["return"]
    found = [high[f"difference{end}"] for end in ("", "_low", "_high")]
    assert found == pytest.approx([0.3, 0.1, 0.5], abs=0.01)
    assert "+0.300 [0.1" in format_table(cells, toy_task(), "toy")


def test_a_difference_is_from_the_first_value_at_the_same_other_options():
    means = {(0, 1): 1.0, (1, 1): 2.0, (0, 32): 5.0, (1, 32): 5.5}
    rows = rows_of([cell_of(spread(mean), *options) for options, mean in means.items()], toy_task())
    assert [row["difference"] for row in rows] == pytest.approx([0, 1, 0, 0.5])


# ---- Table and files ----


def test_table_is_aligned_and_begins_with_the_data():
    cells = [cell_of(spread(3.25), 0.0), cell_of(spread(1234.5), 0.5)]
    common, *lines = format_table(cells, toy_task(), "mine").splitlines()
    assert common == "num_candidates 1, flow_steps 10, episodes 50, first seed 1,000,000"
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == [
        *("policy", "greediness", "return", "95%", "interval", "minus", "greediness", "0.0", "std", "length"),
        *("network", "evaluations"),
    ]
    assert [line.split()[:4] for line in lines[1:3]] == [
        ["data:", kind, "episode", score] for kind, score in (("mean", "1.5"), ("best", "3.0"))
    ]
    assert lines[3].split() == ["mine", "0.0", "3.2", "[3.1,", "3.4]", "0.6", "2", "10"]
    assert lines[4].split()[:6] == ["mine", "0.5", "1234.5", "[1234.3,", "1234.7]", "+1231.2"]


def test_a_task_with_reference_returns_has_its_normalized_return():
    cells, task = [cell_of([40.0, 60.0])], toy_task(reference_returns={"min": 10.0, "max": 90.0})
    assert [row["normalized_return"] for row in rows_of(cells, task)] == [50.0]
    lines = format_table(cells, task, "toy").splitlines()
    assert "return  normalized return" in lines[1] and "50.0               50.0" in lines[-1]
    assert "normalized" not in format_table(cells, toy_task(), "toy")


def test_episodes_and_rows_of_every_sweep_are_kept(run_dir, monkeypatch, capsys):
    folder = run_dir.folder
    command(monkeypatch, folder, "--greediness", "0", "0.5", "--num_candidates", "1", "2", "--data_dir", "here")
    output = capsys.readouterr().out
    assert "toy on toy/target" in output and "network evaluations" in output
    rows = rows_in(folder / "greediness.csv")
    settings = [("0.0", "1"), ("0.0", "2"), ("0.5", "1"), ("0.5", "2")]
    assert [(row["greediness"], row["num_candidates"]) for row in rows] == settings
    assert {row["episodes"] for row in rows} == {"4"}
    assert matplotlib.image.imread(folder / "greediness.png").shape[2] == 4
    assert run_dir.loaded == [("toy/target", toy_task().record(), IDENTITY, "here", False)]
    episodes = rows_in(folder / "episodes.csv")
    assert list(episodes[0]) == ["greediness", "num_candidates", "flow_steps", "seed", "return", "success", "length"]
    assert [int(row["seed"]) for row in episodes] == 4 * [GRID_SEED + episode for episode in range(4)]
    mean = np.mean([float(row["return"]) for row in episodes[8:12]])
    assert mean == pytest.approx(float(rows[2]["return"]), abs=1e-6)

    command(monkeypatch, folder, "--num_candidates", "2", "3")
    assert len(rows_in(folder / "num_candidates.csv")) == 2 and (folder / "num_candidates.png").exists()
    assert len(rows_in(folder / "greediness.csv")) == 4, "the other sweep's stay"
    assert len(rows_in(folder / "episodes.csv")) == 20, "one of the two cells was there"
    command(monkeypatch, folder)
    assert len(rows_in(folder / "episodes.csv")) == 24 and (folder / "evaluation.csv").exists()
    assert not list(folder.glob("*.tmp"))


def test_command_serves_agents_without_options(run_dir, monkeypatch):
    run_dir.algorithm.agent_class = Plain
    command(monkeypatch, run_dir.folder, "--episodes", 3)
    assert len(rows_in(run_dir.folder / "episodes.csv")) == 3 and (run_dir.folder / "evaluation.csv").exists()


def test_a_sweep_after_training_says_what_it_does(tmp_path, capsys):
    run = dataclasses.replace(TOY_RUN, sweep=("num_candidates=1,2", "greediness=0,1"), offline_steps=2_000)
    harness.evaluate.sweep_after_training(Toy(), run, ToyConfig(), toy_task(), tmp_path)
    asked, _, about, *table = capsys.readouterr().out.splitlines()
    assert asked == "evaluating toy at 4 settings: num_candidates=1,2, greediness=0,1"
    assert about == "toy/target (made up), 2,000 updates, seed 0"
    assert table[2].split()[:4] == ["data:", "mean", "episode", "1.500"]
    assert table[-1].startswith("written: ") and "greediness.png" in table[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"greediness.csv", "greediness.png", "episodes.csv"}


# ---- Refusals ----


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--omega", "0", "1"], "unrecognized arguments: --omega 0 1"),
        (["--greediness", "x"], "greediness=x: .*finite number"),
        (["--greediness", "-3"], "it starts at -1"),
        (["--episodes", "0"], "--episodes is 0; it must be at least 1"),
        (["--episodes", "many"], "invalid int value: 'many'"),
        (["stray"], "unrecognized arguments: stray"),
    ],
)
def test_wrong_arguments_end_in_one_line(run_dir, monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, run_dir.folder, *arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    with pytest.raises(UserError, match=message):
        harness.evaluate.evaluate_command([str(run_dir.folder), *arguments])
    assert run_dir.loaded == [], "nothing is loaded before the arguments are checked"


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "checkpoint.pt").unlink(), "holds no checkpoint.pt"),
        (lambda folder: (folder / "environment.json").write_text("{}"), "environment.json: has no algorithm"),
        (lambda folder: (folder / "environment.json").write_text("{"), "environment.json: cannot be read"),
        (lambda folder: (folder / "environment.json").write_text("[]"), "environment.json: has no algorithm"),
        (lambda folder: (folder / "checkpoint.pt").write_text("x"), "checkpoint.pt: is damaged"),
        (lambda folder: (folder / "episodes.csv").write_text(""), "episodes.csv: is damaged"),
        (lambda folder: (folder / "episodes.csv").write_text("hello,world\n1,2\n"), "episodes.csv: is damaged"),
        (lambda folder: folder.rename(folder.parent / "moved"), "there is no such folder"),
    ],
)
def test_broken_run_folders_are_explained(run_dir, damage, message):
    damage(run_dir.folder)
    with pytest.raises(UserError, match=message):
        harness.evaluate.evaluate_command([str(run_dir.folder)])


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_evaluation(run_dir, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot be written to, where the results go"):
        harness.evaluate.evaluate_command([str(run_dir.folder)])
    assert run_dir.loaded == []


def test_a_task_without_an_environment_is_refused(run_dir):
    run_dir.task = toy_task(make_env=None)
    with pytest.raises(UserError, match="^toy/target: has no environment to evaluate in$"):
        harness.evaluate.evaluate_command([str(run_dir.folder)])
    assert not (run_dir.folder / "evaluation.csv").exists()


def test_command_without_a_folder_and_help(run_dir, monkeypatch, capsys):
    with pytest.raises(UserError, match="RUN_DIR"):
        harness.evaluate.evaluate_command([])
    with pytest.raises(UserError, match="RUN_DIR"):
        harness.evaluate.evaluate_command(["--episodes", "3"])
    for arguments, lists_options in ((["--help"], False), ([run_dir.folder, "--help"], True)):
        with pytest.raises(SystemExit) as stop:
            command(monkeypatch, *arguments)
        assert stop.value.code == 0
        assert ("--num_candidates VALUE" in capsys.readouterr().out) == lists_options


# ---- What a run has kept is enough ----


@pytest.fixture(scope="module")
def pendulum_run(tmp_path_factory):
    """(folder, task) of a run on normalised data of Pendulum, whose actions are in [-2, 2]; the data are deleted."""
    folder = tmp_path_factory.mktemp("pendulum")
    np.savez(folder / "a.npz", **pendulum(steps=40))
    changes = {"task": "arrays/a.npz@Pendulum-v1", "data_dir": str(folder), "normalize_observations": True}
    run, config = toy_settings(folder, offline_steps=20, max_episode_steps=50, **changes)
    task = load_run_task(run)
    train_run(DIPOLE, run, config)
    (folder / "a.npz").unlink()
    return run_path(run), task


def test_evaluation_needs_no_data(pendulum_run, capsys):
    folder, task = pendulum_run
    before = evaluate(DIPOLE.load(folder), task.make_env, 3, GRID_SEED)
    assert set(before.lengths) == {50}
    harness.evaluate.evaluate_command([str(folder), "--episodes", "3"])
    with open(folder / "evaluation.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["return"]) == before.returns.mean()


def test_a_run_folder_acts_in_the_units_of_its_simulator(pendulum_run):
    """In the whole box, with the normalisation of the data: as the agent does in its own environment."""
    folder, task = pendulum_run
    policy, agent = load_policy(folder, num_candidates=1), DIPOLE.load(folder)
    simulator, own = gymnasium.make("Pendulum-v1"), task.make_env()
    observation, seen = simulator.reset(seed=3)[0], own.reset(seed=3)[0]
    forces = []
    for _ in range(20):
        action = policy(observation)
        observation = simulator.step(action.astype(np.float32))[0]
        seen = own.step(agent.act(torch.as_tensor(seen)[None], num_candidates=1)[0].numpy())[0]
        forces.append(float(action[0]))
    mean, std = (np.array(task.record()[f"observation_{name}"]) for name in ("mean", "std"))
    np.testing.assert_allclose((observation - mean) / std, seen, rtol=1e-4, atol=1e-4)
    assert 1 < np.abs(forces).max() <= 2


# ---- Figures ----


def test_learning_curve_has_a_band_where_the_spread_is_known_and_marks_the_switch(tmp_path):
    rows = [{"step": 1000 * i, "return": 10.0 * i, "return_std": 2.0} for i in range(1, 4)]
    without_band = [{"step": row["step"], "return": row["return"]} for row in rows]
    lines = {"data: mean episode": 12.0}
    for name, figure in {"rows": (rows, lines), "plain": (without_band, lines), "online": (rows, lines, 2000)}.items():
        plot_learning_curve(figure[0], tmp_path / name, "return", *figure[1:])
    assert len({(tmp_path / name).read_bytes() for name in ("rows", "plain", "online")}) == 3
    assert not (tmp_path / "none.png").exists()


def test_sweep_figure_differs_with_every_part_of_its_data(tmp_path):
    cells = [
        cell_of(spread(mean), omega, count) for omega, count, mean in ((0, 1, 1), (1, 1, 2), (0, 32, 1.5), (1, 32, 2.5))
    ]
    rows = rows_of(cells, toy_task())
    wider = [rows[0] | {"return_high": 3.0}, *rows[1:]]
    figures = [
        (rows, {}, ""),
        (wider, {}, ""),
        (rows[:2], {}, ""),
        (rows, {"data: best episode": 2.2}, ""),
        (rows, {}, "toy"),
    ]
    images = []
    for index, (data, lines, title) in enumerate(figures):
        plot_sweep(
            data, tmp_path / f"{index}.png", "return", lines, "greediness", ["num_candidates", "flow_steps"], title
        )
        images.append((tmp_path / f"{index}.png").read_bytes())
    assert len(set(images)) == len(figures)


def test_the_figure_of_a_run_names_task_and_label(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(harness.evaluate, "plot_sweep", lambda *arguments: titles.append(arguments[-1]))
    show_and_write([cell_of(spread(1.0), 0), cell_of(spread(2.0), 1)], toy_task(), TOY_RUN, tmp_path)
    assert titles == ["toy on toy/target, seed 0"]
