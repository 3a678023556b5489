"""The oracle is TRL's own trainer: its collation, its log-probs, its advantages, its loss."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from training_fakes import make_group
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from trl import GRPOConfig, GRPOTrainer

from configs.schema import AlgoConfig
from rollout.records import REFINE, TRACE, Group
from train.credit import credit, weigh
from train.losses import LOSSES, imitation_nll, mean_over_sequences, policy_loss, role_weights
from train.packing import Row, collate, make_plan, separate, share_prompts
from train.policy import PolicyModel

NUM_GENERATIONS = 4
EPSILON = 0.2
EPSILON_HIGH = {"grpo": 0.28, "dapo": 0.28, "cispo": 1.3}


def load(folder: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # Sharper than a fresh initialisation, so that log-probs, ratios and clips vary from token to token.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model


@pytest.fixture
def model(tiny_policy: Path) -> PreTrainedModel:
    return load(tiny_policy)


def ragged_groups(seed: int) -> list[Group]:
    """Prompts and completions of many lengths, one role, forced tokens; the reward is not constant."""
    rng = random.Random(seed)
    groups: list[Group] = []
    while len(groups) < 3:
        lengths = [rng.randint(1, 12) for _ in range(NUM_GENERATIONS)]
        group = make_group(
            rng, role=TRACE, prompt=rng.randint(2, 20), lengths=lengths, forced=True, name=str(len(groups))
        )
        if len({sample.reward for sample in group.samples}) > 1:
            groups.append(group)
    return groups


def own_loss(model: PreTrainedModel, rows: list[Row], algo: AlgoConfig, *, sft: bool = False) -> torch.Tensor:
    """Loss of rows in one micro-batch, as the loop adds it up."""
    batch = collate(rows, roles=[TRACE, REFINE])
    logprobs, _ = PolicyModel(model, temperature=1.0)(batch)
    token_loss, _ = policy_loss(algo.loss_type, epsilon_high=algo.epsilon_high).token_loss(
        logprobs,
        batch.sampler_logprobs,
        batch.advantages,
        epsilon=algo.epsilon,
        epsilon_high=algo.epsilon_high,
    )
    loss = (batch.policy_weights * token_loss).sum()
    return loss + imitation_nll(logprobs, batch.imitation_weights) if sft else loss


def trl_trainer(folder: Path, groups: list[Group], output: Path, **options: object) -> GRPOTrainer:
    """A real trainer whose rollouts are the given groups."""
    samples = [sample for group in groups for sample in group.samples]

    def rollouts(prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[list]]:
        return {
            "prompt_ids": [list(sample.call.prompt_ids) for sample in samples],
            "completion_ids": [list(sample.call.completion_ids) for sample in samples],
            "logprobs": [list(sample.call.sampler_logprobs) for sample in samples],
            "env_mask": [[int(kept) for kept in sample.call.train_mask] for sample in samples],
        }

    def reward(prompts: list[str], **_: object) -> list[float]:
        return [sample.reward for sample in samples]

    config = GRPOConfig(
        output_dir=str(output),
        per_device_train_batch_size=len(samples),
        num_generations=NUM_GENERATIONS,
        max_completion_length=32,
        beta=0.0,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        **options,
    )
    return GRPOTrainer(
        model=load(folder),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "x"}] * len(samples)),
        processing_class=AutoTokenizer.from_pretrained(folder),
        rollout_func=rollouts,
    )


def trl_loss(trainer: GRPOTrainer, groups: list[Group]) -> torch.Tensor:
    num_samples = sum(len(group.samples) for group in groups)
    inputs = trainer._generate_and_score_completions([{"prompt": "x"}] * num_samples)
    sampler = [torch.tensor(s.call.sampler_logprobs) for group in groups for s in group.samples]
    inputs["old_per_token_logps"] = torch.nn.utils.rnn.pad_sequence(sampler, batch_first=True)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer.compute_loss(trainer.model, inputs)


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "cispo"])
def test_loss_and_every_gradient_equal_trls(loss_type, scale_rewards, tiny_policy, model, tmp_path):
    groups = ragged_groups(seed=7)
    algo = AlgoConfig(
        loss_type=loss_type,
        scale_rewards=scale_rewards,
        epsilon=EPSILON,
        epsilon_high=EPSILON_HIGH[loss_type],
    )
    trainer = trl_trainer(
        tiny_policy,
        groups,
        tmp_path,
        loss_type=loss_type,
        scale_rewards=scale_rewards,
        epsilon=EPSILON,
        epsilon_high=EPSILON_HIGH[loss_type],
    )
    expected = trl_loss(trainer, groups)
    expected.backward()
    loss = own_loss(model, separate(weigh(credit(groups, algo), algo)), algo)
    loss.backward()
    # Terms of about 1 cancel in the loss, so that its own size is no measure of rounding.
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    theirs = dict(trainer.model.named_parameters())
    for name, parameter in model.named_parameters():
        wanted = theirs[name].grad
        assert wanted.abs().max() > 0
        assert (parameter.grad - wanted).norm() <= 1e-5 * wanted.norm(), name


@pytest.fixture
def rows(model: PreTrainedModel) -> Iterator[list[Row]]:
    rng = random.Random(3)
    groups = [
        make_group(rng, role=TRACE, prompt=4, lengths=[5, 9, 2, 7], name="t"),
        make_group(rng, role=REFINE, prompt=40, lengths=[6, 3, 11, 8], forced=True, name="r"),
    ]
    algo = AlgoConfig(epsilon_high=5.0, sft_coef=0.3)
    rows = weigh(credit(groups, algo), algo)
    assert len(rows) == 2
    yield rows


def gradient(model: PreTrainedModel, batches: list[list[Row]], algo: AlgoConfig) -> torch.Tensor:
    """Flat gradient of a loss that is added up over micro-batches."""
    model.zero_grad()
    for rows in batches:
        own_loss(model, rows, algo, sft=True).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).clone()


@pytest.mark.parametrize("loss_type", LOSSES)
def test_shared_prompts_padding_order_and_cutting_leave_the_gradient_as_it_is(loss_type, model, rows):
    algo = AlgoConfig(loss_type=loss_type, epsilon_high=5.0)
    apart = separate(rows)
    reference = gradient(model, [[row] for row in apart], algo)
    assert reference.norm() > 0
    shared = share_prompts(rows, tokens_per_row=200)
    assert max(len(row.branches) for row in shared) > 1
    plan = make_plan(shared, tokens_per_micro_batch=60, world_size=2)
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
        shared, _ = policy(collate(rows, roles=[TRACE, REFINE]))
        apart, _ = policy(collate(separate(rows), roles=[TRACE, REFINE]))
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
    logprobs, _ = PolicyModel(model, temperature=1.0)(batch)
    logprobs.sum().backward()
    moved = kept[0].grad[0].abs().sum(-1).nonzero().flatten().tolist()
    # Position t predicts t + 1: the last prompt token (5) and on, but not those before forced 3 and 7.
    assert moved == [5, 6, 7, 9, 10, 11]


@pytest.mark.parametrize("loss_type", LOSSES)
def test_a_step_makes_better_samples_likelier_and_worse_ones_less_likely(loss_type):
    logprobs = torch.tensor([-1.0, -1.0], requires_grad=True)
    loss, _ = LOSSES[loss_type].token_loss(
        logprobs, logprobs.detach(), torch.tensor([1.0, -1.0]), epsilon=0.2, epsilon_high=2.0
    )
    loss.sum().backward()
    assert logprobs.grad[0] < 0 < logprobs.grad[1]


def test_imitation_makes_positive_samples_likelier_and_leaves_others_alone(model):
    group = make_group(random.Random(11), role=TRACE, prompt=5, lengths=[4, 6, 3, 7])
    assert 0 < sum(sample.is_correct for sample in group.samples) < 4
    algo = AlgoConfig(epsilon_high=5.0, sft_coef=1.0)
    rows = weigh(credit([group], algo), algo)
    batch = collate(separate(rows), roles=[TRACE])
    policy = PolicyModel(model, temperature=1.0)
    before, _ = policy(batch)
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
    after, _ = policy(batch)
    assert after[positive].sum() > before[positive].sum()
    assert mean_over_sequences([]) == []


def test_on_policy_all_losses_share_one_gradient():
    advantages = torch.tensor([0.5, -1.5, 2.0], dtype=torch.float64)
    sampler = torch.tensor([-0.3, -2.0, -1.0], dtype=torch.float64)
    gradients = []
    for loss in LOSSES.values():
        logprobs = sampler.clone().requires_grad_()
        loss.token_loss(logprobs, sampler, advantages, epsilon=0.2, epsilon_high=1.5)[0].sum().backward()
        gradients.append(logprobs.grad)
    for other in gradients[1:]:
        assert torch.equal(other, gradients[0])


def test_role_weights_sum_to_one_and_absent_roles_give_theirs_away():
    assert role_weights([TRACE, REFINE], operator_fraction=0.25) == {REFINE: 0.25, TRACE: 0.75}
    assert role_weights([TRACE], operator_fraction=0.25) == {TRACE: 1.0}
    assert role_weights([REFINE, REFINE], operator_fraction=0.25) == {REFINE: 1.0}
    with pytest.raises(ValueError, match=r"algo\.operator_fraction is 1\.0"):
        role_weights([TRACE], operator_fraction=1.0)


def test_an_unknown_loss_and_a_cispo_cap_below_one_are_refused():
    with pytest.raises(ValueError, match=r"algo\.loss_type is 'ppo2'"):
        policy_loss("ppo2", epsilon_high=0.28)
    with pytest.raises(ValueError, match="largest ratio itself"):
        policy_loss("cispo", epsilon_high=0.28)
