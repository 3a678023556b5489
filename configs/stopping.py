"""Requests to stop a command: Ctrl-C (SIGINT), or a scheduler's SIGTERM or SIGUSR1.

Every long command listens before its heavy imports, which take seconds. The first request is remembered;
what it does depends on what the command is doing:

    while ...                 the first request                                status
    importing                 acts as soon as one of the blocks below begins
    inside ``at_once``        ends the process: there is nothing to save       75 (0 if the starter looks)
    inside ``interrupting``   raises ``Stopped`` in the main thread            75
    otherwise                 sets ``name``; the command ends after its step   75

A second request ends the process at once with status 130 if either of the two is Ctrl-C; further SIGTERM and
SIGUSR1 change nothing, since schedulers repeat them.
"""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, Self

from configs.exit_status import INTERRUPTED, PREEMPTED

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
RESUME_VARIABLE = "PDR_RESUME_COMMAND"
"""Environment variable of processes whose starter is the command to repeat; holds that command."""


class Stopped(KeyboardInterrupt):
    """A request to stop, raised in the main thread. Of its kind, asyncio lets only KeyboardInterrupt pass."""


class StopRequest:
    """Stores the first signal of ``SIGNALS`` and acts on it as the module docstring describes."""

    def __init__(self) -> None:
        self.name = ""
        """Name of the first signal received; empty if none was."""
        self._first = 0
        self._end_by: Callable[[], int] | None = None
        self._pass_to: Callable[[int], None] | None = None
        self._raises = False

    def listen(self) -> Self:
        """Installs handlers for ``SIGNALS``; must be called in the main thread. Returns itself."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        # A thread reads the signals, too: it acts while the main thread waits in a library's C code.
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reading,), daemon=True, name="stop").start()
        for number in SIGNALS:
            signal.signal(number, self.receive)
        os.register_at_fork(after_in_child=_forget)
        return self

    @contextmanager
    def at_once(self, tell: Callable[[], int | None]) -> Iterator[None]:
        """Inside, a request calls ``tell`` and ends the process with its result, or 75 if that is None.

        ``tell`` is called in any thread. Processes that this one has started must end by themselves.
        """

        def end() -> int:
            status = tell()
            return PREEMPTED if status is None else status

        before, self._end_by = self._end_by, end
        try:
            if self.name:
                leave(end())
            yield
        finally:
            self._end_by = before

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, a request raises ``Stopped`` in the main thread; an earlier one raises it on entry."""
        before, self._raises = self._raises, True
        try:
            if self.name:
                raise Stopped
            yield
        finally:
            self._raises = before

    @contextmanager
    def passing_on(self, receive: Callable[[int], None]) -> Iterator[None]:
        """Inside, ``receive`` is called in the main thread with each signal and alone decides what happens.

        A signal that came before is passed on at entry.
        """
        before, self._pass_to = self._pass_to, receive
        try:
            if self._first:
                receive(self._first)
            yield
        finally:
            self._pass_to = before

    def receive(self, number: int, _frame: FrameType | None = None) -> None:
        """Signal handler of the main thread, which ``listen`` installs."""
        self._remember(number)
        if self._pass_to is not None:
            self._pass_to(number)
        elif self._raises:
            self._raises = False  # once: the cleanup that follows must not be cut off
            raise Stopped

    def _remember(self, number: int) -> None:
        if not self._first:
            self._first, self.name = number, signal.Signals(number).name

    def _watch(self, reading: int) -> None:
        """Acts on every signal outside the main thread, so that a call of a library cannot hold it up."""
        first = 0
        while True:
            for number in os.read(reading, 64):
                if number not in SIGNALS:
                    continue
                self._remember(number)
                if self._pass_to is not None:
                    continue
                if first and signal.SIGINT in (first, number):
                    leave(INTERRUPTED)
                first = first or number
                if self._end_by is not None:
                    leave(self._end_by())


STOP = StopRequest()
"""The requests to this process. A command calls ``STOP.listen()`` before its heavy imports."""


def leave(status: int) -> NoReturn:
    """Ends this process without the interpreter's shutdown, where libraries report what they still hold."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _forget() -> None:
    """Restores the default handlers in a forked child, whose signals are not those of this process."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def resume_command(module: str, *options: str) -> str:
    """Returns the command line to repeat: that of the starter if there is one, else that of this process.

    Args:
        module: The module that was run with ``python -m``.
        options: Overrides that replace those of the same key, such as ``resume=auto``.
    """
    if starter := os.environ.get(RESUME_VARIABLE):
        return starter
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return with_options(_parents_command(), options)
    return with_options(["python", "-m", module, *sys.argv[1:]], options)


def with_options(command: Sequence[str], options: Sequence[str]) -> str:
    """Returns ``command`` as shell text, with ``options`` in place of overrides of the same keys."""
    keys = tuple(option.partition("=")[0] + "=" for option in options)
    return shlex.join([*(part for part in command if not (keys and part.startswith(keys))), *options])


def _parents_command() -> list[str]:
    """Returns the command line of ``accelerate launch``, which has started this rank."""
    with open(f"/proc/{os.getppid()}/cmdline", encoding="utf-8", errors="replace") as file:
        parts = file.read().rstrip("\0").split("\0")
    # A console script is run as PYTHON PATH/accelerate.
    if len(parts) > 1 and os.path.basename(parts[1]) == "accelerate":
        return ["accelerate", *parts[2:]]
    return ["python", *parts[1:]]
