"""The score tables of a comparison's report: by category and task, over all tasks, pairs of rows, online runs."""

import itertools
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from harness.comparison.matrix import Row
from harness.comparison.results import FINAL, Results, RunResult
from harness.report.blocks import (
    KINDS,
    NONE,
    Block,
    Bold,
    acting_cells,
    bold_titles,
    bracket,
    candidates_of,
    common_scale,
    drop_empty,
    estimates,
    number,
    policy_name,
    score_header,
    short_title,
)
from harness.report.published import Method, PublishedTable, category_key, load_published, task_key
from harness.score_statistics import FEWEST_SEEDS, improvement, interquartile_mean, interval, optimality_gap

POLICY_HEADER = ["policy", "N", "network evaluations per action", "seeds"]
REFERENCES = {"episode_return_mean": "mean episode", "episode_return_best": "best episode"}  # of the data sets


# ---- Scores of one task or category ----


def score_blocks(results: Results, marked: Sequence[str]) -> List[Block]:
    """An overview of the categories, where there are several, then each category and its tasks."""
    categories = results.categories()
    blocks = [overview(results, marked)] if len(categories) > 1 else []
    for category, tasks in categories.items():
        if len(tasks) > 1:
            blocks.append(score_block(results, category, tasks, marked, level=3))
        for task in tasks:
            blocks.append(score_block(results, task, [task], marked, level=4 if len(tasks) > 1 else 3))
    return blocks


def overview(results: Results, marked: Sequence[str]) -> Block:
    """Final scores: a line for each policy, a column for each category."""
    columns = {category: estimates(results, tasks, FINAL) for category, tasks in results.categories().items()}
    bold = {category: bold_titles(found) for category, found in columns.items()}
    block = Block("All categories: final score, mean over seeds and tasks", level=3)
    units = {category: common_scale(results, tasks) for category, tasks in results.categories().items()}
    block.header = [*POLICY_HEADER[:3], *(f"{name} ({units[name].unit if units[name] else NONE})" for name in columns)]
    for row in results.rows:
        cells = []
        for category, found in columns.items():
            text = number(found[row.title].mean)
            cells.append(Bold(text) if row.title in bold[category] else text)
        block.rows.append([policy_name(row, marked), *acting_cells(results, row, list(results.tasks)), *cells])
    return block


def score_block(results: Results, name: str, tasks: Sequence[str], marked: Sequence[str], level: int) -> Block:
    """The table of one task, or of a category's mean over its tasks."""
    block = Block(f"{name}: mean over {len(tasks)} tasks" if len(tasks) > 1 else name, level=level)
    scale = common_scale(results, tasks)
    if scale is None:
        block.text.append("Its tasks have scores of different ranges, not all of them known: there is no mean over it.")
        return block
    block.text.append(f"Score: {scale.unit}. {data_sentence(results, tasks)}")
    found = {kind: estimates(results, tasks, kind) for kind in KINDS}
    bold = {kind: bold_titles(ones) for kind, ones in found.items()}
    titles, by_row, notes = published_columns(results, tasks)
    averaged = {str(run.result.get("evaluations_averaged")) for run in finished_on(results, tasks)}
    block.header = [*POLICY_HEADER, *score_header(found, "/".join(sorted(averaged))), *titles]
    for row in results.rows:
        cells = [cell for kind in KINDS for cell in found[kind][row.title].cells(row.title in bold[kind])]
        block.rows.append(
            [
                policy_name(row, marked),
                *acting_cells(results, row, tasks),
                seeds_cell(results, row, tasks),
                *cells,
                *by_row[row.title],
            ]
        )
    block.header, block.rows = drop_empty(block.header, block.rows)
    block.notes = notes
    return block


def finished_on(results: Results, tasks: Sequence[str]) -> List[RunResult]:
    return [run for task in tasks for run in results.runs_on(task) if run.finished]


def seeds_cell(results: Results, row: Row, tasks: Sequence[str]) -> str:
    """The number of final scores; with the number of planned runs where some are missing."""
    counts = sorted({len(results.values(row, task, FINAL)) for task in tasks})
    planned = len(results.of(row, tasks[0]))
    text = "/".join(map(str, counts))
    return text if counts == [planned] else f"{text} of {planned}"


def data_sentence(results: Results, tasks: Sequence[str]) -> str:
    """Where the data come from and, on one task, the scores of the data set's own episodes."""
    sources = sorted({results.identity(task).get("source", "") for task in tasks} - {""})
    if not sources:
        return "No run has begun."
    text = f"Data: {' and '.join(sources)}."
    identity = results.identity(tasks[0])
    known = {label: identity[key] for key, label in REFERENCES.items() if key in identity}
    if len(tasks) == 1 and known and results.scale(tasks[0]).unit != "success, %":
        shown = results.scale(tasks[0]).shown
        values = " and ".join(f"{label} {number(shown(value))}" for label, value in known.items())
        text += f" Returns in the data: {values}."
    return text


# ---- Published numbers ----


def published_columns(results: Results, tasks: Sequence[str]) -> Tuple[List[str], Dict[str, List[str]], List[str]]:
    """Titles of the columns with published scores, their cells by row title, and the notes that explain them.

    Only tables measured on data of the same identity as ours, and with an entry for this task or category.
    """
    methods, tables = load_published()
    identities = [results.identity(task) for task in tasks]
    key = task_key(identities[0]) if len(tasks) == 1 else category_key(identities)
    every = [run.identity for task in tasks for run in results.runs_on(task) if run.identity]
    fitting = [table for table in tables if key in table.scores and every and all(map(table.is_on, every))]
    cells: Dict[str, List[str]] = {row.title: [] for row in results.rows}
    titles, notes = [], []
    for letter, table in zip("abcdefgh", fitting, strict=False):
        titles.append(f"published [{letter}]" + ("" if table.comparable else ", not comparable"))
        left = dict(table.scores[key])
        for row in results.rows:
            name = published_name(results, row, tasks[0], methods, left)
            cells[row.title].append(table.scores[key].get(name, "") or NONE)
        used = {published_name(results, row, tasks[0], methods, left) for row in results.rows}
        others = ", ".join(f"{name} {text}" for name, text in left.items() if name not in used and text)
        notes.append(f"[{letter}] Published: {table.describe()}.{other_updates(results, tasks, table)}")
        if others:
            notes[-1] += f" Methods without a row here: {others}."
    return titles, cells, notes


def published_name(
    results: Results, row: Row, task: str, methods: Dict[str, Method], names: Dict[str, str]
) -> Optional[str]:
    """The published method among `names` that the row is, None where it is none."""
    run = results.of(row, task)[0].run.planned
    count, overrides = candidates_of(row, run), row.variant.overrides | _other_options(row)
    return next((name for name in names if methods[name].is_row(row.variant.algorithm, overrides, count)), None)


def _other_options(row: Row) -> dict:
    return {name: value for name, value in row.act.items() if name != "num_candidates"}


def other_updates(results: Results, tasks: Sequence[str], table: PublishedTable) -> str:
    """What to add where our runs have another number of updates."""
    ours = sorted({run.config.offline_steps for run in finished_on(results, tasks)} - {table.updates})
    return f" Ours have {' and '.join(f'{steps:,}' for steps in ours)} updates." if ours else ""


# ---- Over tasks ----


def common_tasks(results: Results, rows: Sequence[Row], normalisable: bool) -> List[str]:
    """Tasks on which every one of the rows has a final score."""
    return [
        task
        for task in results.tasks
        if (results.scale(task).can_normalise or not normalisable)
        and all(len(results.values(row, task, FINAL)) for row in rows)
    ]


def rows_with_results(results: Results) -> List[Row]:
    return [row for row in results.rows if any(len(results.values(row, task, FINAL)) for task in results.tasks)]


def aggregate_block(results: Results, marked: Sequence[str]) -> Block:
    """Interquartile mean and optimality gap of the normalised scores over the tasks that all rows have."""
    block = Block("Over all tasks")
    rows = rows_with_results(results)
    tasks = common_tasks(results, rows, normalisable=True)
    block.text = aggregate_remarks(results, rows, tasks)
    if len(tasks) < 2:
        return block
    block.header = [*POLICY_HEADER[:3], "runs"]
    for name in KINDS.values():
        block.header += [f"{name}: IQM", "95% interval", f"{name}: optimality gap", "95% interval"]
    for row in rows:
        cells = [cell for kind in KINDS for cell in _aggregate_cells(results, row, tasks, kind)]
        runs = str(sum(len(results.values(row, task, FINAL)) for task in tasks))
        block.rows.append([policy_name(row, marked), *acting_cells(results, row, tasks), runs, *cells])
    return block


def _aggregate_cells(results: Results, row: Row, tasks: Sequence[str], kind: str) -> List[str]:
    strata = [results.normalised(row, task, kind) for task in tasks]
    if not all(len(scores) for scores in strata):
        return [NONE] * 4
    cells = []
    for statistic in (interquartile_mean, optimality_gap):
        cells += [number(float(statistic(*strata)), 3), bracket(*interval(strata, statistic), 3)]
    return cells


def aggregate_remarks(results: Results, rows: Sequence[Row], tasks: Sequence[str]) -> List[str]:
    """What the aggregates are over, and what is left out of them."""
    if len(results.tasks) == 1:
        return ["One task: there is nothing to aggregate."]
    text = [
        f"Normalised scores, 1 the best, of the {len(tasks)} of {len(results.tasks)} tasks on which every policy has "
        "results. IQM is the mean of the middle half of all runs; the optimality gap, how far scores fall short of 1."
    ]
    begun = [task for task in results.tasks if finished_on(results, [task])]
    unscaled = [task for task in begun if not results.scale(task).can_normalise]
    absent = [task for task in results.tasks if task not in (*tasks, *unscaled)]
    if unscaled:
        text.append(f"Left out because the suite gives no range to normalise with: {', '.join(unscaled)}.")
    if absent:
        text.append(f"Left out because a policy has no finished run there: {', '.join(absent)}.")
    if empty := [row.title for row in results.rows if row not in rows]:
        text.append(f"Policies without any result: {'; '.join(empty)}.")
    if len(tasks) < 2:
        return [*text[1:], "There are fewer than two such tasks: there is nothing to aggregate."]
    counts = {len(results.values(row, task, FINAL)) for row in rows for task in tasks}
    if min(counts) < 2:
        text.append("No interval where a task has a single seed: nothing is known of the spread there.")
    if len(counts) > 1:
        text.append("Runs are pooled for the IQM, so a task with fewer finished seeds weighs less in it.")
    return text


def improvement_matrix(results: Results) -> Tuple[List[Row], List[str], Dict[Tuple[str, str], tuple]]:
    """(rows, tasks, (probability, low, high) by pair of titles) of the rows with enough seeds on all common tasks."""
    rows = rows_with_results(results)
    tasks = common_tasks(results, rows, normalisable=False)
    rows = [row for row in rows if all(len(results.values(row, task, FINAL)) >= FEWEST_SEEDS for task in tasks)]
    pairs: Dict[Tuple[str, str], tuple] = {}
    if not tasks:
        return [], [], pairs
    for left, right in itertools.combinations(rows, 2):
        strata = [results.values(row, task, FINAL) for row in (left, right) for task in tasks]
        point, (low, high) = float(improvement(*strata)), interval(strata, improvement)
        pairs[left.title, right.title] = point, low, high
        pairs[right.title, left.title] = 1 - point, 1 - high, 1 - low
    return rows, tasks, pairs


def improvement_block(rows: Sequence[Row], tasks: Sequence[str], pairs: Dict[Tuple[str, str], tuple]) -> Block:
    """The probability that a run of the row scores more than one of the column."""
    block = Block("Probability of improvement")
    if len(rows) < 2:
        block.text = [f"Not given: it takes at least two policies with {FEWEST_SEEDS} seeds or more on every task."]
        return block
    block.text = [
        "Probability that the final score of a run of the policy on the left is higher than that of a run of the one "
        f"with the number above, averaged over {len(tasks)} tasks, with its 95% interval. Ties count half."
    ]
    block.header = ["", "policy", *(str(place) for place in range(1, len(rows) + 1))]
    for place, row in enumerate(rows, start=1):
        cells = [_pair_cell(pairs.get((row.title, other.title))) for other in rows]
        block.rows.append([str(place), short_title(row), *cells])
    return block


def _pair_cell(pair: Optional[tuple]) -> str:
    return NONE if pair is None else f"{pair[0]:.2f} ({pair[1]:.2f} to {pair[2]:.2f})"


# ---- Runs with an online phase ----


def online_block(results: Results) -> Optional[Block]:
    """Score after the offline phase and at the end, for runs with an online phase; None without such runs."""
    online = [run for run in results.runs if run.finished and getattr(run.config, "online_steps", 0)]
    if not online:
        return None
    methods, tables = load_published()
    block = Block("Before and after the online phase")
    block.text = ["Evaluations during training, mean over seeds. Each seed stands beside it as before → after."]
    block.header = ["task", "variant", "seeds", "before", "after", "each seed", "published"]
    sources = []
    for task in results.tasks:
        for variant in results.comparison.variants():
            runs = [run for run in online if (run.planned.task, run.planned.variant.label) == (task, variant.label)]
            if not runs:
                continue
            shown = runs[0].scale.shown
            pairs = np.array([[shown(run.result["offline_score"]), shown(run.result["score"])] for run in runs])
            seeds = ", ".join(f"{before:.1f} → {after:.1f}" for before, after in pairs)
            count = getattr(runs[0].config, "num_candidates", None)
            published = []
            for table in tables:
                values = table.before_after.get(task_key(runs[0].identity), {})
                names = [name for name in values if methods[name].is_row(variant.algorithm, variant.overrides, count)]
                if table.is_on(runs[0].identity) and names:
                    published.append(values[names[0]])
                    sources.append(f"Published: {table.describe()}; another 1,000,000 steps online.")
            means = [number(value) for value in pairs.mean(axis=0)]
            block.rows.append([task, variant.label, str(len(runs)), *means, seeds, "; ".join(published) or NONE])
    block.header, block.rows = drop_empty(block.header, block.rows)
    block.notes = list(dict.fromkeys(sources))
    return block
