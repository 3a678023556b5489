"""The loss of amortised answers, how they are packed, and what is told of them."""

import asyncio
import random
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fakes import ScriptedPolicy, settings
from test_rollout_collector import _collector
from test_train_learner import make_learner
from training_fakes import make_config, make_group
from transformers import PreTrainedModel
from trl_oracle import load_sharpened

from configs.schema import AlgoConfig
from rollout.collection.amortise import Amortiser
from rollout.groups import Group
from rollout.records import AMORTISE, REFINE, TRACE
from train.batch.collate import collate
from train.batch.packing import share_prompts
from train.call_terms import CallTerms
from train.explain import explain
from train.loss.credit import credit, weigh
from train.loss.objective import objective
from train.metrics import group_metrics
from train.model.attention import SHARED_PROMPT
from train.model.policy import PolicyModel
from train.trace import GroupTrace, read_trace, trace_path

ROLES = [AMORTISE, REFINE, TRACE]
LONGEST = 16


def _groups() -> list[Group]:
    """Traces, refinements, and amortised answers, whose prompt is that of the traces."""
    rng = random.Random(8)
    traces = make_group(rng, role=TRACE, prompt=30, lengths=[5, 9, 2, 7], name="t")
    refinements = make_group(rng, role=REFINE, prompt=40, lengths=[6, 3, 11], name="r")
    drawn = make_group(rng, role=AMORTISE, prompt=4, lengths=[8, 3], forced=True, name="a")
    samples = tuple(
        replace(
            sample,
            reward=1.0,
            is_correct=True,
            # As of answers that only their workspace made likely.
            call=replace(
                sample.call,
                prompt_ids=traces.prompt_ids,
                sampler_logprobs=(-300.0,) * len(sample.call.completion_ids),
            ),
        )
        for sample in drawn.samples
    )
    amortised = replace(
        drawn,
        key=replace(drawn.key, context=traces.key.context),
        prompt_ids=traces.prompt_ids,
        samples=samples,
    )
    return [traces, refinements, amortised]


def _weighted(groups: list[Group], algo: AlgoConfig):
    return weigh(credit(groups, algo), algo, max_completion_length=LONGEST)


@pytest.fixture
def model(tiny_policy: Path) -> PreTrainedModel:
    policy = load_sharpened(tiny_policy)
    policy.set_attn_implementation(SHARED_PROMPT)
    return policy


def _gradient(model: PreTrainedModel, rows, algo: AlgoConfig) -> torch.Tensor:
    model.zero_grad()
    batch = collate(rows, roles=ROLES)
    logprobs, entropies, _ = PolicyModel(model, temperature=1.0)(batch)
    objective(batch, logprobs, entropies, algo)[0].backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).clone()


@pytest.mark.parametrize("loss_type", ["cispo", "grpo", "gspo"])
@pytest.mark.parametrize("correction", [False, True])
def test_the_gradient_is_that_of_the_rest_plus_the_weighted_nll_under_the_plain_prompt(
    loss_type: str, correction: bool, model: PreTrainedModel
):
    options = {"loss_type": loss_type, "vllm_importance_sampling_correction": correction}
    algo = AlgoConfig(**options, amortise_coef=0.3)
    groups = _groups()
    both = _gradient(model, _weighted(groups, algo), algo)
    rest = _gradient(model, _weighted(groups[:2], algo), algo)
    model.zero_grad()
    nll = torch.tensor(0.0)
    for sample in groups[2].samples:
        ids = torch.tensor([[*groups[2].prompt_ids, *sample.call.completion_ids]])
        logprobs = model(ids).logits.log_softmax(-1)[0, len(groups[2].prompt_ids) - 1 : -1]
        chosen = logprobs.gather(1, torch.tensor(sample.call.completion_ids)[:, None])[:, 0]
        nll = nll - chosen[torch.tensor(sample.call.train_mask)].mean() / len(groups[2].samples)
    (0.3 * nll).backward()
    own = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert own.norm() > 0 and torch.isfinite(both).all()
    assert (both - rest - own).norm() < 1e-5 * own.norm()


def test_amortised_answers_have_their_own_normalisation_and_leave_the_shares_of_others_alone():
    algo = AlgoConfig(amortise_coef=0.3)
    rows = _weighted(_groups(), algo)
    alone = _weighted(_groups()[:2], algo)
    by_id = {branch.call_id: branch for row in rows for branch in row.branches}
    for row in alone:
        for branch in row.branches:
            same = by_id.pop(branch.call_id)
            assert (same.policy_weight, same.imitation_weight) == (
                branch.policy_weight,
                branch.imitation_weight,
            )
    assert {branch.role for branch in by_id.values()} == {AMORTISE}
    total = sum(branch.imitation_weight * branch.num_trained for branch in by_id.values())
    assert total == pytest.approx(0.3)
    assert not any(branch.policy_weight or branch.entropy_weight for branch in by_id.values())


def test_amortised_answers_share_a_row_with_traces_of_the_same_prompt():
    algo = AlgoConfig(amortise_coef=0.3)
    rows = share_prompts(_weighted(_groups(), algo), tokens_per_row=400)
    roles = [{branch.role for branch in row.branches} for row in rows]
    assert {TRACE, AMORTISE} in roles
    apart = sum(len(row.branches) for row in _weighted(_groups(), algo))
    assert sum(len(row.branches) for row in rows) == apart


def test_metrics_name_the_nll_of_amortised_answers_and_no_ratio(tmp_path: Path, tiny_policy: Path):
    config = make_config(tmp_path, tiny_policy, algo={"amortise_coef": 0.3})
    groups = _groups()
    rows = credit(groups, config.algo)
    metrics = make_learner(config).learn(rows, 1)
    of_role = {name for name in metrics if name.endswith("/amortise")}
    assert of_role == {"nll/amortise", "trained_tokens/amortise"}
    assert metrics["trained_tokens/amortise"] == 6 + 3
    assert 5.0 < metrics["nll/amortise"] < 6.5  # a random policy over 261 tokens
    assert metrics["mismatch_max/trace"] < 100
    told = group_metrics(groups, rows)
    assert told == group_metrics(groups[:2], rows[:2]) | {"groups": 3.0}


def test_an_amortised_answer_is_traced_to_the_answer_and_explained(tmp_path: Path, tiny_policy: Path):
    amortise = Amortiser(settings(ScriptedPolicy()))
    collector = _collector(ScriptedPolicy(), num_generations=6, amortise=amortise)
    batch = asyncio.run(collector.collect(1))
    config = make_config(tmp_path, tiny_policy, algo={"amortise_coef": 0.3})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    rows = credit(batch.groups, config.algo)
    calls = CallTerms()
    make_learner(config).learn(rows, 1, calls)
    trace = GroupTrace(tmp_path, limit_mib=1, decode=lambda ids: " ".join(map(str, ids)))
    trace.write(1, batch, rows, calls.result())
    records = {call.call_id: call for call in read_trace(trace_path(tmp_path, 1))}
    assert (
        len(records)
        == sum(len(rollout.calls) for rollout in batch.rollouts) + batch.metrics["collect/amortised"]
    )
    retrained = [call for call in records.values() if call.role == AMORTISE]
    assert retrained
    for call in retrained:
        (parent,) = call.parents
        assert records[parent].role == REFINE and records[parent].text == call.text
        assert call.context != records[parent].context
        assert call.credit is not None and call.credit.update is not None
        assert call.credit.update.policy_weight == 0.0 < call.credit.update.imitation_weight
    text = explain(tmp_path, 1, problem=retrained[0].problem_id, characters=50)
    assert f"reads the plain problem: the answers {retrained[0].parents[0]}" in text
    assert "imitated with algo.amortise_coef 0.3" in text
    assert np.isfinite([call.credit.update.loss for call in retrained]).all()
