"""Custom rewards: facts by name, from the data and from the rollout."""

import asyncio
import re
from pathlib import Path

import pytest
from conftest import REPO
from fakes import ScriptedPolicy, operator, problem, settings

from configs.schema import RewardsConfig, ThinkingConfig
from rewards import Draft, Facts, Scorer
from rewards.build import build_scorer
from rewards.grader import Grader
from rewards.tasks.custom import FACTS, MAX_FACTS_BYTES
from rollout.operators import run_operator
from rollout.problems.reading import column_names

pytestmark = pytest.mark.component

MODULE = """
SEEN = {}

def plain(gold, completion): return 1.0 if gold in completion else 0.0
def level(*, completion, level, hint="none"):
    return len(completion) + 10 * level + (0.5 if hint == "none" else 0)
def everything(**facts): return float(len(facts))
def names(
    *, columns, drafts, role, round, workspace, num_tokens, prompt_tokens, finish_reason, answer, question
):
    assert question == "q" and columns == {"level": 3} and answer == "7", (question, columns, answer)
    assert (role, round, workspace, finish_reason) == ("refine", 1, "W", "stop")
    assert [d.is_correct for d in drafts] == [True, False]
    return num_tokens + prompt_tokens
def needs(*, gold, no_such_thing): return 1.0
def big(*, columns): return 1.0
def positional(gold, /): return 1.0
def in_workspace(*, workspace, drafts, num_tokens, role):
    return len(drafts) + (0.5 if workspace else 0) + (100 if num_tokens else 0)
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "facts_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def scorer(name: str) -> Scorer:
    return Scorer(custom_path=f"facts_rewards:{name}", num_workers=1, max_failure_share=1.0)


def test_the_form_with_gold_and_completion_stays() -> None:
    with scorer("plain") as made:
        assert made.score_sync(gold="7", completion="7!").value == 1.0


def test_a_column_is_passed_to_the_function_that_names_it() -> None:
    with scorer("level") as made:
        facts = Facts(columns={"level": 3, "unused": object})
        assert made.score_sync(gold="", completion="abc", facts=facts).value == 33.5
        facts = Facts(columns={"level": 3, "hint": "some"})
        assert made.score_sync(gold="", completion="abc", facts=facts).value == 33.0


def test_the_same_text_with_other_facts_is_scored_anew() -> None:
    with scorer("level") as made:
        values = [
            made.score_sync(gold="", completion="a", facts=Facts(columns={"level": level})).value
            for level in (1, 2, 1)
        ]
    assert values == [11.5, 21.5, 11.5]


def test_every_fact_reaches_the_function_that_names_it() -> None:
    drafts = (Draft(text="a", status="correct"), Draft(text="b", status="wrong"))
    facts = Facts(
        question="q", columns={"level": 3}, role="refine", round=1, drafts=drafts, workspace="W",
        num_tokens=5, prompt_tokens=6, finish_reason="stop",
    )  # fmt: skip
    with scorer("names") as made:
        verdict = made.score_sync(gold="7", completion=r"\boxed{7}", facts=facts)
    assert verdict.value == 11.0, verdict.reason
    with scorer("everything") as made:
        assert made.score_sync(gold="7", completion="7", facts=facts).value == len(FACTS) + 1


def test_a_name_that_does_not_exist_is_refused_with_the_list_of_what_exists() -> None:
    with build_scorer(RewardsConfig(kind="custom", path="facts_rewards:needs"), ThinkingConfig()) as made:
        with pytest.raises(ValueError, match="needs `no_such_thing`") as refused:
            made.check_columns({"level", "topic"})
        assert all(name in str(refused.value) for name in (*FACTS, "level", "topic"))
        made.check_columns({"no_such_thing"})
        verdict = made.score_sync(gold="", completion="", facts=Facts(columns={"level": 3}))
        assert verdict.status == "error" and "`no_such_thing`" in verdict.reason and "level" in verdict.reason


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("facts_rewards:missing", "missing"),
        ("no_such_module:f", "No module named"),
        ("facts_rewards:positional", "takes `gold` by position only"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_before_the_first_answer(path: str, message: str) -> None:
    with Scorer(custom_path=path, max_failure_share=1.0) as made:
        with pytest.raises(ValueError, match=message):
            made.check_columns(set())
        assert message in made.score_sync(gold="1", completion="1").reason


def test_facts_beyond_the_limit_are_an_error_that_names_the_largest() -> None:
    facts = Facts(columns={"blob": "x" * MAX_FACTS_BYTES})
    with scorer("big") as made:
        verdict = made.score_sync(gold="", completion="", facts=facts)
    assert verdict.status == "error" and "`columns` alone" in verdict.reason


def test_a_rollout_passes_drafts_workspace_and_tokens_of_each_attempt() -> None:
    with scorer("in_workspace") as made:
        work = run_operator(
            problem(),
            operator((4, 1), "shared_topk", top_k=2),
            settings(ScriptedPolicy()),
            Grader(made),
            0,
            3,
        )
        rollout = asyncio.run(work)
    values = {
        (call.role, rollout.verdicts[place].value)
        for place, call in enumerate(rollout.calls)
        if place in rollout.verdicts
    }
    assert values == {("draft", 100.0), ("refine", 102.5)}


def test_the_columns_that_every_problem_has_may_be_required() -> None:
    from dataclasses import replace

    problems = [replace(problem(), columns=text) for text in ('{"a": 1, "b": 2}', '{"b": 3}')]
    assert column_names(problems) == {"b", "id", "source"}


def test_the_pages_refinement_reward_beats_its_drafts(tmp_path: Path) -> None:
    page = (REPO / "docs" / "rewards.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n# my_project/refine\.py\n(.*?)```", page, re.S)
    assert example is not None and len(example[1].strip().splitlines()) <= 6
    (tmp_path / "refine_rewards.py").write_text(example[1])
    with Scorer(custom_path="refine_rewards:beats_drafts") as made:

        def value(completion: str, *statuses: str) -> float | None:
            facts = Facts(drafts=tuple(Draft(text="d", status=status) for status in statuses))
            return made.score_sync(gold="7", completion=completion, facts=facts).value

        assert value(r"\boxed{7}", "wrong", "wrong") == 1.0
        assert value(r"\boxed{7}", "correct", "wrong") == 0.5
        assert value(r"\boxed{8}", "correct", "wrong") == -0.5
        assert value(r"\boxed{7}") == 1.0
