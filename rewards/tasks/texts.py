"""Answers that are letters or words: ``choice``, ``exact`` and ``ordered_text``."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewards.answers.extract import Extraction, Rules
from rewards.facts import Facts
from rewards.tasks.task import Prepared, found_answer, judged, unparsable, unwrapped
from rewards.verdict import Verdict

_LETTER = r"(?:\(?([A-Z])\)|\\text\{\(?([A-Z])\)?\}|([A-Z]))"
_JOINER = r"\s*(?:,|;|/|&|\band\b)\s*"
_LETTERS = re.compile(rf"{_LETTER}(?:{_JOINER}{_LETTER})*\.?")
_WITH_TEXT = re.compile(r"\(?([A-Z])(?:\)|\.|:)\s*\S.*|\(([A-Z])\)\s*\S.*", re.S)


def letters_of(text: str) -> frozenset[str]:
    """Returns the letters of a choice: ``C``, ``(C)``, ``c``, ``C. Cecile``, ``A, C``; empty if none."""
    text = unwrapped(text.strip().strip("$*").strip()).strip()
    text = text.upper() if len(text) == 1 else text
    if _LETTERS.fullmatch(text):
        return frozenset(re.findall(r"(?<![A-Za-z\\])[A-Z](?![A-Za-z])", text))
    match = _WITH_TEXT.fullmatch(text)
    return frozenset({match[1] or match[2]}) if match else frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Letters of multiple choice; several letters are a set."""

    rules: Rules

    def check_gold(self, gold: str, columns: Mapping[str, Any]) -> str | None:
        """Raises ValueError if the gold is not a letter or several."""
        if not letters_of(gold):
            raise ValueError(f"The gold {gold[:60]!r} is not a letter A to Z (or several, `A, C`).")
        return None

    def prepare(self, gold: str, completion: str, facts: Facts) -> Prepared:
        """See ``Task``."""
        self.check_gold(gold, facts.columns)
        found = found_answer(completion, self.rules, is_choice=True)
        if found.answer is None:
            return unparsable(found)
        letters = letters_of(found.answer)
        if not letters:
            reason = "The answer is not a letter."
            return found, Verdict(
                status="unparsable", answer=found.answer, found_by=found.found_by, reason=reason
            )
        return judged(found, right=letters == letters_of(gold))


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """The same text, character by character; only white space at its ends and Unicode's form do not count."""

    rules: Rules

    def check_gold(self, gold: str, columns: Mapping[str, Any]) -> str | None:
        """Raises ValueError if the gold is empty."""
        return _refuse_empty(gold)

    def prepare(self, gold: str, completion: str, facts: Facts) -> Prepared:
        """See ``Task``."""
        _refuse_empty(gold)
        found = found_answer(completion, self.rules)
        return _compared(found, plain(gold) == plain(found.answer or ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedText:
    """The same words in the same order; case and what stands between the words do not count."""

    rules: Rules

    def check_gold(self, gold: str, columns: Mapping[str, Any]) -> str | None:
        """Raises ValueError if the gold has no word."""
        if not words_of(gold):
            raise ValueError(f"The gold {gold[:60]!r} has no word or number.")
        return None

    def prepare(self, gold: str, completion: str, facts: Facts) -> Prepared:
        """See ``Task``."""
        self.check_gold(gold, facts.columns)
        found = found_answer(completion, self.rules)
        return _compared(found, words_of(gold) == words_of(found.answer or ""))


def plain(text: str) -> str:
    """Returns a text as ``exact`` compares it: composed (NFC), without white space at its ends."""
    return unicodedata.normalize("NFC", text).strip()


_FONT = re.compile(r"\\(?:text[a-z]*|math[a-z]+|mbox)\b")
_JOINT = re.compile(r"\\(?:to|rightarrow|Rightarrow|quad|qquad|,|;|\\)|-+>|=+>|[→⇒]")
_WORD = re.compile(r"[+\-]?\d+(?:[.,]\d+)*|[^\W_]+(?:['\u2019_-][^\W_]+)*")


def words_of(text: str) -> list[str]:
    """Returns the words and numbers of a text in their order, in one case."""
    text = unicodedata.normalize("NFKC", _JOINT.sub(" ", _FONT.sub(" ", text)))
    return [word.replace("\u2019", "'").casefold() for word in _WORD.findall(text)]


def _refuse_empty(gold: str) -> None:
    if not gold.strip():
        raise ValueError("The gold answer is empty.")


def _compared(found: Extraction, right: bool) -> Prepared:
    return unparsable(found) if found.answer is None else judged(found, right=right)
