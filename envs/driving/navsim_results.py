"""Reads the result files of NAVSIM's official scoring scripts: which version wrote each, and the scores x 100 it holds.

python -m envs.driving.navsim_results RESULT.csv RESULT.csv

Prints a table for each kind of score, since none can be compared with another: PDMS of version 1; EPDMS of one stage;
EPDMS of two stages, whose versions combine them in different ways.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from common.errors import CommandParser, UserError, exit_on_user_error

FIX = "give a csv of run_pdm_score.py or run_pdm_score_one_stage.py"
V2_0 = ("average_all_frames", "pseudo_closed_loop", "average_expert_frames")
V2_1 = ("average_all_frames_extended_pdm_score", "average_expert_frames_extended_pdm_score", "extended_pdm_score")
COMBINED = "the stages weighted into one mean"
ONE_STAGE_V2_0 = ("EPDMS, NAVSIM v2.0, one stage", "history_comfort", {"EPDMS": V2_0[0]}, V2_0)
LAYOUTS = (  # title, a column of the file, {heading: token of the row that holds the score}, tokens of all such rows
    ("PDMS, NAVSIM v1.1", "comfort", {"PDMS": "average"}, ("average",)),
    ("EPDMS, NAVSIM v2.0, two stages", "history_comfort", {COMBINED: V2_0[1]}, V2_0),
    ONE_STAGE_V2_0,
    ("EPDMS, NAVSIM v2.1 or v2.1.1, two stages", "history_comfort", {COMBINED: V2_1[2]}, V2_1),
    (
        "EPDMS, NAVSIM v2.1.2 or v2.2, two stages",
        "history_comfort_stage_one",
        {
            "stage one": "extended_pdm_score_stage_one",
            "stage two": "extended_pdm_score_stage_two",
            "mean product of the stages": "extended_pdm_score_combined",
        },
        tuple(f"extended_pdm_score_{part}" for part in ("stage_one", "stage_two", "combined")),
    ),
    ("EPDMS, NAVSIM v2.1 to v2.2, one stage", "two_frame_extended_comfort", {"EPDMS": V2_0[0]}, V2_0[:1]),
)
SUMMARIES = {token for *_, tokens in LAYOUTS for token in tokens}


@dataclass(frozen=True)
class Result:
    """What a file holds: its layout's title, scores in [0, 1] by heading, how many scenes and how many failed."""

    title: str
    scores: dict[str, float]
    scenes: int
    failed: int


def read_result(path: Path) -> Result:
    """The result in a file. Raises UserError for another file and for one whose stages NAVSIM could not combine."""
    try:
        rows = pd.read_csv(path, encoding="utf-8-sig", dtype={"token": str, "valid": str})
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors, as those of the text's encoding
        raise UserError(f"{path}: cannot be read ({error}); {FIX}") from error
    if not {"token", "valid", "score"} <= set(rows.columns):
        raise UserError(f"{path}: is no result of NAVSIM's scoring scripts; {FIX}")
    is_summary = rows["token"].isin(SUMMARIES)
    scenes, summary = rows[~is_summary], rows[is_summary].drop_duplicates("token", keep="last").set_index("token")
    fitting = [each for each in LAYOUTS if set(each[3]) == set(summary.index) and each[1] in rows]
    if not fitting:
        raise UserError(f"{path}: its layout is of none of NAVSIM's versions 1.1 to 2.2; {FIX}")
    if fitting[-1] is ONE_STAGE_V2_0:  # all its frames are of the first stage, which was not combined with another
        everything, stages, first = (summary.loc[token] for token in V2_0)
        one_stage = stages["valid"] != "True" and everything["score"] == first["score"]
        fitting = fitting[1:] if one_stage else fitting[:1]
    title, _, tokens, _ = fitting[0]
    if "two stages" in title and (summary.loc[list(tokens.values()), "valid"] != "True").any():
        raise UserError(f"{path}: NAVSIM could not combine its two stages (valid is False): see its log")
    scores = {heading: float(summary.loc[token, "score"]) for heading, token in tokens.items()}
    if pd.isna(list(scores.values())).any():
        raise UserError(f"{path}: holds no score, no scene was scored: see the log of NAVSIM's script")
    return Result(title, scores, len(scenes), int((scenes["valid"] != "True").sum()))


def tables(results: dict[Path, Result]) -> str:
    """A table in Markdown for each layout, in the order of LAYOUTS."""
    texts = []
    for title, *_ in LAYOUTS:
        chosen = {path: result for path, result in results.items() if result.title == title}
        if chosen:
            headings = [title, *next(iter(chosen.values())).scores, "scenes", "failed"]
            lines = [headings, ["---"] * len(headings)]
            for path, result in chosen.items():
                lines.append([path, *(f"{100 * s:.1f}" for s in result.scores.values()), result.scenes, result.failed])
            texts.append("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))
    return "\n\n".join(texts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = CommandParser("python -m envs.driving.navsim_results", __doc__)
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.csv")
    with exit_on_user_error():
        print(tables({path: read_result(path) for path in parser.parse_args(arguments).results}))


if __name__ == "__main__":
    main()
