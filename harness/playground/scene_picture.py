"""The picture of a one-step driving episode: its scene from above with the plan, and with plans of other noise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from common.files import replacing
from envs.driving.bandit import DrivingBandit
from envs.driving.planner import along_route
from envs.driving.score import score
from harness.driving.show import CANDIDATES, draw
from harness.evaluation import EvaluationResult, Evaluator


class KeepsAction(gymnasium.Wrapper):
    """Remembers the last action."""

    def step(self, action: np.ndarray) -> tuple:
        self.action = action
        return self.env.step(action)


def draw_scene(
    agent: Any, make_env: Callable[[], gymnasium.Env], seed: int, path: Path, **act_options: Any
) -> EvaluationResult:
    """Writes the picture of the episode with that seed as PNG and returns the episode's scores.

    The scene of a seed is the seed modulo the number of scenes; so CANDIDATES more episodes, whose seeds are that many
    scenes apart, show the agent's plans for the same scene under other noise.
    """
    environments = []

    def make_keeping_env() -> gymnasium.Env:
        environments.append(KeepsAction(make_env()))
        return environments[-1]

    with Evaluator(make_keeping_env, environments=1) as evaluator:
        episode = evaluator.evaluate(agent, 1, seed, **act_options)
        bandit: DrivingBandit = environments[0].unwrapped
        scene, token = bandit.scene_set.scenes[bandit.index], bandit.scene_set.tokens[bandit.index]
        actions = [environments[0].action]
        for draws in range(1, CANDIDATES + 1):
            evaluator.evaluate(agent, 1, seed + draws * len(bandit.scene_set.scenes), **act_options)
            actions.append(environments[0].action)
    plans = bandit.encoding.decode(np.clip(actions, -1.0, 1.0).astype(np.float64), along_route(scene))
    figure = draw(scene, score(scene, plans[1:]), score(scene, plans[:1]), token)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    return episode
