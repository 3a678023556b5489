"""Problems of reasoning-gym, judged by its own scorers."""

import base64
import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewards.answers.extract import Rules
from rewards.facts import Facts
from rewards.processes.fork_server import import_path
from rewards.processes.functions import REASONING_GYM
from rewards.solving import Request
from rewards.tasks.task import Prepared, found_answer
from rewards.verdict import Verdict

METADATA = "metadata"
"""Column with the metadata of a problem's entry, which names its task as ``source_dataset``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningGym:
    """The task's own score, from 0 to 1, is the verdict's value; ``correct`` from 1 on."""

    rules: Rules

    def check_gold(self, gold: str, columns: Mapping[str, Any]) -> str | None:
        """Raises ValueError if the row has no metadata of reasoning-gym."""
        _metadata(columns)
        return None

    def prepare(self, gold: str, completion: str, facts: Facts) -> Prepared:
        """See ``Task``."""
        metadata = _metadata(facts.columns)
        found = found_answer(completion, self.rules)
        if found.answer is None:
            return found, Verdict(status="unparsable", reason=found.reason, value=0.0)
        entry = {"question": facts.question or "", "answer": gold, METADATA: metadata}
        packed = base64.b64encode(pickle.dumps(entry)).decode()
        name = metadata["source_dataset"]
        where = {"import_path": import_path(), "imports": REASONING_GYM}
        body = {"task": "reasoning_gym", "name": name, "entry": packed, "answer": found.answer, **where}
        digest = hashlib.blake2b(packed.encode(), digest_size=16).hexdigest()
        return found, Request(body=body, key=("reasoning_gym", digest, found.answer))


def _metadata(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metadata of a row, which may be JSON text.

    Raises:
        ValueError: If there is none, or it does not name its task.
    """
    value = columns.get(METADATA)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, dict) or not isinstance(value.get("source_dataset"), str):
        raise ValueError(
            "The row has no column `metadata` with the `source_dataset` of a reasoning-gym entry; "
            f"its columns are {', '.join(sorted(columns)) or 'none'}."
        )
    return value
