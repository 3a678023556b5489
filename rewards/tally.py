"""Counts verdicts, and logs an error if too many checks failed."""

import logging
import threading
from collections import Counter

from rewards.verdict import STATUSES, Verdict

logger = logging.getLogger(__name__)

CHECKS_PER_JUDGEMENT = 100
"""The share of failures is checked after every this many verdicts, and at the end."""

FIRST_ANSWERS = 50
"""If none of the first this many answers can be parsed, a warning says so."""


class Tally:
    """Counts of verdicts by status. Thread-safe."""

    def __init__(self, max_failure_share: float) -> None:
        """Args: max_failure_share: Share of ``timeout`` and ``error`` above which an error is logged."""
        self._max_failure_share = max_failure_share
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._last_failure = ""
        self._num_judged = 0

    @property
    def counts(self) -> dict[str, int]:
        """Number of verdicts so far, by status."""
        with self._lock:
            return {status: self._counts[status] for status in STATUSES}

    @property
    def failure_share(self) -> float:
        """Share of ``timeout`` and ``error`` among all verdicts so far; 0 if there are none."""
        counts = self.counts
        return (counts["timeout"] + counts["error"]) / max(1, sum(counts.values()))

    def add(self, verdict: Verdict) -> None:
        """Counts a verdict; every ``CHECKS_PER_JUDGEMENT`` verdicts calls ``judge``.

        Logs a warning if each of the first ``FIRST_ANSWERS`` answers is ``unparsable``.
        """
        with self._lock:
            self._counts[verdict.status] += 1
            if verdict.is_failure:
                self._last_failure = verdict.reason
            total = sum(self._counts.values())
            is_due = total % CHECKS_PER_JUDGEMENT == 0
            has_no_answer = total == self._counts["unparsable"] == FIRST_ANSWERS
        if has_no_answer:
            logger.warning(
                "Not one of the first %d answers could be parsed (%d of %d are unparsable; the last reason: "
                "%s), so all count as wrong. Look at the completions: the prompt must ask for the form of "
                "answer that rewards.forms accepts (a \\boxed{} always counts), and "
                "rollout.max_completion_length must leave room for it.",
                FIRST_ANSWERS, FIRST_ANSWERS, FIRST_ANSWERS, verdict.reason,
            )  # fmt: skip
        if is_due:
            self.judge()

    def judge(self) -> None:
        """Logs an error if too many checks failed; at most once for each total of verdicts."""
        counts, share = self.counts, self.failure_share
        total = sum(counts.values())
        if total == self._num_judged or share <= self._max_failure_share:
            return
        self._num_judged = total
        logger.error(
            "The verifier failed on %d of %d answers (%.1f%%, limit %.1f%%): %d timeouts, %d errors; the "
            "last reason: %s Rewards of this run may be wrong. Look at the verdicts' reasons; raise "
            "rewards.limit_seconds or rewards.memory_limit_mb if answers need it.",
            counts["timeout"] + counts["error"], total, 100 * share, 100 * self._max_failure_share,
            counts["timeout"], counts["error"], self._last_failure,
        )  # fmt: skip
