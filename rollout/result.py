"""Results of ``rollout.api``: an answered question with its graph of calls, and an evaluation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rollout.budget import budget
from rollout.evaluation.report import Report, report_text
from rollout.evaluation.report_rows import ReportRow
from rollout.policy import Policy
from rollout.records import Rollout

REPR_CHARACTERS = 60
"""Longest text in the ``repr`` of an object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadableCall:
    """One model call as text. ``Result.rollout.calls`` holds its token ids and log-probs."""

    role: str
    """``trace``, ``draft``, ``distil``, ``verify``, ``analyse`` or ``refine``."""
    round: int
    """Round of the operator, from 0."""
    parents: tuple[int, ...]
    """Positions in the graph of the calls whose text the prompt was built from."""
    workspace: str
    """The workspace in the prompt of an attempt; empty if the prompt was the problem alone."""
    text: str
    """The completion, thinking included."""
    label: str
    """``ok``, or the defect of the completion (``rollout.thinking.LABELS``)."""
    answer: str | None
    """The final answer of an attempt; None if it has none, or if the call is no attempt."""
    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens in plus tokens out."""
        return self.prompt_tokens + self.completion_tokens

    def __str__(self) -> str:
        read = f" reads {' '.join(map(str, self.parents))};" if self.parents else ""
        found = "" if self.answer is None else f", answer {self.answer}"
        tokens = f"{self.prompt_tokens} + {self.completion_tokens} tokens"
        return f"{self.role}, round {self.round};{read} {tokens}, {self.label}{found}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Result:
    """An operator's answer to a question. ``print`` shows it with its workspaces."""

    question: str
    operator: str
    answer: str | None
    """The final answer as the policy wrote it; None if there is none."""
    text: str
    """The final solution, without thinking; empty if the thinking was never closed."""
    b_seq: int
    """Tokens in + out on the longest chain of calls (latency); ``rollout.budget`` defines it."""
    b_total: int
    """Tokens in + out of all calls (cost)."""
    graph: tuple[ReadableCall, ...]
    """The calls in the order in which they were requested."""
    rollout: Rollout
    """The same calls with token ids, log-probs and policy versions."""

    def __repr__(self) -> str:
        return (
            f"Result(question={_short(self.question)!r}, operator={self.operator!r}, answer={self.answer!r}, "
            f"b_seq={self.b_seq}, b_total={self.b_total}, calls={len(self.graph)})"
        )

    def __str__(self) -> str:
        head = [
            self.question,
            "",
            f"answer: {self.answer}",
            f"{self.operator}: {len(self.graph)} calls, B_seq {self.b_seq}, B_total {self.b_total} tokens",
        ]
        return "\n".join([*head, "", *_graph_lines(self.graph), "", "solution:", *_indented(self.text)])


def _graph_lines(graph: Iterable[ReadableCall]) -> Iterable[str]:
    """Yields one line per call; a workspace is shown in full below the first call that read it."""
    first_reader: dict[str, int] = {}
    for place, call in enumerate(graph):
        yield f"[{place}] {call}"
        if not call.workspace:
            continue
        first = first_reader.setdefault(call.workspace, place)
        if first == place:
            yield "    workspace:"
            yield from _indented(call.workspace)
        else:
            yield f"    workspace: that of [{first}]"


def _indented(text: str) -> list[str]:
    return [f"    | {line}".rstrip() for line in text.splitlines()]


def _short(text: str) -> str:
    return text if len(text) <= REPR_CHARACTERS else f"{text[: REPR_CHARACTERS - 3]}..."


def readable(policy: Policy, rollout: Rollout) -> Result:
    """Returns the result of a rollout with one answer; of a population whose mean counts, its first answer.

    Args:
        policy: The policy that made the calls.
        rollout: The rollout that ``run_on`` returned for ``policy``.
    """
    answer = rollout.answers[0]
    answers = {place: verdict.answer for place, verdict in rollout.verdicts.items()}
    spent = budget(rollout, answer)
    return Result(
        question=rollout.problem.question,
        operator=rollout.operator,
        answer=answers.get(answer),
        text=policy.solution(answer).text,
        b_seq=spent.b_seq,
        b_total=spent.b_total,
        graph=tuple(
            ReadableCall(
                role=call.role,
                round=call.round,
                parents=call.parents,
                workspace=policy.workspaces.get(place, ""),
                text=call.text,
                label=call.label,
                answer=answers.get(place),
                prompt_tokens=call.usage.prompt_tokens,
                completion_tokens=call.usage.completion_tokens,
            )
            for place, call in enumerate(rollout.calls)
        ),
        rollout=rollout,
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Evaluation:
    """Accuracy of operators on problems. ``print`` shows the report that ``python -m rollout`` writes."""

    report: Report

    @property
    def rows(self) -> Mapping[str, ReportRow]:
        """Accuracy, interval and budgets of each operator and of the votes of equal cost, by name."""
        return {row.operator: row for row in self.report.rows if row.final}

    def __repr__(self) -> str:
        rows = [
            f"{name} {row.accuracy:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}]"
            for name, row in self.rows.items()
        ]
        return f"Evaluation({', '.join(rows)})"

    def __str__(self) -> str:
        return report_text(self.report)

    def _repr_markdown_(self) -> str:
        """Returns the representation that Jupyter shows."""
        return str(self)
