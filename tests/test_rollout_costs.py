"""What operators declare of their calls, against the calls that they make."""

from collections import defaultdict

import pytest
from fakes import CODEC, ScriptedPolicy, operator, roll

from rollout.distiller import DistilContext, DistilCost, Distiller
from rollout.operators import Operator, ParallelDistilRefine
from rollout.records import ATTEMPTS, REFINE, Rollout, Workspace
from rollout.stages import Stage
from rollout.workspace import DISTILLERS


def _even(request, rng):
    """Right by the fakes' grader, so that an oracle admits every draft."""
    if request.kind == "VERIFY":
        return f"<think>hm</think>\\boxed{{{rng.choice(['yes', 'no'])}}}"
    return f"<think>hm</think>\\boxed{{{2 * rng.randrange(10**6)}}}"


def _made(rollout: Rollout) -> dict[tuple[str, int], tuple[int, set[int]]]:
    """Calls by role and round: how many, and how many solutions their prompts hold."""
    number: dict[tuple[str, int], int] = defaultdict(int)
    read: dict[tuple[str, int], set[int]] = defaultdict(set)
    for call in rollout.calls:
        number[call.role, call.round] += 1
        read[call.role, call.round].add(CODEC.decode(call.prompt_ids).count("\\boxed{"))
    return {kind: (number[kind], read[kind]) for kind in number}


def _declared(stages: tuple[Stage, ...]) -> dict[tuple[str, int], tuple[int, set[int]]]:
    found = {(stage.role, stage.round): (stage.number, {stage.solutions}) for stage in stages}
    assert len(found) == len(stages)
    return found


@pytest.mark.parametrize("distiller", DISTILLERS)
@pytest.mark.parametrize("schedule", [(4, 1), (2, 1), (6, 4, 1), (3, 4, 2, 1)])
@pytest.mark.parametrize(("num_workspaces", "answers"), [(None, 1), (None, 3), (2, 6)])
@pytest.mark.parametrize("middle_readers", [1, 2])
def test_pdr_makes_the_calls_that_it_declares(
    distiller: str, schedule: tuple[int, ...], num_workspaces: int | None, answers: int, middle_readers: int
):
    pdr = operator(schedule, distiller, top_k=2, num_workspaces=num_workspaces, middle_readers=middle_readers)
    rollout = roll(ScriptedPolicy(script=_even), pdr, num_answers=answers)
    assert _made(rollout) == _declared(pdr.calls(answers))


@pytest.mark.parametrize("num_workspaces", [None, 2])
@pytest.mark.parametrize("distiller", DISTILLERS)
def test_refinements_have_the_prompts_that_are_declared(distiller: str, num_workspaces: int | None):
    pdr = operator((9, 1), distiller, top_k=4, num_workspaces=num_workspaces)
    policy = ScriptedPolicy(script=_even)
    roll(policy, pdr, num_answers=4)
    answers = pdr.calls(4)[-1]
    assert (answers.role, answers.bound) == (REFINE, pdr.options.distil.kappa)
    assert [request.n for request in policy.of("REFINE")] == [answers.per_context] * answers.contexts


@pytest.mark.parametrize(
    ("name", "schedule"), [("trace", (1,)), ("sr", (1, 1, 1)), ("majority", (5,)), ("best_of_n", (5,))]
)
@pytest.mark.parametrize("error_analysis", [False, True])
def test_every_other_operator_makes_the_calls_that_it_declares(
    name: str, schedule: tuple[int, ...], error_analysis: bool
):
    each = operator(schedule, name=name, error_analysis=error_analysis)
    for answers in (1, 4) if name in ("trace", "sr") else (1,):
        rollout = roll(ScriptedPolicy(script=_even), each, num_answers=answers)
        assert _made(rollout) == _declared(each.calls(answers))
        assert sum(stage.number for stage in each.calls(answers)) == len(rollout.calls)


class _Undeclared(Operator):
    async def answer(self, policy, rng, num_answers=1):
        raise NotImplementedError


class _AnswersInAnotherWay(ParallelDistilRefine):
    async def answer(self, policy, rng, num_answers=1):
        raise NotImplementedError


class _OnlyRenamed(ParallelDistilRefine):
    pass


@pytest.mark.parametrize("kind", [_Undeclared, _AnswersInAnotherWay])
def test_an_operator_that_declares_no_calls_says_so(kind: type[Operator]):
    with pytest.raises(
        ValueError, match=rf"test_rollout_costs:{kind.__name__} declares no calls.*docs/operators"
    ):
        kind(operator((4, 1)).options).calls()


def test_an_operator_that_answers_as_its_parent_keeps_what_it_declares():
    pdr = operator((4, 1))
    assert _OnlyRenamed(pdr.options).calls(3) == pdr.calls(3)


async def _nothing(context: DistilContext) -> list[Workspace]:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (Distiller(_nothing), r"operator\.distiller is 'mine', which declares no cost.*docs/operators"),
        (Distiller(_nothing, cost=lambda *_: 2), r"distiller mine must be a DistilCost, got 2\."),  # type: ignore[arg-type, return-value]
    ],
)
def test_a_distiller_that_declares_no_cost_says_so(
    monkeypatch: pytest.MonkeyPatch, own: Distiller, message: str
):
    monkeypatch.setitem(DISTILLERS, "mine", own)
    with pytest.raises(ValueError, match=message):
        operator((4, 1), "mine").calls()


def test_calls_of_a_distiller_stand_in_its_round():
    own = Distiller(
        _nothing,
        one_each=True,
        cost=lambda drafts, num, options: DistilCost(
            solutions=drafts, calls=(Stage(role="analyse", contexts=drafts), Stage(role="verify"))
        ),
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(DISTILLERS, "mine", own)
        stages = operator((3, 2, 1), "mine").calls()
    assert [(stage.role, stage.round, stage.number) for stage in stages] == [
        ("draft", 0, 3),
        ("analyse", 0, 3),
        ("verify", 0, 1),
        ("refine", 1, 2),
        ("analyse", 1, 2),
        ("verify", 1, 1),
        ("refine", 2, 1),
    ]
    assert [stage.contexts for stage in stages if stage.role in ATTEMPTS] == [1, 2, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"role": "summary"}, r"Stage\.role is 'summary'; choose one of trace, draft, refine"),
        ({"role": "verify", "contexts": 0}, r"Stage\.contexts must be at least 1, got 0\."),
        ({"role": "verify", "solutions": -1}, r"Stage\.solutions must be at least 0, got -1\."),
    ],
)
def test_a_stage_that_makes_no_sense_is_refused(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Stage(**wrong)
