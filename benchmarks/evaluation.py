"""How fast evaluations are: seconds by the number of processes that host the environments.

    python -m benchmarks.evaluation --task ogbench/cube-single-play-singletask-task2-v0 --data_dir data
    python -m benchmarks.evaluation --task exorl/local_sticky_random/cartpole_swingup --data_dir data

The agent is DIPOLE with fresh networks of the given size and one thread. Numbers of processes take turns, since
machines are noisy.
"""

import statistics

import torch

from algorithms.dipole import DIPOLE, DIPOLEConfig
from common.errors import CommandParser, exit_on_user_error
from envs import load_task
from envs.task import Task
from harness.evaluation import GRID_SEED, Evaluator

ROUNDS = 3
WORKERS = (0, 1, 2)


def time_workers(task: Task, config: DIPOLEConfig, episodes: int) -> None:
    """Prints the seconds of one evaluation by the number of processes, the building of environments left out."""
    agent = DIPOLE(config, task.observation_dim, task.action_dim)
    seconds: dict = {workers: [] for workers in WORKERS}
    evaluators = {workers: Evaluator(task.make_env, episodes, workers) for workers in WORKERS}
    returns = {}
    for number in range(ROUNDS + 1):
        for workers, evaluator in evaluators.items():
            result = evaluator.evaluate(agent, episodes, GRID_SEED)
            returns[workers] = result.returns.tolist()
            if number > 0:  # the first builds the environments
                seconds[workers].append(result.seconds)
    for evaluator in evaluators.values():
        evaluator.close()
    steps = int(result.lengths.sum())
    assert len(set(map(tuple, returns.values()))) == 1, "the numbers of processes gave different returns"
    print(f"{episodes} episodes, {steps} steps, N = {config.num_candidates}, equal returns")
    for workers, values in seconds.items():
        median = statistics.median(values)
        factor = statistics.median(values_0 / value for values_0, value in zip(seconds[0], values, strict=True))
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
        task = load_task(options.task, options.data_dir)
        dims = (options.width,) * 3
        for count in options.num_candidates:
            config = DIPOLEConfig(actor_hidden_dims=dims, value_hidden_dims=dims, num_candidates=count)
            time_workers(task, config, options.episodes)


if __name__ == "__main__":
    main()
