"""The score tables of a comparison's report, each a function of the table of scores (comparison/results.py)."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from harness.comparison.results import FINAL, KINDS, LAST, SUCCESS, Results, RunResult, shown
from harness.episodes import episode_scores
from harness.report.blocks import (
    KIND_NAMES,
    MARK,
    NONE,
    Block,
    Bold,
    bracket,
    by_policy,
    drop_empty,
    estimate_cells,
    estimates,
    joined_numbers,
    number,
    policy_cells,
    title_of,
    unit_of,
)
from harness.report.published import Method, category_key, load_published, task_key
from harness.score_statistics import (
    FEWEST_SEEDS,
    improvement,
    interquartile_mean,
    interval,
    optimality_gap,
)

LATEX_SYMBOLS = {"ω": r"$\omega$", "π": r"$\pi$", "β": r"$\beta$", MARK: r"$\dagger$"}
DATA_SCORES = {"episode_return_mean": "mean episode", "episode_return_best": "best episode"}  # of a data set's identity


def categories_of(scores: pd.DataFrame) -> dict[str, list[str]]:
    """Tasks by category, in the order of the table."""
    return {name: list(tasks) for name, tasks in scores.groupby("category", sort=False)["task"].unique().items()}


# ---- One task or category ----


def score_blocks(results: Results) -> list[Block]:
    """Each category, the mean over its tasks and each task by itself."""
    blocks = []
    for category, tasks in categories_of(results.scores).items():
        if len(tasks) > 1:
            blocks.append(score_block(results, category, tasks, level=3))
        blocks += [score_block(results, task, [task], level=4 if len(tasks) > 1 else 3) for task in tasks]
    return blocks


def score_block(results: Results, name: str, tasks: Sequence[str], level: int) -> Block:
    """The table of one task, or of a category's mean over its tasks."""
    block = Block(f"{name}: mean over {len(tasks)} tasks" if len(tasks) > 1 else name, level=level)
    scores = results.scores[results.scores["task"].isin(tasks)]
    unit = unit_of(scores, tasks)
    if unit is None:
        block.text.append("Its tasks have scores of different ranges, not all of them known: there is no mean over it.")
        return block
    block.text.append(f"Score: {unit}. {data_sentence(results, tasks)}")
    block.rows = score_table(scores, tasks)
    add_published(block, results, tasks)
    return block


def score_table(scores: pd.DataFrame, tasks: Sequence[str]) -> list[dict[str, str]]:
    """Rows of the mean over the tasks of each policy, for both kinds of score."""
    titles = {FINAL: KIND_NAMES[FINAL], LAST: f"last {joined_numbers(scores['last_evaluations_averaged'])}"}
    found = {kind: estimates(scores, tasks, kind) for kind in KINDS}
    rows = []
    for policy, lines in by_policy(scores).items():
        row = policy_cells(lines) | {"seeds": seeds_cell(lines)}
        for kind, ones in found.items():
            few = set(ones.loc[ones["seeds"] > 0, "few"])
            spread = "each seed" if few == {True} else "95% interval, or each seed" if True in few else "95% interval"
            parts = (f"{titles[kind]}: {part}" for part in ("mean", spread, "std"))
            row |= dict(zip(parts, estimate_cells(ones.loc[policy]), strict=True))
        rows.append(row)
    return drop_empty(rows)


def seeds_cell(lines: pd.DataFrame) -> str:
    """The number of final scores; with the number of planned runs where some are missing."""
    counts = lines.groupby("task")[FINAL].count()
    planned = lines["seed"].nunique()
    text = "/".join(str(count) for count in sorted(counts.unique()))
    return text if text == str(planned) else f"{text} of {planned}"


def data_sentence(results: Results, tasks: Sequence[str]) -> str:
    """Where the data come from and, on one task, the scores of the data set's own episodes."""
    sources = sorted({results.identity(task).get("source", "") for task in tasks} - {""})
    if not sources:
        return "No run has begun."
    text = f"Data: {' and '.join(sources)}."
    own = data_scores(results, tasks[0]) if len(tasks) == 1 else {}
    if own:
        text += f" Returns in the data: {' and '.join(f'{label} {number(value)}' for label, value in own.items())}."
    return text


def data_scores(results: Results, task: str) -> dict[str, float]:
    """The shown scores of the data set's own episodes, where they are returns and known."""
    run = next((run for run in results.runs_on(task) if run.finished), None)
    if run is None or run.scale.unit == SUCCESS:
        return {}
    return {label: run.scale.shown(run.identity[key]) for key, label in DATA_SCORES.items() if key in run.identity}


# ---- One table of everything ----


def summary(results: Results) -> pd.DataFrame:
    """Final scores in long form: a line for each policy and column, which is a task or a category's mean.

    Columns: policy, column, mean, std (over seeds), low and high (95% interval; NaN with few seeds), seeds, near_best.
    The data's own mean episode is the first policy, where it is known.
    """
    lines = []
    for category, tasks in categories_of(results.scores).items():
        for name, group in [*((task, [task]) for task in tasks), *([(category, tasks)] if len(tasks) > 1 else [])]:
            scores = results.scores[results.scores["task"].isin(group)]
            unit = unit_of(scores, group)
            if unit is None:
                continue
            column = f"{name.rpartition('/')[2]} ({unit})" if len(group) == 1 else f"{name}: mean ({unit})"
            own = data_scores(results, name) if len(group) == 1 else {}
            lines += [{"policy": f"data, {label}", "column": column, "mean": value} for label, value in own.items()]
            lines += summary_lines(scores, group, column)
    return pd.DataFrame(lines)


def summary_lines(scores: pd.DataFrame, tasks: Sequence[str], column: str) -> list[dict]:
    """The lines of `summary` for the mean over the tasks, under the name `column`."""
    found = estimates(scores[scores["task"].isin(tasks)], tasks, FINAL)
    lines = found.assign(policy=found["title"], column=column)[found["seeds"] > 0]
    return lines[["policy", "column", "mean", "std", "low", "high", "seeds", "near_best"]].to_dict("records")


def summary_cells(lines: pd.DataFrame, plus_minus: str = "±") -> tuple[pd.DataFrame, pd.DataFrame]:
    """(cells "mean ± std [low, high]", which are bold) of `summary`, policies by columns; the longer side runs down."""

    def cell(line: pd.Series) -> str:
        text = number(line["mean"])
        text += f" {plus_minus} {number(line['std'])}" if np.isfinite(line["std"]) else ""
        return text + (f" [{number(line['low'])}, {number(line['high'])}]" if np.isfinite(line["low"]) else "")

    texts = lines.assign(cell=lines.apply(cell, axis="columns"))
    order = {"index": lines["policy"].unique(), "columns": lines["column"].unique()}
    cells = texts.pivot(index="policy", columns="column", values="cell").reindex(**order)
    data_first = sorted(cells.index, key=lambda name: not name.startswith("data, "))
    cells = cells.reindex(data_first).fillna(NONE)
    bold = texts.pivot(index="policy", columns="column", values="near_best").reindex_like(cells) == True  # noqa: E712
    return (cells.T, bold.T) if cells.shape[1] > cells.shape[0] else (cells, bold)


def summary_rows(lines: pd.DataFrame) -> list[dict[str, str]]:
    """`summary_cells` as a table."""
    cells, bold = summary_cells(lines)
    cells = cells.where(~bold, cells.map(Bold))
    return [{"": name, **line} for name, line in cells.to_dict("index").items()]


def summary_block(lines: pd.DataFrame) -> Block:
    spread = "Mean ± standard deviation over seeds" + (" [95% interval]" if lines["low"].notna().any() else "")
    text = [f"{spread}. table.csv and table.tex hold the same."]
    return Block("All final scores", level=3, text=text, rows=summary_rows(lines))


def to_latex(lines: pd.DataFrame) -> str:
    """The table for a paper, with booktabs' rules."""
    cells, bold = summary_cells(lines, plus_minus=r"$\pm$")
    escape = str.maketrans({sign: "\\" + sign for sign in "_%&#"} | LATEX_SYMBOLS)
    cells = cells.replace(NONE, "--").rename(lambda name: name.translate(escape))
    cells = cells.rename(lambda name: name.translate(escape), axis="columns")
    cells = cells.where(~bold.to_numpy(), r"\textbf{" + cells + "}").rename_axis(index=None, columns=None)
    return cells.style.to_latex(hrules=True, column_format="l" + "r" * cells.shape[1])


# ---- Published numbers ----


def add_published(block: Block, results: Results, tasks: Sequence[str]) -> None:
    """Adds columns with published scores to a table of policies, and the notes that explain them.

    Only tables measured on data of the same identity as ours, and with an entry for this task or category.
    """
    methods, tables = load_published()
    identities = [results.identity(task) for task in tasks]
    key = task_key(identities[0]) if len(tasks) == 1 else category_key(identities)
    runs = [run for task in tasks for run in results.runs_on(task)]
    every = [run.identity for run in runs if run.identity]
    fitting = [table for table in tables if key in table.scores and every and all(map(table.is_on, every))]
    ours = sorted({run.result["step"] for run in runs if run.finished})
    on_task = by_policy(results.scores[results.scores["task"] == tasks[0]])
    named = [published_names(results, lines.iloc[0], methods) for lines in on_task.values()]
    for letter, table in zip("abcdefgh", fitting, strict=False):
        title = f"published [{letter}]" + ("" if table.comparable else ", not comparable")
        values = table.scores[key]
        for row, names in zip(block.rows, named, strict=True):
            row[title] = next((values[name] for name in names if values.get(name)), NONE)
        used = {next((name for name in names if name in values), None) for names in named}
        others = ", ".join(f"{name} {text}" for name, text in values.items() if name not in used and text)
        note = f"[{letter}] Published: {table.describe()}."
        if differing := [steps for steps in ours if steps != table.updates]:
            note += f" Ours have {' and '.join(f'{steps:,}' for steps in differing)} updates."
        block.notes.append(note + (f" Methods without a row here: {others}." if others else ""))


def published_names(results: Results, line: pd.Series, methods: dict[str, Method]) -> list[str]:
    """The published methods that a policy is, by one of its lines."""
    row = next(row for row in results.comparison.rows if row.policy == line["policy"])
    changed = row.variant.overrides or row.act.keys() - {"num_candidates"}
    found = methods.items()
    return [name for name, method in found if method.is_row(line["algorithm"], changed, line["num_candidates"])]


# ---- Over tasks ----


def with_results(scores: pd.DataFrame) -> pd.DataFrame:
    """The lines of the policies that have a final score."""
    has_any = scores.groupby("policy")[FINAL].transform("count") > 0
    return scores[has_any]


def common_tasks(scores: pd.DataFrame, column: str) -> list[str]:
    """Tasks on which every policy of the lines has a value in the column."""
    counts = scores.groupby(["task", "policy"], sort=False)[column].count()
    return list((counts.groupby("task", sort=False).min() > 0).loc[lambda all_have: all_have].index)


def strata_of(lines: pd.DataFrame, tasks: Sequence[str], column: str) -> list[np.ndarray]:
    """A policy's values [n seeds] of each task."""
    values = {task: group.sort_values("seed")[column].dropna() for task, group in lines.groupby("task")}
    return [values[task].to_numpy() for task in tasks]


def aggregate_block(scores: pd.DataFrame) -> Block | None:
    """Interquartile mean and optimality gap of normalised scores over the tasks that all policies have.

    None where that are fewer than two.
    """
    kept = with_results(scores)
    tasks = common_tasks(kept, f"{FINAL}_normalised")
    if len(tasks) < 2:
        return None
    rows = []
    for lines in by_policy(kept).values():
        row = policy_cells(lines) | {"runs": str(sum(map(len, strata_of(lines, tasks, FINAL))))}
        for kind, name in KIND_NAMES.items():
            strata = strata_of(lines, tasks, f"{kind}_normalised")
            for title, statistic in {"IQM": interquartile_mean, "optimality gap": optimality_gap}.items():
                has_all = all(map(len, strata))
                row[f"{name}: {title}"] = number(float(statistic(*strata)), 3) if has_all else NONE
                row[f"{name}: {title}, 95%"] = bracket(*interval(strata, statistic), 3) if has_all else NONE
        rows.append(row)
    return Block("Over all tasks", text=aggregate_remarks(scores, tasks), rows=drop_empty(rows))


def aggregate_remarks(scores: pd.DataFrame, tasks: Sequence[str]) -> list[str]:
    """What the aggregates are over, and what is left out of them."""
    every = scores["task"].unique()
    text = [
        f"Normalised scores, 1 the best, of the {len(tasks)} of {len(every)} tasks on which every policy has "
        "results. IQM is the mean of the middle half of all runs; the optimality gap, how far scores fall short of 1."
    ]
    if absent := [task for task in every if task not in tasks]:
        reason = "because a policy has no finished run there, or the suite no range to normalise with"
        text.append(f"Left out, {reason}: {', '.join(absent)}.")
    kept = with_results(scores)
    if empty := [title_of(lines) for policy, lines in by_policy(scores).items() if policy not in by_policy(kept)]:
        text.append(f"Policies without any result: {'; '.join(empty)}.")
    return text


def improvement_block(scores: pd.DataFrame, score: str = "final score") -> Block | None:
    """The probability that a run of the policy on the left scores more than one of the policy above.

    None with fewer than two policies that have enough seeds on the common tasks.
    """
    kept = with_results(scores)
    tasks = common_tasks(kept, FINAL)
    strata = {title_of(lines): strata_of(lines, tasks, FINAL) for lines in by_policy(kept).values()}
    strata = {title: each for title, each in strata.items() if tasks and min(map(len, each)) >= FEWEST_SEEDS}
    if len(strata) < 2:
        return None
    cells: dict[tuple[int, int], str] = {}
    for (i, left), (j, right) in itertools.combinations(enumerate(strata.values(), start=1), 2):
        point, (low, high) = float(improvement(*left, *right)), interval([*left, *right], improvement)
        cells[i, j] = f"{point:.2f} ({low:.2f} to {high:.2f})"
        cells[j, i] = f"{1 - point:.2f} ({1 - high:.2f} to {1 - low:.2f})"
    places = range(1, len(strata) + 1)
    over = f", averaged over {len(tasks)} tasks" if len(tasks) > 1 else ""
    text = (
        f"Probability that the {score} of a run of the policy on the left is higher than that of a run of the one "
        f"with the number above{over}, with its 95% interval. Ties count half."
    )
    rows = [
        {"": str(i), "policy": title} | {str(j): cells.get((i, j), NONE) for j in places}
        for i, title in zip(places, strata, strict=True)
    ]
    return Block("Probability of improvement", text=[text], rows=rows)


# ---- One training, other act options ----


def act_option_block(results: Results) -> Block | None:
    """Each policy against the first of the same trainings, paired: by seed, and by episode where these were kept.

    None where no training has two policies.
    """
    rows = []
    for (_, task), lines in results.scores.groupby(["variant", "task"], sort=False):
        first, *others = by_policy(lines).values()
        for other in others:
            by_seed = (shown(each.set_index("seed"), FINAL) for each in (other, first))
            seeds = next(by_seed).sub(next(by_seed)).dropna().sort_index()
            if seeds.empty:
                continue
            few, episodes = len(seeds) < FEWEST_SEEDS, episode_differences(results, first, other)
            over_episodes = bracket(*interval(episodes)) if episodes else NONE
            rows.append(
                {
                    "task": task.rpartition("/")[2],
                    "policy": title_of(other),
                    "against": title_of(first),
                    "difference: mean": number(seeds.mean()),
                    "each seed": ", ".join(map(number, seeds)) if few else NONE,
                    "95% interval over its seeds": NONE if few else bracket(*interval([seeds.to_numpy()])),
                    "95% interval over the episodes of these agents": over_episodes,
                }
            )
    if not rows:
        return None
    text = (
        "Differences between policies of one training, which are paired: the same agents on the same episodes. An "
        "interval that does not hold 0 is a difference, also where the intervals of the two scores overlap."
    )
    return Block("Other act options of the same training", text=[text], rows=drop_empty(rows))


def episode_differences(results: Results, first: pd.DataFrame, second: pd.DataFrame) -> list[np.ndarray]:
    """Shown differences [episodes] of each run that has kept both policies' episodes."""
    found = []
    for run in results.runs:
        cells = [lines[lines["run"] == run.planned.name] for lines in (first, second)]
        if not run.finished or any(cell.empty for cell in cells):
            continue
        options = [dict(cell.iloc[0][run.planned.own_cell().keys()]) for cell in cells]
        scores = [episode_scores(run.planned.folder, each, run.result["score_name"]) for each in options]
        both = run.scale.shown(pd.concat(scores, axis="columns", join="inner").dropna())
        if len(both) > 1:
            found.append((both.iloc[:, 1] - both.iloc[:, 0]).to_numpy())
    return found


# ---- Runs with an online phase ----


def online_block(results: Results) -> Block | None:
    """Score after the offline phase and at the end, for runs with an online phase; None without such runs."""
    online = [run for run in results.runs if run.finished and run.run.online_steps]
    if not online:
        return None
    methods, tables = load_published()
    block = Block("Before and after the online phase")
    block.text = ["Evaluations during training, mean over seeds. Each seed stands beside it as before → after."]
    groups: dict[tuple[str, str], list[RunResult]] = {}
    for run in online:
        groups.setdefault((run.planned.task, run.planned.variant.label), []).append(run)
    for (task, label), runs in groups.items():
        pairs = runs[0].scale.shown(np.array([[run.result["offline_score"], run.result["score"]] for run in runs]))
        published = []
        for table in tables:
            values = table.before_after.get(task_key(runs[0].identity), {})
            variant, count = runs[0].planned.variant, getattr(runs[0].config, "num_candidates", math.nan)
            names = [name for name in values if methods[name].is_row(variant.algorithm, variant.overrides, count)]
            if table.is_on(runs[0].identity) and names:
                published.append(values[names[0]])
                block.notes.append(f"Published: {table.describe()}; another 1,000,000 steps online.")
        before, after = map(number, pairs.mean(axis=0))
        block.rows.append(
            {
                "task": task,
                "variant": label,
                "seeds": str(len(runs)),
                "before": before,
                "after": after,
                "each seed": ", ".join(f"{before:.1f} → {after:.1f}" for before, after in pairs),
                "published": "; ".join(published) or NONE,
            }
        )
    block.rows, block.notes = drop_empty(block.rows), list(dict.fromkeys(block.notes))
    return block
