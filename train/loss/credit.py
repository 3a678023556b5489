"""Groups -> rows that know their advantage and their share in the loss.

Credit is decided in two places. ``rollout.collection.groups`` decides *who* is trained, and with *which
reward*. Here: which *baseline* turns the rewards of a group into advantages (``credit``), and what each token
weighs in the loss (``weigh``). A baseline never looks beyond its group; only ``scale_rewards=batch`` shares a
number between groups, the standard deviation over a role.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from configs.schema import AlgoConfig
from rollout.records import DISTIL, DRAFT, Group, Sample
from train.batch.rows import Branch, Row
from train.loss.advantages import group_advantages, make_estimator
from train.loss.averaging import mean_over_sequences, mean_over_tokens, role_weights
from train.loss.losses import LOSSES


def credit(groups: Sequence[Group], algo: AlgoConfig) -> list[Row]:
    """One row per group, in order, each completion with the advantage that its group gives it.

    Roles are credited apart: the reward scale of ``scale_rewards=batch`` is that of all groups of a role.
    Samples that ``mask_truncated_completions`` leaves out still count in their group's baseline.
    """
    advantages: dict[int, np.ndarray] = {}
    for role in {group.key.role for group in groups}:
        places = [place for place, group in enumerate(groups) if group.key.role == role]
        of_role = group_advantages(
            [[sample.reward for sample in groups[place].samples] for place in places],
            scale_rewards=algo.scale_rewards,
            center=make_estimator(_estimator(role, algo), k=algo.pass_k),
        )
        advantages |= zip(places, of_role, strict=True)
    return [
        Row(
            key=group.key,
            prompt_ids=np.asarray(group.prompt_ids, dtype=np.int64),
            branches=tuple(
                _branch(sample, group.key.role, advantage, mask_truncated=algo.mask_truncated_completions)
                for sample, advantage in zip(group.samples, advantages[place], strict=True)
            ),
        )
        for place, group in enumerate(groups)
    ]


def _estimator(role: str, algo: AlgoConfig) -> str:
    """Drafts may be judged by the best of them, whatever the answers are judged by."""
    return "pass_at_k" if role == DRAFT and algo.draft_credit == "pass_at_k" else algo.advantage_estimator


def _branch(sample: Sample, role: str, advantage: float, *, mask_truncated: bool) -> Branch:
    call = sample.call
    trained = np.asarray(call.train_mask, dtype=bool)
    if mask_truncated and call.finish == "length":
        trained = np.zeros_like(trained)
    return Branch(
        call_id=sample.call_id,
        role=role,
        is_positive=sample.is_correct,
        reward=sample.reward,
        completion_ids=np.asarray(call.completion_ids, dtype=np.int64),
        sampler_logprobs=np.asarray(call.sampler_logprobs, dtype=np.float32),
        train_mask=trained,
        advantages=np.full(len(trained), advantage),
    )


def split_updates(rows: Sequence[Row], num_updates: int) -> list[list[Row]]:
    """Deals whole groups to ``num_updates`` parts, each role evenly. Parts without a row are left out."""
    by_role: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_role[row.branches[0].role].append(row)
    dealt = [row for role in sorted(by_role) for row in by_role[role]]
    parts = [dealt[start::num_updates] for start in range(num_updates)]
    return [part for part in parts if part]


def weigh(rows: Sequence[Row], algo: AlgoConfig, *, max_completion_length: int) -> list[Row]:
    """Gives every token its weight in the loss of one update.

    For each role on its own: policy weights as ``loss_type`` averages (``token_weights``), imitation
    weights ``sft_coef / (positives * length)``, entropy weights ``entropy_coef / tokens``; all of them times
    the role's share (``role_weights``). Samples that cannot move the policy are counted in the averages,
    then left out: they would only cost time.
    """
    branches = [branch for row in rows for branch in row.branches]
    shares = role_weights(
        (branch.role for branch in branches),
        operator_fraction=algo.operator_fraction,
        coefs={DISTIL: algo.distil_coef, DRAFT: algo.draft_coef},
    )
    weighted: dict[int, Branch] = {}
    for role, share in shares.items():
        of_role = [branch for branch in branches if branch.role == role]
        lengths = [branch.num_trained for branch in of_role]
        policy = LOSSES[algo.loss_type].token_weights(lengths, max_completion_length)
        positives = [branch for branch in of_role if branch.is_positive and branch.num_trained]
        each = mean_over_sequences([branch.num_trained for branch in positives])
        entropy = algo.entropy_coef * mean_over_tokens(lengths)[0]
        imitation = {id(branch): weight for branch, weight in zip(positives, each, strict=True)}
        for branch, weight in zip(of_role, policy, strict=True):
            weighted[id(branch)] = replace(
                branch,
                policy_weight=share * weight,
                imitation_weight=share * algo.sft_coef * imitation.get(id(branch), 0.0),
                entropy_weight=share * entropy,
            )
    # The reference, the entropy and the critic take every token, whatever the advantage of its group.
    keeps_all = bool(algo.beta or algo.entropy_coef or algo.has_critic)
    result = []
    for row in rows:
        of_row = (weighted[id(branch)] for branch in row.branches)
        kept = tuple(b for b in of_row if b.has_gradient or (keeps_all and b.num_trained))
        if kept:
            result.append(replace(row, branches=kept))
    return result
