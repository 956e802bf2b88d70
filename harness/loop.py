"""The loop of a run: updates, logs, evaluations and checkpoints, from wherever the run's folder stands."""

import contextlib
import math
import signal
import threading
import time
from typing import Any, Iterator

import torch
from tqdm import tqdm

from envs.errors import UserError
from envs.task import Task
from harness import divergence
from harness.devices import choose_device, seeded_generator
from harness.evaluation import EVALUATION_SEED, Evaluator
from harness.online import OnlinePhase
from harness.plots import plot_learning_curve
from harness.run_folder import RunFolder
from harness.weights_and_biases import WandbLog

# Streams of random numbers beside the agent's own, which has the config's seed itself.
BATCH_STREAM = 0x5EED
VALIDATION_STREAM, NEW_BATCH_STREAM, NEW_NOISE_STREAM = 1, 2, 3
SCORE_EVALUATIONS = 3  # a result also holds the mean score of the last so many evaluations (FQL's protocol)


class Stopped(BaseException):
    """SIGINT or SIGTERM came while an evaluation ran; the evaluation is run again when the run continues.

    A BaseException, as KeyboardInterrupt is: it passes through the environments' own handling of errors.
    """


class Diverged(UserError):
    """Training gave a number that is not finite."""


class StopSignals:
    """Notes SIGINT and SIGTERM, so that a run ends between two updates; a second SIGINT ends it at once."""

    def __init__(self):
        self.received = 0
        self.evaluating = False

    def _note(self, number, frame) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if self.evaluating:
            raise Stopped

    def __enter__(self) -> "StopSignals":
        self.previous = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere (Ray) the caller owns the signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def may_interrupt(self) -> Iterator[None]:
        """Within it a signal raises Stopped at once."""
        self.evaluating = True
        try:
            if self.received:
                raise Stopped
            yield
        finally:
            self.evaluating = False


def complete(config: Any, agent: torch.nn.Module, task: Task) -> dict:
    """Takes `config`'s run to its end, from the beginning or from where an earlier call stopped; returns its result.

    A finished run is not trained again. SIGTERM or Ctrl-C write a checkpoint and exit. Raises UserError where the
    run's folder holds another run.
    """
    device = choose_device(config.device)
    folder = RunFolder(config, task.identity)
    with folder.lock():
        result = folder.result()
        if result is not None:
            print(f"{folder.path}: finished before, not trained again (--restart would)")
            return result
        return Loop(config, agent.to(device), task, folder, device).run()


class Loop:
    """One call's part of a run: what it holds in memory, and the steps of the loop."""

    def __init__(self, config: Any, agent: torch.nn.Module, task: Task, folder: RunFolder, device: torch.device):
        self.config, self.agent, self.task, self.folder, self.device = config, agent, task, folder, device
        self.dataset = task.dataset.to(device)
        self.validation = task.validation.to(device) if task.validation is not None else None
        self.batches = seeded_generator(device, config.seed, BATCH_STREAM)
        self.online = OnlinePhase(config, task, self.dataset, folder.path)
        self.last_step = config.offline_steps + config.online_steps
        self.step = 0  # updates, of both phases
        self.seconds = 0.0  # spent so far, earlier calls included
        self.resume()
        self.started = time.perf_counter() - self.seconds
        self.logged_at = self.step, self.seconds
        evaluations = self.folder.eval_log.rows
        self.evaluated = int(evaluations[-1]["step"]) if evaluations else 0
        folder.describe(agent, device)

    def resume(self) -> None:
        checkpoint = self.folder.load_checkpoint()
        if checkpoint is None:
            self.online.restore(0, None)
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
        self.agent.load_state_dict(checkpoint["agent"])
        print(f"{self.folder.path}: continuing after {self.step} of {self.last_step} updates")
        self.online.restore(self.step, loop.get("online"))

    def run(self) -> dict:
        config = self.config
        environments = min(config.eval_environments, config.eval_episodes)
        wandb_log = WandbLog(config, self.folder.path)
        progress = tqdm(
            total=self.last_step, initial=self.step, desc="training", unit="update", disable=None, smoothing=0.1
        )
        evaluations = Evaluator(self.task.make_env, environments, config.eval_workers)
        with StopSignals() as signals, evaluations as evaluator, self.online:
            while True:
                if self.due(config.eval_interval) and self.evaluated < self.step:
                    try:
                        with signals.may_interrupt():
                            row = self.evaluate(evaluator)
                    except Stopped:
                        self.stop(signals.received)
                    self.folder.eval_log.append(row)
                    wandb_log.log("evaluation", row)
                    progress.write(self.evaluation_line(row))
                if self.step == self.last_step:
                    break
                metrics = self.agent.update(self.next_batch())
                self.step += 1
                progress.update()
                if self.due(config.log_interval):
                    row = self.log_row(metrics)
                    self.folder.train_log.append(row)
                    wandb_log.log("training", row)
                    progress.set_postfix({name: f"{row[name]:.4g}" for name in list(metrics)[:1]}, refresh=False)
                if self.due(config.checkpoint_interval):
                    self.finite(metrics)
                    self.save()
                if signals.received:
                    self.stop(signals.received)
        progress.close()
        wandb_log.finish()
        result = self.finish()
        if signals.received:  # after the last update: nothing is left to save, but what follows is not wanted
            raise SystemExit(128 + signals.received)
        return result

    def next_batch(self) -> dict:
        """The next update's minibatch: of the data set, or online of the replay, after one step in the environment."""
        source = self.dataset
        if self.step >= self.config.offline_steps:
            self.online.step(self.agent)
            source = self.online.replay
        return source.sample(self.config.batch_size, self.batches, self.agent.batch_fields)

    def due(self, interval: int) -> bool:
        """Whether something that happens every `interval` updates, and at the end of each phase, happens now."""
        phase_ends = (self.config.offline_steps, self.last_step)
        return self.step > 0 and (self.step % interval == 0 or self.step in phase_ends)

    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def save(self) -> None:
        state = {
            "step": self.step,
            "seconds": self.elapsed(),
            "device": self.device.type,
            "batches": self.batches.get_state(),
            "online": self.online.save(self.step),
        }
        self.folder.save_checkpoint(self.agent, state)

    def stop(self, number: int) -> None:
        """Writes a checkpoint and leaves the program the way a process ended by that signal is reported."""
        self.finite({})
        self.save()
        print(f"\nstopped after {self.step} updates; the same command continues from here", flush=True)
        raise SystemExit(128 + number)

    def finite(self, metrics: dict) -> dict:
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
                where = self.folder.path / divergence.REPORT_FILE
                found = f"it began in update {report['update']} with {report['not_finite'][0]}, see {where}"
            raise Diverged(
                f"{self.folder.path}: {bad[0]} after {self.step} updates; {found}; the last checkpoint is kept, try a "
                "smaller learning_rate"
            )
        return {name: float(metric) for name, metric in metrics.items()}

    def log_row(self, metrics: dict) -> dict:
        """One row of train.csv."""
        row = self.finite(metrics)
        if self.validation is not None:
            generator = seeded_generator(self.device, self.config.seed, VALIDATION_STREAM, self.step)
            batch = self.validation.sample(self.config.batch_size, generator, self.agent.batch_fields)
            row |= {f"validation/{name}": float(metric) for name, metric in self.agent.losses(batch).items()}
        step, seconds = self.logged_at
        self.logged_at = self.step, self.elapsed()
        speed = (self.step - step) / (self.logged_at[1] - seconds)
        row |= self.online.metrics()
        return {"step": self.step, "seconds": self.elapsed(), "updates_per_second": speed, **row}

    def evaluate(self, evaluator: Evaluator) -> dict:
        """One row of eval.csv."""
        self.finite({})
        started = time.perf_counter()
        result = evaluator.evaluate(self.agent, self.config.eval_episodes, EVALUATION_SEED)
        self.evaluated = self.step
        seconds = time.perf_counter() - started
        self.logged_at = self.logged_at[0], self.logged_at[1] + seconds  # the speed is that of the updates
        row = {"step": self.step, "seconds": self.elapsed(), "evaluation_seconds": seconds, **result.summary()}
        normalized = self.task.normalized_return(row["return"])
        return row if normalized is None else row | {"normalized_return": normalized}

    def evaluation_line(self, row: dict) -> str:
        spread = f" ± {row['return_std']:.4g}" if self.task.score_name == "return" else ""
        return f"{self.step:>9,} updates: {self.task.score_name} {row[self.task.score_name]:.4g}{spread}"

    def finish(self) -> dict:
        """Draws the learning curve and writes result.json, which marks the run as finished."""
        name = self.task.score_name
        rows = self.folder.eval_log.rows
        last = [float(row[name]) for row in rows[-SCORE_EVALUATIONS:]]
        offline_steps = self.config.offline_steps
        plot_learning_curve(
            self.folder.path / "eval.csv",
            self.folder.path / "learning_curve.png",
            name,
            self.task.reference_scores(),
            online_from=offline_steps if self.config.online_steps else None,
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
        return result
