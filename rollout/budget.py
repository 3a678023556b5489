"""Token budgets of a rollout. They are computed here, from its calls, and nowhere else."""

from collections.abc import Sequence
from dataclasses import dataclass

from rollout.records import Call, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Tokens of a rollout. ``b_seq`` is a proxy for latency, ``b_total`` for cost."""

    b_seq: int
    b_total: int


def budget(rollout: Rollout, answer: int) -> Budget:
    """Returns B_seq and B_total of the rollout whose accepted call is ``rollout.calls[answer]``.

    B_total = sum of (in + out) over all calls.

    B_seq = sum of (in + out) over the accepted path, distil and verify calls included. Calls of one
    round run side by side, and the paper counts one of them without saying which. Here it is the heaviest
    chain of parents that ends in the answer or in a call that its choice waited for (a vote, a
    verification): the tokens that a user with unlimited slots waits for.

    Args:
        rollout: The graph of calls.
        answer: Position of the accepted call.
    """
    total = sum(call.num_tokens for call in rollout.calls)
    heaviest = chains(rollout.calls)
    path = max(heaviest[call] for call in (answer, *rollout.waited_for))
    return Budget(b_seq=path, b_total=total)


def chains(calls: Sequence[Call]) -> list[int]:
    """Returns for each call the tokens in + out of the heaviest chain of parents that ends in it.

    h(i) = tokens(i) + max over the parents p of i of h(p); a call without parents adds 0.
    """
    heaviest: list[int] = []
    # One pass is enough: parents stand before the calls that read them.
    for call in calls:
        before = max((heaviest[parent] for parent in call.parents), default=0)
        heaviest.append(before + call.num_tokens)
    return heaviest
