"""Gold answers: parsed once when the data is loaded, and refused if they do not parse."""

import atexit
import re
import threading
from dataclasses import dataclass
from functools import lru_cache

from rewards.answers.algebra import squash
from rewards.answers.extract import boxed_answer
from rewards.answers.latex import normalise
from rewards.answers.notation import CLOCK
from rewards.answers.shapes import (
    Compound,
    Expression,
    Interval,
    Matrix,
    Named,
    Number,
    Relation,
    Shape,
    Text,
    UnreadableError,
)
from rewards.answers.structure import parse_shape
from rewards.processes.pool import Pool

MAX_GOLD_CHARS = 20_000
MAX_WORDS = 8
"""Number of words from which a gold without a box is prose, not an answer."""
DOUBTFUL_WORDS = 3
"""Number of words from which a gold is usable but doubtful: only the same words are equal to it."""
LIMIT_SECONDS = 10.0
"""Time limit for parsing one gold; generous, since a gold refused on a busy machine would end a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedGold:
    """A gold answer with its parsed structure.

    Example: ``So $x = \\boxed{\\frac12}$.`` has ``answer="\\frac12"`` and ``shape=Number(...)``.
    """

    text: str
    """The gold as written in the data set."""
    answer: str
    """The part that answers are compared with: the content of the box if there is one."""
    shape: Shape

    @property
    def is_choice(self) -> bool:
        """True if it is one of the letters A to J, alone or before its text (``C Cecile``)."""
        return choice_letter(self.answer) is not None

    @property
    def num_parts(self) -> int:
        """Number of elements of a list, set or tuple; 1 for any other gold."""
        is_parted = isinstance(self.shape, Compound) and self.shape.kind in ("list", "set", "tuple")
        return len(self.shape.items) if is_parted and isinstance(self.shape, Compound) else 1


_CHOICE_LINE = re.compile(r"^\s*\(?([A-J])\)?[ .):]+[A-Za-z]{2}[^=]*$", re.M)


def choice_letter(answer: str) -> str | None:
    """Returns the letter of a multiple-choice gold; None for any other gold."""
    text = normalise(answer)
    if re.fullmatch("[A-J]", text):
        return text
    match = _CHOICE_LINE.search(answer.strip())
    return match[1] if match else None


_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])")
_FINAL_LINE = re.compile(r"(?:^|\n)[ \t]*####[ \t]*([^\n#]*?)[ \t]*\s*\Z")
"""The last line of a GSM8K solution: ``#### 1,234``."""


def gold_answer(text: str) -> str:
    """Returns the answer inside a gold that may be a whole solution.

    A solution names its answer in its last box or, without any box, in a last line ``#### answer`` (as in
    GSM8K).

    Raises:
        ValueError: If the gold is empty or too long, or its last box or its line ``####`` is empty or not
            closed.
    """
    if len(text) > MAX_GOLD_CHARS:
        raise ValueError(f"The gold answer has {len(text)} characters; {MAX_GOLD_CHARS} is the limit.")
    if not text.strip():
        raise ValueError("The gold answer is empty.")
    if not _BOX.search(text):
        if final := _FINAL_LINE.search(text):
            if not final[1]:
                raise ValueError(f"The gold answer {_short(text)} ends in `####` without an answer.")
            return final[1]
        line = _CHOICE_LINE.search(text.strip())
        return line.group().strip() if line and "\n" in text.strip() else text
    found = boxed_answer(text)
    if found.answer is None:
        raise ValueError(f"The gold answer {_short(text)} has a box, but: {found.reason}")
    return found.answer


def spelling(gold: str) -> str:
    """Returns the canonical spelling of a gold answer; that of the whole text if it names no answer.

    Golds of one spelling are equal; equal golds may be spelled in several ways (``0.5``, ``1/2``).
    """
    try:
        answer = gold_answer(gold)
    except ValueError:
        answer = gold
    return squash(normalise(answer))


@lru_cache(maxsize=10_000)
def read_gold(text: str) -> ParsedGold:
    """Parses the structure of a gold answer without algebra, so that it is cheap and cannot hang.

    Raises:
        ValueError: If the gold does not have the structure of an answer.
    """
    answer = gold_answer(text)
    try:
        shape = parse_shape(answer, is_gold=True)
    except UnreadableError as error:
        raise ValueError(f"The gold answer {_short(text)} does not parse: {error}") from error
    return ParsedGold(text=text, answer=answer, shape=shape)


def expressions_of(shape: Shape) -> tuple[str, ...]:
    """Returns the expressions in a shape, which only algebra can check."""
    match shape:
        case Expression():
            return (shape.text,)
        case Named():
            return expressions_of(shape.value)
        case Compound():
            return tuple(text for item in shape.items for text in expressions_of(item))
        case Interval():
            return expressions_of(shape.low) + expressions_of(shape.high)
        case Matrix():
            return tuple(text for row in shape.rows for cell in row for text in expressions_of(cell))
        case Relation():
            return shape.sides
        case Number() | Text():
            return ()


_PLAIN = re.compile(
    r"[a-zA-Z]|-?\\(?:pi|infty)|-?(?:\d*\s*\\sqrt\s*(?:\{\d+\}|\d)|\d*\s*\\pi)"
    r"|-?\\frac\{(?:\d*\s*\\sqrt\{\d+\}|\d*\s*\\pi|\d*\s*[a-z])\}\{[1-9]\d*\}"
    r"|-?[\da-z]+(?:\^[\da-z]|\^\{\d+\})?(?:\s*[+\-]\s*[\da-z]+(?:\^[\da-z]|\^\{\d+\})?)*"
    r"|\d{1,2} ?: ?\d{2}|\d+(?: ?: ?\d+)+"
)
"""Expressions of these forms are known to parse, which saves a check in a process for most golds."""


def parse_gold(answer: str) -> ParsedGold:
    """Parses a gold answer; parts that need algebra are tried in a killable process.

    Raises:
        ValueError: If it is prose (``prose``), cannot be parsed or is not a value (``\\frac{0}{0}``); the
            message names the reason.
    """
    if reason := prose(answer):
        raise ValueError(
            f"The gold answer {_short(answer)} {reason}: it is prose, and no answer would be equal to it. "
            "Give the final answer alone, in a \\boxed{} or in a last line `#### answer`."
        )
    gold = read_gold(answer)
    hard = [text for text in expressions_of(gold.shape) if not _PLAIN.fullmatch(squash(text))]
    hard = [text for text in hard if not _PLAIN.fullmatch(text) and not CLOCK.fullmatch(text)]
    if hard:
        reason = _check_in_process(tuple(hard))
        if reason:
            raise ValueError(f"The gold answer {_short(answer)} does not parse: {reason}")
    return gold


def check_gold(answer: str) -> str | None:
    """Checks that a gold answer can be compared with. Cannot hang.

    Returns:
        A doubt about a gold that is words rather than a value; None if there is none.

    Raises:
        ValueError: Like ``parse_gold``.
    """
    gold = parse_gold(answer)
    words = len(_words(gold.answer))
    if words >= DOUBTFUL_WORDS and isinstance(gold.shape, Text) and not gold.is_choice:
        return f"The gold answer {_short(answer)} is {words} words, and only the same words are equal to it."
    return None


def prose(text: str) -> str:
    """Returns why a gold is prose; an empty string if it is not.

    Prose has no box and no line ``####``, and either ``MAX_WORDS`` words or words on several lines. Commands
    of LaTeX are no words; on several lines, neither are the texts inside them, nor those of choices.

    Raises:
        ValueError: Like ``gold_answer``.
    """
    answer = gold_answer(text)
    if _BOX.search(text):
        return ""
    words = len(_words(answer))
    if words >= MAX_WORDS:
        return f"has {words} words"
    if "\n" in answer.strip() and _words(_TEXT.sub(" ", answer)) and choice_letter(answer) is None:
        return "has several lines with words"
    return ""


_COMMAND = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_TEXT = re.compile(r"\\(?:text[a-z]*|mbox|mathrm|operatorname)\s*\{[^{}]*\}")
_WORD = re.compile(r"[^\W\d_]{2,}")


def _words(text: str) -> list[str]:
    return _WORD.findall(_COMMAND.sub(" ", text))


_lock = threading.Lock()
_pool: Pool | None = None


@lru_cache(maxsize=10_000)
def _check_in_process(expressions: tuple[str, ...]) -> str:
    """Returns the reason why the expressions do not parse, or an empty string."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = Pool(num_workers=1, limit_seconds=LIMIT_SECONDS)
            atexit.register(_pool.close)
    result = _pool.run({"task": "parse", "expressions": list(expressions)})
    if result["status"] == "parsed":
        return ""
    return result["reason"] or f"Parsing it ended with {result['status']}."


def _short(text: str) -> str:
    text = ascii(text)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}"
