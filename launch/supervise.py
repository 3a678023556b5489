"""Runs the processes of a job together: if one ends before its time, all end, and it is said why."""

import codecs
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Self

import psutil

from rollout.workers.process_guard import end_guarded, end_of_log, start_guarded

KEPT_CHARACTERS = 20_000
"""Of the last process's output, to find why it failed."""
LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProcess:
    """One process of a job."""

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str]
    ready_urls: tuple[str, ...] = ()
    """It is up when all of them answer with 200; nothing to wait for if empty."""
    ready_seconds: float = 0.0
    """The longest that this may take."""
    says_why: str = ""
    """How the line begins that says why it failed; a launcher's report comes after it."""


@dataclass(slots=True)
class Supervisor:
    """Starts processes in order, each once the one before is up. A context manager: none is left behind."""

    say: Callable[[str], None] = field(default=lambda line: print(line, flush=True))
    show: Callable[[str], None] = field(default=lambda text: print(text, end="", flush=True))
    """Gets the output of the last process as it comes, bars included."""
    _running: list[tuple[JobProcess, subprocess.Popen[bytes]]] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    """Signals that came."""
    _passed_on: int = 0
    """Of them, those that ranks were told of."""
    reached_last: bool = False
    """Whether the last process was started."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process, guard in reversed(self._running):
            end_guarded(guard)
            self.say(f"{process.name}: ended")

    def run(self, processes: Sequence[JobProcess]) -> int:
        """Runs all processes until the last one ends; gives its status, or 1 if another one ended first."""
        *before, last = processes
        for process in before:
            self._start(process)
            if not self._wait_until_up(process):
                return 1
        self.reached_last = True
        begin = self._start(last)
        with last.log.open("rb") as log:
            log.seek(begin)
            return self._watch(last, log)

    def _watch(self, last: JobProcess, log: BinaryIO) -> int:
        """Until a process ends. Shows what the last one writes."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        shown = ""
        while True:
            ended = self._ended()
            text = decoder.decode(log.read())
            self.show(text)
            shown = (shown + text)[-KEPT_CHARACTERS:]
            if ended is not None:
                process, status = ended
                if process is not last:
                    self._show_end(process, status)
                elif status:
                    self.say(f"{process.name}: ended with status {status}, log in {process.log}")
                    for line in _why(process, shown):
                        self.say(line)
                return status if process is last else 1
            if self._passed_on < len(self.told) and self._tell_ranks():
                self._passed_on = len(self.told)
            time.sleep(LOOK_SECONDS)

    def pass_on(self, number: int, _frame: FrameType | None = None) -> None:
        """Has the ranks of the last process told to stop, once there are some; a handler of signals.

        A job that has no trainer yet ends at once.
        """
        self.told.append(number)
        what = "the ranks save and stop after their step"
        if not self.reached_last:
            what = "the job ends; its trainer has not begun, there is nothing to save"
        self.say(f"{signal.Signals(number).name}: {what}")

    def _tell_ranks(self) -> bool:
        """Whether there was a rank to tell.

        Ranks get SIGUSR1 whatever came: SIGTERM would have their launcher kill them soon after.
        """
        found = ranks(self._running[-1][1].pid)
        for rank in found:
            with suppress(psutil.NoSuchProcess):
                rank.send_signal(signal.SIGUSR1)
        return bool(found)

    def _start(self, process: JobProcess) -> int:
        """Gives the byte of its log at which its output begins: a run gone on with wrote there before."""
        process.log.parent.mkdir(parents=True, exist_ok=True)
        with process.log.open("ab") as log:
            begin = log.tell()
            guard = start_guarded(process.command, log, process.environment)
        self._running.append((process, guard))
        self.say(f"{process.name}: started, log in {process.log}")
        return begin

    def _wait_until_up(self, process: JobProcess) -> bool:
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
                self.say(end_of_log(process.log))
                return False
            waiting = [url for url in waiting if not _answers(url)]
            time.sleep(LOOK_SECONDS)
        self.say(f"{process.name}: up")
        return True

    def _ended(self) -> tuple[JobProcess, int] | None:
        for process, guard in self._running:
            if (status := guard.poll()) is not None:
                return process, status
        return None

    def _show_end(self, process: JobProcess, status: int) -> None:
        self.say(f"{process.name}: ended with status {status}")
        self.say(end_of_log(process.log))


def _why(process: JobProcess, output: str) -> list[str]:
    """The last line of a process's output that says why it failed, if there is one."""
    lines = output.replace("\r", "\n").splitlines() if process.says_why else []
    return [line for line in lines if line.startswith(process.says_why)][-1:]


def ranks(pid: int) -> list[psutil.Process]:
    """The ranks under a guarded ``accelerate launch``: its own children that have a RANK."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for launcher in psutil.Process(pid).children():
            for child in launcher.children():
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    if "RANK" in child.environ():
                        found.append(child)
    return found


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
        return answer.status == 200
    return False
