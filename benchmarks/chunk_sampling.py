"""What a minibatch of chunks costs beside one of single transitions: CPU time of 256 of a million rows, by turns.

    taskset -c 1 python -m benchmarks.chunk_sampling

Prints the median over the rounds of the ratio of the two.
"""

import functools
import statistics
import time

import torch

from benchmarks.throughput import SIZES, random_dataset, rate, waiting_for
from common.errors import CommandParser, exit_on_user_error
from envs.chunks import ChunkedDataset
from envs.dataset import Chunk

ROWS, SECONDS = 1_000_000, 0.01


def main() -> None:
    parser = CommandParser("python -m benchmarks.chunk_sampling", __doc__)
    parser.add_argument("--rounds", type=int, default=101)
    with exit_on_user_error():
        rounds = parser.parse_args().rounds
        torch.set_num_threads(1)
        cpu, size, generator = torch.device("cpu"), SIZES["published"], torch.Generator().manual_seed(0)
        single = random_dataset(size, cpu, ROWS)
        sets = single, ChunkedDataset(single, Chunk(5, 0.99))
        ratios = []
        for _ in range(rounds):
            samples = (functools.partial(data.sample, size.batch_size, generator) for data in sets)
            speeds = [rate(sample, SECONDS, waiting_for(cpu), time.process_time) for sample in samples]
            ratios.append(speeds[0] / speeds[1])
        print(f"chunks of 5 / single transitions: {statistics.median(ratios):.2f} (median of {rounds} rounds)")


if __name__ == "__main__":
    main()
