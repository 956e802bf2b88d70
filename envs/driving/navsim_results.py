"""Reads the result files of NAVSIM's official scoring scripts and says which score each holds, times 100.

python -m envs.driving.navsim_results RESULT.csv RESULT.csv

Version 1 gives PDMS, version 2 EPDMS: they are never in one table.
"""

import csv
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from common.errors import CommandParser, UserError, exit_on_user_error

SUMMARY_ROWS = {  # metric: tokens of the row with a file's overall score
    "PDMS": ("average",),
    "EPDMS": ("average_all_frames", "extended_pdm_score_combined"),
}
ONLY_IN_EPDMS = ("history_comfort", "two_frame_extended_comfort", "traffic_light_compliance")
ONLY_IN_PDMS = ("comfort",)


def read_result(path: Path) -> Tuple[str, float, int, int]:
    """(metric, score in [0, 1], scenes, scenes that failed) of a result file. Raises UserError for another file."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a csv of run_pdm_score.py") from error
    metric = _metric(list(rows[0]) if rows else [])
    totals = [row for row in rows if metric and row["token"] in SUMMARY_ROWS[metric]]
    if metric is None or len(totals) != 1:
        raise UserError(f"{path}: is no result of NAVSIM's scoring scripts; give a csv of run_pdm_score.py")
    try:
        score = float(totals[0]["score"])
    except ValueError as error:
        raise UserError(f"{path}: its score is {totals[0]['score']!r}, no scene was scored") from error
    scenes = [row for row in rows if row is not totals[0] and not _is_summary(row["token"])]
    return metric, score, len(scenes), sum(row["valid"] != "True" for row in scenes)


def _is_summary(token: str) -> bool:
    """Version 2 writes several rows beside those of scenes, whose tokens are hexadecimal."""
    return token.startswith(("average", "extended_pdm_score"))


def _metric(columns: List[str]) -> Optional[str]:
    """PDMS or EPDMS by the columns of a file, None for a file without a score."""
    if not {"token", "valid", "score"} <= set(columns):
        return None
    if any(column.startswith(ONLY_IN_EPDMS) for column in columns):
        return "EPDMS"
    return "PDMS" if set(ONLY_IN_PDMS) <= set(columns) else None


def read_results(paths: Sequence[Path]) -> Tuple[str, Dict[Path, Tuple[float, int, int]]]:
    """(metric, {path: (score, scenes, failed)}) of files of one metric. Raises UserError where they have two."""
    results = {path: read_result(path) for path in paths}
    metrics = {result[0]: path for path, result in results.items()}
    if len(metrics) > 1:
        raise UserError(
            f"{metrics['PDMS']} holds PDMS (version 1), {metrics['EPDMS']} EPDMS (version 2): they are different "
            "scores, give files of one"
        )
    return next(iter(metrics)), {path: result[1:] for path, result in results.items()}


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = CommandParser("python -m envs.driving.navsim_results", __doc__)
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.csv")
    with exit_on_user_error():
        metric, results = read_results(parser.parse_args(arguments).results)
        print(f"| result | {metric} | scenes | failed |\n|---|---|---|---|")
        for path, (score, scenes, failed) in results.items():
            print(f"| {path} | {100 * score:.1f} | {scenes} | {failed} |")


if __name__ == "__main__":
    main()
