"""Chooses the kind of task of each problem: one for all, or by a column of the data."""

from collections.abc import Collection, Mapping
from concurrent.futures import Future
from typing import Any

from rewards.answers.extract import Rules
from rewards.processes.pool import Pool
from rewards.solving import Result
from rewards.tasks.code import Code
from rewards.tasks.custom import Custom
from rewards.tasks.judged import Judged
from rewards.tasks.math import Math
from rewards.tasks.numeric import Numeric
from rewards.tasks.reasoning_gym import ReasoningGym
from rewards.tasks.task import Limits, Task
from rewards.tasks.texts import Choice, Exact, OrderedText

KINDS = (
    "math", "choice", "exact", "ordered_text", "numeric", "code", "reasoning_gym", "judge", "custom",
)  # fmt: skip


class Tasks:
    """The kinds that a scorer can judge, each built on first use."""

    def __init__(
        self,
        kind: str,
        kind_column: str | None,
        *,
        rules: Rules,
        limits: Limits,
        ordered_lists: str,
        tolerances: tuple[float, float],
        custom_path: str | None,
        pool: Pool | None,
        has_judge: bool,
    ) -> None:
        self.math = Math(rules=rules, ordered_lists=ordered_lists)
        self._kind = kind
        self._column = kind_column
        self._rules, self._limits, self._tolerances = rules, limits, tolerances
        self._custom = None if custom_path is None else Custom(custom_path, rules, pool)
        self._has_judge = has_judge
        self._built: dict[str, Task] = {"math": self.math}
        self._task(kind)  # refuses it now, and not at the first answer

    def of(self, columns: Mapping[str, Any]) -> Task:
        """Returns the task of a problem.

        Raises:
            ValueError: If its column names a kind that does not exist or is not set up.
        """
        kind = columns.get(self._column) if self._column is not None else None
        return self._task(self._kind if kind is None else kind)

    def awaited(self) -> "Future[Result] | None":
        """Returns what must be known before an answer can be prepared; None if nothing."""
        return None if self._custom is None else self._custom.signature()

    def check_columns(self, columns: Collection[str]) -> None:
        """See ``Scorer.check_columns``."""
        if self._custom is not None:
            self._custom.check(columns)

    def _task(self, kind: object) -> Task:
        if not isinstance(kind, str) or kind not in KINDS:
            raise ValueError(f"The kind of task is {kind!r}; choose from {', '.join(KINDS)}.")
        if kind not in self._built:
            self._built[kind] = self._build(kind)
        return self._built[kind]

    def _build(self, kind: str) -> Task:
        rules = self._rules
        match kind:
            case "choice":
                return Choice(rules=rules)
            case "exact":
                return Exact(rules=rules)
            case "ordered_text":
                return OrderedText(rules=rules)
            case "numeric":
                return Numeric(rules=rules, relative=self._tolerances[0], absolute=self._tolerances[1])
            case "code":
                return Code(rules=rules, limits=self._limits)
            case "reasoning_gym":
                return ReasoningGym(rules=rules)
            case "judge" if self._has_judge:
                return Judged(rules=rules)
            case "custom" if self._custom is not None:
                return self._custom
        needed = "`custom_path`" if kind == "custom" else "a `judge`"
        raise ValueError(f"The kind {kind!r} needs {needed}, and the scorer has none.")
