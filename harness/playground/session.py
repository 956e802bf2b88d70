"""The state behind the page: one run's agent and task, what is running now, and everything that was tried.

All rollouts happen in one thread of their own: OpenGL's contexts belong to the thread that made them, and the page
stays responsive. The page reads the attributes; only that thread changes `tried`.
"""

import dataclasses
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common.errors import UserError
from envs.task import Task
from harness.algorithms import Algorithm
from harness.config import RunConfig
from harness.devices import set_up_torch
from harness.evaluate import evaluate_cell
from harness.evaluation import Evaluator
from harness.graphics import NoPictures
from harness.playground.controls import decode_count, decode_options, make_controls
from harness.playground.results import Tried, draw_curve, tried_of
from harness.playground.scene_picture import draw_scene
from harness.playground.watch import Progress, watch
from harness.video import record

ONE_STEP_DRIVING = "driving/bandit"  # begins the names of the tasks whose episode is one picture


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A run folder with what it holds and what its agent acts in."""

    folder: Path
    algorithm: Algorithm
    run: RunConfig
    config: Any
    agent: Any
    task: Task


class Session:
    """Runs what the page asks for. media: folder for pictures; no_pictures: why there are none, None if there are.

    error: one sentence about the last press of Run, None if all went well. version: rises with everything new that
    there is to show.
    """

    def __init__(self, run: LoadedRun, media: Path, no_pictures: str | None = None):
        self.run, self.media, self.no_pictures = run, media, no_pictures
        self.controls = make_controls(run.algorithm.agent_class, run.config)
        self.progress = Progress()
        self.make_env = watch(run.task.make_env, self.progress)
        self.evaluator = Evaluator(self.make_env, run.run.eval_environments)
        self.tried: list[Tried] = []
        self.curve: Path | None = None
        self.busy, self.error, self.version = False, None, 0
        self.thread = ThreadPoolExecutor(1, "rollouts", initializer=set_up_torch, initargs=(run.run,))

    @property
    def status(self) -> str:
        """What is going on, in one line."""
        if self.busy:
            return self.progress.text()
        return "ready" if self.tried else "choose a setting and press Run"

    def start(self, values: dict[str, Any], seed: float | None, episodes: float | None) -> None:
        """Begins the rollouts of the page's fields; a field that is wrong only sets `error`."""
        if self.busy:
            return
        try:
            options = decode_options(values, self.run.algorithm.agent_class, self.run.config)
            seed, episodes = decode_count("first seed", seed, 0), decode_count("episodes", episodes, 1)
        except UserError as error:
            self.error = str(error)
            return
        self.busy, self.error = True, None
        self.progress.stopping.clear()
        self.thread.submit(self._run, options, seed, episodes)

    def stop(self) -> None:
        """Ends the rollouts at their next step."""
        self.progress.stopping.set()

    def close(self) -> None:
        """Ends the rollouts and their thread."""
        self.stop()
        self.thread.shutdown()
        self.evaluator.close()

    def _run(self, options: dict, seed: int, episodes: int) -> None:
        try:
            self._evaluate(options, seed, episodes)
            if self.no_pictures is None:
                self._draw()
        except UserError as error:
            self.error = str(error)
        except Exception as error:  # a defect, or a simulator's: the page shows a sentence, the terminal the rest
            traceback.print_exc()
            sentence = (str(error).strip().splitlines() or ["no message"])[-1]
            self.error = f"{type(error).__name__}: {sentence} (the terminal shows where)"
        finally:
            self.busy = False
            self.version += 1

    def _evaluate(self, options: dict, seed: int, episodes: int) -> None:
        agent, task = self.run.agent, self.run.task
        self.progress.begin("evaluating", episodes)
        self.tried.append(tried_of(evaluate_cell(agent, self.evaluator, options, episodes, seed), task))
        if options:
            path = self.media / f"curve_{len(self.tried)}.png"  # a new name, so that the browser fetches it
            draw_curve(self.tried, path, task.score_name, task.reference_scores())
            self.curve = path
        self.version += 1

    def _draw(self) -> None:
        """Draws the first episode of the last setting."""
        last, task = self.tried[-1], self.run.task
        seed, options = last.cell.seed, last.cell.options
        self.progress.begin(f"drawing the episode with seed {seed}", 1)
        try:
            if task.name.startswith(ONE_STEP_DRIVING):
                path = self.media / f"scene_{len(self.tried)}.png"
                result = draw_scene(self.run.agent, self.make_env, seed, path, **options)
            else:
                folder = self.media / f"run_{len(self.tried)}"  # a new name, as of the curve
                (path,), result = record(self.run.agent, self.make_env, 1, folder, seed, **options)
        except NoPictures as error:
            self.no_pictures = str(error)
            return
        drawn_score = float(result.scores(task.score_name)[0])
        self.tried[-1] = dataclasses.replace(last, picture=path, drawn_score=drawn_score)
