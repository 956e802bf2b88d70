"""Updates of one or several agents: one by one, or on a GPU as a CUDA graph that holds several updates of all of them.

A captured graph holds the sampling of the minibatches, the updates and the target networks' steps, so that nothing
waits for Python between two kernels; the agents run on streams of their own, in parallel. The random numbers are those
of updates made one by one: the graph advances the agents' own generators.
"""

from typing import Callable, List, Optional, Sequence

import torch

UPDATES_PER_REPLAY = 10  # updates of each agent that one replay of a graph makes
WARM_UP_UPDATES = 3  # made one by one before a capture: libraries and the optimiser set themselves up in them


class Updates:
    """Advances agents, each on minibatches of its own, and gives the metrics of the last update.

    agents: with `update(batch) -> metrics`; samplers: what gives each agent's next minibatch; generators: the
    torch.Generators that each agent and its sampler draw from; captured: whether to replay CUDA graphs, for agents
    and data on a GPU.
    """

    def __init__(
        self,
        agents: Sequence[torch.nn.Module],
        samplers: Sequence[Callable[[], dict]],
        generators: Sequence[Sequence[torch.Generator]],
        captured: bool,
    ):
        self.agents, self.samplers, self.generators = list(agents), list(samplers), list(generators)
        self.streams = [torch.cuda.Stream() for _ in self.agents] if captured else []
        self.captured = captured
        self.made = 0  # updates of each agent
        self.replay: Optional[Callable[[], None]] = None  # after the capture
        self.metrics: List[dict] = []  # of each agent's last update, in the graph's own memory

    @property
    def stride(self) -> int:
        """How many updates to ask for at a time, unless something is due before: as many as one replay makes."""
        return UPDATES_PER_REPLAY if self.replay is not None else 1

    def advance(self, count: int) -> List[dict]:
        """Makes `count` updates of each agent; returns each agent's metrics of the last one."""
        if self.captured and self.replay is None and self.made >= WARM_UP_UPDATES:
            self._capture()
        replays, single = divmod(count, UPDATES_PER_REPLAY) if self.replay is not None else (0, count)
        for _ in range(replays):
            self.replay()
        metrics = self._update(single) if single else self.metrics
        self.made += count
        return metrics

    def _update(self, count: int) -> List[dict]:
        """`count` updates of each agent, one agent after the other, or at the same time on the agents' streams."""
        if not self.streams:
            return [self._update_agent(index, count) for index in range(len(self.agents))]
        current, metrics = torch.cuda.current_stream(), []
        for stream in self.streams:
            stream.wait_stream(current)
        for index, stream in enumerate(self.streams):
            with torch.cuda.stream(stream):
                metrics.append(self._update_agent(index, count))
        for stream in self.streams:
            current.wait_stream(stream)
        return metrics

    def _update_agent(self, index: int, count: int) -> dict:
        for _ in range(count):
            metrics = self.agents[index].update(self.samplers[index]())
        return metrics

    def _capture(self) -> None:
        """Records UPDATES_PER_REPLAY updates of all agents; nothing is computed until they are replayed."""
        graph = torch.cuda.CUDAGraph()
        for generators in self.generators:
            for generator in generators:
                graph.register_generator_state(generator)
        with torch.cuda.graph(graph):
            self.metrics = self._update(UPDATES_PER_REPLAY)
        self.replay = graph.replay
