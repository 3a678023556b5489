"""Drafts from an earlier evaluation, used instead of sampling new ones."""

import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from rollout.evaluation.journal import read_calls
from rollout.records import ATTEMPTS, Call, Problem


class DraftCache:
    """The plain attempts of a ``rollouts.jsonl``, by problem. They are context, never trained on."""

    def __init__(self, path: Path, problems: Iterable[Problem]) -> None:
        """Reads the whole file.

        Args:
            path: The ``rollouts.jsonl`` of an evaluation.
            problems: The problems that drafts are drawn for; the file may hold more or fewer.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If a line is not a rollout (the message names it), no line has a plain attempt, or a
                problem has the id of one of ``problems`` and another question.
        """
        questions = {problem.id: problem.question for problem in problems}
        self._drafts: dict[str, list[Call]] = defaultdict(list)
        if not path.is_file():
            raise FileNotFoundError(
                f"collect.draft_cache: {path} does not exist. It is the rollouts.jsonl that "
                "python -m rollout writes to its output_dir."
            )
        try:
            for problem, calls in read_calls(path):
                if questions.get(problem.id, problem.question) != problem.question:
                    raise ValueError(
                        f"in {path} the question of problem {problem.id!r} is {problem.question!r}, in the "
                        f"data {questions[problem.id]!r}. Set the file of an evaluation of the same problems."
                    )
                self._drafts[problem.id] += filter(_is_plain, calls)
        except ValueError as error:
            raise ValueError(f"collect.draft_cache: {error}") from error
        if not any(self._drafts.values()):
            raise ValueError(f"collect.draft_cache: {path} contains no attempt at a plain problem.")

    def draw(self, problem_id: str, num: int, rng: random.Random) -> list[Call]:
        """Returns ``num`` different drafts of a problem, or all of them if there are fewer."""
        drafts = self._drafts.get(problem_id, [])
        return rng.sample(drafts, min(num, len(drafts)))


def _is_plain(call: Call) -> bool:
    # Round 0 reads no workspace; an aborted attempt is cut.
    return call.role in ATTEMPTS and call.round == 0 and call.finish != "abort"
