"""How fast evaluations are: seconds and steps per second by the number of environment processes.

    python -m benchmarks.evaluation --task ogbench/cube-single-play-singletask-task2-v0 --data_dir data
    python -m benchmarks.evaluation --task exorl/local_sticky_random/cartpole_swingup --data_dir data

The agent is DIPOLE with fresh networks of the given width and one thread. Numbers of processes take turns, since
machines are noisy; the building of the environments does not count.
"""

import contextlib
import statistics

import torch

from algorithms.dipole import DIPOLE, DIPOLEConfig
from common.errors import CommandParser, exit_on_user_error
from envs import load_task
from envs.task import Task
from harness.evaluation import GRID_SEED, Evaluator

ROUNDS = 3
WORKERS = (0, 1, 2)


def time_workers(task: Task, agent: DIPOLE, episodes: int) -> None:
    """Prints a line for each number of processes. Raises AssertionError if it changes a return."""
    seconds: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    returns, steps = set(), 0
    with contextlib.ExitStack() as stack:
        evaluators = {workers: stack.enter_context(Evaluator(task.make_env, episodes, workers)) for workers in WORKERS}
        for number in range(ROUNDS + 1):
            for workers, evaluator in evaluators.items():
                result = evaluator.evaluate(agent, episodes, GRID_SEED)
                returns.add(tuple(result.returns))
                steps = int(result.lengths.sum())
                if number > 0:  # the first builds the environments
                    seconds[workers].append(result.seconds)
    assert len(returns) == 1, "the returns depend on the number of processes"
    print(f"{task.name}, {steps} steps of {episodes} episodes, N = {agent.config.num_candidates}")
    for workers, measured in seconds.items():
        median = statistics.median(measured)
        factor = statistics.median(seconds[0]) / median
        print(f"{workers} processes: {median:.2f} s, {steps / median:.0f} steps/s, {factor:.2f} times as fast as 0")


def main() -> None:
    parser = CommandParser("python -m benchmarks.evaluation", __doc__)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data_dir")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--num_candidates", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--width", type=int, default=256, help="of three hidden layers")
    with exit_on_user_error():
        options = parser.parse_args()
        torch.set_num_threads(1)
        task, dims = load_task(options.task, options.data_dir), (options.width,) * 3
        for count in options.num_candidates:
            config = DIPOLEConfig(actor_hidden_dims=dims, value_hidden_dims=dims, num_candidates=count)
            time_workers(task, DIPOLE(config, task.observation_dim, task.action_dim), options.episodes)


if __name__ == "__main__":
    main()
