"""Runs the processes of a job together: if one ends early, all are ended and the reason is printed."""

import codecs
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Self

from rollout.workers.asking import ask, ranks
from rollout.workers.log_excerpt import log_excerpt
from rollout.workers.loopback import is_up
from rollout.workers.process_guard import end_guarded, start_guarded

KEPT_CHARACTERS = 20_000
"""Characters of the last process's output that are kept to find the reason of a failure."""
LOOK_SECONDS = 0.2
"""Interval between two looks at the processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProcess:
    """One process of a job."""

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str]
    ready_urls: tuple[str, ...] = ()
    """The process is up when all of them answer with status 200; empty: at once."""
    ready_seconds: float = 0.0
    """Limit of the time until the process is up."""
    says_why: tuple[str, ...] = ()
    """Prefixes of the output line that tells why it failed; a launcher prints its own report after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """A process that was started."""

    process: JobProcess
    guard: subprocess.Popen[bytes]
    log_begin: int
    """Offset of its output in its log, to which a resumed run appends."""
    started: float
    """On the monotonic clock."""

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self.started


@dataclass(slots=True)
class Supervisor:
    """Starts processes in order, each when the previous one is up. Ends all of them on exit."""

    say: Callable[[str], None] = field(default=lambda line: print(line, flush=True))
    show: Callable[[str], None] = field(default=lambda text: print(text, end="", flush=True))
    """Called with the output of the last process as it is written, progress bars included."""
    _running: list[_Running] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    """Signals received so far."""
    _passed_on: int = 0
    """Number of these signals that were passed on to the ranks."""
    reached_last: bool = False
    """True once the last process is about to be started."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for running in reversed(self._running):
            end_guarded(running.guard)
            self.say(f"{running.process.name}: ended")

    def run(self, processes: Sequence[JobProcess]) -> int:
        """Runs all until one ends. Returns the status of the last process, or 1 if another ended first."""
        *before, last = processes
        for process in before:
            if not self._wait_until_up(self._start(process)):
                return 1
        self.reached_last = True
        running = self._start(last)
        with last.log.open("rb") as log:
            log.seek(running.log_begin)
            return self._watch(running, log)

    def _watch(self, last: _Running, log: BinaryIO) -> int:
        """Shows the output of the last process until any process ends; returns as ``run`` does."""
        # Incremental: a read may end in the middle of a multi-byte character.
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        shown = ""
        while True:
            # Before the read: what a process wrote until its end is then shown, too.
            ended = self._ended()
            text = decoder.decode(log.read())
            self.show(text)
            shown = (shown + text)[-KEPT_CHARACTERS:]
            if ended is not None:
                running, status = ended
                process = running.process
                if running is not last:
                    self._show_end(running, status)
                elif status:
                    self.say(f"{process.name}: ended with status {status}, log in {process.log}")
                    for line in _why(process, shown):
                        self.say(line)
                return status if running is last else 1
            if self._passed_on < len(self.told) and self._tell_ranks():
                self._passed_on = len(self.told)
            time.sleep(LOOK_SECONDS)

    def pass_on(self, number: int, _frame: FrameType | None = None) -> None:
        """Signal handler: requests that the ranks of the last process stop, once there are any.

        A job whose trainer has not started yet ends at once; so does any job at a second Ctrl-C.

        Raises:
            KeyboardInterrupt: If this is the second request and one of the two is Ctrl-C.
        """
        self.told.append(number)
        if len(self.told) > 1 and signal.SIGINT in self.told:
            raise KeyboardInterrupt
        what = "the ranks save and stop after the current step"
        if number == signal.SIGINT:
            what += "; Ctrl-C again ends the job at once"
        if not self.reached_last:
            what = "the job ends; its trainer has not started, so there is nothing to save"
        self.say(f"{signal.Signals(number).name}: {what}")

    def _tell_ranks(self) -> bool:
        """Asks the ranks to stop; returns True if there was any rank, and all of them could be asked.

        Ranks get SIGINT after Ctrl-C, else SIGUSR1: a SIGTERM is what ends them if the job ends.
        """
        number = signal.SIGINT if signal.SIGINT in self.told else signal.SIGUSR1
        return ask(ranks(self._running[-1].guard.pid), number)

    def _start(self, process: JobProcess) -> _Running:
        process.log.parent.mkdir(parents=True, exist_ok=True)
        with process.log.open("ab") as log:
            begin = log.tell()
            guard = start_guarded(process.command, log, process.environment)
        running = _Running(process=process, guard=guard, log_begin=begin, started=time.monotonic())
        self._running.append(running)
        self.say(f"{process.name}: started, log in {process.log}")
        return running

    def _wait_until_up(self, running: _Running) -> bool:
        process = running.process
        deadline = time.monotonic() + process.ready_seconds
        waiting = list(process.ready_urls)
        while waiting:
            if (ended := self._ended()) is not None:
                self._show_end(*ended)
                return False
            if self.told:
                return False
            if time.monotonic() > deadline:
                self.say(f"{process.name}: {waiting[0]} did not answer within {process.ready_seconds:g} s")
                self.say(log_excerpt(process.log, running.log_begin))
                return False
            waiting = [url for url in waiting if not is_up(url)]
            time.sleep(LOOK_SECONDS)
        self.say(f"{process.name}: up")
        return True

    def _ended(self) -> tuple[_Running, int] | None:
        for running in self._running:
            if (status := running.guard.poll()) is not None:
                return running, status
        return None

    def _show_end(self, running: _Running, status: int) -> None:
        self.say(f"{running.process.name}: ended with status {status} after {running.seconds:.0f} s")
        self.say(log_excerpt(running.process.log, running.log_begin))


def _why(process: JobProcess, output: str) -> list[str]:
    """Returns the last output line with the reason of a failure, or an empty list."""
    lines = output.replace("\r", "\n").splitlines()
    return [line for line in lines if line.startswith(process.says_why)][-1:]
