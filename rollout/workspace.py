"""The bounded workspace and the distillers that make it from drafts.

A distiller maps the drafts of one round to the workspaces of the next round's calls: one that all calls
share, or one for each call. The workspace is rebuilt every round from that round's drafts only.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from rollout.policy import Policy, Solution
from rollout.prompts import join_drafts
from rollout.records import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillerOptions:
    """How drafts become a workspace."""

    name: str
    """A key of ``DISTILLERS``."""
    top_k: int
    """Drafts kept by a top-k or random-k distiller."""
    kappa: int
    """The bound, in tokens of the policy's own tokenizer."""
    oracle: str = "only_correct"
    """Drafts that the oracle admits: ``only_correct`` or ``only_wrong``."""


Distil = Callable[
    [Policy, Sequence[Solution], int, DistillerOptions, random.Random], Awaitable[list[Workspace]]
]
"""``await distil(policy, drafts, num, options, rng)`` gives ``num`` workspaces of the same drafts, each drawn
anew: by another sample of the summary, another ranking, another choice."""


@dataclass(frozen=True, slots=True)
class Distiller:
    """A way to make workspaces, and whether the calls of a round share one or have one each."""

    draw: Distil
    one_each: bool = False


async def distil(
    policy: Policy,
    drafts: Sequence[int],
    width: int,
    options: DistillerOptions,
    rng: random.Random,
    num_workspaces: int | None = None,
) -> list[Workspace]:
    """D(x, S): what each of the next round's ``width`` calls reads of this round's drafts.

    Drafts without a usable solution never enter a workspace. If none is left, the workspaces are empty:
    the next round falls back to the plain problem, which is counted.

    Args:
        policy: The policy on one problem.
        drafts: The round's calls.
        width: Calls of the next round.
        options: Which distiller.
        rng: For its choices.
        num_workspaces: Workspaces that the calls share evenly (training); None leaves it to the distiller.
    """
    distiller = DISTILLERS[options.name]
    num = num_workspaces or (width if distiller.one_each else 1)
    assert width % num == 0, "calls share workspaces evenly"
    usable = _usable(policy, drafts)
    if usable:
        drawn = await distiller.draw(policy, usable, num, options, rng)
    else:
        drawn = [Workspace(text="", parents=tuple(drafts))] * num
    workspaces = [workspace for workspace in drawn for _ in range(width // num)]
    _count(policy, workspaces)
    return workspaces


async def carry_over(policy: Policy, drafts: Sequence[int], kappa: int, *, error_analysis: bool) -> Workspace:
    """The workspace of sequential refinement: the last solution, and by option a list of its errors.

    Args:
        policy: The policy on one problem.
        drafts: The round's one call.
        kappa: The bound, in tokens.
        error_analysis: Ask the policy for the solution's errors first.
    """
    workspace = Workspace(text="", parents=tuple(drafts))
    usable = _usable(policy, drafts)
    if usable and error_analysis:
        workspace = _reviewed(policy, usable[0], await policy.analyse(usable[0]), kappa)
    elif usable:
        workspace = paste(policy, usable, kappa)
    _count(policy, [workspace])
    return workspace


def _usable(policy: Policy, drafts: Sequence[int]) -> list[Solution]:
    solutions = [policy.solution(draft) for draft in drafts]
    policy.counts.update(f"label/{solution.label}" for solution in solutions)
    return [solution for solution in solutions if solution.is_usable]


def _count(policy: Policy, workspaces: Sequence[Workspace]) -> None:
    for workspace in set(workspaces):
        policy.counts["workspace/fallback"] += workspace.is_empty
        policy.counts["workspace/truncated"] += workspace.truncated


def paste(policy: Policy, drafts: Sequence[Solution], kappa: int, extra: Sequence[int] = ()) -> Workspace:
    """A workspace that holds the drafts themselves, cut to ``kappa`` tokens.

    What is too long loses whole drafts from the end first; a single draft that is still too long
    loses its end.
    """
    parents = tuple(draft.call for draft in drafts) + tuple(extra)
    kept = list(drafts)
    while len(kept) > 1 and policy.codec.count(_pasted(policy, kept)) > kappa:
        kept.pop()
    text = _pasted(policy, kept)
    bounded = policy.codec.cut(text, kappa)
    truncated = len(kept) < len(drafts) or bounded != text
    return Workspace(text=bounded, parents=parents, truncated=truncated)


def _pasted(policy: Policy, drafts: Sequence[Solution]) -> str:
    return join_drafts(policy.prompts.draft_texts([draft.text for draft in drafts]))


def _reviewed(policy: Policy, draft: Solution, analysis: int, kappa: int) -> Workspace:
    """The draft with its error analysis; what is too long loses its end."""
    text = policy.prompts.analysis_text(_pasted(policy, [draft]), policy.solution(analysis).text)
    bounded = policy.codec.cut(text, kappa)
    return Workspace(text=bounded, parents=(draft.call, analysis), truncated=bounded != text)


async def global_summary(
    policy: Policy,
    drafts: Sequence[Solution],
    num: int,
    options: DistillerOptions,
    rng: random.Random,
) -> list[Workspace]:
    """One text for all, written by the policy: agreements, contradictions, results, open goals."""
    shuffled = rng.sample(drafts, len(drafts))
    calls = await policy.distil(shuffled, kappa=options.kappa, num=num)
    return [_summary(policy, call, options.kappa) for call in calls]


def _summary(policy: Policy, call: int, kappa: int) -> Workspace:
    summary = policy.solution(call)
    if not summary.is_usable:
        return Workspace(text="", parents=(call,))
    text = policy.codec.cut(summary.text, kappa)
    return Workspace(text=text, parents=(call,), truncated=text != summary.text)


async def most_trusted(
    policy: Policy,
    drafts: Sequence[Solution],
    num: int,
    options: DistillerOptions,
    rng: random.Random,
) -> list[Workspace]:
    """The k drafts that the policy itself holds most likely right; a verification pass for each workspace."""
    # A generator for each: what is drawn must not depend on which ranking ends first.
    own = [random.Random(rng.random()) for _ in range(num)]
    return await asyncio.gather(*(_most_trusted(policy, drafts, options, each) for each in own))


async def random_k(
    policy: Policy,
    drafts: Sequence[Solution],
    num: int,
    options: DistillerOptions,
    rng: random.Random,
) -> list[Workspace]:
    """k drafts drawn uniformly."""
    k = min(options.top_k, len(drafts))
    return [paste(policy, rng.sample(drafts, k), options.kappa) for _ in range(num)]


async def all_drafts(
    policy: Policy,
    drafts: Sequence[Solution],
    num: int,
    options: DistillerOptions,
    rng: random.Random,
) -> list[Workspace]:
    """Every usable draft, in random order."""
    return [paste(policy, rng.sample(drafts, len(drafts)), options.kappa) for _ in range(num)]


async def oracle(
    policy: Policy,
    drafts: Sequence[Solution],
    num: int,
    options: DistillerOptions,
    rng: random.Random,
) -> list[Workspace]:
    """Up to k drafts that the verifier holds right (or wrong): the paper's ablation, never for training."""
    verdicts = await asyncio.gather(*(policy.verdict(draft.call) for draft in drafts))
    wanted = options.oracle == "only_correct"
    admitted = [d for d, verdict in zip(drafts, verdicts, strict=True) if verdict.is_correct == wanted]
    if not admitted:
        return [Workspace(text="", parents=tuple(draft.call for draft in drafts))] * num
    return await random_k(policy, admitted, num, options, rng)


DISTILLERS: dict[str, Distiller] = {
    "global_summary": Distiller(global_summary),
    "shared_topk": Distiller(most_trusted),
    "per_sample_topk": Distiller(most_trusted, one_each=True),
    "random_k": Distiller(random_k, one_each=True),
    "all": Distiller(all_drafts),
    "oracle": Distiller(oracle),
}


async def trust(
    policy: Policy, drafts: Sequence[Solution], rng: random.Random
) -> tuple[list[Solution], list[int]]:
    """Ranks drafts by the policy's own verification: yes, unclear, no; ties broken by ``rng``.

    Returns the drafts, the most trusted first, and the verify calls.
    """
    shuffled = rng.sample(drafts, len(drafts))
    calls = await policy.verify(shuffled)
    verdicts = [policy.verification(call) for call in calls]
    ranked = sorted(range(len(shuffled)), key=lambda i: -verdicts[i])
    return [shuffled[i] for i in ranked], calls


async def _most_trusted(
    policy: Policy, drafts: Sequence[Solution], options: DistillerOptions, rng: random.Random
) -> Workspace:
    """The k most trusted drafts, in random order; no call is made when nothing has to be left out."""
    calls: list[int] = []
    kept = list(drafts)
    if len(drafts) > options.top_k:
        ranked, calls = await trust(policy, drafts, rng)
        kept = ranked[: options.top_k]
    return paste(policy, rng.sample(kept, len(kept)), options.kappa, calls)
