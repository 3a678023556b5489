"""Requests to stop a run, as when a scheduler preempts it: the run saves, then ends with its own status."""

import signal
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Stores a signal until the current step has finished."""

    def __init__(self) -> None:
        self.name = ""
        """Name of the signal received; empty if none was."""

    def listen(self) -> Self:
        """Installs handlers for ``SIGNALS``; must be called in the main thread. Returns itself."""
        for number in SIGNALS:
            signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
