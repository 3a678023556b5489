"""Answers that a language model compares with the gold: free text, several right wordings."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewards.answers.extract import Extraction, Rules
from rewards.facts import Facts
from rewards.solving import Request
from rewards.tasks.task import Prepared, found_answer, solution_of, unparsable

MAX_ANSWER_CHARS = 8_000
"""Longer answers are refused: they cost tokens, and a final answer is short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The answer in a box or an accepted form, else the whole solution. Cached by all that is sent."""

    rules: Rules

    def check_gold(self, gold: str, columns: Mapping[str, Any]) -> str | None:
        """Raises ValueError if the gold is empty."""
        if not gold.strip():
            raise ValueError("The gold answer is empty.")
        return None

    def prepare(self, gold: str, completion: str, facts: Facts) -> Prepared:
        """See ``Task``."""
        self.check_gold(gold, facts.columns)
        found = found_answer(completion, self.rules)
        if found.answer is None:
            found = solution_of(completion, self.rules)
        if found.answer is None:
            return unparsable(found)
        if len(found.answer) > MAX_ANSWER_CHARS:
            reason = f"The answer has {len(found.answer)} characters; {MAX_ANSWER_CHARS} is the limit."
            return unparsable(Extraction(answer=None, reason=reason))
        body = {"question": facts.question or "", "gold": gold, "answer": found.answer}
        digest = hashlib.blake2b(json.dumps(body).encode(), digest_size=16).hexdigest()
        return found, Request(body=body, key=("judge", digest), is_judged=True)
