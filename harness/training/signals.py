"""SIGINT and SIGTERM, noted so that training ends between two updates."""

import contextlib
import signal
import threading
from typing import Any, Iterator


class Stopped(BaseException):
    """SIGINT or SIGTERM came while an evaluation ran; the evaluation is run again when the run continues.

    A BaseException, as KeyboardInterrupt is: it passes through the environments' own handling of errors.
    """


class StopSignals:
    """Notes SIGINT and SIGTERM, so that a run ends between two updates; a second SIGINT ends it at once."""

    def __init__(self) -> None:
        self.received = 0
        self.interruptible = False

    def _note(self, number: int, frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if self.interruptible:
            raise Stopped

    def __enter__(self) -> "StopSignals":
        self.previous = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere (Ray) the caller owns the signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def may_interrupt(self) -> Iterator[None]:
        """Within it a signal raises Stopped at once."""
        self.interruptible = True
        try:
            if self.received:
                raise Stopped
            yield
        finally:
            self.interruptible = False
