"""A comparison on a real Ray cluster of this machine, some of whose machines are lost."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from common.errors import UserError
from harness.algorithms import ROOT
from harness.comparison.ray_workers import check_cluster, connected, wait_for_lock, work_on
from tests.test_run import assert_same_run, checkpoint_of, rows_without_times

CONFIG = """\
task: exorl/local_sticky_random/cartpole_swingup
data_dir: {data}
collect_episodes: 2
device: cpu
threads: 1
offline_steps: 1000
log_interval: 50
checkpoint_interval: 50
eval_interval: 500
eval_episodes: 1
eval_environments: 1
batch_size: 16
actor_hidden_dims: [16, 16]
value_hidden_dims: [16, 16]
"""
MATRIX = """\
name: small
description: For a test.
config: {folder}/config.yaml
run_dir: {folder}/{name}
tasks:
  cartpole: [exorl/local_sticky_random/cartpole_swingup]
seeds: [0, 1]
algorithms: [iql, rebrac]
"""
MEMORY = {"object_store_memory": 80 * 2**20}  # bytes per machine; Ray would take a third of the real one's
PATIENCE = 600  # seconds until something that must happen has happened


# ---- Without Ray ----


def test_missing_ray_names_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="run: pip install -r requirements-ray.txt"):
        check_cluster("auto", 1, 0)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "--ray 127.0.0.1:1: nothing answers there"),
        ("127.0.0.1:99999", "--ray 127.0.0.1:99999: nothing answers there"),
        ("head", "--ray head: give host:port of the cluster's head"),
        ("ray://127.0.0.1:10001", "give host:port of the cluster's head"),
    ],
)
def test_an_address_without_a_cluster_is_one_sentence(address, message):
    with pytest.raises(UserError) as raised:
        check_cluster(address, 1, 0)
    assert message in str(raised.value)


def test_a_machine_that_does_not_see_the_comparisons_folder_runs_nothing(tmp_path):
    assert work_on("a", tmp_path / "run", [["true"]], {}, tmp_path) == "finished"
    with pytest.raises(UserError, match="not the same folder on .*, choose a run_dir on storage that all share"):
        work_on("b", tmp_path / "other", [["true"]], {}, tmp_path / "elsewhere")
    assert not (tmp_path / "other").exists()


def test_the_lock_is_waited_for(tmp_path):
    lock = tmp_path / "lock"
    wait_for_lock(lock)  # of a run that was never begun: returns
    waiter = threading.Thread(target=wait_for_lock, args=(lock,))
    with open(lock, "w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        waiter.start()
        waiter.join(1.0)
        assert waiter.is_alive()
    waiter.join(PATIENCE)
    assert not waiter.is_alive()


# ---- On a cluster ----


@pytest.fixture(scope="module")
def cluster():
    """A Ray head without cores and two machines with one core each, on the loopback; yields ray's Cluster."""
    pytest.importorskip("ray", reason="needs requirements-ray.txt")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **MEMORY})
    for _ in range(2):
        cluster.add_node(num_cpus=1, **MEMORY)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the config, the data and the runs of all comparisons here."""
    folder = tmp_path_factory.mktemp("ray")
    folder.joinpath("config.yaml").write_text(CONFIG.format(data=folder / "data"))
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder):
    """Folders of the runs of a comparison that worked here without Ray, by name."""
    compare = start_comparison(folder, "undisturbed", "--workers", "2")
    assert compare.wait(PATIENCE) == 0, (folder / "undisturbed.log").read_text()
    return run_folders(folder, "undisturbed")


def start_comparison(folder: Path, name: str, *flags: str) -> subprocess.Popen:
    """harness.compare in a process of its own; prints to <name>.log."""
    matrix = folder / f"{name}.yaml"
    matrix.write_text(MATRIX.format(folder=folder, name=name))
    with open(folder / f"{name}.log", "a") as log:
        command = [sys.executable, "-m", "harness.compare", "--config", str(matrix), *flags]
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def run_folders(folder: Path, name: str) -> dict:
    runs = folder / name / "comparisons" / "small" / "runs"
    return {str(path.parent.relative_to(runs)): path.parent for path in sorted(runs.rglob("config.yaml"))}


def until(condition):
    """The condition's value as soon as it holds."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, "what had to happen has not happened"
        time.sleep(0.02)
    return value


def descendants(parent: int) -> list:
    """Processes that `parent` started, those that they started, and so on."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
    found = [parent]
    for each in found:
        found += [process for process, its_parent in parents.items() if its_parent == each]
    return found[1:]


def run_at_work(raylet: int, folder: Path, name: str):
    """(process, run folder) of the run on that raylet's machine once it has a checkpoint; None before."""
    for process in descendants(raylet):
        try:
            command = Path(f"/proc/{process}/cmdline").read_text().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "--seed" in command and "--label" in command:
            first = command.index("--task")
            flags = dict(zip(command[first::2], command[first + 1 :: 2], strict=False))
            run = Path(flags["--run_dir"], flags["--label"], flags["--task"], f"seed_{flags['--seed']}")
            if (
                run.is_relative_to(folder / name)
                and (run / "checkpoint.pt").exists()
                and not (run / "result.json").exists()
            ):
                return process, run
    return None


def assert_equal_runs(one: Path, other: Path) -> None:
    assert_same_run(one, other)
    assert rows_without_times(one, "reevaluation.csv") == rows_without_times(other, "reevaluation.csv")
    assert checkpoint_of(one)["loop"]["step"] == 1000


def lose_the_machine(raylet: int, process: int) -> None:
    """As when its power fails: the raylet first, so that nobody reports the end of the others."""
    others = descendants(raylet)
    for each in [raylet, *others]:
        os.kill(each, signal.SIGKILL)


def lose_the_raylet(raylet: int, process: int) -> None:
    """Its workers may go on without it: the run ends well or is started again."""
    os.kill(raylet, signal.SIGKILL)


def shut_down(raylet: int, process: int) -> None:
    """What the run notices of a machine that shuts down."""
    os.kill(process, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("lose", [lose_the_machine, lose_the_raylet, shut_down], ids=lambda lose: lose.__name__)
def test_a_run_that_is_lost_finishes_with_the_same_results(lose, cluster, folder, undisturbed, request):
    victim = cluster.add_node(num_cpus=1, **MEMORY)
    request.addfinalizer(lambda: cluster.remove_node(victim, allow_graceful=False))
    raylet = victim.all_processes["raylet"][0].process.pid
    compare = start_comparison(folder, lose.__name__, "--ray", cluster.address)
    process, interrupted = until(lambda: run_at_work(raylet, folder, lose.__name__))
    lose(raylet, process)
    assert compare.wait(PATIENCE) == 0, (folder / f"{lose.__name__}.log").read_text()
    assert not Path(f"/proc/{process}").exists(), "the lost run is still at work"
    log = (interrupted / "log.txt").read_text()
    if lose is not lose_the_raylet:
        assert log.count("==== ") == 2 and "continuing after " in log, log
    assert not (interrupted / "error.txt").exists()
    runs = run_folders(folder, lose.__name__)
    assert runs.keys() == undisturbed.keys() and len(runs) == 4
    for run in runs:
        assert_equal_runs(runs[run], undisturbed[run])
    assert (folder / lose.__name__ / "comparisons" / "small" / "report.md").exists()


def wait_for_machines(cluster, count: int) -> None:
    """Until the head lists as many: it takes half a minute to notice that one is dead."""
    with connected(cluster.address) as ray:
        until(lambda: sum(node["Alive"] for node in ray.nodes()) == count)


@pytest.mark.slow
def test_ctrl_c_leaves_checkpoints_from_which_the_same_command_continues(cluster, folder, undisturbed):
    wait_for_machines(cluster, 3)
    compare = start_comparison(folder, "stopped", "--ray", cluster.address)
    raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.worker_nodes]
    at_work = until(lambda: [found for raylet in raylets if (found := run_at_work(raylet, folder, "stopped"))])
    compare.send_signal(signal.SIGINT)
    assert compare.wait(PATIENCE) == 128 + signal.SIGINT, (folder / "stopped.log").read_text()
    until(lambda: not any(Path(f"/proc/{process}").exists() for process, _ in at_work))
    logs = [run / "log.txt" for run in run_folders(folder, "stopped").values()]
    assert any("stopped after" in log.read_text() for log in logs)
    assert start_comparison(folder, "stopped", "--ray", cluster.address).wait(PATIENCE) == 0
    runs = run_folders(folder, "stopped")
    for run in undisturbed:
        assert_equal_runs(runs[run], undisturbed[run])


@pytest.mark.slow
def test_a_cluster_that_cannot_work_is_one_sentence(cluster):
    wait_for_machines(cluster, 3)
    with pytest.raises(UserError, match="none of the cluster's 3 machines has the 64 CPUs and 0 GPUs of a run"):
        check_cluster(cluster.address, 64, 0)
    with pytest.raises(UserError, match="none of the cluster's 3 machines has the 1 CPUs and 0.5 GPUs of a run"):
        check_cluster(cluster.address, 1, 0.5)
    check_cluster(cluster.address, 1, 0)


@pytest.mark.slow
def test_a_run_that_fails_by_itself_is_not_started_again(cluster, folder):
    compare = start_comparison(folder, "failing", "--ray", cluster.address)
    raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.worker_nodes]
    (process, failed), *_ = until(lambda: [at for raylet in raylets if (at := run_at_work(raylet, folder, "failing"))])
    os.kill(process, signal.SIGKILL)
    assert compare.wait(PATIENCE) == 1, (folder / "failing.log").read_text()
    assert "ended by signal SIGKILL" in (failed / "error.txt").read_text()
    assert (failed / "log.txt").read_text().count("==== ") == 1
    finished = [path for path in run_folders(folder, "failing").values() if (path / "result.json").exists()]
    assert len(finished) == 3
