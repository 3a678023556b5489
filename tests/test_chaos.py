"""A real run under a seeded stream of faults ends with the weights of the run that met none. ``make chaos``.

Two vLLM workers (``python -m launch.workers``), each behind a proxy that answers some requests wrongly, and a
trainer that is started again with ``resume=auto`` whenever it ends early, as a cluster would. The report of
the faults met is printed and written to ``chaos.json`` in the test's folder.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import REPO
from fault_proxy import FaultProxy, proxies

from rollout.workers.loopback import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SEED = int(os.environ.get("CHAOS_SEED", "0"))
STEPS = 16
READY_SECONDS = 180
RUN_SECONDS = 900
STOPPED_SECONDS = 20.0
MOST_STARTS = 25
SAMPLING_SHARE, CONTROL_SHARE = 0.06, 0.02
"""Share of the requests that the proxies answer wrongly."""
OPTIONS = (
    "experiment=demo",
    "data.num_eval=8",
    "algo.problems_per_step=8",
    "algo.num_generations=4",
    "rollout.request_timeout_seconds=60",
    "rollout.max_retries=20",
    f"train.max_steps={STEPS}",
    "train.save_steps=3",
    "train.eval_at_start=false",
    "train.eval_at_end=false",
    "resume=auto",
)
WORKERS = (
    "rollout=cpu",
    "rollout.num_workers=2",
    "rollout.max_model_len=768",
    "rollout.max_completion_length=96",
)


@dataclass
class Met:
    """Counts of what the run met."""

    processes: Counter[str] = field(default_factory=Counter)
    """Faults of processes, by kind."""
    answers: Counter[str] = field(default_factory=Counter)
    """Wrong answers, by kind."""
    requests: int = 0
    trainer_starts: int = 0
    trainer_ends: Counter[str] = field(default_factory=Counter)
    """Early ends of the trainer, by reason."""
    workers_restarted: int = 0
    seconds: float = 0.0

    def report(self) -> dict[str, Any]:
        """Returns the fields; not by ``asdict``, which breaks counters."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


class Pumped:
    """A process whose output goes through a pipe to a file, so that its own write limits do not cut it."""

    def __init__(self, command: list[str], folder: Path, said: Path, environment: dict[str, str]) -> None:
        self.said = said
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder, env=environment
        )
        self._thread = threading.Thread(target=self._pump, daemon=True)
        self._thread.start()

    def _pump(self) -> None:
        assert self.process.stdout is not None
        with self.said.open("ab") as file:
            while text := os.read(self.process.stdout.fileno(), 1 << 16):
                file.write(text)
                file.flush()

    def text(self) -> str:
        return self.said.read_text(errors="replace") if self.said.exists() else ""


class Run:
    """Workers, proxies and a trainer in one folder."""

    def __init__(self, policy: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "clock").write_text("0")
        self.folder = folder
        self.policy = policy
        self.mark = uuid.uuid4().hex
        path = os.pathsep.join([str(REPO / "tests" / "chaos_clock"), str(REPO)])
        self.environment = {
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "VLLM_API_KEY": "chaos",
            "CHAOS_CLOCK": str(folder / "clock"),
            "CHAOS_RUN": self.mark,
        }
        self.met = Met()
        self.proxies: list[FaultProxy] = []

    @contextmanager
    def workers(self) -> Iterator[None]:
        """Two workers behind proxies, until the context ends."""
        port = free_ports(2)
        own = [f"model.path={self.policy}", f"rollout.port={port}", f"output_dir={self.folder / 'workers'}"]
        command = [sys.executable, "-m", "launch.workers", *WORKERS, *own]
        self.fleet = Pumped(command, self.folder, self.folder / "workers.txt", self.environment)
        try:
            self._until(lambda: "Ready:" in self.fleet.text(), READY_SECONDS, "the workers were not ready")
            targets = [f"http://127.0.0.1:{port + i}" for i in range(2)]
            with proxies(targets, SEED) as self.proxies:
                yield
                self.met.requests = sum(proxy.requests for proxy in self.proxies)
                for proxy in self.proxies:
                    self.met.answers += proxy.faults
            self.met.workers_restarted = self.fleet.text().count("is up again")
        finally:
            self.fleet.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.fleet.process.wait(60)
            self.fleet.process.kill()

    def start_trainer(self) -> None:
        self.met.trainer_starts += 1
        own = [f"model.path={self.policy}", f"output_dir={self.folder / 'run'}"]
        own.append(f"rollout.urls=[{','.join(proxy.url for proxy in self.proxies)}]")
        command = [sys.executable, "-m", "train", *OPTIONS, *own]
        self.trainer = Pumped(command, self.folder, self.folder / "trainer.txt", self.environment)

    def train(self, events: dict[int, Callable[["Run"], None]]) -> None:
        """Trains to the end; each of ``events`` happens once the run has made as many steps as its key."""
        began = time.monotonic()
        waiting = dict(events)
        self.start_trainer()
        try:
            while True:
                assert time.monotonic() - began < RUN_SECONDS, self.ends()
                status = self.trainer.process.poll()
                if status == 0:
                    break
                if status is not None:
                    reason = "killed" if status == -signal.SIGKILL else _reason(self.trainer.text())
                    self.met.trainer_ends[reason] += 1
                    assert self.met.trainer_starts < MOST_STARTS, self.ends()
                    self.start_trainer()
                due = min(waiting, default=STEPS + 1)
                if self.steps() >= due:
                    waiting.pop(due)(self)
                assert self.fleet.process.poll() is None, self.ends()
                time.sleep(0.1)
        finally:
            self.trainer.process.kill()
            self.trainer.process.wait(30)
        assert not waiting, "the run ended before every event"
        self.met.seconds = time.monotonic() - began

    def steps(self) -> int:
        """Steps in ``metrics.jsonl``; a last line that is being written does not count."""
        path = self.folder / "run" / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def ends(self) -> str:
        texts = [self.trainer.text(), self.fleet.text()]
        return "\n".join(text[-3000:] for text in texts) + f"\n{self.met}"

    def leftovers(self) -> list[str]:
        """Command lines of processes that this run started and that still run."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("CHAOS_RUN") == self.mark:
                    found.append(" ".join(process.cmdline())[:200])
        return found

    def guards(self) -> list[psutil.Process]:
        """The guards of the workers, in the order of their ports."""
        children = psutil.Process(self.fleet.process.pid).children()
        return [child for child in children if "rollout.workers.process_guard" in child.cmdline()]

    def _until(self, is_so: Callable[[], bool], seconds: float, otherwise: str) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert self.fleet.process.poll() is None, self.fleet.text()[-3000:]
            assert time.monotonic() < deadline, f"{otherwise}: {self.fleet.text()[-3000:]}"
            time.sleep(0.2)


def kill_worker(run: Run, rng: random.Random) -> None:
    """SIGKILL of a process of a worker: its server or its engine."""
    (guard, *_) = rng.sample(run.guards(), 1)
    with suppress(psutil.Error):
        rng.choice(guard.children(recursive=True)).kill()


def kill_guard(run: Run, rng: random.Random) -> None:
    """SIGKILL of a worker's guard; the worker must end with it."""
    rng.choice(run.guards()).kill()


def stop_worker(run: Run, rng: random.Random) -> None:
    """SIGSTOP of a whole worker for 20 s."""
    tree = rng.choice(run.guards()).children(recursive=True)
    for process in tree:
        with suppress(psutil.Error):
            process.suspend()

    def resume() -> None:
        for process in tree:
            with suppress(psutil.Error):
                process.resume()

    threading.Timer(STOPPED_SECONDS, resume).start()


def kill_trainer(run: Run, rng: random.Random) -> None:
    """SIGKILL of the trainer, at a random moment of its step."""
    time.sleep(rng.uniform(0.0, 3.0))
    run.trainer.process.kill()


def fill_disk(run: Run, rng: random.Random) -> None:
    """For a second no file of the trainer can grow (EFBIG; a full disk says ENOSPC)."""
    time.sleep(rng.uniform(0.0, 2.0))
    with suppress(psutil.Error):
        trainer = psutil.Process(run.trainer.process.pid)
        trainer.rlimit(psutil.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        time.sleep(1.0)
        trainer.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def jump_clock(run: Run, rng: random.Random) -> None:
    """The wall clock jumps by up to a day, forth or back."""
    (run.folder / "clock").write_text(str(rng.uniform(-86_400, 86_400)))


FAULTS = (kill_worker, kill_guard, stop_worker, kill_trainer, fill_disk, jump_clock)


def _events(run: Run, seed: int) -> dict[int, Callable[[Run], None]]:
    """Each fault twice, in a seeded order, one after each of the steps 1 to 12."""
    rng = random.Random(seed)
    order = [*FAULTS, *FAULTS]
    rng.shuffle(order)

    def event(fault: Callable[[Run, random.Random], None]) -> Callable[[Run], None]:
        def happen(run: Run) -> None:
            run.met.processes[fault.__name__.replace("_", " ")] += 1
            fault(run, rng)

        return happen

    return {step: event(fault) for step, fault in enumerate(order, start=1)}


def _reason(said: str) -> str:
    """The last line that names an error."""
    lines = [line for line in said.splitlines() if "Error" in line or line.startswith("train:")]
    return lines[-1].strip()[:160] if lines else "no reason given"


def _result(folder: Path) -> tuple[bytes, list[float]]:
    """Weights after the last step, and the reward of every step."""
    run = folder / "run"
    weights = run / "checkpoints" / f"step_{STEPS:06d}" / "policy" / "model.safetensors"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return weights.read_bytes(), [line["reward"] for line in lines]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's policy, or one that was trained for a quarter of its cold start."""
    demo = REPO / "outputs" / "demo" / "policy"
    if (demo / "coldstart.json").is_file():
        return demo
    folder = tmp_path_factory.mktemp("cold")
    command = [sys.executable, "-m", "train.coldstart", "experiment=demo", "coldstart.max_steps=300"]
    subprocess.run(
        [*command, f"output_dir={folder}", f"model.path={folder / 'policy'}"],
        check=True,
        cwd=folder,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    return folder / "policy"


def test_a_run_under_faults_ends_with_the_weights_of_a_run_without(policy: Path, tmp_path: Path):
    calm = Run(policy, tmp_path / "calm")
    with calm.workers():
        calm.train({})
    stormy = Run(policy, tmp_path / "stormy")
    with stormy.workers():
        for proxy in stormy.proxies:
            proxy.sampling_share, proxy.control_share = SAMPLING_SHARE, CONTROL_SHARE
        stormy.train(_events(stormy, SEED))
    report = {"seed": SEED, "steps": STEPS, "calm_seconds": round(calm.met.seconds, 1), **stormy.met.report()}
    text = json.dumps(report, indent=1)
    print(f"\n{text}")
    (tmp_path / "chaos.json").write_text(text)
    assert calm.met.trainer_starts == 1
    weights, rewards = _result(stormy.folder)
    expected_weights, expected_rewards = _result(calm.folder)
    assert rewards == expected_rewards
    assert weights == expected_weights
    assert stormy.leftovers() == calm.leftovers() == []
