"""The record of a locally made data set: what its files depend on, so that sets of different making are never mixed."""

import json
from pathlib import Path
from typing import Sequence

from common.errors import UserError
from common.files import write_text

RECORD = "generation.json"  # in the set's folder
SHOWN = 80  # characters of a value in a message


def check_counts(**asked: int) -> None:
    """Raises UserError for a seed below 0 and for any other number below 1, by its name."""
    for name, value in asked.items():
        least = 0 if name == "seed" else 1
        if value < least:
            raise UserError(f"{name}: expected at least {least}, got {value}")


def write_record(path: Path, record: dict) -> None:
    write_text(path, json.dumps(record, indent=2) + "\n")


def read_record(path: Path, needed: Sequence[str], fix: str) -> dict:
    """The record with the `needed` keys.

    Raises UserError, whose text ends with `fix`, where the file holds something else, OSError where there is none.
    """
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not a record of a generation ({error}): {fix}") from error
    missing = [key for key in needed if not isinstance(record, dict) or key not in record]
    if missing:
        raise UserError(f"{path}: not a record of a generation, it has no {', '.join(missing)}: {fix}")
    return record


def refuse_other_making(path: Path, existing: dict, asked: dict, fix: str, ignored: Sequence[str] = ()) -> None:
    """Raises UserError, whose text ends with `fix`, where the record at `path` differs from the one asked for."""
    for key, value in asked.items():
        if key not in ignored and existing.get(key, "absent") != value:
            there, wanted = (str(each)[:SHOWN] for each in (existing.get(key, "absent"), value))
            raise UserError(f"{path}: {key} there is {there}, asked for {wanted}: {fix}")
