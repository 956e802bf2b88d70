"""Runs an agent's updates: one by one, or on a GPU as a CUDA graph that holds several updates.

The graph holds the sampling of the minibatches, the updates and the target networks' steps, so that nothing waits for
Python between two kernels. It advances the agent's own generators: its random numbers are those of single updates.
"""

from typing import Callable, Sequence

import torch

UPDATES_PER_REPLAY = 10  # updates that one replay of the graph makes
WARM_UP_UPDATES = 3  # single updates before the capture, in which libraries and the optimiser set themselves up


class Updates:
    """Advances `agent` on minibatches of `next_batch()`.

    generators: those that the agent and next_batch draw from; captured: whether to replay a CUDA graph, which needs
    agent and data on a GPU.
    """

    def __init__(
        self,
        agent: torch.nn.Module,
        next_batch: Callable[[], dict],
        generators: Sequence[torch.Generator] = (),
        captured: bool = False,
    ):
        self.agent, self.next_batch, self.generators, self.captured = agent, next_batch, generators, captured
        # Single updates have a stream of their own: a capture must not find autograd's nodes on the default one.
        self.stream = torch.cuda.Stream() if captured and torch.cuda.is_available() else None
        self.made = 0
        self.replay: Callable[[], None] | None = None
        self.replay_metrics: dict = {}  # of a replay's last update, in the graph's own memory

    def advance(self, room: int) -> tuple[int, dict]:
        """Makes one update, or a replay of several if it fits into `room`; returns (count, metrics of the last one).

        With less room than a replay takes, as in an online phase, nothing is captured either.
        """
        if not self.captured or self.made < WARM_UP_UPDATES or room < UPDATES_PER_REPLAY:
            self.made += 1
            return 1, self._single()
        if self.replay is None:
            self.replay = self._capture()
        self.replay()
        self.made += UPDATES_PER_REPLAY
        return UPDATES_PER_REPLAY, self.replay_metrics

    def _single(self) -> dict:
        if self.stream is None:
            return self.agent.update(self.next_batch())
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            metrics = self.agent.update(self.next_batch())
        torch.cuda.current_stream().wait_stream(self.stream)
        return metrics

    def _capture(self) -> Callable[[], None]:
        """Records UPDATES_PER_REPLAY updates; nothing is computed until they are replayed."""
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, stream=self.stream):
            for _ in range(UPDATES_PER_REPLAY):
                self.replay_metrics = self.agent.update(self.next_batch())
        return graph.replay
