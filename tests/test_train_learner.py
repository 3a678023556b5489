import copy
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_fakes import make_config, make_group, make_groups
from transformers import AutoModelForCausalLM

from configs.schema import TrainingConfig
from rollout.groups import Group
from rollout.records import TRACE
from train.batch.collate import collate
from train.batch.packing import separate
from train.distributed import make_accelerator
from train.learner import Learner
from train.loss.credit import credit, split_updates, weigh
from train.model.critic import CriticModel
from train.model.policy import PolicyModel
from train.nonfinite_steps import RefusalGuard


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


def test_a_policy_with_a_broken_weight_is_not_trained(tmp_path, tiny_policy):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_policy, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"broken', whose weight model\.norm\.weight is not finite"):
        make_learner(make_config(tmp_path, folder))


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
        replace(sample, reward=1.0, is_correct=False, status="wrong", reward_parts={})
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


PPO = {"loss_type": "ppo", "epsilon_high": 0.2, "sft_coef": 0.0, "critic_learning_rate": 1e-3}
CRITICS = ("own_backbone", "policy_trunk")


def parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def critic_of(learner: Learner) -> torch.nn.Module:
    return learner.policy.model.value_head if learner.critic is None else learner.critic.model


@pytest.mark.parametrize("critic", CRITICS)
def test_while_the_critic_warms_up_the_policy_stays_exactly_as_it_is(critic, tmp_path, tiny_policy):
    algo = {**PPO, "critic": critic, "critic_warmup_steps": 2, "num_iterations": 2, "entropy_coef": 0.1}
    config = make_config(tmp_path, tiny_policy, algo=algo)
    learner = make_learner(config)
    policy, values = parameters(learner.model), parameters(critic_of(learner))
    rows = credit(make_groups(4), config.algo)
    for step in (1, 2):
        metrics = learner.learn(rows, step=step)
        assert metrics["value_loss/trace"] > 0
    assert all(torch.equal(p, policy[name]) for name, p in learner.model.named_parameters())
    assert all(not torch.equal(p, values[name]) for name, p in critic_of(learner).named_parameters())
    learner.learn(rows, step=3)
    assert all(not torch.equal(p, policy[name]) for name, p in learner.model.named_parameters())


@pytest.mark.parametrize("critic", CRITICS)
def test_a_critic_learns_what_the_groups_are_worth(critic, tmp_path, tiny_policy):
    algo = {**PPO, "critic": critic, "critic_warmup_steps": 99, "cliprange_value": 9.0}
    config = make_config(tmp_path, tiny_policy, algo={**algo, "critic_learning_rate": 5e-3})
    learner = make_learner(config)
    rows = credit(make_groups(4), config.algo)
    history = [learner.learn(rows, step=step) for step in range(1, 13)]
    for role in ("trace", "refine"):
        # Without discount, the return of every token is the reward; at first all values are 0.
        assert history[0][f"value/{role}"] == 0
        assert history[0][f"explained_variance/{role}"] == pytest.approx(0, abs=1e-6)
        assert history[-1][f"value_loss/{role}"] < history[0][f"value_loss/{role}"]
        assert history[-1][f"explained_variance/{role}"] > 0.02


def test_a_ppo_step_is_that_of_a_plain_actor_and_critic(tmp_path, tiny_policy):
    """Two steps with a critic of its own; the second has values that are not 0."""
    algo = {**PPO, "gamma": 0.98, "lam": 0.9, "num_iterations": 2}
    config = make_config(tmp_path, tiny_policy, algo=algo)
    groups = make_groups(4)
    learner = make_learner(config)
    rows = credit(groups, config.algo)
    for step in (1, 2):
        learner.learn(rows, step=step)
    policy = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
    critic = CriticModel(AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32))
    batch = collate(separate(weigh(rows, config.algo, max_completion_length=16)), roles=["refine", TRACE])
    optimizers = [
        torch.optim.AdamW(policy.parameters(), lr=config.algo.learning_rate, weight_decay=0.0),
        torch.optim.AdamW(critic.parameters(), lr=1e-3, weight_decay=0.0),
    ]
    for _ in range(2):
        plain_ppo_passes(batch, policy, critic, optimizers)
    for found, wanted in ((learner.model, policy), (learner.critic.model, critic)):
        for (name, parameter), other in zip(found.named_parameters(), wanted.parameters(), strict=True):
            assert (parameter - other).norm() < 2e-3 * other.norm() + 1e-6, name


def plain_ppo_passes(batch, policy, critic, optimizers) -> None:
    """GAE(0.98, 0.9), whitening by role, and two passes of PPO, with nothing of the code under test."""
    with torch.no_grad():
        old = PolicyModel(policy, temperature=1.0)(batch)[0]
        old_values = critic(batch)
    advantages = torch.zeros_like(old)
    for sequence, reward in enumerate(batch.rewards.tolist()):
        places = (batch.sequences == sequence).nonzero().flatten().tolist()
        later_value = later_advantage = 0.0
        for number, place in enumerate(reversed(places)):
            value = old_values[place].item()
            delta = (reward if number == 0 else 0.0) + 0.98 * later_value - value
            later_advantage = delta + 0.98 * 0.9 * later_advantage
            advantages[place], later_value = later_advantage, value
    returns = advantages + old_values
    for role in (0, 1):
        of_role = advantages[batch.roles == role]
        advantages[batch.roles == role] = (of_role - of_role.mean()) / of_role.std(correction=0)
    tokens = torch.bincount(batch.roles)[batch.roles]
    for _ in range(2):
        ratio = (PolicyModel(policy, temperature=1.0)(batch)[0] - old).exp()
        surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        values = critic(batch)
        near = old_values + (values - old_values).clamp(-0.2, 0.2)
        error = torch.maximum((values - returns) ** 2, (near - returns) ** 2)
        for optimizer in optimizers:
            optimizer.zero_grad()
        (0.5 * -surrogate / tokens).sum().backward()
        (0.5 * 0.5 * error / tokens).sum().backward()
        for optimizer in optimizers:
            optimizer.step()


def test_the_head_on_the_trunk_has_its_own_learning_rate(tmp_path, tiny_policy):
    algo = {**PPO, "critic": "policy_trunk", "critic_learning_rate": 0.5, "learning_rate": 1e-6}
    config = make_config(tmp_path, tiny_policy, algo=algo)
    learner, _ = learn(config, make_groups(4))
    # Adam's first step has the size of the learning rate.
    assert learner.policy.model.value_head.bias.abs().item() == pytest.approx(0.5, rel=1e-3)
    start = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
    moved = max(
        (a - b).abs().max().item()
        for a, b in zip(learner.model.parameters(), start.parameters(), strict=True)
    )
    assert moved < 1e-5
