"""In which order problems are drawn, and which are drawn no more."""

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rollout.policy import derive_seed
from rollout.records import DRAFT, TRACE, Problem, Rollout


class ProblemStream:
    """Every problem once an epoch, each epoch in an order of its own; without those that became too easy."""

    def __init__(
        self,
        problems: Sequence[Problem],
        *,
        seed: int,
        max_pass_rate: float | None = None,
        min_attempts: int = 1,
    ) -> None:
        """With ``max_pass_rate`` a problem is left out once at least this share of its plain attempts was
        right, if it had at least ``min_attempts``."""
        self._problems = problems
        self._seed = seed
        self._max_pass_rate = max_pass_rate
        self._min_attempts = min_attempts
        self._position = 0
        self._epoch = -1
        self._order: list[int] = []
        self._history: dict[str, list[int]] = {}

    def state_dict(self) -> dict[str, Any]:
        """Problems drawn so far, and each one's right and all plain attempts."""
        return {"position": self._position, "history": {name: list(h) for name, h in self._history.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._position = int(state["position"])
        self._history = {name: list(h) for name, h in state["history"].items()}

    def draw(self, num: int) -> list[Problem]:
        """The next problems.

        Raises:
            RuntimeError: If every problem became too easy.
        """
        drawn: list[Problem] = []
        skipped = 0
        while len(drawn) < num:
            problem = self._next()
            if not self._is_too_easy(problem):
                drawn.append(problem)
                skipped = 0
                continue
            skipped += 1
            if skipped == len(self._problems):
                raise RuntimeError(
                    f"All {skipped} problems are solved at least as often as collect.max_history_pass_rate = "
                    f"{self._max_pass_rate} says: there is nothing left to draw. Add harder problems, raise "
                    "collect.max_history_pass_rate, or end the run here."
                )
        return drawn

    def remember(self, rollouts: Iterable[Rollout]) -> None:
        """Adds the plain attempts of rollouts, traces and first drafts, to their problems' history."""
        for rollout in rollouts:
            history = self._history.setdefault(rollout.problem.id, [0, 0])
            for place, verdict in rollout.verdicts.items():
                call = rollout.calls[place]
                if call.role in (TRACE, DRAFT) and not call.is_given:
                    history[0] += verdict.is_correct
                    history[1] += 1

    def _next(self) -> Problem:
        epoch, place = divmod(self._position, len(self._problems))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = list(range(len(self._problems)))
            random.Random(derive_seed(self._seed, "epoch", epoch)).shuffle(self._order)
        self._position += 1
        return self._problems[self._order[place]]

    def _is_too_easy(self, problem: Problem) -> bool:
        right, attempts = self._history.get(problem.id, (0, 0))
        if self._max_pass_rate is None or attempts < self._min_attempts:
            return False
        return right / attempts >= self._max_pass_rate
