"""Driving tasks: `load` gives the data set and the environment of `driving/<name>`.

bandit                    context -> a plan of 4 seconds, reward = PDMS; evaluated in the test scenes
bandit-zscore             the same with plans standardised pose by pose instead of in the smooth basis
<either>-validation       the same data, evaluated in the validation scenes: what hyperparameters are chosen by
closed_loop               bandit's data, evaluated by driving on in reacting traffic; the score is metres, not PDMS
navsim, navsim-zscore and their -validation: the same of scenes that `envs.driving.navsim_export` took from NAVSIM
"""

import functools
from pathlib import Path
from typing import Optional

import numpy as np
import torch

from common.errors import UserError
from common.names import nearest_names
from envs.dataset import Dataset
from envs.driving.bandit import DrivingBandit, load_data
from envs.driving.closed_loop import DrivingClosedLoop
from envs.driving.collect import collect, collect_command, data_folder, missing_logs, read_sidecar
from envs.driving.navsim_export import EXPORTER_VERSION
from envs.task import Task

CLOSED_LOOP = "closed loop"
TASKS = {  # name: (kind of the encoding, split of the evaluation)
    "bandit": ("basis", "test"),
    "bandit-zscore": ("zscore", "test"),
    "bandit-validation": ("basis", "validation"),
    "bandit-zscore-validation": ("zscore", "validation"),
    "closed_loop": ("basis", CLOSED_LOOP),
    "navsim": ("navsim-basis", "test"),
    "navsim-zscore": ("navsim-zscore", "test"),
    "navsim-validation": ("navsim-basis", "validation"),
    "navsim-zscore-validation": ("navsim-zscore", "validation"),
}
EXPORT_COMMAND = "python -m envs.driving.navsim_export"
EXPORTED_DATA_DIR = "~/.driving/navsim"
SCORE = -1  # column of the scores: PDMS


def load(name: str, data_dir: Optional[str] = None, collect_episodes: int = 0) -> Task:
    """Loads the task `name`, one of TASKS, of the scenes in `data_dir`, by default ~/.driving/embedded or /navsim.

    An absent set is collected first when collect_episodes > 0, with so many logs. Rewards are PDMS in [0, 1], masks
    are 0 throughout. Raises UserError for an unknown name, for data that is absent, incomplete or damaged, and for
    scenes of the other kind: those of NAVSIM and the embedded ones are tasks of different names.
    """
    if name not in TASKS:
        raise UserError(f"task driving/{name}: unknown{nearest_names(name, TASKS)} (known: {', '.join(TASKS)})")
    kind, split = TASKS[name]
    folder = scenes_folder(name, data_dir)
    sidecar = _made(name, folder, collect_episodes)
    data = load_data(folder, kind)
    scenes = {part: len(observations) for part, observations in data.observations.items()}
    rewards = {part: scores[..., SCORE] for part, scores in data.scores.items()}
    identity = {
        "suite": "driving",
        "path": str(folder),
        "sha256": data.sha256,
        "sha256_of": "names and contents of all log and road files",
        "source": sidecar["source"],
        "transitions": rewards["train"].size,
        "episodes": rewards["train"].size,
        "scenes": scenes,
        "plans_per_scene": rewards["train"].shape[1],
        "encoding": kind,
        "evaluated_in": split,
        "generation": sidecar,
    }
    if split == CLOSED_LOOP:
        different = None
        make_env = functools.partial(DrivingClosedLoop, folder, kind)
    else:
        different = scenes[split]
        make_env = functools.partial(DrivingBandit, folder, kind, split)
        identity["episode_return_mean"] = float(rewards["train"].mean())
    sets = {
        part: one_step_episodes(data.observations[part], data.actions[part], rewards[part])
        for part in ("train", "validation")
    }
    return Task(
        name=f"driving/{name}",
        dataset=sets["train"],
        validation=sets["validation"],
        make_env=make_env,
        observation_dim=data.observations["train"].shape[1],
        action_dim=data.encoding.action_dim,
        score_name="return",
        identity=identity,
        different_episodes=different,
    )


def scenes_folder(name: str, data_dir: Optional[str] = None) -> Path:
    """The folder of the set of task `name`: data_dir, or the default of its kind."""
    return data_folder(data_dir or (EXPORTED_DATA_DIR if is_exported(name) else None))


def is_exported(name: str) -> bool:
    """Whether the task `name` is one of scenes from NAVSIM."""
    return name.startswith("navsim")


def _made(name: str, folder: Path, collect_episodes: int) -> dict:
    """The record of the task's set; collects an absent embedded one, or finishes it, where asked for."""
    exported = is_exported(name)
    if exported and collect_episodes > 0:
        raise UserError(f"driving/{name}: its scenes cannot be collected: set collect_episodes to 0, {EXPORT_COMMAND}")
    if exported and not folder.exists():
        raise UserError(
            f"no scenes from NAVSIM in {folder}: export them with `{EXPORT_COMMAND} --out {folder}` in NAVSIM's own "
            "environment (docs/navsim.md), or set data_dir"
        )
    if collect_episodes > 0 and not folder.exists():
        collect(folder, collect_episodes)
    sidecar = read_sidecar(folder)
    if exported != ("metric" in sidecar):
        origin, other = ("not", name.replace("navsim", "bandit")) if exported else ("from", "navsim")
        raise UserError(f"{folder}: its scenes are {origin} NAVSIM's, use task driving/{other}, not driving/{name}")
    if exported and sidecar["generator_version"] != EXPORTER_VERSION:
        raise UserError(f"{folder}: exported by an older version: export it again")
    missing = missing_logs(folder, sidecar["logs"])
    if missing and collect_episodes > 0:
        collect(folder, sidecar["logs"], sidecar["seed"])
    elif missing:
        command = EXPORT_COMMAND if exported else collect_command(folder, sidecar["logs"])
        raise UserError(
            f"{folder}: {len(missing)} of {sidecar['logs']} logs are missing, making them was interrupted: finish it "
            f"with `{command}`"
        )
    return sidecar


def one_step_episodes(observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> Dataset:
    """Observations [S, O] with actions [S, K, A] and rewards [S, K] as S * K one-step episodes, masks 0.

    A scene has K + 1 rows of its observation: its K plans, and one that closes the group and repeats the last action,
    so that the next observation of every plan is the scene itself. The columns state_values and state_deviations are
    the mean and the sample standard deviation of the group's rewards.
    """
    scenes, plans, _ = actions.shape

    def per_row(statistic: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.repeat(statistic, plans + 1).astype(np.float32))

    closed = np.append(np.arange(plans), plans - 1)
    rows = torch.arange(scenes * (plans + 1))
    return Dataset(
        observations=torch.from_numpy(np.repeat(observations, plans + 1, axis=0)),
        actions=torch.from_numpy(actions[:, closed].reshape(len(rows), -1)),
        rewards=torch.from_numpy(rewards[:, closed].reshape(-1).astype(np.float32)),
        masks=torch.zeros(len(rows)),
        valid=rows[rows % (plans + 1) < plans],
        state_values=per_row(rewards.mean(axis=1)),
        state_deviations=per_row(rewards.std(axis=1, ddof=1)),
    )
