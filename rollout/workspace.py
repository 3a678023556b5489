"""The bounded workspace and the distillers that make it from drafts.

A distiller maps the drafts of one round to the workspaces of the next round's calls: one that all calls
share, or one for each call. The workspace is rebuilt every round from that round's drafts only; only
``recursive_summary`` updates it. A custom distiller is one more function like these
(docs/operators.md).
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

from rollout.boxed import boxed_yes
from rollout.distiller import DistilContext, DistilCost, Distiller, DistillerOptions, is_distil
from rollout.imports import imported
from rollout.policy import Policy, Solution
from rollout.prompts import join_drafts
from rollout.records import DISTIL, EMPTY, VERIFY, Workspace
from rollout.sources import readable
from rollout.stages import Stage


async def distil(
    policy: Policy,
    drafts: Sequence[int],
    width: int,
    options: DistillerOptions,
    rng: random.Random,
    num_workspaces: int | None = None,
    previous: Sequence[Workspace] = (),
) -> list[Workspace]:
    """D(x, S): returns one workspace for each of the next round's ``width`` calls, made from the drafts.

    Drafts without a usable solution never enter a workspace. If no draft is usable, the workspaces are
    empty, or the last one where the distiller updates it: an empty one makes the next round fall back to the
    plain problem, which is counted.

    Args:
        policy: The policy on one problem.
        drafts: Positions of the round's calls.
        width: Calls of the next round.
        options: Options of the distiller.
        rng: Source of the distiller's choices.
        num_workspaces: Workspaces that the calls share evenly (training); None: the distiller's own number.
        previous: The workspaces that the drafts read, for a distiller that updates rather than rebuilds.

    Raises:
        ValueError: If the distiller does not return that number of workspaces, each within kappa.
    """
    distiller = find_distiller(options.name)
    # ``num`` distinct workspaces, each repeated ``width // num`` times.
    num = distiller.num_workspaces(width, num_workspaces)
    assert width % num == 0, "calls share workspaces evenly"
    usable = readable(policy, drafts, options)
    shared = previous[0] if distiller.updates and len(set(previous)) == 1 else EMPTY
    if usable:
        context = DistilContext(
            policy=policy, drafts=usable, num=num, options=options, rng=rng, previous=shared
        )
        drawn = await distiller.draw(context)
        _check(drawn, context)
    else:
        drawn = [Workspace(text=shared.text, parents=tuple(drafts))] * num
    workspaces = [workspace for workspace in drawn for _ in range(width // num)]
    _count(policy, workspaces)
    return workspaces


async def carry_over(
    policy: Policy, drafts: Sequence[int], options: DistillerOptions, *, error_analysis: bool
) -> Workspace:
    """Returns the workspace of sequential refinement: the last solution, optionally with its errors.

    Args:
        policy: The policy on one problem.
        drafts: Position of the round's only call.
        options: Bound of the workspace, and the part of the draft that it holds.
        error_analysis: First ask the policy for the solution's errors.
    """
    workspace = Workspace(text="", parents=tuple(drafts))
    usable = readable(policy, drafts, options)
    if usable and error_analysis:
        workspace = _reviewed(policy, usable[0], await policy.analyse(usable[0]), options.kappa)
    elif usable:
        workspace = paste(policy, usable, options.kappa)
    _count(policy, [workspace])
    return workspace


def _check(drawn: object, context: DistilContext) -> None:
    """Raises ``ValueError`` for an invalid result: a custom distiller may return anything."""
    name, kappa = context.options.name, context.options.kappa
    if not (isinstance(drawn, list) and all(isinstance(each, Workspace) for each in drawn)):
        raise ValueError(f"The distiller {name} must return a list of Workspace, got {drawn!r}.")
    if len(drawn) != context.num:
        raise ValueError(
            f"The distiller {name} returned {len(drawn)} workspaces where context.num asks for {context.num}."
        )
    if (most := max(context.policy.codec.count(each.text) for each in set(drawn))) > kappa:
        raise ValueError(
            f"The distiller {name} returned a workspace of {most} tokens, the bound is {kappa} "
            "(operator.workspace_tokens). rollout.workspace.paste cuts drafts to it."
        )


def _count(policy: Policy, workspaces: Sequence[Workspace]) -> None:
    # Each distinct workspace counts once, however many calls share it.
    for workspace in set(workspaces):
        policy.counts["workspace/fallback"] += workspace.is_empty
        policy.counts["workspace/truncated"] += workspace.truncated


def paste(policy: Policy, drafts: Sequence[Solution], kappa: int, extra: Sequence[int] = ()) -> Workspace:
    """Returns a workspace that holds the drafts themselves, cut to ``kappa`` tokens.

    If they are too long, whole drafts are dropped from the end; a single draft that is still too long is
    cut at its end. ``extra`` are further parents, such as the verify calls that ranked the drafts.
    """
    parents = tuple(draft.call for draft in drafts) + tuple(extra)
    kept = list(drafts)
    while len(kept) > 1 and policy.codec.count(_pasted(policy, kept)) > kappa:
        kept.pop()
    text = _pasted(policy, kept)
    bounded = _bounded(policy, text, kept, kappa)
    truncated = len(kept) < len(drafts) or bounded != text
    return Workspace(text=bounded, parents=parents, truncated=truncated)


def _pasted(policy: Policy, drafts: Sequence[Solution]) -> str:
    return join_drafts(policy.prompts.draft_texts([draft.text for draft in drafts]))


def _bounded(policy: Policy, text: str, drafts: Sequence[Solution], kappa: int) -> str:
    """Returns ``text``, which holds the pasted drafts, cut at its end to ``kappa`` tokens.

    A fence around a draft that is cut stays closed.
    """
    codec = policy.codec
    bounded = codec.cut(text, kappa)
    fence = policy.prompts.fence([draft.text for draft in drafts])
    if not fence or _pasted(policy, drafts) in bounded:
        return bounded
    closing = f"\n{fence}"
    # Joined texts may have more tokens than both have apart, so the result is counted again.
    for room in range(kappa - codec.count(closing), 0, -1):
        start = codec.cut(text, room)
        if fence in start and codec.count(start + closing) <= kappa:
            return start + closing
    return bounded


def _reviewed(policy: Policy, draft: Solution, analysis: int, kappa: int) -> Workspace:
    """Returns the draft with its error analysis, cut at its end to ``kappa`` tokens."""
    text = policy.prompts.analysis_text(_pasted(policy, [draft]), policy.solution(analysis).text)
    bounded = _bounded(policy, text, [draft], kappa)
    return Workspace(text=bounded, parents=(draft.call, analysis), truncated=bounded != text)


async def global_summary(context: DistilContext) -> list[Workspace]:
    """One summary of all drafts, written by the policy: agreements, contradictions, results, open goals."""
    return await _summaries(context, EMPTY)


async def recursive_summary(context: DistilContext) -> list[Workspace]:
    """As ``global_summary``, but the call also reads the last workspace, and updates it."""
    return await _summaries(context, context.previous)


async def _summaries(context: DistilContext, previous: Workspace) -> list[Workspace]:
    # Random order, so that no draft has a fixed position in the prompt.
    kappa, shuffled = context.options.kappa, context.rng.sample(context.drafts, len(context.drafts))
    calls = await context.policy.distil(shuffled, kappa=kappa, num=context.num, previous=previous)
    return [_summary(context.policy, call, kappa, previous.text) for call in calls]


def _summary(policy: Policy, call: int, kappa: int, otherwise: str) -> Workspace:
    """Returns the summary that a call wrote; the text ``otherwise`` if it wrote none that is usable."""
    summary = policy.solution(call)
    if not summary.is_usable:
        return Workspace(text=otherwise, parents=(call,))
    text = policy.codec.cut(summary.text, kappa)
    return Workspace(text=text, parents=(call,), truncated=text != summary.text)


async def most_trusted(context: DistilContext) -> list[Workspace]:
    """The k drafts that the policy itself ranks as most likely right; each workspace has its own ranking."""
    # One generator per workspace: the draws must not depend on which ranking ends first.
    own = [random.Random(context.rng.random()) for _ in range(context.num)]
    return await asyncio.gather(*(_paste_most_trusted(replace(context, rng=rng)) for rng in own))


async def random_k(context: DistilContext) -> list[Workspace]:
    """k drafts, drawn uniformly, in random order."""
    return [_drawn(context, context.draw_k()) for _ in range(context.num)]


async def all_drafts(context: DistilContext) -> list[Workspace]:
    """Every usable draft, in random order."""
    return [_drawn(context, len(context.drafts)) for _ in range(context.num)]


def _drawn(context: DistilContext, k: int) -> Workspace:
    drawn = context.rng.sample(context.drafts, min(k, len(context.drafts)))
    return paste(context.policy, drawn, context.options.kappa)


async def oracle(context: DistilContext) -> list[Workspace]:
    """Up to k drafts that the verifier judges right (or wrong): the paper's ablation, never for training."""
    drafts = context.drafts
    verdicts = await asyncio.gather(*(context.policy.verdict(draft.call) for draft in drafts))
    wanted = context.options.oracle == "only_correct"
    admitted = [d for d, verdict in zip(drafts, verdicts, strict=True) if verdict.is_correct == wanted]
    if not admitted:
        # An empty workspace, so that the calls fall back to the plain problem.
        return [Workspace(text="", parents=tuple(draft.call for draft in drafts))] * context.num
    return await random_k(replace(context, drafts=admitted))


def _cost_of_ranking(drafts: int, num: int, options: DistillerOptions) -> DistilCost:
    # Each of the ``num`` rankings verifies every draft; without a draft to leave out there is none.
    left_out = drafts > options.top_k
    calls = (Stage(role=VERIFY, contexts=drafts * num, solutions=1),) if left_out else ()
    return DistilCost(solutions=min(drafts, options.top_k), calls=calls)


def _cost_of_summary(drafts: int, num: int, options: DistillerOptions) -> DistilCost:
    return DistilCost(solutions=1, calls=(Stage(role=DISTIL, per_context=num, solutions=drafts),))


def _cost_of_k(drafts: int, num: int, options: DistillerOptions) -> DistilCost:
    return DistilCost(solutions=min(drafts, options.top_k))


def _cost_of_all(drafts: int, num: int, options: DistillerOptions) -> DistilCost:
    return DistilCost(solutions=drafts)


DISTILLERS: dict[str, Distiller] = {
    "global_summary": Distiller(global_summary, cost=_cost_of_summary),
    "recursive_summary": Distiller(recursive_summary, updates=True, cost=_cost_of_summary),
    "shared_topk": Distiller(most_trusted, cost=_cost_of_ranking),
    "per_sample_topk": Distiller(most_trusted, one_each=True, cost=_cost_of_ranking),
    "random_k": Distiller(random_k, one_each=True, cost=_cost_of_k),
    "all": Distiller(all_drafts, cost=_cost_of_all),
    "oracle": Distiller(oracle, cost=_cost_of_k),
}


def find_distiller(name: str, option: str = "operator.distiller") -> Distiller:
    """Returns the distiller of this name, or the one that ``package.module:function`` names.

    Args:
        name: A key of ``DISTILLERS``; or the import path of an async function of one ``DistilContext``, or of
            a ``Distiller``.
        option: Name of the option that holds ``name``, for the messages.

    Raises:
        ValueError: If the path does not import or names no distiller.
    """
    if name in DISTILLERS:
        return DISTILLERS[name]
    found = imported(option, name, "package.module:function")
    distiller = found if isinstance(found, Distiller) else Distiller(found)  # type: ignore[arg-type]
    if not is_distil(distiller.draw):
        raise ValueError(
            f"{option} is {name!r}, which is not a distiller. Write it as async def "
            f"{name.partition(':')[2]}(context: DistilContext) -> list[Workspace], or as a "
            "rollout.distiller.Distiller of such a function."
        )
    if distiller.draw is oracle:  # training refuses the oracle by its name
        raise ValueError(f"{option} is {name!r}, which is the built-in oracle. Write {option}=oracle.")
    return distiller


async def trust(
    policy: Policy, drafts: Sequence[Solution], rng: random.Random
) -> tuple[list[Solution], list[int]]:
    """Ranks drafts by the policy's own verification: yes, unclear, no; ties are broken by ``rng``.

    Returns:
        The drafts, the most trusted first, and the positions of the verify calls.
    """
    # The sort below is stable, so the shuffle decides ties.
    shuffled = rng.sample(drafts, len(drafts))
    calls = await policy.verify(shuffled)
    verdicts = [boxed_yes(policy.solution(call).text) for call in calls]
    ranked = sorted(range(len(shuffled)), key=lambda i: -verdicts[i])
    return [shuffled[i] for i in ranked], calls


async def _paste_most_trusted(context: DistilContext) -> Workspace:
    """Pastes the k most trusted drafts in random order; makes no call if no draft has to be left out."""
    k, rng = context.draw_k(), context.rng
    calls: list[int] = []
    kept = list(context.drafts)
    if len(context.drafts) > k:
        ranked, calls = await trust(context.policy, context.drafts, rng)
        kept = ranked[:k]
    return paste(context.policy, rng.sample(kept, len(kept)), context.options.kappa, calls)
