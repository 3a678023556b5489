"""What a request to stop does in each phase of a command; each in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPO

from configs.rank_errors import record_reason
from configs.stopping import RESUME_VARIABLE, resume_command, with_options

LIMIT_SECONDS = 20
SETUP = """
import os, signal, sys, time
from configs.stopping import STOP, Stopped
STOP.listen()

def ready():
    print("ready", flush=True)
"""


def _process(code: str) -> subprocess.Popen[str]:
    """A process that has printed ``ready``."""
    process = subprocess.Popen(
        [sys.executable, "-c", SETUP + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def _told(code: str, *numbers: signal.Signals, pause: float = 0.3) -> tuple[int, str]:
    """The status and the output of a process that receives ``numbers`` one after the other."""
    process = _process(code)
    for number in numbers:
        process.send_signal(number)
        time.sleep(pause)
    out, errors = process.communicate(timeout=LIMIT_SECONDS)
    assert "Traceback" not in errors, errors
    return process.returncode, out


STEP = """
ready()
until = time.monotonic() + 3
while time.monotonic() < until:
    time.sleep(0.05)
print(f"saved, told by {STOP.name}")
"""


@pytest.mark.component
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_step_is_finished_after_the_first_request(number: signal.Signals):
    assert _told(STEP, number) == (0, f"saved, told by {number.name}\n")


@pytest.mark.component
def test_schedulers_may_repeat_themselves():
    numbers = (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM)
    assert _told(STEP, *numbers) == (0, "saved, told by SIGUSR1\n")


@pytest.mark.component
@pytest.mark.parametrize(
    "numbers",
    [(signal.SIGINT, signal.SIGINT), (signal.SIGINT, signal.SIGTERM), (signal.SIGUSR1, signal.SIGINT)],
)
def test_a_second_request_ends_at_once_if_either_is_ctrl_c(numbers: tuple[signal.Signals, ...]):
    assert _told(STEP, *numbers) == (130, "")


@pytest.mark.component
def test_the_second_ctrl_c_ends_a_process_that_waits_in_c_code():
    code = "import threading\nlock = threading.Lock(); lock.acquire(); ready(); lock.acquire()"
    assert _told(code, signal.SIGINT, signal.SIGINT)[0] == 130


@pytest.mark.component
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_request_during_the_imports_acts_as_soon_as_the_command_can_tell(number: signal.Signals):
    code = """
ready()
time.sleep(1)  # the imports
with STOP.at_once(lambda: print("nothing to save", STOP.name, flush=True)):
    raise AssertionError
"""
    assert _told(code, number) == (75, f"nothing to save {number.name}\n")


@pytest.mark.component
def test_a_start_ends_at_once_with_the_status_that_its_starter_expects():
    code = """
def tell():
    print("told", flush=True)
    return 0
with STOP.at_once(tell):
    ready()
    time.sleep(60)
"""
    assert _told(code, signal.SIGTERM) == (0, "told\n")


@pytest.mark.component
def test_an_evaluation_is_interrupted_once_and_cleans_up_undisturbed():
    code = """
import asyncio
async def evaluate():
    ready()
    await asyncio.sleep(60)
try:
    with STOP.interrupting():
        try:
            asyncio.run(evaluate())
        finally:
            time.sleep(1)  # a repeated SIGTERM does not cut this off
            print("flushed", flush=True)
except Stopped:
    print("ended by", STOP.name)
"""
    assert _told(code, signal.SIGTERM, signal.SIGTERM) == (0, "flushed\nended by SIGTERM\n")


@pytest.mark.component
def test_a_forked_child_does_not_tell_its_parent():
    code = """
child = os.fork()
if child == 0:
    time.sleep(60)
time.sleep(0.3)
os.kill(child, signal.SIGTERM)
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
time.sleep(0.3)
"""
    process = subprocess.run(
        [sys.executable, "-c", f"{SETUP}{code}print(repr(STOP.name))"],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert process.stdout == f"child {-signal.SIGTERM}\n''\n"


@pytest.mark.component
@pytest.mark.parametrize(
    "module", ["train", "train.coldstart", "train.study", "rollout", "launch", "launch.workers"]
)
def test_every_long_command_listens_before_its_heavy_imports(module: str, tmp_path: Path):
    """With imports that never end, each command is asked: it neither dies nor shows a traceback."""
    (tmp_path / "sitecustomize.py").write_text(
        "import builtins\nreal = builtins.__import__\n"
        "def slow(name, *rest, **more):\n"
        "    if name.split('.')[0] in ('torch', 'hydra', 'yaml', 'transformers'):\n"
        "        import time; print('ready', flush=True); time.sleep(60)\n"
        "    return real(name, *rest, **more)\n"
        "builtins.__import__ = slow\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(REPO)))},
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=LIMIT_SECONDS) == 130
    assert process.communicate()[1] == ""


def test_the_command_that_resumes_is_the_one_that_was_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv(RESUME_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "argv", ["x", "resume=none", "output_dir=a b"])
    assert resume_command("train", "resume=auto") == "python -m train 'output_dir=a b' resume=auto"
    assert resume_command("rollout") == "python -m rollout resume=none 'output_dir=a b'"
    monkeypatch.setenv(RESUME_VARIABLE, "sbatch job.sbatch")
    assert resume_command("train", "resume=auto") == "sbatch job.sbatch"


def test_a_rank_names_the_command_of_its_launcher(tmp_path: Path):
    code = "from configs.stopping import resume_command; print(resume_command('train', 'resume=auto'))"
    script = tmp_path / "accelerate"
    script.write_text(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {code!r}], check=True)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), "launch", "-m", "train", "seed=1"],
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT_SECONDS,
        env={**os.environ, "PYTHONPATH": str(REPO), "TORCHELASTIC_RUN_ID": "none"},
    )
    assert done.stdout == "accelerate launch -m train seed=1 resume=auto\n"


def test_options_replace_those_of_the_same_key():
    assert with_options(["a", "x=1", "y=2"], ["x=3"]) == "a y=2 x=3"


def test_the_reason_of_a_rank_is_the_last_thing_its_launcher_shows(tmp_path: Path, monkeypatch):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    record_reason("training: 'x' is not an option.")
    assert json.loads(file.read_text())["message"] == "training: 'x' is not an option."
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(file))
    last = str(ChildFailedError("train", {0: failure})).strip().splitlines()[-2]
    assert last.split(" : ")[-1] == "training: 'x' is not an option."
