"""A run's episodes.csv: the scores of single episodes by act options and the episode's seed, for tests of one's own.

Columns: every act option, `seed` (of the environment's reset; equal seeds are equal episodes), `return`, `success`
(empty where the environment has none) and `length`. Evaluations add their rows and replace those of the same options
and seeds; a run that is trained on begins the file anew.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from common.errors import UserError, one_line
from common.files import write_text
from harness import run_files

SCORES = ("return", "success", "length")


def read_episodes(folder: Path) -> pd.DataFrame:
    """The rows of a run's episodes.csv, none where there is no file. Raises UserError for a damaged one."""
    path = folder / run_files.EPISODES
    if not path.exists():
        return pd.DataFrame(columns=["seed", *SCORES])
    try:
        episodes = pd.read_csv(path)
        episodes[["seed", *SCORES]]
    except (ValueError, KeyError) as error:  # pandas' own errors are of these types
        raise UserError(f"{path}: is damaged ({one_line(error)}); delete it, and evaluations write it again") from error
    return episodes


def add_episodes(folder: Path, options: dict[str, Any], result: Any, first_seed: int) -> None:
    """Adds an evaluation's episodes, of the seeds from `first_seed` on; result: an EvaluationResult."""
    path = folder / run_files.EPISODES
    scores = {"return": result.returns, "success": result.successes, "length": result.lengths}
    seeds = range(first_seed, first_seed + len(result.returns))
    rows = pd.DataFrame({**options, "seed": seeds} | {name: pd.Series(values) for name, values in scores.items()})
    if path.exists():
        rows = pd.concat([read_episodes(folder), rows]).drop_duplicates([*options, "seed"], keep="last")
    write_text(path, rows.to_csv(index=False, float_format="%.9g", lineterminator="\n"))


def episode_scores(folder: Path, options: dict[str, Any], score_name: str) -> pd.Series:
    """A run's scores at these act options by the episodes' seeds; empty without any."""
    episodes = read_episodes(folder)
    for name, value in options.items():
        episodes = episodes[episodes[name] == value] if name in episodes else episodes.iloc[:0]
    return episodes.set_index("seed")[score_name]
