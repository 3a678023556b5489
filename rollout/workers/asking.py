"""Requests that processes under a guard stop by themselves, with what they have saved."""

import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from rollout.workers.process_guard import commands


def ranks(pid: int) -> list[psutil.Process]:
    """Returns the ranks under a guarded ``accelerate launch``: its children that have RANK set."""
    found = []
    for launcher in commands(pid):
        with suppress(psutil.NoSuchProcess):
            for child in launcher.children():
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    if "RANK" in child.environ():
                        found.append(child)
    return found


def listens(process: psutil.Process) -> bool:
    """Returns True if a process handles SIGUSR1. It ends by it while its interpreter still starts."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return True  # it has ended
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught & 1 << signal.SIGUSR1 - 1)


def ask(processes: Sequence[psutil.Process], number: int) -> bool:
    """Sends a signal to processes that handle requests to stop; returns True if all of them got it.

    Sends nothing, and returns False, if there is none or one does not listen yet.
    """
    if not processes or not all(listens(process) for process in processes):
        return False
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    return True
