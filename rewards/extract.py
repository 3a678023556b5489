"""Which part of a completion is its answer: one explicit rule, and forms that can be switched off.

1. Thinking is cut off: only what follows the last closing tag is the solution.
2. The last `\\boxed{}` of the solution counts. Boxes with nothing but connecting words between them
   (`\\boxed{2} and \\boxed{3}`) are one answer, a list; a box after other prose revises the earlier.
3. Only a solution without any box is searched for `FORMS`, those of them that are switched on.
"""

import re
from dataclasses import dataclass

from rewards.latex import matching_braces, normalise

FORMS = ("tag", "choice", "marker", "bare", "math", "number")
"""Ways to find an answer outside a box, in the order in which they are tried: `<answer>7</answer>`;
a choice letter (if the gold is one); `the answer is 7`, `Answer: 7`, `#### 7`; the completion is
nothing but the answer; the last `$7$`; the last number of the last line with one."""

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
    think_open: str = "<think>"
    think_close: str = "</think>"
    prompt_opens_thinking: bool = False
    """The chat template's prompt ends inside the thinking, so that a completion without the closing
    tag is all thinking and has no answer."""

    def __post_init__(self) -> None:
        unknown = [form for form in self.forms if form not in FORMS]
        if unknown:
            raise ValueError(f"`forms` has {', '.join(map(repr, unknown))}; choose from {', '.join(FORMS)}.")


def solution_part(completion: str, rules: Rules) -> str | None:
    """What follows the thinking; None if the thinking was never closed. Tags match in any case."""
    lowered = completion.lower()
    opening = lowered.rfind(rules.think_open.lower())
    closing = lowered.rfind(rules.think_close.lower())
    if closing >= 0:
        return None if opening > closing else completion[closing + len(rules.think_close) :]
    return None if opening >= 0 or rules.prompt_opens_thinking else completion


def extract(completion: str, rules: Rules, *, gold_is_choice: bool = False) -> Extraction:
    """The answer of a completion.

    Args:
        completion: The whole text, thinking included.
        rules: What counts.
        gold_is_choice: The gold answer is a letter A to J; only then the form `choice` applies.
    """
    solution = solution_part(completion, rules)
    if solution is None:
        return Extraction(answer=None, reason="The thinking was never closed.")
    if re.search(r"\\(?:boxed|fbox)(?![a-zA-Z])", solution):
        return boxed_answer(solution)
    readers = {
        "tag": _tagged,
        "choice": _choice,
        "marker": _marked,
        "bare": _bare,
        "math": _last_math,
        "number": _last_number,
    }
    tail = solution[-TAIL_CHARS:].strip()
    tail = re.sub(r"<\|?/?(?:im_start|im_end|eot_id|endoftext|end_of_text)\|?>(?:\w+\s*)?$", "", tail)
    tail = re.sub(r"\s*I hope it is correct\.?\s*$", "", tail.strip())
    for form in FORMS:
        if form not in rules.forms:
            continue
        if form == "choice" and not gold_is_choice:
            continue
        answer = readers[form](tail)
        if answer is not None:
            return Extraction(answer=answer, found_by=form)
    return Extraction(answer=None, reason="The solution has no answer in a box or an accepted form.")


# --- boxes -------------------------------------------------------------------------------------

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_CONNECTIVE = re.compile(
    r"(?i)\\q?quad|\\[,;:! ()\[\]]|\\\\|\\(?:text|mbox|mathrm)\s*\{([^{}]*)\}|[\s$,;.:&*|\-]"
    r"|\b(?:and|or|also|maybe|perhaps|possibly|alternatively|either|even|both|the|an?|it|its|is|are"
    r"|could|might|may|can|be|answers?|as|well|otherwise|another|other|one|final|solutions?|so|if"
    r"|not|sure|possible|option|choice|respectively|with|to|equals?)\b"
    r"|[\u6216\u548c\u4e0e\u53ca\uff0c\u3001\u3002]"
)


def _joins(gap: str) -> bool:
    """Whether the text between two answers only connects them, so that both are given at once."""
    if len(gap) > 120:
        return False
    gap = re.sub(r"\\(?:text|mbox|mathrm)\s*\{([^{}]*)\}", r" \1 ", gap)
    return not _CONNECTIVE.sub("", gap)


def _joined(spans: list[tuple[int, int, str]], text: str) -> list[str]:
    """The last answer and those right before it that are connected to it; repeats are dropped."""
    group = [spans[-1][2]]
    for index in range(len(spans) - 2, -1, -1):
        if not _joins(text[spans[index][1] : spans[index + 1][0]]):
            break
        group.append(spans[index][2])
    return list(dict.fromkeys(reversed(group)))


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
    spans: list[tuple[int, int, str]] = []
    for match in matches:
        opening = match.end()
        if opening in partners and (not spans or match.start() >= spans[-1][1]):
            end = partners[opening]
            spans.append((match.start(), end + 1, text[opening + 1 : end]))
    answers = [answer.strip() for answer in _joined(spans, text)]
    if not answers[-1] or not normalise(answers[-1]):
        return Extraction(answer=None, reason="The last box is empty.")
    if len(answers) == 1:
        return Extraction(answer=answers[0], found_by="box")
    return Extraction(answer=" , ".join(answers), found_by="boxes")


# --- forms outside a box -----------------------------------------------------------------------

_MARKER = re.compile(
    r"(?im)(?:\b(?:answer|r.ponse|respuesta|antwort)\b(?:\s+to\s[^.\n:]{0,80}?)?\s*"
    r"(?:\*\*)?\s*(?:is|was|:|=|\uff1a|(?=[$\\]))\s*(?:\*\*)?\s*:?"
    r"|^\s*(?:####|A:)|\u7b54\u6848\s*(?:\u662f|\u4e3a)?\s*[:\uff1a]?)\s*"
)
_SENTENCE_END = re.compile(r"\n\s*\n|(?<=[^\s.])[.!?](?=\s+[A-Z\"(]|\s*$)|\u3002|\n(?!\s*[$\\&])")
_NUMBER = (
    r"[-\u2212]?\s?[$\u20ac\u00a3]?\s?(?:\d{1,3}(?:[, ]\d{3})+(?![\d])(?:\.\d+)?|\d+(?:[.,]\d+)?|\.\d+)"
    r"(?:\s*/\s*\d+)?(?:\s?\\?%)?"
)
_LAST_NUMBER = re.compile(rf"(?<![A-Za-z0-9.^_{{\\/])({_NUMBER})(?!\d)")
_MATH = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$((?:[^$\\]|\\.)+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
# Text that talks to a grader or is code has no answer that an unlabelled number could be.
_NOT_PROSE = re.compile(
    r"(?i)__|`|<\s*/?\s*[a-z!][^<>]*>|\b(?:import|eval|exec|lambda|print|assert|return|subprocess)\b"
    r"|\b(?:reward|score|grader?|grading|label|verdict|evaluator|ground.?truth|full marks?|ignore)\b"
    r"|(?<![\\\w])(?!(?:arc)?(?:sin|cos|tan|sec|csc|cot)|log|exp|sqrt|max|min|gcd|lcm|det|deg)"
    r"[a-z_]{3,}(?:\(|\s*=\s*[\d'\"])|\bcorrect\b\s*[:=]"
)


def _tagged(text: str) -> str | None:
    lowered = text.lower()
    end = lowered.rfind("</answer>")
    start = lowered.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end].strip() or None if start >= 0 else None


def _marked(text: str) -> str | None:
    """What the last `answer is`, `Answer:` or `####` announces, to the end of its sentence."""
    matches = list(_MARKER.finditer(text))
    if not matches:
        return None
    clause = text[matches[-1].end() :].lstrip()
    formula = _MATH.match(clause)
    end = _SENTENCE_END.search(clause, formula.end() if formula else 0)
    clause = clause[: end.start()] if end else clause
    clause = clause.strip().strip("\"'*").strip()
    if not _is_prose(clause):
        return clause or None
    for reader in (_last_math, _last_number):
        answer = reader(clause)
        if answer is not None:
            return answer
    return clause


def _is_prose(text: str, limit: int = 2) -> bool:
    without_math = _MATH.sub(" ", text)
    words = re.findall(r"(?<!\\)\b[A-Za-z]{2,}", re.sub(r"\\[a-zA-Z]+\s*\{[^{}]*\}", " ", without_math))
    foreign = re.findall(r"[\u0400-\u06ff\u3040-\u9fff\uac00-\ud7af]", without_math)
    return len(words) > limit or len(foreign) > 4


_CHOICE_AT_START = re.compile(r"[\s*\"'$]*\(?([A-J])\)?(?=$|[.):,\u3002\uff0c\s]|[\u3040-\u9fff])")
_CHOICE_NAMED = re.compile(
    r"(?i:\b(?:answer|it'?s|it\s+is|choose|pick|select|option|choice|is|be)\b)\W+"
    r"(?i:(?:for\s+sure|definitely|clearly|option|choice|the|answer)\W+)*\**\(?([A-J])\)?(?![\w'])"
)
_NEGATED = re.compile(r"(?i)(?:not|n't|never|neither|nor)\s*(?:be|option|is)?\s*$")


def _choice(text: str) -> str | None:
    """A letter that stands first, or the last that the text affirms."""
    found = [
        match
        for match in _CHOICE_NAMED.finditer(text)
        if not _NEGATED.search(text[: match.start()]) and "not" not in match.group().lower()
    ]
    at_start = _CHOICE_AT_START.match(text)
    if at_start and not (found and at_start[1] == "A"):
        return at_start[1]
    return found[-1][1] if found else None


def _bare(text: str) -> str | None:
    """The whole text, if it is one short line that is not prose."""
    if not text or len(text) > 300 or "\n\n" in text or _NOT_PROSE.search(text):
        return None
    formulas = list(_MATH.finditer(text))
    if _is_prose(text) or len(formulas) > 1:
        return None
    # `12 apples` is bare; `Special matrix: $...$` is a sentence.
    return None if formulas and re.search(r"[^\W\d_]{2}", text[: formulas[0].start()]) else text


def _last_math(text: str) -> str | None:
    """The last piece between maths delimiters and those connected to it."""
    if _NOT_PROSE.search(_MATH.sub(" ", text)):
        return None
    spans = [
        (match.start(), match.end(), next(group for group in match.groups() if group).strip())
        for match in _MATH.finditer(text)
    ]
    spans = [span for span in spans if re.search(r"[\w\\]", span[2]) and not _is_prose(span[2], limit=1)]
    if not spans or _LAST_NUMBER.search(text, spans[-1][1]):
        return None
    percent = re.match(r"\s*(?:\\?%|percent|pct)", text[spans[-1][1] :])
    return " , ".join(_joined(spans, text)) + (" \\%" if percent else "")


def _last_number(text: str) -> str | None:
    """The last number of the last line that has one; alternatives are kept together."""
    if _NOT_PROSE.search(text):
        return None
    lines = [line for line in text.split("\n") if re.search(r"\d", line)]
    if not lines:
        return None
    line = lines[-1]
    spans = [(match.start(), match.end(), match[1].strip()) for match in _LAST_NUMBER.finditer(line)]
    if not spans:
        return None
    return " , ".join(_joined(spans, line))
