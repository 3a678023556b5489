"""``python -m launch.workers``: vLLM workers; those that end are started anew, until it is told to stop."""

import signal
import socket
import sys
import threading
from pathlib import Path

from configs.compose import run
from configs.schema import WorkersConfig
from rollout.build import load_tokenizer
from rollout.workers.fleet import Fleet
from rollout.workers.local_worker import LOOPBACK, LocalWorker

LOOK_SECONDS = 1.0
RESTARTS_IN_A_ROW = 3
"""A worker that ends so often without having been up in between ends the command."""


def main(config: WorkersConfig, overrides: list[str]) -> None:
    """Workers on fixed ports, so that a trainer finds one again that was started anew."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        load_tokenizer(config.model)  # finds a wrong path in seconds; vLLM takes a minute
        _serve(Fleet(config.rollout, config.model.path, Path(config.output_dir) / "logs"), config, stop)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        sys.exit(f"workers: {error}")


def _serve(fleet: Fleet, config: WorkersConfig, stop: threading.Event) -> None:
    try:
        fleet.start()
        print(f"Ready: rollout.urls=[{','.join(_urls(config))}]", flush=True)
        while not stop.wait(LOOK_SECONDS):
            for worker in fleet.workers:
                if not worker.is_alive:
                    _start_anew(worker)
    finally:
        fleet.close()


def _urls(config: WorkersConfig) -> list[str]:
    """As other processes write them."""
    rollout = config.rollout
    host = rollout.host if rollout.host in LOOPBACK else socket.getfqdn()
    return [f"http://{host}:{rollout.port + i}" for i in range(rollout.num_workers)]


def _start_anew(worker: LocalWorker) -> None:
    """Raises as ``LocalWorker.start`` does, when it failed ``RESTARTS_IN_A_ROW`` times."""
    for attempt in range(1, RESTARTS_IN_A_ROW + 1):
        print(f"The worker {worker.url} ended; it is started anew (attempt {attempt}).", flush=True)
        try:
            worker.restart()
        except (ValueError, RuntimeError):
            if attempt == RESTARTS_IN_A_ROW:
                raise
        else:
            print(f"The worker {worker.url} is back.", flush=True)
            return


if __name__ == "__main__":
    run("workers", main)
