"""The loop: advances one run, or the runs of several seeds side by side, to their ends."""

import contextlib
import dataclasses
from typing import Iterator, List, Optional, Sequence

import torch
from tqdm import tqdm

from envs.task import Task
from harness.devices import choose_device
from harness.run_folder import RunFolder
from harness.training.evaluations import Evaluations
from harness.training.one_run import Diverged, Training
from harness.training.signals import Stopped, StopSignals
from harness.training.updates import Updates


def complete(agents: Sequence[torch.nn.Module], task: Task) -> List[dict]:
    """Takes the agents' runs to their ends, from the beginning or from where an earlier call stopped; their results.

    agents: new ones, whose configs differ in the seed only. A finished run is not trained again. SIGTERM or Ctrl-C
    write checkpoints and exit. Raises UserError where a run's folder holds another run, and Diverged after the others'
    ends where a run has diverged.
    """
    configs = [agent.config for agent in agents]
    if any(dataclasses.replace(config, seed=configs[0].seed) != configs[0] for config in configs):
        raise ValueError("the runs that are trained together may differ in their seed only")
    device = choose_device(configs[0].device)
    folders = [RunFolder(config, task.identity) for config in configs]
    with contextlib.ExitStack() as locks:
        for folder in folders:
            locks.enter_context(folder.lock())
        todo = []
        for agent, folder in zip(agents, folders, strict=True):
            if folder.result() is None:
                todo.append((agent.to(device), folder))
            else:
                print(f"{folder.path}: finished before, not trained again (--restart would)")
        if todo:
            train_side_by_side(todo, task, device)
        return [folder.result() for folder in folders]


def train_side_by_side(todo: Sequence[tuple], task: Task, device: torch.device) -> None:
    """Trains the (agent, folder) pairs to their ends."""
    dataset = task.dataset.to(device)
    validation = task.validation.to(device) if task.validation is not None else None
    with Evaluations(task, todo[0][0], device) as evaluations:
        trainings = [
            Training(agent, task, folder, dataset, validation, evaluations, _name(agent, len(todo)))
            for agent, folder in todo
        ]
        with StopSignals() as signals, contextlib.ExitStack() as environments:
            for training in trainings:
                environments.enter_context(training.online)
            Loop(trainings, evaluations, signals).run()
        if signals.received:  # after the last update: nothing is left to save, but what follows is not wanted
            raise SystemExit(128 + signals.received)


def _name(agent: torch.nn.Module, count: int) -> str:
    return f"seed {agent.config.seed}: " if count > 1 else ""


class Loop:
    """Advances trainings together: those that are behind first, then all at the same step."""

    def __init__(self, trainings: Sequence[Training], evaluations: Evaluations, signals: StopSignals):
        self.trainings, self.evaluations, self.signals = list(trainings), evaluations, signals
        self.diverged: List[Diverged] = []
        self.updates: Optional[Updates] = None
        self.updated: list = []  # what `updates` was made for
        several = f" {len(self.trainings)} seeds" if len(self.trainings) > 1 else ""
        self.progress = tqdm(
            total=trainings[0].last_step,
            initial=min(training.step for training in trainings),
            desc=f"training{several}",
            unit="update",
            disable=None,
            smoothing=0.1,
        )

    def run(self) -> None:
        with self.progress:
            while self.trainings:
                self._evaluate()
                if self.trainings:
                    self._advance()
                if self.signals.received and self.trainings:
                    self._stop()
        if self.diverged:
            raise self.diverged[0]

    def _evaluate(self) -> None:
        """Asks for the evaluations that are due, and ends the trainings that are at their end."""
        for training in list(self.trainings):
            try:
                with self._drops_diverged(training), self.signals.may_interrupt():
                    training.evaluate_if_due()
            except Stopped:
                self._stop()
        self.evaluations.collect(wait=any(training.is_at_end for training in self.trainings))
        for training in [each for each in self.trainings if each.is_at_end]:
            training.finish()
            self.trainings.remove(training)

    def _advance(self) -> None:
        """Makes one update of the trainings that are behind, or as many as a replay of their CUDA graph makes."""
        step = min(training.step for training in self.trainings)
        behind = [training for training in self.trainings if training.step == step]
        updates = self._updates_of(behind)
        lead = [training.step - step for training in self.trainings if training.step > step]
        room = min([training.updates_until_event() for training in behind] + lead)
        count = updates.stride if updates.stride <= room else 1
        metrics = updates.advance(count)
        self.progress.update(count)
        for training, metric in zip(behind, metrics, strict=True):
            with self._drops_diverged(training):
                training.count_updates(count, metric)

    def _updates_of(self, trainings: List[Training]) -> Updates:
        """What advances these trainings in their present phase; a graph is captured anew when they change."""
        wanted = [(training.config.seed, training.is_online) for training in trainings]
        if wanted != self.updated:
            first = trainings[0]
            # online there is a step in the environment between two updates, and the replay grows
            captured = first.device.type == "cuda" and first.config.cuda_graphs and not first.is_online
            self.updates = Updates(
                [training.agent for training in trainings],
                [training.next_batch for training in trainings],
                [training.generators for training in trainings],
                captured,
            )
            self.updated = wanted
        return self.updates

    @contextlib.contextmanager
    def _drops_diverged(self, training: Training) -> Iterator[None]:
        """A training that diverges within the block is over; the others go on."""
        try:
            yield
        except Diverged as error:
            self.diverged.append(error)
            self.trainings.remove(training)
            if self.trainings:
                tqdm.write(f"error: {error}; the other seeds go on")

    def _stop(self) -> None:
        """Writes checkpoints and leaves the program the way a process ended by that signal is reported."""
        steps = [training.step for training in self.trainings]
        for training in list(self.trainings):
            with self._drops_diverged(training):
                training.stop()
        if self.diverged:
            raise self.diverged[0]
        print(f"\nstopped after {min(steps)} updates; the same command continues from here", flush=True)
        raise SystemExit(128 + self.signals.received)
