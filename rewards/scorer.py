"""Scores completions: completions in, verdicts out, from any thread and any event loop."""

import asyncio
import collections
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Self

from configs.thinking import ThinkingMarks
from rewards.answers.algebra import NeedsAlgebraError, NoAlgebra
from rewards.answers.equivalence import equivalent
from rewards.answers.extract import FORMS, MAX_COMPLETION_CHARS, Extraction, Rules, extract
from rewards.answers.ordering import ORDERED_LISTS
from rewards.answers.shapes import UnreadableError
from rewards.gold import read_gold
from rewards.processes.fork_server import import_path
from rewards.processes.pool import Gate, Pool
from rewards.tally import Tally
from rewards.verdict import Verdict

_Result = dict[str, Any]
_Key = tuple[str, str]


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
        custom_path: str | None = None,
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
            custom_path: ``package.module:function``, called as ``function(gold=..., completion=...)``
                in the worker processes instead of the built-in check; returns a number.
            max_pending: Limit of the answers that wait for a process; further callers wait before submitting.
            max_cached: Number of results kept, by (gold, answer).
            max_failure_share: Share of ``timeout`` and ``error`` above which an error is logged.
        """
        self._rules = Rules(forms=tuple(forms), marks=marks or ThinkingMarks())
        if ordered_lists not in ORDERED_LISTS:
            raise ValueError(f"`ordered_lists` is {ordered_lists!r}; choose from {', '.join(ORDERED_LISTS)}.")
        self._ordered_lists = ordered_lists
        if max_pending < 1:
            raise ValueError(f"`max_pending` must be at least 1, got {max_pending}.")
        if custom_path is not None and not all(custom_path.partition(":")):
            raise ValueError(f"`custom_path` is {custom_path!r}; write it as package.module:function.")
        self._custom_path = custom_path
        self._pool = Pool(
            num_workers=num_workers, limit_seconds=limit_seconds, memory_limit_mb=memory_limit_mb
        )
        self._gate = Gate(max_pending)
        self._tally = Tally(max_failure_share)
        self._max_cached = max_cached
        self._lock = threading.Lock()
        self._cache: collections.OrderedDict[_Key, Future[_Result]] = collections.OrderedDict()

    # --- public ------------------------------------------------------------------------------

    async def score(self, *, gold: str, completion: str) -> Verdict:
        """Scores a whole completion, thinking included. Does not raise for any text."""
        start = time.perf_counter()
        found, todo = self._prepare_completion(gold, completion)
        if not isinstance(todo, Verdict):
            todo = _verdict(found, *await self._solve(todo), start)
        return self._counted(todo, start)

    def score_sync(self, *, gold: str, completion: str) -> Verdict:
        """Same as ``score``, for callers without an event loop."""
        start = time.perf_counter()
        found, todo = self._prepare_completion(gold, completion)
        if not isinstance(todo, Verdict):
            todo = _verdict(found, *self._solve_sync(todo), start)
        return self._counted(todo, start)

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
        if not isinstance(todo, Verdict):
            return _verdict(found, *await self._solve(todo), start)
        return _timed(todo, start)

    def equivalent_sync(self, *, gold: str, answer: str) -> Verdict:
        """Same as ``equivalent``, for callers without an event loop."""
        start = time.perf_counter()
        found, todo = self._prepare_answer(gold, answer)
        if not isinstance(todo, Verdict):
            return _verdict(found, *self._solve_sync(todo), start)
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

    # --- what needs no process ---------------------------------------------------------------

    def _prepare_completion(self, gold: str, completion: str) -> tuple[Extraction, _Result | Verdict]:
        """Returns the extracted answer and either the verdict or the request for a worker."""
        if self._custom_path is not None:
            found = extract(completion, self._rules)
            if len(completion) > MAX_COMPLETION_CHARS:
                return found, Verdict(status="unparsable", reason=found.reason)
            request = {"task": "custom", "path": self._custom_path, "import_path": import_path()}
            return found, {**request, "gold": gold, "completion": completion}
        try:
            parsed = read_gold(gold)
        except ValueError as error:
            return Extraction(answer=None), Verdict(status="error", reason=str(error))
        found = extract(completion, self._rules, gold_is_choice=parsed.is_choice, gold_parts=parsed.num_parts)
        if found.answer is None:
            return found, Verdict(status="unparsable", reason=found.reason)
        return found, self._decide(parsed.answer, found)

    def _prepare_answer(self, gold: str, answer: str) -> tuple[Extraction, _Result | Verdict]:
        found = Extraction(answer=answer, found_by="given")
        try:
            return found, self._decide(read_gold(gold).answer, found)
        except ValueError as error:
            return found, Verdict(status="unparsable", answer=answer, found_by="given", reason=str(error))

    def _decide(self, gold: str, found: Extraction) -> _Result | Verdict:
        """Returns the verdict if exact tests on the text suffice, else the request for a worker."""
        assert found.answer is not None
        try:
            right = equivalent(
                gold=gold, answer=found.answer, algebra=NoAlgebra(), ordered_lists=self._ordered_lists
            )
        except NeedsAlgebraError:
            return {
                "task": "check",
                "gold": gold,
                "answer": found.answer,
                "ordered_lists": self._ordered_lists,
            }
        except UnreadableError as error:
            status, reason = "unparsable", str(error)
        except RecursionError:
            status, reason = "unparsable", "It is nested too deeply."
        else:
            status, reason = ("correct" if right else "wrong"), ""
        return Verdict(status=status, answer=found.answer, found_by=found.found_by, reason=reason)

    # --- what needs one ----------------------------------------------------------------------

    def _cached(self, request: _Result) -> tuple[Future[_Result], bool]:
        """Returns the future of this pair's result, and True if the caller must compute it."""
        key = _key(request)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key], False
            future = self._cache[key] = Future()
            if len(self._cache) > self._max_cached:
                self._cache.popitem(last=False)
            return future, True

    def _start(self, request: _Result, future: Future[_Result]) -> None:
        """Submits the request to the pool; always resolves the future and leaves the gate."""

        def resolve(result: _Result) -> None:
            self._gate.leave()
            if result["status"] == "error":  # not cached: the next try may succeed
                with self._lock:
                    self._cache.pop(_key(request), None)
            future.set_result(result)

        def finish(done: Future[_Result]) -> None:
            failure = None if done.cancelled() else done.exception()
            if done.cancelled() or failure is not None:
                resolve(_error(str(failure) if failure else "The scorer was closed."))
            else:
                resolve(done.result())

        try:
            self._pool.submit(request).add_done_callback(finish)
        except RuntimeError as error:  # closed
            resolve(_error(str(error)))

    async def _solve(self, request: _Result) -> tuple[_Result, bool]:
        future, is_new = self._cached(request)
        if is_new:
            # A callback, not an await: if this caller is cancelled, others may still wait for the future.
            self._gate.enter().add_done_callback(lambda _: self._start(request, future))
        # Shielded: one caller's cancellation must not cancel the result that others share.
        return await asyncio.shield(asyncio.wrap_future(future)), is_new

    def _solve_sync(self, request: _Result) -> tuple[_Result, bool]:
        future, is_new = self._cached(request)
        if is_new:
            self._gate.enter().result()
            self._start(request, future)
        return future.result(), is_new

    def _counted(self, verdict: Verdict, start: float) -> Verdict:
        self._tally.add(verdict)
        return _timed(verdict, start)


def _key(request: _Result) -> _Key:
    return request["gold"], request["answer"] if request["task"] == "check" else request["completion"]


def _error(reason: str) -> _Result:
    return {"status": "error", "reason": reason, "seconds": 0.0}


def _verdict(found: Extraction, result: _Result, is_new: bool, start: float) -> Verdict:
    return Verdict(
        status=result["status"],
        answer=found.answer,
        found_by=found.found_by,
        seconds=result["seconds"] if is_new else time.perf_counter() - start,
        reason=result["reason"],
        value=result.get("value"),
    )


def _timed(verdict: Verdict, start: float) -> Verdict:
    """Returns the verdict with the time since ``start``, unless the pool has measured its time."""
    return verdict if verdict.seconds else replace(verdict, seconds=time.perf_counter() - start)
