"""Tests of harness/playground without its page: fields of the options, sessions of rollouts, what is shown of them."""

import dataclasses
import socket
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import harness.playground.__main__ as command
from common.errors import UserError
from harness.algorithms import load_algorithm
from harness.evaluate import rows_of, sweep
from harness.evaluation import GRID_SEED, evaluate
from harness.playground.session import (
    LoadedRun,
    Session,
    Tried,
    decode_options,
    draw_curve,
    show_change,
    show_score,
    stoppable,
    table,
)
from harness.video import build_for_pictures
from tests.test_evaluate_command import TOY_RUN, Plain, Target, Toy, ToyConfig, cell_of, toy_task
from tests.test_video import Swing, read_mp4
from tests.toy_run import toy_run

PNG = b"\x89PNG"
PATIENCE = 120  # seconds until rollouts that take one must have ended


# ---- Fields ----


def test_fields_are_decoded_as_the_config_types_them():
    options = decode_options({"greediness": 2, "num_candidates": 16}, Toy, ToyConfig())
    assert options == {"greediness": 2.0, "num_candidates": 16}
    assert [type(value) for value in options.values()] == [float, int]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"greediness": None}, "greediness: the field is empty"),
        ({"greediness": -2}, "greediness is -2; it starts at -1"),
        ({"num_candidates": 1.5}, "num_candidates=1.5: .* whole number"),
    ],
)
def test_wrong_fields_are_one_sentence(values, message):
    with pytest.raises(UserError, match=message):
        decode_options(values, Toy, ToyConfig())


# ---- Sessions ----


@pytest.fixture
def open_session(tmp_path):
    """Makes sessions, which are closed at the end."""
    opened = []

    def make(agent=None, make_env=Target, config=None, task=None, no_pictures=None) -> Session:
        config = config or ToyConfig()
        agent = agent or Toy(config)
        algorithm = SimpleNamespace(name="toy", config_class=type(config), agent_class=type(agent))
        task = task or toy_task(make_env=make_env)
        run = LoadedRun(tmp_path, algorithm, TOY_RUN, config, agent, task)
        opened.append(Session(run, tmp_path, no_pictures))
        return opened[-1]

    yield make
    for session in opened:
        session.close()


def press_run(session, seed=GRID_SEED, episodes=3, **values):
    """The run's own options but for `values`."""
    session.start(session.options | values, seed, episodes)
    wait(lambda: not session.busy)


def wait(is_over):
    started = time.monotonic()
    while not is_over():
        assert time.monotonic() - started < PATIENCE
        time.sleep(0.005)


def test_a_setting_scores_as_in_harness_evaluate(open_session):
    session = open_session(no_pictures="none here")
    assert session.status == "choose a setting and press Run"
    for greediness in (0.0, 1.0):
        press_run(session, greediness=greediness, num_candidates=2, flow_steps=10)
    assert (session.error, session.status) == (None, "ready")
    cells = sweep(Toy(), toy_task(), TOY_RUN, {"greediness": [0.0, 1.0], "num_candidates": [2]}, episodes=3)
    assert [one.row for one in session.tried] == [row for cell in cells for row in rows_of([cell], toy_task())]
    assert session.curve.read_bytes()[:4] == PNG
    assert session.tried[0].picture is None


def test_the_first_episode_is_drawn_anew_for_each_setting(open_session):
    session = open_session(make_env=Swing)
    before = session.version
    for greediness in (0.0, 0.5):
        press_run(session, seed=7, greediness=greediness, num_candidates=1, flow_steps=1)
    assert session.error is None and session.version > before
    first, second = session.tried
    assert (
        first.picture != second.picture
        and first.picture.name == "greediness_0.0_num_candidates_1_flow_steps_1_seed_7.mp4"
    )
    assert len(read_mp4(first.picture)[0]) == 4, "of eight steps"
    assert [one.drawn_score for one in session.tried] == pytest.approx([one.scores[0] for one in session.tried])


def test_a_task_without_pictures_shows_scores_and_one_sentence(open_session):
    session = open_session()
    press_run(session, greediness=0.0)
    press_run(session, greediness=1.0)
    assert len(session.tried) == 2 and session.error is None
    assert session.no_pictures == "videos: Target draws no pictures, so this task has scores only"


def test_agents_without_options_are_scored_too(open_session):
    session = open_session(agent=Plain(), make_env=Swing)
    press_run(session)
    assert session.options == {} and session.curve is None and session.error is None
    assert session.tried[0].picture.exists() and show_score(session.tried[0], "return")


def test_a_wrong_field_starts_nothing(open_session):
    session = open_session()
    press_run(session, greediness=-2.0)
    assert session.error == "act options: greediness is -2; it starts at -1" and session.tried == []
    press_run(session, episodes=0, greediness=1.0)
    assert session.error == "episodes start at 1, the first seed at 0"
    press_run(session, greediness=1.0)
    assert session.error is None and len(session.tried) == 1


def test_a_failure_is_a_sentence_on_the_page_and_a_traceback_in_the_terminal(open_session, capsys):
    class Broken(Target):
        def step(self, action):
            raise ZeroDivisionError("the simulator is\nbroken")

    session = open_session(make_env=Broken)
    press_run(session, greediness=1.0)
    assert session.error == "EnvironmentFailure: broken (the terminal shows where)"
    assert session.tried == [] and not session.busy
    assert "Traceback" in capsys.readouterr().err


class Endless(Target):
    """Never ends by itself."""

    steps = 0

    def step(self, action):
        Endless.steps += 1
        time.sleep(0.001)
        return np.zeros(2), 0.0, False, False, {}


def test_stop_ends_the_rollouts_and_leaves_nothing(open_session):
    session = open_session(make_env=Endless)
    session.start({"greediness": 1.0}, GRID_SEED, 3)
    wait(lambda: Endless.steps > 30)
    assert session.status == "evaluating 3 episodes" and session.busy
    session.start({"greediness": 0.0}, GRID_SEED, 3)  # ignored while another runs
    session.stop()
    wait(lambda: not session.busy)
    assert session.error.startswith("stopped") and session.tried == []
    session.make_env = session.evaluator.make_env = stoppable(Target, session.stopping)
    press_run(session, greediness=1.0)
    assert session.error is None and len(session.tried) == 1


def test_closing_ends_running_rollouts(open_session):
    session = open_session(make_env=Endless)
    steps = Endless.steps
    session.start({"greediness": 1.0}, GRID_SEED, 3)
    wait(lambda: Endless.steps > steps)
    session.close()
    assert not session.busy
    with pytest.raises(RuntimeError, match="shutdown"):
        session.thread.submit(print)


def test_stoppable_environments_still_say_how_they_draw():
    Swing.built.clear()
    build_for_pictures(stoppable(Swing, threading.Event()))
    assert Swing.built == ["rgb_array"]
    Target.seeds.clear()
    evaluate(Plain(), stoppable(Target, threading.Event()), 2, 5)
    assert Target.seeds == [5, 6]


# ---- What is shown ----


def tried(greediness, mean, seed=GRID_SEED, episodes=3, num_candidates=1):
    cell = cell_of(mean + np.linspace(-0.3, 0.3, episodes), greediness, num_candidates)
    cell = dataclasses.replace(cell, seed=seed)
    return Tried(cell, rows_of([cell], toy_task())[0], cell.result.returns)


def test_a_change_is_told_of_the_same_episodes_only():
    change = show_change([tried(0, 1.0), tried(1, 3.25)])
    # equal differences have no spread, however much the episodes differ
    assert change == "+2.25 [2.25, 2.25] against greediness 0, num_candidates 1, flow_steps 10 on the same episodes"
    assert show_change([tried(1, 30.25), tried(0, 1.0)]).startswith("-29.2 [-29.2, -29.2] against greediness 1,")
    assert show_change([tried(0, 1.0)]) is None
    assert show_change([tried(0, 1.0), tried(1, 3.0, seed=9)]) is None
    assert show_change([tried(0, 1.0), tried(1, 3.0, episodes=4)]) is None
    assert show_change([tried(0, 1.0), tried(0, 1.0)]) is None


def test_the_table_holds_everything():
    everything = [tried(0, 1.0), tried(1, 2.0, seed=9), tried(0, 1.0), tried(2, 3.0)]
    rows = table(everything)
    assert [row["#"] for row in rows] == [4, 3, 2, 1]
    assert {"greediness", "num_candidates", "return", "return_low", "return_high", "first seed"} <= rows[0].keys()
    assert (rows[2]["greediness"], rows[2]["return"], rows[2]["first seed"]) == (1, "2.00", 9)
    assert show_score(tried(0, 1.0), "return") == "1.00 ± 0.24 over 3 episodes, 95% interval of the mean [0.70, 1.30]"


def test_the_curve_is_drawn_against_the_first_option(tmp_path):
    def candidates(number, mean):
        one = tried(0, mean, num_candidates=number)
        options = {name: value for name, value in one.cell.options.items() if name != "greediness"}
        return dataclasses.replace(one, cell=dataclasses.replace(one.cell, options=options))

    pictures = set()
    for index, last in enumerate((candidates(4, 2.0), candidates(4, 3.0), candidates(8, 3.0))):
        draw_curve([candidates(1, 1.0), last], tmp_path / f"{index}.png", "return", {})
        pictures.add((tmp_path / f"{index}.png").read_bytes())
    assert len(pictures) == 3 and all(picture[:4] == PNG for picture in pictures)


# ---- The command ----


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return toy_run(tmp_path_factory.mktemp("runs"), offline_steps=20)


def test_opening_a_run_gives_its_trained_agent_and_says_what_cannot_be_drawn(run_dir, monkeypatch):
    task = SimpleNamespace(name="toy/point", make_env=None)
    monkeypatch.setattr(command, "load_trained_task", lambda *_, **__: task)
    monkeypatch.setattr(command, "choose_graphics", lambda: None)
    monkeypatch.setitem(sys.modules, "mujoco", SimpleNamespace())
    monkeypatch.setattr("harness.graphics.drawing_error", lambda backend: "no device")
    with pytest.raises(UserError, match="toy/point: has no environment to act in"):
        command.open_run(run_dir, "cpu", None)
    task.make_env = object
    run, no_pictures = command.open_run(run_dir, "cpu", None)
    stored = torch.load(run_dir / "checkpoint.pt", weights_only=True)["agent"]["networks"]
    assert all(torch.equal(value, stored[name]) for name, value in nn.Module.state_dict(run.agent).items())
    assert (run.algorithm, run.task.name) == (load_algorithm("dipole"), "toy/point")
    assert no_pictures.startswith("videos: MuJoCo cannot draw here") and "apt install" in no_pictures
    monkeypatch.setattr("harness.graphics.drawing_error", lambda backend: None)
    assert command.open_run(run_dir, "cpu", None)[1] is None


def fails(monkeypatch, capsys, *arguments) -> str:
    monkeypatch.setattr("sys.argv", ["playground", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        command.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    return error


def test_a_missing_package_and_wrong_arguments_end_in_one_line(tmp_path, monkeypatch, capsys):
    assert "RUN_DIR" in fails(monkeypatch, capsys)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "harness.playground.page", None)
        message = "error: nicegui is not installed; run: pip install -r requirements-playground.txt\n"
        assert fails(without, capsys, tmp_path) == message
    monkeypatch.setitem(sys.modules, "harness.playground.page", SimpleNamespace(serve=None))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = f"--port {port}: [Errno 98] Address already in use"
        assert message in fails(monkeypatch, capsys, tmp_path, "--port", port)
    assert "--port 70000: " in fails(monkeypatch, capsys, tmp_path, "--port", 70000)
    assert "holds no environment.json" in fails(monkeypatch, capsys, tmp_path, "--port", port)
