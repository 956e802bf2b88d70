"""Counts the steps of the environments that run for the page, and lets the page stop them."""

import functools
import threading
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from common.errors import UserError


class Stopped(UserError):
    """The user stopped the rollouts; it passes through `harness.evaluation`, as every UserError does."""

    def __init__(self) -> None:
        super().__init__("stopped: the unfinished part left nothing behind")


class Progress:
    """What the rollouts of now have done, written by their thread and read by the page's."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.begin("", 0)

    def begin(self, what: str, episodes: int) -> None:
        self.what, self.episodes, self.steps, self.ended = what, episodes, 0, 0

    def text(self) -> str:
        """One line, such as "evaluating: 2 of 10 episodes, 3,120 steps"."""
        if self.episodes > 1:
            return f"{self.what}: {self.ended} of {self.episodes} episodes, {self.steps:,} steps"
        return f"{self.what}: {self.steps:,} steps"


class Watched(gymnasium.Wrapper):
    """Counts steps and ended episodes; raises Stopped at the step after the user's wish."""

    def __init__(self, environment: gymnasium.Env, progress: Progress):
        super().__init__(environment)
        self.progress = progress

    def step(self, action: np.ndarray) -> tuple:
        if self.progress.stopping.is_set():
            raise Stopped()
        answer = self.env.step(action)
        self.progress.steps += 1
        self.progress.ended += answer[2] or answer[3]
        return answer


def watch(make_env: Callable[..., gymnasium.Env], progress: Progress) -> Callable[..., gymnasium.Env]:
    """make_env with watched environments; its signature, which tells how it draws, stays."""

    @functools.wraps(make_env, updated=())
    def make_watched_env(**options: Any) -> gymnasium.Env:
        return Watched(make_env(**options), progress)

    return make_watched_env
