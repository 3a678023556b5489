"""Kinds of task beside math: letters, texts, numbers, reasoning-gym's scorers; by option or by column."""

import base64
import json
import pickle
from collections.abc import Iterator

import pytest
from conftest import REPO

from configs.schema import RewardsConfig, ThinkingConfig
from configs.schema.rewards import REWARD_KINDS
from rewards import Facts, Scorer
from rewards.build import build_scorer, gold_checker
from rewards.processes.worker import answer_request
from rewards.tasks.choosing import KINDS


@pytest.fixture(scope="module")
def scorers() -> Iterator[dict[str, Scorer]]:
    kinds = ("choice", "exact", "ordered_text", "numeric", "reasoning_gym")
    made = {kind: Scorer(kind=kind, relative_tolerance=0.01) for kind in kinds}
    yield made
    for scorer in made.values():
        scorer.close()


def test_every_kind_has_an_option_and_a_file() -> None:
    assert REWARD_KINDS == KINDS
    assert {path.stem for path in (REPO / "configs" / "rewards").glob("*.yaml")} >= set(KINDS)


@pytest.mark.parametrize(
    ("kind", "gold", "answer", "status"),
    [
        ("choice", "C", r"\boxed{C}", "correct"),
        ("choice", "C", r"\boxed{(C)}", "correct"),
        ("choice", "(C)", r"\boxed{\text{C}}", "correct"),
        ("choice", "C", r"\boxed{c}", "correct"),
        ("choice", "C", r"\boxed{\text{C. Cecile}}", "correct"),
        ("choice", "C", "I think it's C", "correct"),
        ("choice", "C", r"\boxed{D}", "wrong"),
        ("choice", "C", r"\boxed{C, D}", "wrong"),
        ("choice", "A, C", r"\boxed{C and A}", "correct"),
        ("choice", "A, C", r"\boxed{A}", "wrong"),
        ("choice", "C", r"\boxed{42}", "unparsable"),
        ("exact", "aB c", r"\boxed{\text{aB c}}", "correct"),
        ("exact", "aB c", r"\boxed{aB c }", "correct"),
        ("exact", "aB c", r"\boxed{ab c}", "wrong"),
        ("exact", "aB c", r"\boxed{aB  c}", "wrong"),
        ("exact", "e\u0301", "\\boxed{\u00e9}", "correct"),
        ("exact", "0.5", r"\boxed{1/2}", "wrong"),
        ("ordered_text", "saw, was, Bob", r"\boxed{Saw -> was -> bob}", "correct"),
        ("ordered_text", "saw, was, Bob", r"\boxed{\text{saw}, \text{was}, \text{Bob}}", "correct"),
        ("ordered_text", "saw, was, Bob", r"\boxed{was, saw, Bob}", "wrong"),
        ("ordered_text", "saw, was", r"\boxed{saw}", "wrong"),
        ("ordered_text", "3 -1", r"\boxed{3, 1}", "wrong"),
        ("ordered_text", "ab", r"\boxed{a b}", "wrong"),
        ("numeric", "100", r"\boxed{100.9}", "correct"),
        ("numeric", "100", r"\boxed{101.1}", "wrong"),
        ("numeric", "-100", r"\boxed{-99.5}", "correct"),
        ("numeric", "100 m", r"\boxed{100.5 s}", "wrong"),
        ("numeric", "50%", r"\boxed{0.501}", "correct"),
        ("numeric", "0", r"\boxed{0.001}", "wrong"),
        ("numeric", r"\sqrt{2}", r"\boxed{1.41}", "correct"),
        ("numeric", r"\sqrt{2}", r"\boxed{1.39}", "wrong"),
        ("numeric", "3", r"\boxed{x}", "unparsable"),
    ],
)
def test_an_answer_is_judged_by_the_rule_of_its_kind(
    scorers: dict[str, Scorer], kind: str, gold: str, answer: str, status: str
) -> None:
    verdict = scorers[kind].score_sync(gold=gold, completion=f"<think>\\boxed{{x}}</think>{answer}")
    assert verdict.status == status, verdict


def test_the_larger_tolerance_counts() -> None:
    with Scorer(kind="numeric", relative_tolerance=0.0, absolute_tolerance=0.5) as scorer:
        assert scorer.score_sync(gold="1", completion=r"\boxed{1.5}").is_correct
        assert scorer.score_sync(gold="1", completion=r"\boxed{1.51}").status == "wrong"


def test_a_column_names_the_kind_of_a_problem() -> None:
    with Scorer(kind="exact", kind_column="type") as scorer:

        def status(kind: str | None) -> str:
            facts = Facts(columns={"type": kind})
            return scorer.score_sync(gold="1/2", completion=r"\boxed{0.5}", facts=facts).status

        assert [status(kind) for kind in ("math", "numeric", "exact", None)] == [
            "correct", "correct", "wrong", "wrong",
        ]  # fmt: skip
        verdict = scorer.score_sync(gold="1", completion="1", facts=Facts(columns={"type": "maths"}))
        assert verdict.status == "error" and "'maths'; choose from math, choice" in verdict.reason


@pytest.mark.parametrize(
    ("kind", "gold", "message"),
    [
        ("choice", "Paris", "is not a letter"),
        ("exact", " ", "empty"),
        ("ordered_text", "...", "no word"),
        ("numeric", "", "empty"),
        ("code", "x = 1", "every program would pass"),
        ("code", "assert (", "neither JSON nor Python"),
        ("code", '[{"input": "1"}]', "not JSON"),
        ("code", '[{"input": 1, "output": "2"}]', "must be text"),
        ("reasoning_gym", "7", "no column `metadata`"),
    ],
)
def test_a_gold_of_the_wrong_kind_is_refused_when_the_data_is_loaded(
    kind: str, gold: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        gold_checker(RewardsConfig(kind=kind))(gold, {})


def test_the_options_of_a_run_choose_kind_and_tolerance() -> None:
    config = RewardsConfig(kind="numeric", relative_tolerance=0.2)
    with build_scorer(config, ThinkingConfig()) as scorer:
        assert scorer.score_sync(gold="10", completion=r"\boxed{11.9}").is_correct
    with pytest.raises(ValueError, match=r"rewards\.relative_tolerance"):
        RewardsConfig(kind="numeric", relative_tolerance=-1.0)
    with pytest.raises(ValueError, match=r"set rewards\.judge\.url"):
        RewardsConfig(kind="judge")


@pytest.mark.parametrize("name", ["word_sorting", "countdown", "zebra_puzzles", "arc_agi"])
@pytest.mark.component
def test_reasoning_gym_judges_its_own_problems(scorers: dict[str, Scorer], name: str) -> None:
    import reasoning_gym

    entry = reasoning_gym.create_dataset(name, seed=3, size=1)[0]
    for metadata in (entry["metadata"], json.dumps(entry["metadata"])):
        facts = Facts(question=entry["question"], columns={"metadata": metadata})

        def score(answer: str, facts: Facts = facts, gold: str = entry["answer"]) -> tuple[str, float | None]:
            text = f"<answer>{answer}</answer>"
            verdict = scorers["reasoning_gym"].score_sync(gold=gold, completion=text, facts=facts)
            return verdict.status, verdict.value

        assert score(str(entry["answer"])) == ("correct", 1.0)
        status, value = score("no such thing")
        assert status == "wrong" and value is not None and value < 1
        verdict = scorers["reasoning_gym"].score_sync(gold="x", completion="<think>", facts=facts)
        assert (verdict.status, verdict.value) == ("unparsable", 0.0)


@pytest.mark.slow
@pytest.mark.component
def test_reasoning_gyms_scorers_accept_their_own_answers_after_a_trip_through_json() -> None:
    """Stored metadata have lists for tuples and text for keys."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    failed, seen = set(), 0
    for name in sorted(DATASETS):
        try:
            entry = reasoning_gym.create_dataset(name, seed=5, size=1)[0]
            judge = reasoning_gym.get_score_answer_fn(name)
            before = judge(entry["answer"], pickle.loads(pickle.dumps(entry)))
        except Exception:  # needs options or files of its own
            continue
        seen += 1
        packed = base64.b64encode(pickle.dumps(json.loads(json.dumps(entry, default=str)))).decode()
        request = {"name": name, "entry": packed, "answer": entry["answer"]}
        if answer_request({"task": "reasoning_gym", **request}).get("value") != before:
            failed.add(name)
    assert not failed
    assert seen > 90
