"""A run that is told to stop (a scheduler takes its machines) saves first and says so by its status."""

import signal
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Remembers a signal until the step is over."""

    def __init__(self) -> None:
        self.name = ""
        """Of the signal that came; empty if none did."""

    def listen(self) -> Self:
        """Takes the process's signals; for its main thread."""
        for number in SIGNALS:
            signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
