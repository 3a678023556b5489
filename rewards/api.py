"""Scores one answer against one gold answer, for notebooks and scripts: docs/python.md."""

import atexit
import functools

from configs.schema import RewardsConfig, ThinkingConfig
from rewards.build import build_scorer
from rewards.gold import check_gold
from rewards.scorer import Scorer
from rewards.verdict import Verdict


@functools.cache
def _scorer() -> Scorer:
    """Returns the scorer of this program, with the default options of a run."""
    scorer = build_scorer(RewardsConfig(), ThinkingConfig())
    atexit.register(scorer.close)
    return scorer


def score(*, gold: str, answer: str | None) -> Verdict:
    """Returns the verdict on a final answer, by the verifier that training uses.

    Args:
        gold: The correct answer, or a solution with that answer in a box.
        answer: A final answer without surrounding text, such as ``Result.answer``; None is ``unparsable``.

    Raises:
        ValueError: If ``gold`` cannot be parsed, since every answer would count as wrong.
    """
    check_gold(gold)
    if answer is None:
        return Verdict(status="unparsable", reason="There is no answer.")
    return _scorer().equivalent_sync(gold=gold, answer=answer)
