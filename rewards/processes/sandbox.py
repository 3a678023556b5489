"""Judges a program by its tests, in processes that can do nothing but compute (see ``lockdown``)."""

import json
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("confined.py")
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""The whole environment of a solution: it holds no keys."""
SHARE_OF_LIMIT = 0.8
"""Share of the pool's time limit after which a solution is stopped and counts as wrong, not as a timeout."""


def run_tests(request: dict[str, Any]) -> dict[str, Any]:
    """Returns ``correct`` if the program passes every test, else ``wrong`` with the first failure.

    Args:
        request: ``code``; either ``checks`` (Python statements that run after it) or ``cases`` (pairs of
            standard input and expected output); ``limit_seconds``, ``memory_bytes``.
    """
    checks, cases = request["checks"], request["cases"]
    inputs = [""] if checks is not None else [given for given, _ in cases]
    asked = {
        "code": request["code"],
        "checks": checks,
        "inputs": inputs,
        "seconds": request["limit_seconds"] * SHARE_OF_LIMIT,
        "memory_bytes": request["memory_bytes"],
        "token": secrets.token_hex(16),
    }
    process = subprocess.Popen(
        [sys.executable, "-I", str(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        cwd="/",
    )
    try:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(json.dumps(asked).encode("ascii"))
        process.stdin.close()
        for number in range(len(inputs)):
            line = process.stdout.readline()
            if not line:
                words = process.stderr.read().decode(errors="replace").strip()
                return {
                    "status": "error",
                    "reason": f"The sandbox ended early: {words[-300:] or 'no reason'}",
                }
            ran = json.loads(line)
            if reason := _failure(ran, cases[number][1] if checks is None else None):
                return {"status": "wrong", "reason": f"Test {number + 1} of {len(inputs)}: {reason}"}
    finally:
        process.kill()  # the solution dies with it
        process.wait()
    return {"status": "correct", "reason": ""}


def _failure(ran: dict[str, Any], expected: str | None) -> str:
    """Returns why a test failed; an empty string if it passed."""
    if ran["error"]:
        return ran["error"][:300]
    if expected is not None and _lines(ran["output"]) != _lines(expected):
        return f"it wrote {ran['output'].strip()[:100]!r}, expected {expected.strip()[:100]!r}."
    return ""


def _lines(text: str) -> list[str]:
    """Returns the lines of an output without white space at their ends and empty lines at its end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]
