"""``python -m launch.slurm.node STOP_FILE COMMAND ...``: runs ``accelerate launch`` on one node of a job.

When STOP_FILE appears, the ranks of this node are asked to stop, once they listen. The file is in the job's
shared folder: a signal of Slurm would reach every process of the step, the ranks' own children included.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from rollout.workers.asking import ask, ranks
from rollout.workers.process_guard import end_guarded, start_guarded

LOOK_SECONDS = 1.0
"""Interval between two looks for the file."""


def main(stop_file: Path, command: list[str]) -> int:
    """Returns the status of the command. If this process ends, the guard ends the command's tree."""
    guard = start_guarded(command, sys.stdout.buffer)
    told = False
    try:
        while (status := guard.poll()) is None:
            told = told or (_exists(stop_file) and ask(ranks(guard.pid), signal.SIGUSR1))
            time.sleep(LOOK_SECONDS)
        return status
    finally:
        end_guarded(guard)


def _exists(path: Path) -> bool:
    # Listed, because NFS may answer for a while from memory that one file does not exist.
    with suppress(OSError):
        return path.name in os.listdir(path.parent)
    return False


if __name__ == "__main__":
    # Ends by an exception, so that the command is ended, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
