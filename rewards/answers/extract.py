"""Which part of a completion is its answer: one explicit rule, and forms that can be switched off.

1. Thinking is cut off, by the rule of ``configs.thinking``: only what follows the last closing mark is the
   solution.
2. The last ``\\boxed{}`` of the solution counts. Boxes with nothing but connecting words, labels or one
   other word between them (``\\boxed{2} and \\boxed{3}``) are one answer, a list; a box after prose, or
   after a word such as ``wait``, revises the earlier.
3. Only a solution without any box is searched for ``FORMS``, those of them that are switched on.
"""

import re
from dataclasses import dataclass, field

from configs.thinking import MALFORMED, UNCLOSED, ThinkingMarks, divide
from rewards.answers.forms import READERS
from rewards.answers.joining import Span, joined
from rewards.answers.latex import matching_braces, normalise

FORMS = tuple(READERS)
"""Ways to find an answer outside a box, in the order in which they are tried: ``<answer>7</answer>``;
a choice letter (if the gold is one); ``the answer is 7``, ``Answer: 7``, ``#### 7``; the completion is
nothing but the answer; the last ``$7$``; the last number of the last line with one."""

_NO_SOLUTION = {
    UNCLOSED: "The thinking was never closed.",
    MALFORMED: "A thinking mark stands in another case, so the solution cannot be told from the thinking.",
}

TAIL_CHARS = 4000
"""The forms look at so much of the solution's end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """An answer, how it was found, and if there is none, why."""

    answer: str | None
    found_by: str = "nothing"
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What counts as an answer; the same for a whole run."""

    forms: tuple[str, ...] = FORMS
    """Forms that are tried on a solution without a box; empty: only a box counts."""
    marks: ThinkingMarks = field(default_factory=ThinkingMarks)
    """Tell the solution from the thinking."""

    def __post_init__(self) -> None:
        unknown = [form for form in self.forms if form not in FORMS]
        if unknown:
            raise ValueError(f"`forms` has {', '.join(map(repr, unknown))}; choose from {', '.join(FORMS)}.")


def extract(completion: str, rules: Rules, *, gold_is_choice: bool = False) -> Extraction:
    """The answer of a completion.

    Args:
        completion: The whole text, thinking included.
        rules: What counts.
        gold_is_choice: The gold answer is a letter A to J; only then the form ``choice`` applies.
    """
    parts = divide(completion, rules.marks)
    solution = parts.solution
    if solution is None:
        return Extraction(answer=None, reason=_NO_SOLUTION[parts.problem])
    if re.search(r"\\(?:boxed|fbox)(?![a-zA-Z])", solution):
        return boxed_answer(solution)
    tail = solution[-TAIL_CHARS:].strip()
    tail = re.sub(r"<\|?/?(?:im_start|im_end|eot_id|endoftext|end_of_text)\|?>(?:\w+\s*)?$", "", tail)
    tail = re.sub(r"\s*I hope it is correct\.?\s*$", "", tail.strip())
    for form in FORMS:
        if form not in rules.forms:
            continue
        if form == "choice" and not gold_is_choice:
            continue
        answer = READERS[form](tail)
        if answer is not None:
            return Extraction(answer=answer, found_by=form)
    return Extraction(answer=None, reason="The solution has no answer in a box or an accepted form.")


# --- boxes -------------------------------------------------------------------------------------

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")


def boxed_answer(text: str) -> Extraction:
    """The last box, or the list that the last connected boxes are."""
    partners = matching_braces(text)
    if matches := list(_BOX.finditer(text)):
        last = matches[-1].end()
        if last not in partners:
            if last < len(text) and text[last] == "{":
                return Extraction(answer=None, reason="The last box is not closed.")
            # TeX: without braces the box holds one character.
            character = text[last : last + 1]
            if not character.isalnum():
                return Extraction(answer=None, reason="The last box has no content.")
            return Extraction(answer=character, found_by="box")
    spans: list[Span] = []
    for match in matches:
        opening = match.end()
        if opening in partners and (not spans or match.start() >= spans[-1][1]):
            end = partners[opening]
            spans.append((match.start(), end + 1, text[opening + 1 : end]))
    answers = [answer.strip() for answer in joined(spans, text, are_boxes=True)]
    if not answers[-1] or not normalise(answers[-1]):
        return Extraction(answer=None, reason="The last box is empty.")
    if len(answers) == 1:
        return Extraction(answer=answers[0], found_by="box")
    return Extraction(answer=" , ".join(answers), found_by="boxes")
