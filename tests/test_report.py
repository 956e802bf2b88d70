"""The report of a comparison, from run folders made by tests/comparison_folders.py."""

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from common.errors import UserError
from harness.comparison.matrix import Row, Variant
from harness.comparison.protocol import check_protocol
from harness.comparison.results import CROSSED_OPTION, RETURN, SUCCESS, Results, scale_of, with_candidates
from harness.episodes import add_episodes, read_episodes
from harness.evaluation import EvaluationResult
from harness.report import plots
from harness.report.blocks import Block, Bold
from harness.report.published import load_published
from harness.report.report import escaped, to_markdown, write_report
from harness.report.settings import policy_block, problem_block
from harness.report.tables import (
    act_option_block,
    aggregate_block,
    improvement_block,
    online_block,
    score_block,
    score_table,
    summary,
    summary_cells,
    to_latex,
)
from harness.score_statistics import interval
from tests.comparison_folders import LOCAL, Data, comparison_of, cube_double, fill, walker, write_run

ROOT = Path(__file__).resolve().parents[1]
DIPOLE, FQL = Variant("dipole", "dipole", {}), Variant("fql", "fql", {})
ABLATION = Variant("exp_weighted", "dipole", {"weighting": "exponential"})
ROWS = [
    Row("dipole", DIPOLE, {"num_candidates": 1}),
    Row("dipole", DIPOLE, {"num_candidates": 32}),
    Row("fql", FQL, {}),
]
CARTPOLE = Data("exorl/local_x/cartpole_swingup", "cartpole", "return", LOCAL)
WALKER = [Data(f"exorl/rnd/walker_{task}", "walker", "return", walker(task)) for task in ("stand", "walk")]
CUBE = [
    Data(f"ogbench/cube-double-play-singletask-task{n}-v0", "cube-double-play", "success", cube_double(n))
    for n in range(1, 6)
]


def by_seed(run, cell):
    """100 for seed 0, 10 more for each seed after it; 30 less for FQL, 50 less for others with one candidate."""
    is_fql = run.variant.label == "fql"  # acts with one candidate by default
    return 100.0 + 10 * run.seed - (30 if is_fql else 50 * (cell.get("num_candidates") == 1))


def made_up(folder, data, seeds, score=by_seed, variants=(DIPOLE, FQL), rows=ROWS, **fields):
    comparison = comparison_of(folder, variants, rows, data, range(seeds), **fields)
    fill(comparison, data, score)
    return comparison


def run_named(comparison, name):
    (run,) = (run for run in comparison.runs if run.name == name)
    return run


def line(block, *beginning):
    """The table line that begins with these cells, as {column: cell}."""
    (found,) = [row for row in block.rows if tuple(row.values())[: len(beginning)] == beginning]
    return found


def task_block(results, data):
    return score_block(results, data.task, [data.task], level=3)


# ---- Scores ----


def test_five_seeds_give_mean_interval_and_standard_deviation(tmp_path):
    block = task_block(Results(made_up(tmp_path, [CARTPOLE], 5)), CARTPOLE)
    best = line(block, "DIPOLE", "32")
    seeds = np.array([100.0, 110.0, 120.0, 130.0, 140.0])
    low, high = interval([seeds])
    assert (best["final: mean"], best["final: std"], best["seeds"]) == ("120.0", f"{np.sqrt(250):.1f}", "5")
    assert best["final: 95% interval"] == f"{low:.1f} to {high:.1f}"
    assert best["network evaluations per action"] == "7"
    assert "locally generated" in block.text[0] and "mean episode 108.0" in block.text[0]


def test_bold_is_within_five_percent_of_the_best_of_its_own_column(tmp_path):
    scores = {("dipole", 1): 115.0, ("dipole", 32): 120.0, ("fql", 1): 113.9}
    comparison = made_up(tmp_path, [CARTPOLE], 5, lambda run, cell: scores[run.variant.label, cell["num_candidates"]])
    block = task_block(Results(comparison), CARTPOLE)
    means = [(row["final: mean"], isinstance(row["final: mean"], Bold)) for row in block.rows]
    assert means == [("115.0", True), ("120.0", True), ("113.9", False)]


def test_a_comparison_without_a_finished_run_has_a_report(tmp_path):
    comparison = made_up(tmp_path, [CARTPOLE], 2, lambda run, cell: None)
    write_report(comparison, comparison.out)
    assert "not begun" in (comparison.out / "report.md").read_text()


def test_settings_that_a_run_never_had_are_refused(tmp_path):
    comparison = made_up(tmp_path, [CARTPOLE], 1)
    run = comparison.runs[0]
    changed = dataclasses.replace(run, config=dataclasses.replace(run.config, learning_rate=0.5))
    with pytest.raises(UserError, match="config.yaml: this run has another learning_rate"):
        Results(dataclasses.replace(comparison, runs=(changed, *comparison.runs[1:])))


@pytest.mark.parametrize(
    "name, content", [("reevaluation.csv", b"hello\n1\n"), ("eval.csv", b"step,\xff\n"), ("train.csv", b"\xff\n")]
)
def test_damaged_files_of_a_run_are_named(tmp_path, name, content):
    comparison = made_up(tmp_path, [CARTPOLE], 1)
    (comparison.runs[0].folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: is damaged"):
        Results(comparison)


def test_the_mean_of_the_last_evaluations_exists_for_the_acting_of_training_only(tmp_path):
    block = task_block(Results(made_up(tmp_path, [CARTPOLE], 5)), CARTPOLE)
    assert line(block, "DIPOLE", "1")["last 3: mean"] == "–"
    assert line(block, "DIPOLE", "32")["last 3: mean"] == "90.0"  # 3/4 of the final score's 120
    assert line(block, "FQL", "1")["last 3: mean"] == "67.5"


def test_fewer_than_five_seeds_are_shown_one_by_one_without_bold_and_pairs(tmp_path):
    results = Results(made_up(tmp_path, [CARTPOLE], 4))
    block = task_block(results, CARTPOLE)
    assert line(block, "DIPOLE", "32")["final: each seed"] == "100.0, 110.0, 120.0, 130.0"
    assert not any("interval" in title or "std" in title for title in block.rows[0])
    assert not any(isinstance(cell, Bold) for row in block.rows for cell in row.values())
    assert improvement_block(results.scores) is None


def test_one_seed_is_its_own_mean(tmp_path):
    block = task_block(Results(made_up(tmp_path, [CARTPOLE], 1)), CARTPOLE)
    shown = line(block, "DIPOLE", "32")
    assert (shown["final: mean"], shown["final: each seed"], shown["seeds"]) == ("100.0", "100.0", "1")


def test_failed_and_missing_runs_are_listed_and_lower_the_number_of_seeds(tmp_path):
    comparison = made_up(
        tmp_path, [CARTPOLE], 5, lambda run, cell: None if run.variant == FQL and run.seed > 2 else by_seed(run, cell)
    )
    failed, absent = (run_named(comparison, f"fql/{CARTPOLE.task}/seed_{seed}") for seed in (3, 4))
    failed.folder.mkdir(parents=True)
    (failed.folder / "error.txt").write_text("Traceback\nerror: loss is nan after 30 updates\n")
    results = Results(comparison)
    assert [list(row.values()) for row in problem_block(results).rows] == [
        [failed.name, "failed", "error: loss is nan after 30 updates"],
        [absent.name, "not begun", "–"],
    ]
    block = task_block(results, CARTPOLE)
    shown = line(block, "FQL", "1")
    assert (shown["seeds"], shown["final: mean"]) == ("3 of 5", "80.0")
    assert shown["final: 95% interval, or each seed"] == "70.0, 80.0, 90.0"
    assert not any(
        isinstance(cell, Bold) for row in block.rows for cell in row.values()
    )  # the best might be the one with 3
    statuses = results.scores.loc[results.scores["label"] == "fql", "status"]
    assert list(statuses) == ["finished"] * 3 + ["failed", "not begun"]


def test_a_run_without_its_re_evaluation_is_listed(tmp_path):
    comparison = made_up(tmp_path, [CARTPOLE], 2)
    (comparison.runs[0].folder / "reevaluation.csv").unlink()
    results = Results(comparison)
    assert [row["state"] for row in problem_block(results).rows] == ["finished, not evaluated for DIPOLE, N = 1"]
    assert line(task_block(results, CARTPOLE), "DIPOLE", "1")["seeds"] == "1 of 2"
    assert line(task_block(results, CARTPOLE), "DIPOLE", "32")["seeds"] == "2"  # training's last evaluation is the same


def test_a_category_is_the_mean_over_its_tasks(tmp_path):
    level = {WALKER[0].task: 0.0, WALKER[1].task: 200.0}
    results = Results(made_up(tmp_path, WALKER, 5, lambda run, cell: by_seed(run, cell) + level[run.task]))
    shown = line(score_block(results, "walker", list(level), 3), "DIPOLE", "32")
    assert (shown["final: mean"], shown["final: std"]) == ("220.0", f"{np.sqrt(250):.1f}")
    low, high = interval([np.arange(100.0, 150.0, 10), np.arange(300.0, 350.0, 10)])
    assert shown["final: 95% interval"] == f"{low:.1f} to {high:.1f}"


def test_one_table_holds_every_task_and_category_with_the_datas_own_row(tmp_path):
    data = [CUBE[0], *WALKER, CARTPOLE]
    results = Results(
        made_up(tmp_path, data, 5, lambda run, cell: 0.25 if run.task == CUBE[0].task else 100.0 + run.seed)
    )
    lines = summary(results)
    cells, bold = summary_cells(lines)
    assert list(cells.index) == ["data, mean episode", "data, best episode", "DIPOLE, N = 1", "DIPOLE, N = 32", "FQL"]
    assert cells.loc["FQL", "cube-double-play-singletask-task1-v0 (success, %)"] == "25.0 ± 0.0 [25.0, 25.0]"
    assert cells.loc["FQL", "walker: mean (return)"].startswith("102.0 ± 1.6 [")
    assert cells.loc["data, mean episode", "cartpole_swingup (return)"] == "108.0"
    assert cells.loc["data, mean episode", "walker_walk (return)"] == "–"
    assert bold.loc["FQL"].all() and not bold.loc["data, mean episode"].any()
    more = summary_cells(summary(Results(made_up(tmp_path / "more", [*data, *CUBE[1:]], 1))))[0]
    assert list(more.columns) == list(cells.index)  # the longer side, here the tasks, runs down
    latex = to_latex(lines)
    assert latex.count("\\toprule") == latex.count("\\bottomrule") == 1 and "success, \\%" in latex
    assert r"\textbf{25.0 $\pm$ 0.0 [25.0, 25.0]}" in latex and "walker\\_walk" in latex


# ---- Scales and aggregates ----


def test_scales():
    assert scale_of("success", {}).shown(0.5) == 50.0 and scale_of("success", {}).normalised(0.5) == 0.5
    jaco = scale_of("return", {"score_range": [0.0, 250.0]})
    assert (jaco.shown(100.0), jaco.normalised(100.0)) == (100.0, 0.4)
    d4rl = scale_of("return", {"reference_returns": {"min": -20.0, "max": 180.0}})
    assert d4rl.shown(80.0) == pytest.approx(50.0) and d4rl.normalised(80.0) == pytest.approx(0.5)
    assert np.isnan(scale_of("return", {}).normalised(1.0)) and scale_of("return", {}).shown(1.0) == 1.0


def test_interquartile_mean_and_optimality_gap_over_tasks(tmp_path):
    # Normalised: 0.1 to 0.14 on one task, 0.6 to 0.64 on the other. The middle 6 of 10 runs: .12 .13 .14 .60 .61 .62.
    level = {WALKER[0].task: 0.0, WALKER[1].task: 500.0}
    results = Results(made_up(tmp_path, WALKER, 5, lambda r, c: by_seed(r, c) + level[r.task]))
    block = aggregate_block(results.scores)
    shown = block.rows[1]
    assert shown["final: IQM"] == f"{(0.12 + 0.13 + 0.14 + 0.60 + 0.61 + 0.62) / 6:.3f}"
    assert shown["final: optimality gap"] == "0.630" and shown["runs"] == "10"
    assert block.rows[0]["last evaluations: IQM"] == "–"


def test_aggregates_say_what_they_leave_out(tmp_path):
    unscaled = Data("exorl/local_y/x", "other", "return", {**LOCAL, "score_range": [0.0, float("nan")]})
    absent = Data("exorl/rnd/walker_run", "walker", "return", walker("run"))
    comparison = made_up(
        tmp_path,
        [*WALKER, absent, unscaled],
        2,
        lambda run, cell: None if run.variant == FQL and run.task == absent.task else by_seed(run, cell),
    )
    text = " ".join(aggregate_block(Results(comparison).scores).text)
    assert "2 of 4 tasks" in text
    assert f"no range to normalise with: {absent.task}, {unscaled.task}." in text


def test_one_task_has_no_aggregates(tmp_path):
    assert aggregate_block(Results(made_up(tmp_path, [CARTPOLE], 5)).scores) is None


def test_probability_of_improvement_is_that_of_all_pairs_of_seeds(tmp_path):
    # DIPOLE N = 32: 100 to 140; FQL: 70 to 110. DIPOLE is higher in 22 of 25 pairs and equal in 2.
    rows = improvement_block(Results(made_up(tmp_path, [CARTPOLE], 5)).scores).rows
    assert [row["policy"] for row in rows] == ["DIPOLE, N = 1", "DIPOLE, N = 32", "FQL"]
    point, low, high = (float(text) for text in re.findall(r"[\d.]+", rows[1]["3"]))
    assert point == (22 + 0.5 * 2) / 25 and low < point <= high
    assert rows[2]["2"] == f"{1 - point:.2f} ({1 - high:.2f} to {1 - low:.2f})"


# ---- Published numbers ----


def test_published_scores_stand_beside_the_same_method_and_number_of_candidates(tmp_path):
    rows = [*ROWS, Row("exp_weighted", ABLATION, {"num_candidates": 32})]
    comparison = made_up(tmp_path, WALKER, 5, variants=(DIPOLE, FQL, ABLATION), rows=rows)
    block = task_block(Results(comparison), WALKER[0])
    shown = [(row["policy"], row["N"], row["published [a]"]) for row in block.rows]
    assert shown == [
        ("DIPOLE", "1", "793±11"),
        ("DIPOLE", "32", "953±4"),
        ("FQL", "1", "801±4"),
        ("exp_weighted", "32", "–"),
    ]
    assert "released RND data" in block.notes[0] and "Ours have 1,000 updates" in block.notes[0]
    assert "CFGRL 782±8" in block.notes[0] and "DIPOLE 953" not in block.notes[0]


def test_no_published_scores_beside_local_data(tmp_path):
    local = dataclasses.replace(WALKER[0], identity=walker("stand") | {"source": "locally generated"})
    other = dataclasses.replace(WALKER[1], identity=walker("walk") | {"collector": "proto"})
    results = Results(made_up(tmp_path, [local, other], 5))
    for data in (local, other):
        block = task_block(results, data)
        assert not block.notes and not any("published" in title for title in block.rows[0])


def test_published_categories_need_all_five_tasks_and_foreign_protocols_are_marked(tmp_path):
    results = Results(made_up(tmp_path, CUBE, 2, lambda run, cell: 0.5))
    tasks = [data.task for data in CUBE]
    block = score_block(results, "cube-double-play", tasks, 3)
    published = dict(list(block.rows[2].items())[-3:])
    assert published == {"published [a]": "29±2", "published [b]": "29", "published [c], not comparable": "46"}
    assert "NOT COMPARABLE: 10 critics" in block.notes[2]
    four = score_block(results, "cube-double-play", tasks[:4], 3)
    assert not any("published" in title for title in four.rows[0])
    assert line(task_block(results, CUBE[0]), "FQL", "1")["published [a]"] == "61"


def test_published_categories_are_the_means_of_their_tasks():
    tables = load_published()[1]
    per_task = next(table for table in tables if "cube-double-play/1" in table.scores)
    categories = [key for key in per_task.scores if "/" not in key]
    assert len(categories) == 10
    for category in categories:
        for method, text in per_task.scores[category].items():
            tasks = [float(per_task.scores[f"{category}/{number}"][method]) for number in range(1, 6)]
            assert float(text) == pytest.approx(np.mean(tasks), abs=1.01), (category, method)


# ---- The guard ----


def change_run(run, data, **changes):
    """Writes one run again with another config, data set or environment."""
    shutil.rmtree(run.folder)
    fields = {name: value for name, value in changes.items() if name in ("offline_steps", "eval_episodes")}
    odd = dataclasses.replace(run, run=dataclasses.replace(run.run, **fields))
    identity = data.identity | {name: changes[name] for name in ("sha256",) if name in changes}
    environment = {name: changes[name] for name in ("harness_version",) if name in changes}
    write_run(odd, dataclasses.replace(data, identity=identity), 100.0, [(run.own_cell(), 100.0)], **environment)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"offline_steps": 2000}, "offline_steps differs"),
        ({"eval_episodes": 3}, "eval_episodes differs"),
        ({"sha256": "9" * 64}, "data set differs"),
        ({"harness_version": 99}, "harness version differs"),
    ],
)
def test_runs_of_different_protocols_are_refused_or_marked(tmp_path, changes, named):
    comparison = made_up(tmp_path, [CARTPOLE], 3)
    odd = run_named(comparison, f"fql/{CARTPOLE.task}/seed_1")
    change_run(odd, CARTPOLE, **changes)
    results = Results(comparison)
    with pytest.raises(UserError, match=f"{named}.*{odd.name}.*--allow_mixed"):
        check_protocol(results, allow_mixed=False)
    found = check_protocol(results, allow_mixed=True)
    assert set().union(*(mixture.deviating for mixture in found)) == {odd.name}


def test_equal_protocols_pass(tmp_path):
    assert check_protocol(Results(made_up(tmp_path, [CARTPOLE, *WALKER], 2)), allow_mixed=False) == []


# ---- Online phase and tuning ----


def test_online_runs_have_a_table_from_before_to_after(tmp_path):
    results = Results(made_up(tmp_path, CUBE[1:2], 2, lambda run, cell: 0.4 + 0.2 * run.seed, online_steps=10))
    shown = line(online_block(results), CUBE[1].task, "fql")
    assert (shown["before"], shown["after"], shown["each seed"]) == ("25.0", "50.0", "20.0 → 40.0, 30.0 → 60.0")
    assert "40 -> 92" in shown["published"]
    assert online_block(Results(made_up(tmp_path / "offline", CUBE[1:2], 1))) is None


def test_curves_mark_where_the_online_phase_begins(tmp_path):
    made = {count: Results(made_up(tmp_path / str(count), CUBE[1:2], 2, online_steps=count)) for count in (0, 10)}
    texts = {count: plots.curve_blocks(results, tmp_path)[0].text[0] for count, results in made.items()}
    assert "Dotted: the first steps in the environment." in texts[10] and "Dotted" not in texts[0]
    assert plots.online_starts(made[10].runs) == {1000} and plots.online_starts(made[0].runs) == set()


def test_tuning_record_beside_the_config_is_shown(tmp_path):
    path = tmp_path / "fql.yaml"
    path.write_text("distillation_weight: 3.0\n")
    record = {"algorithm": "fql", "trials": 20, "task": "ogbench/tuned-on", "best_values": {"distillation_weight": 3.0}}
    path.with_suffix(".tuning.json").write_text(json.dumps(record))
    tuned = dataclasses.replace(FQL, settings=(str(path), None))
    for variant, trials, task in ((tuned, "20", "ogbench/tuned-on"), (FQL, "not tuned", "–")):
        row = Row("fql", variant, {})
        folder = tmp_path / trials
        results = Results(made_up(folder, [CARTPOLE], 1, distillation_weight=3.0, variants=(variant,), rows=[row]))
        shown = line(policy_block(results), "fql")
        assert (shown["tuning trials"], shown["tuned on"]) == (trials, task)


# ---- The files ----


def test_markup_in_names_is_shown_as_it_is():
    assert escaped("a|b *c* `d` <e> [f] snake_case") == r"a\|b \*c\* \`d\` \<e\> \[f\] snake_case"
    assert escaped(Bold("1.0")) == "**1.0**"
    table = Block("t", rows=[{"name": "a|b", "value": "1.0"}, {"name": "c", "value": "–"}])
    assert to_markdown([table]) == "## t\n\n| name | value |\n| --- | --- |\n| a\\|b | 1.0 |\n| c | – |\n"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a whole report with mixed runs, a failed one and an unfriendly description."""
    folder = tmp_path_factory.mktemp("report")
    comparison = made_up(
        folder,
        [CARTPOLE, *WALKER],
        5,
        lambda run, cell: None if run.name.endswith("stand/seed_4") else by_seed(run, cell),
    )
    comparison = dataclasses.replace(comparison, description="A <script>alert(1)</script> & more.")
    change_run(run_named(comparison, f"fql/{CARTPOLE.task}/seed_1"), CARTPOLE, offline_steps=2000)
    with pytest.raises(UserError):
        write_report(comparison, folder)
    paths = write_report(comparison, folder, allow_mixed=True)
    assert [path.name for path in paths] == ["report.md", "report.html", "scores.csv", "table.csv", "table.tex"]
    return folder


def test_markdown_holds_every_part_and_its_figures(report):
    text = (report / "report.md").read_text()
    for title in ("Missing runs", "Runs of different protocols", "Scores", "Over all tasks", "Protocol", "Data"):
        assert f"\n## {title}" in text
    figures = re.findall(r"\]\((figures/[^)]*\.png)\)", text)
    assert len(figures) == 4 and all((report / name).stat().st_size > 10_000 for name in figures)
    assert "| FQL † |" in text and "| DIPOLE † |" not in text


def test_html_is_one_file_that_loads_nothing_and_runs_nothing(report):
    html = (report / "report.html").read_text()
    assert html.count('src="data:image/png;base64,') == 4
    assert not re.search(r'(src|href)="(?!data:|#)', html) and "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more." in html
    assert html.count("<table>") == html.count("</table>") > 10


def test_csv_holds_one_line_for_each_row_task_and_seed(report):
    with open(report / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 3 * 5
    (shown,) = [
        row
        for row in rows
        if (row["label"], row["num_candidates"], row["task"], row["seed"]) == ("dipole", "1", WALKER[1].task, "3")
    ]
    assert (shown["final"], shown["last_evaluations"], shown["final_normalised"]) == ("80", "", "0.08")
    assert sum(row["status"] == "not begun" for row in rows) == 3


def test_the_same_folders_give_the_same_report(report):
    comparison = made_up(report / "again", [CARTPOLE], 5)
    write_report(comparison, comparison.out)
    first = [(comparison.out / name).read_bytes() for name in ("report.md", "report.html", "scores.csv")]
    write_report(comparison, comparison.out)
    assert first == [(comparison.out / name).read_bytes() for name in ("report.md", "report.html", "scores.csv")]


# ---- Committed reports ----


def load_scores(path: Path) -> pd.DataFrame:
    """The table of a scores.csv, of older ones too, which name no unit."""
    scores = pd.read_csv(path)
    if "unit" not in scores:
        scores["unit"] = scores["score_name"].map({"success": SUCCESS}).fillna(RETURN)
        scores["low"] = scores["high"] = np.nan
    scores = with_candidates(scores)
    if "policy" not in scores:
        scores["name"] = scores["label"]
        count = scores[CROSSED_OPTION].map(lambda value: "" if np.isnan(value) else f", N = {value:g}")
        scores["policy"] = scores["label"] + count
    return scores


def test_the_numbers_of_a_committed_report_follow_from_its_scores():
    """As they were written by an earlier version: every number of the score table, in its place."""
    folder = ROOT / "docs" / "results" / "compare-quickstart"
    scores = load_scores(folder / "scores.csv")
    (task,) = scores["task"].unique()
    rows = [list(row.items()) for row in score_table(scores, [task])]
    text = (folder / "report.md").read_text()
    lines = text[text.index(f"### {task}") :].split("\n\n")[2].splitlines()
    table = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    assert [title for title, _ in rows[0]] == table[0] and len(rows) == len(table) - 2
    assert [[cell for _, cell in row[1:]] for row in rows] == [row[1:] for row in table[2:]]


# ---- Act options ----


def test_options_of_one_training_are_compared_by_pairs(tmp_path):
    """Episodes that differ much, an option that is better on every one: the intervals of the two scores overlap."""
    comparison = made_up(tmp_path, [CARTPOLE], 2, variants=(DIPOLE,), rows=ROWS[:2])
    returns = np.linspace(0.0, 400.0, 20)
    for run in comparison.runs:
        for cell in comparison.cells(run)[1:]:
            better = 40.0 * (cell["num_candidates"] == 1) + 10.0 * (np.arange(20) % 2)
            result = EvaluationResult(returns + better, np.full(20, 10), None, 1.0)
            add_episodes(run.folder, cell, result, 1_000)
        own = EvaluationResult(returns, np.full(20, 10), None, 1.0)
        add_episodes(run.folder, run.own_cell(), own, 1_000)
    shown = line(act_option_block(Results(comparison)), "cartpole_swingup", "DIPOLE, N = 32", "DIPOLE, N = 1")
    assert shown["difference: mean"] == "50.0" and shown["each seed"] == "50.0, 50.0"
    low, high = (float(text) for text in shown["95% interval over the episodes of these agents"].split(" to "))
    assert -50.0 < low < -45.0 < high < -40.0
    assert len(read_episodes(comparison.runs[0].folder)) == 40


def test_the_hours_of_a_learning_curve_are_means_over_the_seeds():
    runs = [
        SimpleNamespace(evaluations=[{"step": "10", "seconds": 1800}, {"step": "20", "seconds": last}])
        for last in (3600, 7200)
    ]
    assert plots.hours_until(runs, np.array([10, 20])).tolist() == [0.5, 1.5]
