"""Programs judged by tests, and what a hostile program cannot do."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards import Scorer
from rewards.processes.lockdown import has_landlock, missing_isolation
from rewards.tasks import code

pytestmark = [
    pytest.mark.component,
    pytest.mark.skipif(bool(missing_isolation()), reason="programs cannot be confined here"),
]
CASES = json.dumps([{"input": "2\n", "output": "4"}, {"input": "5", "output": "10\n"}])


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer(kind="code", limit_seconds=5.0, memory_limit_mb=512, num_workers=1) as made:
        yield made


def block(program: str) -> str:
    return f"<think>```python\nbroken(\n```</think>Here it is:\n```python\n{program}\n```\nDone."


def judged(scorer: Scorer, program: str, gold: str = "assert True"):
    return scorer.score_sync(gold=gold, completion=block(program))


@pytest.mark.parametrize(
    ("program", "gold", "status"),
    [
        ("def twice(x): return 2 * x", "assert twice(3) == 6\nassert twice(-1) == -2", "correct"),
        ("def twice(x): return 3 * x", "assert twice(3) == 6", "wrong"),
        ("def half(x): return x", "assert twice(3) == 6", "wrong"),
        ("print(2 * int(input()))", CASES, "correct"),
        ("print(4)", CASES, "wrong"),
        ("import sys\nfor line in sys.stdin: print(int(line) * 2)", CASES, "correct"),
        ("import sys\nprint(int(input()) * 2)\nsys.exit(3)", CASES, "wrong"),
        ("import asyncio, threading, numpy\nasyncio.run(asyncio.sleep(0))\n"
         "t = threading.Thread(target=print); t.start(); t.join()", "assert numpy.ones(1) == 1", "correct"),
    ],
)  # fmt: skip
def test_a_program_is_correct_if_it_passes_every_test(
    scorer: Scorer, program: str, gold: str, status: str
) -> None:
    assert judged(scorer, program, gold).status == status


def test_the_reason_names_the_first_test_that_failed(scorer: Scorer) -> None:
    assert judged(scorer, "print(4)", CASES).reason == "Test 2 of 2: it wrote '4', expected '10'."
    assert "ZeroDivisionError" in judged(scorer, "1 / 0").reason


def test_a_solution_without_a_program_is_unparsable(scorer: Scorer) -> None:
    for text in ("The answer is 7, of course.", "```\nno python (\n", "<think>```python\nx = 1\n```"):
        assert scorer.score_sync(gold="assert True", completion=text).status == "unparsable"
    assert scorer.score_sync(gold="assert x == 1", completion="x = 1").is_correct


ESCAPES = {
    "a fork bomb": "import os\nwhile True: os.fork()",
    "a new process": "import subprocess\nsubprocess.run(['true'], check=True)",
    "the network": "import socket\nsocket.create_connection(('127.0.0.1', PORT))",
    "a file elsewhere": "open('TARGET', 'w').write('x')",
    "a file here": "open('here.txt', 'w').write('x')",
    "a removed file": "import os\nos.unlink('VICTIM')",
    "a changed mode": "import os\nos.chmod('VICTIM', 0o777)",
    "the parent's death": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "the runner's death": "import os, signal\nos.kill(MAIN, signal.SIGKILL)",
    "too much memory": "x = bytearray(2 * 10**9)",
    "endless output": "while True: print('x' * 100000)",
    "endless sleep": "import time\ntime.sleep(10**9)",
    "an endless loop": "while True: pass",
    "closed pipes and sleep": "import os, time\nos.closerange(0, 100)\ntime.sleep(10**9)",
    "an early end": "import os\nos._exit(0)",
    "a polite early end": "raise SystemExit(0)",
    "a forged report": "import os\nfor fd in range(3, 100):\n  try: os.write(fd, b'x' * 32)\n"
                       "  except OSError: pass\nos._exit(0)",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ESCAPES))
def test_a_hostile_program_is_wrong_and_changes_nothing(scorer: Scorer, tmp_path: Path, name: str) -> None:
    victim, target = tmp_path / "victim", tmp_path / "target"
    victim.write_text("whole")
    victim.chmod(0o640)
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = {"PORT": server.getsockname()[1], "TARGET": target, "VICTIM": victim, "MAIN": os.getpid()}
        program = ESCAPES[name]
        for word, value in words.items():
            program = program.replace(word, str(value))
        started = time.monotonic()
        verdict = judged(scorer, program)
        assert time.monotonic() - started < 30
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):
            server.accept()
    assert verdict.status == "wrong", verdict
    assert not target.exists() and victim.read_text() == "whole" and victim.stat().st_mode & 0o777 == 0o640
    assert judged(scorer, "x = 1", "assert x == 1").is_correct  # the worker still works


@pytest.mark.skipif(not has_landlock(), reason="this kernel has no Landlock")
def test_a_program_reads_no_file_beside_its_python(scorer: Scorer, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret")
    for path in (tmp_path / "secret", f"/proc/{os.getpid()}/environ", "/proc/self/environ"):
        assert "PermissionError" in judged(scorer, f"open({str(path)!r}).read()").reason
    assert judged(scorer, "import json, csv, sqlite3, decimal").is_correct


def test_no_key_of_the_environment_reaches_a_program(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "s3cret")
    with Scorer(kind="code", num_workers=1, limit_seconds=5.0) as fresh:
        verdict = judged(fresh, "import os", "assert 's3cret' not in str(os.environ), os.environ")
    assert verdict.is_correct


def test_no_process_of_a_stopped_program_is_left(scorer: Scorer) -> None:
    marker = f"x = {time.time_ns()}"
    judged(scorer, f"import time\n{marker}\ntime.sleep(10**9)")
    left = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"confined.py" in path.read_bytes()
    ]
    deadline = time.monotonic() + 5
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = [pid for pid in left if Path(f"/proc/{pid}").exists()]
    assert left == []


def test_checks_run_side_by_side_from_threads(scorer: Scorer) -> None:
    found: list[str] = []

    def check(number: int) -> None:
        found.append(judged(scorer, f"x = {number}", f"assert x == {number}").status)

    threads = [threading.Thread(target=check, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["correct"] * 6


def test_a_machine_that_cannot_confine_programs_runs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "missing_isolation", lambda: "this is darwin on arm64")
    with pytest.raises(RuntimeError, match="this is darwin on arm64"):
        Scorer(kind="code")
