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
from typing import Dict, Optional

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )?(?:python|pip) .+")
INSTALL = "installing takes minutes and internet; .ci/run does it in a fresh environment"

TUNE = "python -m harness.tune --algorithm dipole --config configs/dipole/quickstart.yaml"
COLLECT = "python -m envs.exorl.tasks collect"
TRAIN = "python algorithms/dipole.py --config configs/dipole/"
QUICKSTART = f"{TRAIN}quickstart.yaml"
MINUTES = "minutes of training: a few updates and one episode show that the command works"
TINY_TRAINING = (
    " --offline_steps 4 --log_interval 2 --checkpoint_interval 4 --eval_interval 4 --eval_episodes 1"
    " --eval_environments 1 --batch_size 16 --actor_hidden_dims [8] --value_hidden_dims [8]"
)
TINY_CARTPOLE = f"{TINY_TRAINING} --collect_episodes 1 --num_candidates 1 --flow_steps 1 --final_report []"
OFFICIAL_DATA = "the official data need internet: a tiny set made by OGBench's scripts, in a maze, takes its place"
MAZE = " --task ogbench/pointmaze-medium-navigate-singletask-task1-v0 --data_dir data --num_candidates 1 --flow_steps 1"
HOURS = "the whole command takes from half an hour to hours"


@dataclass(frozen=True)
class Form:
    """How a command of the README is run: `fast` and `slow` are whole commands, None = not in that set.

    `after` names what must be there first, a key of PREPARATIONS.
    """

    fast: Optional[str]
    slow: Optional[str]
    reason: str = ""
    after: str = ""


PREPARATIONS = {  # commands of the README, shortened, that make what others need
    "own run": "python -m examples.greediness_sweep",
    "maze": "python -m envs.ogbench.generate pointmaze-medium-navigate --transitions 1000 --workers 1 --out data",
    "cartpole run": f"{QUICKSTART}{TINY_CARTPOLE} --data_dir tiny --run_dir tiny",
}
OWN_RUN, CARTPOLE_RUN = (
    "runs/custom_task/own/reach/seed_0",
    "tiny/dipole/exorl/local_sticky_random/cartpole_swingup/seed_0",
)
OWN = "DIPOLE_SUITES=own=examples.custom_task "

FORMS: Dict[str, Form] = {
    f"pip install -r requirements.txt && {QUICKSTART}": Form(QUICKSTART + TINY_CARTPOLE, QUICKSTART, MINUTES),
    "pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu": Form(None, None, INSTALL),
    "pip install -r requirements-dev.txt && python -m pytest": Form(None, None, "this is it; .ci/run gives it"),
    f"{QUICKSTART} --seeds 0 1 2": Form(
        f"{QUICKSTART}{TINY_CARTPOLE} --run_dir seeds --seeds 0 1", f"{QUICKSTART} --run_dir seeds --seeds 0 1", MINUTES
    ),
    "pip install -r requirements-playground.txt && python -m harness.playground RUN_DIR": Form(
        None, None, "a page that stays open: tests/test_playground_page.py opens it in a browser"
    ),
    "python -m tests.golden tests/golden/*.npz": Form(
        "python -m tests.golden tests/golden/dipole.npz", "python -m tests.golden tests/golden/*.npz", "one case"
    ),
    "python -m harness.compare --config configs/compare/quickstart.yaml": Form(
        None,
        f"{OWN}python -m harness.compare --config short.yaml",
        f"{HOURS}; its runs are processes of their own, which tests/test_compare.py covers in the fast set",
        "short matrix",
    ),
    "python -m harness.compare --config configs/compare/quickstart.yaml --report_only": Form(
        f"{OWN}python -m harness.compare --config short.yaml --report_only",
        f"{OWN}python -m harness.compare --config short.yaml --report_only",
        HOURS,
        "short matrix",
    ),
    f"{OWN}python algorithms/dipole.py --task own/reach --offline_steps 5_000": Form(
        f"{OWN}python algorithms/dipole.py --task own/reach{TINY_TRAINING}",
        f"{OWN}python algorithms/dipole.py --task own/reach --label slow --offline_steps 50",
        MINUTES,
    ),
    "python -m examples.greediness_sweep": Form(None, "python -m examples.greediness_sweep", "run as a preparation"),
    "python algorithms/baselines/iql.py --config configs/iql/quickstart.yaml": Form(
        f"{OWN}python algorithms/baselines/iql.py --config configs/iql/quickstart.yaml --task own/reach{TINY_TRAINING}",
        "python algorithms/baselines/iql.py --config configs/iql/quickstart.yaml",
        MINUTES,
    ),
    "python -m pytest tests/test_agents.py tests/test_files_agree.py": Form(None, None, "part of this very test run"),
    "python algorithms/dipole.py --help": Form("python algorithms/dipole.py --help", None),
    "python -m harness.evaluate RUN_DIR --greediness 0 1 --num_candidates 1 32": Form(
        f"{OWN}python -m harness.evaluate {OWN_RUN} --greediness 0 1 --num_candidates 1 32 --episodes 2",
        f"{OWN}python -m harness.evaluate {OWN_RUN} --greediness 0 1 --num_candidates 1 32",
        "a run of the example's short episodes",
        "own run",
    ),
    "python -m harness.evaluate RUN_DIR --video_episodes 3": Form(
        None,
        f"MUJOCO_GL=egl python -m harness.evaluate {CARTPOLE_RUN} --video_episodes 3",
        "drawing takes seconds and graphics: tests/test_video.py draws in the fast set",
        "cartpole run",
    ),
    f"pip install -r requirements-tune.txt && {TUNE} --trials 20": Form(
        f"{TUNE} --trials 1 --collect_episodes 1{TINY_TRAINING}",
        f"{TUNE} --trials 2 --collect_episodes 2 --offline_steps 50",
        HOURS,
    ),
    f"{TRAIN}ogbench/cube-double-play.yaml": Form(
        f"{TRAIN}ogbench/cube-double-play.yaml{MAZE}{TINY_TRAINING}",
        f"{TRAIN}ogbench/cube-double-play.yaml{MAZE} --offline_steps 20 --eval_episodes 2",
        OFFICIAL_DATA,
        "maze",
    ),
    f"{TRAIN}ogbench-online/cube-double-play.yaml": Form(
        f"{TRAIN}ogbench-online/cube-double-play.yaml --run_dir online{MAZE}{TINY_TRAINING} --online_steps 2",
        f"{TRAIN}ogbench-online/cube-double-play.yaml --run_dir online{MAZE} --offline_steps 20 --online_steps 20"
        " --eval_episodes 2",
        OFFICIAL_DATA,
        "maze",
    ),
    "python -m envs.ogbench.generate cube-single-play --transitions 100000 --workers 2 --out data": Form(
        PREPARATIONS["maze"],
        "python -m envs.ogbench.generate cube-single-play --transitions 2000 --workers 2 --out data",
        "a hundred thousand transitions of the arm take minutes",
    ),
    f"{COLLECT} cartpole --collector sticky_random --episodes 100 --data_dir data": Form(
        f"{COLLECT} cartpole --collector sticky_random --episodes 1 --data_dir collected",
        f"{COLLECT} cartpole --collector sticky_random --episodes 100 --data_dir collected",
        "one episode instead of a hundred",
    ),
    f"pip install -r requirements-collect.txt && {COLLECT} walker --collector rnd --episodes 300 --data_dir data": Form(
        None,
        f"{COLLECT} walker --collector rnd --episodes 2 --data_dir collected",
        "300 episodes with their learning take a quarter of an hour; tests/test_exorl_rnd.py is its fast test",
    ),
    "python -m envs.exorl.tasks convert walker --collector rnd": Form(
        "python -m envs.exorl.tasks convert walker --collector rnd",
        None,
        "the released set needs internet: one episode of random actions takes its place",
        "released walker",
    ),
    "pip install -r requirements-driving.txt && python -m envs.driving.collect --logs 200 --workers 2": Form(
        "python -m envs.driving.collect --logs 1 --workers 1",
        "python -m envs.driving.collect --logs 4 --workers 2",
        "200 logs take minutes",
    ),
    "python -m harness.throughput --size quickstart": Form(
        "python -m harness.throughput --size quickstart --algorithm iql --seconds 0.01",
        "python -m harness.throughput --size quickstart",
        "one algorithm, too short to be a measurement",
    ),
}
SHORT_COMPARISON = """\
name: short
config: configs/{algorithm}/quickstart.yaml
tasks: {cartpole: [own/reach]}
seeds: [0]
overrides: {threads: 1, offline_steps: 4, eval_interval: 4, eval_episodes: 2, batch_size: 16, actor_hidden_dims: [8]}
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
        for name in ("algorithms", "configs", "envs", "examples", "harness", "tests"):
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
        elif need == "released walker":
            self.run_here(f"{COLLECT} walker --collector random --episodes 1 --data_dir data")
            released = self.folder / "home" / ".exorl" / "data" / "walker" / "rnd" / "buffer"
            shutil.copytree(self.folder / "data" / "walker" / "local_random" / "buffer", released)
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
    assert len([line for line in example.splitlines() if line]) <= 10
    shutil.copy(ROOT / "algorithms" / "dipole.py", tmp_path)  # tests/test_agents.py imports copies without the rest
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "dipole", None)  # forgotten afterwards
    del sys.modules["dipole"]
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert Path(sys.modules["dipole"].__file__).parent == tmp_path
    assert names["actions"].shape == (8, 6) and all(metric.isfinite() for metric in names["metrics"].values())


def test_adding_a_baseline_is_one_file_and_its_config(tmp_path):
    for name in ("algorithms", "configs", "envs", "harness"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    source = (ROOT / "algorithms" / "baselines" / "iql.py").read_text()
    renamed = source.replace("IQLConfig", "MineConfig").replace("class IQL(", "class Mine(")
    (tmp_path / "algorithms" / "baselines" / "mine.py").write_text(re.sub(r"\bIQL\(config,", "Mine(config,", renamed))
    (tmp_path / "configs" / "mine").mkdir()
    shutil.copy(ROOT / "configs" / "iql" / "quickstart.yaml", tmp_path / "configs" / "mine")
    script = (
        "from harness.algorithms import load_algorithm; from harness.config_file import load_config\n"
        "mine = load_algorithm('mine'); config = load_config(mine.config_class, 'configs/mine/quickstart.yaml')\n"
        "print(mine.agent_class(config, 3, 2).act(__import__('torch').zeros(1, 3)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert "[1, 2]" in done.stdout, done.stderr


def test_every_algorithm_of_the_repository_is_in_the_readme():
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "algorithms").rglob("[!_]*.py")]
    assert not [file for file in files if f"`{file}`" not in README]


def test_ci_runs_the_test_command_of_the_readme():
    command = "pip install -r requirements-dev.txt && python -m pytest"
    assert command in README.splitlines()
    assert command in (ROOT / ".ci" / "run").read_text()
