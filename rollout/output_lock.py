"""A lock that lets one run at a time write to a folder."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

logger = logging.getLogger(__name__)

LOCK = "run.lock"

_held: set[TextIO] = set()


def _close_all() -> None:
    while _held:
        _held.pop().close()


# A forked child shares the open file, and with it the lock, until it closes its copy.
os.register_at_fork(after_in_child=_close_all)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder within the context; creates the folder if it does not exist.

    The operating system holds the lock: it ends with the process, however that ends, so the file that a
    killed run leaves behind blocks no later run. Child processes do not inherit it.

    Raises:
        RuntimeError: If another process, or this one, holds the folder; the message names the process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        try:
            # Not lockf: it would grant this process a second lock, and drop it when any copy is closed.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # which one depends on the file system
            file.seek(0)
            raise RuntimeError(
                f"{folder} is in use by {file.read().strip()}. Wait until it ends, stop it, or choose "
                "another output_dir."
            ) from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s): make sure that no other run uses it.", folder, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)
