"""Writes the report of a comparison from its run folders: report.md and .html, scores.csv, table.csv, .tex, figures.

`harness.compare` calls `write_report`; `python -m harness.compare --config FILE --report_only` does nothing else.
report.html is one file: it holds the figures and loads nothing. docs/statistics.md says how the numbers are made.
"""

import base64
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
import pandas as pd
from markdown_it import MarkdownIt
from markupsafe import Markup

from common.files import format_rows, make_folder, write_text
from harness.comparison.matrix import Comparison
from harness.comparison.protocol import Mixture, check_protocol
from harness.comparison.results import Results, to_csv
from harness.report import per_seed, plots, settings, tables
from harness.report.blocks import Block, Bold, by_policy, with_marks
from harness.score_statistics import CONFIDENCE, FEWEST_SEEDS, RESAMPLES

TEMPLATE = Path(__file__).with_name("report.html.jinja")
FIGURES = "figures"  # the folder of the PNG files, beside report.md
# Characters that Markdown would read as markup. An underscore within a word is none.
MARKUP = re.compile(r"([\\`*\[\]<>|~]|(?<![^\W_])_|_(?![^\W_]))")


def write_report(comparison: Comparison, folder: Path, allow_mixed: bool = False) -> list[Path]:
    """Writes the report of the runs as they are into `folder`; returns the paths of its files.

    Raises UserError where runs of different protocols would stand in one table, unless allow_mixed marks them.
    """
    results = Results(comparison)
    found = check_protocol(results, allow_mixed)
    figures = folder / FIGURES
    make_folder(figures, "run_dir")
    odd_runs = {name for mixture in found for name in mixture.deviating}
    marked = {name for name, lines in by_policy(results.scores).items() if not odd_runs.isdisjoint(lines["run"])}
    csv_text = to_csv(results.scores)
    results.scores = with_marks(results.scores, marked)
    summary = tables.summary(results)
    blocks = report_blocks(results, found, summary, figures, allow_mixed)
    texts = {
        "report.md": to_markdown(blocks),
        "report.html": to_html(comparison.name, blocks, figures),
        "scores.csv": csv_text,
    }
    if len(summary):
        texts |= {"table.csv": to_csv(summary), "table.tex": tables.to_latex(summary)}
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


# ---- The parts ----


def report_blocks(
    results: Results,
    found: Sequence[Mixture],
    summary: pd.DataFrame,
    figures: Path,
    allow_mixed: bool = False,
) -> list[Block]:
    """The report's parts in order; their figures are written into `figures`."""
    scores = results.scores
    blocks = [
        introduction(results),
        settings.problem_block(results),
        settings.mixture_block(found),
        Block("Scores", text=score_text(scores), figure=plots.plot_scores(scores, figures)),
        tables.summary_block(summary) if len(summary) else None,
        *tables.score_blocks(results),
        tables.act_option_block(results),
        tables.online_block(results),
        *plots.blocks_over_tasks(scores, figures),
        *plots.curve_blocks(results, figures),
        *per_seed.peer_blocks(results, figures, allow_mixed),
        settings.policy_block(results),
        settings.protocol_block(results),
        settings.data_block(results),
    ]
    return [block for block in blocks if block is not None and (block.text or block.rows or block.figure)]


def introduction(results: Results) -> Block:
    comparison = results.comparison
    finished = sum(run.finished for run in results.runs)
    tasks = results.scores["task"].nunique()
    counts = (
        f"Policies: {len(comparison.rows)}. Tasks: {tasks}. Seeds: {len(comparison.seeds)}. Finished runs: {finished} "
        f"of {len(results.runs)}. scores.csv holds every number. The report is made again from the run folders by "
        f"python -m harness.compare --config {comparison.path} --report_only."
    )
    return Block(comparison.name, level=1, text=[text for text in (comparison.description, counts) if text])


def score_text(scores: pd.DataFrame) -> list[str]:
    """How to read the score tables: what they hold, and nothing else."""
    text = [
        "The final score is that of the last agent; the mean of the last evaluations during training is another. "
        f"Intervals are {CONFIDENCE:.0%} percentile bootstrap intervals, from {RESAMPLES} resamples of the seeds of "
        "each task, never of episodes; std is the standard deviation over seeds. Bold: within 95% of the best. Fewer "
        f"than {FEWEST_SEEDS} seeds give no interval: each seed's score is shown, and nothing is bold."
    ]
    if scores["num_candidates"].notna().any():
        text.append(
            "N is the number of action candidates among which the critic chooses. It decides much of a score: compare "
            "policies of the same N. Network evaluations count each policy and each critic once."
        )
    return text


# ---- Markdown and HTML ----


def escaped(text: str) -> str:
    """Text in one line with nothing that Markdown would read as markup; a Bold cell in asterisks."""
    plain = MARKUP.sub(r"\\\1", " ".join(str(text).split()))
    return f"**{plain}**" if isinstance(text, Bold) else plain


def to_markdown(blocks: Sequence[Block]) -> str:
    parts = []
    for block in blocks:
        parts += [f"{'#' * block.level} {escaped(block.title)}", *map(escaped, block.text)]
        if block.figure:
            parts.append(f"![{escaped(block.title)}]({FIGURES}/{block.figure})")
        if block.rows:
            rows = [{escaped(name): escaped(cell) for name, cell in row.items()} for row in block.rows]
            parts.append(format_rows(rows))
        parts += map(escaped, block.notes)
    return "\n\n".join(parts) + "\n"


def to_html(title: str, blocks: Sequence[Block], figures: Path) -> str:
    """One HTML file: each block's Markdown, rendered with raw HTML switched off, and the figures as data URIs."""
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(TEMPLATE.read_text())
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    sections = []
    for place, block in enumerate(blocks):
        html = markdown.render(to_markdown([block]))
        html = html.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
        if block.figure:
            content = base64.b64encode((figures / block.figure).read_bytes()).decode("ascii")
            html = html.replace(f'src="{FIGURES}/{block.figure}"', f'src="data:image/png;base64,{content}"')
        sections.append({"id": f"part-{place}", "title": block.title, "level": block.level, "html": Markup(html)})
    return template.render(title=title, sections=sections)
