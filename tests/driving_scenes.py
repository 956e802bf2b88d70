"""Driving scenes and runs that several test files share."""

from pathlib import Path

import numpy as np

from envs.driving.scene import DRIVABLE, Road, Scene
from envs.driving.vehicle import DT
from harness.algorithms import load_algorithm
from harness.config import RunConfig
from harness.run_folder import run_path
from harness.train import train_run
from tests.conftest import small_config

SCENES = Path(__file__).resolve().parent / "golden" / "driving" / "scenes"


def straight_scene(agents=(), speed: float = 8.0, static: bool = False, width: float = 8.0) -> Scene:
    """A drivable road of that width along x, from -40 to 120 m, with a lane mark; agents [n, 4] drive on along x."""
    moving = np.repeat(np.asarray(agents, float).reshape(-1, 4)[None], 51, axis=0)
    moving[..., 0] += moving[..., 3] * DT * np.arange(51)[:, None]
    raster = np.zeros((801, 401), np.uint32)
    half = round(width / 2 / 0.2)
    raster[:, 200 - half : 201 + half] = DRIVABLE | np.uint32(1)
    return Scene(
        road=Road(raster, np.zeros(raster.shape, bool), np.array([-40.0, -40.0]), 0.2),
        ego=np.array([0.0, 0.0, 0.0, speed, 0.0, 0.0, 0.0]),
        history=np.array([[-1.5 * speed, 0, 0], [-speed, 0, 0], [-0.5 * speed, 0, 0]]),
        agents=moving,
        size=np.tile([5.0, 2.0], (moving.shape[1], 1)),
        static=np.full(moving.shape[1], static),
        centreline=np.stack([np.arange(-30.0, 110.0), np.zeros(140)], axis=-1),
        speed_limit=10.0,
        reference_progress=40.0,
    )


def trained(name: str, task: str, folder: Path, run_dir: Path, eval_episodes: int = 1, **changes) -> Path:
    """The folder of a run of a few updates on the set in `folder`; changes: of the method's config."""
    algorithm = load_algorithm(name)
    run = RunConfig(
        task=task,
        label=name,
        data_dir=str(folder),
        run_dir=str(run_dir),
        device="cpu",
        offline_steps=2,
        log_interval=2,
        checkpoint_interval=2,
        eval_interval=2,
        eval_episodes=eval_episodes,
        batch_size=16,
    )
    train_run(algorithm.agent_class, run, small_config(algorithm, **changes))
    return run_path(run)
