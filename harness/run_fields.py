"""The fields of a run, which every algorithm's config begins with, and what is asked of a config's values."""

import math
import os
from typing import Any

from common.errors import UserError
from harness.devices import choose_device

RUN_FIELDS = (
    "task",
    "data_dir",
    "collect_episodes",
    "in_memory",
    "run_dir",
    "label",
    "seed",
    "device",
    "threads",
    "matmul_precision",
    "cuda_graphs",
    "offline_steps",
    "online_steps",
    "balanced_sampling",
    "replay_capacity",
    "keep_offline",
    "log_interval",
    "checkpoint_interval",
    "eval_interval",
    "eval_episodes",
    "eval_environments",
    "eval_workers",
    "final_report",
    "wandb_mode",
    "wandb_project",
)
# Fields that change where a run happens or what it prints, not what it computes: a run may continue with others.
FREE_FIELDS = (
    "data_dir",
    "collect_episodes",
    "in_memory",
    "run_dir",
    "device",
    "cuda_graphs",
    "checkpoint_interval",
    "eval_workers",
    "final_report",
    "wandb_mode",
    "wandb_project",
)
# Smallest and largest value of the fields that every algorithm shares, and of method fields where a config has them.
RANGES = {
    "offline_steps": (1, math.inf),
    "online_steps": (0, math.inf),
    "replay_capacity": (1, math.inf),
    "log_interval": (1, math.inf),
    "checkpoint_interval": (1, math.inf),
    "eval_interval": (1, math.inf),
    "eval_episodes": (1, math.inf),
    "eval_environments": (1, math.inf),
    "eval_workers": (0, 4 * (os.cpu_count() or 1)),
    "threads": (0, os.cpu_count() or 1),
    "collect_episodes": (0, math.inf),
    "seed": (0, 2**32 - 1),
    "batch_size": (1, math.inf),
    "actor_hidden_dims": (1, math.inf),
    "value_hidden_dims": (1, math.inf),
    "learning_rate": (0, 1e3),
    "discount": (0, 1),
    "target_rate": (0, 1),
    "expectile": (0, 1),
    "exploration_noise": (0, math.inf),
}
WANDB_MODES = ("disabled", "offline", "online")
MATMUL_PRECISIONS = ("highest", "high", "medium")  # torch.set_float32_matmul_precision


def check_run_fields(config: Any) -> None:
    """Raises UserError for values outside their ranges."""
    for field, (low, high) in RANGES.items():
        values = getattr(config, field, ())
        for value in values if isinstance(values, tuple) else (values,):
            if not low <= value <= high:
                bound = f"at least {low}" if value < low else f"at most {high:g}"
                raise UserError(f"config: {field} is {value}, it must be {bound}")
    for field, choices in {"wandb_mode": WANDB_MODES, "matmul_precision": MATMUL_PRECISIONS}.items():
        if getattr(config, field) not in choices:
            raise UserError(f"config: {field} is {getattr(config, field)!r}, choose one of {', '.join(choices)}")
    if config.label is not None and (config.label in ("", ".", "..") or {"/", os.sep} & set(config.label)):
        raise UserError(f"config: label is {config.label!r}, it names one folder, so leave out slashes")
    choose_device(config.device)
