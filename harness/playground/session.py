"""What the page shows: one run's agent and task, what is running now, and everything that was tried.

All rollouts happen in one thread of their own: OpenGL's contexts belong to the thread that made them, and the page
stays responsive. The page reads the attributes; only that thread changes `tried`.
"""

import dataclasses
import functools
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from common.errors import UserError
from envs.task import Task
from harness.agent_tools import own_options
from harness.algorithms import Algorithm
from harness.config import RunConfig
from harness.devices import set_up_torch
from harness.evaluate import Cell, evaluate_cell, rows_of
from harness.evaluation import Evaluator
from harness.graphics import NoPictures
from harness.grid import parse_grid
from harness.plots import plot_sweep
from harness.score_statistics import CONFIDENCE, paired_interval
from harness.video import record


def decode_options(values: dict[str, Any], agent_class: type, config: Any) -> dict[str, Any]:
    """{option: value} of the page's fields, typed as in the config. Raises UserError that says what is wrong."""
    empty = [name for name, value in values.items() if value is None]
    if empty:
        raise UserError(f"{empty[0]}: the field is empty; give a number")
    grid = parse_grid([f"{name}={value}" for name, value in values.items()], agent_class, config)
    return {name: values[0] for name, values in grid.items()}


# ---- What was tried ----


@dataclasses.dataclass(frozen=True, eq=False)
class Tried:
    """One press of Run. row: of `harness.evaluate.rows_of`, for this cell alone.

    picture: the video of the first episode, None until it is drawn; drawn_score: of that episode.
    """

    cell: Cell
    row: dict
    scores: np.ndarray  # [n], of the episodes
    picture: Path | None = None
    drawn_score: float | None = None

    @property
    def episodes(self) -> tuple[int, int]:
        """(first seed, number): equal for settings that were tried on the same episodes."""
        return self.cell.seed, len(self.scores)


def show_number(value: float) -> str:
    """A score, or a difference of scores, with the decimals that its size deserves."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def show_options(options: Mapping) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in options.items()) or "the agent as it is"


def show_score(tried: Tried, score_name: str) -> str:
    """Mean, standard deviation and interval in one line."""
    columns = (score_name, *(f"{score_name}_{part}" for part in ("std", "low", "high")))
    mean, std, low, high = (show_number(tried.row[column]) for column in columns)
    return f"{mean} ± {std} over {len(tried.scores)} episodes, {CONFIDENCE:.0%} interval of the mean [{low}, {high}]"


def show_change(tried: Sequence[Tried]) -> str | None:
    """The last setting's score minus the one before it, episode by episode; None if they are not comparable."""
    if len(tried) < 2 or tried[-1].episodes != tried[-2].episodes or tried[-1].cell.options == tried[-2].cell.options:
        return None
    difference = float((tried[-1].scores - tried[-2].scores).mean())
    low, high = (show_number(end) for end in paired_interval(tried[-1].scores, tried[-2].scores))
    sign, before = "+" if difference >= 0 else "", show_options(tried[-2].cell.options)
    return f"{sign}{show_number(difference)} [{low}, {high}] against {before} on the same episodes"


def table(tried: Sequence[Tried]) -> list[dict]:
    """The rows of all presses of Run, the latest first, with numbers as they are shown."""
    rows = [{"#": number, **one.row, "first seed": one.cell.seed} for number, one in enumerate(tried, 1)]
    return [
        {name: show_number(value) if isinstance(value, float) else value for name, value in row.items()}
        for row in reversed(rows)
    ]


def draw_curve(tried: Sequence[Tried], path: Path, score_name: str, reference_lines: Mapping[str, float]) -> None:
    """Draws as PNG what was tried on the last one's episodes, once each, against the agent's first act option."""
    comparable = {tuple(one.cell.options.items()): one.row for one in tried if one.episodes == tried[-1].episodes}
    option, *others = tried[-1].cell.options
    plot_sweep(list(comparable.values()), path, score_name, reference_lines, option, others)


# ---- The session ----


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A run folder with what it holds and what its agent acts in."""

    folder: Path
    algorithm: Algorithm
    run: RunConfig
    config: Any
    agent: Any
    task: Task


class Stoppable(gymnasium.Wrapper):
    """Raises UserError, which passes through the evaluation, at the step after `stopping` is set."""

    def __init__(self, environment: gymnasium.Env, stopping: threading.Event):
        super().__init__(environment)
        self.stopping = stopping

    def step(self, action: np.ndarray) -> tuple:
        if self.stopping.is_set():
            raise UserError("stopped: the unfinished part left nothing behind")
        return self.env.step(action)


def stoppable(make_env: Callable[..., gymnasium.Env], stopping: threading.Event) -> Callable[..., gymnasium.Env]:
    """make_env with stoppable environments; its signature, which tells how it draws, stays."""

    @functools.wraps(make_env, updated=())
    def make_stoppable_env(**options: Any) -> gymnasium.Env:
        return Stoppable(make_env(**options), stopping)

    return make_stoppable_env


class Session:
    """Runs what the page asks for. media: folder for pictures; no_pictures: why there are none, None if there are.

    status: what is going on, in one line. error: one sentence about the last press of Run, None if all went well.
    version: rises with everything new that there is to show.
    """

    def __init__(self, run: LoadedRun, media: Path, no_pictures: str | None = None):
        self.run, self.media, self.no_pictures = run, media, no_pictures
        self.options = own_options(run.algorithm.agent_class, run.config)
        self.stopping = threading.Event()
        self.make_env = stoppable(run.task.make_env, self.stopping)
        self.evaluator = Evaluator(self.make_env, run.run.eval_environments)
        self.tried: list[Tried] = []
        self.curve: Path | None = None
        self.busy, self.status, self.error, self.version = False, "choose a setting and press Run", None, 0
        self.thread = ThreadPoolExecutor(1, "rollouts", initializer=set_up_torch, initargs=(run.run,))

    def start(self, values: dict[str, Any], seed: float | None, episodes: float | None) -> None:
        """Begins the rollouts of the page's fields; a field that is wrong only sets `error`."""
        if self.busy:
            return
        try:
            options = decode_options(values, self.run.algorithm.agent_class, self.run.config)
            if seed is None or episodes is None or seed < 0 or episodes < 1:
                raise UserError("episodes start at 1, the first seed at 0")
        except UserError as error:
            self.error = str(error)
            return
        self.busy, self.error = True, None
        self.stopping.clear()
        self.thread.submit(self._run, options, int(seed), int(episodes))

    def stop(self) -> None:
        """Ends the rollouts at their next step."""
        self.stopping.set()

    def close(self) -> None:
        """Ends the rollouts and their thread."""
        self.stop()
        self.thread.shutdown()
        self.evaluator.close()

    def _run(self, options: dict, seed: int, episodes: int) -> None:
        try:
            self.status = f"evaluating {episodes} episodes"
            self._evaluate(options, seed, episodes)
            if self.no_pictures is None:
                self.status = f"drawing the episode with seed {seed}"
                self._draw()
        except NoPictures as error:
            self.no_pictures = str(error)
        except UserError as error:
            self.error = str(error)
        except Exception as error:  # a defect, or a simulator's: the page shows a sentence, the terminal the rest
            traceback.print_exc()
            sentence = (str(error).strip().splitlines() or ["no message"])[-1]
            self.error = f"{type(error).__name__}: {sentence} (the terminal shows where)"
        finally:
            self.busy, self.status = False, "ready"
            self.version += 1

    def _evaluate(self, options: dict, seed: int, episodes: int) -> None:
        agent, task = self.run.agent, self.run.task
        cell = evaluate_cell(agent, self.evaluator, options, episodes, seed)
        self.tried.append(Tried(cell, rows_of([cell], task)[0], cell.result.scores(task.score_name)))
        if options:
            path = self.media / f"curve_{len(self.tried)}.png"  # a new name, so that the browser fetches it
            draw_curve(self.tried, path, task.score_name, task.reference_scores())
            self.curve = path
        self.version += 1

    def _draw(self) -> None:
        """Draws the first episode of the last setting."""
        last = self.tried[-1]
        folder = self.media / f"run_{len(self.tried)}"  # a new name, as of the curve
        (path,), result = record(self.run.agent, self.make_env, 1, folder, last.cell.seed, **last.cell.options)
        score = float(result.scores(self.run.task.score_name)[0])
        self.tried[-1] = dataclasses.replace(last, picture=path, drawn_score=score)
