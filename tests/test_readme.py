"""The README is true: every command in it runs, its example runs, and its test command is CI's.

Each command of the README, in a block, a table or a sentence, has a line in FORMS: the form that the fast tests run, in
this process and in seconds, and the one that the slow tests run, as a user would; where a form is shorter than the
command, the line says why. A command without a line fails, and so does a line without a command.
"""

import contextlib
import glob
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )?(?:python|pip) .+")
INSTALL = "installing takes minutes and internet; .ci/run does it in a fresh environment"

TRAIN = "python algorithms/dipole.py"
QUICKSTART = f"{TRAIN} --config configs/dipole/exorl.yaml"
MINUTES = "minutes of training: a few updates and one episode show that the command works"
TINY_TRAINING = (
    " --offline_steps 4 --log_interval 2 --checkpoint_interval 4 --eval_interval 4 --eval_episodes 1"
    " --eval_environments 1 --batch_size 16 --actor_hidden_dims [8] --value_hidden_dims [8]"
)
TINY_CARTPOLE = f"{TINY_TRAINING} --collect_episodes 1 --num_candidates 1 --flow_steps 1"
OFFICIAL_DATA = "the official data need internet: a tiny set made by OGBench's scripts, in a maze, takes its place"
CUBE = "--task ogbench/cube-double-play-singletask-task2-v0"
MAZE = "--task ogbench/pointmaze-medium-navigate-singletask-task1-v0 --data_dir data --flow_steps 1"
HOURS = "the whole command takes half an hour"


@dataclass(frozen=True)
class Form:
    """How a command of the README is run: `fast` and `slow` are whole commands, None = not in that set.

    `after` names what must be there first, a key of PREPARATIONS.
    """

    fast: str | None
    slow: str | None
    reason: str = ""
    after: str = ""


PREPARATIONS = {  # commands, shortened, that make what others need
    "maze": "python -m envs.ogbench.generate pointmaze-medium-navigate --transitions 1000 --workers 1 --out data",
    "cartpole run": f"{QUICKSTART}{TINY_CARTPOLE} --run_dir tiny --sweep []",
}
CARTPOLE_RUN = "tiny/dipole/exorl/local_sticky_random/cartpole_swingup/seed_0"

FORMS: dict[str, Form] = {
    f"pip install -r requirements.txt && {QUICKSTART}": Form(
        f"{QUICKSTART}{TINY_CARTPOLE} --sweep [num_candidates=1]", QUICKSTART, MINUTES
    ),
    "pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu": Form(None, None, INSTALL),
    "pip install -r requirements-dev.txt && python -m pytest": Form(None, None, "this is it; .ci/run gives it"),
    "python -m tests.golden tests/golden/*.npz": Form(
        "python -m tests.golden tests/golden/dipole.npz", "python -m tests.golden tests/golden/*.npz", "one case"
    ),
    "python -m harness.evaluate RUN_DIR --greediness 0 2 --num_candidates 1": Form(
        f"python -m harness.evaluate {CARTPOLE_RUN} --greediness 0 2 --num_candidates 1 --episodes 1",
        f"python -m harness.evaluate {CARTPOLE_RUN} --greediness 0 2 --num_candidates 1",
        "one episode",
        "cartpole run",
    ),
    f"{TRAIN} {CUBE}": Form(
        f"{TRAIN} {MAZE} --num_candidates 1{TINY_TRAINING}",
        f"{TRAIN} {MAZE} --offline_steps 20 --eval_episodes 2",
        OFFICIAL_DATA,
        "maze",
    ),
    f"python algorithms/baselines/fql.py {CUBE} --variant online --seeds 0 1 2": Form(
        f"python algorithms/baselines/fql.py {MAZE}{TINY_TRAINING} --online_steps 2 --variant online --seeds 0 1",
        f"python algorithms/baselines/fql.py {MAZE} --variant online --offline_steps 20 --online_steps 20 --seeds 0 1",
        OFFICIAL_DATA,
        "maze",
    ),
    "python -m harness.compare --config configs/compare/quickstart.yaml": Form(
        None,
        "python -m harness.compare --config short.yaml",
        f"{HOURS}; its runs are processes of their own, which tests/test_compare.py covers in the fast set",
        "short matrix",
    ),
}
SHORT_COMPARISON = """\
name: short
tasks: {cartpole: [exorl/local_sticky_random/cartpole_swingup]}
seeds: [0]
overrides: {collect_episodes: 1, offline_steps: 4, eval_interval: 4, eval_episodes: 2, batch_size: 16}
num_candidates: [1, 2]
algorithms: [dipole, {label: dipole-single, evaluation_of: dipole, act: {greediness: 0.0}}]
"""


def commands_of(text: str) -> list:
    """Every command of a page: lines of its blocks without a language, and code in sentences and tables."""
    found, language = [], None  # language: of the block that a line is in, None outside
    for line in text.splitlines():
        if line.startswith("```"):
            language = line.removeprefix("```") if language is None else None
        elif language == "":
            found.append(line)
        elif language is None:
            found += re.findall(r"`([^`]+)`", line)
    return [command for command in found if COMMAND.fullmatch(command)]


@contextlib.contextmanager
def as_main(arguments: list):
    """sys.argv as a command has it; torch's number of threads and sys.path as before, afterwards."""
    threads, path, argv = torch.get_num_threads(), list(sys.path), sys.argv
    sys.argv = arguments
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        sys.path[:], sys.argv = path, argv


class Checkout:
    """A folder with this repository's folders in it, where commands can leave what they make."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch):
        self.folder, self.made = folder, set()
        for name in ("algorithms", "common", "configs", "envs", "harness", "tests"):
            (folder / name).symlink_to(ROOT / name)
        patch.chdir(folder)
        patch.setenv("HOME", str(folder / "home"))  # the data folders of the suites are below it

    def run_here(self, command: str) -> None:
        """Runs a command of Python in this process."""
        words = shlex.split(command)
        with pytest.MonkeyPatch.context() as patch:
            while "=" in words[0]:
                patch.setenv(*words.pop(0).split("=", 1))
            assert words.pop(0) == "python"
            words = [match for word in words for match in (sorted(glob.glob(word)) or [word])]
            is_module = words[0] == "-m"
            with as_main(words[1:] if is_module else words):
                try:
                    if is_module:
                        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
                    else:
                        runpy.run_path(words[0], run_name="__main__")
                except SystemExit as end:
                    assert end.code in (0, None), f"{command}: exit code {end.code}"

    def run_as_user(self, command: str) -> str:
        """Runs a command in a shell of its own; returns what it printed."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=os.environ | {"PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def prepare(self, need: str) -> None:
        """Makes what other commands need, once."""
        if not need or need in self.made:
            return
        self.made.add(need)
        if need == "short matrix":
            (self.folder / "short.yaml").write_text(SHORT_COMPARISON)
        else:
            self.run_here(PREPARATIONS[need])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield Checkout(tmp_path_factory.mktemp("checkout"), patch)


def test_every_command_has_a_form_and_every_form_a_command():
    assert set(commands_of(README)) == set(FORMS)
    unexplained = [command for command, form in FORMS.items() if not form.reason and form.fast != command]
    assert not unexplained


@pytest.mark.parametrize("command", [command for command, form in FORMS.items() if form.fast])
def test_command(command, checkout, capsys):
    form = FORMS[command]
    checkout.prepare(form.after)
    checkout.run_here(form.fast)
    assert capsys.readouterr().out, "a command says what it did"


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command, form in FORMS.items() if form.slow])
def test_command_as_a_user_gives_it(command, checkout):
    form = FORMS[command]
    checkout.prepare(form.after)
    assert checkout.run_as_user(form.slow).strip(), "a command says what it did"


def test_what_pip_installs_is_in_the_repository_and_pinned_as_the_readme_says():
    for command in commands_of(README):
        for name in re.findall(r"pip install -r (\S+)", command):
            lines = (ROOT / name).read_text().splitlines()
            bad = [line for line in lines if not re.fullmatch(r"(-r \S+|#.*|\s*|[\w.-]+(\[[\w,]+\])?[<>=].*)", line)]
            assert lines and not bad, f"{name}: {bad}"
        for pin in re.findall(r"pip install (\w+==\S+)", command):
            assert pin in (ROOT / "requirements.txt").read_text().split()


def test_copy_one_file_example_runs(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    shutil.copy(ROOT / "algorithms" / "dipole.py", tmp_path)  # tests/test_agents.py imports copies without the rest
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "dipole", None)  # forgotten afterwards
    del sys.modules["dipole"]
    batch = {"observations": torch.randn(32, 17), "next_observations": torch.randn(32, 17)}
    batch |= {"actions": torch.rand(32, 6) * 2 - 1, "rewards": torch.rand(32), "masks": torch.ones(32)}
    names = {"batch": batch, "observations": torch.randn(8, 17)}
    exec(compile(example, "README.md", "exec"), names)
    assert Path(sys.modules["dipole"].__file__).parent == tmp_path
    assert names["actions"].shape == (8, 6) and all(metric.isfinite() for metric in names["metrics"].values())


def test_adding_a_baseline_is_one_file_and_its_settings(tmp_path):
    for name in ("algorithms", "common", "configs", "envs", "harness"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    source = (ROOT / "algorithms" / "baselines" / "iql.py").read_text()
    renamed = source.replace("IQLConfig", "MineConfig").replace("class IQL(", "class Mine(").replace("(IQL,", "(Mine,")
    (tmp_path / "algorithms" / "baselines" / "mine.py").write_text(renamed.replace('"IQL"', '"Mine"'))
    (tmp_path / "configs" / "mine").mkdir()
    shutil.copy(ROOT / "configs" / "iql" / "ogbench.yaml", tmp_path / "configs" / "mine")
    command = [sys.executable, "algorithms/baselines/mine.py", *CUBE.split(), "--show"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    shown = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "label: mine # default" in shown and any(
        line.startswith("inverse_temperature: 0.3 # ") and "configs/mine/ogbench.yaml" in line for line in shown
    ), done.stderr


def test_the_readme_fits_a_screen_or_two():
    assert len(README.splitlines()) <= 80


def test_ci_runs_the_test_command_of_the_readme():
    command = "pip install -r requirements-dev.txt && python -m pytest"
    assert command in README.splitlines()
    assert command in (ROOT / ".ci" / "run").read_text()
