"""How does training end before its time? SIGTERM and SIGINT, without losing what was trained.

While the loop runs, a signal is only noted: the loop finishes its step, writes a checkpoint and ends. Before
and after it, where a checkpoint is on the disk or nothing was trained yet, a signal ends training at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from iclens.core import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
PATIENCE = 3
"""SIGINT so often ends training without a checkpoint."""


class Stopped(BaseException):
    """A signal came while nothing had to be saved."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


class Stop:
    """Whether a signal asked training to end."""

    def __init__(self) -> None:
        self.asked = 0
        """Number of the first signal that came; 0 while none did."""
        self._noting, self._interrupts = False, 0

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Inside, a signal is noted in `asked`; outside, it raises `Stopped`."""
        self._noting = True
        try:
            yield
        finally:
            self._noting = False

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """The signals' handler."""
        self.asked = self.asked or number
        self._interrupts += number == signal.SIGINT
        if self._interrupts >= PATIENCE:
            raise KeyboardInterrupt
        if not self._noting:
            raise Stopped(number)


@contextmanager
def watched() -> Iterator[Stop]:
    """Receive `SIGNALS` inside, and put the earlier handlers back; does nothing outside the main thread."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.receive) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped(number: int, checkpoint: Path | None) -> StoppedError:
    """The one line with which training ends after a signal."""
    name = signal.Signals(number).name
    if checkpoint is None:
        return StoppedError("training", f"stopped by {name}", "Nothing was trained yet.", 128 + number)
    return StoppedError(
        "training",
        f"stopped by {name}, checkpoint '{checkpoint}' written",
        "Continue with --resume.",
        128 + number,
    )
