"""One process writes to a folder at a time."""

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
    """Holds a folder, which is made if it is not there.

    The lock is the system's: it ends with the process however that ends, so the file that a killed run
    leaves behind stops nobody. Child processes do not inherit it.

    Raises:
        RuntimeError: If another process holds the folder; names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # which of them depends on the file system
            file.seek(0)
            raise RuntimeError(
                f"{folder} is in use by {file.read().strip()}. Wait for its end, stop it, or choose another "
                "output_dir."
            ) from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s): see to it that no other run uses it.", folder, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
