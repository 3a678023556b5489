"""Log-probs describe the distribution that each role was sampled from."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_fakes import make_config, make_group
from transformers import PreTrainedModel
from trl_oracle import load_sharpened

from configs.schema import AlgoConfig, RoleConfig, RolesConfig
from rollout.records import DRAFT, REFINE, TRACE
from train.batch.collate import collate
from train.call_terms import CallTerms
from train.distributed import make_accelerator
from train.learner import Learner
from train.loss.credit import credit
from train.model.attention import SHARED_PROMPT
from train.model.policy import PolicyModel
from train.nonfinite_steps import RefusalGuard

ROLES = [TRACE, DRAFT, REFINE]
TEMPERATURES = [1.0, 1.4, 0.6]


@pytest.fixture
def model(tiny_policy: Path) -> PreTrainedModel:
    policy = load_sharpened(tiny_policy)
    policy.set_attn_implementation(SHARED_PROMPT)
    return policy


def mixed_rows():
    rng = random.Random(2)
    groups = [
        make_group(rng, role=role, prompt=5 + place, lengths=[4, 7, 3], name=f"g{place}")
        for place, role in enumerate(ROLES)
    ]
    return credit(groups, AlgoConfig())


@pytest.mark.parametrize("chunk_bytes", [2**30, 2000])
def test_a_batch_of_several_roles_has_the_log_probs_and_gradients_of_each_roles_temperature(
    chunk_bytes: int, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("train.model.logprobs.HEAD_CHUNK_BYTES", chunk_bytes)
    batch = collate(mixed_rows(), roles=ROLES)
    mixed = replace(batch, temperatures=torch.tensor(TEMPERATURES)[batch.roles])
    logprobs, entropies, _ = PolicyModel(model, temperature=1.0, entropy_has_gradient=True)(mixed)
    (logprobs.sum() + entropies.sum()).backward()
    found = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()
    for role, temperature in enumerate(TEMPERATURES):
        of_role = batch.roles == role
        own = PolicyModel(model, temperature=temperature, entropy_has_gradient=True)(batch)
        torch.testing.assert_close(logprobs[of_role], own[0][of_role], atol=1e-5, rtol=0)
        torch.testing.assert_close(entropies[of_role], own[1][of_role], atol=1e-5, rtol=0)
        (own[0][of_role].sum() + own[1][of_role].sum()).backward()
    wanted = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert (found - wanted).norm() < 1e-5 * wanted.norm()


def test_the_learner_scores_every_role_at_its_own_temperature(tmp_path: Path, tiny_policy: Path):
    roles = RolesConfig(draft=RoleConfig(temperature=1.4), refine=RoleConfig(temperature=0.6))
    config = make_config(tmp_path, tiny_policy, rollout={"roles": roles})
    accelerator = make_accelerator(config)
    learner = Learner(config, accelerator, RefusalGuard(tmp_path / "debug", None))
    rows = mixed_rows()
    expected = {}
    for row, temperature in zip(rows, TEMPERATURES, strict=True):
        batch = collate([row], roles=ROLES)
        with torch.no_grad():
            logprobs = PolicyModel(learner.model, temperature=temperature)(batch)[0]
        for place, name in enumerate(batch.call_ids):
            expected[name] = float(logprobs[batch.sequences == place].sum())
    calls = CallTerms()
    learner.learn(rows, 1, calls)
    records = calls.result()
    assert {name.split(".")[0] for name in records} == {"g0", "g1", "g2"}
    for name, record in records.items():
        assert record.trainer_logprob == pytest.approx(expected[name], abs=1e-3)
