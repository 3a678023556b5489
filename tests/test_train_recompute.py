"""Recomputed activations: the numbers stay, and what is computed twice is what the option names."""

import random
from collections import Counter

import pytest
import torch
from tiny import tiny_model
from torch import nn
from training_fakes import make_group
from transformers import GPT2Config, GPT2LMHeadModel

from configs.schema import RECOMPUTATIONS, AlgoConfig, ModelConfig
from rollout.records import REFINE
from train.batch.collate import MicroBatch, collate
from train.loss.credit import credit
from train.model.critic import CriticModel
from train.model.policy import PolicyModel, load_model
from train.model.recompute import recompute_activations

COUNTED = ("self_attn", "mlp", "input_layernorm")


def _batch() -> MicroBatch:
    group = make_group(random.Random(0), role=REFINE, prompt=30, lengths=[5, 9, 2])
    return collate(credit([group], AlgoConfig()), roles=[REFINE])


def _gradient(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _results(path: str, recomputes: str) -> tuple[torch.Tensor, ...]:
    """Log-probs, values and gradients of a policy and of a critic."""
    config = ModelConfig(path=path, dtype="float32", gradient_checkpointing=recomputes)
    policy, critic = PolicyModel(load_model(config), temperature=0.7).train(), CriticModel(load_model(config))
    nn.init.ones_(critic.value_head.weight)
    logprobs, _, _ = policy(_batch())
    values = critic.train()(_batch())
    (logprobs.square().sum() + values.square().sum()).backward()
    return logprobs.detach(), values.detach(), _gradient(policy), _gradient(critic)


def test_losses_and_gradients_are_those_without_recomputation(tiny_policy):
    expected = _results(str(tiny_policy), "none")
    for recomputes in RECOMPUTATIONS[1:]:
        for mine, theirs in zip(_results(str(tiny_policy), recomputes), expected, strict=True):
            assert theirs.norm() > 0
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("recomputes", "twice"),
    [("none", ()), ("attention", ("self_attn",)), ("full", ("self_attn", "mlp", "input_layernorm"))],
)
def test_a_pass_computes_twice_what_the_option_names_and_nothing_else(recomputes, twice, tiny_policy):
    config = ModelConfig(path=str(tiny_policy), dtype="float32", gradient_checkpointing=recomputes)
    model = load_model(config).train()
    runs: Counter[str] = Counter()
    for name, module in model.named_modules():
        kind = "self_attn" if name.endswith("self_attn.q_proj") else name.rpartition(".")[2]
        if kind in COUNTED and name.count("self_attn.") == (kind == "self_attn"):
            module.register_forward_pre_hook(lambda *_, kind=kind: runs.update([kind]))
    PolicyModel(model, temperature=1.0)(_batch())[0].sum().backward()
    layers = model.config.num_hidden_layers
    assert runs == {kind: layers * (2 if kind in twice else 1) for kind in COUNTED}
    runs.clear()
    with torch.no_grad():
        PolicyModel(model, temperature=1.0)(_batch())
    assert runs == dict.fromkeys(COUNTED, layers)


def test_the_names_of_weights_do_not_depend_on_what_is_recomputed():
    plain, other = tiny_model(), tiny_model()
    recompute_activations(other, "attention")
    assert list(other.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in other.named_modules()] == [name for name, _ in plain.named_modules()]


def test_attention_alone_is_refused_for_layers_that_name_it_otherwise():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16))
    with pytest.raises(ValueError, match=r"no layer of GPT2LMHeadModel has a self_attn\. Use full or none"):
        recompute_activations(model, "attention")


@pytest.mark.parametrize(("given", "kept"), [("true", "full"), ("False", "none"), ("attention", "attention")])
def test_true_and_false_are_read_as_full_and_none(given, kept):
    assert ModelConfig(path="x", gradient_checkpointing=given).gradient_checkpointing == kept


def test_another_value_is_refused():
    with pytest.raises(ValueError, match=r"model\.gradient_checkpointing .*attention"):
        ModelConfig(path="x", gradient_checkpointing="mlp")
