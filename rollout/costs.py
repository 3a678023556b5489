"""The calls of operators of several rounds, before they run: what ``Operator.calls`` returns."""

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
    """Sequential refinement: each round reads the last solution, and by option a list of its errors."""
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
    """PDR: drafts, then for each round the calls of its distil and the refinements that read its workspaces.

    Args:
        widths: Calls of each round, the last one's being the answers.
        options: Which distiller.
        num_workspaces: Workspaces of the last round; None leaves it to the distiller.

    Raises:
        ValueError: If the distiller declares no cost, or anything but a ``DistilCost``.
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
                contexts=num,
                per_context=width // num,
                solutions=cost.solutions,
                bound=options.kappa,
            )
        )
    return tuple(stages)
