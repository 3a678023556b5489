"""The largest micro-batches of a run, as the trainer's packing makes them."""

from configs.schema import JobConfig
from launch.memory import MicroBatch
from launch.workload import Calls, Workload


def largest_micro_batches(config: JobConfig, work: Workload) -> list[MicroBatch]:
    """For each kind of trained call the micro-batch that needs the most memory.

    ``train.tokens_per_micro_batch`` bounds the padded tokens, but a row that is longer gets a micro-batch of
    its own; a group that shares its prompt is one row as long as the bound allows.
    """
    bound = config.train.tokens_per_micro_batch
    return [_largest(calls, work.call_limit, bound) for calls in work.trained]


def _largest(calls: Calls, limit: int, bound: int) -> MicroBatch:
    prompt, single = calls.longest_prompt, calls.longest_prompt + limit
    if not calls.shares_prompt:
        return MicroBatch(tokens=max(bound, single))
    length = max(single, min(bound, prompt + calls.per_context * limit))
    together = min(calls.per_context, max(1, (length - prompt) // calls.completion))
    return MicroBatch(tokens=max(bound, length), repeated=prompt * together)
