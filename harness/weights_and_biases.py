"""Weights & Biases as a second place for a run's rows; nothing here runs while wandb_mode is disabled."""

import dataclasses
import os
from pathlib import Path
from typing import Any, Optional

from harness import run_files
from harness.run_folder import label_of, read_json


class WandbLog:
    """Sends rows to W&B (online) or writes them below the run's folder (offline); does nothing when disabled.

    The id is the one in the folder's environment.json, so that a continued run continues there too.
    """

    def __init__(self, config: Any, folder: Path):
        self.run: Optional[Any] = None
        if config.wandb_mode == "disabled":
            return
        import wandb

        self.run = wandb.init(
            project=config.wandb_project,
            name=f"{label_of(config)}/{config.task}/seed_{config.seed}",
            group=os.environ.get("WANDB_RUN_GROUP", label_of(config)),  # a comparison sets it to its name
            id=read_json(folder / run_files.ENVIRONMENT, needed=("run_id",))["run_id"],
            resume="allow",
            reinit="create_new",  # seeds side by side are runs of their own
            dir=folder,
            config=dataclasses.asdict(config),
            mode=config.wandb_mode,
        )

    def log(self, prefix: str, row: dict) -> None:
        if self.run is not None:
            values = {f"{prefix}/{name}": value for name, value in row.items() if name != "step"}
            self.run.log(values, step=row["step"])

    def finish(self) -> None:
        if self.run is not None:
            self.run.finish()
