"""Declared calls of operators with several rounds, as ``Operator.calls`` returns them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from rollout.distiller import DistilCost, DistillerOptions
from rollout.records import ANALYSE, DRAFT, REFINE
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
        stages += [replace(stage, round=round) for stage in cost.calls]
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
