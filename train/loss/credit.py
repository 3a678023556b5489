"""Turns groups into rows with advantages and loss weights.

Credit is decided in two places. ``rollout.collection.groups`` decides *which calls* are trained, and with
*which reward*. This module decides which *baseline* turns the rewards of a group into advantages
(``credit``), and which *weight* each token has in the loss (``weigh``). A baseline uses only its own group;
only ``scale_rewards=batch`` shares a number between groups, the standard deviation over a role.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from configs.schema import AlgoConfig
from rollout.groups import Group, Sample
from rollout.records import AMORTISE, DISTIL, DRAFT
from train.batch.rows import Branch, Row
from train.loss.advantages import group_advantages, make_estimator
from train.loss.averaging import mean_over_sequences, mean_over_tokens, role_weights
from train.loss.losses import LOSSES


def credit(groups: Sequence[Group], algo: AlgoConfig) -> list[Row]:
    """Returns one row per group, in order, each completion with its advantage within the group.

    Roles are credited separately: with ``scale_rewards=batch`` the scale is that of all groups of a role.
    Samples that ``mask_truncated_completions`` excludes still count in their group's baseline. Amortised
    answers have no advantage: they are imitated.
    """
    advantages = {
        place: np.zeros(len(group.samples))
        for place, group in enumerate(groups)
        if group.key.role == AMORTISE
    }
    for role in {group.key.role for group in groups} - {AMORTISE}:
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
    """Returns the estimator of a role: drafts may use ``pass_at_k`` independently of the other roles."""
    return "pass_at_k" if role == DRAFT and algo.draft_credit == "pass_at_k" else algo.advantage_estimator


def _branch(sample: Sample, role: str, advantage: float, *, mask_truncated: bool) -> Branch:
    call, taught = sample.call, sample.teacher_logprobs
    trained = np.asarray(call.train_mask, dtype=bool)  # (L,): False for forced tokens
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
        teacher_prompt_ids=sample.teacher_prompt_ids,
        teacher_logprobs=np.asarray(taught, dtype=np.float32) if taught else None,
    )


def split_updates(rows: Sequence[Row], num_updates: int) -> list[list[Row]]:
    """Deals whole groups into ``num_updates`` parts, each role evenly. Empty parts are dropped."""
    by_role: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_role[row.branches[0].role].append(row)
    dealt = [row for role in sorted(by_role) for row in by_role[role]]
    # A stride over rows sorted by role gives every part the same mix of roles, up to one row per role.
    parts = [dealt[start::num_updates] for start in range(num_updates)]
    return [part for part in parts if part]


def weigh(rows: Sequence[Row], algo: AlgoConfig, *, max_completion_length: int) -> list[Row]:
    """Sets the weight of every token in the loss of one update.

    With ``share_r`` of a role from ``role_weights``, a token of sequence i of that role gets

        policy_weight    = share_r * token_weights_i              (the average of ``loss_type``)
        imitation_weight = share_r * sft_coef / (positives * L_i)   (0 if i is not a positive sample;
                           sft_average=tokens: share_r * sft_coef / sum of the positives' L_j)
        entropy_weight   = share_r * entropy_coef / sum_j L_j

    where ``L_i`` counts trained tokens and ``positives`` the role's correct samples that have any. Samples
    that cannot change the policy count in the averages and are then dropped, because they only cost time.

    Amortised answers have no share: they are ``positives`` of their own, whose only weight is
    ``imitation_weight = amortise_coef / (their number * L_i)``.

    Args:
        rows: Rows of one update, from ``credit``.
        algo: Loss type, coefficients and shares.
        max_completion_length: Longest completion that may be sampled; used by ``mean_over_longest``.

    Returns:
        The rows in order, without dropped completions; rows that lose all completions are dropped.

    Raises:
        ValueError: As ``role_weights`` does.
    """
    branches = [branch for row in rows for branch in row.branches]
    shares = role_weights(
        (branch.role for branch in branches if branch.role != AMORTISE),
        operator_fraction=algo.operator_fraction,
        coefs={DISTIL: algo.distil_coef, DRAFT: algo.draft_coef},
    )
    weighted: dict[int, Branch] = {}
    for role, share in shares.items():
        of_role = [branch for branch in branches if branch.role == role]
        lengths = [branch.num_trained for branch in of_role]
        # One weight per sequence, shared by all of its tokens.
        policy = LOSSES[algo.loss_type].token_weights(lengths, max_completion_length)
        positives = [branch for branch in of_role if branch.is_positive and branch.num_trained]
        average = mean_over_tokens if algo.sft_average == "tokens" else mean_over_sequences
        each = average([branch.num_trained for branch in positives])
        # The same for every token of the role, whichever average the policy loss uses.
        entropy = algo.entropy_coef * mean_over_tokens(lengths)[0]
        imitation = {id(branch): weight for branch, weight in zip(positives, each, strict=True)}
        for branch, weight in zip(of_role, policy, strict=True):
            weighted[id(branch)] = replace(
                branch,
                policy_weight=share * weight,
                imitation_weight=share * algo.sft_coef * imitation.get(id(branch), 0.0),
                entropy_weight=share * entropy,
            )
    amortised = [branch for branch in branches if branch.role == AMORTISE]
    each = mean_over_sequences([branch.num_trained for branch in amortised])
    for branch, weight in zip(amortised, each, strict=True):
        weighted[id(branch)] = replace(branch, imitation_weight=algo.amortise_coef * weight)
    # The KL term, the entropy bonus and the critic learn from every token, also where the advantage is 0.
    keeps_all = bool(algo.beta or algo.entropy_coef or algo.has_critic)
    result = []
    for row in rows:
        of_row = (weighted[id(branch)] for branch in row.branches)
        kept = tuple(b for b in of_row if b.has_gradient or (keeps_all and b.num_trained))
        if kept:
            result.append(replace(row, branches=kept))
    return result
