"""CPU time and memory of a scorer with its workers."""

import contextlib
import re
import threading
import time
from pathlib import Path

from rewards.scorer import Scorer


def cpu_seconds(scorer: Scorer) -> float:
    """CPU time of this process and the workers; unlike wall time it does not depend on other jobs."""
    total = time.process_time()
    for pid in scorer.worker_pids():
        with contextlib.suppress(OSError):  # it was killed
            total += int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    return total


class PeakWatch:
    """Largest address space of any worker, looked at every 10 ms, since killed ones leave no trace."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak = 0

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.peak = max([self.peak, *map(_address_space_mb, self._scorer.worker_pids())])

    def __enter__(self) -> "PeakWatch":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()


def _address_space_mb(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    match = re.search(r"VmPeak:\s*(\d+) kB", status)
    return int(match[1]) // 1024 if match else 0
