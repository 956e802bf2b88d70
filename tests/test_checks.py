"""What is found of an environment before training, seeds of everything it draws from, and training without OpenGL."""

import dataclasses
import os
import pickle
import random
import subprocess
import sys

import gymnasium
import minari
import numpy as np
import pytest
import torch
from gymnasium import spaces
from minari.data_collector.episode_buffer import EpisodeBuffer

from common.errors import UserError
from envs import load_task
from envs.checks import LONGEST_FALLBACK, checked_task, longest_episode
from envs.dataset import Dataset
from envs.ogbench.generate import generate
from harness.evaluation import evaluate
from tests.toy import EPISODE_LENGTH, PointEnv, toy_task


def task_of(make_env, **changes):
    return dataclasses.replace(toy_task(), make_env=make_env, max_episode_steps=EPISODE_LENGTH, **changes)


class Still:
    def act(self, observations):
        return torch.zeros(len(observations), 2)


# ---- What does not fit ----


def answering(**answers):
    """A PointEnv whose reset, step, or an attribute is replaced."""

    class Answering(PointEnv):
        def reset(self, *, seed=None, options=None):
            whole = super().reset(seed=seed, options=options)
            return answers["reset"](*whole) if "reset" in answers else whole

        def step(self, action):
            whole = super().step(action)
            return answers["step"](*whole) if "step" in answers else whole

    for name in answers.keys() - {"reset", "step"}:
        setattr(Answering, name, answers[name])
    return Answering


def fails(*arguments):
    raise AssertionError


@pytest.mark.parametrize(
    "make_env, message",
    [
        (lambda: fails(), "fails in a trial .AssertionError: AssertionError; .*test_checks.py, line"),
        (
            answering(reset=lambda observation, info: observation),
            r"fails in .*reset\(\) gives \(observation, in",
        ),
        (answering(step=lambda o, r, e, t, i: (o, r, e or t, i)), r"step\(\) \(observation, reward, terminated"),
        (
            answering(step=lambda o, r, e, t, i: (o, np.array([r]), e, t, i)),
            r"the reward of its environment has shape \(1,\), not \(\)",
        ),
        (answering(step=lambda o, r, e, t, i: (o, np.nan, e, t, i)), "the reward of its environment is not finite"),
        (answering(step=lambda o, r, e, t, i: (o[:2], r, e, t, i)), r"the observation .* has shape \(2,\), not \(3,\)"),
        (
            answering(step=lambda o, r, e, t, i: (o * np.inf, r, e, t, i)),
            "the observation .* is not finite",
        ),
        (answering(step=fails), "fails in a trial .AssertionError"),
        (
            answering(reset=lambda observation, info: ({"a": observation}, info)),
            r"observation .* has shape \(\), not",
        ),
        (answering(action_space=spaces.Box(-2, 2, (2,))), r"actions are Box\(-2.0, 2.0.*: wrap it in .*RescaleAction"),
        (answering(action_space=spaces.Box(-1, 1, (3,))), r"actions are Box.*, the data's have 2 entries"),
        (answering(action_space=spaces.Discrete(2)), r"actions are Discrete\(2\), the data's have 2 entries"),
    ],
)
def test_an_environment_that_does_not_fit_is_one_sentence(make_env, message):
    with pytest.raises(UserError, match=message) as caught:
        checked_task(task_of(make_env))
    assert str(caught.value).startswith("task toy/point: ") and "\n" not in str(caught.value)


def test_a_task_that_fits_is_left_alone(capsys):
    task = checked_task(task_of(PointEnv))
    assert capsys.readouterr().out == ""
    expected = evaluate(Still(), PointEnv, 3, 0).returns
    assert evaluate(Still(), pickle.loads(pickle.dumps(task.make_env)), 3, 0).returns.tolist() == expected.tolist()


# ---- The end of an episode ----


class Endless(PointEnv):
    def step(self, action):
        observation, reward, *_ = super().step(action)
        return observation, reward, False, False, {}


def test_an_episode_of_ones_own_environment_always_ends(capsys):
    for given, expected in (({}, EPISODE_LENGTH), ({"max_episode_steps": 4}, 4)):
        task = checked_task(dataclasses.replace(toy_task(), make_env=Endless), **given)
        assert evaluate(Still(), task.make_env, 2, 0).lengths.tolist() == [expected] * 2
        said = f"names no time limit; its episodes end after {EPISODE_LENGTH} steps" in capsys.readouterr().out
        assert said == (not given)
    limited = dataclasses.replace(toy_task(), make_env=lambda: gymnasium.wrappers.TimeLimit(Endless(), 7))
    assert evaluate(Still(), checked_task(limited).make_env, 1, 0).lengths.tolist() == [7]
    assert capsys.readouterr().out == ""


def test_data_whose_ends_were_not_recorded_give_no_limit():
    rows = LONGEST_FALLBACK + 2
    unbroken = Dataset(
        torch.zeros(rows, 3), torch.zeros(rows, 2), torch.zeros(rows), torch.ones(rows), torch.arange(rows - 1)
    )
    with pytest.raises(UserError, match=f"no time limit and the data's longest .* {rows - 1} steps: set max_episode"):
        checked_task(dataclasses.replace(toy_task(), make_env=Endless, dataset=unbroken))


def test_the_longest_episode_ends_at_terminations_and_at_rows_without_successor():
    masks = torch.ones(12)
    masks[2] = 0
    valid = torch.tensor([0, 1, 2, 3, 4, 6, 7, 8, 9, 10])  # episodes of 3, 2 and 5 transitions
    dataset = Dataset(torch.zeros(12, 3), torch.zeros(12, 2), torch.zeros(12), masks, valid)
    assert longest_episode(dataset) == 5
    masks[8] = 0
    assert longest_episode(Dataset(torch.zeros(12, 3), torch.zeros(12, 2), torch.zeros(12), masks, valid)) == 3


# ---- Success ----


@pytest.mark.parametrize("key", ["success", "is_success"])
def test_a_success_that_is_reported_only_when_there_is_one_is_a_failure_elsewhere(key, capsys):
    class Rarely(PointEnv):
        def reset(self, *, seed=None, options=None):
            self.lucky = seed % 2 == 1
            return super().reset(seed=seed)

        def step(self, action):
            *answer, _ = super().step(action)
            return *answer, {key: True} if self.lucky and answer[3] else {}

    assert evaluate(Still(), Rarely, 4, 0).successes.tolist() == [0, 1, 0, 1]
    task = checked_task(task_of(Rarely, score_name="success"))
    assert evaluate(Still(), task.make_env, 1, 0).scores("success").tolist() == [0], "no episode says anything"
    assert "hold neither success nor is_success" in capsys.readouterr().out


# ---- Seeds ----


class Drawing(PointEnv):
    """Draws from every generator there is, in the building, in reset and in steps."""

    def __init__(self):
        self.built = self._draw()

    def reset(self, *, seed=None, options=None):
        _, info = super().reset(seed=seed)
        return self._draw(), info

    def step(self, action):
        *_, truncated, info = super().step(action)
        return self._draw(), float(self.built.sum()), False, truncated, info

    def _draw(self):
        sampled = self.action_space.sample()[0] + self.observation_space.sample()[0]
        return np.float32([np.random.normal() + sampled, random.random(), torch.rand(1).item()])  # noqa: NPY002


class Watching(Still):
    """Keeps what it sees."""

    def __init__(self):
        self.seen = []

    def act(self, observations):
        self.seen.append(observations)
        return super().act(observations)


def test_the_seed_determines_whatever_an_episode_draws_from():
    def generators():
        return (
            random.getstate(),
            torch.get_rng_state().tolist(),
            np.random.get_state(legacy=False)["state"]["key"].tolist(),  # noqa: NPY002
        )

    def seen(**options):
        agent = Watching()
        result = evaluate(agent, Drawing, 3, 5, **options)
        return torch.stack(agent.seen), result.returns

    before = generators()
    together, returns = seen()
    assert generators() == before, "the process' own generators go on where they were"
    random.random(), torch.rand(1), np.random.uniform()  # noqa: NPY002  (as other work in this process does)
    again, _ = seen()
    assert torch.equal(together, again)
    alone, _ = seen(environments=1)
    assert torch.equal(alone[:EPISODE_LENGTH, 0], together[:, 0]), "an episode does not depend on those beside it"
    assert len(together[:, :, 1].unique()) == together[:, :, 1].numel() and len(set(returns)) == 3


def test_an_environment_with_other_sources_of_chance_is_said(capsys):
    class Unseeded(PointEnv):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=None)

    checked_task(task_of(Unseeded))
    assert "two episodes of its environment with one seed and the same actions differ" in capsys.readouterr().out
    checked_task(task_of(Drawing))
    assert capsys.readouterr().out == ""


# ---- Training draws nothing ----

TASKS = (
    "minari/own/pole-v0",
    "ogbench/pointmaze-medium-stitch-singletask-v0",
    "exorl/local_sticky_random/cartpole_swingup",
)
LOADS = """
import sys
import numpy as np
from envs import load_task
for name in sys.argv[2:]:
    environment = load_task(name, sys.argv[1], 1).make_env()
    environment.reset(seed=0)
    environment.step(np.zeros(environment.action_space.shape))
backends = {"OpenGL", "mujoco.glfw", "mujoco.egl", "mujoco.osmesa", "dm_control._render.glfw_renderer"}
assert not backends & set(sys.modules), backends & set(sys.modules)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the data of TASKS, but for those that loading makes."""
    root = tmp_path_factory.mktemp("data")
    generate("pointmaze-medium-stitch", 400, seed=5, out=str(root))
    no = np.zeros(2, bool)
    episode = EpisodeBuffer(
        observations=np.zeros((3, 4)), actions=np.zeros((2, 1)), rewards=np.zeros(2), terminations=no, truncations=~no
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        minari.create_dataset_from_buffers("own/pole-v0", [episode], env=gymnasium.spec("InvertedPendulum-v5"))
    return root


@pytest.mark.filterwarnings("ignore::UserWarning")  # minari wants authors and links
@pytest.mark.parametrize(
    "backend", ["osmesa", *(pytest.param(name, marks=pytest.mark.slow) for name in ("egl", "glfw", None))]
)
def test_training_never_imports_opengl(tmp_path, data, backend):
    """Here `import OpenGL` fails, as its parts do where there is no driver."""
    (tmp_path / "OpenGL").mkdir()
    (tmp_path / "OpenGL" / "__init__.py").write_text("raise AttributeError('no driver')")
    environment = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    environment |= {"MUJOCO_GL": backend} if backend else {}
    command = [sys.executable, "-W", "ignore", "-c", LOADS, str(data), *TASKS]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_only_what_draws_keeps_the_choice_of_opengl(monkeypatch):
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    for draws, expected in ((True, "egl"), (False, "disabled")):
        monkeypatch.setenv("MUJOCO_GL", "egl")
        with pytest.raises(UserError):
            load_task("driving/none", draws=draws)
        assert os.environ["MUJOCO_GL"] == expected
