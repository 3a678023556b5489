import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_fakes import make_group, make_groups

from configs.schema import AlgoConfig
from rollout.records import REFINE, TRACE
from train.batch.collate import collate
from train.batch.packing import Bin, cost, make_plan, separate, share_prompts
from train.batch.rows import Branch, Row, RowShape
from train.loss.credit import credit, split_updates, weigh

HIDDEN = 64
ALGO = AlgoConfig(epsilon_high=5.0)
ROLES = [REFINE, TRACE]
LONGEST = 16
"""Tokens of the longest completion that ``make_groups`` makes."""


def completions(rows) -> Counter:
    return Counter(
        (tuple(row.prompt_ids), tuple(branch.completion_ids)) for row in rows for branch in row.branches
    )


def weighted_rows(plan: list[list[Bin]]) -> list[Row]:
    rows = [row for step in plan for part in step for row in part.rows]
    return [row for row in rows if any(branch.policy_weight for branch in row.branches)]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), budget=st.integers(20, 400), world=st.integers(1, 5), share=st.booleans())
def test_every_completion_is_trained_exactly_once_and_ranks_have_equal_micro_steps(
    seed, budget, world, share
):
    rows = weigh(credit(make_groups(seed), ALGO), ALGO, max_completion_length=LONGEST)
    if not rows:
        return
    packed = share_prompts(rows, tokens_per_row=budget) if share else separate(rows)
    plan = make_plan(packed, tokens_per_micro_batch=budget, world_size=world, hidden_size=HIDDEN)
    assert all(len(step) == world for step in plan)
    assert completions(weighted_rows(plan)) == completions(rows)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), budget=st.integers(20, 400))
def test_a_micro_batch_exceeds_the_token_budget_only_for_a_single_row(seed, budget):
    rows = share_prompts(credit(make_groups(seed), ALGO), tokens_per_row=budget)
    for step in make_plan(rows, tokens_per_micro_batch=budget, world_size=2, hidden_size=HIDDEN):
        for part in step:
            padded = len(part.rows) * max(row.num_tokens for row in part.rows)
            assert padded <= budget or len(part.rows) == 1


def test_filler_rows_have_no_weight():
    group = make_group(random.Random(0), role=TRACE, prompt=3, lengths=[5])
    plan = make_plan(credit([group], ALGO), tokens_per_micro_batch=100, world_size=3, hidden_size=HIDDEN)
    assert [len(step) for step in plan] == [3]
    batches = [collate(part.rows, roles=[TRACE]) for part in plan[0]]
    assert sum(bool(batch.policy_weights.any()) for batch in batches) <= 1
    assert all(len(batch.targets) for batch in batches)


def test_ranks_of_one_micro_step_get_about_the_same_work():
    rng = random.Random(1)
    groups = [make_group(rng, role=TRACE, prompt=5, lengths=[rng.randint(5, 60)] * 4) for _ in range(40)]
    plan = make_plan(
        separate(credit(groups, ALGO)), tokens_per_micro_batch=300, world_size=2, hidden_size=HIDDEN
    )
    loads = np.array([[sum(row.num_tokens for row in part.rows) for part in step] for step in plan])
    assert np.abs(loads[:, 0] - loads[:, 1]).sum() < 0.1 * loads.sum()


def test_work_is_balanced_by_attention_where_rows_of_one_length_differ_in_it():
    rng = random.Random(0)
    deep = [make_group(rng, role=TRACE, prompt=5, lengths=[rng.randint(900, 1000)]) for _ in range(6)]
    wide = [make_group(rng, role=REFINE, prompt=300, lengths=[rng.randint(80, 90)] * 8) for _ in range(6)]
    width = 4  # so narrow that attention is most of the work
    rows = share_prompts(credit(deep + wide, ALGO), tokens_per_row=2000)
    plan = make_plan(rows, tokens_per_micro_batch=1000, world_size=2, hidden_size=width)
    loads = np.array([[cost(part.rows, width) for part in step] for step in plan])
    assert np.abs(loads[:, 0] - loads[:, 1]).sum() < 0.05 * loads.sum()
    pairs = [part.rows[0].shape.pairs for step in plan for part in step]
    assert max(pairs) > 1.2 * min(pairs)


def test_the_pairs_of_a_row_are_those_that_attention_computes():
    shape = RowShape(prompt=3, completions=(2, 4))
    seen = sum(range(1, 4)) + sum(3 + i for n in (2, 4) for i in range(1, n + 1))
    assert shape.pairs == seen - 9 / 2  # half of each token's pair with itself is left out


def test_a_long_prompt_is_shared_and_a_short_one_is_not():
    rng = random.Random(0)
    long = make_group(rng, role=REFINE, prompt=60, lengths=[10] * 4)
    short = make_group(rng, role=TRACE, prompt=1, lengths=[10] * 4)
    shared = share_prompts(credit([long, short], ALGO), tokens_per_row=1000)
    assert sorted(len(row.branches) for row in shared) == [1, 1, 1, 1, 4]


def test_a_shared_row_stays_within_the_budget():
    group = make_group(random.Random(0), role=REFINE, prompt=60, lengths=[10] * 8)
    rows = share_prompts(credit([group], ALGO), tokens_per_row=100)
    assert [len(row.branches) for row in rows] == [4, 4]


def test_only_trained_tokens_are_listed_and_each_follows_its_predictor():
    group = make_group(random.Random(2), role=REFINE, prompt=20, lengths=[6, 9], forced=True)
    (row,) = credit([group], ALGO)
    batch = collate([row], roles=[REFINE])
    calls = [sample.call for sample in group.samples]
    assert len(batch.targets) == sum(sum(call.train_mask) for call in calls)
    first_of_second = sum(calls[0].train_mask)
    # The first token of every completion is predicted by the last token of the prompt.
    assert batch.predictors[0] == batch.predictors[first_of_second] == 19
    forced = [
        token
        for call in calls
        for token, keep in zip(call.completion_ids, call.train_mask, strict=True)
        if keep
    ]
    assert batch.targets.tolist() == forced


def test_positions_restart_after_the_prompt():
    group = make_group(random.Random(2), role=REFINE, prompt=3, lengths=[2, 3])
    batch = collate(credit([group], ALGO), roles=[REFINE])
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5]]
    assert batch.rows == (RowShape(prompt=3, completions=(2, 3)),)


def test_updates_get_whole_groups_of_both_kinds():
    rows = credit(make_groups(5), ALGO)
    parts = split_updates(rows, 3)
    assert completions(row for part in parts for row in part) == completions(rows)
    assert all({part[0].branches[0].role, part[-1].branches[0].role} == set(ROLES) for part in parts)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "gspo", "cispo", "reinforce"])
def test_policy_weights_of_a_role_sum_to_its_share_when_every_sample_can_learn(loss_type):
    algo = AlgoConfig(loss_type=loss_type, epsilon_high=5.0, operator_fraction=0.25, sft_coef=0.1)
    groups = [g for g in make_groups(8) if len({s.reward for s in g.samples}) > 1]
    assert {group.key.role for group in groups} == set(ROLES)
    sums: Counter = Counter()
    for row in weigh(credit(groups, algo), algo, max_completion_length=LONGEST):
        for branch in row.branches:
            sums[branch.role] += branch.policy_weight * branch.num_trained
    assert sums[TRACE] == pytest.approx(0.75)
    assert sums[REFINE] == pytest.approx(0.25)


@pytest.mark.parametrize(("average", "equal"), [("sequences", "per sample"), ("tokens", "per token")])
def test_imitation_weighs_positive_samples_or_their_tokens_equally(average: str, equal: str):
    algo = AlgoConfig(epsilon_high=5.0, operator_fraction=0.25, sft_coef=0.1, sft_average=average)
    rows = weigh(credit(make_groups(8), algo), algo, max_completion_length=LONGEST)
    positives = [b for row in rows for b in row.branches if b.is_positive and b.role == REFINE]
    assert len({branch.num_trained for branch in positives}) > 1
    per_token = [branch.imitation_weight for branch in positives]
    per_sample = [branch.imitation_weight * branch.num_trained for branch in positives]
    assert sum(per_sample) == pytest.approx(0.25 * 0.1)
    same, other = (per_sample, per_token) if equal == "per sample" else (per_token, per_sample)
    assert max(same) == pytest.approx(min(same)) and max(other) > 1.1 * min(other)
    assert not any(b.imitation_weight for row in rows for b in row.branches if not b.is_positive)


def test_samples_that_cannot_move_the_policy_are_left_out_but_counted():
    rng = random.Random(0)
    group = make_group(rng, role=TRACE, prompt=3, lengths=[4] * 6)
    (row,) = credit([group], ALGO)
    flat = Row(
        key=row.key,
        prompt_ids=row.prompt_ids,
        branches=tuple(_without_advantage(branch) for branch in row.branches),
    )
    (kept,) = weigh([row, flat], ALGO, max_completion_length=LONGEST)
    assert len(kept.branches) == 6
    assert kept.branches[0].policy_weight == pytest.approx(1 / 48)


def _without_advantage(branch: Branch) -> Branch:
    return replace(branch, advantages=np.zeros_like(branch.advantages), is_positive=False)


def test_truncated_samples_leave_the_loss_but_stay_in_the_baseline():
    group = make_group(random.Random(0), role=TRACE, prompt=3, lengths=[4, 4, 4, 4])
    first, *others = group.samples
    cut = replace(first, call=replace(first.call, finish="length"))
    group = replace(group, samples=(cut, *others))
    algo = AlgoConfig(epsilon_high=5.0, mask_truncated_completions=True)
    (row,) = credit([group], algo)
    (plain,) = credit([group], ALGO)
    assert row.branches[0].num_trained == 0
    assert [b.num_trained for b in row.branches[1:]] == [4, 4, 4]
    for masked, whole in zip(row.branches, plain.branches, strict=True):
        np.testing.assert_array_equal(masked.advantages, whole.advantages)
