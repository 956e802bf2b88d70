"""The pages agree with the code: every metric is explained, every link leads somewhere, every page is in the index."""

import csv
import json
import re
from pathlib import Path

import pytest
import yaml

from harness.algorithms import algorithm_names, load_algorithm
from tests.conftest import small_config
from tests.test_dipole_lora import finetuning, scored_batch
from tests.toy import random_batch
from tests.toy_run import toy_config, toy_run

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
# Options under which an algorithm reports other metrics than by default.
VARIANTS = {
    "dipole": [{"composition": "resample"}, {"weighting": "none"}, {"weighting": "indicator"}],
    "dipole_diffusion": [{"weighting": "none"}],
    "iql": [{"extraction": "ddpgbc"}],
    "fql": [{"normalise_q_loss": True}],
    "rebrac": [{"critic_bc_weight": 0.1}],
    "dql": [{"networks": "published", "actor_hidden_dims": (8,), "value_hidden_dims": (8,)}],
    "qsm": [{"networks": "published"}],
}


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """The text below a heading of level 2 that begins with `title`, up to the next one."""
    (found,) = re.findall(rf"^## {re.escape(title)}.*?\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return found


def first_cells(text: str) -> set:
    """All code in the first cells of a page's tables."""
    cells = re.findall(r"^\|([^|]+)\|", text, flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


# ---- Metrics and columns ----


@pytest.mark.parametrize("name", algorithm_names())
def test_a_page_explains_every_metric_of_its_algorithm_and_no_other(name):
    algorithm, reported = load_algorithm(name), set()
    for options in [{}, *VARIANTS.get(name, [])]:
        agent = algorithm.agent_class(small_config(algorithm, **options), observation_dim=3, action_dim=2)
        reported |= agent.update(random_batch()).keys()
    if name == "dipole_lora":  # its other stage wants a planner
        reported |= finetuning().update(scored_batch()).keys()
    explained = first_cells(section(page(name), "Logged metrics"))
    assert explained - {"validation/..."} == reported


@pytest.mark.parametrize("name", algorithm_names())
def test_an_algorithms_page_has_its_parts(name):
    text, algorithm = page(name), load_algorithm(name)
    assert f"configs/{name}/quickstart.yaml" in text and "arxiv.org" in text or "dipole.md" in text
    titles = re.findall(r"^## (.+)", text, flags=re.MULTILINE)
    for part in ("The equations", "Logged metrics", "Differences", "Published scores"):
        assert any(title.startswith(part) for title in titles), part
    code = Path(algorithm.agent_class.__init__.__code__.co_filename).read_text(encoding="utf-8")
    named = [
        function
        for words in re.findall(r"`([^`]+)`", section(text, "The equations"))
        for function in re.findall(r"\b(_?[a-z]\w+)\(", words)
    ]
    assert named and not [function for function in named if function not in code], "functions of the equations' table"


def test_every_column_of_a_runs_logs_is_explained(tmp_path):
    toy_run(toy_config(tmp_path, online_steps=20), validation=True)
    for title in ("train.csv", "eval.csv"):
        (path,) = tmp_path.rglob(title)
        with open(path, newline="") as file:
            columns = set(next(csv.reader(file)))
        explained = first_cells(section(page("runs"), f"Columns of `{title}`"))
        groups = tuple(name.removesuffix("...") for name in explained if name.endswith("..."))
        assert not [column for column in columns if column not in explained and not column.startswith(groups)]
        only_sometimes = {"exploration/success", "success", "normalized_return"}
        assert {name for name in explained if not name.endswith("...")} - columns <= only_sometimes


# ---- Links, commands, the index ----


def anchors(path: Path) -> set:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        target = (path.parent / file) if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_name_what_exists(path):
    text = path.read_text(encoding="utf-8")
    files = re.findall(r"(?:--config|python|bash) ((?:configs|algorithms|examples|\.ci)/[\w./-]+)", text)
    files += re.findall(r"pip install -r (requirements[\w-]*\.txt)", text)
    modules = re.findall(r"python -m ((?:envs|harness|tests|benchmarks|examples)[\w.]*)", text)
    missing = [name for name in files if not (ROOT / name).exists()]
    for name in modules:
        module = ROOT.joinpath(*name.split("."))
        missing += [] if module.is_dir() or module.with_suffix(".py").is_file() else [name]
    # Written by the command before it on the page; nothing else may be absent.
    assert set(missing) <= {"configs/dipole/tuned.yaml"}


def test_the_tests_that_a_page_names_exist():
    named = [
        (path.name, *match)
        for path in PAGES
        for match in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", path.read_text(encoding="utf-8"))
    ]
    missing = [each for each in named if not (ROOT / each[1]).is_file()]
    missing += [each for each in named if each not in missing and f"def {each[2]}" not in (ROOT / each[1]).read_text()]
    assert named and not missing


def test_the_index_has_every_page():
    listed = re.findall(r"^\| \[([\w.]+)\]\(\1\) \| .+ \|$", page("README"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in DOCS.glob("*.md") if path.name != "README.md")


def test_no_page_holds_a_placeholder():
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")]
    assert not [path.name for path in pages if re.search(r"@[A-Z_]+@", path.read_text(encoding="utf-8"))]


# ---- Numbers that are in two places ----


def results(label: str) -> list:
    return sorted((DOCS / "results" / "quickstart" / label).glob("seed_*"))


def readme_row(method: str) -> list:
    (row,) = re.findall(rf"^\| {re.escape(method)} \| (.+) \|$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    return [cell.strip() for cell in row.split("|")]


@pytest.mark.parametrize("omega", ["0", "1"])
def test_the_readmes_returns_of_dipole_are_those_of_the_runs(omega):
    means = {}
    for folder in results("dipole"):
        with open(folder / "greediness.csv", newline="") as file:
            for row in csv.DictReader(file):
                if float(row["greediness"]) == float(omega):
                    means.setdefault(row["num_candidates"], []).append(float(row["return"]))
    cells = [f"{sum(means[count]) / len(means[count]):.0f}" for count in ("1", "16")]
    assert readme_row(f"DIPOLE, omega {omega}") == [*cells, str(len(means["1"]))]


@pytest.mark.parametrize("name", ["rebrac", "iql", "fql", "ifql", "dql", "qsm"])
def test_the_readmes_returns_of_the_baselines_are_those_of_the_runs(name):
    scores = [json.loads((folder / "result.json").read_text())["score"] for folder in results(name)]
    title = {"rebrac": "ReBRAC"}.get(name, name.upper())
    assert [cell for cell in readme_row(title) if cell] == [f"{sum(scores) / len(scores):.0f}", str(len(scores))]


def tables_of(text: str) -> list:
    """The tables of a page as lists of rows of cells, the header first."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    rows = [
        [line.strip("|").split("|") for line in block.splitlines() if not set(line) <= set("|-:")] for block in blocks
    ]
    return [[[cell.strip() for cell in row] for row in table] for table in rows]


def published(source: str, suite: str) -> dict:
    """{task or category: {method: score}} of one table of harness/report/published.yaml."""
    tables = yaml.safe_load((ROOT / "harness" / "report" / "published.yaml").read_text(encoding="utf-8"))["tables"]
    found = [table for table in tables if table["source"].startswith(source) and table["data"]["suite"] == suite]
    methods, scores = found[0]["methods"], found[0]["scores"]
    return {key: dict(zip(methods, map(str, row), strict=True)) for key, row in scores.items()}


@pytest.mark.parametrize(("suite", "place"), [("exorl", 0), ("ogbench", 1)])
def test_the_published_scores_of_dipoles_page_are_all_of_the_papers(suite, place):
    (_, *methods), *rows = tables_of(section(page("dipole"), "Published scores"))[place]
    names = {"DIPOLE, N = 1": "DIPOLE without rejection sampling"}
    shown = {
        row[0].replace(" ", "_"): {
            names.get(method, method): score for method, score in zip(methods, row[1:], strict=True)
        }
        for row in rows
    }
    assert shown == published("Liang", suite)


@pytest.mark.parametrize("name", ["iql", "rebrac", "ifql", "fql"])
def test_the_published_scores_of_a_baselines_page_are_the_papers(name):
    method = {"rebrac": "ReBRAC"}.get(name, name.upper())
    ogbench, exorl = tables_of(section(page(name), "Published scores"))
    assert {task.replace(" ", "_"): score for task, score in zip(*exorl, strict=True)} == {
        task: scores[method] for task, scores in published("Liang", "exorl").items()
    }
    scores = published("Park", "ogbench")
    for category, default, *_, at_default, tasks, mean in ogbench[1:]:
        expected = [scores[f"{category}/{number}"][method] for number in range(1, 6)]
        assert (tasks.split("/"), mean) == (expected, scores[category][method]), category
        assert at_default == expected[int(default) - 1], category
