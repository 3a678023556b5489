"""Declared calls of operators with several rounds, as ``Operator.calls`` returns them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from rollout.distiller import DistilCost, DistillerOptions
from rollout.records import ANALYSE, DISTIL, DRAFT, REFINE, SELECT
from rollout.stages import Stage
from rollout.workspace import find_distiller


def sequential_calls(
    rounds: int, options: DistillerOptions, num_answers: int, *, error_analysis: bool = False
) -> tuple[Stage, ...]:
    """Returns the stages of sequential refinement.

    Each round reads the previous solution and, with ``error_analysis``, a list of its errors.
    """
    stages = [Stage(role=DRAFT)]
    for round in range(1, rounds):
        if error_analysis:
            stages.append(_reading(Stage(role=ANALYSE, round=round - 1, solutions=1), options))
        refine = _reading(Stage(role=REFINE, round=round, solutions=1, bound=options.kappa), options)
        stages.append(replace(refine, solutions=refine.solutions + error_analysis))
    return (*stages[:-1], replace(stages[-1], per_context=num_answers))


def _reading(stage: Stage, options: DistillerOptions) -> Stage:
    """Returns a stage whose solutions are the drafts, as what ``options.source`` reads of them."""
    if options.source == "solution":
        return stage
    tokens = options.tail_tokens if options.source == "tail" else None
    return replace(stage, solutions=0, chains=stage.solutions, chain_tokens=tokens)


def select_calls(drafts: int, match_size: int, votes: int, options: DistillerOptions) -> tuple[Stage, ...]:
    """Returns the stages of a knockout among ``drafts`` solutions, in matches of at most ``match_size``.

    A match that is left with fewer solutions counts as a full one; a solution that is left alone needs none.

    Args:
        drafts: Traces to select from, all of which are usable.
        match_size: Solutions that one call compares; 0: all.
        votes: Calls in each match.
        options: Part of a trace that is read.
    """
    stages = [Stage(role=DRAFT, per_context=drafts)]
    left, size = drafts, match_size or drafts
    while left > 1:
        whole, rest = divmod(left, size)
        match = Stage(
            role=SELECT,
            round=len(stages) - 1,
            contexts=whole + (rest > 1),
            per_context=votes,
            solutions=min(size, left),
        )
        stages.append(_reading(match, options))
        left = whole + (rest > 0)
    return tuple(stages)


def pdr_calls(
    widths: Sequence[int], options: DistillerOptions, num_workspaces: Sequence[int | None]
) -> tuple[Stage, ...]:
    """Returns the stages of PDR: drafts, then for each round its distil calls and the refinements.

    Args:
        widths: Calls of each round; the last round's are the answers.
        options: Options of the distiller.
        num_workspaces: Workspaces of each round after the first; None: the distiller's own number.

    Raises:
        ValueError: If the distiller declares no cost, or its cost is not a ``DistilCost``.
    """
    distiller = find_distiller(options.name)
    if distiller.cost is None:
        raise ValueError(
            f"operator.distiller is {options.name!r}, which declares no cost, so its calls are not known "
            "before it runs. Make it a rollout.distiller.Distiller with cost=... (docs/operators.md)."
        )
    stages = [Stage(role=DRAFT, per_context=widths[0])]
    for round, (drafts, width) in enumerate(pairwise(widths)):
        num = distiller.num_workspaces(width, num_workspaces[round])
        cost = distiller.cost(drafts, num, options)
        if not isinstance(cost, DistilCost):
            raise ValueError(f"The cost of the distiller {options.name} must be a DistilCost, got {cost!r}.")
        # The last workspace counts as one more solution; in the first round there is none.
        more = int(distiller.updates and round > 0)
        made = [_reading(replace(stage, round=round), options) for stage in cost.calls]
        stages += [replace(stage, solutions=stage.solutions + more) for stage in made]
        refine = Stage(
            role=REFINE,
            round=round + 1,
            # ``num`` prompts, one per workspace; the round's ``width`` calls share them evenly.
            contexts=num,
            per_context=width // num,
            solutions=cost.solutions,
            bound=options.kappa,
        )
        # A summary holds no draft, whatever its call read.
        is_summary = any(stage.role == DISTIL for stage in cost.calls)
        stages.append(refine if is_summary else _reading(refine, options))
    return tuple(stages)
