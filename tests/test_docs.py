"""The pages agree with the code: metrics are explained, links and commands lead somewhere, numbers are the same."""

import csv
import inspect
import json
import re
from pathlib import Path

import pytest
import yaml

from harness.algorithms import algorithm_names, load_algorithm
from harness.report.per_seed import load_sources
from harness.report.published import load_published
from tests.conftest import small_config
from tests.house import pages
from tests.test_dipole_lora import finetuning, scored_batch
from tests.toy import random_batch, toy_task
from tests.toy_run import toy_run

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {path: path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.md"), *sorted(DOCS.glob("*.md"))]}
PAGE_IDS = {"argvalues": PAGES, "ids": lambda path: path.name}
VARIANTS = {"iql": {"extraction": "ddpgbc"}, "rebrac": {"critic_bc_weight": 0.1}}  # under which there are more metrics
FOLDERS = "algorithms|benchmarks|common|configs|docs|envs|examples|harness|tests"


def page(name: str) -> str:
    return PAGES[DOCS / f"{name}.md"]


def section(text: str, title: str) -> str:
    """The text below a heading that begins with `title`, up to the next heading of its level or above."""
    (match,) = re.finditer(rf"^(#+) {re.escape(title)}.*\n", text, flags=re.MULTILINE)
    rest = text[match.end() :]
    end = re.search(rf"^#{{1,{len(match[1])}}} ", rest, flags=re.MULTILINE)
    return rest[: end.start()] if end else rest


def first_cells(text: str) -> set:
    """All code in the first cells of a text's tables."""
    cells = re.findall(r"^\|([^|]+)\|", text, flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def tables_of(text: str) -> list:
    """The tables of a page as lists of rows of cells, the header first."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    lines = [[line for line in block.splitlines() if not set(line) <= set("|-:")] for block in blocks]
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in table] for table in lines]


# ---- Metrics and columns ----


def test_every_metric_is_explained_once_and_no_other():
    shared = first_cells(section(page("runs"), "Metrics that several methods log"))
    seen = set()
    for name in algorithm_names():
        algorithm, reported = load_algorithm(name), set()
        for options in ({}, VARIANTS.get(name, {})):
            agent = algorithm.agent_class(small_config(algorithm, **options), observation_dim=3, action_dim=2)
            reported |= agent.update(random_batch()).keys()
        if name == "dipole_lora":  # its other stage wants a planner
            reported |= finetuning().update(scored_batch()).keys()
        assert first_cells(section(page(name), "Logged metrics")) == reported - shared, name
        seen |= reported
    assert shared <= seen


@pytest.mark.parametrize("name", algorithm_names())
def test_an_algorithms_page_has_its_parts(name):
    for part in ("Logged metrics", "Differences", "Published scores"):
        assert section(page(name), part).strip()
    code = Path(inspect.getfile(load_algorithm(name).agent_class)).read_text(encoding="utf-8")
    quoted = re.findall(r"`([^`]+)`", section(page(name), "The equations"))
    named = [function for words in quoted for function in re.findall(r"\b(_?[a-z]\w+)\(", words)]
    assert named and not [function for function in named if function not in code]


def test_every_column_of_a_runs_logs_is_explained(tmp_path):
    folder = toy_run(tmp_path, task=toy_task(validation=True), online_steps=20)
    for title in ("train.csv", "eval.csv"):
        with open(folder / title, newline="") as file:
            columns = set(next(csv.reader(file)))
        explained = first_cells(section(page("runs"), f"Columns of `{title}`"))
        groups = tuple(name.removesuffix("...") for name in explained if name.endswith("..."))
        unexplained = {column for column in columns - explained if not column.startswith(groups)}
        assert unexplained <= {"exploration/length", "exploration/episodes"}  # "/length" and "/episodes" on the page
        single = {name for name in explained if not name.endswith("...") and "/" not in name}
        assert single - columns <= {"success", "normalized_return"}, "columns that only some tasks have"
    fields = set(json.loads((folder / "result.json").read_text()))
    assert fields <= set(re.findall(r"`(\w+)`", section(page("runs"), "`result.json`")))


# ---- Links, commands, the index, sizes ----


def anchors(text: str) -> set:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", **PAGE_IDS)
def test_links_lead_somewhere(path):
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", PAGES[path]):
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(PAGES[target])):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("path", [path for path in PAGES if path.name != "CHANGELOG.md"], ids=lambda path: path.name)
def test_what_a_page_names_exists(path):
    files = re.findall(rf"(?:`|python |bash |--config )((?:{FOLDERS}|\.ci)/[\w./-]+\w)", PAGES[path])
    files += re.findall(r"(requirements[\w-]*\.txt)", PAGES[path])
    modules = re.findall(rf"python -m ((?:{FOLDERS})[\w.]*)", PAGES[path])
    files += [name.replace(".", "/") + ("" if (ROOT / name.replace(".", "/")).is_dir() else ".py") for name in modules]
    assert not [name for name in files if not (ROOT / name).exists()]


def test_the_code_names_no_page_that_is_gone():
    files = [path for folder in FOLDERS.split("|") for path in (ROOT / folder).rglob("*")]
    sources = [path for path in files if path.suffix in (".py", ".sh", ".yaml")]
    named = {name for path in sources for name in re.findall(r"docs/(\w+\.md)", path.read_text(encoding="utf-8"))}
    assert {name for name in named if not (DOCS / name).exists()} == {"install.md"}  # NAVSIM's


def test_the_index_has_every_page():
    listed = re.findall(r"^\| \[([\w.]+)\]\(\1\) \| .+ \|$", page("README"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in DOCS.glob("*.md") if path.name != "README.md")


def test_a_page_has_at_most_900_words_and_all_together_15000():
    assert {name: count for name, count in pages().items() if count > 900} == {}
    assert sum(pages().values()) <= 15_000


def test_the_changelog_of_what_is_to_come_is_short():
    assert len(section(PAGES[ROOT / "CHANGELOG.md"], "Unreleased").splitlines()) <= 60


def test_no_page_holds_a_placeholder():
    texts = [path.read_text(encoding="utf-8") for path in [*PAGES, *DOCS.rglob("*.md")]]
    assert not [text for text in texts if re.search(r"@[A-Z_]+@", text)]


# ---- Numbers that are in two places ----


def readme_row(method: str) -> list:
    (row,) = re.findall(rf"^\| {re.escape(method)} \| (.+) \|$", PAGES[ROOT / "README.md"], flags=re.MULTILINE)
    return [cell.strip() for cell in row.split("|")]


def results(label: str) -> list:
    return sorted((DOCS / "results" / "quickstart" / label).glob("seed_*"))


def returns(path: Path) -> dict:
    """{(omega, N): mean and variance of the mean of a run's return} of a sweep."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        (float(row["greediness"]), int(row["num_candidates"])): (
            float(row["return"]),
            float(row["return_std"]) ** 2 / int(row["episodes"]),
        )
        for row in rows
    }


@pytest.mark.parametrize("omega", ["0", "1"])
def test_the_readmes_returns_of_dipole_are_those_of_the_runs(omega):
    runs = [returns(folder / "greediness.csv") for folder in results("dipole")]
    cells = [f"{sum(run[float(omega), count][0] for run in runs) / len(runs):.0f}" for count in (1, 16)]
    assert readme_row(f"DIPOLE, omega {omega}") == [*cells, str(len(runs))]


def test_the_readmes_returns_of_cloning_are_those_of_the_runs():
    runs = [returns(folder / "num_candidates.csv") for folder in results("dipole_behaviour_cloning")]
    cells = [f"{sum(run[0, count][0] for run in runs) / len(runs):.0f}" for count in (1, 16)]
    assert readme_row("behaviour cloning") == [*cells, str(len(runs))]


@pytest.mark.parametrize("title", ["ReBRAC", "IQL", "FQL", "IFQL", "DQL", "QSM"])
def test_the_readmes_returns_of_the_baselines_are_those_of_the_runs(title):
    scores = [json.loads((folder / "result.json").read_text())["score"] for folder in results(title.lower())]
    assert [cell for cell in readme_row(title) if cell] == [f"{sum(scores) / len(scores):.0f}", str(len(scores))]


@pytest.mark.parametrize(
    ("title", "points", "clear"),
    [
        ("omega 0.5 less 0, N = 1", [(0.5, 1), (0, 1)], 5),
        ("omega 1 less 0, N = 1", [(1, 1), (0, 1)], 4),
        ("omega 0 less cloning, N = 16", [(0, 16), None], 5),
    ],
)
def test_the_quick_starts_differences_by_seed_are_those_of_the_runs(title, points, clear):
    cells, seeds = [], zip(results("dipole"), results("dipole_behaviour_cloning"), strict=True)
    for ours, cloning in seeds:
        dipole, other = returns(ours / "greediness.csv"), returns(cloning / "num_candidates.csv")
        (mean, variance), (base, its_variance) = (dipole[point] if point else other[0, 16] for point in points)
        cells.append((mean - base, 1.96 * (variance + its_variance) ** 0.5))
    row = " | ".join(f"{difference:.0f} ± {bound:.0f}" for difference, bound in cells)
    assert f"| {title} | {row} |" in PAGES[DOCS / "dipole.md"]
    assert sum(difference > bound for difference, bound in cells) == clear


@pytest.mark.parametrize(
    ("title", "place", "source", "suite"),
    [
        ("The DIPOLE paper", 0, "Liang", "exorl"),
        ("The DIPOLE paper", 1, "Liang", "ogbench"),
        ("The FQL paper", 0, "Park", "ogbench"),
    ],
)
def test_the_published_scores_are_those_that_reports_use(title, place, source, suite):
    (_, *methods), *rows = tables_of(section(page("published"), title))[place]
    shown = {row[0].replace(" ", "_"): dict(zip(methods, row[1:], strict=True)) for row in rows}
    text = (ROOT / "harness" / "report" / "published.yaml").read_text(encoding="utf-8")
    table = next(
        table
        for table in yaml.safe_load(text)["tables"]
        if table["source"].startswith(source) and table["data"]["suite"] == suite and "scores" in table
    )
    names = ["DIPOLE, N = 1" if "without" in method else method for method in table["methods"]]
    assert shown == {
        key: dict(zip(names, map(str, scores), strict=True))
        for key, scores in table["scores"].items()
        if "/" not in key  # single tasks
    }


def test_the_other_published_tables_are_those_of_the_files():
    content = yaml.safe_load((ROOT / "harness" / "report" / "published.yaml").read_text(encoding="utf-8"))
    liang = [table for table in content["tables"] if table["source"].startswith("Liang")][-1]
    _, _, online, navsim = tables_of(section(page("published"), "The DIPOLE paper"))
    for shown, (methods, rows) in {
        "online": (liang["methods"], liang["before_after"]),
        "navsim": (content["navsim"]["methods"], content["navsim"]["scores"]),
    }.items():
        (_, *header), *lines = online if shown == "online" else navsim
        assert header == methods
        assert {name: [cell.replace("→", " -> ") for cell in cells] for name, *cells in lines} == {
            name: [f"{value:g}" if shown == "navsim" else value for value in values] for name, values in rows.items()
        }
    (_, *seeds) = tables_of(section(page("published"), "Seeds"))[0]
    gfp = load_sources()[0].scores
    fql = next(table for table in load_published()[1] if table.source.endswith("table 3"))
    for category, *cells in seeds:
        means = gfp[gfp["task"].str.startswith(f"ogbench/{category}/")].groupby("method")["score"].mean()
        assert cells == [fql.scores[category]["ReBRAC"], f"{means['ReBRAC']:.0f}", f"{means['GFP']:.0f}"]
