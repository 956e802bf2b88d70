"""Published scores of single seeds (peers/sources.yaml) as rows of their own beside a comparison's, under one guard.

A row of ours shares a table with them where its runs had their protocol: official data, updates, chunks, rewards,
critics and the rule of the score. Other rows stay out of the table, with the reason.
"""

import dataclasses
import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from common.files import make_folder
from harness.comparison.protocol import USUAL
from harness.comparison.results import D4RL, FINAL, LAST, SUCCESS, Results, RunResult
from harness.config import flat
from harness.report import plots, tables
from harness.report.blocks import MARK, Block, by_policy, title_of, unit_of, with_marks
from harness.report.published import task_key

SOURCES = Path(__file__).with_name("peers") / "sources.yaml"
OGBENCH_TASK = re.compile(r"(ogbench/.+)-singletask-task(\d)-v0")
TABLE_COLUMNS = ["policy", "label", "name", "category", "task", "seed", "status", "unit", "low", "high"]
TABLE_COLUMNS += [FINAL, f"{FINAL}_normalised", LAST, f"{LAST}_normalised", "num_candidates", "network_evaluations"]


@dataclasses.dataclass(frozen=True)
class Source:
    """Published runs of one protocol. scores: columns task (key), method, seed and score (success or D4RL score, %)."""

    name: str
    protocol: str
    source: str
    note: str
    evaluations: tuple[int, ...]
    settings: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    scores: pd.DataFrame

    @property
    def title(self) -> str:
        return f"{self.name}, protocol {self.protocol}"

    @property
    def folder(self) -> str:
        """Of its figures."""
        return re.sub(r"\W+", "_", self.name.lower())

    def describe(self) -> str:
        """Source, protocol and rule of the score in one line."""
        *others, last = (f"{step:,}" for step in self.evaluations)
        rule = f"score of the evaluation after {last} updates"
        if others:
            rule = f"score: mean of the evaluations after {', '.join(others)} and {last} updates"
        return f"Published: {self.source}; protocol {self.protocol}, {rule}; {self.note}."

    def settings_on(self, key: str) -> dict[str, Any]:
        """The protocol's settings on a task."""
        found = dict(self.settings)
        for patterns, values in self.tasks.items():
            if any(fnmatch.fnmatchcase(key, pattern.strip()) for pattern in patterns.split(",")):
                found |= values
        return found

    def lines(self, tasks: Mapping[str, str], categories: Mapping[str, str]) -> pd.DataFrame:
        """Their lines of a table of scores for these tasks, {task: its key}; a line for each method, task and seed."""
        parts = []
        for task, key in tasks.items():
            own = self.scores[self.scores["task"] == key]
            name = own["method"] + f" (published: {self.title})"
            unit = SUCCESS if key.startswith("ogbench/") else D4RL
            part = pd.DataFrame({"policy": name, "label": name, "name": name, "seed": own["seed"]})
            parts.append(part.assign(task=task, category=categories[task], unit=unit, final=own["score"] / 100))
        return as_table(pd.concat(parts, ignore_index=True))


def as_table(lines: pd.DataFrame) -> pd.DataFrame:
    """Lines whose `final` is a normalised score as a table of scores (comparison/results.py)."""
    lines = lines.assign(status="finished", low=0.0, high=1.0)
    return lines.assign(**{f"{FINAL}_normalised": lines[FINAL]}).reindex(columns=TABLE_COLUMNS)


def load_sources(path: Path = SOURCES) -> list[Source]:
    """The published runs by source."""
    sources = []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        wide = pd.read_csv(path.with_name(entry.pop("file")))
        scores = wide.melt(["task", "method"], var_name="seed", value_name="score").dropna()
        entry["evaluations"] = tuple(entry["evaluations"])
        sources.append(Source(**{"tasks": {}} | entry, scores=scores))
    return sources


def key_of(task: str, identity: Mapping[str, Any] | None = None) -> str:
    """The key of a task in the files: by the data set's identity where there is one, else by the task's name."""
    suite = task.partition("/")[0]
    if suite == "ogbench" and identity:
        return f"ogbench/{task_key(identity)}"
    match = OGBENCH_TASK.fullmatch(task)
    return f"{match[1]}/{match[2]}" if match else task


# ---- The guard ----


def deviations(run: RunResult, source: Source, key: str) -> list[str]:
    """What keeps a finished run out of a table with the source's rows, as text; empty where nothing does."""
    own = USUAL | flat(run.run, run.config)
    theirs = source.settings_on(key)
    found = [f"{name} {own[name]}, theirs {value}" for name, value in theirs.items() if own[name] != value]
    if run.identity.get("source") != "official":
        found.insert(0, f"data {run.identity.get('source', 'of unknown origin')}, theirs official")
    evaluated = {int(row["step"]) for row in run.evaluations}
    if missing := [f"{step:,}" for step in source.evaluations if step not in evaluated]:
        found.append(f"no evaluation after {', '.join(missing)} updates")
    return found


def score_by(source: Source, run: RunResult, line: pd.Series) -> float:
    """The normalised score that the source's rule gives a line of ours; NaN where it was not evaluated so."""
    if not run.finished:
        return math.nan
    if source.evaluations == (run.result["step"],):
        return line[f"{FINAL}_normalised"]
    scores = {int(row["step"]): float(row[run.result["score_name"]]) for row in run.evaluations}
    if math.isnan(line[LAST]) or not scores.keys() >= set(source.evaluations):  # only training's own act options
        return math.nan
    return run.scale.normalised(math.fsum(scores[step] for step in source.evaluations) / len(source.evaluations))


@dataclasses.dataclass(frozen=True)
class Beside:
    """A source's rows and ours in one table of scores, ours first."""

    source: Source
    scores: pd.DataFrame
    own: tuple[str, ...]  # titles of our policies in the table
    apart: dict[str, str]  # {title of a policy of ours: why it is not in it, or is marked}

    @property
    def marked(self) -> set[str]:
        return set(self.own) & set(self.apart)


def beside(results: Results, source: Source, allow_mixed: bool = False) -> Beside | None:
    """Our rows and the source's on the tasks that both have; None without a finished run on such a task.

    allow_mixed: rows of another protocol are in the table and marked, not left out.
    """
    published = set(source.scores["task"])
    runs = {run.planned.name: run for run in results.runs}
    keys = {run.planned.task: key_of(run.planned.task, run.identity) for run in results.runs if run.finished}
    keys = {task: key for task, key in keys.items() if key in published}
    if not keys:
        return None
    parts, apart = [], {}
    for lines in by_policy(results.scores[results.scores["task"].isin(keys)]).values():
        title = title_of(lines)
        scores = [score_by(source, runs[line["run"]], line) for _, line in lines.iterrows()]
        own = as_table(lines.assign(policy=title, label=title, name=title, final=scores)).dropna(subset=[FINAL])
        finished = [runs[name] for name in lines["run"] if runs[name].finished]
        found = [reason for run in finished for reason in deviations(run, source, keys[run.planned.task])]
        if own.empty and finished:
            found.append("no score by their rule for these act options")
        if found:
            apart[title] = "; ".join(dict.fromkeys(found))
        if not own.empty and (allow_mixed or not found):
            parts.append(own)
    categories = dict(zip(results.scores["task"], results.scores["category"], strict=True))
    scores = pd.concat([*parts, source.lines(keys, categories)], ignore_index=True)
    return Beside(source, scores, tuple(part["policy"].iloc[0] for part in parts), apart)


# ---- The report's parts ----


def peer_blocks(results: Results, figures: Path, allow_mixed: bool = False) -> list[Block]:
    """For each source with a task of the comparison, its rows beside ours, or apart with the reason."""
    found = [beside(results, source, allow_mixed) for source in load_sources()]
    return [block for one in found if one is not None for block in blocks_of(one, figures)]


def blocks_of(found: Beside, figures: Path) -> list[Block]:
    """A source's rows, with ours where there are any: scores by category; with ours, aggregates over tasks too."""
    source, scores = found.source, with_marks(found.scores, found.marked)
    head = Block(f"{'Beside published seeds' if found.own else 'Published seeds'}: {source.title}")
    head.text = [source.describe()]
    if found.apart:
        what = f"is marked {MARK}" if found.marked else "stands apart, not in these tables"
        reasons = ". ".join(f"{title}: {reason}" for title, reason in found.apart.items())
        head.text.append(f"What is of another protocol {what}. {reasons}.")
    tasks_by_category = tables.categories_of(scores)
    blocks = [head, *(score_block(scores, name, tasks) for name, tasks in tasks_by_category.items())]
    if found.apart and not found.own:
        return blocks
    folder = figures / source.folder
    make_folder(folder, "run_dir")
    head.figure = plots.plot_scores(scores, folder, "score")
    complete = scores.groupby("policy")["task"].transform("nunique") == scores["task"].nunique()
    whole = scores[complete]
    if left_out := list(scores[~complete]["policy"].unique()):
        head.text.append(f"Not in what is over all tasks, since it lacks some of them: {'; '.join(left_out)}.")
    over_tasks = plots.blocks_over_tasks(whole, folder, "score")
    for block in over_tasks:
        for row in block.rows:  # what is not published
            row.pop("N", None)
            row.pop("network evaluations per action", None)
    blocks += over_tasks
    for block in blocks:
        block.level = 2 if block is head else 3
        block.figure = block.figure and f"{source.folder}/{block.figure}"
    return blocks


def score_block(scores: pd.DataFrame, category: str, tasks: Sequence[str]) -> Block:
    """Mean ± standard deviation and interval of every row on each task and over them."""
    columns = {task.partition("/")[2]: [task] for task in tasks} | ({"mean": list(tasks)} if len(tasks) > 1 else {})
    lines = [line for name, group in columns.items() for line in tables.summary_lines(scores, group, name)]
    text = ["Mean ± standard deviation over seeds [95% interval]. Bold: within 95% of the best."]
    title = f"{category} ({unit_of(scores, tasks)})"
    return Block(title, level=3, text=text, rows=tables.summary_rows(pd.DataFrame(lines)))
