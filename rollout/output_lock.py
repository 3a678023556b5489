"""A lock that lets one process at a time write to a folder."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

LOCK = "run.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder for this process; creates the folder if it does not exist.

    The operating system holds the lock: it ends with the process, however that ends, so the file that a
    killed run leaves behind blocks no later run. Child processes do not inherit it.

    Raises:
        RuntimeError: If another process holds the folder; the message names that process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
        yield
