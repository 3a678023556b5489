"""The order in which problems are drawn: not those that became too easy, more rarely those without signal.

The problems of a step depend only on the stream's position when the step begins, and those of its refills
on a seed: steps that are collected side by side do not depend on one another's timing.
"""

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rollout.policy import derive_seed
from rollout.records import DRAFT, OWN, TRACE, Problem, Rollout

LEAST_SHARE = 0.1
"""Share of the epochs in which a curriculum draws a problem whose attempts were all right, or all wrong: the
policy changes, so no problem is given up."""


class ProblemStream:
    """Draws every problem once per epoch, each epoch in its own order; skips those that became too easy.

    By learnability, a problem of whose plain attempts a share p was right is drawn in a share ``4 p (1 - p)``
    of the epochs, and at least in ``LEAST_SHARE``: p (1 - p) is the variance of its rewards (Foster and
    Foerster, arXiv 2502.12272). Problems with fewer than ``min_attempts`` are drawn in every epoch.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        *,
        seed: int,
        max_pass_rate: float | None = None,
        min_attempts: int = 1,
        by_learnability: bool = False,
    ) -> None:
        """With ``max_pass_rate``, skips a problem once at least this share of its plain attempts was right,
        if it has at least ``min_attempts``."""
        self._problems = problems
        self._seed = seed
        self._max_pass_rate = max_pass_rate
        self._min_attempts = min_attempts
        self._by_learnability = by_learnability
        self._position = 0
        self._epoch = -1
        self._order: list[int] = []
        # Problem id -> [right plain attempts, all plain attempts].
        self._history: dict[str, list[int]] = {}

    @property
    def position(self) -> int:
        """Number of problems drawn so far, refills not included."""
        return self._position

    def state_dict(self) -> dict[str, Any]:
        """Returns the position, and each problem's numbers of right and of all plain attempts."""
        return {"position": self._position, "history": {name: list(h) for name, h in self._history.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._position = int(state["position"])
        self._history = {name: list(h) for name, h in state["history"].items()}

    def draw(self, num: int) -> list[Problem]:
        """Draws the next ``num`` problems.

        Raises:
            RuntimeError: If every problem became too easy.
        """
        drawn: list[Problem] = []
        skipped = 0
        while len(drawn) < num:
            problem = self._next()
            if not self._is_too_easy(problem):
                if self._has_its_turn(problem):
                    drawn.append(problem)
                skipped = 0
                continue
            skipped += 1
            # As many skips in a row as there are problems: without this the loop would never end.
            if skipped == len(self._problems):
                raise RuntimeError(self._nothing_left())
        return drawn

    def draw_extra(self, num: int, *, seed: int, besides: Collection[str]) -> list[Problem]:
        """Draws random problems to replace those without a kept group.

        Args:
            num: Number of problems.
            seed: Seed of the draw; the position does not change.
            besides: Ids of problems that are drawn only if there are not enough others.

        Raises:
            RuntimeError: If every problem became too easy.
        """
        rng = random.Random(seed)
        left = [problem for problem in self._problems if not self._is_too_easy(problem)]
        if not left:
            raise RuntimeError(self._nothing_left())
        others = [problem for problem in left if problem.id not in besides]
        if len(others) >= num:
            return rng.sample(others, num)
        return others + rng.choices(left, k=num - len(others))

    def _nothing_left(self) -> str:
        return (
            f"All {len(self._problems)} problems are solved at least as often as "
            f"collect.max_history_pass_rate = {self._max_pass_rate} says: there is nothing left to draw. Add "
            "harder problems, raise collect.max_history_pass_rate, or end the run here."
        )

    def remember(self, rollouts: Iterable[Rollout]) -> None:
        """Adds the plain attempts of rollouts (traces and first drafts) to their problems' history."""
        for rollout in rollouts:
            history = self._history.setdefault(rollout.problem.id, [0, 0])
            for place, verdict in rollout.verdicts.items():
                call = rollout.calls[place]
                if call.role in (TRACE, DRAFT) and not call.is_given and call.policy == OWN:
                    history[0] += verdict.is_correct
                    history[1] += 1

    def _next(self) -> Problem:
        # The order follows from the seed and the epoch, so a checkpoint stores the position alone.
        epoch, place = divmod(self._position, len(self._problems))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = list(range(len(self._problems)))
            random.Random(derive_seed(self._seed, "epoch", epoch)).shuffle(self._order)
        self._position += 1
        return self._problems[self._order[place]]

    def _is_too_easy(self, problem: Problem) -> bool:
        pass_rate = self._pass_rate(problem)
        return self._max_pass_rate is not None and pass_rate is not None and pass_rate >= self._max_pass_rate

    def _has_its_turn(self, problem: Problem) -> bool:
        """Decides by the curriculum and the seed whether the problem just taken from the order is drawn."""
        pass_rate = self._pass_rate(problem) if self._by_learnability else None
        if pass_rate is None:
            return True
        chance = random.Random(derive_seed(self._seed, "turn", self._position)).random()
        return chance < max(4 * pass_rate * (1 - pass_rate), LEAST_SHARE)

    def _pass_rate(self, problem: Problem) -> float | None:
        """Returns the share of right plain attempts; None while there are too few."""
        right, attempts = self._history.get(problem.id, (0, 0))
        return right / attempts if attempts >= self._min_attempts else None
