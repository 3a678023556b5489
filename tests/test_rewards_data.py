"""Agreement on labelled, natural and hostile cases; skipped where the data is not there."""

import json
import random
import re

import pytest
from conftest import SHARED_DATA as DATA

from rewards.gold import check_gold
from rewards.scorer import Scorer

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the labelled cases in {DATA}")


def rows_of(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).open(encoding="utf-8")]


def disagreements(name: str, every: int = 1) -> tuple[int, list[tuple[str, bool]]]:
    """Number of judged rows, and id and wanted label of those that are judged otherwise."""
    judged, wrong = 0, []
    with Scorer(limit_seconds=60.0) as scorer:
        for row in rows_of(name)[::every]:
            wanted = row.get("truth", row["label"])
            if wanted is None:
                continue
            judged += 1
            if scorer.score_sync(gold=row["gold"], completion=row["pred"]).is_correct != wanted:
                wrong.append((row.get("id", ""), wanted))
    return judged, wrong


@pytest.mark.component
def test_labelled_cases_are_judged_as_people_do() -> None:
    judged, wrong = disagreements("verifier_cases.jsonl")
    assert len(wrong) <= 0.03 * judged, wrong
    assert sum(not wanted for _, wanted in wrong) <= 1, wrong


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_natural_outputs_are_judged_as_labelled(every: int) -> None:
    judged, wrong = disagreements("verifier_natural.jsonl", every)
    assert len(wrong) <= 0.001 * judged, wrong


@pytest.mark.slow
def test_every_hard_hostile_case_gets_its_reward() -> None:
    _hostile(categories=None, limit_seconds=3.0)


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
        },
        limit_seconds=60.0,
    )


def _hostile(categories: set[str] | None, limit_seconds: float) -> None:
    missed = []
    with Scorer(limit_seconds=limit_seconds, max_failure_share=1.0) as scorer:
        for row in rows_of("adversarial.jsonl"):
            if row["severity"] != "hard" or (categories is not None and row["category"] not in categories):
                continue
            verdict = scorer.score_sync(gold=row["gold"], completion=row["pred"])
            if verdict.is_correct != bool(row["expected"]):
                missed.append((row["id"], verdict))
    assert not missed


def test_all_golds_of_the_evaluation_sets_parse() -> None:
    for name in ("aime24.jsonl", "aime25.jsonl", "amc23.jsonl", "math500.jsonl"):
        for row in rows_of(name):
            check_gold(row["answer"])


def _changed(gold: str, generator: random.Random) -> list[str]:
    """The gold with another digit, another sign, one more and the opposite sign: all of them wrong."""
    changed = [f"{gold}+1", f"-({gold})"]
    digit = generator.choice(list(re.finditer(r"\d", gold)))
    other = str((int(digit[0]) + generator.randint(1, 8)) % 10)
    changed.append(gold[: digit.start()] + other + gold[digit.end() :])
    if signs := list(re.finditer(r"(?<=[\w})])\s*[+-]", gold)):
        sign = generator.choice(signs)
        changed.append(gold[: sign.end() - 1] + ("-" if sign[0][-1] == "+" else "+") + gold[sign.end() :])
    return changed


def _respelled(gold: str) -> list[str]:
    """The same answer as other hands would write it."""
    return [
        gold.replace(r"\frac", r"\dfrac"),
        re.sub(r"\\frac\{(\d)\}\{(\d)\}", r"\\frac\1\2", gold),
        gold.replace(r"\left", "").replace(r"\right", ""),
        re.sub(r"([+=<>])", r" \1 ", gold),
        f"{{{gold}}}",
        rf"\displaystyle {gold}.",
    ]


@pytest.mark.parametrize("count", [30, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.component
def test_golds_survive_respelling_and_never_a_change_of_value(count: int) -> None:
    # Formulas and numbers: a list with 0 in it equals the list with -0.
    golds = sorted({row["answer"] for row in rows_of("math_train_12k.jsonl")})
    golds = [
        gold for gold in golds if re.search(r"[1-9]", gold) and not re.search(r"[,&$:]|\\text|\\pm", gold)
    ]
    golds = [gold for gold in golds if not re.fullmatch(r"-?\d+", gold)]
    generator = random.Random(3)
    with Scorer(forms=(), limit_seconds=60.0) as scorer:
        for gold in generator.sample(golds, min(count, len(golds))):
            for answer in _changed(gold, generator):
                verdict = scorer.score_sync(gold=gold, completion=rf"\boxed{{{answer}}}")
                assert not verdict.is_correct, (gold, answer, verdict)
            for answer in _respelled(gold):
                verdict = scorer.score_sync(gold=gold, completion=rf"\boxed{{{answer}}}")
                assert verdict.is_correct, (gold, answer, verdict)
