"""Operators: the graph of calls that each makes, on a scripted policy."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from fakes import (
    CODEC,
    EvenIsCorrect,
    Reply,
    Request,
    SamplerOf,
    ScriptedPolicy,
    boxed,
    operator,
    problem,
    roll,
    settings,
)

from rollout.budget import budget
from rollout.collection.groups import group_rollout
from rollout.operators import run_operator
from rollout.records import ANALYSE, ATTEMPTS, DISTIL, DRAFT, REFINE, TRACE, VERIFY, Rollout, Usage
from rollout.sampler import CallFailed
from rollout.workspace import DISTILLERS

UNUSABLE = {
    "unclosed": Reply(text="<think>secret thought \\boxed{2}"),
    "reopened": Reply(text="<think>a</think>\\boxed{1}<think>secret thought"),
    "no answer": Reply(text="<think>secret thought</think>it is two"),
    "truncated": Reply(text="<think>secret thought</think>so \\boxed{2", finish="length"),
    "truncated in thinking": Reply(text="<think>secret thought \\boxed{2}", finish="length"),
    "empty": Reply(text="<think>secret thought \\boxed{2}</think>  "),
    "nothing": Reply(text=""),
}


def _attempts(rollout: Rollout, round: int) -> list[int]:
    return [i for i, c in enumerate(rollout.calls) if c.round == round and c.role in ATTEMPTS]


def _draft_numbers(prompt: str) -> list[str]:
    return [word for word in prompt.replace("[", " [").split() if word.startswith("[")]


@pytest.mark.parametrize("distiller", DISTILLERS)
@pytest.mark.parametrize("schedule", [(1,), (1, 1, 1), (4, 1), (8, 4, 1), (3, 1, 2, 1), (2, 2, 2, 2, 1)])
def test_calls_of_every_round_equal_the_schedule(schedule: tuple[int, ...], distiller: str):
    rollout = roll(ScriptedPolicy(), operator(schedule, distiller, top_k=2))
    assert [len(_attempts(rollout, r)) for r in range(len(schedule))] == list(schedule)
    assert list(rollout.answers) == _attempts(rollout, len(schedule) - 1)


def test_a_trace_is_one_call_on_the_plain_problem():
    policy = ScriptedPolicy()
    rollout = roll(policy, operator((1,), name="trace"))
    assert [call.role for call in rollout.calls] == [TRACE]
    assert [request.prompt for request in policy.requests] == ["SOLVE question p"]


def test_sequential_refinement_sees_the_previous_solution_only():
    policy = ScriptedPolicy()
    rollout = roll(policy, operator((1, 1, 1, 1), name="sr"))
    solutions = [call.text.partition("</think>")[2] for call in rollout.calls]
    assert len(set(solutions)) == 4
    assert [r.prompt for r in policy.requests] == [
        "SOLVE question p",
        *(f"REFINE question p WORKSPACE [1] {solution}" for solution in solutions[:3]),
    ]


@pytest.mark.parametrize("distiller", [name for name, each in DISTILLERS.items() if not each.updates])
def test_a_workspace_is_rebuilt_from_the_last_rounds_drafts_only(distiller: str):
    def script(request: Request, rng: random.Random) -> str:
        if request.kind == "DISTIL":  # the summary repeats what it read
            return "<think>hm</think>" + request.prompt.partition("FROM ")[2]
        return boxed(request, rng)

    rollout = roll(ScriptedPolicy(script=script), operator((4, 3, 1), distiller, top_k=4))
    (last,) = rollout.answers
    read = _read(rollout, last)
    first, second = ({_number(rollout, i) for i in _attempts(rollout, r)} for r in (0, 1))
    assert read <= second
    assert read and not read & first


def _number(rollout: Rollout, call: int) -> str:
    return rollout.calls[call].text.rpartition("{")[2].rstrip("}")


def _read(rollout: Rollout, call: int) -> set[str]:
    """The numbers that stand in the call's prompt."""
    text = CODEC.decode(rollout.calls[call].prompt_ids)
    return {part.partition("}")[0] for part in text.split("\\boxed{")[1:]}


@pytest.mark.parametrize("distiller", DISTILLERS)
def test_training_differs_from_inference_only_in_the_width_of_the_last_round(distiller: str):
    pdr = operator((4, 3, 1), distiller, top_k=2)
    one, many = roll(ScriptedPolicy(), pdr), roll(ScriptedPolicy(), pdr, num_answers=5)
    assert (len(one.answers), len(many.answers)) == (1, 5)
    before = [[c.completion_ids for c in r.calls if c.round == 0] for r in (one, many)]
    assert before[0] == before[1]
    attempts = [[r.calls[i].completion_ids for i in _attempts(r, 1)] for r in (one, many)]
    assert attempts[0] == attempts[1]


@pytest.mark.parametrize("distiller", ["global_summary", "shared_topk"])
def test_refinements_of_a_shared_workspace_have_equal_prompts_and_one_request(distiller: str):
    policy = ScriptedPolicy()
    rollout = roll(policy, operator((4, 1), distiller, top_k=2), num_answers=6)
    assert len({rollout.calls[i].prompt_ids for i in rollout.answers}) == 1
    assert [request.n for request in policy.of("REFINE")] == [6]
    assert len({rollout.calls[i].completion_ids for i in rollout.answers}) == 6


@pytest.mark.parametrize("distiller", ["per_sample_topk", "random_k"])
def test_refinements_with_different_workspaces_do_not_share_a_baseline(distiller: str):
    rollout = roll(ScriptedPolicy(), operator((6, 1), distiller, top_k=2), num_answers=8)
    contexts = Counter(rollout.calls[i].prompt_ids for i in rollout.answers)
    assert len(contexts) > 1
    groups = group_rollout(rollout, lambda calls, verdicts, drafts: [_Zero()] * len(calls))
    assert {g.prompt_ids: len(g.samples) for g in groups} == contexts
    assert len({g.key for g in groups}) == len(groups)


class _Zero:
    total = 0.0
    parts = {"outcome": 0.0}  # noqa: RUF012


@pytest.mark.parametrize("distiller", DISTILLERS)
@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_unusable_draft_and_raw_thoughts_never_enter_a_workspace(distiller: str, kind: str):
    def script(request: Request, rng: random.Random) -> Reply | str:
        return UNUSABLE[kind] if request.kind == "SOLVE" and rng.random() < 0.5 else boxed(request, rng)

    policy = ScriptedPolicy(script=script)
    rollout = roll(policy, operator((8, 2, 1), distiller, top_k=3), seed=3)
    broken = [c for c in rollout.calls if c.role == DRAFT and c.text == UNUSABLE[kind].text]
    assert 0 < len(broken) < 8
    later = policy.of("REFINE") + policy.of("DISTIL") + policy.of("VERIFY")
    assert len(later) >= 2
    for request in later:
        assert "secret thought" not in request.prompt
        assert "think>" not in request.prompt
        assert "it is two" not in request.prompt and "so \\boxed{2" not in request.prompt
    assert sum(n for label, n in rollout.counts.items() if label.startswith("label/")) == 8 + 2
    assert rollout.counts["label/ok"] == 10 - len(broken)


@pytest.mark.parametrize("distiller", DISTILLERS)
@pytest.mark.parametrize("schedule", [(4, 3), (1, 3)])
def test_without_a_usable_draft_the_plain_problem_is_solved_and_counted(
    distiller: str, schedule: tuple[int, ...]
):
    policy = ScriptedPolicy(script=lambda request, rng: f"<think>secret thought {rng.random()}")
    rollout = roll(policy, operator(schedule, distiller))
    assert {request.prompt for request in policy.requests} == {"SOLVE question p"}
    assert rollout.counts["workspace/fallback"] == 1
    assert rollout.counts["label/unclosed"] == schedule[0]
    assert all(rollout.calls[i].parents == tuple(range(schedule[0])) for i in rollout.answers)


def test_an_unusable_summary_falls_back_to_the_plain_problem_and_is_counted():
    def script(request: Request, rng: random.Random) -> str:
        return "<think>never closed" if request.kind == "DISTIL" else boxed(request, rng)

    policy = ScriptedPolicy(script=script)
    rollout = roll(policy, operator((3, 1), "global_summary"))
    assert policy.of("REFINE") == []
    assert rollout.counts["workspace/fallback"] == 1
    (answer,) = rollout.answers
    assert [rollout.calls[i].role for i in rollout.calls[answer].parents] == [DISTIL]


@pytest.mark.parametrize("distiller", DISTILLERS)
def test_a_usable_workspace_counts_no_fallback(distiller: str):
    rollout = roll(ScriptedPolicy(), operator((3, 1), distiller))
    assert rollout.counts["workspace/fallback"] == 0


@pytest.mark.parametrize("distiller", [name for name in DISTILLERS if name != "oracle"])
def test_the_order_of_drafts_is_shuffled_by_the_seed(distiller: str):
    def order(seed: int) -> tuple[int, ...]:
        policy = ScriptedPolicy(script=_numbered_by_arrival())
        roll(policy, operator((4, 1), distiller, top_k=4), seed=seed)
        reader = policy.of("DISTIL") or policy.of("REFINE")
        return tuple(int(part.partition("}")[0]) for part in reader[0].prompt.split("\\boxed{")[1:])

    orders = [order(seed) for seed in range(12)]
    assert all(sorted(o) == [0, 1, 2, 3] for o in orders)
    assert len(set(orders)) > 4
    assert orders == [order(seed) for seed in range(12)]


def _numbered_by_arrival():
    drafts = iter(range(100))

    def script(request: Request, rng: random.Random) -> str:
        if request.kind == "SOLVE":
            return f"<think>x</think>\\boxed{{{next(drafts)}}}"
        return boxed(request, rng)

    return script


@pytest.mark.parametrize("distiller", DISTILLERS)
def test_equal_seeds_give_equal_rollouts_whatever_ends_first(distiller: str):
    def fingerprint(timing: int, seed: int) -> list[tuple[object, ...]]:
        clock = random.Random(timing)
        policy = ScriptedPolicy(delay=lambda request: clock.random() * 0.004)
        rollout = roll(policy, operator((5, 4, 3, 1), distiller, top_k=2), seed=seed, num_answers=3)
        return [(c.role, c.round, c.parents, c.prompt_ids, c.completion_ids) for c in rollout.calls]

    runs = [fingerprint(timing, seed=1) for timing in range(4)]
    assert runs[1:] == runs[:-1]
    assert fingerprint(0, seed=2) != runs[0]


@pytest.mark.parametrize("distiller", DISTILLERS)
def test_every_call_points_back_to_the_calls_it_was_built_from(distiller: str):
    rollout = roll(ScriptedPolicy(), operator((4, 2, 1), distiller, top_k=2))
    for place, call in enumerate(rollout.calls):
        assert all(parent < place for parent in call.parents)
        assert (call.role == DRAFT) == (not call.parents)
        if call.role == VERIFY:
            assert [rollout.calls[p].round for p in call.parents] == [call.round]


def test_every_attempt_has_a_verdict_and_no_other_call():
    rollout = roll(ScriptedPolicy(), operator((4, 2, 1), top_k=2))
    assert {rollout.calls[i].role for i in rollout.verdicts} == {DRAFT, REFINE}
    assert len(rollout.verdicts) == 4 + 2 + 1
    assert any(call.role == VERIFY for call in rollout.calls)


def test_a_slow_problem_does_not_hold_back_the_others():
    async def both() -> list[str]:
        released = asyncio.Event()
        ends: list[str] = []
        scripted = ScriptedPolicy()

        async def generate(prompt, sampling, n):
            if "question slow" in CODEC.decode(prompt.ids):
                await released.wait()
            return await scripted.generate(prompt, sampling, n)

        shared = settings(SamplerOf(generate))

        async def one(name: str) -> None:
            await run_operator(problem(name), operator((4, 2, 1)), shared, EvenIsCorrect(), 0)
            ends.append(name)

        slow = asyncio.create_task(one("slow"))
        await asyncio.wait_for(asyncio.gather(*(one(f"fast {i}") for i in range(5))), timeout=10)
        assert not slow.done()
        released.set()
        await asyncio.wait_for(slow, timeout=10)
        return ends

    ends = asyncio.run(both())
    assert ends[-1] == "slow" and len(ends) == 6


def _answering(*answers: str):
    """A script whose drafts say ``answers`` in their order, and whose verifications say yes to the last."""
    drafts = iter(answers)

    def script(request: Request, rng: random.Random) -> str:
        if request.kind == "VERIFY":
            trusted = f"boxed{{{answers[-1]}}}" in request.prompt
            return f"<think>hm</think>\\boxed{{{'yes' if trusted else 'no'}}}"
        return f"<think>x</think>\\boxed{{{next(drafts)}}}"

    return script


@pytest.mark.parametrize(
    ("answers", "chosen"),
    [
        (("4", "5", "5"), 1),
        (("5", "4", "04"), 1),  # 4 and 04 are the same number
        (("3", "2", "2", "3"), 0),  # a tie goes to the first
        (("x", "x", "x", "8"), 3),  # what is no answer does not vote
        (("x", "y"), 0),
    ],
)
def test_a_majority_is_counted_by_equivalence(answers: tuple[str, ...], chosen: int):
    policy = ScriptedPolicy(script=_answering(*answers))
    rollout = roll(policy, operator((len(answers),), name="majority"))
    assert rollout.answers == (chosen,)
    assert [call.role for call in rollout.calls] == [DRAFT] * len(answers)
    assert len(policy.requests) == 1  # one context, one request


def test_best_of_n_takes_the_draft_that_the_policy_trusts_most_and_waits_for_all():
    policy = ScriptedPolicy(script=_answering("1", "2", "3", "6"))
    rollout = roll(policy, operator((4,), name="best_of_n"))
    assert rollout.answers == (3,)
    assert set(rollout.waited_for) == set(range(8))
    assert [call.role for call in rollout.calls] == [DRAFT] * 4 + [VERIFY] * 4


def test_best_of_n_of_nothing_usable_verifies_nothing():
    policy = ScriptedPolicy(script=lambda request, rng: "<think>never closed")
    rollout = roll(policy, operator((3,), name="best_of_n"))
    assert rollout.answers == (0,)
    assert policy.of("VERIFY") == []


def test_error_analysis_stands_between_two_rounds_of_sequential_refinement():
    def script(request: Request, rng: random.Random) -> str:
        if request.kind == "ANALYSE":
            return "<think>secret thought</think>the sign is wrong"
        return boxed(request, rng)

    policy = ScriptedPolicy(script=script)
    rollout = roll(policy, operator((1, 1, 1), name="sr", error_analysis=True))
    assert [call.role for call in rollout.calls] == [DRAFT, ANALYSE, REFINE, ANALYSE, REFINE]
    first = rollout.calls[0].text.partition("</think>")[2]
    assert policy.of("ANALYSE")[0].prompt == f"ANALYSE question p SAYS {first}"
    expected = f"REFINE question p WORKSPACE [1] {first} ERRORS the sign is wrong"
    assert policy.of("REFINE")[0].prompt == expected
    assert rollout.calls[2].parents == (0, 1)
    assert rollout.calls[4].parents == (2, 3)


@dataclass(slots=True)
class LateDrafts:
    """Drafts of which all but the first two never end unless they are aborted."""

    scripted: ScriptedPolicy
    aborted: dict[str, asyncio.Event]

    async def generate(self, prompt, sampling, n=1, request_id=None):
        completions = await self.scripted.generate(prompt, sampling, n, request_id)
        if request_id is not None:
            self.aborted[request_id] = asyncio.Event()
            if len(self.aborted) > 2:
                await asyncio.wait_for(self.aborted[request_id].wait(), timeout=10)
                cut = completions[0].token_ids[:5]
                usage = Usage(prompt_tokens=len(prompt.ids), completion_tokens=5)
                return [
                    replace(completions[0], token_ids=cut, logprobs=(-1.0,) * 5, finish="abort", usage=usage)
                ]
        return completions

    async def abort(self, request_ids):
        for request_id in request_ids:
            self.aborted[request_id].set()


def test_a_distil_starts_at_its_quorum_and_late_drafts_are_aborted_and_paid_for():
    scripted = ScriptedPolicy()
    rollout = roll(LateDrafts(scripted, {}), operator((4, 1), "all", quorum=0.5))
    drafts = [call for call in rollout.calls if call.role == DRAFT]
    assert [call.finish for call in drafts].count("abort") == 2
    assert rollout.counts["draft/aborted"] == 2
    assert rollout.counts["label/ok"] == 2
    (answer,) = rollout.answers
    assert len(rollout.calls[answer].parents) == 2
    assert budget(rollout, answer).b_total == sum(call.num_tokens for call in rollout.calls)
    assert sum(call.num_tokens for call in drafts if call.finish == "abort") > 0


def test_a_draft_that_fails_ends_its_siblings_and_the_rollout():
    ended: list[int] = []

    class Failing:
        async def generate(self, prompt, sampling, n=1, request_id=None):
            if not ended:
                ended.append(0)
                raise CallFailed("gone")
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                ended.append(1)
                raise

        async def abort(self, request_ids):
            raise AssertionError("nothing is late")

    with pytest.raises(CallFailed, match="gone"):
        roll(Failing(), operator((3, 1), quorum=0.7))
    assert ended == [0, 1, 1]
