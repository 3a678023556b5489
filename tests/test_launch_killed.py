"""A real job of two workers and two ranks: each of the four killed in turn, and nothing is left of it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from conftest import REPO

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

START_SECONDS = 240
LIMIT_SECONDS = 60
"""What a job may take to recover, or to end."""
OPTIONS = (
    "experiment=demo",
    "launch.accelerate=cpu_zero2",
    "data.num_eval=8",
    "algo.problems_per_step=4",
    "algo.num_generations=2",
    "rollout.num_workers=2",
    "rollout.max_completion_length=24",
    "rollout.max_retries=20",
    "train.max_steps=100000",
    "train.save_steps=100000",
    "train.eval_at_start=false",
    "train.eval_at_end=false",
)


@dataclass(frozen=True, slots=True)
class Job:
    process: subprocess.Popen[bytes]
    folder: Path
    port: int

    @property
    def said(self) -> str:
        return (self.folder / "said.txt").read_text()

    def tree(self) -> list[psutil.Process]:
        """Every process of the job."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def rank(self, number: int) -> psutil.Process:
        """The outermost process of its rank: those that it starts have its environment."""
        found = self._those(lambda process: process.environ().get("RANK") == str(number))
        return next(process for process in found if process.parent() not in found)

    def server(self, number: int) -> psutil.Process:
        """The innermost process with its command: a guard has it in its own arguments."""
        port = str(self.port + number)
        found = self._those(lambda p: "vllm" in " ".join(p.cmdline()) and port in p.cmdline())
        return next(process for process in found if not set(process.children(recursive=True)) & set(found))

    def is_up(self, number: int) -> bool:
        with suppress(OSError):
            url = f"http://127.0.0.1:{self.port + number}/health"
            with urllib.request.urlopen(url, timeout=2) as answer:
                return answer.status == 200
        return False

    def steps(self) -> int:
        metrics = self.folder / "metrics.jsonl"
        return json.loads(metrics.read_text().splitlines()[-1])["step"] if metrics.is_file() else 0

    def _those(self, fits: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
        found = []
        for process in self.tree():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if fits(process):
                    found.append(process)
        assert found, f"the job has no such process; it said:\n{self.said}"
        return found


@contextmanager
def _job(policy: Path, folder: Path) -> Iterator[Job]:
    """A job that trains; its processes are ended whatever the test does."""
    folder.mkdir()
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    own = [f"model.path={policy}", f"output_dir={folder}", f"rollout.port={port}"]
    with (folder / "said.txt").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "launch", *OPTIONS, *own],
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(REPO)},
        )
    job = Job(process=process, folder=folder, port=port)
    try:
        _until(lambda: job.steps() >= 2, job, START_SECONDS, "no step was made")
        yield job
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(LIMIT_SECONDS)
        process.kill()


def _until(is_so: Callable[[], bool], job: Job, seconds: float, otherwise: str) -> float:
    """Seconds until ``is_so``."""
    began = time.monotonic()
    while not is_so():
        assert job.process.poll() is None, f"the job ended; it said:\n{job.said}"
        assert time.monotonic() - began < seconds, f"{otherwise} within {seconds} s; it said:\n{job.said}"
        time.sleep(0.2)
    return time.monotonic() - began


def _recovers(job: Job, number: int) -> None:
    """A killed worker comes back on its port, and steps are made again."""
    job.server(number).kill()
    _until(lambda: not job.is_up(number), job, LIMIT_SECONDS, "the worker was not killed")
    seconds = _until(lambda: job.is_up(number), job, LIMIT_SECONDS, "the worker did not come back")
    step = job.steps()
    more = _until(lambda: job.steps() >= step + 2, job, LIMIT_SECONDS, "no step was made after that")
    print(f"worker {number}: back after {seconds:.0f} s, two steps {more:.0f} s later")


def _ends(job: Job, number: int) -> None:
    """A killed rank ends the job, with the trainer's last lines and without a process left."""
    tree = job.tree()
    assert len(tree) >= 8  # guards, workers with their engines, the launcher, ranks
    job.rank(number).kill()
    began = time.monotonic()
    assert job.process.wait(LIMIT_SECONDS) == 1
    print(f"rank {number}: the job ended after {time.monotonic() - began:.0f} s")
    assert "trainer: ended with status 1" in job.said
    assert "ChildFailedError" in job.said  # the launcher's own report
    _, alive = psutil.wait_procs(tree, timeout=1)
    assert not alive


def test_killed_workers_come_back_and_a_killed_rank_ends_the_job(tiny_policy: Path, tmp_path: Path):
    with _job(tiny_policy, tmp_path / "job") as job:
        _recovers(job, 0)
        _recovers(job, 1)
        _ends(job, 1)


def test_the_rank_that_owns_the_reports_may_be_killed_too(tiny_policy: Path, tmp_path: Path):
    with _job(tiny_policy, tmp_path / "job") as job:
        _ends(job, 0)
