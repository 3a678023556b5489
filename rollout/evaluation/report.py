"""The report of an evaluation: JSON for programs, Markdown for people."""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rollout.evaluation.alarms import alarms
from rollout.evaluation.findings import Finding, findings
from rollout.evaluation.markdown import markdown
from rollout.evaluation.matched_votes import TRACE, matches, vote_row
from rollout.evaluation.outcomes import Failure, Key, Outcome, accuracy_by_problem, by_operator, group_answers
from rollout.evaluation.report_rows import Difference, ReportRow, operator_rows, pairwise
from rollout.vote import Same


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Facts of the whole run. All operators share the endpoints, so speed is not split by operator."""

    rollouts: int
    failed: int
    completion_tokens: int
    wall_seconds: float
    """Time during which at least one finished rollout was running, over all starts of the command."""
    tokens_per_second: float | None
    """Completion tokens of finished rollouts per wall second; None if ``wall_seconds`` is 0."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Sums over finished rollouts of what the verdicts cost and measured: a judging model's requests, its
    tokens, and its agreement with the rules. Empty for other verifiers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The content of ``report.json`` and ``report.md``."""

    rows: Sequence[ReportRow]
    differences: Sequence[Difference]
    run: Run
    reasons: Mapping[str, int]
    """Number of failed rollouts by reason, for the ten most frequent reasons."""
    alarms: Sequence[str] = ()
    """Alarms of the training run that made the policies, one line each."""


async def compare(
    names: Sequence[str],
    problem_ids: Sequence[str],
    outcomes: Iterable[Outcome],
    failures: Collection[Failure],
    same: Same,
    *,
    num_traces: int,
) -> Report:
    """Returns the report on operators that were run side by side, with the votes that match their cost.

    It does not depend on the order in which rollouts ended.

    Args:
        names: Names of the operators, in the order of the rows.
        problem_ids: Ids of the problems, in their order.
        outcomes: Outcomes of all operators, and of the traces that were drawn for votes.
        failures: Rollouts without an outcome.
        same: Decides whether two answers are equivalent.
        num_traces: Traces per problem that the comparison makes whatever the operators cost.
    """
    place = {problem: i for i, problem in enumerate(problem_ids)}
    ordered = sorted(outcomes, key=lambda o: (place[o.problem_id], o.operator, o.sample))
    classes = await group_answers(ordered, same)
    found = matches(ordered, num_traces)
    # Traces beyond ``num_traces`` count in votes and strata, but not in the trace's own row.
    most = max([num_traces, *(match.votes for match in found)])
    grouped = by_operator(ordered)
    traces = [item for item in grouped.get(TRACE, []) if item.sample < most]
    if TRACE in grouped:
        grouped[TRACE] = [item for item in traces if item.sample < num_traces]
    failed = Counter(failure.operator for failure in failures)
    fresh = accuracy_by_problem(traces)
    rows = [
        row
        for name in names
        if grouped.get(name)
        for row in operator_rows(
            grouped[name], classes, failed=failed[name], trace=None if name == TRACE else fresh
        )
    ]
    votes = [vote_row(m, traces, classes, num_traces=num_traces, failed=failed[TRACE]) for m in found]
    rows += [row for row in votes if row is not None]
    return Report(
        rows=rows, differences=pairwise(rows), run=summary(ordered, failures), reasons=count_reasons(failures)
    )


def require_outcomes(outcomes: Collection[Outcome], failures: Mapping[Key, Failure]) -> None:
    """Refuses to report without outcomes.

    Raises:
        RuntimeError: If no rollout succeeded; the message names the most frequent reason.
    """
    if not outcomes:
        reasons = count_reasons(failures.values()) or {"there was nothing to do": 0}
        reason, count = next(iter(reasons.items()))
        raise RuntimeError(
            f"Not one of {len(failures)} rollouts got an answer. The most frequent reason ({count} times): "
            f"{reason}"
        )


def count_reasons(failures: Iterable[Failure]) -> dict[str, int]:
    """Returns the number of failed rollouts by reason: the ten most frequent, in order."""
    return dict(Counter(failure.reason for failure in failures).most_common(10))


def summary(outcomes: Sequence[Outcome], failures: Collection[Failure]) -> Run:
    """Returns the facts of the whole run."""
    tokens = sum(item.completion_tokens for item in outcomes)
    seconds = busy_seconds((item.started, item.started + item.seconds) for item in outcomes)
    measures: Counter[str] = Counter()
    for item in outcomes:
        measures.update(item.measures)
    return Run(
        rollouts=len(outcomes),
        failed=len(failures),
        completion_tokens=tokens,
        wall_seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else None,
        measures={name: measures[name] for name in sorted(measures)},
    )


def busy_seconds(intervals: Iterable[tuple[float, float]]) -> float:
    """Returns the length of the union of ``(start, end)`` intervals: pauses between starts do not count."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def report_text(report: Report) -> str:
    """Returns the report as Markdown, without the alarms of a training run."""
    run = report.run
    return markdown(
        report.rows, report.differences, failed=run.failed, reasons=report.reasons, measures=run.measures
    )


def write_report(output_dir: Path, report: Report) -> str:
    """Writes ``report.json`` and ``report.md``; returns the text of the latter."""
    output_dir.mkdir(parents=True, exist_ok=True)
    text = report_text(report)
    if report.alarms:
        text += "\n\nAlarms of the training (docs/metrics.md):\n\n"
        text += "\n".join(f"* {line}" for line in report.alarms)
    content = {
        "warnings": alarms(report.rows),
        "rows": [row_to_json(row) for row in report.rows],
        "differences": [asdict(item) for item in report.differences],
        "findings": [_finding_to_json(item) for item in findings(report.rows, report.differences)],
        "run": asdict(report.run),
        "failures": dict(report.reasons),
        "alarms": list(report.alarms),
    }
    for name, body in (("report.json", json.dumps(content, indent=1)), ("report.md", text)):
        # Renamed when complete: a reader never sees half a file.
        aside = output_dir / f"{name}.tmp"
        aside.write_text(body + "\n", encoding="utf-8")
        os.replace(aside, output_dir / name)
    return text


def _finding_to_json(found: Finding) -> dict[str, Any]:
    own = {f.name: getattr(found, f.name) for f in fields(found) if f.name not in ("difference", "is_main")}
    return {**own, "sentence": found.sentence}


def row_to_json(row: ReportRow) -> dict[str, Any]:
    """Returns a row as one flat object: its own fields and those of the parts that it has.

    Only a vote has its accuracy on each problem: that of an operator is in ``rollouts.jsonl``.
    """
    parts = ("transition", "whole", "vote")
    own = {f.name: getattr(row, f.name) for f in fields(row) if f.name not in ("by_problem", *parts)}
    for part in parts:
        value = getattr(row, part)
        own |= asdict(value) if value is not None else {}
    return own if row.vote is None else own | {"by_problem": dict(row.by_problem)}
