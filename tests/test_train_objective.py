import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_fakes import make_group
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl_oracle import MAX_COMPLETION_LENGTH, Oracle, load_sharpened, ragged_groups, sampled_nearly_by

from configs.schema import AlgoConfig
from configs.schema.algo import IMPORTANCE_SAMPLING_MODES
from rollout.groups import Group
from rollout.records import REFINE, TRACE
from train.batch.collate import MicroBatch, collate
from train.batch.packing import make_plan, separate, share_prompts
from train.batch.rows import Row
from train.loss.credit import credit, weigh
from train.loss.losses import LOSSES, imitation_nll
from train.loss.objective import objective
from train.model.attention import SHARED_PROMPT
from train.model.policy import PolicyModel

EPSILON = 0.2
EPSILON_HIGH = {"cispo": 1.3}
DISTINCT = [name for name in LOSSES if name != "bnpo"]
"""Bnpo is dapo by another name."""
SHARED_WITH_TRL = [name for name in DISTINCT if name not in ("reinforce", "ppo")]


@pytest.fixture
def model(tiny_policy: Path) -> PreTrainedModel:
    policy = load_sharpened(tiny_policy)
    policy.set_attn_implementation(SHARED_PROMPT)
    return policy


def own_loss(model: PreTrainedModel, rows: list[Row], algo: AlgoConfig) -> torch.Tensor:
    """Loss of rows in one micro-batch, as the loop adds it up."""
    batch = collate(rows, roles=[TRACE, REFINE])
    return loss_of(model, batch, algo)


def loss_of(model: PreTrainedModel, batch: MicroBatch, algo: AlgoConfig) -> torch.Tensor:
    logprobs, entropies, _ = PolicyModel(model, temperature=1.0, entropy_has_gradient=True)(batch)
    return objective(batch, logprobs, entropies, algo)[0]


def scored(batch: MicroBatch, *, old: PreTrainedModel | None = None, ref: PreTrainedModel | None = None):
    """The batch with the log-probs of other models."""
    with torch.no_grad():
        of = {
            name: PolicyModel(model, temperature=1.0)(batch)[0] if model is not None else None
            for name, model in (("old_logprobs", old), ("ref_logprobs", ref))
        }
    return replace(batch, **of)


def trl_rows(groups: list[Group], algo: AlgoConfig) -> list[Row]:
    return separate(weigh(credit(groups, algo), algo, max_completion_length=MAX_COMPLETION_LENGTH))


def trl_options(loss_type: str) -> dict[str, str]:
    """What TRL calls this loss."""
    if loss_type == "gspo":
        return {"loss_type": "grpo", "importance_sampling_level": "sequence"}
    return {"loss_type": loss_type}


def assert_equal_loss_and_gradients(
    loss: torch.Tensor, model: PreTrainedModel, expected: torch.Tensor, theirs: PreTrainedModel
) -> None:
    # Terms of about 1 cancel in the loss, so that its own size is no measure of rounding.
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    loss.backward()
    expected.backward()
    wanted = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        assert wanted[name].grad.abs().max() > 0
        assert (parameter.grad - wanted[name].grad).norm() <= 1e-5 * wanted[name].grad.norm(), name


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
@pytest.mark.parametrize("loss_type", SHARED_WITH_TRL)
@pytest.mark.component
def test_loss_and_every_gradient_equal_trls(loss_type, scale_rewards, tiny_policy, model, tmp_path):
    groups = ragged_groups(seed=7)
    options = {
        "scale_rewards": scale_rewards,
        "epsilon": EPSILON,
        "epsilon_high": EPSILON_HIGH.get(loss_type, 0.28),
    }
    oracle = Oracle(tiny_policy, groups, tmp_path, **trl_options(loss_type), **options)
    algo = AlgoConfig(loss_type=loss_type, sft_coef=0.0, **options)
    loss = own_loss(model, trl_rows(groups, algo), algo)
    assert_equal_loss_and_gradients(loss, model, oracle.loss(), oracle.trainer.model)


@pytest.mark.component
def test_trls_bnpo_of_one_micro_batch_equals_our_loss_of_that_name(tiny_policy, model, tmp_path):
    groups = ragged_groups(seed=7)
    oracle = Oracle(tiny_policy, groups, tmp_path, loss_type="bnpo", epsilon=EPSILON, epsilon_high=0.28)
    algo = AlgoConfig(loss_type="bnpo", sft_coef=0.0, epsilon=EPSILON, epsilon_high=0.28)
    loss = own_loss(model, trl_rows(groups, algo), algo)
    assert_equal_loss_and_gradients(loss, model, oracle.loss(), oracle.trainer.model)


@pytest.mark.parametrize("use_bias_correction_kl", [True, False])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "cispo", "gspo"])
@pytest.mark.component
def test_with_a_reference_and_an_entropy_bonus_the_loss_equals_trls(
    loss_type, use_bias_correction_kl, tiny_policy, model, tmp_path
):
    groups = ragged_groups(seed=8)
    options = {
        "beta": 0.3,
        "entropy_coef": 0.05,
        "use_bias_correction_kl": use_bias_correction_kl,
        "epsilon_high": EPSILON_HIGH.get(loss_type, 0.28),
    }
    # TRL loads its reference from the folder, so that it is the policy before it was sharpened.
    oracle = Oracle(tiny_policy, groups, tmp_path, **trl_options(loss_type), **options)
    algo = AlgoConfig(loss_type=loss_type, sft_coef=0.0, **options)
    batch = collate(trl_rows(groups, algo), roles=[TRACE])
    batch = scored(batch, ref=AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32))
    loss = loss_of(model, batch, algo)
    assert_equal_loss_and_gradients(loss, model, oracle.loss(), oracle.trainer.model)


def shift(model: PreTrainedModel) -> None:
    """Moves a model as some updates would."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("loss_type", ["grpo", "cispo", "gspo"])
@pytest.mark.component
def test_after_the_first_update_the_old_log_probs_are_the_trainers_as_in_trl(
    loss_type, tiny_policy, model, tmp_path
):
    groups = ragged_groups(seed=9)
    options = {"num_iterations": 2, "epsilon": 0.05, "epsilon_high": EPSILON_HIGH.get(loss_type, 0.05)}
    oracle = Oracle(tiny_policy, groups, tmp_path, **trl_options(loss_type), **options)
    expected = oracle.loss(sampler_as_old=False, before_loss=shift)
    algo = AlgoConfig(loss_type=loss_type, sft_coef=0.0, **options)
    batch = scored(collate(trl_rows(groups, algo), roles=[TRACE]), old=model)
    shift(model)
    assert_equal_loss_and_gradients(loss_of(model, batch, algo), model, expected, oracle.trainer.model)


def test_in_the_first_of_several_updates_every_ratio_is_one(model):
    algo = AlgoConfig(loss_type="grpo", num_updates=2, sft_coef=0.0)
    batch = collate(trl_rows(ragged_groups(seed=3), algo), roles=[TRACE])
    logprobs, entropies, _ = PolicyModel(model, temperature=1.0)(batch)
    _, terms = objective(batch, logprobs, entropies, algo)
    torch.testing.assert_close(terms.losses["loss"], -batch.advantages)
    assert not terms.means["clip"].any()


@pytest.mark.parametrize("limits", [(None, 1.4), (0.7, 1.4)])
@pytest.mark.parametrize("mode", IMPORTANCE_SAMPLING_MODES)
@pytest.mark.parametrize("loss_type", ["grpo", "cispo"])
@pytest.mark.component
def test_the_correction_of_the_mismatch_is_trls(loss_type, mode, limits, tiny_policy, model, tmp_path):
    groups = sampled_nearly_by(model, ragged_groups(seed=5), noise=0.3)
    options = {
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": mode,
        "vllm_importance_sampling_clip_min": limits[0],
        "vllm_importance_sampling_clip_max": limits[1],
        "epsilon_high": EPSILON_HIGH.get(loss_type, 0.28),
        "beta": 0.1,
    }
    oracle = Oracle(tiny_policy, groups, tmp_path, **trl_options(loss_type), **options)
    expected = oracle.loss(sampler_as_old=False, corrects_mismatch=True, before_loss=shift)
    algo = AlgoConfig(loss_type=loss_type, sft_coef=0.0, num_iterations=2, **options)
    reference = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
    batch = scored(collate(trl_rows(groups, algo), roles=[TRACE]), old=model, ref=reference)
    _, terms = objective(batch, batch.old_logprobs, batch.old_logprobs, algo)
    assert terms.means["mismatch_outside"].any() and not terms.means["mismatch_outside"].all()
    shift(model)
    assert_equal_loss_and_gradients(loss_of(model, batch, algo), model, expected, oracle.trainer.model)


def test_with_one_update_the_correction_needs_no_old_log_probs(model):
    groups = sampled_nearly_by(model, ragged_groups(seed=5), noise=0.3)
    algo = AlgoConfig(
        loss_type="grpo",
        sft_coef=0.0,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=None,
    )
    batch = collate(trl_rows(groups, algo), roles=[TRACE])
    without = loss_of(model, batch, algo)
    torch.testing.assert_close(without, loss_of(model, scored(batch, old=model), algo))
    # Without limits it is the gradient of the ratio against the sampler, which an uncapped CISPO has.
    slopes = []
    for options in (algo, AlgoConfig(loss_type="cispo", epsilon_high=1e9, sft_coef=0.0)):
        weighted = collate(trl_rows(groups, replace(algo, loss_type="dapo")), roles=[TRACE])
        model.zero_grad()
        loss_of(model, weighted, options).backward()
        slopes.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert (slopes[0] - slopes[1]).norm() < 1e-5 * slopes[1].norm()


@pytest.fixture
def rows(model: PreTrainedModel) -> Iterator[list[Row]]:
    rng = random.Random(3)
    groups = [
        make_group(rng, role=TRACE, prompt=4, lengths=[5, 9, 2, 7], name="t"),
        make_group(rng, role=REFINE, prompt=40, lengths=[6, 3, 11, 8], forced=True, name="r"),
    ]
    algo = AlgoConfig(epsilon_high=5.0, sft_coef=0.3)
    rows = weigh(credit(groups, algo), algo, max_completion_length=MAX_COMPLETION_LENGTH)
    assert len(rows) == 2
    yield rows


def gradient(model: PreTrainedModel, batches: list[list[Row]], algo: AlgoConfig) -> torch.Tensor:
    """Flat gradient of a loss that is added up over micro-batches."""
    model.zero_grad()
    for rows in batches:
        own_loss(model, rows, algo).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).clone()


@pytest.mark.parametrize("loss_type", DISTINCT)
def test_shared_prompts_padding_order_and_cutting_leave_the_gradient_as_it_is(loss_type, model, rows):
    algo = AlgoConfig(loss_type=loss_type, epsilon_high=5.0)
    apart = separate(rows)
    reference = gradient(model, [[row] for row in apart], algo)
    assert reference.norm() > 0
    shared = share_prompts(rows, tokens_per_row=200)
    assert max(len(row.branches) for row in shared) > 1
    plan = make_plan(shared, tokens_per_micro_batch=60, world_size=2, hidden_size=64)
    others = {
        "padded together": [apart],
        "in another order": [apart[::-1]],
        "shared": [shared],
        "planned": [list(part.rows) for step in plan for part in step],
    }
    for name, batches in others.items():
        difference = (gradient(model, batches, algo) - reference).norm() / reference.norm()
        assert difference < 1e-5, name


def test_shared_prompts_leave_the_log_probs_as_they_are(model, rows):
    policy = PolicyModel(model, temperature=0.7)
    with torch.no_grad():
        shared, _, _ = policy(collate(rows, roles=[TRACE, REFINE]))
        apart, _, _ = policy(collate(separate(rows), roles=[TRACE, REFINE]))
    torch.testing.assert_close(shared, apart, atol=2e-5, rtol=0)


def test_prompt_and_forced_tokens_get_no_gradient(model):
    group = make_group(random.Random(5), role=TRACE, prompt=6, lengths=[8], forced=True)
    algo = AlgoConfig(epsilon_high=5.0)
    (row,) = credit([group], algo)
    batch = collate([row], roles=[TRACE])
    kept = []
    backbone = model.base_model
    backbone.register_forward_hook(
        lambda _m, _a, out: (out.last_hidden_state.retain_grad(), kept.append(out.last_hidden_state))[0]
    )
    logprobs, _, _ = PolicyModel(model, temperature=1.0)(batch)
    logprobs.sum().backward()
    moved = kept[0].grad[0].abs().sum(-1).nonzero().flatten().tolist()
    # Position t predicts t + 1: the last prompt token (5) and on, but not those before forced 3 and 7.
    assert moved == [5, 6, 7, 9, 10, 11]


def test_imitation_makes_positive_samples_likelier_and_leaves_others_alone(model):
    group = make_group(random.Random(11), role=TRACE, prompt=5, lengths=[4, 6, 3, 7])
    assert 0 < sum(sample.is_correct for sample in group.samples) < 4
    algo = AlgoConfig(epsilon_high=5.0, sft_coef=1.0)
    rows = weigh(credit([group], algo), algo, max_completion_length=MAX_COMPLETION_LENGTH)
    batch = collate(separate(rows), roles=[TRACE])
    policy = PolicyModel(model, temperature=1.0)
    before, _, _ = policy(batch)
    positive = batch.imitation_weights > 0
    assert positive.any() and not positive.all()
    loss = imitation_nll(before, batch.imitation_weights)
    lengths = [len(s.call.completion_ids) for s in group.samples if s.is_correct]
    per_sample = before[positive].split(lengths)
    assert loss.item() == pytest.approx(-np.mean([lp.mean().item() for lp in per_sample]), rel=1e-5)
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad
    after, _, _ = policy(batch)
    assert after[positive].sum() > before[positive].sum()
