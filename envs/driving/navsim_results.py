"""Reads the result files of NAVSIM's official scoring scripts: which version wrote each, and the scores x 100 it holds.

python -m envs.driving.navsim_results RESULT.csv RESULT.csv

Prints a table for each kind of score, since none can be compared with another: PDMS of version 1; EPDMS of one stage;
EPDMS of two stages, whose versions combine them in different ways.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from common.errors import CommandParser, UserError, exit_on_user_error

FIX = "give a csv of run_pdm_score.py or run_pdm_score_one_stage.py"


@dataclass(frozen=True)
class Layout:
    """A kind of result file: its title, a column that it has, and the tokens of the rows that hold its scores."""

    title: str
    column: str
    scores: Dict[str, str]  # heading: token
    others: Tuple[str, ...] = ()  # tokens of rows that hold other averages


COMBINED = "the stages weighted into one mean"
V2_0 = ("average_all_frames", "pseudo_closed_loop", "average_expert_frames")
V2_1 = ("average_all_frames_extended_pdm_score", "average_expert_frames_extended_pdm_score", "extended_pdm_score")
LAYOUTS = (
    Layout("PDMS, NAVSIM v1.1", "comfort", {"PDMS": "average"}),
    Layout("EPDMS, NAVSIM v2.0, two stages", "history_comfort", {COMBINED: V2_0[1]}, (V2_0[0], V2_0[2])),
    Layout("EPDMS, NAVSIM v2.1 or v2.1.1, two stages", "history_comfort", {COMBINED: V2_1[2]}, V2_1[:2]),
    Layout(
        "EPDMS, NAVSIM v2.1.2 or v2.2, two stages",
        "history_comfort_stage_one",
        {
            "stage one": "extended_pdm_score_stage_one",
            "stage two": "extended_pdm_score_stage_two",
            "mean product of the stages": "extended_pdm_score_combined",
        },
    ),
    Layout("EPDMS, NAVSIM v2.1 to v2.2, one stage", "two_frame_extended_comfort", {"EPDMS": "average_all_frames"}),
)
ONE_STAGE_V2_0 = Layout("EPDMS, NAVSIM v2.0, one stage", "history_comfort", {"EPDMS": V2_0[0]}, V2_0[1:])
SUMMARIES = {token for each in LAYOUTS for token in (*each.scores.values(), *each.others)}


@dataclass(frozen=True)
class Result:
    """What a file holds: scores in [0, 1] by heading, how many scenes and how many of them failed."""

    layout: Layout
    scores: Dict[str, float]
    scenes: int
    failed: int


def read_result(path: Path) -> Result:
    """The result in a file. Raises UserError for another file and for one whose stages NAVSIM could not combine."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); {FIX}") from error
    if not rows or not {"token", "valid", "score"} <= set(rows[0]):
        raise UserError(f"{path}: is no result of NAVSIM's scoring scripts; {FIX}")
    summary = {row["token"]: row for row in rows if row["token"] in SUMMARIES}
    layout = _layout(summary, list(rows[0]))
    if layout is None:
        raise UserError(f"{path}: its layout is of none of NAVSIM's versions 1.1 to 2.2; {FIX}")
    if "two stages" in layout.title and any(summary[token]["valid"] != "True" for token in layout.scores.values()):
        raise UserError(f"{path}: NAVSIM could not combine its two stages (valid is False): see its log")
    scores = {heading: _number(summary[token]["score"]) for heading, token in layout.scores.items()}
    if any(math.isnan(score) for score in scores.values()):
        raise UserError(f"{path}: holds no score, no scene was scored: see the log of NAVSIM's script")
    scenes = [row for row in rows if row["token"] not in SUMMARIES]
    return Result(layout, scores, len(scenes), sum(row["valid"] != "True" for row in scenes))


def _layout(summary: Dict[str, Dict[str, str]], columns: List[str]) -> Optional[Layout]:
    """The layout of a file by its rows that are no scenes and by its columns."""
    for layout in LAYOUTS:
        if set(summary) == {*layout.scores.values(), *layout.others} and layout.column in columns:
            everything, stages, first = (summary.get(token) for token in V2_0)
            if stages and stages["valid"] != "True" and everything["score"] == first["score"]:
                return ONE_STAGE_V2_0  # all its frames are of the first stage
            return layout
    return None


def _number(text: str) -> float:
    return float(text) if text else math.nan


def tables(results: Dict[Path, Result]) -> str:
    """A table in Markdown for each layout, in the order of LAYOUTS."""
    texts = []
    for layout in (*LAYOUTS, ONE_STAGE_V2_0):
        chosen = {path: result for path, result in results.items() if result.layout is layout}
        if chosen:
            headings = [layout.title, *layout.scores, "scenes", "failed"]
            lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
            for path, result in chosen.items():
                cells = [f"{100 * score:.1f}" for score in result.scores.values()]
                lines.append(f"| {' | '.join([str(path), *cells, str(result.scenes), str(result.failed)])} |")
            texts.append("\n".join(lines))
    return "\n\n".join(texts)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = CommandParser("python -m envs.driving.navsim_results", __doc__)
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.csv")
    with exit_on_user_error():
        print(tables({path: read_result(path) for path in parser.parse_args(arguments).results}))


if __name__ == "__main__":
    main()
