"""Notes SIGINT and SIGTERM, so that training stops between two updates or within an evaluation."""

import contextlib
import signal
import threading
from typing import Any, Iterator


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived. A BaseException, so that it passes through the environments' own error handling."""


class StopSignals:
    """Notes SIGINT and SIGTERM within its block; a second SIGINT raises KeyboardInterrupt at once.

    If one arrived, the block ends with SystemExit(128 + its number), unless with another error.
    """

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
        if threading.current_thread() is threading.main_thread():  # elsewhere the caller owns the signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if self.received and kind in (None, Stopped):
            raise SystemExit(128 + self.received) from None

    def raise_if_received(self) -> None:
        if self.received:
            raise Stopped

    @contextlib.contextmanager
    def may_interrupt(self) -> Iterator[None]:
        """Within the block a signal raises Stopped at once, also one that arrived before."""
        self.interruptible = True
        try:
            self.raise_if_received()
            yield
        finally:
            self.interruptible = False
