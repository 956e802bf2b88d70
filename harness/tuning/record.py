"""The record of the study that tuned a settings file, beside that file."""

from pathlib import Path

from common.errors import UserError
from harness.algorithms import load_algorithm
from harness.config import flat, load_settings
from harness.run_folder import read_json

NEEDED_KEYS = ("algorithm", "trials", "task", "best_values")


def record_path(path: str | Path) -> Path:
    return Path(path).with_suffix(".tuning.json")


def tuning_record(path: str | Path) -> dict | None:
    """The record of the study that wrote a settings file, None where no record lies beside it.

    Raises UserError where the record is damaged or the file no longer has the record's values.
    """
    beside = record_path(path)
    if not beside.exists():
        return None
    record = read_json(beside, needed=NEEDED_KEYS)
    settings = load_settings(load_algorithm(record["algorithm"]).config_class, path=path)
    found = flat(settings.run, settings.config)
    for name, value in record["best_values"].items():
        if found[name] != value:
            raise UserError(
                f"{path}: {name} is {found[name]}, but {beside.name} says it was tuned to {value}; "
                f"restore it, or delete {beside.name} because the settings are no longer the study's"
            )
    return record
