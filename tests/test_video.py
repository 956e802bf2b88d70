"""Videos: mp4 files read back, the same episodes as the sweep's, and one sentence where nothing can be drawn."""

import contextlib
import functools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest
import torch

import harness.evaluate
import harness.graphics
from common.errors import UserError
from harness.evaluation import GRID_SEED, evaluate
from harness.graphics import check_graphics, choose_graphics, drawing_error
from harness.video import FRAME_SKIP, FRAMES_PER_SECOND, Recorder, build_for_pictures, record, write_mp4
from tests.test_evaluate_command import run_dir, toy_task  # noqa: F401  (a fixture)
from tests.toy import PointEnv

STEPS = 8  # frames: first state, after 3, 6 and 8 steps
REPOSITORY = Path(__file__).parent.parent


class Swing(gymnasium.Env):
    """A pendulum-like toy: a light square whose place tells the step, on a dark ground. Odd sizes, as some have."""

    observation_space = gymnasium.spaces.Box(-9, 9, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    built, closed = [], []

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.built.append(render_mode)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.place = 0, self.np_random.normal()
        return np.float32([self.place]), {}

    def step(self, action):
        self.steps += 1
        self.place += float(action[0])
        return np.float32([self.place]), self.place, self.steps == STEPS, False, {"success": 1.0}

    def render(self):
        assert self.render_mode == "rgb_array"
        picture = np.full((49, 81, 3), 20, np.uint8)
        picture[10:26, 5 * self.steps : 5 * self.steps + 16] = (250, 200, 150)
        return picture

    def close(self):
        self.closed.append(self.render_mode)


class Noisy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.noise = torch.nn.Identity()
        self.options = []

    def act(self, observations, **options):
        self.options.append(options)
        return self.noise.normal(len(observations), 1).clamp(-1, 1)


def read_mp4(path) -> tuple:
    """(frames, uint8 [N, H, W, 3], metadata) of a file."""
    reader = imageio_ffmpeg.read_frames(str(path))
    metadata = next(reader)
    width, height = metadata["size"]
    frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    return np.stack(frames), metadata


# ---- files ----


def test_files_hold_the_frames(tmp_path):
    agent = Noisy()
    paths, result = record(agent, Swing, 2, tmp_path / "videos", greediness=1.5)
    assert paths == sorted((tmp_path / "videos").iterdir()), "and no temporary file remains"
    assert result.lengths.tolist() == [STEPS, STEPS]
    assert [path.name for path in paths] == [f"greediness_1.5_seed_{GRID_SEED + n}.mp4" for n in range(2)]
    assert all(options == {"greediness": 1.5} for options in agent.options)
    for path in paths:
        frames, metadata = read_mp4(path)
        assert frames.shape == (4, 48, 80, 3) and metadata["fps"] == FRAMES_PER_SECOND
        for frame, step in zip(frames, (0, FRAME_SKIP, 2 * FRAME_SKIP, STEPS), strict=True):
            light = np.argwhere(frame[..., 0] > 130)
            assert np.allclose(light.mean(axis=0), (17.5, 5 * step + 7.5), atol=1), "the square of this step"
            assert np.allclose(frame[18, 5 * step + 8], (250, 200, 150), atol=12), "channels in their order"
            assert frame[40, 70].max() < 40
    assert Swing.closed[-1] == "rgb_array"


def test_recorded_episodes_are_the_sweeps(tmp_path):
    returns = []

    class Summing(gymnasium.Wrapper):
        def step(self, action):
            answer = super().step(action)
            returns.append(answer[1])
            return answer

    Swing.built.clear()
    swept = evaluate(Noisy(), Swing, 3, GRID_SEED)
    assert set(Swing.built) == {None}, "evaluation builds environments that cannot draw"
    record(Noisy(), lambda render_mode: Summing(Swing(render_mode)), 2, tmp_path)
    assert Swing.built.count("rgb_array") == 1
    assert np.allclose(np.reshape(returns, (2, STEPS)).sum(axis=1), swept.returns[:2])


def test_an_error_leaves_no_half_file(tmp_path):
    class Failing(Swing):
        def step(self, action):
            if self.steps == 5:
                raise RuntimeError("simulator")
            return super().step(action)

    Swing.closed.clear()
    with pytest.raises(RuntimeError, match="simulator"):
        record(Noisy(), Failing, 1, tmp_path)
    assert list(tmp_path.iterdir()) == [] and Swing.closed == ["rgb_array"]
    with pytest.raises(TypeError):
        write_mp4(tmp_path / "bad.mp4", [np.zeros((4, 4, 3), np.uint8), None])
    assert list(tmp_path.iterdir()) == []


def test_environments_without_pictures_are_named(tmp_path):
    with pytest.raises(UserError, match="^videos: PointEnv draws no pictures, so this task has scores only"):
        record(Noisy(), PointEnv, 1, tmp_path)
    with pytest.raises(UserError, match="Pendul.* draws no pictures"):
        record(Noisy(), functools.partial(gymnasium.make, "Pendulum-v1"), 1, tmp_path)


# ---- OGBench ----


@pytest.mark.parametrize("attribute", ["_renderer", "custom_renderer"])
def test_ogbench_pictures_are_plain_and_their_renderer_is_closed(attribute):
    """The simulator is a stand-in: it renders with what data.md measured on OGBench's own."""
    mujoco = pytest.importorskip("mujoco")
    log = []

    class Simulator(Swing):
        def __init__(self):
            super().__init__("rgb_array")
            self.model = SimpleNamespace(vis=SimpleNamespace(quality=SimpleNamespace(offsamples=4)))
            setattr(self, attribute, None)

        def render(self):
            if getattr(self, attribute) is None:
                log.append(("built", self.model.vis.quality.offsamples))
                renderer = SimpleNamespace(close=lambda: log.append("closed"), scene=SimpleNamespace(flags=[1] * 12))
                setattr(self, attribute, renderer)
            flags = getattr(self, attribute).scene.flags
            log.append((flags[mujoco.mjtRndFlag.mjRND_SHADOW], flags[mujoco.mjtRndFlag.mjRND_REFLECTION]))
            return super().render()

    Simulator.__module__ = "ogbench.toy"

    class Outer(Swing):
        def __init__(self):
            super().__init__()
            self.environment = Simulator()

        def reset(self, **options):
            return self.environment.reset(**options)

        def step(self, action):
            return self.environment.step(action)

    recorder = Recorder(build_for_pictures(Outer), lambda seed: Path())
    recorder.reset(seed=0)
    recorder.pictures.draw()
    recorder.close()
    recorder.close()
    assert log == [("built", 0), (1, 1), (0, 0), (0, 0), "closed"]
    recorder.pictures.draw()
    assert log[5:] == [("built", 0), (1, 1), (0, 0)], "built anew, as after a reset that compiles another model"


# ---- OpenGL ----


def test_one_sentence_where_mujoco_cannot_draw(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", SimpleNamespace())
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(
        harness.graphics, "drawing_error", lambda backend: {"egl": "no device", None: "no display"}[backend]
    )
    with pytest.raises(UserError) as caught:
        check_graphics()
    assert "cannot draw here with MUJOCO_GL egl (no device): install EGL (`apt" in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.delenv("MUJOCO_GL")
    with pytest.raises(UserError, match=r"MUJOCO_GL unset \(no display\): install EGL .* or OSMesa"):
        check_graphics()
    monkeypatch.setattr(harness.graphics, "drawing_error", lambda backend: None)
    check_graphics()


def test_tasks_without_mujoco_need_no_opengl(monkeypatch):
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    monkeypatch.setattr(harness.graphics, "drawing_error", lambda backend: "no device")
    check_graphics()


@pytest.mark.parametrize("works, chosen", [(("egl", "osmesa"), "egl"), (("osmesa",), "osmesa"), ((), None)])
def test_the_first_backend_that_draws_is_chosen(monkeypatch, works, chosen):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(harness.graphics, "drawing_error", lambda backend: None if backend in works else "broken")
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    choose_graphics()
    assert os.environ["MUJOCO_GL"] == "glfw", "the user's choice stays"
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with contextlib.nullcontext() if "osmesa" in works else pytest.raises(UserError, match="MUJOCO_GL osmesa"):
        choose_graphics()
    monkeypatch.delenv("MUJOCO_GL")
    choose_graphics()
    assert os.environ.get("MUJOCO_GL") == chosen
    monkeypatch.delenv("MUJOCO_GL", raising=False)


def test_drawing_error_is_mujocos_own():
    assert "GLContext" in drawing_error("disabled")
    assert "nonsense" in drawing_error("nonsense")


SCRIPT = """
import sys, gymnasium, torch
from pathlib import Path
from {module} import {environment}
from harness.video import record
class Still:
    def act(self, observations):
        return torch.zeros(len(observations), {action_dim})
make_env = lambda: gymnasium.wrappers.TimeLimit({environment}{arguments}, 30)
record(Still(), make_env, 1, Path(sys.argv[1]))
"""
CARTPOLE = ("envs.exorl.environment", "ExORLEnvironment", ("cartpole", "swingup"), 1)
POINTMAZE = ("envs.ogbench.environment", "OGBenchEnvironment", "('pointmaze-medium-navigate-singletask-v0')", 2)


@pytest.mark.slow
@pytest.mark.parametrize("case, size, steady", [(CARTPOLE, 256, (255, 128, 0)), (POINTMAZE, 200, (255, 255, 255))])
def test_mujoco_scenes_are_drawn(tmp_path, case, size, steady):
    """The cartpole's orange pole and the maze's white walls are in every frame."""
    backend = next((name for name in harness.graphics.BACKENDS if drawing_error(name) is None), None)
    if backend is None:
        pytest.skip("neither EGL nor OSMesa draws here")
    script = SCRIPT.format(**dict(zip(("module", "environment", "arguments", "action_dim"), case, strict=True)))
    process = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=os.environ | {"MUJOCO_GL": backend},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0 and "Traceback" not in process.stderr, process.stderr
    frames, _ = read_mp4(tmp_path / f"seed_{GRID_SEED}.mp4")
    assert frames.shape == (11, size, size, 3) and frames.std() > 10
    near = np.abs(frames.astype(int) - steady).max(axis=-1) < 100
    assert all(200 < pixels < 0.4 * size**2 for pixels in near.sum(axis=(1, 2)))


# ---- the command ----


@pytest.fixture
def calls(run_dir, monkeypatch):  # noqa: F811
    """What the command did for a run whose environment is Swing."""
    made = []
    task = toy_task(make_env=Swing)
    monkeypatch.setattr(harness.evaluate, "load_trained_task", lambda *arguments: made.append("load_task") or task)
    for name in ("choose_graphics", "check_graphics"):
        monkeypatch.setattr(harness.evaluate, name, lambda name=name: made.append(name))
    return made


def test_command_records_the_first_cell_and_changes_no_result(run_dir, calls, capsys):  # noqa: F811
    arguments = [str(run_dir.folder), "--greediness", "0.5", "1", "--episodes", "3"]
    harness.evaluate.evaluate_command(arguments)
    without = (run_dir.folder / "greediness.csv").read_text()
    assert calls == ["load_task"] and not (run_dir.folder / "videos").exists()
    calls.clear()
    harness.evaluate.evaluate_command([*arguments, "--video_episodes", "2"])
    assert (run_dir.folder / "greediness.csv").read_text() == without
    paths = sorted((run_dir.folder / "videos").iterdir())
    assert calls == ["choose_graphics", "load_task", "check_graphics"] and len(paths) == 2
    assert "videos of greediness 0.5, num_candidates 4, flow_steps 10: " in capsys.readouterr().out
    with pytest.raises(UserError, match="--video_episodes is -1; it must be at least 0"):
        harness.evaluate.evaluate_command([*arguments, "--video_episodes", "-1"])


REST = f"num_candidates_4_flow_steps_10_seed_{GRID_SEED}"


def test_videos_of_two_settings_do_not_overwrite_one_another(run_dir, calls):  # noqa: F811
    contents = []
    for greediness in ("0.5", "1"):
        arguments = ["--greediness", greediness, "--episodes", "1", "--video_episodes", "1"]
        harness.evaluate.evaluate_command([str(run_dir.folder), *arguments])
        contents.append((run_dir.folder / "videos" / f"greediness_{float(greediness)}_{REST}.mp4").read_bytes())
    videos = sorted((run_dir.folder / "videos").iterdir())
    assert [path.read_bytes() for path in videos] == contents
