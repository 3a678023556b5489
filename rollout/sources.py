"""What of a draft is read: its solution, the whole completion, or the completion's end.

Raw thoughts enter a prompt only where an operator's own options name ``full`` or ``tail``; there they are
plain text (``rollout.codec.Codec``). The drafts that are read so are counted: the report names them.
"""

from collections.abc import Sequence
from dataclasses import replace

from rollout.distiller import DistillerOptions
from rollout.policy import Policy, Solution
from rollout.thinking import EMPTY, OK

COUNTED = "source/"
"""Start of the name of the count of drafts that were read with their thoughts; ``source/full``."""


def readable(policy: Policy, drafts: Sequence[int], options: DistillerOptions) -> list[Solution]:
    """Returns the drafts that may be read, with the text that is read, and counts the labels of all.

    A draft without a usable solution is left out. If ``options.source`` reads thoughts, only an empty or
    aborted one is.
    """
    solutions = [policy.solution(draft) for draft in drafts]
    policy.counts.update(f"label/{solution.label}" for solution in solutions)
    if options.source == "solution":
        return [solution for solution in solutions if solution.is_usable]
    whole = [_with_thoughts(policy, solution, options) for solution in solutions]
    read = [solution for solution in whole if solution.is_usable]
    policy.counts[f"{COUNTED}{options.source}"] += len(read)
    return read


def _with_thoughts(policy: Policy, solution: Solution, options: DistillerOptions) -> Solution:
    call = policy.recorded(solution.call)
    text = call.text.strip()
    if options.source == "tail":
        text = policy.codec.tail(text, options.tail_tokens)
    # A draft that was aborted was not finished by the policy: its thoughts break off anywhere.
    is_read = bool(text) and call.finish != "abort"
    return replace(solution, text=text, label=OK if is_read else EMPTY)
