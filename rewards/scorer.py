"""Scores completions: completions in, verdicts out, from any thread and any event loop."""

import asyncio
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Self

from configs.thinking import ThinkingMarks
from rewards.answers.extract import FORMS, Extraction, Rules, extract
from rewards.facts import NO_FACTS, Facts
from rewards.gold import read_gold
from rewards.judge import Judge, compared
from rewards.processes.pool import Pool
from rewards.solving import Request, Result, Solver
from rewards.tally import Tally
from rewards.tasks.choosing import Tasks
from rewards.tasks.task import Limits
from rewards.verdict import Verdict


class Scorer:
    """Checks completions against gold answers.

    Comparisons of text and exact rational arithmetic run in the calling thread; everything else runs in
    killable processes. Results are cached by (gold, answer).

    Example:
        with Scorer(forms=()) as scorer:
            scorer.score_sync(gold="1/2", completion="So it is \\\\boxed{0.5}.").is_correct  # True
    """

    def __init__(
        self,
        *,
        num_workers: int = 2,
        limit_seconds: float = 3.0,
        memory_limit_mb: int = 1024,
        forms: tuple[str, ...] | list[str] = FORMS,
        ordered_lists: str = "auto",
        marks: ThinkingMarks | None = None,
        kind: str | None = None,
        kind_column: str | None = None,
        relative_tolerance: float = 1e-6,
        absolute_tolerance: float = 0.0,
        custom_path: str | None = None,
        judge: Judge | None = None,
        max_pending: int = 1024,
        max_cached: int = 100_000,
        max_failure_share: float = 0.02,
    ) -> None:
        """Returns at once; the process that workers are forked from warms up in the background.

        Args:
            num_workers: Number of processes for symbolic work, forked on first use.
            limit_seconds: Wall-time limit per answer, after which its process is killed.
            memory_limit_mb: Address space per process, in MiB; at least 256.
            forms: Accepted forms of an answer outside a box (``extract.FORMS``); empty: box only.
            ordered_lists: Whether the order of a list without brackets counts: ``auto`` (by the gold's form:
                words yes, numbers no), ``true`` or ``false``.
            marks: Marks around the thinking; answers are searched for only in the solution after it. None:
                ``<think>`` and ``</think>``.
            kind: What is asked: one of ``tasks.choosing.KINDS``; None: ``custom`` with a ``custom_path``,
                else ``math``.
            kind_column: Column of the data that names the kind of each problem; ``kind`` where it is absent.
            relative_tolerance: For ``numeric``: allowed difference as a share of the gold.
            absolute_tolerance: For ``numeric``: allowed difference; the larger of the two counts.
            custom_path: ``package.module:function``, called in the worker processes instead of a built-in
                check, with the facts that its parameters name; returns a number.
            judge: The language model that decides for the kind ``judge``; closed with the scorer.
            max_pending: Limit of the answers that wait for a process; further callers wait before submitting.
            max_cached: Number of results kept, by all that a result depends on.
            max_failure_share: Share of ``timeout`` and ``error`` above which an error is logged.

        Raises:
            ValueError: If an option is out of range, or the kind ``judge`` has no ``judge``.
            RuntimeError: If the kind is ``code`` and programs cannot be confined on this machine.
        """
        if kind is None:
            kind = "math" if custom_path is None else "custom"
        self._rules = Rules(forms=tuple(forms), marks=marks or ThinkingMarks())
        self._tally = Tally(max_failure_share)
        self._judge = judge
        self._pool = Pool(
            num_workers=num_workers, limit_seconds=limit_seconds, memory_limit_mb=memory_limit_mb
        )
        self._tasks = Tasks(
            kind,
            kind_column,
            rules=self._rules,
            limits=Limits(seconds=limit_seconds, memory_mb=memory_limit_mb),
            ordered_lists=ordered_lists,
            tolerances=(relative_tolerance, absolute_tolerance),
            custom_path=custom_path,
            pool=self._pool,
            has_judge=judge is not None,
        )
        self._by_worker = Solver(self._pool, max_pending=max_pending, max_cached=max_cached)
        self._by_judge = judge and Solver(judge, max_pending=max_pending, max_cached=max_cached)

    def _solver(self, request: Request) -> Solver:
        if not request.is_judged:
            return self._by_worker
        assert self._by_judge is not None, "the kind `judge` was accepted without one"
        return self._by_judge

    # --- public ------------------------------------------------------------------------------

    async def score(self, *, gold: str, completion: str, facts: Facts = NO_FACTS) -> Verdict:
        """Scores a whole completion, thinking included. Does not raise for any text.

        Args:
            gold: The correct answer; for code its tests.
            completion: The whole text.
            facts: What else is known; some kinds and custom rewards need it.

        Raises:
            rewards.judge.JudgeUnavailableError: If the kind is ``judge``, and its model failed too often.
        """
        start = time.perf_counter()
        if (waits := self._tasks.awaited()) is not None:
            await asyncio.shield(asyncio.wrap_future(waits))
        found, todo = self._prepare(gold, completion, facts)
        if isinstance(todo, Request):
            result, is_new = await self._solver(todo).solve(todo)
            verdict = self._decided(_verdict(found, result, is_new, start))
            if todo.is_judged and is_new and not verdict.is_failure:
                rules = self._by_rules(todo)
                if isinstance(rules, Request):
                    rules = _verdict(found, *await self._solver(rules).solve(rules), start)
                verdict = compared(verdict, rules)
            todo = verdict
        return self._counted(todo, start)

    def score_sync(self, *, gold: str, completion: str, facts: Facts = NO_FACTS) -> Verdict:
        """Same as ``score``, for callers without an event loop; inside one it blocks the loop."""
        start = time.perf_counter()
        found, todo = self._prepare(gold, completion, facts)
        if isinstance(todo, Request):
            result, is_new = self._solver(todo).solve_sync(todo)
            verdict = self._decided(_verdict(found, result, is_new, start))
            if todo.is_judged and is_new and not verdict.is_failure:
                rules = self._by_rules(todo)
                if isinstance(rules, Request):
                    rules = _verdict(found, *self._solver(rules).solve_sync(rules), start)
                verdict = compared(verdict, rules)
            todo = verdict
        return self._counted(todo, start)

    def check_gold(self, gold: str, columns: Mapping[str, Any] | None = None) -> str | None:
        """Checks that the scorer can use a gold answer, by the rules of its kind.

        Args:
            gold: The gold answer.
            columns: The other fields of its row.

        Returns:
            A doubt about a gold that can be used; None if there is none.

        Raises:
            ValueError: If every answer would count as wrong, or as a failure.
        """
        columns = columns or {}
        return self._tasks.of(columns).check_gold(gold, columns)

    def check_columns(self, columns: Collection[str]) -> None:
        """Checks that a custom reward takes only facts and these columns of the data; else a no-op.

        Raises:
            ValueError: If it cannot be imported or needs anything else; the message lists what exists.
        """
        self._tasks.check_columns(columns)

    def extract_answer(self, completion: str) -> str | None:
        """Returns the answer of a completion that ``score`` would judge; None if there is none.

        The form ``choice`` is not tried, since it applies only if the gold is a letter.
        """
        return extract(completion, self._rules).answer

    async def equivalent(self, *, gold: str, answer: str) -> Verdict:
        """Compares two extracted answers, e.g. for voting.

        Unlike ``score``, the verdict is not counted, and a ``gold`` that does not parse is ``unparsable``,
        not ``error``, since it may be an answer of the policy like the other.
        """
        start = time.perf_counter()
        found, todo = self._prepare_answer(gold, answer)
        if isinstance(todo, Request):
            return _verdict(found, *await self._solver(todo).solve(todo), start)
        return _timed(todo, start)

    def equivalent_sync(self, *, gold: str, answer: str) -> Verdict:
        """Same as ``equivalent``, for callers without an event loop."""
        start = time.perf_counter()
        found, todo = self._prepare_answer(gold, answer)
        if isinstance(todo, Request):
            return _verdict(found, *self._solver(todo).solve_sync(todo), start)
        return _timed(todo, start)

    @property
    def counts(self) -> dict[str, int]:
        """Number of verdicts of ``score`` so far, by status."""
        return self._tally.counts

    @property
    def failure_share(self) -> float:
        """Share of ``timeout`` and ``error`` among all verdicts so far; 0 if there are none."""
        return self._tally.failure_share

    @property
    def num_replaced_workers(self) -> int:
        """Number of processes that were killed at a limit or found dead."""
        return self._pool.num_replaced

    def worker_pids(self) -> list[int]:
        """Returns the process ids of the workers that are alive."""
        return self._pool.worker_pids()

    def close(self) -> None:
        """Kills the worker processes; running checks end with status ``error``."""
        self._tally.judge()
        self._pool.close()
        if self._judge is not None:
            self._judge.close()

    async def aclose(self) -> None:
        """Same as ``close``, without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    # --- how one check goes -----------------------------------------------------------------

    def _prepare(self, gold: str, completion: str, facts: Facts) -> tuple[Extraction, Request | Verdict]:
        """Returns the extracted answer and either the verdict or the request that decides it."""
        try:
            return self._tasks.of(facts.columns).prepare(gold, completion, facts)
        except ValueError as error:
            return Extraction(answer=None), Verdict(status="error", reason=str(error))

    def _prepare_answer(self, gold: str, answer: str) -> tuple[Extraction, Request | Verdict]:
        found = Extraction(answer=answer, found_by="given")
        try:
            return found, self._tasks.math.decide(read_gold(gold).answer, found)
        except ValueError as error:
            return found, Verdict(status="unparsable", answer=answer, found_by="given", reason=str(error))

    def _decided(self, verdict: Verdict) -> Verdict:
        """Returns the verdict. Raises JudgeUnavailableError if the judge keeps failing."""
        if verdict.undecided and self._judge is not None:
            self._judge.check_available()
        return verdict

    def _by_rules(self, request: Request) -> Request | Verdict:
        """Returns what the rules say of an answer that a language model has judged."""
        return self._prepare_answer(request.body["gold"], request.body["answer"])[1]

    def _counted(self, verdict: Verdict, start: float) -> Verdict:
        self._tally.add(verdict)
        return _timed(verdict, start)


def _verdict(found: Extraction, result: Result, is_new: bool, start: float) -> Verdict:
    return Verdict(
        status=result["status"],
        answer=found.answer,
        found_by=found.found_by,
        seconds=result["seconds"] if is_new else time.perf_counter() - start,
        reason=result["reason"],
        value=result.get("value"),
        undecided=result.get("undecided", False),
        measures=result.get("measures", {}) if is_new else {},
    )


def _timed(verdict: Verdict, start: float) -> Verdict:
    """Returns the verdict with the time since ``start``, unless the pool has measured its time."""
    return verdict if verdict.seconds else replace(verdict, seconds=time.perf_counter() - start)
