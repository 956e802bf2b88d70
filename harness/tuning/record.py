"""The record of the study that tuned a config, beside the config's YAML file."""

from pathlib import Path
from typing import Optional

from common.errors import UserError
from harness.algorithms import load_algorithm
from harness.config_file import load_config
from harness.run_folder import read_json

NEEDED_KEYS = ("algorithm", "trials", "task", "best_values")


def record_path(config_path: Path) -> Path:
    return Path(config_path).with_suffix(".tuning.json")


def tuning_record(config_path: Path) -> Optional[dict]:
    """The record of the study that wrote a YAML file, None where no record lies beside it.

    Raises UserError where the record is damaged or the file no longer has the record's values.
    """
    path = record_path(config_path)
    if not path.exists():
        return None
    record = read_json(path, needed=NEEDED_KEYS)
    config = load_config(load_algorithm(record["algorithm"]).config_class, config_path)
    for name, value in record["best_values"].items():
        if getattr(config, name) != value:
            raise UserError(
                f"{config_path}: {name} is {getattr(config, name)}, but {path.name} says it was tuned to {value}; "
                f"restore it, or delete {path.name} because the config is no longer the study's"
            )
    return record
