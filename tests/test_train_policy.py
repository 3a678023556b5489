import random
from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from training_fakes import make_group
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from configs.schema import AlgoConfig, ModelConfig
from rollout.records import TRACE
from train.batch.collate import collate
from train.batch.packing import separate
from train.loss.credit import credit
from train.model.backbone import predictor_states
from train.model.policy import PolicyModel, has_full_attention, load_model, require_finite, save_weights
from train.sharding import Unsharded

ALGO = AlgoConfig(epsilon_high=5.0)


def batch_of(lengths: list[int]):
    group = make_group(random.Random(0), role=TRACE, prompt=6, lengths=lengths)
    return collate(separate(credit([group], ALGO)), roles=[TRACE]), group


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_those_of_the_tempered_softmax(temperature):
    model = tiny_model()
    batch, group = batch_of([5, 9, 2])
    logprobs, entropies, _ = PolicyModel(model, temperature=temperature)(batch)
    expected, entropy = [], []
    for sample in group.samples:
        ids = torch.tensor([[*group.prompt_ids, *sample.call.completion_ids]])
        dist = torch.distributions.Categorical(logits=model(ids).logits[0, 5:-1] / temperature)
        expected.append(dist.log_prob(ids[0, 6:]))
        entropy.append(dist.entropy())
    torch.testing.assert_close(logprobs, torch.cat(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(entropies, torch.cat(entropy), atol=1e-5, rtol=0)


def test_chunks_of_the_head_change_neither_log_probs_nor_gradient(monkeypatch):
    model = tiny_model()
    batch, _ = batch_of([5, 9, 2])
    gradients = []
    for chunk in (100, 4, 1):
        monkeypatch.setattr("train.model.logprobs.HEAD_CHUNK_BYTES", 4 * model.config.vocab_size * chunk)
        model.zero_grad()
        PolicyModel(model, temperature=1.0)(batch)[0].square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() < 1e-5 * gradients[0].norm()


def test_the_head_is_one_module_call_whatever_the_number_of_chunks(monkeypatch):
    model = tiny_model()
    policy = PolicyModel(model, temperature=1.0)
    calls: list[str] = []
    for name, module in policy.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    sequences = []
    for lengths in ([5], [9, 2], [16] * 6):
        monkeypatch.setattr("train.model.logprobs.HEAD_CHUNK_BYTES", 4 * model.config.vocab_size * 8)
        calls.clear()
        policy(batch_of(lengths)[0])[0].sum().backward()
        sequences.append(tuple(calls))
    assert len(set(sequences)) == 1
    assert sequences[0].count("head") == 1 and sequences[0][-1] == "head"


@pytest.mark.parametrize("tied", [True, False])
def test_the_weights_of_the_head_are_those_of_the_model_and_are_saved_once(tied):
    config = tiny_model().config
    config.tie_word_embeddings = tied
    model = Qwen3ForCausalLM(config).float()
    policy = PolicyModel(model, temperature=1.0)
    assert policy.head.weight is model.get_output_embeddings().weight
    assert [name for name, _ in policy.named_parameters()] == [
        f"model.{name}" for name, _ in model.named_parameters()
    ]
    state = policy.state_dict()
    assert list(state) == [f"model.{name}" for name in model.state_dict()]
    policy.load_state_dict(state)


@pytest.mark.parametrize("tied", [True, False])
def test_saved_weights_load_in_auto_model_with_equal_logits(tied, tmp_path):
    config = tiny_model().config
    config.tie_word_embeddings = tied
    model = Qwen3ForCausalLM(config).float()
    save_weights(model, Unsharded(), tmp_path / "policy", is_main=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float32)
    ids = torch.arange(5, 40)[None]
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-6, rtol=0)


def test_only_rank_zero_writes(tmp_path):
    save_weights(tiny_model(), Unsharded(), tmp_path / "policy", is_main=False)
    assert not (tmp_path / "policy").exists()


def test_a_model_with_sliding_windows_does_not_share_prompts():
    config = tiny_model().config
    assert has_full_attention(config)
    config.layer_types = ["full_attention", "sliding_attention"]
    assert not has_full_attention(config)


def test_a_model_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"model\.path is '.*nowhere'"):
        load_model(ModelConfig(path=str(tmp_path / "nowhere")))


def test_a_folder_that_is_no_model_is_named(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model\.path is"):
        load_model(ModelConfig(path=str(tmp_path)))


def test_a_float32_head_rounds_no_logit(tiny_policy):
    model = load_model(ModelConfig(path=str(tiny_policy), dtype="bfloat16"))
    batch, _ = batch_of([5, 9, 2])
    hidden = predictor_states(model.base_model, batch)
    exact = hidden.float() @ model.get_output_embeddings().weight.float().T
    for fp32_head, logits in ((True, exact), (False, exact.bfloat16().float())):
        expected = logits.log_softmax(-1).gather(1, batch.targets[:, None]).squeeze(1)
        logprobs, _, _ = PolicyModel(model, temperature=1.0, fp32_head=fp32_head)(batch)
        torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(exact, exact.bfloat16().float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_model_with_a_weight_that_is_not_finite_is_refused_by_name(value: float):
    model = tiny_model()
    require_finite(model, Unsharded(), "here")
    name, last = list(model.named_parameters())[-1]
    with torch.no_grad():
        last.view(-1)[-1] = value
    with pytest.raises(ValueError, match=rf"model\.path is 'here', whose weight {name} is not finite"):
        require_finite(model, Unsharded(), "here")
