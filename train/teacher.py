"""Log-probs of a teacher on the student's own samples: the policy itself, reading a workspace.

Only samples with a teacher's prompt are scored (``rollout.collection.teacher``). The passes are planned like
those of an update, so that every rank makes equally many, and every rank then gets all results.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from train.batch.collate import MicroBatch
from train.batch.packing import Bin
from train.batch.rows import Branch, Row
from train.distributed import from_rank_zero, gather_objects

Plan = Callable[[Sequence[Row]], Sequence[Bin]]
"""Returns this rank's micro-batches of rows; equally many on every rank."""
Score = Callable[[Bin], tuple[MicroBatch, Tensor]]
"""Returns a micro-batch and the log-probs of its trained tokens, shape ``(N,)``, without gradient."""


def with_teacher(rows: Sequence[Row], plan: Plan, score: Score, accelerator: Accelerator) -> list[Row]:
    """Returns ``rows`` with ``Branch.teacher_logprobs`` where a completion has a teacher's prompt.

    Every rank must call it with the same rows.
    """
    taught = [_as_read(row, branch) for row in rows for branch in row.branches if branch.teacher_prompt_ids]
    if not taught:
        return list(rows)
    scored: dict[str, np.ndarray] = {}
    for bin in plan(taught):
        batch, logprobs = score(bin)
        for place, name in enumerate(batch.call_ids):
            scored[name] = logprobs[batch.sequences == place].cpu().numpy()
    everything: dict[str, np.ndarray] = {}
    for of_rank in gather_objects(accelerator, scored):
        everything |= of_rank
    everything = from_rank_zero(accelerator, everything, what="the teacher's log-probs")
    return [
        replace(row, branches=tuple(_with(branch, everything) for branch in row.branches)) for row in rows
    ]


def _as_read(row: Row, branch: Branch) -> Row:
    """Returns the completion in the context in which its teacher scores it."""
    prompt = np.asarray(branch.teacher_prompt_ids, dtype=np.int64)
    return replace(row, prompt_ids=prompt, branches=(branch,))


def _with(branch: Branch, scored: dict[str, np.ndarray]) -> Branch:
    if not branch.teacher_prompt_ids:
        return branch
    logprobs = np.zeros(len(branch.train_mask), dtype=np.float32)
    logprobs[branch.train_mask] = scored[branch.call_id]
    return replace(branch, teacher_logprobs=logprobs)
