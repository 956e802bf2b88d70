"""A probe file, by which the machines of a cluster prove that they see the same folder.

A module of its own with light imports, so that a machine answers in seconds.
"""

import contextlib
import dataclasses
import os
import secrets
import socket
from pathlib import Path
from typing import Iterator

from common.files import make_folder, write_text


@dataclasses.dataclass(frozen=True)
class Probe:
    """A file on the shared storage, by which a machine proves that it sees the driver's folders."""

    path: Path
    content: str

    def problem(self) -> str:
        """What is wrong on this machine, empty where nothing is."""
        here = socket.gethostname()
        if not self.path.exists():
            return f"{self.path.parent}: not the same folder on {here}, choose a run_dir on storage that all share"
        if self.path.read_text(encoding="utf-8") != self.content:
            return f"{self.path.parent}: another folder of this name on {here}, choose a run_dir that all share"
        if not os.access(self.path.parent, os.W_OK):
            return f"{self.path.parent}: cannot be written to on {here}, change its permissions"
        return ""


@contextlib.contextmanager
def probe_in(folder: Path) -> Iterator[Probe]:
    """A probe file in `folder`, removed at the end."""
    make_folder(folder, "run_dir")
    token = secrets.token_hex(8)
    probe = Probe(folder.absolute() / f".probe_{token}", token)
    write_text(probe.path, probe.content)
    try:
        yield probe
    finally:
        probe.path.unlink(missing_ok=True)
