"""Weights & Biases as a second place for a run's rows; nothing here runs while wandb_mode is disabled."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Optional

from envs.errors import UserError


class WandbLog:
    """Sends rows to W&B (online) or writes them below the run's folder (offline); does nothing when disabled.

    The W&B run's name and id follow from the folder, so that a continued run continues there too.
    """

    def __init__(self, config: Any, folder: Path):
        self.run: Optional[Any] = None
        modes = ("disabled", "offline", "online")
        if config.wandb_mode not in modes:
            raise UserError(f"config: wandb_mode is {config.wandb_mode!r}, choose one of {', '.join(modes)}")
        if config.wandb_mode == "disabled":
            return
        import wandb

        self.run = wandb.init(
            project=config.wandb_project,
            name="/".join(folder.parts[-4:]),
            group=config.label,
            id=hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16],
            resume="allow",
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
