"""Agreement on labelled, natural and hostile cases; skipped where the data is not there."""

import json
import time
from pathlib import Path

import pytest

from rewards.gold import check_gold
from rewards.scorer import Scorer

DATA = Path(__file__).parents[2] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the labelled cases in {DATA}")
LIMIT = 1.0


def rows_of(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).open(encoding="utf-8")]


def disagreements(name: str, every: int = 1) -> tuple[int, list[tuple[str, bool]]]:
    """Number of judged rows, and id and wanted label of those that are judged otherwise."""
    judged, wrong = 0, []
    with Scorer() as scorer:
        for row in rows_of(name)[::every]:
            wanted = row.get("truth", row["label"])
            if wanted is None:
                continue
            judged += 1
            if scorer.score_sync(gold=row["gold"], completion=row["pred"]).is_correct != wanted:
                wrong.append((row.get("id", ""), wanted))
    return judged, wrong


def test_labelled_cases_are_judged_as_people_do() -> None:
    judged, wrong = disagreements("verifier_cases.jsonl")
    assert len(wrong) <= 0.03 * judged, wrong
    assert sum(not wanted for _, wanted in wrong) <= 1, wrong


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_natural_outputs_are_judged_as_labelled(every: int) -> None:
    judged, wrong = disagreements("verifier_natural.jsonl", every)
    assert len(wrong) <= 0.001 * judged, wrong


@pytest.mark.slow
def test_every_hard_hostile_case_gets_its_reward_and_none_outstays_the_limit() -> None:
    _hostile(categories=None)


def test_the_cheap_hard_hostile_cases_get_their_reward() -> None:
    _hostile(
        categories={
            "hedging",
            "guess-all",
            "think-only",
            "empty",
            "injection",
            "near",
            "structure",
            "units",
            "unicode",
            "braces",
            "format",
            "long",
        }
    )


def _hostile(categories: set[str] | None) -> None:
    missed = []
    with Scorer(limit_seconds=LIMIT, max_failure_share=1.0) as scorer:
        scorer.score_sync(gold="x+1", completion=r"\boxed{1+x}")
        for row in rows_of("adversarial.jsonl"):
            if row["severity"] != "hard" or (categories is not None and row["category"] not in categories):
                continue
            start = time.perf_counter()
            verdict = scorer.score_sync(gold=row["gold"], completion=row["pred"])
            seconds = time.perf_counter() - start
            if verdict.is_correct != bool(row["expected"]):
                missed.append((row["id"], verdict))
            # The promise of the limit, not a bench: a call that outstays it was not killed.
            assert seconds < LIMIT + 3.0, row["id"]
    assert not missed


def test_all_golds_of_the_evaluation_sets_parse() -> None:
    for name in ("aime24.jsonl", "aime25.jsonl", "amc23.jsonl", "math500.jsonl"):
        for row in rows_of(name):
            check_gold(row["answer"])
