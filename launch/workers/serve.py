"""The workers of ``python -m launch.workers``, once its options are checked."""

import os
import socket
import sys
import time
from pathlib import Path

from configs.schema import WorkersConfig
from configs.stopping import STOP, Stopped
from rollout.endpoints.keys import KEY_VARIABLE, read_key, stored_key
from rollout.tokenizer import load_tokenizer
from rollout.workers.fleet import Fleet
from rollout.workers.local_worker import LocalWorker
from rollout.workers.loopback import LOOPBACK

KEY_FILE = "worker_key"
"""File in the output folder with the key of workers that are started without one in the environment."""
LOOK_SECONDS = 1.0
"""Interval between two checks of the workers."""
RESTARTS_IN_A_ROW = 3
"""The command ends if restarting a worker fails this many times in a row."""


def main(config: WorkersConfig, overrides: list[str]) -> None:
    """Runs the workers on fixed ports, so that a trainer finds a restarted worker again."""
    try:
        with STOP.interrupting():
            load_tokenizer(config.model)  # reports a wrong path in seconds; vLLM takes a minute
            folder = Path(config.output_dir)
            key = read_key(KEY_VARIABLE, os.environ) or _stored(folder / KEY_FILE)
            _serve(Fleet(config.rollout, config.model.path, folder / "logs", key), config)
    except Stopped:
        print(f"workers: ended by {STOP.name}", flush=True)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        sys.exit(f"workers: {error}")


def _stored(path: Path) -> str:
    """Returns the key of a file and tells how a trainer gets it."""
    key = stored_key(path)
    print(f'The trainer needs the key of these workers: export {KEY_VARIABLE}="$(cat {path})"', flush=True)
    return key


def _serve(fleet: Fleet, config: WorkersConfig) -> None:
    try:
        fleet.start()
        print(f"Ready: rollout.urls=[{','.join(_urls(config))}]", flush=True)
        while True:
            time.sleep(LOOK_SECONDS)
            for worker in fleet.workers:
                if not worker.is_alive:
                    _start_anew(worker)
    finally:
        fleet.close()


def _urls(config: WorkersConfig) -> list[str]:
    """Returns the URLs by which other processes, also on other machines, reach the workers."""
    rollout = config.rollout
    host = rollout.host if rollout.host in LOOPBACK else socket.getfqdn()
    return [f"http://{host}:{rollout.port + i}" for i in range(rollout.num_workers)]


def _start_anew(worker: LocalWorker) -> None:
    """Restarts a worker; after ``RESTARTS_IN_A_ROW`` failures raises the error of ``LocalWorker.start``."""
    for attempt in range(1, RESTARTS_IN_A_ROW + 1):
        print(f"The worker {worker.url} ended; restarting it (attempt {attempt}).", flush=True)
        try:
            worker.restart()
        except (ValueError, RuntimeError):
            if attempt == RESTARTS_IN_A_ROW:
                raise
        else:
            print(f"The worker {worker.url} is up again.", flush=True)
            return
