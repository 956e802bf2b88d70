"""How fast evaluations are: seconds by the number of processes, and a run that evaluates beside its training.

    python -m benchmarks.evaluation --task ogbench/cube-single-play-singletask-task2-v0 --data_dir data
    python -m benchmarks.evaluation --task exorl/local_sticky_random/cartpole_swingup --data_dir data

The agent is DIPOLE with fresh networks of the given size and one thread. Numbers of processes take turns, since
machines are noisy; the second table trains the same run twice, with its evaluations at once and beside training.
"""

import dataclasses
import statistics
import tempfile
import time
from typing import List

import torch

from algorithms.dipole import DIPOLE, DIPOLEConfig
from common.errors import CommandParser, exit_on_user_error
from envs import load_task
from envs.task import Task
from harness.evaluation import GRID_SEED, Evaluator
from harness.run import run
from harness.training.evaluations import can_run_beside

ROUNDS = 3
WORKERS = (0, 1, 2)


def time_workers(task: Task, config: DIPOLEConfig) -> None:
    """Prints the seconds of one evaluation by the number of processes, the building of environments left out."""
    agent = DIPOLE(config, task.observation_dim, task.action_dim)
    seconds: dict = {workers: [] for workers in WORKERS}
    evaluators = {workers: Evaluator(task.make_env, config.eval_environments, workers) for workers in WORKERS}
    returns = {}
    for number in range(ROUNDS + 1):
        for workers, evaluator in evaluators.items():
            result = evaluator.evaluate(agent, config.eval_episodes, GRID_SEED)
            returns[workers] = result.returns.tolist()
            if number > 0:  # the first builds the environments
                seconds[workers].append(result.seconds)
    for evaluator in evaluators.values():
        evaluator.close()
    steps = int(result.lengths.sum())
    assert len(set(map(tuple, returns.values()))) == 1, "the numbers of processes gave different returns"
    print(f"{config.eval_episodes} episodes, {steps} steps, N = {config.num_candidates}, equal returns")
    for workers, values in seconds.items():
        median = statistics.median(values)
        factor = statistics.median(values_0 / value for values_0, value in zip(seconds[0], values, strict=True))
        print(f"{workers} processes: {median:.2f} s, {steps / median:.0f} steps/s, {factor:.2f} times as fast as 0")


def time_beside(task: Task, config: DIPOLEConfig) -> None:
    """Prints the seconds of the same short run with evaluations at once, in processes and beside training."""
    rows: List[tuple] = []
    for label, workers, threads in (("at once", 0, 1), ("beside training", 1, 1)):
        with tempfile.TemporaryDirectory() as folder:
            each = dataclasses.replace(config, run_dir=folder, eval_workers=workers, threads=threads)
            agent = DIPOLE(each, task.observation_dim, task.action_dim)
            assert can_run_beside(each, torch.device("cpu")) == (workers > 0), "there is no spare core here"
            started = time.perf_counter()
            (result,) = run([agent], task)
            rows.append((label, time.perf_counter() - started, result["score"]))
    assert rows[0][2] == rows[1][2], "the scores differ"
    for label, seconds, _ in rows:
        print(f"evaluations {label}: {seconds:.1f} s, {rows[0][1] / seconds:.2f} times as fast")


def main() -> None:
    parser = CommandParser("python -m benchmarks.evaluation", __doc__)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data_dir")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--num_candidates", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--width", type=int, default=256, help="of three hidden layers")
    parser.add_argument("--updates", type=int, default=600, help="of the run with four evaluations")
    with exit_on_user_error():
        options = parser.parse_args()
        torch.set_num_threads(1)
        task = load_task(options.task, options.data_dir)
        dims = (options.width,) * 3
        for count in options.num_candidates:
            config = DIPOLEConfig(
                task=options.task,
                device="cpu",
                threads=1,
                actor_hidden_dims=dims,
                value_hidden_dims=dims,
                num_candidates=count,
                eval_episodes=options.episodes,
                eval_environments=options.episodes,
                offline_steps=options.updates,
                eval_interval=options.updates // 4,
                checkpoint_interval=options.updates,
                log_interval=options.updates // 4,
            )
            time_workers(task, config)
        time_beside(task, config)


if __name__ == "__main__":
    main()
