"""Declared calls of operators with several rounds, as ``Operator.calls`` returns them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from rollout.distiller import DistilCost, DistillerOptions
from rollout.records import ANALYSE, DRAFT, REFINE, SELECT
from rollout.stages import Stage
from rollout.workspace import find_distiller


def sequential_calls(
    rounds: int, kappa: int, num_answers: int, *, error_analysis: bool = False
) -> tuple[Stage, ...]:
    """Returns the stages of sequential refinement.

    Each round reads the previous solution and, with ``error_analysis``, a list of its errors.
    """
    stages = [Stage(role=DRAFT)]
    for round in range(1, rounds):
        if error_analysis:
            stages.append(Stage(role=ANALYSE, round=round - 1, solutions=1))
        solutions = 2 if error_analysis else 1
        stages.append(Stage(role=REFINE, round=round, solutions=solutions, bound=kappa))
    return (*stages[:-1], replace(stages[-1], per_context=num_answers))


def select_calls(drafts: int, match_size: int, votes: int) -> tuple[Stage, ...]:
    """Returns the stages of a knockout among ``drafts`` solutions, in matches of at most ``match_size``.

    A match that is left with fewer solutions counts as a full one; a solution that is left alone needs none.

    Args:
        drafts: Traces to select from, all of which are usable.
        match_size: Solutions that one call compares; 0: all.
        votes: Calls in each match.
    """
    stages = [Stage(role=DRAFT, per_context=drafts)]
    left, size = drafts, match_size or drafts
    while left > 1:
        whole, rest = divmod(left, size)
        stages.append(
            Stage(
                role=SELECT,
                round=len(stages) - 1,
                contexts=whole + (rest > 1),
                per_context=votes,
                solutions=min(size, left),
            )
        )
        left = whole + (rest > 0)
    return tuple(stages)


def pdr_calls(
    widths: Sequence[int], options: DistillerOptions, num_workspaces: int | None
) -> tuple[Stage, ...]:
    """Returns the stages of PDR: drafts, then for each round its distil calls and the refinements.

    Args:
        widths: Calls of each round; the last round's are the answers.
        options: Options of the distiller.
        num_workspaces: Workspaces of the last round; None: the distiller's own number.

    Raises:
        ValueError: If the distiller declares no cost, or its cost is not a ``DistilCost``.
    """
    distiller = find_distiller(options.name)
    if distiller.cost is None:
        raise ValueError(
            f"operator.distiller is {options.name!r}, which declares no cost, so its calls are not known "
            "before it runs. Make it a rollout.distiller.Distiller with cost=... (README)."
        )
    stages = [Stage(role=DRAFT, per_context=widths[0])]
    for round, (drafts, width) in enumerate(pairwise(widths)):
        is_last = round == len(widths) - 2
        num = distiller.num_workspaces(width, num_workspaces if is_last else None)
        cost = distiller.cost(drafts, num, options)
        if not isinstance(cost, DistilCost):
            raise ValueError(f"The cost of the distiller {options.name} must be a DistilCost, got {cost!r}.")
        # The last workspace counts as one more solution; in the first round there is none.
        more = int(distiller.updates and round > 0)
        stages += [replace(stage, round=round, solutions=stage.solutions + more) for stage in cost.calls]
        stages.append(
            Stage(
                role=REFINE,
                round=round + 1,
                # ``num`` prompts, one per workspace; the round's ``width`` calls share them evenly.
                contexts=num,
                per_context=width // num,
                solutions=cost.solutions,
                bound=options.kappa,
            )
        )
    return tuple(stages)
