"""One run in training: its agent, its random streams, its logs, evaluations and checkpoints, and how it is resumed.

harness/training/loop.py advances one or several of them; here is what a single run does before and after its updates.
"""

import functools
import math
import time
from typing import List, Optional

import torch
from tqdm import tqdm

from common.errors import UserError
from envs.dataset import Dataset
from envs.task import Task
from harness import run_files
from harness.devices import seeded_generator
from harness.evaluation import EvaluationResult
from harness.plots import plot_learning_curve
from harness.run_folder import RunFolder, label_of, networks_must_fit
from harness.training import divergence
from harness.training.evaluations import Evaluations, load_snapshot
from harness.training.online import OnlinePhase
from harness.weights_and_biases import WandbLog

# Streams of random numbers beside the agent's own, which has the config's seed itself.
BATCH_STREAM = 0x5EED
VALIDATION_STREAM, NEW_BATCH_STREAM, NEW_NOISE_STREAM = 1, 2, 3
SCORE_EVALUATIONS = 3  # a result also holds the mean score of the last so many evaluations (FQL's protocol)


class Diverged(UserError):
    """Training gave a number that is not finite."""


class Training:
    """What one run holds in memory, from wherever its folder stands."""

    def __init__(
        self,
        agent: torch.nn.Module,
        task: Task,
        folder: RunFolder,
        dataset: Dataset,
        validation: Optional[Dataset],
        evaluations: Evaluations,
        name: str = "",
    ):
        """agent, dataset, validation: on the same device; evaluations: of this agent; name: begins its lines."""
        self.config, self.agent, self.task, self.folder = agent.config, agent, task, folder
        self.dataset, self.validation, self.evaluations, self.name = dataset, validation, evaluations, name
        self.device = dataset.observations.device
        self.batches = seeded_generator(self.device, self.config.seed, BATCH_STREAM)
        self.online = OnlinePhase(self.config, task, dataset, folder.path)
        self.last_step = self.config.offline_steps + self.config.online_steps
        self.step = 0  # updates, of both phases
        self.seconds = 0.0  # spent so far, earlier calls included
        self.snapshot: Optional[tuple] = None  # (step, bytes) of an evaluation that is not finished
        self.saved_snapshot = False  # whether checkpoint.pt holds one
        self._resume()
        self.started = time.perf_counter() - self.seconds
        self.logged_at = self.step, self.seconds, evaluations.seconds
        steps = [int(row["step"]) for row in folder.eval_log.rows]
        self.evaluated = max(steps, default=0)  # the step of the last evaluation that was asked for
        if self.snapshot is not None:
            self._evaluate_snapshot(done=self.snapshot[0] in steps)
        folder.describe(agent, self.device)
        self.wandb_log = WandbLog(self.config, folder.path)

    # ---- Where it stands ----

    @property
    def is_online(self) -> bool:
        return self.step >= self.config.offline_steps

    @property
    def is_at_end(self) -> bool:
        return self.step == self.last_step

    @property
    def generators(self) -> List[torch.Generator]:
        """What the agent and its minibatches draw from."""
        return [self.agent.noise.generator, self.batches]

    def updates_until_event(self) -> int:
        """Updates to the next step at which a row, an evaluation or a checkpoint is due, or a phase ends."""
        config = self.config
        intervals = (config.log_interval, config.eval_interval, config.checkpoint_interval)
        phase_ends = [end - self.step for end in (config.offline_steps, self.last_step) if end > self.step]
        return min(*(interval - self.step % interval for interval in intervals), *phase_ends)

    def is_due(self, interval: int) -> bool:
        """Whether something that happens every `interval` updates, and at the end of each phase, happens now."""
        phase_ends = (self.config.offline_steps, self.last_step)
        return self.step > 0 and (self.step % interval == 0 or self.step in phase_ends)

    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    # ---- Updates ----

    def next_batch(self) -> dict:
        """The next update's minibatch: of the data set, or online of the replay, after one step in the environment."""
        source = self.dataset
        if self.is_online:
            self.online.step(self.agent)
            source = self.online.replay
        return source.sample(self.config.batch_size, self.batches, self.agent.batch_fields)

    def count_updates(self, count: int, metrics: dict) -> None:
        """Notes that `count` updates were made, the last one with these metrics; logs and saves where due.

        Raises Diverged.
        """
        self.step += count
        if self.is_due(self.config.log_interval):
            row = self._log_row(metrics)
            self.folder.train_log.append(row)
            self.wandb_log.log("training", row)
        if self.is_due(self.config.checkpoint_interval):
            self._finite(metrics)
            self.save()

    def _log_row(self, metrics: dict) -> dict:
        """One row of train.csv."""
        row = self._finite(metrics)
        if self.validation is not None:
            generator = seeded_generator(self.device, self.config.seed, VALIDATION_STREAM, self.step)
            batch = self.validation.sample(self.config.batch_size, generator, self.agent.batch_fields)
            row |= {f"validation/{name}": float(metric) for name, metric in self.agent.losses(batch).items()}
        step, seconds, waited = self.logged_at
        self.logged_at = self.step, self.elapsed(), self.evaluations.seconds
        training = self.logged_at[1] - seconds - (self.logged_at[2] - waited)  # the speed is that of the updates
        speed = (self.step - step) / training
        return {
            "step": self.step,
            "seconds": self.elapsed(),
            "updates_per_second": speed,
            **row,
            **self.online.metrics(),
        }

    def _finite(self, metrics: dict) -> dict:
        """The metrics as plain numbers; the loop waits for the device here.

        Raises Diverged where training has diverged, so that no checkpoint of it replaces a good one.
        """
        bad = divergence.values_not_finite(self.agent, metrics)
        if bad:
            batches = seeded_generator(self.device, self.config.seed, BATCH_STREAM)
            last = min(self.step, self.config.offline_steps)  # what was met online is not met again
            report = divergence.find(self.config, self.agent, self.dataset, batches, self.folder.path, last)
            found = "the update that began it could not be repeated"
            if report is not None:
                where = self.folder.path / run_files.DIVERGENCE
                found = f"it began in update {report['update']} with {report['not_finite'][0]}, see {where}"
            raise Diverged(
                f"{self.folder.path}: {bad[0]} after {self.step} updates; {found}; the last checkpoint is kept, try a "
                "smaller learning_rate"
            )
        return {name: float(metric) for name, metric in metrics.items()}

    # ---- Evaluations ----

    def evaluate_if_due(self) -> None:
        """Asks for the evaluation of this step, where one is due and was not made yet. Raises Diverged."""
        if not self.is_due(self.config.eval_interval) or self.evaluated >= self.step:
            return
        self._finite({})
        if self.snapshot is not None:
            self.evaluations.collect(wait=True)  # slower than training: no queue of snapshots
        snapshot = self.evaluations.submit(self.agent, functools.partial(self._log_evaluation, self.step))
        self.evaluated = self.step
        self.snapshot = None if snapshot is None else (self.step, snapshot)

    def _log_evaluation(self, step: int, result: EvaluationResult) -> None:
        """Writes one row of eval.csv, of the agent as it was after `step` updates."""
        self.snapshot = None
        row = {"step": step, "seconds": self.elapsed(), "evaluation_seconds": result.seconds, **result.summary()}
        normalized = self.task.normalized_return(row["return"])
        row |= {} if normalized is None else {"normalized_return": normalized}
        self.folder.eval_log.append(row)
        self.wandb_log.log("evaluation", row)
        tqdm.write(self._evaluation_line(row))

    def _evaluation_line(self, row: dict) -> str:
        spread = f" ± {row['return_std']:.4g}" if self.task.score_name == "return" else ""
        return f"{self.name}{row['step']:>9,} updates: {self.task.score_name} {row[self.task.score_name]:.4g}{spread}"

    # ---- Continuing ----

    def save(self) -> None:
        """Writes a checkpoint."""
        state = {
            "step": self.step,
            "seconds": self.elapsed(),
            "device": self.device.type,
            "batches": self.batches.get_state(),
            "online": self.online.save(self.step),
        }
        # the snapshot of this step itself would be the agent once more
        self.saved_snapshot = self.snapshot is not None and self.snapshot[0] < self.step
        if self.saved_snapshot:
            step, content = self.snapshot
            state["evaluation"] = {"step": step, "snapshot": torch.frombuffer(bytearray(content), dtype=torch.uint8)}
        self.folder.save_checkpoint(self.agent, state)

    def stop(self) -> None:
        """Writes a checkpoint of what was trained so far. Raises Diverged."""
        self._finite({})
        self.save()

    def _resume(self) -> None:
        checkpoint = self.folder.load_checkpoint()
        if checkpoint is None:
            self.online.restore(0, None)
            print(f"{self.folder.path}: {self.last_step:,} updates", flush=True)
            return
        loop = checkpoint["loop"]
        self.step, self.seconds = loop["step"], loop["seconds"]
        if loop["device"] == self.device.type:
            self.batches.set_state(loop["batches"])
        else:
            print(f"now on {self.device.type} instead of {loop['device']}: random streams start anew from (seed, step)")
            self.batches = seeded_generator(self.device, self.config.seed, NEW_BATCH_STREAM, self.step)
            noise = seeded_generator(self.device, self.config.seed, NEW_NOISE_STREAM, self.step)
            checkpoint["agent"]["noise"] = noise.get_state()
        with networks_must_fit(self.folder.path / run_files.CHECKPOINT):
            self.agent.load_state_dict(checkpoint["agent"])
        print(f"{self.folder.path}: continuing after {self.step} of {self.last_step} updates")
        self.online.restore(self.step, loop.get("online"))
        if "evaluation" in loop:
            self.snapshot = loop["evaluation"]["step"], loop["evaluation"]["snapshot"].numpy().tobytes()
            self.saved_snapshot = True

    def _evaluate_snapshot(self, done: bool) -> None:
        """Makes the evaluation that a checkpoint found unfinished, unless its row was written afterwards."""
        (step, snapshot), self.snapshot = self.snapshot, None
        if done:
            return
        agent = type(self.agent)(self.config, self.agent.observation_dim, self.agent.action_dim).to(self.device)
        self.evaluations.submit(load_snapshot(agent, snapshot), functools.partial(self._log_evaluation, step))
        self.snapshot = step, snapshot
        self.evaluated = max(self.evaluated, step)

    # ---- The end ----

    def finish(self) -> None:
        """Draws the learning curve and writes result.json, which marks the run as finished."""
        if self.saved_snapshot:
            self.save()  # without it: all evaluations are in
        self.wandb_log.finish()
        name = self.task.score_name
        rows = self.folder.eval_log.rows
        last = [float(row[name]) for row in rows[-SCORE_EVALUATIONS:]]
        offline_steps = self.config.offline_steps
        plot_learning_curve(
            self.folder.path / run_files.EVAL_LOG,
            self.folder.path / run_files.LEARNING_CURVE,
            name,
            self.task.reference_scores(),
            online_from=offline_steps if self.config.online_steps else None,
            title=f"{label_of(self.config)}, seed {self.config.seed}",
        )
        result = {
            "score_name": name,
            "offline_score": {int(row["step"]): float(row[name]) for row in rows}.get(offline_steps),
            "score": last[-1],
            "score_last_evaluations": math.fsum(last) / len(last),
            "evaluations_averaged": len(last),
            "episodes": self.config.eval_episodes,
            "step": self.step,
            "seconds": self.elapsed(),
        }
        self.folder.save_result(result)
