"""A run's evaluations during training: at once, or of a snapshot in a process beside the training.

Both give the same numbers, bit for bit: a snapshot holds everything that acting depends on, and an episode's noise is
its own (harness/evaluation.py).
"""

import atexit
import collections
import io
import multiprocessing
import os
import queue
import signal
import threading
import time
from typing import Any, Callable, Deque, Optional, Tuple

import torch

from common.errors import UserError
from envs.task import Task
from harness.devices import leaves_cores, set_up_torch
from harness.environment_rows import EnvironmentFailure
from harness.evaluation import EVALUATION_SEED, EvaluationResult, Evaluator

SECONDS_TO_END = 10.0  # what the process gets to end by itself before it is killed


def can_run_beside(config: Any, device: torch.device) -> bool:
    """Whether evaluations may run beside the training: they are asked for, and a core is left for the policy.

    On the CPU the process of the evaluations needs as many threads as training, for equal numbers.
    """
    return config.eval_workers > 0 and (device.type == "cuda" or leaves_cores(config))


def take_snapshot(agent: torch.nn.Module) -> bytes:
    """The agent's state as it is now."""
    content = io.BytesIO()
    torch.save(agent.state_dict(), content)
    return content.getvalue()


def load_snapshot(agent: torch.nn.Module, snapshot: bytes) -> torch.nn.Module:
    """Gives the agent the snapshot's state but for its random stream, which may be another device's; returns it."""
    state = torch.load(io.BytesIO(snapshot), map_location="cpu", weights_only=True)
    agent.load_state_dict(state | {"noise": agent.noise.generator.get_state()})
    return agent


class Evaluations:
    """Evaluates agents one after the other; a context manager, closed at its end.

    `seconds` is how long the caller has waited for evaluations so far.
    """

    def __init__(self, task: Task, agent: torch.nn.Module, device: torch.device):
        """agent: one of those to come, for its class and config, which may differ in the seed."""
        config = agent.config
        self.episodes = config.eval_episodes
        environments = min(config.eval_environments, config.eval_episodes)
        self.beside = can_run_beside(config, device)
        self.seconds = 0.0
        self.waiting: Deque[Tuple[Callable, Optional[EvaluationResult]]] = collections.deque()  # in order
        if self.beside:
            self.evaluator = EvaluationProcess(task, agent, device, environments)
        else:
            self.evaluator = Evaluator(task.make_env, environments, config.eval_workers)

    def __enter__(self) -> "Evaluations":
        return self

    def __exit__(self, *exception: object) -> None:
        self.evaluator.close()

    def submit(self, agent: torch.nn.Module, then: Callable[[EvaluationResult], None]) -> Optional[bytes]:
        """Evaluates the agent as it is now; `collect` calls `then` with the result.

        Returns the snapshot of an evaluation that goes on meanwhile, None where it was made at once. Raises what
        `Evaluator.evaluate` raises.
        """
        started, snapshot, result = time.perf_counter(), None, None
        if self.beside:
            snapshot = take_snapshot(agent)
            self.evaluator.submit(snapshot, self.episodes)
        else:
            result = self.evaluator.evaluate(agent, self.episodes, EVALUATION_SEED)
        self.waiting.append((then, result))
        self.seconds += time.perf_counter() - started
        return snapshot

    def collect(self, wait: bool = False) -> None:
        """Calls `then` of those that are ready, in the order of their submission; with `wait`, of all.

        Raises the error of an evaluation in the process.
        """
        started = time.perf_counter()
        while self.waiting and (wait or not self.beside or self.evaluator.is_ready()):
            then, result = self.waiting[0]
            result = self.evaluator.result() if result is None else result
            self.waiting.popleft()
            then(result)
        self.seconds += time.perf_counter() - started


class EvaluationProcess:
    """An `Evaluator` in a process of its own, with the workers that the config asks for as its children.

    Answers come in the order of the snapshots. The process ends when its pipe is closed, also by the death of this one.
    """

    def __init__(self, task: Task, agent: torch.nn.Module, device: torch.device, environments: int):
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's and CUDA's state without threads
        self.connection, other_end = context.Pipe()
        # As for the environments' processes: it must run before multiprocessing's own handler, which waits for ever.
        atexit.register(self.close)
        arguments = (
            other_end,
            type(agent),
            (agent.config, agent.observation_dim, agent.action_dim),
            device,
            torch.get_num_threads(),
            (task.make_env, environments, agent.config.eval_workers),
        )
        self.process = context.Process(target=_evaluate_snapshots, args=arguments, name="evaluations")
        self.process.start()
        other_end.close()

    def submit(self, snapshot: bytes, episodes: int) -> None:
        """Asks for an evaluation of the snapshot."""
        try:
            self.connection.send((snapshot, episodes))
        except OSError:
            raise self._ended() from None

    def is_ready(self) -> bool:
        """Whether `result` would return at once."""
        return self.connection.poll()

    def result(self) -> EvaluationResult:
        """The oldest result that was not taken yet. Raises the error of its evaluation."""
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _ended(self) -> EnvironmentFailure:
        self.process.join(1.0)  # its exit code arrives a moment after the end of its pipe
        return EnvironmentFailure(
            f"the process of the evaluations ended (exit code {self.process.exitcode}); its own message, if it had "
            "time for one, is above"
        )

    def close(self) -> None:
        """Ends the process, in the middle of an evaluation too."""
        atexit.unregister(self.close)
        self.connection.close()
        self.process.join(SECONDS_TO_END)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _evaluate_snapshots(
    connection: Any,
    agent_class: type,
    agent_arguments: Tuple[Any, int, int],
    device: torch.device,
    threads: int,
    evaluator_arguments: tuple,
) -> None:
    """The life of the process: evaluates the states that arrive, until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # how to end is the parent's decision
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(threads)
    set_up_torch(agent_arguments[0])
    requests: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, requests), daemon=True).start()
    agent = agent_class(*agent_arguments).to(device)
    with Evaluator(*evaluator_arguments) as evaluator:
        while True:
            snapshot, episodes = requests.get()
            try:
                answer: Any = evaluator.evaluate(load_snapshot(agent, snapshot), episodes, EVALUATION_SEED)
            except (UserError, EnvironmentFailure, FloatingPointError, ValueError) as error:
                answer = error
            connection.send(answer)


def _receive(connection: Any, requests: queue.SimpleQueue) -> None:
    """Takes requests while an evaluation runs, so that the sender never waits; ends the process with the pipe."""
    try:
        while True:
            requests.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)  # the environments' processes end by themselves, as their pipes are closed
