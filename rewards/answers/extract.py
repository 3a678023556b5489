"""Extracts the answer of a completion, by one rule for boxes and optional forms without a box.

1. Thinking is removed by the rule of ``configs.thinking``: only the text after the last closing mark is the
   solution.
2. The last ``\\boxed{}`` of the solution counts. Boxes with only connecting words, labels or one other word
   between them (``\\boxed{2} and \\boxed{3}``) are one answer, a list. A box after prose, or after a word
   such as ``wait``, replaces the earlier ones; but if the gold has as many parts as the solution has boxes,
   they are its parts. Empty boxes before the last are ignored, and an answer that its sentence denies
   (``\\boxed{7} is wrong``) is none.
3. A solution without any box is searched for the enabled ``FORMS``.
"""

import re
from dataclasses import dataclass, field

from configs.thinking import MALFORMED, UNCLOSED, ThinkingMarks, divide
from rewards.answers.brackets import matching_braces
from rewards.answers.denial import is_denied
from rewards.answers.forms import READERS
from rewards.answers.joining import MAX_JOINED, Span, joined, parts
from rewards.answers.latex import normalise

FORMS = tuple(READERS)
"""Forms of an answer outside a box, in the order in which they are tried: ``<answer>7</answer>``; a choice
letter (if the gold is one); ``the answer is 7``, ``Answer: 7``, ``#### 7``; a completion that is only the
answer; the last ``$7$``; the last number of the last line that has one."""

_NO_SOLUTION = {
    UNCLOSED: "The thinking was never closed.",
    MALFORMED: "A thinking mark stands in another case, so the solution cannot be told from the thinking.",
}

MAX_COMPLETION_CHARS = 2_000_000
"""Limit of a completion that is scored, about 500,000 tokens; the slowest such text takes two seconds."""

TAIL_CHARS = 4000
"""Number of characters at the solution's end that the forms search."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """An answer and how it was found, or the reason why there is none."""

    answer: str | None
    found_by: str = "nothing"
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """Rules for the extraction of answers; the same for a whole run."""

    forms: tuple[str, ...] = FORMS
    """Forms that are tried on a solution without a box; empty: only boxes count."""
    marks: ThinkingMarks = field(default_factory=ThinkingMarks)
    """Marks that separate the thinking from the solution."""

    def __post_init__(self) -> None:
        unknown = [form for form in self.forms if form not in FORMS]
        if unknown:
            raise ValueError(f"`forms` has {', '.join(map(repr, unknown))}; choose from {', '.join(FORMS)}.")


MAX_BOXES = 2 * MAX_JOINED
"""Number of boxes at a solution's end that are looked at."""


def extract(
    completion: str, rules: Rules, *, gold_is_choice: bool = False, gold_parts: int = 1
) -> Extraction:
    """Extracts the answer of a completion.

    Args:
        completion: The whole text, thinking included.
        rules: Rules for thinking and forms.
        gold_is_choice: True if the gold answer is a letter A to J; only then the form ``choice`` applies.
        gold_parts: Number of elements of a gold list, set or tuple; 1 for any other gold.
    """
    if len(completion) > MAX_COMPLETION_CHARS:
        return Extraction(
            answer=None,
            reason=f"The completion has {len(completion)} characters; {MAX_COMPLETION_CHARS} is the limit.",
        )
    parts = divide(completion, rules.marks)
    solution = parts.solution
    if solution is None:
        return Extraction(answer=None, reason=_NO_SOLUTION[parts.problem])
    if re.search(r"\\(?:boxed|fbox)(?![a-zA-Z])", solution):
        return boxed_answer(solution, num_parts=gold_parts, may_be_denied=True)
    tail = solution[-TAIL_CHARS:].strip()
    # End-of-text tokens and a stock phrase of some models would hide a bare answer.
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

_NOTHING = "{} ~$\n\t"
"""Characters of a box without content."""
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")


def _from_boxes(text: str) -> str:
    """Returns the part of a text that has its boxes, the last ``MAX_BOXES`` if it has more, and some words
    before them: a completion may have a million characters, or ten thousand boxes."""
    starts = [match.start() for match in _BOX.finditer(text)][-MAX_BOXES:]
    return text[max(0, starts[0] - MAX_BOXES) :] if starts else text


def boxed_answer(text: str, *, num_parts: int = 1, may_be_denied: bool = False) -> Extraction:
    """Extracts the last box, or a list of the last connected boxes.

    Args:
        text: A solution.
        num_parts: If the text has this many boxes, and more than one, they are the parts of one answer.
        may_be_denied: True if a box whose sentence denies it is no answer.
    """
    text = _from_boxes(text)
    partners = matching_braces(text)
    if matches := list(_BOX.finditer(text)):
        last = matches[-1].end()
        if last not in partners:
            if last < len(text) and text[last] == "{":
                return Extraction(answer=None, reason="The last box is not closed.")
            # As in TeX, a box without braces holds one character.
            character = text[last : last + 1]
            if not character.isalnum():
                return Extraction(answer=None, reason="The last box has no content.")
            return Extraction(answer=character, found_by="box")
    spans: list[Span] = []
    for match in matches:
        opening = match.end()
        # Nested boxes belong to the outer one.
        if opening in partners and (not spans or match.start() >= spans[-1][1]):
            end = partners[opening]
            spans.append((match.start(), end + 1, text[opening + 1 : end]))
    last_text = spans[-1][2]
    if not last_text.strip(_NOTHING) or (len(last_text) < 200 and not normalise(last_text)):
        return Extraction(answer=None, reason="The last box is empty.")
    if may_be_denied and is_denied(text, spans[-1][0], spans[-1][1]):
        return Extraction(answer=None, reason="The sentence of the last box denies it or leaves it open.")
    # A prompt's own ``\\boxed{}`` may be repeated.
    spans = [span for span in spans if span[2].strip(_NOTHING)]
    answers = [
        answer.strip() for answer in parts(spans, text, num_parts) or joined(spans, text, are_boxes=True)
    ]
    if len(answers) == 1:
        return Extraction(answer=answers[0], found_by="box")
    return Extraction(answer=" , ".join(answers), found_by="boxes")
