"""An open policy: workers and verifier run and wait for questions. ``rollout.api`` creates it."""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias, TypeVar

from configs.compose import load_operator, with_options
from configs.schema import EvaluationConfig, OperatorConfig
from rollout.build import build_operator, operator_options
from rollout.engine import RolloutEngine
from rollout.evaluation.evaluate import Comparison, InMemory, make_missing
from rollout.evaluation.report import compare, require_outcomes
from rollout.grading import Attempt, Grader
from rollout.operators import Operator, run_on
from rollout.policy import Policy
from rollout.policy_settings import PolicySettings
from rollout.records import Problem
from rollout.result import Evaluation, Result, readable

OperatorSpec: TypeAlias = str | type[Operator] | Mapping[str, Any]
"""Name of a file in configs/operator, a subclass of ``Operator``, or keyword arguments of ``run``."""

COMPOSING = threading.Lock()
"""Held while configs are composed: Hydra's state is global."""
SHARED = ("thinking", "prompts")
"""Options that all operators of a policy share."""
CLOSED_MEANWHILE = "The policy was closed before it had answered; calls in progress are lost."
NO_GOLD = "A question has no gold answer to judge calls by: use evaluate, whose problems have one."

T = TypeVar("T")


class OpenPolicy:
    """A policy that answers questions, from several threads and tasks at once. Created by ``open_policy``.

    Use as a context manager, or call ``close``: a local worker runs and holds its memory until then.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        engine: RolloutEngine,
        settings: PolicySettings,
        grader: Grader,
        resources: contextlib.ExitStack,
    ) -> None:
        """``engine`` is entered; closing the policy closes ``resources``, which include the engine."""
        self._config = config
        self._engine = engine
        self._settings = settings
        self._grader = grader
        self._resources = resources
        self._operators: dict[str, OperatorConfig] = {}
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends local workers and cancels work in progress; no-op if closed already."""
        if self._is_closed:
            return
        self._is_closed = True
        self._resources.close()

    def asked(
        self, question: str, operator: str | type[Operator], seed: int, options: Mapping[str, Any]
    ) -> Coroutine[Any, Any, Result]:
        """Checks a question and its options; returns the coroutine that answers it.

        Raises:
            ValueError: If the question is empty, an option is invalid, or the operator needs a gold answer.
            TypeError: If ``operator`` is neither a name nor an operator class.
            RuntimeError: If the policy is closed.
        """
        self._require_open()
        if not question.strip():
            raise ValueError("The question is empty: pass the text of a problem.")
        config, made = self._operator(operator, options)
        if config.distiller == "oracle":
            raise ValueError(f"operator.distiller is oracle. {NO_GOLD}")
        # The id is the question: calls derive their seeds from it, so an equal question and seed repeat.
        return self._answer(Problem(id=question, question=question, answer=""), made, seed)

    async def _answer(self, problem: Problem, operator: Operator, seed: int) -> Result:
        policy = Policy(problem, self._settings, _WithoutGold(self._grader), seed)
        return readable(policy, await run_on(policy, operator, seed))

    def compared(
        self,
        problems: Sequence[Problem],
        specs: Sequence[OperatorSpec],
        samples: int,
        seed: int,
    ) -> Coroutine[Any, Any, Evaluation]:
        """Checks the operators of an evaluation; returns the coroutine that runs it.

        Raises:
            ValueError: If there is no operator, or a check of an operator or of ``samples`` fails.
            TypeError: If an operator is neither a name, an operator class nor a mapping.
            RuntimeError: If the policy is closed.
        """
        self._require_open()
        if not specs:
            raise ValueError("operators is empty: name at least one, e.g. operators=['trace', 'pdr'].")
        operators = [self._specified(spec) for spec in specs]
        # Runs the config's own checks: unique names, at least one sample.
        replace(self._config, operators=[operator.name for operator in operators], samples=samples)
        _, trace = self._operator("trace", {})
        comparison = Comparison(problems=problems, operators=operators, trace=trace, samples=samples)
        return self._evaluated(comparison, seed)

    async def _evaluated(self, comparison: Comparison, seed: int) -> Evaluation:
        record = InMemory()
        limit = 2 * self._config.rollout.max_concurrency
        await make_missing(comparison, self._settings, self._grader, record, seed=seed, max_in_flight=limit)
        require_outcomes(record.outcomes, record.failures)
        report = await compare(
            [operator.name for operator in comparison.operators],
            [problem.id for problem in comparison.problems],
            record.outcomes,
            list(record.failures.values()),
            self._grader.same,
            num_traces=comparison.num_traces,
        )
        return Evaluation(report=report)

    def _specified(self, spec: OperatorSpec) -> Operator:
        if not isinstance(spec, Mapping):
            return self._operator(spec, {})[1]
        options = dict(spec)
        return self._operator(options.pop("operator", "pdr"), options)[1]

    def _operator(
        self, operator: str | type[Operator], options: Mapping[str, Any]
    ) -> tuple[OperatorConfig, Operator]:
        for name in options.keys() & set(SHARED):
            raise ValueError(
                f"operator.{name} is the same for all operators of a policy, so it cannot be set for one. "
                "open_policy takes thinking and system; the other prompts are those of "
                "configs/operator/prompts/default.yaml."
            )
        if isinstance(operator, str):
            config = with_options(self._named(operator), options, "operator")
            made = build_operator(config)
        elif isinstance(operator, type) and issubclass(operator, Operator):
            kind = f"{operator.__module__}:{operator.__qualname__}"
            own = replace(self._config.operator, name=operator.__name__, kind=kind)
            config = with_options(own, options, "operator")
            made = operator(operator_options(config))
        else:
            raise TypeError(
                f"operator is {operator!r}; pass the name of an operator (trace, sr, pdr, ...) or a subclass "
                "of rollout.operators.Operator."
            )
        replace(self._config, operator=config)  # runs the config's checks, e.g. what an endpoint cannot do
        return config, made

    def _named(self, name: str) -> OperatorConfig:
        with COMPOSING:
            if name not in self._operators:
                self._operators[name] = load_operator(name, self._config.operator)
            return self._operators[name]

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return self._engine.run(
                work, None, what="a call from Python"
            )  # no timeout: each wait inside has its own limit
        except concurrent.futures.CancelledError:
            raise RuntimeError(CLOSED_MEANWHILE) from None

    async def wait_async(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return await asyncio.wrap_future(self._engine.submit(work))
        except asyncio.CancelledError:
            # Cancelled by ``close``, or by the caller, whose cancellation is passed on.
            if self._is_closed:
                raise RuntimeError(CLOSED_MEANWHILE) from None
            raise

    def _require_open(self) -> None:
        if self._is_closed:
            raise RuntimeError(
                "This policy is closed: use it inside its with block, or open it again with open_policy."
            )


@dataclass(frozen=True, slots=True)
class _Unjudged:
    """Verdict on a call whose problem has no gold answer."""

    answer: str | None
    status: str = "unjudged"

    @property
    def is_correct(self) -> bool:
        raise ValueError(NO_GOLD)


@dataclass(frozen=True, slots=True)
class _WithoutGold:
    """Grader for a question without a gold answer: extracts and compares answers, without judging them."""

    grader: Grader

    async def score(self, problem: Problem, completion: str, attempt: Attempt) -> _Unjudged:
        return _Unjudged(self.grader.answer(completion))

    def answer(self, completion: str) -> str | None:
        return self.grader.answer(completion)

    async def same(self, first: str, second: str) -> bool:
        return await self.grader.same(first, second)
