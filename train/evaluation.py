"""Evaluation on held-out problems during training, and the run's report."""

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from configs.schema import TrainingConfig
from rewards.build import build_scorer
from rewards.grader import Grader
from rollout.engine import RolloutEngine
from rollout.evaluation.evaluate import PlannedRollout, evaluate, missing
from rollout.evaluation.identity import Identity
from rollout.evaluation.journal import Journal, read_journal
from rollout.evaluation.outcomes import Failure, Key, Outcome, accuracy_by_problem, by_operator, group_answers
from rollout.evaluation.progress import Progress
from rollout.evaluation.report import Report, count_reasons, require_outcomes, summary, write_report
from rollout.evaluation.report_rows import Difference, ReportRow, difference, operator_rows, pairwise
from rollout.operators import Operator
from rollout.policy_settings import PolicySettings
from rollout.records import Problem
from train.health.summary import alarm_summary
from train.phases import AFTER, BEFORE, journals_until, mark_complete, phase_of, phase_path


class HeldOutEvaluator:
    """Runs operators on held-out problems with the policy that the workers currently serve.

    Each phase stores its rollouts in ``evaluation/<phase>/rollouts.jsonl``. A complete phase is not run
    again; an interrupted phase resumes.
    """

    def __init__(
        self,
        config: TrainingConfig,
        problems: Sequence[Problem],
        operators: Sequence[Operator],
        engine: RolloutEngine,
        settings: PolicySettings,
        grader: Grader,
        identity: Callable[[str], Identity],
    ) -> None:
        """``identity`` returns the identity of a phase's rollouts."""
        self._config = config
        self._identity = identity
        self._problems = problems
        self._operators = operators
        self._engine = engine
        self._settings = settings
        self._grader = grader

    def start(self, after_step: int) -> None:
        """Removes the phases of policies later than ``after_step``, which the run makes again.

        Their rollouts would otherwise count for the new policy, and ``train.keep_best`` would choose by them.
        """
        kept = set(journals_until(self._config, after_step))
        folder = Path(self._config.output_dir) / "evaluation"
        for path in (*folder.glob("step_*"), folder / AFTER):
            if path.exists() and path.name not in kept:
                shutil.rmtree(path)

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Returns the accuracy of each operator as ``eval/<operator>`` and rewrites the report.

        Raises:
            RuntimeError: If no rollout of the phase succeeded.
        """
        phase = phase_of(step, self._config)
        path = phase_path(self._config, phase)
        with Journal(path, self._identity(phase), self._problems) as journal:
            if not self._run_missing(phase, journal):
                mark_complete(self._config, phase)
            require_outcomes(journal.outcomes, journal.failures)
            outcomes = by_operator(journal.outcomes)
        write_run_report(self._config)
        return {
            f"eval/{operator.name}": fmean(accuracy_by_problem(outcomes[operator.name]).values())
            for operator in self._operators
            if operator.name in outcomes
        }

    def _run_missing(self, phase: str, journal: Journal) -> int:
        """Makes the rollouts that the journal lacks; returns how many it still lacks, because they failed."""
        train = self._config.train
        planned = [
            PlannedRollout(problem=problem, operator=operator, sample=sample)
            for problem in self._problems
            for sample in range(train.eval_samples)
            for operator in self._operators
        ]
        left = list(missing(planned, journal.done))
        title = f"evaluate {phase}"
        with Progress(journal, title=title, total=len(planned), done=len(planned) - len(left)) as sink:
            work = evaluate(
                left,
                sink.counting(self._settings),
                self._grader,
                sink,
                seed=self._config.seed,
                max_in_flight=2 * self._config.rollout.max_concurrency,
            )
            self._engine.run(work, train.collective_timeout_seconds, what=f"the evaluation '{phase}'")
        return sum(1 for _ in missing(planned, journal.done))


def write_run_report(config: TrainingConfig) -> str:
    """Writes ``report.json`` and ``report.md`` from the phases on disk; returns the text of ``report.md``."""
    return write_report(Path(config.output_dir), run_report(config))


def run_report(config: TrainingConfig) -> Report:
    """Returns the report on the phases on disk.

    The report has one row per operator and phase. It covers the final answers only; earlier rounds are in
    the rollouts.
    """
    folder = Path(config.output_dir) / "evaluation"
    names = [path.parent.name for path in sorted(folder.glob("*/rollouts.jsonl"))]
    phases = [BEFORE, *(n for n in names if n.startswith("step_")), AFTER]
    outcomes: list[Outcome] = []
    failures: list[Failure] = []
    rows: dict[str, list[ReportRow]] = {}
    with build_scorer(config.rewards, config.operator.thinking) as scorer:
        for phase in phases:
            if phase in names:
                made, failed = read_journal(phase_path(config, phase))
                rows[phase] = _phase_rows(config, phase, made, failed, Grader(scorer))
                outcomes += made
                failures += failed.values()
    return Report(
        rows=[row for items in rows.values() for row in items],
        differences=_differences(rows),
        run=summary(outcomes, failures),
        reasons=count_reasons(failures),
        alarms=alarm_summary(Path(config.output_dir), config.train.ignored_alarms),
    )


def _phase_rows(
    config: TrainingConfig,
    phase: str,
    outcomes: Sequence[Outcome],
    failures: Mapping[Key, Failure],
    grader: Grader,
) -> list[ReportRow]:
    """Returns the final answers' rows of one phase, with operators in the order of the config."""
    # Journals are in order of completion; the sorted order makes the report reproducible.
    ordered = sorted(outcomes, key=lambda o: (o.problem_id, o.sample))
    classes = asyncio.run(group_answers(ordered, grader.same))
    grouped = by_operator(ordered)
    failed = Counter(failure.operator for failure in failures.values())
    fresh = accuracy_by_problem(grouped.get("trace", []))
    return [
        operator_rows(grouped[name], classes, phase=phase, failed=failed[name], trace=fresh)[-1]
        for name in config.train.eval_operators
        if name in grouped
    ]


def _differences(rows: Mapping[str, Sequence[ReportRow]]) -> list[Difference]:
    """Returns each operator's gain from training, then pairwise differences of operators in each phase."""
    before = {row.operator: row for row in rows.get(BEFORE, [])}
    gained = [
        difference(f"{row.operator} after", row.by_problem, f"{row.operator} before", was.by_problem)
        for row in rows.get(AFTER, [])
        if (was := before.get(row.operator)) is not None
    ]
    return gained + [item for items in rows.values() for item in pairwise(items)]
