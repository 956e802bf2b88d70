"""SIGINT and SIGTERM, noted so that training ends between two updates."""

import contextlib
import signal
import threading
from typing import Iterator


class Stopped(BaseException):
    """SIGINT or SIGTERM came while an evaluation ran; the evaluation is run again when the run continues.

    A BaseException, as KeyboardInterrupt is: it passes through the environments' own handling of errors.
    """


class StopSignals:
    """Notes SIGINT and SIGTERM, so that a run ends between two updates; a second SIGINT ends it at once."""

    def __init__(self):
        self.received = 0
        self.evaluating = False

    def _note(self, number, frame) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if self.evaluating:
            raise Stopped

    def __enter__(self) -> "StopSignals":
        self.previous = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere (Ray) the caller owns the signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def may_interrupt(self) -> Iterator[None]:
        """Within it a signal raises Stopped at once."""
        self.evaluating = True
        try:
            if self.received:
                raise Stopped
            yield
        finally:
            self.evaluating = False
