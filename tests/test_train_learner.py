import copy
import random
from pathlib import Path

import pytest
import torch
from training_fakes import make_config, make_group, make_groups
from transformers import AutoModelForCausalLM

from configs.schema import TrainingConfig
from rollout.records import TRACE, Group
from train.collate import collate
from train.credit import credit, split_updates, weigh
from train.distributed import make_accelerator
from train.learner import Learner
from train.packing import separate
from train.policy import PolicyModel
from train.refusal import RefusalGuard


def make_learner(config: TrainingConfig) -> Learner:
    guard = RefusalGuard(Path(config.output_dir) / "debug", None)
    return Learner(config, make_accelerator(config), guard)


def learn(config: TrainingConfig, groups: tuple[Group, ...]) -> tuple[Learner, dict[str, float]]:
    learner = make_learner(config)
    return learner, learner.learn(credit(groups, config.algo), step=1)


def by_hand(config: TrainingConfig, groups: tuple[Group, ...]) -> torch.nn.Module:
    """GRPO with old log-probs and a KL term, written from the formulas."""
    algo = config.algo
    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    frozen = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=algo.learning_rate, weight_decay=0.0)
    rows = credit(groups, algo)
    batches = [
        collate(separate(weigh(part, algo, max_completion_length=16)), roles=["refine", TRACE])
        for part in split_updates(rows, algo.num_updates)
    ]
    with torch.no_grad():
        old = [PolicyModel(frozen, temperature=1.0)(batch)[0] for batch in batches]
    for _ in range(algo.num_iterations):
        for batch, before in zip(batches, old, strict=True):
            logprobs = PolicyModel(model, temperature=1.0)(batch)[0]
            ratio = (logprobs - before).exp()
            clipped = ratio.clamp(1 - algo.epsilon, 1 + algo.epsilon_high)
            surrogate = torch.minimum(ratio * batch.advantages, clipped * batch.advantages)
            kl = (before - logprobs).exp() - (before - logprobs) - 1
            loss = (batch.policy_weights * (algo.beta * kl * ratio - surrogate)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def test_several_updates_and_passes_are_those_of_a_plain_loop(tmp_path, tiny_policy):
    algo = {
        "loss_type": "grpo",
        "epsilon_high": 0.28,
        "sft_coef": 0.0,
        "beta": 0.2,
        "num_updates": 2,
        "num_iterations": 3,
    }
    config = make_config(tmp_path, tiny_policy, algo=algo)
    groups = make_groups(4)
    learner, metrics = learn(config, groups)
    expected = by_hand(config, groups)
    assert metrics["updates"] == 6
    assert metrics["ref_kl/trace"] > 0
    for (name, parameter), wanted in zip(
        learner.model.named_parameters(), expected.parameters(), strict=True
    ):
        # AdamW turns rounding of a tiny gradient into a part of a step.
        assert (parameter - wanted).norm() < 1e-3 * wanted.norm(), name


def test_the_reference_stays_where_the_run_started(tmp_path, tiny_policy):
    config = make_config(tmp_path, tiny_policy, algo={"beta": 0.1})
    learner = make_learner(config)
    rows = credit(make_groups(4), config.algo)
    first = learner.learn(rows, step=1)
    second = learner.learn(rows, step=2)
    assert first["ref_kl/trace"] == pytest.approx(0, abs=1e-9)
    assert second["ref_kl/trace"] > 1e-6


@pytest.mark.parametrize("changes", [{"beta": 0.1}, {"entropy_coef": 0.1}])
def test_a_group_without_advantage_is_still_held_to_reference_and_entropy(changes, tmp_path, tiny_policy):
    group = make_group(random.Random(0), role=TRACE, prompt=4, lengths=[5, 5])
    equal = tuple(
        sample.__class__(call=sample.call, reward=1.0, is_correct=False, status="wrong")
        for sample in group.samples
    )
    group = Group(key=group.key, prompt_ids=group.prompt_ids, samples=equal)
    _, without = learn(make_config(tmp_path, tiny_policy), (group,))
    _, with_terms = learn(make_config(tmp_path, tiny_policy, algo=changes), (group,))
    assert without["trained_tokens/trace"] == 0 and without["updates"] == 0
    assert with_terms["trained_tokens/trace"] == 10 and with_terms["updates"] == 1


def test_an_entropy_bonus_makes_the_policy_less_certain(tmp_path, tiny_policy):
    config = make_config(tmp_path, tiny_policy, algo={"entropy_coef": 10.0, "learning_rate": 1e-3})
    learner = make_learner(config)
    with torch.no_grad():
        for parameter in learner.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    rows = credit(make_groups(4), config.algo)
    before = learner.learn(rows, step=1)["entropy/trace"]
    for step in range(2, 6):
        after = learner.learn(rows, step=step)["entropy/trace"]
    assert after > before + 0.1
