"""Writes the report of a comparison from its run folders: report.md, report.html, scores.csv and figures.

`harness.compare` calls `write_report`; `python -m harness.compare --config FILE --report_only` does nothing else.
report.html is one file: it holds the figures and loads nothing. docs/statistics.md says how the numbers are made.
"""

import base64
import re
from pathlib import Path
from typing import List, Sequence

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup

from common.files import make_folder, write_rows_csv, write_text
from harness.comparison.matrix import Comparison
from harness.comparison.protocol import Mixture, check_protocol
from harness.comparison.results import Results, csv_rows
from harness.report import plots, settings, tables
from harness.report.blocks import Block, Bold
from harness.score_statistics import CONFIDENCE, FEWEST_SEEDS, RESAMPLES

TEMPLATES = Path(__file__).with_name("templates")
FIGURES = "figures"  # the folder of the PNG files, beside report.md
# Characters that Markdown would read as markup. An underscore within a word is none.
MARKUP = re.compile(r"([\\`*\[\]<>|~]|(?<![^\W_])_|_(?![^\W_]))")
NUMERIC = re.compile(r"[-–\d.,%/ ]*|[\d.]+ .*to.*|\d+ of \d+|.*±.*")
DIGIT = re.compile(r"\d")


def write_report(comparison: Comparison, folder: Path, allow_mixed: bool = False) -> List[Path]:
    """Writes the report of the runs as they are into `folder`; returns the paths of its files.

    Raises UserError where runs of different protocols would stand in one table, unless allow_mixed marks them.
    """
    results = Results(comparison)
    found = check_protocol(results, allow_mixed)
    figures = folder / FIGURES
    make_folder(figures, "run_dir")
    blocks = report_blocks(results, found, figures)
    write_rows_csv(csv_rows(results), folder / "scores.csv")
    write_text(folder / "report.md", to_markdown(blocks))
    write_text(folder / "report.html", to_html(comparison.name, blocks, figures))
    return [folder / name for name in ("report.md", "report.html", "scores.csv")]


# ---- The parts ----


def report_blocks(results: Results, found: Sequence[Mixture], figures: Path) -> List[Block]:
    """The report's parts in order; their figures are written into `figures`."""
    odd_runs = {name for mixture in found for name in mixture.deviating}
    marked = {score.row.title for score in results.scores if score.run.planned.name in odd_runs}
    rows, tasks, pairs = tables.improvement_matrix(results)
    scores = Block("Scores", text=score_text(), figure=plots.plot_scores(results, figures))
    aggregates = tables.aggregate_block(results, marked)
    aggregates.figure = plots.plot_aggregates(results, figures)
    improvement = tables.improvement_block(rows, tasks, pairs)
    improvement.figure = plots.plot_improvement(rows, pairs, figures)
    blocks = [
        introduction(results),
        settings.problem_block(results),
        settings.mixture_block(found),
        scores,
        *tables.score_blocks(results, marked),
        tables.online_block(results),
        aggregates,
        improvement,
        profile_block(results, figures),
        *curve_blocks(results, figures),
        settings.policy_block(results),
        settings.protocol_block(results),
        settings.fields_block(results),
        settings.data_block(results),
        settings.time_block(results),
        settings.version_block(results),
    ]
    return [block for block in blocks if block is not None]


def introduction(results: Results) -> Block:
    comparison = results.comparison
    finished = sum(run.finished for run in results.runs)
    counts = (
        f"Policies: {len(comparison.rows)}. Tasks: {len(results.tasks)}. Seeds: {len(comparison.seeds)}. Finished "
        f"runs: {finished} of {len(results.runs)}. scores.csv holds every number. The report is made again from the "
        f"run folders by python -m harness.compare --config {comparison.path} --report_only."
    )
    return Block(comparison.name, level=1, text=[text for text in (comparison.description, counts) if text])


def score_text() -> List[str]:
    """How to read the score tables."""
    return [
        f"Means over seeds with {CONFIDENCE:.0%} percentile bootstrap intervals, from {RESAMPLES} resamples of the "
        "seeds of each task, never of episodes. The standard deviation over seeds, std, stands beside them because "
        "published ± are one. The final score and the mean of the last evaluations during training (last 3) are "
        "different numbers, in columns of their own. Bold: within 95% of the best. With fewer than "
        f"{FEWEST_SEEDS} seeds each seed's score is shown instead of an interval, and nothing is bold.",
        "N is the number of action candidates among which the critic chooses. It decides much of a score: compare "
        "policies of the same N. Network evaluations count each policy and each critic once.",
    ]


def profile_block(results: Results, figures: Path) -> Block:
    name = plots.plot_profiles(results, figures)
    text = "The share of runs whose normalised final score is above τ, averaged over tasks."
    if name is None:
        text = "Not given: there are fewer than two tasks with results of every policy and a range to normalise with."
    return Block("Performance profiles", text=[text], figure=name)


def curve_blocks(results: Results, figures: Path) -> List[Block]:
    """A figure of learning curves for each category."""
    text = (
        "Evaluations during training, with the act options of training: mean over the finished seeds. Band: 95% "
        f"bootstrap interval; with fewer than {FEWEST_SEEDS} seeds, from the lowest to the highest seed."
    )
    blocks = [Block("Learning curves", text=[text])]
    for number, category in enumerate(results.categories(), start=1):
        name = plots.plot_learning_curves(results, category, figures, f"learning_curves_{number}.png")
        if name is not None:
            blocks.append(Block(f"Learning curves: {category}", level=3, figure=name))
    return blocks


# ---- Markdown and HTML ----


def escaped(text: str) -> str:
    """Text in one line with nothing that Markdown would read as markup; a Bold cell in asterisks."""
    plain = MARKUP.sub(r"\\\1", " ".join(str(text).split()))
    return f"**{plain}**" if isinstance(text, Bold) else plain


def numeric_columns(block: Block) -> List[bool]:
    """Which columns hold numbers only: they are set to the right."""
    columns = [[row[index] for row in block.rows] for index in range(len(block.header))]
    return [all(map(NUMERIC.fullmatch, cells)) and any(map(DIGIT.search, cells)) for cells in columns]


def to_markdown(blocks: Sequence[Block]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # this is Markdown: `escaped` does what autoescape does for HTML
    )
    environment.filters |= {"escaped": escaped, "numeric": numeric_columns}
    text = environment.get_template("report.md.jinja").render(blocks=blocks, figures=FIGURES)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def to_html(title: str, blocks: Sequence[Block], figures: Path) -> str:
    """One HTML file: each block's Markdown, rendered with raw HTML switched off, and the figures as data URIs."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    sections = []
    for number, block in enumerate(blocks):
        html = markdown.render(to_markdown([block]))
        html = html.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
        if block.figure:
            html = html.replace(f'src="{FIGURES}/{block.figure}"', f'src="{data_uri(figures / block.figure)}"')
        sections.append({"id": f"part-{number}", "title": block.title, "level": block.level, "html": Markup(html)})
    return environment.get_template("report.html.jinja").render(title=title, sections=sections)


def data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
