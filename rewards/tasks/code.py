"""Programs that are judged by tests: the gold holds the tests, the answer is a Python program."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewards.answers.extract import Extraction, Rules
from rewards.facts import Facts
from rewards.processes.lockdown import missing_isolation
from rewards.solving import Request
from rewards.tasks.task import Limits, Prepared, solution_of, unparsable

_BLOCK = re.compile(r"^```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)^```[ \t]*$", re.S | re.M)


@dataclass(frozen=True, slots=True, kw_only=True)
class TestSet:
    """The tests in a gold: ``checks``, or ``cases`` of standard input and expected output."""

    checks: str | None
    cases: tuple[tuple[str, str], ...]


def read_tests(gold: str) -> TestSet:
    """Reads the tests of a gold: JSON ``[{"input": ..., "output": ...}, ...]``, else Python statements.

    Raises:
        ValueError: If it is empty, a case has another form, or the statements are not Python or test nothing.
    """
    if gold.lstrip().startswith("[{"):
        try:
            rows = json.loads(gold)
            cases = tuple((row["input"], row["output"]) for row in rows)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"The tests are not JSON [{{input, output}}, ...]: {error}") from None
        if not all(isinstance(text, str) for case in cases for text in case):
            raise ValueError("The `input` and `output` of a test must be text.")
        return TestSet(checks=None, cases=cases)
    try:
        compile(gold, "tests.py", "exec")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"The tests are neither JSON nor Python: {error}") from None
    if not re.search(r"\bassert\b|\braise\b|\(", gold):
        raise ValueError("The tests hold no `assert` and no call: every program would pass them.")
    return TestSet(checks=gold, cases=())


def program_of(solution: str) -> str | None:
    """Returns the last fenced block of Python; the whole text if it has no fence and is Python, else None."""
    if blocks := _BLOCK.findall(solution):
        return blocks[-1]
    return solution if "```" not in solution and _is_python(solution) else None


def _is_python(text: str) -> bool:
    try:
        compile(text, "solution.py", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A Python program that passes all tests, run in confined processes (docs/rewards.md has the limits)."""

    rules: Rules
    limits: Limits

    def __post_init__(self) -> None:
        if reason := missing_isolation():
            raise RuntimeError(
                f"Programs of a policy run only where they can be confined, on Linux on x86-64 with seccomp; "
                f"{reason}. Use another rewards.kind, or another machine."
            )

    def check_gold(self, gold: str, columns: Mapping[str, Any]) -> str | None:
        """Raises ValueError like ``read_tests``."""
        read_tests(gold)
        return None

    def prepare(self, gold: str, completion: str, facts: Facts) -> Prepared:
        """See ``Task``."""
        tests = read_tests(gold)
        found = solution_of(completion, self.rules)
        program = None if found.answer is None else program_of(found.answer)
        if program is None:
            reason = found.reason or "The solution has no block of Python code."
            return unparsable(Extraction(answer=None, reason=reason))
        body = {
            "task": "code",
            "code": program,
            "checks": tests.checks,
            "cases": tests.cases,
            "limit_seconds": self.limits.seconds,
            "memory_bytes": self.limits.memory_mb * 2**20,
        }
        digest = hashlib.blake2b(json.dumps([gold, program]).encode(), digest_size=16).hexdigest()
        return Extraction(answer=program, found_by="code"), Request(body=body, key=("code", digest))
