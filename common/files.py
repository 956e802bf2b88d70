"""Writing files so that a reader never sees half of one, and rows as tables."""

import contextlib
import csv
import fcntl
import os
from pathlib import Path
from typing import Iterator, Optional, Sequence, Union

from common.errors import UserError


def readable(path: Union[str, Path]) -> str:
    """The path as messages name it: from the working directory where it is below, else in full."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder, whose file replaces `path` when the block ends without an error.

    Otherwise it is removed and the old file stays. The process id in its name keeps processes that write the same file
    apart. What a killed process left stays until `remove_abandoned`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, refusal: Optional[str] = None) -> Iterator[None]:
    """Holds the lock of `path`, a folder or a file that is made where it is absent, within the block.

    Where another process holds it, raises UserError(refusal), or waits where there is none. A process that ended,
    however it did, holds none.
    """
    descriptor = os.open(path, os.O_RDONLY | (0 if path.is_dir() else os.O_CREAT), 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if refusal is None else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(refusal) from error
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_rows_csv(rows: Sequence[dict], path: Path) -> None:
    """Writes rows with equal keys to a CSV file, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def format_rows(rows: Sequence[dict]) -> str:
    """Rows with equal keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in line.values()] for line in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def remove_abandoned(folder: Path) -> None:
    """Removes the temporary files that processes which no longer run left in `folder`.

    For the opening of a folder, not for each write: it lists the whole folder, which may hold thousands of episodes.
    """
    for stale in folder.glob(".*.*.tmp"):
        if not _is_alive(stale.suffixes[-2].removeprefix(".")):
            stale.unlink(missing_ok=True)


def _is_alive(process_id: str) -> bool:
    try:
        os.kill(int(process_id), 0)
    except ProcessLookupError:
        return False
    except (ValueError, PermissionError):
        return True
    return True


def make_folder(path: Path, field: str) -> None:
    """Makes `path` and its parents. Raises UserError that names the config field or flag to change where it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be created ({error.strerror}); set {field} elsewhere") from error
