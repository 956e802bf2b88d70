"""What was tried in a session: its scores, the change between two settings, the table and the curve of all."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from envs.task import Task
from harness.evaluate import Cell, rows_of
from harness.plots import plot_sweep
from harness.score_statistics import CONFIDENCE, paired_interval


@dataclasses.dataclass(frozen=True, eq=False)
class Tried:
    """One press of Run. row: of `harness.evaluate.rows_of`, for this cell alone.

    picture: mp4 or PNG of the first episode, None until it is drawn; drawn_score: of that episode.
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


def tried_of(cell: Cell, task: Task) -> Tried:
    return Tried(cell, rows_of([cell], task)[0], cell.result.scores(task.score_name))


def show_number(value: float, score_name: str) -> str:
    """A score, or a difference of scores, with the decimals that its size deserves."""
    return f"{value:.2f}" if score_name == "success" or abs(value) < 10 else f"{value:.1f}"


def show_options(options: Mapping) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in options.items()) or "the agent as it is"


def show_score(tried: Tried, score_name: str) -> str:
    """Mean, standard deviation and interval in one line."""
    columns = (score_name, *(f"{score_name}_{part}" for part in ("std", "low", "high")))
    mean, std, low, high = (show_number(tried.row[column], score_name) for column in columns)
    if len(tried.scores) == 1:
        return f"{mean} (one episode)"
    return f"{mean} ± {std} over {len(tried.scores)} episodes, {CONFIDENCE:.0%} interval of the mean [{low}, {high}]"


def show_change(tried: Sequence[Tried], score_name: str) -> str | None:
    """The last setting's score minus the one before it, episode by episode; None if they are not comparable."""
    if len(tried) < 2 or tried[-1].episodes != tried[-2].episodes or tried[-1].cell.options == tried[-2].cell.options:
        return None
    difference = float((tried[-1].scores - tried[-2].scores).mean())
    bounds = paired_interval(tried[-1].scores, tried[-2].scores)
    mean, low, high = (show_number(value, score_name) for value in (difference, *bounds))
    sign = "" if mean.startswith("-") else "+"
    spread = f", {CONFIDENCE:.0%} interval [{low}, {high}]" if len(tried[-1].scores) > 1 else ""
    return f"{sign}{mean} against {show_options(tried[-2].cell.options)} on the same episodes{spread}"


def table(tried: Sequence[Tried], score_name: str) -> list[dict[str, str]]:
    """A row of texts by column title for each press of Run, the latest first."""
    rows = []
    for number, one in reversed(list(enumerate(tried, 1))):
        low, high = (show_number(one.row[f"{score_name}_{end}"], score_name) for end in ("low", "high"))
        rows.append(
            {
                "#": str(number),
                **{name: f"{value:g}" for name, value in one.cell.options.items()},
                score_name: show_number(one.row[score_name], score_name),
                f"{CONFIDENCE:.0%} interval": f"[{low}, {high}]" if len(one.scores) > 1 else "",
                "std": show_number(one.row[f"{score_name}_std"], score_name),
                "length": f"{one.row['length']:.0f}",
                "episodes": str(len(one.scores)),
                "first seed": str(one.cell.seed),
                "network evaluations": f"{one.cell.network_evaluations:g}",
            }
        )
    return rows


def curve_rows(tried: Sequence[Tried]) -> list[dict]:
    """The rows of every setting that was tried on the last one's episodes, once each."""
    comparable = {tuple(one.cell.options.items()): one.row for one in tried if one.episodes == tried[-1].episodes}
    return list(comparable.values())


def draw_curve(tried: Sequence[Tried], path: Path, score_name: str, reference_lines: Mapping[str, float]) -> None:
    """Draws the score against the agent's first act option as PNG."""
    option, *others = tried[-1].cell.options
    plot_sweep(curve_rows(tried), path, score_name, reference_lines, option, others)
