import random

import pytest
import torch
from tiny import tiny_model
from training_fakes import make_group
from transformers import PreTrainedModel

from configs.schema import AlgoConfig
from rollout.records import REFINE
from train.batch.collate import MicroBatch, collate
from train.batch.packing import separate
from train.batch.rows import Row
from train.loss.credit import credit, weigh
from train.loss.losses import clipped_value_loss
from train.loss.objective import objective, value_objective
from train.model.attention import SHARED_PROMPT
from train.model.critic import CriticModel
from train.model.policy import PolicyModel

ALGO = AlgoConfig(loss_type="ppo", epsilon=0.1, epsilon_high=0.2, sft_coef=0.0, cliprange_value=0.3)


def rows() -> list[Row]:
    group = make_group(random.Random(3), role=REFINE, prompt=30, lengths=[6, 9, 2], forced=True)
    return weigh(credit([group], ALGO), ALGO, max_completion_length=16)


def random_batch() -> MicroBatch:
    """Advantages, values and returns as a critic could have given them."""
    batch = collate(rows(), roles=[REFINE])
    generator = torch.Generator().manual_seed(0)
    names = ("advantages", "old_values", "returns")
    drawn = {name: torch.randn(len(batch.targets), generator=generator) for name in names}
    return batch.__class__(**{**{f: getattr(batch, f) for f in batch.__slots__}, **drawn})


def test_the_value_loss_is_its_formula():
    values = torch.tensor([0.0, 1.0, 2.0, -1.0], requires_grad=True)
    old, returns = torch.tensor([0.1, 0.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, -1.0, -0.2])
    loss, clipped = clipped_value_loss(values, old, returns, cliprange_value=0.3)
    # Third: clipped to 0.3, but (2 + 1)^2 is the larger. Second: to 0.3, and (0.3 - 2)^2 is the larger.
    torch.testing.assert_close(loss, torch.tensor([1.0, 2.89, 9.0, 0.64]) / 2)
    assert clipped.tolist() == [False, True, False, False]
    loss.sum().backward()
    # A value that went past its limit towards the return gains nothing; one that went away is called back.
    torch.testing.assert_close(values.grad, torch.tensor([-1.0, 0.0, 3.0, -0.8]))


def test_the_losses_of_ppo_are_their_formulas_on_a_ragged_batch():
    batch = random_batch()
    generator = torch.Generator().manual_seed(1)
    logprobs = batch.sampler_logprobs + 0.3 * torch.randn(len(batch.targets), generator=generator)
    values = torch.randn(len(batch.targets), generator=generator)
    policy_loss, _ = objective(batch, logprobs, torch.zeros_like(logprobs), ALGO)
    value_loss, _ = value_objective(batch, values, ALGO)
    surrogates, errors = [], []
    for t in range(len(batch.targets)):
        ratio = torch.exp(logprobs[t] - batch.sampler_logprobs[t]).item()
        advantage = batch.advantages[t].item()
        surrogates.append(min(ratio * advantage, min(max(ratio, 0.9), 1.2) * advantage))
        old, value = batch.old_values[t].item(), values[t].item()
        near = min(max(value, old - 0.3), old + 0.3)
        errors.append(max((value - batch.returns[t].item()) ** 2, (near - batch.returns[t].item()) ** 2))
    assert policy_loss.item() == pytest.approx(-sum(surrogates) / len(surrogates), rel=1e-5)
    assert value_loss.item() == pytest.approx(0.5 * sum(errors) / len(errors), rel=1e-5)


def _model() -> PreTrainedModel:
    model = tiny_model()
    model.set_attn_implementation(SHARED_PROMPT)
    return model


def test_a_value_is_that_of_the_state_before_its_token_whether_or_not_prompts_are_shared():
    critic = CriticModel(_model())
    torch.nn.init.normal_(critic.value_head.weight)
    shared = critic(collate(rows(), roles=[REFINE]))
    torch.testing.assert_close(shared, critic(collate(separate(rows()), roles=[REFINE])), atol=1e-5, rtol=0)
    (row,) = rows()
    expected = []
    for branch in row.branches:
        ids = torch.tensor([[*row.prompt_ids, *branch.completion_ids]])
        before = len(row.prompt_ids) - 1
        states = critic.backbone(input_ids=ids).last_hidden_state[0, before:-1]
        expected.append(critic.value_head(states)[torch.from_numpy(branch.train_mask)])
    torch.testing.assert_close(shared, torch.cat(expected), atol=1e-5, rtol=0)


def test_a_head_on_the_policys_trunk_sees_what_a_critic_with_that_backbone_sees():
    model = _model()
    policy = PolicyModel(model, temperature=1.0, has_value_head=True)
    critic = CriticModel(model)
    torch.nn.init.normal_(critic.value_head.weight)
    policy.value_head.load_state_dict(critic.value_head.state_dict())
    batch = collate(rows(), roles=[REFINE])
    torch.testing.assert_close(policy(batch)[2], critic(batch))
    policy(batch, only_values_learn=True)[2].sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert policy.value_head.weight.grad.any()


def test_values_start_at_zero_and_are_float32_on_a_bfloat16_backbone():
    critic = CriticModel(_model().bfloat16())
    assert {parameter.dtype for parameter in critic.parameters()} == {torch.bfloat16}
    values = critic(collate(rows(), roles=[REFINE]))
    assert values.dtype == torch.float32 and not values.any()
    # 256 + 1 has no bfloat16.
    torch.nn.init.ones_(critic.value_head.weight)
    hidden = torch.zeros(1, 64, dtype=torch.bfloat16)
    hidden[0, :2] = torch.tensor([256.0, 1.0])
    assert critic.value_head(hidden).item() == 257
