"""docs/supported.md: what is not supported answers with one sentence when it is tried."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from algorithms.dipole import DIPOLE, DIPOLEConfig
from common.errors import UserError
from envs import load_task, suites
from envs.minari import observation_width
from envs.spaces import ActionScale
from harness.command_line import main

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "supported.md").read_text(encoding="utf-8")
FLAGS = {  # of a training command: what the sentence says
    "--task ogbench/visual-cube-single-play-singletask-v0": "its observations are images",
    "--task ogbench/powderworld-easy-play-v0": "its observations are images and its actions discrete",
    "--task ogbench/cube-single-play-v0": "goal-conditioned, which is not supported: name one of its single tasks",
    "--task d4rl/antmaze-umaze-v2": "did you mean minari/D4RL/antmaze/umaze-v1?",
    "--task atari/pong": "unknown suite 'atari'",
    "--task arrays/log.csv": "expected arrays/<path>.npz, .hdf5 or .h5",
    "--offline_steps 0": "offline_steps is 0, it must be at least 1",
    "--device cuda:1": "--device must be one of auto, cpu, cuda, not cuda:1",
    "--device mps": "--device must be one of auto, cpu, cuda, not mps",
    "--task minari/D4RL/pointmaze/umaze-v2 --in_memory false": "in_memory: false is for exorl data sets only",
}
SPACES = {  # of a Minari data set: what checks them, and what the sentence says
    "a Minari data set with a `Discrete` action space": (ActionScale, spaces.Discrete(3), "action space Discrete"),
    "a Minari data set with a `Box(4, 3)` observation space": (
        observation_width,
        spaces.Box(0, 1, (4, 3)),
        r"observation space Box\(4, 3\) is not supported",
    ),
    "a Minari data set with an unbounded `Box` action space": (
        ActionScale,
        spaces.Box(-np.inf, np.inf, (2,)),
        "no finite bounds",
    ),
}


def test_the_page_lists_what_is_tried_here():
    table = PAGE.split("## Not supported")[1]
    header, *tried = re.findall(r"^\|[^|]+\| (.+) \|$", table, flags=re.MULTILINE)
    assert header == "tried by"
    assert {cell.strip("`") if cell.startswith("`--") else cell for cell in tried} == {*FLAGS, *SPACES}


@pytest.mark.parametrize("flags", FLAGS)
def test_a_command_answers_in_one_sentence(flags, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dipole.py", *shlex.split(flags)])
    with pytest.raises(SystemExit) as end:
        main(DIPOLE, DIPOLEConfig)
    printed = capsys.readouterr().err
    assert end.value.code == 2 and printed.count("\n") == 1 and FLAGS[flags] in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SPACES)
def test_spaces_answer_in_one_sentence(name):
    check, space, message = SPACES[name]
    with pytest.raises(UserError, match=message):
        check(space, "main_data.hdf5")


# ---- A suite of one's own ----


def test_a_suite_is_named_by_the_environment_variable(monkeypatch):
    monkeypatch.setenv("DIPOLE_SUITES", "own=examples.custom_task,more=tests.toy")
    assert suites()["own"] == "examples.custom_task" and "ogbench" in suites()
    task = load_task("own/reach")
    assert (task.name, len(task.dataset), task.make_env().action_space.shape) == ("own/reach", 200 * 20, (2,))


@pytest.mark.parametrize("named", ["own", "own=", "=examples.custom_task", "exorl=examples.custom_task"])
def test_an_entry_that_is_no_suite_is_refused(named, monkeypatch):
    monkeypatch.setenv("DIPOLE_SUITES", named)
    with pytest.raises(
        UserError, match="DIPOLE_SUITES holds .* write <suite>=<module>, with another suite than arrays, driving"
    ):
        load_task("own/reach")


def test_a_module_that_is_not_found_is_named(monkeypatch):
    monkeypatch.setenv("DIPOLE_SUITES", "own=no_such_module")
    with pytest.raises(UserError, match="names the module 'no_such_module'.*PYTHONPATH"):
        load_task("own/reach")
