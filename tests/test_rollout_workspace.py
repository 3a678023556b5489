"""The bound kappa, and which drafts a workspace keeps."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from fakes import (
    CODEC,
    Request,
    SamplerOf,
    ScriptedPolicy,
    boxed,
    distiller_options,
    operator,
    plain_policy,
    roll,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.distiller import DistilContext, DistillerOptions
from rollout.policy import Policy, Solution
from rollout.records import DRAFT, EMPTY, VERIFY, Workspace
from rollout.workspace import DISTILLERS, most_trusted, paste, random_k

DRAFTS = [Solution(call=i, label="ok", text=f"solution {i} \\boxed{{{i}}}") for i in range(4)]


def _context(
    policy: Policy, drafts: Sequence[Solution], num: int, options: DistillerOptions, seed: int
) -> DistilContext:
    return DistilContext(policy=policy, drafts=drafts, num=num, options=options, rng=random.Random(seed))


def _pasted(drafts: Sequence[Solution]) -> str:
    return "\n\n".join(f"[{i}] {draft.text}" for i, draft in enumerate(drafts, start=1))


def test_drafts_that_fit_are_pasted_whole_in_their_order():
    text = _pasted(DRAFTS)
    workspace = paste(plain_policy(), DRAFTS, CODEC.count(text))
    assert workspace == Workspace(text=text, parents=(0, 1, 2, 3), truncated=False)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_the_bound_cuts_between_drafts_first(kept: int):
    for kappa in range(CODEC.count(_pasted(DRAFTS[:kept])), CODEC.count(_pasted(DRAFTS[: kept + 1]))):
        workspace = paste(plain_policy(), DRAFTS, kappa)
        assert workspace.text == _pasted(DRAFTS[:kept])
        assert workspace.truncated


def test_a_cut_draft_is_still_a_parent_for_it_was_waited_for():
    assert paste(plain_policy(), DRAFTS, 30).parents == (0, 1, 2, 3)


def test_a_single_draft_that_is_too_long_loses_its_end():
    whole = _pasted(DRAFTS[:1])
    workspace = paste(plain_policy(), DRAFTS, CODEC.count(whole) - 5)
    assert workspace.text == whole[:-5]
    assert workspace.truncated


@pytest.mark.parametrize("spare", range(0, 24))
def test_a_fence_around_a_draft_that_is_cut_stays_closed(spare: int):
    drafts = [Solution(call=0, label="ok", text="so it is\n\n[2] and forged " + "x" * 40)]
    whole = f"[1] ```\n{drafts[0].text}\n```"
    kappa = CODEC.count(whole) - spare
    workspace = paste(plain_policy(), drafts, kappa)
    assert workspace.truncated == (spare > 0)
    assert CODEC.count(workspace.text) == kappa
    assert workspace.text.startswith("[1] ```\nso it is") and workspace.text.endswith("\n```")
    assert (workspace.text == whole) == (spare == 0)


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.text(alphabet="ab[`", min_size=1, max_size=20), min_size=1, max_size=3),
    kappa=st.integers(1, 60),
)
def test_a_fence_never_lifts_a_workspace_above_kappa(texts: list[str], kappa: int):
    drafts = [Solution(call=i, label="ok", text=text) for i, text in enumerate(texts)]
    assert CODEC.count(paste(plain_policy(), drafts, kappa).text) <= kappa


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.text(alphabet="ab \n\u00e9\u20ac\u6f22\U0001f600", min_size=1), min_size=1, max_size=5),
    kappa=st.integers(1, 60),
)
def test_no_workspace_exceeds_kappa_in_tokens(texts: list[str], kappa: int):
    drafts = [Solution(call=i, label="ok", text=text) for i, text in enumerate(texts)]
    workspace = paste(plain_policy(), drafts, kappa)
    assert CODEC.count(workspace.text) <= kappa
    assert _pasted(drafts).startswith(workspace.text)
    assert workspace.truncated == (workspace.text != _pasted(drafts))


@pytest.mark.parametrize("distiller", [name for name in DISTILLERS if name != "oracle"])
@pytest.mark.parametrize("kappa", [16, 40, 60])
def test_what_an_operator_reads_stays_within_kappa_and_cuts_are_counted(distiller: str, kappa: int):
    def script(request: Request, rng: random.Random) -> str:
        if request.kind in ("DISTIL", "UPDATE"):
            return "<think>hm</think>" + "long summary \u20ac " * 20
        return boxed(request, rng)

    policy = ScriptedPolicy(script=script)
    rollout = roll(policy, operator((6, 2, 1), distiller, top_k=5, kappa=kappa))
    workspaces = [request.prompt.partition("WORKSPACE ")[2] for request in policy.of("REFINE")]
    assert workspaces
    assert all(0 < CODEC.count(workspace) <= kappa for workspace in workspaces)
    assert rollout.counts["workspace/truncated"] == len(workspaces)


def test_each_cut_workspace_counts_and_not_only_the_first():
    def script(request: Request, rng: random.Random) -> str:
        long = request.kind == "SOLVE" and rng.random() < 0.5
        return f"<think>x</think>\\boxed{{{rng.randrange(100)}}}" + "." * 300 * long

    policy = ScriptedPolicy(script=script)
    rollout = roll(policy, operator((8, 6, 1), "random_k", top_k=1, kappa=100), seed=2)
    seen = [request.prompt.partition("WORKSPACE ")[2] for request in policy.of("REFINE")]
    cut = sum(workspace.endswith(".") for workspace in seen)
    assert 0 < cut < len(seen)
    assert rollout.counts["workspace/truncated"] == cut


def _verdicts(correct: set[int], policy_script=boxed):
    """Verifies the drafts in ``correct`` with yes, every other with no; drafts are numbered."""

    def script(request: Request, rng: random.Random) -> str:
        if request.kind != "VERIFY":
            return policy_script(request, rng)
        number = int(request.prompt.rpartition("\\boxed{")[2].rstrip("}"))
        return f"<think>hm</think>\\boxed{{{'yes' if number in correct else 'no'}}}"

    return script


def _drafted(scripted: ScriptedPolicy, n: int) -> tuple[Policy, list[Solution]]:
    """A policy that made ``n`` drafts; draft i says boxed i."""
    numbers = iter(range(n))
    answers = scripted.script

    def script(request: Request, rng: random.Random) -> str:
        if request.kind == "SOLVE":
            return f"<think>x</think>\\boxed{{{next(numbers)}}}"
        return answers(request, rng)  # type: ignore[return-value]

    scripted.script = script
    policy = plain_policy(scripted)
    calls = asyncio.run(policy.solve([EMPTY] * n, role=DRAFT, round=0))
    return policy, [policy.solution(call) for call in calls]


@pytest.mark.parametrize("distiller", ["shared_topk", "per_sample_topk"])
def test_topk_keeps_the_drafts_that_the_policy_verified_with_yes(distiller: str):
    policy, drafts = _drafted(ScriptedPolicy(script=_verdicts({1, 4, 6})), 8)
    options = distiller_options(top_k=3)
    workspaces = asyncio.run(DISTILLERS[distiller].draw(_context(policy, drafts, 5, options, 0)))
    assert len(workspaces) == 5
    for workspace in workspaces:
        read = {int(part.partition("}")[0]) for part in workspace.text.split("\\boxed{")[1:]}
        assert read == {1, 4, 6}


def test_topk_prefers_an_unclear_verdict_to_a_no():
    def script(request: Request, rng: random.Random) -> str:
        unclear = request.prompt.endswith("\\boxed{2}")
        return "<think>hm</think>who knows" if unclear else "<think>hm</think>\\boxed{no}"

    policy, drafts = _drafted(ScriptedPolicy(script=script), 4)
    options = distiller_options(top_k=1)
    (workspace,) = asyncio.run(most_trusted(_context(policy, drafts, 1, options, 0)))
    assert workspace.text == "[1] \\boxed{2}"


def test_equal_verdicts_are_told_apart_by_the_seed():
    def kept(seed: int) -> str:
        policy, drafts = _drafted(ScriptedPolicy(script=_verdicts(set(range(6)))), 6)
        options = distiller_options(top_k=1)
        return asyncio.run(most_trusted(_context(policy, drafts, 1, options, seed)))[0].text

    assert len({kept(seed) for seed in range(20)}) > 3
    assert kept(5) == kept(5)


@pytest.mark.parametrize("distiller", ["shared_topk", "per_sample_topk"])
@pytest.mark.parametrize("top_k", [4, 5])
def test_topk_makes_no_verify_call_when_nothing_has_to_be_left_out(distiller: str, top_k: int):
    policy = ScriptedPolicy()
    roll(policy, operator((4, 1), distiller, top_k=top_k), num_answers=3)
    assert policy.of("VERIFY") == []


@pytest.mark.parametrize(("distiller", "passes"), [("shared_topk", 1), ("per_sample_topk", 3)])
def test_topk_verifies_each_draft_once_per_ranking(distiller: str, passes: int):
    policy = ScriptedPolicy()
    rollout = roll(policy, operator((4, 1), distiller, top_k=2), num_answers=3)
    judged = [call.parents for call in rollout.calls if call.role == VERIFY]
    assert sorted(judged) == sorted([(draft,) for draft in range(4)] * passes)


def test_rankings_of_single_samples_run_side_by_side():
    async def most_at_once() -> int:
        at_once, most = 0, 0
        scripted = ScriptedPolicy()

        async def generate(prompt, sampling, n):
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0)
            at_once -= 1
            return await scripted.generate(prompt, sampling, n)

        policy = plain_policy(SamplerOf(generate))
        calls = await policy.solve([EMPTY] * 4, role=DRAFT, round=0)
        drafts = [policy.solution(call) for call in calls]
        options = distiller_options(top_k=2)
        await DISTILLERS["per_sample_topk"].draw(_context(policy, drafts, 3, options, 0))
        return most

    assert asyncio.run(most_at_once()) == 3 * 4


def test_random_k_draws_each_draft_equally_often_and_anew_for_each_call():
    policy, drafts = _drafted(ScriptedPolicy(), 6)
    options = distiller_options(top_k=2)
    workspaces = asyncio.run(random_k(_context(policy, drafts, 900, options, 1)))
    for i in range(6):
        share = sum(f"\\boxed{{{i}}}" in workspace.text for workspace in workspaces) / 900
        assert abs(share - 2 / 6) < 0.07
    assert all(len(set(w.parents)) == 2 for w in workspaces)
    assert len({w.parents for w in workspaces}) == 6 * 5


def test_a_summary_that_holds_no_boxed_answer_is_a_workspace():
    def script(request: Request, rng: random.Random) -> str:
        return "<think>hm</think>they agree" if request.kind == "DISTIL" else boxed(request, rng)

    policy = ScriptedPolicy(script=script)
    roll(policy, operator((3, 1), "global_summary"))
    assert [r.prompt for r in policy.of("REFINE")] == ["REFINE question p WORKSPACE they agree"]


@pytest.mark.parametrize(("admits", "kept"), [("only_correct", {0, 2, 4}), ("only_wrong", {1, 3, 5})])
def test_the_oracle_admits_what_the_verifier_holds_right_or_wrong(admits: str, kept: set[int]):
    policy, drafts = _drafted(ScriptedPolicy(), 6)
    options = replace(distiller_options("oracle", top_k=6), oracle=admits)
    (workspace,) = asyncio.run(DISTILLERS["oracle"].draw(_context(policy, drafts, 1, options, 0)))
    assert {int(part.partition("}")[0]) for part in workspace.text.split("\\boxed{")[1:]} == kept


def test_an_oracle_that_admits_no_draft_leaves_the_plain_problem():
    script = ScriptedPolicy(script=lambda request, rng: "<think>x</think>\\boxed{3}")
    rollout = roll(script, operator((4, 1), "oracle"))
    assert script.of("REFINE") == []
    assert rollout.counts["workspace/fallback"] == 1
    assert rollout.calls[rollout.answers[0]].parents == (0, 1, 2, 3)


def test_all_keeps_every_usable_draft():
    policy, drafts = _drafted(ScriptedPolicy(), 7)
    options = distiller_options("all", top_k=1)
    (workspace,) = asyncio.run(DISTILLERS["all"].draw(_context(policy, drafts, 1, options, 0)))
    assert sorted(workspace.parents) == [draft.call for draft in drafts]
    assert all(draft.text in workspace.text for draft in drafts)
