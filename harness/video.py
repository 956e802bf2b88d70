"""Videos: episodes of an agent as mp4 files, drawn without a display in environments built for that alone."""

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import imageio_ffmpeg
import numpy as np

from common.files import replacing
from harness.evaluation import GRID_SEED, EvaluationResult, evaluate
from harness.graphics import NoPictures

FRAME_SKIP = 3  # environment steps per picture, and
FRAMES_PER_SECOND = 15  # as in FQL's released code (utils/evaluation.py, utils/log_utils.py)


# ---- Pictures ----


class OGBenchPictures:
    """Pictures of OGBench's own environment without shadows, reflections and multi-sampling: 8 to 25 times faster."""

    def __init__(self, simulator: Any):
        self.simulator = simulator
        self.attribute = "_renderer" if hasattr(simulator, "_renderer") else "custom_renderer"  # manipulation, mazes

    def draw(self) -> np.ndarray:
        """The scene now, uint8 [200, 200, 3]."""
        import mujoco

        if getattr(self.simulator, self.attribute) is None:
            self.simulator.model.vis.quality.offsamples = 0  # read when the renderer is built
            self.simulator.render()
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                getattr(self.simulator, self.attribute).scene.flags[flag] = 0
        return self.simulator.render()

    def close(self) -> None:
        """Frees the renderer; the next picture builds another, which also fits a model that a reset compiled anew."""
        renderer = getattr(self.simulator, self.attribute)
        if renderer is not None:
            renderer.close()
            setattr(self.simulator, self.attribute, None)


class GymnasiumPictures:
    """Pictures by the environment's own `render`."""

    def __init__(self, environment: gymnasium.Env):
        self.environment = environment

    def draw(self) -> np.ndarray:
        """The scene now, uint8 [H, W, 3]. Raises NoPictures where the environment draws none."""
        try:
            picture = self.environment.render()
        except NotImplementedError:
            picture = None
        if not isinstance(picture, np.ndarray):
            name = type(self.environment.unwrapped).__name__
            raise NoPictures(f"videos: {name} draws no pictures, so this task has scores only")
        return picture

    def close(self) -> None:
        """Nothing: the environment's close() frees what its pictures need."""


def build_for_pictures(make_env: Callable[[], gymnasium.Env]) -> gymnasium.Env:
    """An environment that can draw: gymnasium's own must be told so when they are built, by a `render_mode`."""
    takes_mode = "render_mode" in inspect.signature(make_env).parameters
    return make_env(render_mode="rgb_array") if takes_mode else make_env()


class Recorder(gymnasium.Wrapper):
    """Writes every episode to the file that `path_of(seed)` names: first state, every FRAME_SKIP-th and the last."""

    def __init__(self, environment: gymnasium.Env, path_of: Callable[[int], Path]):
        super().__init__(environment)
        simulator = getattr(getattr(environment.unwrapped, "environment", None), "unwrapped", None)
        is_ogbench = any(ancestor.__module__.startswith("ogbench.") for ancestor in type(simulator).__mro__)
        self.pictures = OGBenchPictures(simulator) if is_ogbench else GymnasiumPictures(environment)
        self.path_of = path_of

    def reset(self, *, seed: int, options: dict | None = None) -> tuple:
        answer = self.env.reset(seed=seed, options=options)
        self.path = self.path_of(seed)
        self.steps, self.frames = 0, [self.pictures.draw()]
        return answer

    def step(self, action: np.ndarray) -> tuple:
        answer = self.env.step(action)
        ends = answer[2] or answer[3]
        self.steps += 1
        if ends or self.steps % FRAME_SKIP == 0:
            self.frames.append(self.pictures.draw())
        if ends:
            write_mp4(self.path, self.frames)
            self.frames = []
            self.pictures.close()
        return answer

    def close(self) -> None:
        self.pictures.close()  # before the environment; at the interpreter's exit it would be too late
        super().close()


# ---- Files ----


def video_name(act_options: Mapping[str, Any], seed: int) -> str:
    """Such as "greediness_0.5_num_candidates_16_seed_1000000.mp4": videos of two settings never share a name."""
    return "_".join(f"{name}_{value}" for name, value in {**act_options, "seed": seed}.items()) + ".mp4"


def write_mp4(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Writes frames, uint8 [H, W, 3] each, as H.264, whole or not at all. Odd sizes lose a row or a column."""
    height, width = (size - size % 2 for size in frames[0].shape[:2])  # the codec halves the colours' resolution
    with replacing(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            (width, height),
            fps=FRAMES_PER_SECOND,
            macro_block_size=1,  # 16, the default, would scale the pictures
            output_params=["-f", "mp4"],  # the temporary name does not tell
        )
        with contextlib.closing(writer):
            writer.send(None)
            for frame in frames:
                writer.send(np.ascontiguousarray(frame[:height, :width]))


def record(
    agent: Any,
    make_env: Callable[[], gymnasium.Env],
    episodes: int,
    folder: Path,
    seed: int = GRID_SEED,
    **act_options: Any,
) -> tuple[list[Path], EvaluationResult]:
    """Writes videos of episodes, by default the first of a sweep, to the folder; returns the files and scores.

    They are evaluated again, one after the other, in an environment that draws: the sweep's own never do. Raises
    NoPictures if nothing can be drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def path_of(seed: int) -> Path:
        return folder / video_name(act_options, seed)

    def make_recorder() -> gymnasium.Env:
        return Recorder(build_for_pictures(make_env), path_of)

    result = evaluate(agent, make_recorder, episodes, seed, environments=1, **act_options)
    return [path_of(seed + episode) for episode in range(episodes)], result
