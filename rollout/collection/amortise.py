"""Amortises the operator: its right answers become samples of the plain problem.

An operator spends several calls on an answer. Training the plain prompt on that answer (rejection-sampling
distillation) moves what the operator gains back into a single call. The current policy wrote the answer, but
with a workspace in its prompt: its sampling log-probs belong to another context, so that there is no ratio,
and the loss is the plain negative log-likelihood (``train.loss.credit.weigh``).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rollout.groups import Group, GroupKey, Sample, call_id
from rollout.policy_settings import PolicySettings
from rollout.prompts import PromptTexts
from rollout.records import AMORTISE, Problem, Rollout, context_key

_NUMBERED = r"(?:attempt|candidate|draft|proposal|reference|response|solution)s?"
"""Nouns that a number of a draft follows. "Answer 12" is an answer more often than a draft's number."""
_KINDS = r"(?:answers?|" + _NUMBERED + ")"
_MENTIONS = (
    r"\bworkspaces?\b",
    rf"\b{_NUMBERED}\s*(?:#|no\.?|number)?\s*\d{{1,2}}\b",
    rf"\b(?:above|candidate|earlier|first|second|third|given|other|previous|prior|proposed|provided|reference)"
    rf"\s+{_KINDS}\b",
    r"\bmajority\b",
    r"\b(?:all|both|most|none)\s+(?:agree|of\s+them|of\s+these|say)\b",
)
"""Ways to speak of a workspace, whatever the prompts: "solution 2", "the earlier attempts"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Amortised:
    """Result for one rollout."""

    group: Group | None
    """The answers as samples of the plain problem; None if no answer can be one."""
    mentions: int
    """Right answers that were left out because they speak of their workspace."""


class Amortiser:
    """Turns the right answers of a rollout into samples of the plain problem."""

    def __init__(self, settings: PolicySettings, most: int = 0) -> None:
        """``most`` limits the samples of one problem, of which the first are taken; 0: no limit."""
        self._codec = settings.codec
        self._prompts = settings.prompts
        self._most = most
        self._mention = mention_pattern(settings.prompts)

    def __call__(self, rollout: Rollout, number: int) -> Amortised:
        """Returns the samples of rollout ``number`` of a step.

        Right answers are left out if they were cut off, if they speak of a workspace that a reader of the
        plain problem does not have, or if they read the plain problem themselves.
        """
        question = self._prompts.solve_text(rollout.problem.question)
        prompt_ids = self._codec.encode_prompt(question, self._prompts.shots)
        usable = [
            place
            for place in rollout.answers
            if rollout.verdicts[place].is_correct
            and rollout.calls[place].finish == "stop"
            and rollout.calls[place].prompt_ids != prompt_ids
        ]
        kept = [place for place in usable if not self._mentions(rollout.calls[place].text, rollout.problem)]
        taken = kept[: self._most] if self._most else kept
        samples = tuple(_samples(rollout, taken, prompt_ids, number))
        key = GroupKey(problem_id=rollout.problem.id, role=AMORTISE, round=0, context=context_key(prompt_ids))
        group = Group(key=key, prompt_ids=prompt_ids, samples=samples) if samples else None
        return Amortised(group=group, mentions=len(usable) - len(kept))

    def _mentions(self, text: str, problem: Problem) -> bool:
        """Returns True if ``text`` speaks of a workspace in words that the question does not use."""
        said = {match.group().casefold() for match in self._mention.finditer(text)}
        return any(words not in problem.question.casefold() for words in said)


def mention_pattern(prompts: PromptTexts) -> re.Pattern[str]:
    """Returns what matches a mention of a workspace: fixed phrases, and the word before a draft's number."""
    word = prompts.before_number
    own = [rf"\b{re.escape(word)}s?\b"] if word.isalpha() else []
    return re.compile("|".join([*own, *_MENTIONS]), re.IGNORECASE)


def _samples(
    rollout: Rollout, places: list[int], prompt_ids: tuple[int, ...], number: int
) -> Iterator[Sample]:
    for place in places:
        verdict = rollout.verdicts[place]
        yield Sample(
            call_id=amortised_id(call_id(number, place)),
            call=replace(rollout.calls[place], role=AMORTISE, round=0, prompt_ids=prompt_ids),
            reward=1.0,
            is_correct=True,
            status=verdict.status,
        )


def amortised_id(answer: str) -> str:
    """Returns the name of an answer as a sample of the plain problem: ``"17.4"`` becomes ``"17.4a"``."""
    return f"{answer}a"


def answer_id(amortised: str) -> str:
    """Returns the call id of the answer behind an ``amortised_id``."""
    return amortised.removesuffix("a")
