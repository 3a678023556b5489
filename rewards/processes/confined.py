"""Runs a solution on its tests, each in a confined process: ``python -I confined.py < REQUEST``.

It is started once per solution, in an interpreter that shares nothing with the verifier. It knows the inputs
of the tests, but not the outputs that are expected. It writes one line of JSON per test.
"""

import contextlib
import json
import os
import select
import signal
import sys
import time
import traceback
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from rewards.processes.lockdown import lock_down

sys.path.pop(0)

MAX_OUTPUT = 10 * 2**20
"""Bytes of output after which a solution is stopped."""
TOO_LONG = "It took too long."
_ERROR_BYTES = 4000


def run_one(request: dict[str, Any], given: str, deadline: float) -> dict[str, Any]:
    """Runs the solution once; returns its ``output`` and ``error`` (empty if it ended well)."""
    pipes = {name: os.pipe() for name in ("output", "errors", "report")}
    source = os.memfd_create("input")
    os.write(source, given.encode("utf-8", "surrogateescape"))
    os.lseek(source, 0, os.SEEK_SET)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            _become_solution(request, source, {name: pipe[1] for name, pipe in pipes.items()}, parent)
        finally:
            os._exit(1)
    os.close(source)
    for _, end in pipes.values():
        os.close(end)
    reading = {pipe[0]: name for name, pipe in pipes.items()}
    found, problem = _read(reading, deadline)
    problem = problem or _wait(child, deadline)
    if problem:
        os.kill(child, signal.SIGKILL)  # not reaped yet, so its id is still its own
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for descriptor in reading:
        os.close(descriptor)
    return _outcome(request, found, problem, status)


def _read(reading: dict[int, str], deadline: float) -> tuple[dict[str, bytearray], str]:
    """Returns what was written to each pipe, and why the process must be stopped (empty: it ended)."""
    found = {name: bytearray() for name in reading.values()}
    waiting = set(reading)
    while waiting:
        ready, _, _ = select.select(list(waiting), [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return found, TOO_LONG
        for descriptor in ready:
            part = os.read(descriptor, 1 << 16)
            if not part:
                waiting.discard(descriptor)
            found[reading[descriptor]] += part
        if sum(map(len, found.values())) > MAX_OUTPUT:
            return found, f"It wrote more than {MAX_OUTPUT} bytes."
    return found, ""


def _wait(child: int, deadline: float) -> str:
    """Waits for a process that has closed its pipes, which is not its end; returns why it must be stopped."""
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([ended], [], [], max(0.0, deadline - time.monotonic()))
    os.close(ended)
    return "" if ready else TOO_LONG


def _outcome(
    request: dict[str, Any], found: dict[str, bytearray], problem: str, status: int
) -> dict[str, Any]:
    error = found["errors"][-_ERROR_BYTES:].decode(errors="replace").strip().rpartition("\n")[2]
    if not problem and status < 0:
        problem = f"It was ended by signal {-status}."
    elif not problem and status > 0:
        problem = error or f"It ended with status {status}."
    # Ending early with status 0 is no success: the line after the last test must have been reached.
    elif not problem and request["checks"] is not None and found["report"] != request["token"].encode():
        problem = "It ended before its tests did."
    return {"output": found["output"].decode(errors="replace"), "error": problem}


def _become_solution(request: dict[str, Any], source: int, ends: dict[str, int], parent: int) -> None:
    """Runs the solution in this process; does not return."""
    os.dup2(source, 0)
    os.dup2(ends["output"], 1)
    os.dup2(ends["errors"], 2)
    report = os.dup2(ends["report"], 63)
    os.closerange(3, 63)
    os.closerange(64, 1024)
    os.chdir("/")
    token, checks = request["token"], request["checks"]
    code = compile(request["code"], "solution.py", "exec")
    tests = compile(checks, "tests.py", "exec") if checks is not None else None
    lock_down(memory_bytes=request["memory_bytes"], cpu_seconds=int(request["seconds"]) + 1, parent=parent)
    names: dict[str, Any] = {"__name__": "__main__"}
    status = 1
    try:
        exec(code, names)
        if tests is not None:
            exec(tests, names)
            os.write(report, token.encode())
        status = 0
    except SystemExit as exit:
        # As the interpreter does: a status, or a text that is written.
        status = 0 if exit.code in (None, 0) else 1
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc(limit=-3)
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    os._exit(status)


def main() -> None:
    """Reads one request from standard input; writes one line per test."""
    request = json.loads(sys.stdin.buffer.read())
    deadline = time.monotonic() + request["seconds"]
    for given in request["inputs"]:
        print(json.dumps(run_one(request, given, deadline)), flush=True)


if __name__ == "__main__":
    main()
