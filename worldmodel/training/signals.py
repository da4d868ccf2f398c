"""Ctrl-C and SIGTERM: stop after the running step, with a checkpoint."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """The handler: the first signal asks for a stop, a later Ctrl-C raises KeyboardInterrupt.

    Launchers pass a Ctrl-C on to a process that already got it from the terminal, so a second one within a second
    counts as the same.
    """

    def __init__(self) -> None:
        self.requested = False
        self._first = 0.0

    def __call__(self, number: int, frame: Any) -> None:
        if not self.requested:
            self.requested, self._first = True, time.monotonic()
            # Not print(): the signal may have arrived inside a write to stderr, which refuses to be re-entered.
            os.write(2, b"\nstopping after this step; the run will be saved (Ctrl-C again to quit now)\n")
        elif number == signal.SIGINT and time.monotonic() - self._first > 1.0:
            raise KeyboardInterrupt


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Handle SIGINT and SIGTERM inside the block; the previous handlers return at its end."""
    request = StopRequest()
    try:
        old = {number: signal.signal(number, request) for number in _SIGNALS}
    except ValueError:  # not in the main thread: signals are the caller's
        old = {}
    try:
        yield request
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
