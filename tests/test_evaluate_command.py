"""harness.evaluate: the grid of act options, its sweep, its table, figure and files."""

import csv
import dataclasses
import json
import shutil
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
from common.files import write_rows_csv
from envs.task import Task
from harness.act_options import parse_grid
from harness.config import RunConfig, config_to_yaml
from harness.evaluation import GRID_SEED, evaluate
from harness.plots import plot_learning_curve, plot_sweep
from harness.run_folder import load_policy, load_run_task, load_trained_task, run_path
from harness.score_statistics import interval
from harness.sweep import sweep
from harness.sweep_report import format_table, greediness_remark, write_sweep_report
from harness.train import train_run
from tests.test_arrays import pendulum
from tests.toy import toy_checkpoint
from tests.toy_run import toy_settings

TOY_RUN = RunConfig(task="toy/target", label="toy", threads=1, eval_episodes=4, eval_environments=3)


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

    def __init__(self, config):
        super().__init__()
        self.noise, self.network = Noise(0), nn.Identity()
        self.config, self.calls = config, []

    def act(self, observations, greediness=None, num_candidates=None, flow_steps=None):
        self.calls.append((greediness, num_candidates, flow_steps))
        for _ in range(flow_steps):
            self.network(observations.repeat(num_candidates, 1))
        return torch.full((len(observations), 1), float(greediness)) + 0.1 * self.noise.normal(len(observations), 1)

    @classmethod
    def load(cls, run_dir):
        torch.load(run_dir / "checkpoint.pt", weights_only=True)
        return cls(ToyConfig())


class Plain(Toy):
    """An agent without act options."""

    act_options = ()

    def act(self, observations, explore=False):
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


def toy_task(score_name="return"):
    return Task(
        name="toy/target",
        dataset=None,
        validation=None,
        make_env=Target,
        observation_dim=2,
        action_dim=1,
        score_name=score_name,
        identity={"episode_return_mean": 1.5, "episode_return_best": 3.0, "source": "official"},
    )


def toy_row(greediness, mean, num_candidates=1, half_width=0.1):
    return {
        "greediness": greediness,
        "num_candidates": num_candidates,
        "flow_steps": 10,
        "return": mean,
        "return_low": mean - half_width,
        "return_high": mean + half_width,
        "return_std": 0.5,
        "length": 2.0,
        "episodes": 50,
        "network_evaluations": 10 * num_candidates,
    }


def write_toy_run(folder) -> None:
    (folder / "config.yaml").write_text(config_to_yaml(TOY_RUN, ToyConfig()))
    record = {"algorithm": "toy", "run_id": "0", "data": toy_task().identity, "environment": toy_task().record()}
    (folder / "environment.json").write_text(json.dumps(record))
    torch.save(toy_checkpoint("toy"), folder / "checkpoint.pt")


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    folder = tmp_path / "seed_0"
    folder.mkdir()
    write_toy_run(folder)
    algorithm = SimpleNamespace(name="toy", config_class=ToyConfig, agent_class=Toy)
    loaded = []
    monkeypatch.setattr(harness.run_folder, "load_algorithm", lambda name: {"toy": algorithm}[name])
    monkeypatch.setattr(
        harness.run_folder, "load_environment", lambda *arguments: loaded.append(arguments) or toy_task()
    )
    monkeypatch.setattr(harness.evaluate, "set_up_torch", lambda run: loaded.append(run.threads))
    return SimpleNamespace(folder=folder, algorithm=algorithm, loaded=loaded)


def command(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["evaluate", *map(str, arguments)])
    harness.evaluate.main()


def test_grid_values_have_the_types_of_the_config():
    grid = parse_grid(("greediness=0, 1,1,-0.5", "num_candidates=1,16"), Toy, ToyConfig())
    assert grid == {"greediness": [0.0, 1.0, -0.5], "num_candidates": [1, 16]}
    assert [type(values[0]) for values in grid.values()] == [float, int]
    assert parse_grid((), Plain, ToyConfig()) == {}


@pytest.mark.parametrize(
    "assignments, agent, message",
    [
        (
            ["omega=1"],
            Toy,
            "omega is not an option .* greediness, num_candidates, flow_steps; did you mean greediness?",
        ),
        (["cfg=1"], Toy, r"did you mean greediness \(= cfg - 1\)"),
        (["N=1"], Toy, "did you mean num_candidates"),
        (["beta=1"], Toy, "beta is not an option .* has: greediness, num_candidates, flow_steps$"),
        (["threads=1"], Toy, "threads is not an option"),
        (["greediness=1"], Plain, "greediness is not an option .* has: none$"),
        (["num_candidates=1.5"], Toy, "num_candidates=1.5: .*whole number"),
        (["greediness=0,"], Toy, "greediness="),
        (["greediness"], Toy, "greediness=value,value"),
        (["greediness=0", "greediness=1"], Toy, "write each option once"),
        (["greediness=0,-2"], Toy, "greediness is -2; it starts at -1"),
    ],
)
def test_wrong_grids_are_explained(assignments, agent, message):
    with pytest.raises(UserError, match=message):
        parse_grid(assignments, agent, ToyConfig())


def test_a_grid_is_checked_against_the_runs_config_not_the_defaults():
    """20 steps are more than the default config has levels, and as many as this run's has."""
    from algorithms.dipole_diffusion import DIPOLEDiffusion, DIPOLEDiffusionConfig

    config = DIPOLEDiffusionConfig(diffusion_steps=20)
    assert parse_grid(["denoising_steps=20"], DIPOLEDiffusion, config) == {"denoising_steps": [20]}


def test_grid_must_suit_the_config_of_the_run():
    with pytest.raises(UserError, match="act options: greediness must be 0 with a single policy"):
        parse_grid(["greediness=0,1"], Toy, ToyConfig(single_policy=True))


def test_sweep_runs_every_cell_on_the_same_seeds():
    Target.seeds.clear()
    agent = Toy(ToyConfig())
    grid = {"greediness": [0.0, 1.0], "num_candidates": [1, 2]}
    rows = sweep(agent, toy_task(), TOY_RUN, grid, episodes=5)
    assert [(row["greediness"], row["num_candidates"], row["flow_steps"]) for row in rows] == [
        (0.0, 1, 10),
        (0.0, 2, 10),
        (1.0, 1, 10),
        (1.0, 2, 10),
    ]
    assert set(agent.calls) == {(row["greediness"], row["num_candidates"], row["flow_steps"]) for row in rows}
    assert Target.seeds == 4 * [GRID_SEED + episode for episode in range(5)]
    assert rows[0]["return"] == rows[1]["return"] == pytest.approx(0.0, abs=0.3)
    assert rows[2]["return"] == pytest.approx(rows[0]["return"] + 2.0, abs=1e-5), "same noise in every cell"
    for row in rows:
        assert row["return_low"] <= row["return"] <= row["return_high"]
        assert row["network_evaluations"] == 10 * row["num_candidates"]
        assert (row["episodes"], row["length"]) == (5, 2.0)
    successes = sweep(agent, toy_task("success"), TOY_RUN, {"greediness": [0.0, 1.0]}, episodes=3)
    assert [(row["success"], row["success_low"], row["success_high"]) for row in successes] == [(0, 0, 0), (1, 1, 1)]


def test_interval_covers_the_mean_as_a_normal_interval_does():
    scores = np.random.default_rng(1).normal(10, 2, 400)
    low, high = interval([scores])
    error = 1.96 * scores.std() / 20
    assert (low, high) == pytest.approx((scores.mean() - error, scores.mean() + error), abs=0.012)
    assert interval([scores]) == (low, high)
    assert np.isnan(interval([scores[:1]])).all()


def test_remark_tells_where_greediness_makes_no_difference():
    same = [toy_row(0, 1.0), toy_row(1, 1.1), toy_row(2, 0.95)]
    different = [toy_row(0, 1.0, 32), toy_row(1, 2.0, 32)]
    assert greediness_remark(different, "return") is None
    assert greediness_remark(same[:1] + different[:1], "return") is None, "it was not swept"
    assert greediness_remark(same, "return").startswith("Greediness makes no clear difference: the 95%")
    assert "difference at num_candidates 1 and flow_steps 10:" in greediness_remark(same + different, "return")
    unknown = [toy_row(greediness, 1.0, half_width=float("nan")) for greediness in (0, 1)]
    assert greediness_remark(unknown, "return") is None, "one episode says nothing"


def test_table_is_aligned_and_csv_reads_back(tmp_path):
    rows = [toy_row(0.0, 3.25), toy_row(0.5, 1234.5, 32)]
    lines = format_table(rows, "return").splitlines()
    assert len(lines) == 3 and len({len(line) for line in lines}) == 1
    assert lines[0].split() == [
        *("greediness", "num_candidates", "flow_steps", "return", "95%", "interval", "std", "length", "episodes"),
        *("network", "evaluations"),
    ]
    assert lines[2].split() == ["0.5", "32", "10", "1234.5", "[1234.4,", "1234.6]", "0.5", "2", "50", "320"]
    write_rows_csv(rows, tmp_path / "rows.csv")
    with open(tmp_path / "rows.csv", newline="") as file:
        read = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert read == rows
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_command_writes_table_and_figure(run_dir, monkeypatch, capsys):
    command(monkeypatch, run_dir.folder, "--greediness", "0", "0.5", "--num_candidates", "1", "2", "--data_dir", "here")
    output = capsys.readouterr().out
    assert "toy/target (official), seed 0" in output and "network evaluations" in output
    assert "data: best episode" in output and "4 settings, 4 episodes each: greediness 0.0, 0.5; num_cand" in output
    with open(run_dir.folder / "greediness.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["greediness"], row["num_candidates"]) for row in rows] == [
        ("0.0", "1"),
        ("0.0", "2"),
        ("0.5", "1"),
        ("0.5", "2"),
    ]
    assert {row["episodes"] for row in rows} == {"4"}
    assert matplotlib.image.imread(run_dir.folder / "greediness.png").shape[2] == 4
    assert run_dir.loaded == [1, ("toy/target", toy_task().record(), toy_task().identity, "here", False)]
    assert not list(run_dir.folder.glob("*.tmp"))


def test_command_writes_elsewhere_and_serves_agents_without_options(run_dir, tmp_path, monkeypatch, capsys):
    run_dir.algorithm.agent_class = Plain
    command(monkeypatch, run_dir.folder, "--episodes", "2", "--out", tmp_path / "new" / "out")
    assert [path.name for path in (tmp_path / "new" / "out").iterdir()] == ["evaluation.csv"]
    assert sorted(path.name for path in run_dir.folder.iterdir()) == [
        "checkpoint.pt",
        "config.yaml",
        "environment.json",
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--omega", "0", "1"], "omega is not an option .* did you mean greediness?"),
        (["--greedines", "0"], "greedines is not an option .* did you mean greediness?"),
        (["--greediness", "x"], "greediness=x: .*finite number"),
        (["--greediness", "-3"], "it starts at -1"),
        (["--episodes", "0"], "--episodes is 0; it must be at least 1"),
        (["--workers", "-1"], "--workers is -1; it must be at least 0"),
        (["--episodes", "many"], "invalid int value: 'many'"),
        (["stray"], "'stray' belongs to no flag"),
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
        (lambda folder: folder.rename(folder.parent / "moved"), "there is no such folder"),
    ],
)
def test_broken_run_folders_are_explained(run_dir, damage, message):
    damage(run_dir.folder)
    with pytest.raises(UserError, match=message):
        harness.evaluate.evaluate_command([str(run_dir.folder)])


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
    np.testing.assert_allclose((observation - own.mean) / own.std, seen, rtol=1e-4, atol=1e-4)
    assert 1 < np.abs(forces).max() <= 2


def test_runs_of_earlier_versions_need_their_data(pendulum_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(pendulum_run[0], folder)
    environment = json.loads((folder / "environment.json").read_text())
    del environment["environment"]
    (folder / "environment.json").write_text(json.dumps(environment))
    np.savez(tmp_path / "a.npz", **pendulum(steps=40))
    run = RunConfig(task="arrays/a.npz@Pendulum-v1", data_dir=str(tmp_path))
    assert load_trained_task(folder, run).make_env is not None
    np.savez(tmp_path / "a.npz", **pendulum(steps=41))
    with pytest.raises(UserError, match=f"a.npz: the data set has changed since {folder} was trained"):
        load_trained_task(folder, run)
    with pytest.raises(UserError, match="an earlier version trained this run"):
        load_policy(folder)


# ---- Figures and files ----


def test_learning_curve_is_drawn_from_rows_and_files(tmp_path):
    rows = [{"step": 1000 * i, "return": 10.0 * i, "return_std": 2.0} for i in range(1, 4)]
    write_rows_csv(rows, tmp_path / "eval.csv")
    plot_learning_curve(rows, tmp_path / "rows.png", "return", {"data: mean episode": 12.0})
    plot_learning_curve(tmp_path / "eval.csv", tmp_path / "file.png", "return", {"data: mean episode": 12.0})
    images = [matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("rows", "file")]
    assert np.array_equal(*images)
    without_band = [{"step": row["step"], "return": row["return"]} for row in rows]
    plot_learning_curve(without_band, tmp_path / "plain.png", "return", {"data: mean episode": 12.0})
    assert not np.array_equal(matplotlib.image.imread(tmp_path / "plain.png"), images[0])
    with pytest.raises(ValueError, match="success"):
        plot_learning_curve(rows, tmp_path / "none.png", "success", {})
    assert not (tmp_path / "none.png").exists()


def test_greediness_figure_differs_with_every_part_of_its_data(tmp_path):
    rows = [toy_row(0, 1.0), toy_row(1, 2.0), toy_row(0, 1.5, 32), toy_row(1, 2.5, 32)]
    wider = [{**rows[0], "return_high": 3.0}, *rows[1:]]
    figures = [(rows, {}), (wider, {}), (rows[:2], {}), (rows, {"data: best episode": 2.2})]
    images = []
    for index, (data, lines) in enumerate(figures):
        plot_sweep(data, tmp_path / f"{index}.png", "return", lines)
        images.append((tmp_path / f"{index}.png").read_bytes())
    assert len(set(images)) == len(figures)


def test_report_adds_the_remark_and_names_the_file(tmp_path):
    rows = [toy_row(0, 1.0), toy_row(1, 1.05)]
    report = write_sweep_report(rows, tmp_path, toy_task())
    assert "Greediness makes no clear difference" in report
    assert f"written: {tmp_path / 'greediness.csv'}, {tmp_path / 'greediness.png'}" in report
    assert f"replaced: {tmp_path / 'greediness.csv'}" in write_sweep_report(rows, tmp_path, toy_task())
