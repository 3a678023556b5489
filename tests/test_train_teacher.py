"""On-policy distillation: the gradient of the reverse KL divergence, and whose log-probs it reads."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_train_learner import make_learner
from training_fakes import make_config, make_group
from transformers import PreTrainedModel
from trl_oracle import load_sharpened

from configs.schema import AlgoConfig
from rollout.groups import Group
from rollout.records import TRACE
from train.batch.collate import MicroBatch, collate
from train.call_terms import CallTerms
from train.loss.credit import credit, weigh
from train.loss.objective import objective
from train.model.attention import SHARED_PROMPT

VOCABULARY = 7
REUSED = {"draft_source": "reuse"}


@pytest.fixture
def model(tiny_policy: Path) -> PreTrainedModel:
    policy = load_sharpened(tiny_policy)
    policy.set_attn_implementation(SHARED_PROMPT)
    return policy


def _taught_groups(rng: random.Random, *, rewards: bool = True) -> list[Group]:
    """Two groups of traces; all samples of the first and none of the second have a teacher."""
    taught, plain = (
        make_group(rng, role=TRACE, prompt=6, lengths=[5, 8, 3], forced=True, name=name) for name in "ab"
    )
    prompts = [tuple(rng.randrange(3, 261) for _ in range(20 + i)) for i in range(2)]
    samples = tuple(
        replace(sample, teacher_prompt_ids=prompts[place % 2], reward=sample.reward if rewards else 0.0)
        for place, sample in enumerate(taught.samples)
    )
    return [replace(taught, samples=samples), plain]


def _every_token(policy_logits: torch.Tensor, teacher: torch.Tensor) -> tuple[MicroBatch, torch.Tensor]:
    """A batch with each token of a small vocabulary once, weighted by its probability under the policy."""
    (row,) = credit([make_group(random.Random(0), role=TRACE, prompt=3, lengths=[VOCABULARY])], AlgoConfig())
    logprobs = policy_logits.log_softmax(-1)
    batch = replace(
        collate([row], roles=[TRACE]),
        advantages=torch.zeros(VOCABULARY),
        policy_weights=logprobs.detach().exp(),
        imitation_weights=torch.zeros(VOCABULARY),
        sampler_logprobs=logprobs.detach(),
        teacher_logprobs=teacher,
        has_teacher=torch.ones(VOCABULARY, dtype=torch.bool),
    )
    return batch, logprobs


def _loss(batch: MicroBatch, logprobs: torch.Tensor, algo: AlgoConfig) -> torch.Tensor:
    return objective(batch, logprobs, torch.zeros(len(logprobs)), algo)[0]


@pytest.mark.parametrize("loss_type", ["cispo", "grpo", "dapo", "reinforce", "ppo"])
def test_on_a_whole_vocabulary_the_gradient_is_that_of_the_reverse_kl(loss_type: str):
    torch.manual_seed(0)
    logits = torch.randn(VOCABULARY, requires_grad=True)
    teacher = torch.randn(VOCABULARY).log_softmax(-1)
    algo = AlgoConfig(loss_type=loss_type, epsilon_high=5.0, opd_coef=0.7)
    batch, logprobs = _every_token(logits, teacher)
    (found,) = torch.autograd.grad(_loss(batch, logprobs, algo), logits)
    own = logits.log_softmax(-1)
    reverse_kl = (own.exp() * (own - teacher)).sum()
    (wanted,) = torch.autograd.grad(0.7 * reverse_kl, logits)
    assert wanted.norm() > 0.01
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_after_an_update_the_ratio_keeps_the_gradient_that_of_the_reverse_kl():
    torch.manual_seed(1)
    before = torch.randn(VOCABULARY).log_softmax(-1)
    logits = (before + 0.1 * torch.randn(VOCABULARY)).requires_grad_()
    teacher = torch.randn(VOCABULARY).log_softmax(-1)
    algo = AlgoConfig(loss_type="grpo", epsilon=0.9, epsilon_high=5.0, opd_coef=1.0, num_iterations=2)
    batch, logprobs = _every_token(logits, teacher)
    # Sampled by the policy before the update, and so weighted by its probabilities.
    stale = replace(batch, policy_weights=before.exp(), sampler_logprobs=before, old_logprobs=before)
    (found,) = torch.autograd.grad(_loss(stale, logprobs, algo), logits)
    own = logits.log_softmax(-1)
    (wanted,) = torch.autograd.grad((own.exp() * (own - teacher)).sum(), logits)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_a_teacher_that_is_the_student_changes_nothing():
    torch.manual_seed(0)
    logits = torch.randn(VOCABULARY, requires_grad=True)
    batch, logprobs = _every_token(logits, logits.detach().log_softmax(-1))
    rewarded = replace(batch, advantages=torch.randn(VOCABULARY))
    algo = AlgoConfig(opd_coef=3.0)
    (found,) = torch.autograd.grad(_loss(rewarded, logprobs, algo), logits, retain_graph=True)
    alone = replace(rewarded, teacher_logprobs=None, has_teacher=None)
    (wanted,) = torch.autograd.grad(_loss(alone, logprobs, algo), logits)
    assert wanted.norm() > 0.01
    torch.testing.assert_close(found, wanted)


def test_a_micro_batch_without_a_teacher_has_the_same_terms_for_ranks_to_reduce():
    torch.manual_seed(0)
    batch, logprobs = _every_token(torch.randn(VOCABULARY), torch.randn(VOCABULARY).log_softmax(-1))
    algo, entropies = AlgoConfig(opd_coef=0.1), torch.zeros(VOCABULARY)
    _, taught = objective(batch, logprobs, entropies, algo)
    _, plain = objective(replace(batch, teacher_logprobs=None, has_teacher=None), logprobs, entropies, algo)
    assert list(taught.means) == list(plain.means) and taught.only.keys() == plain.only.keys()
    assert taught.only["opd_kl"].all() and not plain.only["opd_kl"].any()


def test_the_teacher_is_the_policy_before_the_update_in_the_teachers_context(tmp_path, tiny_policy):
    config = make_config(tmp_path, tiny_policy, algo={"opd_coef": 0.5, "num_iterations": 2}, collect=REUSED)
    groups = _taught_groups(random.Random(4))
    learner = make_learner(config)
    expected = {}
    for sample in groups[0].samples:
        mask = torch.tensor(sample.call.train_mask)
        scores = []
        for prompt in (sample.call.prompt_ids, sample.teacher_prompt_ids):
            ids = torch.tensor([[*prompt, *sample.call.completion_ids]])
            with torch.no_grad():
                logprobs = learner.model(ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
            chosen = logprobs.gather(1, torch.tensor(sample.call.completion_ids)[:, None])[:, 0]
            scores.append(chosen[mask].mean())
        expected[sample.call_id] = float(scores[0] - scores[1])
    calls = CallTerms()
    metrics = learner.learn(credit(groups, config.algo), 1, calls)
    records = calls.result()
    assert {name: record.teacher_kl for name, record in records.items() if name in expected} == {
        name: pytest.approx(value, abs=1e-4) for name, value in expected.items()
    }
    assert {record.teacher_kl for name, record in records.items() if name not in expected} == {None}
    assert "opd_kl/trace" in metrics


def test_a_group_without_advantage_still_learns_from_its_teacher(tmp_path, tiny_policy):
    groups = _taught_groups(random.Random(5), rewards=False)[:1]
    for coef, moves in ((0.0, False), (0.5, True)):
        config = make_config(
            tmp_path / str(coef), tiny_policy, algo={"opd_coef": coef, "sft_coef": 0.0}, collect=REUSED
        )
        metrics = make_learner(config).learn(credit(groups, config.algo), 1)
        assert bool(metrics.get("trained_tokens/trace")) == moves


def test_only_completions_with_a_teacher_are_kept_without_an_advantage():
    groups = _taught_groups(random.Random(5), rewards=False)[:1]
    algo = AlgoConfig(sft_coef=0.0)
    (row,) = credit(groups, algo)
    first, *others = row.branches
    scored = replace(first, teacher_logprobs=-torch.ones(len(first.train_mask)).numpy())
    (kept,) = weigh([replace(row, branches=(scored, *others))], algo, max_completion_length=16)
    assert [branch.call_id for branch in kept.branches] == [first.call_id]
