"""One run, from top to bottom: check, resume, update, log, evaluate, save, finish."""

import contextlib
import functools
import time
from typing import Any

import torch
from tqdm import tqdm

from common.errors import UserError, one_line
from envs.task import Task
from harness import devices
from harness.agent_tools import validation_metrics
from harness.compilation import check_compiler, compile_where_it_pays
from harness.config import RunConfig, algorithm_name, check_values
from harness.divergence import refuse_divergence
from harness.evaluation import EVALUATION_SEED, Evaluator
from harness.grid import parse_grid
from harness.loggers import check_loggers
from harness.online import OnlinePhase
from harness.run_folder import (
    RunFolder,
    check_folder,
    finished_result,
    load_agent,
    load_run_task,
    remove_run,
    run_path,
    with_chunks,
)
from harness.signals import Stopped, StopSignals
from harness.updates import Updates


def train_run(agent_class: type, run: RunConfig, config: Any, restart: bool = False, task: Task | None = None) -> dict:
    """Continues a run to its end, then sweeps if it asks for that; returns what result.json holds.

    A finished run is not trained again; `restart` deletes the run's files. SIGTERM and Ctrl-C write a checkpoint and
    exit. Raises UserError for what the user must mend before anything is deleted or written, Diverged for bad numbers.
    """
    check_values(run, config)
    devices.set_up_torch(run)
    device = devices.choose_device(run.device)
    parse_grid(run.sweep, agent_class, config)  # refuses a wrong one now instead of after the training
    if restart or finished_result(run_path(run), run.total_updates) is None:
        check_loggers(run)
    check_compiler(run, device)
    task = with_chunks(load_run_task(run, task), run, config)
    agent = build_agent(agent_class, run, config, task).to(device)
    announce(task, run)
    if restart:
        remove_run(run)
    check_folder(run, config, task.identity, agent_class.act_options)
    with RunFolder(run, config, task) as folder:
        result = folder.finished_before() or train(agent, device, run, task, folder)
    if run.sweep:
        from harness.evaluate import sweep_after_training  # here: it loads pandas, scipy and matplotlib

        agent = load_agent(agent_class, folder.path, algorithm_name(type(config))).to(device)
        sweep_after_training(agent, run, config, task, folder.path)
    elif result["score"] is not None:
        before = f"{result['offline_score']:.4g} offline, " if run.online_steps else ""
        print(f"{folder.path}: {task.score_name} {before}{result['score']:.4g} after {result['step']} updates")
    return result


def build_agent(agent_class: type, run: RunConfig, config: Any, task: Task) -> torch.nn.Module:
    """The run's new agent, on the CPU.

    Raises UserError where the task lacks what the run asks for: a column, an environment, like validation data.
    """
    try:
        agent = agent_class(config, task.observation_dim, task.action_dim, seed=run.seed)
    except ValueError as error:  # an agent that cannot be built for this task, as one on a base that is not there
        raise UserError(f"config: {one_line(error, None)}") from error
    for name in agent.batch_fields:
        if name not in ("next_actions", *task.dataset.columns):
            raise UserError(f"config: these options need the column {name}, which the data of {task.name} lack")
    for name in ("online_steps", "sweep"):
        if task.make_env is None and getattr(run, name):
            raise UserError(f"config: {name} needs an environment, and {task.name} has none; leave it out")
    for name in ("observations", "actions"):
        width, found = (getattr(data, name).shape[1] for data in (task.dataset, task.validation or task.dataset))
        if width != found:
            raise UserError(
                f"{task.name}: {name} have {found} numbers in the validation data and {width} in the others"
            )
    return agent


def announce(task: Task, run: RunConfig) -> None:
    """Says what a score of the task will lack."""
    if task.make_env is None:
        print(f"{task.name} has no environment: its runs have losses, on validation data too if it has some, no score")
    elif task.episodes(run.eval_episodes) < run.eval_episodes:
        print(f"{task.name} has {task.different_episodes} different episodes: an evaluation takes each of them once")


def train(agent: torch.nn.Module, device: torch.device, run: RunConfig, task: Task, folder: RunFolder) -> dict:
    """Makes the updates that are left and returns the result; the agent is on `device` and new."""
    data = task.dataset.to(device)
    validation = task.validation.to(device) if task.validation is not None else None
    batches = devices.seeded_generator(device, run.seed, devices.BATCH_STREAM)
    online = OnlinePhase(run, task, data, folder.path)
    last = run.total_updates
    step, seconds = folder.resume(agent, device, batches, online)  # updates of both phases, time spent on them
    compiled = compile_where_it_pays(agent, run, task, data, last - step, folder.was_compiled())
    started, evaluating = time.perf_counter() - seconds, 0.0  # seconds of this call's evaluations
    logged_step, logged_at = step, seconds
    folder.begin_stretch(agent, device, compiled, step)

    def elapsed() -> float:
        return time.perf_counter() - started

    def is_due(interval: int) -> bool:
        return step > 0 and (step % interval == 0 or step in (run.offline_steps, last))

    def updates_until_due() -> int:
        # Online, where a step in the environment comes before each update, this is at most 0: one update at a time.
        intervals = (run.log_interval, run.eval_interval, run.checkpoint_interval)
        return min(run.offline_steps - step, *(interval - step % interval for interval in intervals))

    def next_batch() -> dict:
        if step < run.offline_steps:
            return data.sample(run.batch_size, batches, agent.batch_fields)
        online.step(agent)
        return online.replay.sample(run.batch_size, batches, agent.batch_fields)

    def finite(metrics: dict) -> dict[str, float]:
        """The metrics as plain numbers; waits for the device. Raises Diverged for them and for the agent's state."""
        refuse_divergence(agent, metrics, run, data, folder.path, step)
        return {name: float(metric) for name, metric in metrics.items()}

    def save() -> None:
        finite({})
        loop = {"step": step, "seconds": elapsed(), "device": device.type, "batches": batches.get_state()}
        folder.save_checkpoint(agent, loop | {"online": online.save(step)})

    updates = Updates(agent, next_batch, [agent.noise.generator, batches], run.cuda_graphs and device.type == "cuda")
    evaluator = task.make_env and Evaluator(task.make_env, run.eval_environments, run.eval_workers)
    progress = tqdm(total=last, initial=step, desc="training", unit="update", disable=None, smoothing=0.1)
    say = functools.partial(print, flush=True) if progress.disable else tqdm.write
    with StopSignals() as signals, evaluator or contextlib.nullcontext(), contextlib.closing(online), progress:
        try:
            while True:
                if evaluator and is_due(run.eval_interval) and step > folder.eval_log.last_step:
                    finite({})
                    with signals.may_interrupt():
                        result = evaluator.evaluate(agent, task.episodes(run.eval_episodes), EVALUATION_SEED)
                    evaluating += result.seconds
                    row = {"step": step, "seconds": elapsed(), "evaluation_seconds": result.seconds, **result.row(task)}
                    folder.log_evaluation(row)
                    say(f"{step:>9,} updates: {task.score_name} {row[task.score_name]:.4g}")
                if step == last:
                    break
                until = min(updates_until_due(), data.advance_to(step))
                if step >= run.offline_steps and step + 1 - run.offline_steps < run.online_start:
                    online.step(agent)
                    count, metrics = 1, {}
                else:
                    count, metrics = updates.advance(until)
                step += count
                progress.update(count)
                if is_due(run.log_interval):
                    row = finite(metrics)
                    if validation is not None:
                        generator = devices.seeded_generator(device, run.seed, devices.VALIDATION_STREAM, step)
                        batch = validation.sample(run.batch_size, generator, agent.batch_fields)
                        row |= {f"validation/{name}": float(m) for name, m in validation_metrics(agent, batch).items()}
                    speed = (step - logged_step) / (elapsed() - evaluating - logged_at)
                    logged_step, logged_at = step, elapsed() - evaluating
                    row = {"step": step, "seconds": elapsed(), "updates_per_second": speed, **row, **online.metrics()}
                    folder.log_training(row)
                    if progress.disable:
                        say(f"{step:>9,} of {last:,} updates, {speed:,.0f} per second")
                if is_due(run.checkpoint_interval):
                    save()
                signals.raise_if_received()
        except Stopped:
            save()
            print(f"\nstopped after {step} updates; the same command continues from here", flush=True)
            raise
        return folder.finish(step, elapsed())
