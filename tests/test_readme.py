"""The README is true: its example runs, its files exist, and its test command is CI's."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_copy_one_file_example_runs(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    shutil.copy(ROOT / "algorithms" / "dipole.py", tmp_path)
    (tmp_path / "example.py").write_text(f"{example}\nprint(tuple(actions.shape), len(metrics))\n")
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("(8, 6) "), done.stderr


def test_links_and_commands_name_what_exists():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    missing = []
    for page in pages:
        text = page.read_text()
        links = [page.parent / link.split("#")[0] for link in re.findall(r"\]\((?!https?:)([^)#][^)]*)\)", text)]
        files = [ROOT / name for name in re.findall(r"(?:--config|python) ((?:configs|algorithms)/[\w./-]+)", text)]
        modules = [
            ROOT / Path(*name.split(".")) for name in re.findall(r"python -m ((?:envs|harness|tests)[\w.]*)", text)
        ]
        missing += [(page.name, str(path)) for path in links + files if not path.exists()]
        missing += [
            (page.name, str(path)) for path in modules if not (path.is_dir() or path.with_suffix(".py").is_file())
        ]
    assert not missing


def test_ci_runs_the_test_command_of_the_readme():
    command = "pip install -r requirements-dev.txt && python -m pytest"
    assert command in README.splitlines()
    assert command in (ROOT / ".ci" / "run").read_text()


def test_no_page_holds_a_placeholder():
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    assert not [page.name for page in pages if re.search(r"@[A-Z_]+@", page.read_text())]
