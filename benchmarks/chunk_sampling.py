"""What a minibatch of chunks costs beside one of single transitions: CPU time of 256 of a million rows, by turns.

taskset -c 1 python -m benchmarks.chunk_sampling
"""

import statistics
import time

import torch

from common.errors import CommandParser, exit_on_user_error
from envs.chunks import ChunkedDataset
from envs.dataset import Chunk, Dataset

ROWS, BATCH, CALLS = 1_000_000, 256, 50


def seconds(dataset: Dataset, generator: torch.Generator) -> float:
    started = time.process_time()
    for _ in range(CALLS):
        dataset.sample(BATCH, generator)
    return time.process_time() - started


def main() -> None:
    parser = CommandParser("python -m benchmarks.chunk_sampling", __doc__)
    parser.add_argument("--rounds", type=int, default=101)
    with exit_on_user_error():
        rounds = parser.parse_args().rounds
        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(0)
        observations = torch.rand(ROWS, 28, generator=generator)
        parts = observations, observations[:, :5], observations[:, 0], torch.ones(ROWS), torch.arange(ROWS - 1)
        single = Dataset(*parts)
        chunks = ChunkedDataset(single, Chunk(5, 0.99))
        ratios = [seconds(chunks, generator) / seconds(single, generator) for _ in range(rounds)]
        print(f"chunks of 5 / single transitions: {statistics.median(ratios):.2f} (median of {rounds} rounds)")


if __name__ == "__main__":
    main()
