"""A rollout as it was recorded, by training or by an evaluation, and what the page shows of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.thinking import ThinkingMarks, divide
from rollout.page.flags import Facts, facts_of
from rollout.page.highlight import Draft, segments
from rollout.page.view import CallView, CreditView, PromptView, RolloutView, Segment
from rollout.records import ATTEMPTS, REFINE, VERIFY

TEXT_CHARACTERS = 6_000
"""Number of characters kept from the end of a solution, of a thinking and of a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCall:
    """One call, from either kind of record."""

    role: str
    round: int
    parents: tuple[int, ...]
    context: str
    """Equal for calls that read the same prompt."""
    text: str
    finish: str
    label: str
    verdict: str | None
    answer: str | None
    found_by: str
    reason: str
    prompt_tokens: int
    completion_tokens: int
    versions: tuple[int, ...] = ()
    credit: CreditView | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRollout:
    """One rollout, from either kind of record."""

    source: str
    """See ``RolloutView.source``."""
    operator: str
    problem: str
    question: str
    gold: str
    calls: tuple[RecordedCall, ...]
    prompts: Mapping[str, str]
    """Context -> text of the prompt; lacks those whose text is not known."""
    chosen: tuple[int, ...] | None = None
    """Positions of the answers; None if they were not recorded: then the attempts of the last round."""

    @property
    def facts(self) -> Facts:
        return facts_of(self.calls, self.chosen)


def view(rollout: RecordedRollout, marks: ThinkingMarks) -> RolloutView:
    """Returns what the page shows of a rollout, with long texts cut at their start.

    Args:
        rollout: The rollout.
        marks: Marks that separate thinking from solution.
    """
    facts = rollout.facts
    contexts = list(dict.fromkeys(call.context for call in rollout.calls))
    parts = [_split(call, rollout.prompts.get(call.context, ""), marks) for call in rollout.calls]
    plain = {call.context for call in rollout.calls if not call.parents}
    readers = {call.context: call for call in reversed(rollout.calls)}
    prompts = tuple(
        _prompt(rollout, readers[context], [solution for _, solution in parts]) for context in contexts
    )
    return RolloutView(
        source=rollout.source,
        operator=rollout.operator,
        problem=rollout.problem,
        question=_end(rollout.question)[0],
        gold=rollout.gold,
        flags=facts.flags,
        right=facts.right,
        answers=len(facts.chosen),
        drafts_right=facts.drafts_right,
        drafts=facts.drafts,
        tokens=facts.tokens,
        chosen=facts.chosen,
        prompts=prompts,
        calls=tuple(
            _call(call, contexts.index(call.context), part, call.context in plain)
            for call, part in zip(rollout.calls, parts, strict=True)
        ),
    )


def _split(call: RecordedCall, prompt: str, marks: ThinkingMarks) -> tuple[str, str]:
    """Returns thinking and solution of a completion, whose start may be missing."""
    opened = bool(marks.open) and prompt.rstrip().endswith(marks.open)
    known = ThinkingMarks(open=marks.open, close=marks.close, opened_by_prompt=opened)
    parts = divide(call.text, known)
    if parts.solution is None or call.label in ("unclosed", "malformed"):
        return call.text, ""
    return parts.thinking.replace(marks.open, "").strip(), parts.solution.strip()


def _prompt(rollout: RecordedRollout, reader: RecordedCall, solutions: Sequence[str]) -> PromptView:
    text = rollout.prompts.get(reader.context)
    if text is None:
        return PromptView(segments=())
    drafts = [
        Draft(call=place, text=solutions[place])
        for place in reader.parents
        if rollout.calls[place].role != VERIFY
    ]
    shown, left_out = _end(text)
    start = shown.find(rollout.question)
    after = start + len(rollout.question) if start >= 0 else 0
    rest = segments(shown[after:], drafts)
    head = (Segment(text=shown[:after]),) if after else ()
    return PromptView(segments=head + rest, left_out=left_out)


def _call(call: RecordedCall, prompt: int, parts: tuple[str, str], is_plain: bool) -> CallView:
    (thinking, thinking_left_out), (solution, solution_left_out) = map(_end, parts)
    has_parents = bool(call.parents)
    return CallView(
        role=call.role,
        round=call.round,
        parents=call.parents,
        prompt=prompt,
        reads_workspace=has_parents and call.role in ATTEMPTS and not is_plain,
        is_fallback=has_parents and call.role == REFINE and is_plain,
        thinking=thinking,
        thinking_left_out=thinking_left_out,
        solution=solution,
        solution_left_out=solution_left_out,
        finish=call.finish,
        label=call.label,
        verdict=call.verdict,
        answer=None if call.answer is None else call.answer[:TEXT_CHARACTERS],
        found_by=call.found_by,
        reason=call.reason[:TEXT_CHARACTERS],
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        versions=call.versions,
        credit=call.credit,
    )


def _end(text: str) -> tuple[str, int]:
    """Returns the end of a text, which holds the answer, and the number of characters left out before it."""
    return text[-TEXT_CHARACTERS:], max(0, len(text) - TEXT_CHARACTERS)
