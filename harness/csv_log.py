"""A run's CSV logs: rows by step, written one at a time, continued after a stop and read while they grow."""

import csv
import io
from pathlib import Path
from typing import Any, Dict, List, Tuple

from common.errors import UserError
from common.files import write_text


def whole_rows(text: str) -> Tuple[List[str], List[Dict[str, str]]]:
    """(header, rows) of a log's text, without a row that a crash cut short or that is still being written."""
    reader = csv.DictReader(line for line in text.splitlines(keepends=True) if line.endswith("\n"))
    header = list(reader.fieldnames or ())
    return header, [row for row in reader if None not in row.values() and None not in row]


def read_rows(path: Path) -> List[Dict[str, str]]:
    """The whole rows of a run's log, which may be growing; empty where there is no file."""
    return whole_rows(path.read_text(encoding="utf-8"))[1] if path.exists() else []


class CsvLog:
    """Rows by step. The header grows with new keys; a row that a crash cut short is dropped when the log is opened."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: List[Dict[str, str]] = []
        self.header: List[str] = []
        if path.exists():
            try:
                self._read(path.read_text(encoding="utf-8"))
            except (ValueError, csv.Error) as error:
                raise UserError(
                    f"{path}: is damaged ({error}); put the run's own file back, or add --restart"
                ) from error

    def _read(self, text: str) -> None:
        """Raises ValueError where a whole line is no row."""
        self.header, self.rows = whole_rows(text)
        if "step" not in self.header:
            raise ValueError("it has no column `step`")
        for row in self.rows:
            int(row["step"])

    def keep_until(self, step: int) -> None:
        """Drops the rows after `step`, which a run that continues from there will write again."""
        self.rows = [row for row in self.rows if int(row["step"]) <= step]
        if self.path.exists():
            self._rewrite()

    def append(self, row: Dict[str, Any]) -> None:
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

    def _format(self, rows: List[Dict[str, str]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.header, restval="", lineterminator="\n").writerows(rows)
        return text.getvalue()
