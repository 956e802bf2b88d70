"""Where a run's rows go: always its CSV logs, and as `logger` asks TensorBoard and Weights & Biases.

A CSV log is written a row at a time, continued after a stop and read while it grows.
"""

import contextlib
import csv
import importlib.util
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError, one_line
from common.files import write_text
from harness import run_files
from harness.config import RunConfig


def whole_rows(text: str) -> tuple[list[str], list[dict[str, str]]]:
    """(header, rows) of a log's text, without a row that a crash cut short or that is still being written."""
    reader = csv.DictReader(line for line in text.splitlines(keepends=True) if line.endswith("\n"))
    header = list(reader.fieldnames or ())
    return header, [row for row in reader if None not in row.values() and None not in row]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of a run's log, which may be growing; empty if there is no file."""
    try:
        return whole_rows(path.read_text(encoding="utf-8-sig"))[1] if path.exists() else []
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path}: is damaged ({error}); put the run's own file back, or train anew with --restart"
        ) from error


class CsvLog:
    """Rows by step. The header grows with new keys; a row that a crash cut short is dropped when the log is opened."""

    def __init__(self, path: Path, numbers: Sequence[str] = ("step",)):
        """numbers: columns that every row has a number in. Raises UserError for a damaged file."""
        self.path, self.numbers = path, numbers
        self.rows: list[dict[str, str]] = []
        self.header: list[str] = []
        if path.exists():
            try:
                self._read(path.read_text(encoding="utf-8-sig"))
            except (ValueError, csv.Error) as error:
                raise UserError(
                    f"{path}: is damaged ({error}); put the run's own file back, or add --restart"
                ) from error

    def _read(self, text: str) -> None:
        """Raises ValueError where a whole line is no row."""
        self.header, self.rows = whole_rows(text)
        for name in self.numbers:
            if name not in self.header:
                raise ValueError(f"it has no column `{name}`")
            for row in self.rows:
                (int if name == "step" else float)(row[name])

    @property
    def last_step(self) -> int:
        return max((int(row["step"]) for row in self.rows), default=0)

    def keep_until(self, step: int) -> None:
        """Drops the rows after `step`, which a run that continues from there writes again."""
        self.rows = [row for row in self.rows if int(row["step"]) <= step]
        if self.path.exists():
            self._rewrite()

    def append(self, row: dict[str, Any]) -> None:
        text = {name: f"{value:.9g}" if isinstance(value, float) else str(value) for name, value in row.items()}
        self.rows.append(text)
        new = [name for name in text if name not in self.header]
        if new:
            self.header += new
            self._rewrite()
        else:
            with open(self.path, "a", newline="") as file:
                file.write(self._format([text]))

    def _rewrite(self) -> None:
        write_text(self.path, self._format([dict(zip(self.header, self.header, strict=True)), *self.rows]))

    def _format(self, rows: list[dict[str, str]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.header, restval="", lineterminator="\n").writerows(rows)
        return text.getvalue()


# ---- Beside the CSV logs: log(group, row) and finish(failed) ----


class TensorBoardLog:
    """Scalars `<group>/<name>` by update in <run>/tensorboard. Rows after `step`, of a killed process, are purged."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / run_files.TENSORBOARD_FOLDER), purge_step=step + 1)

    def log(self, group: str, row: dict) -> None:
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(f"{group}/{name}", value, row["step"])
        self.writer.flush()

    def finish(self, failed: bool) -> None:
        self.writer.close()


@contextlib.contextmanager
def wandb_refusals() -> Iterator[None]:
    """Raises UserError for what W&B refuses within the block."""
    import wandb

    try:
        yield
    except wandb.errors.Error as error:
        raise UserError(f"wandb: {one_line(error)}; mend it, or set --wandb_mode offline") from error


class WandbLog:
    """Sends rows to W&B, or with wandb_mode offline writes them below the run's folder.

    All rows are on an axis of updates, `updates`, whatever the order and number of W&B's own steps. The id is the one
    in environment.json, so that a continued run continues there too.
    """

    def __init__(self, run: RunConfig, config: dict, run_id: str, folder: Path):
        """config: the values that W&B shows of the run. Raises UserError if W&B refuses the run."""
        import wandb

        with wandb_refusals():
            self.run = wandb.init(
                project=run.wandb_project,
                name=f"{run.label}/{run.task}/seed_{run.seed}",
                group=os.environ.get("WANDB_RUN_GROUP", run.label),  # a comparison sets it to its name
                id=run_id,
                resume="allow",
                dir=folder,
                config=config,
                mode=run.wandb_mode,
            )
        self.run.define_metric("updates")
        self.run.define_metric("*", step_metric="updates")

    def log(self, group: str, row: dict) -> None:
        values = {f"{group}/{name}": value for name, value in row.items() if name != "step"}
        self.run.log(values | {"updates": row["step"]})

    def finish(self, failed: bool = False) -> None:
        self.run.finish(exit_code=int(failed))


def check_loggers(run: RunConfig) -> None:
    """Raises UserError for TensorBoard where its package is absent, and for W&B online where it does not log in."""
    if "tensorboard" in run.logger and importlib.util.find_spec("tensorboard") is None:
        raise UserError("logger: tensorboard is absent; pip install -r requirements-tensorboard.txt, or leave it out")
    if "wandb" in run.logger and run.wandb_mode == "online":
        import wandb

        with wandb_refusals():
            if not wandb.login(prompt=False):
                raise wandb.errors.AuthenticationError("there is no API key, or WANDB_MODE forbids to log in")


def open_loggers(run: RunConfig, config: dict, run_id: str, folder: Path, step: int) -> list:
    """The loggers beside the CSV logs, for a run that stands after `step` updates."""
    loggers: list = []
    if "wandb" in run.logger:  # first, as it may be refused
        loggers.append(WandbLog(run, config, run_id, folder))
    if "tensorboard" in run.logger:
        loggers.append(TensorBoardLog(folder, step))
    return loggers
