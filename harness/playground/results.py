"""What was tried in a session: its scores, the change between two settings, the table and the curve of all."""

import dataclasses
from pathlib import Path
from typing import Optional, Sequence

import numpy as np

from harness.plots import plot_sweep
from harness.score_statistics import CONFIDENCE, interval


@dataclasses.dataclass(frozen=True, eq=False)
class Tried:
    """One press of Run. options: the act options; row: as of `harness.sweep.sweep`; scores [n]: of its episodes.

    seed: of the first episode, which is the one that is drawn. picture: mp4 or PNG, None until it is drawn;
    drawn_score: of the drawn episode.
    """

    options: dict
    seed: int
    row: dict
    scores: np.ndarray
    picture: Optional[Path] = None
    drawn_score: Optional[float] = None

    @property
    def episodes(self) -> tuple[int, int]:
        """(first seed, number): equal for settings that were tried on the same episodes."""
        return self.seed, len(self.scores)


def show_number(value: float, score_name: str) -> str:
    """A score, or a difference of scores, with the decimals that its size deserves."""
    return f"{value:.2f}" if score_name == "success" or abs(value) < 10 else f"{value:.1f}"


def show_options(options: dict) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in options.items()) or "the agent as it is"


def show_score(tried: Tried, score_name: str) -> str:
    """Mean, standard deviation and interval in one line."""
    columns = (score_name, *(f"{score_name}_{part}" for part in ("std", "low", "high")))
    mean, std, low, high = (show_number(tried.row[column], score_name) for column in columns)
    if len(tried.scores) == 1:
        return f"{mean} (one episode)"
    return f"{mean} ± {std} over {len(tried.scores)} episodes, {CONFIDENCE:.0%} interval of the mean [{low}, {high}]"


def show_change(tried: Sequence[Tried], score_name: str) -> Optional[str]:
    """The last setting's score minus the one before it, episode by episode; None where they are not comparable."""
    if len(tried) < 2 or tried[-1].episodes != tried[-2].episodes or tried[-1].options == tried[-2].options:
        return None
    differences = tried[-1].scores - tried[-2].scores
    low, high = interval([differences])
    mean, low, high = (show_number(value, score_name) for value in (differences.mean(), low, high))
    sign = "" if mean.startswith("-") else "+"
    spread = f", {CONFIDENCE:.0%} interval [{low}, {high}]" if len(differences) > 1 else ""
    return f"{sign}{mean} against {show_options(tried[-2].options)} on the same episodes{spread}"


def table(tried: Sequence[Tried], score_name: str) -> list[dict[str, str]]:
    """A row of texts by column title for each press of Run, the latest first."""
    rows = []
    for number, one in reversed(list(enumerate(tried, 1))):
        low, high = (show_number(one.row[f"{score_name}_{end}"], score_name) for end in ("low", "high"))
        rows.append(
            {
                "#": str(number),
                **{name: f"{value:g}" for name, value in one.options.items()},
                score_name: show_number(one.row[score_name], score_name),
                f"{CONFIDENCE:.0%} interval": f"[{low}, {high}]" if len(one.scores) > 1 else "",
                "std": show_number(one.row[f"{score_name}_std"], score_name),
                "length": f"{one.row['length']:.0f}",
                "episodes": str(len(one.scores)),
                "first seed": str(one.seed),
                "network evaluations": str(one.row["network_evaluations"]),
            }
        )
    return rows


def curve_rows(tried: Sequence[Tried]) -> list[dict]:
    """The rows of every setting that was tried on the last one's episodes, once each."""
    comparable = {tuple(one.options.items()): one.row for one in tried if one.episodes == tried[-1].episodes}
    return list(comparable.values())


def draw_curve(tried: Sequence[Tried], path: Path, score_name: str, reference_lines: dict[str, float]) -> None:
    """Draws the score against the agent's first act option, greediness where it has it, as PNG."""
    plot_sweep(curve_rows(tried), path, score_name, reference_lines, option=next(iter(tried[-1].options)))
