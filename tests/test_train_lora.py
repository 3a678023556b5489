import random
from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from training_fakes import make_config, make_group, make_groups, make_trainer
from transformers import AutoModelForCausalLM, PreTrainedModel, set_seed

from configs.schema import RECOMPUTATIONS, AlgoConfig, ModelConfig
from rollout.records import REFINE
from train.batch.collate import collate
from train.distributed import make_accelerator
from train.loss.credit import credit
from train.model.lora import adapters_off, add_adapters, lora_layers, merged_weights
from train.model.policy import PolicyModel, load_model, save_weights
from train.sharding import Unsharded

IDS = torch.arange(5, 60)[None]
LORA = {"lora_r": 4, "lora_alpha": 16}


def adapted(folder: Path, *, trained: bool = True, **options) -> PreTrainedModel:
    """The policy with adapters, which some training is taken to have changed."""
    config = ModelConfig(path=str(folder), **{"dtype": "float32", **LORA, **options})
    model = load_model(config)
    add_adapters(model, config)
    if trained:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_fresh_adapters_change_nothing_and_are_all_that_is_trained(tiny_policy):
    plain = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
    model = adapted(tiny_policy, trained=False)
    assert torch.equal(logits(model), logits(plain))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    # Seven linear layers in each of two blocks; the head is left alone.
    assert len(lora_layers(model)) == 14


def test_what_is_published_is_a_plain_model_with_the_adapters_merged(tiny_policy, tmp_path):
    model = adapted(tiny_policy)
    save_weights(model, Unsharded(), tmp_path / "policy", is_main=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=0)
    assert not torch.allclose(logits(loaded), logits(tiny_model()), atol=1e-2)
    plain = AutoModelForCausalLM.from_pretrained(tiny_policy).state_dict()
    assert loaded.state_dict().keys() == plain.keys()
    assert {weight.name for weight in merged_weights(model)} == {n for n, _ in loaded.named_parameters()}


def test_without_its_adapters_the_policy_is_what_it_started_from(tiny_policy):
    model, plain = adapted(tiny_policy), AutoModelForCausalLM.from_pretrained(tiny_policy)
    before = logits(model)
    with adapters_off(model):
        assert torch.equal(logits(model), logits(plain.float()))
    assert torch.equal(logits(model), before)
    assert all(parameter.requires_grad == ("lora_" in name) for name, parameter in model.named_parameters())


def test_an_adapter_of_the_head_is_part_of_the_log_probs_and_is_trained(tiny_policy):
    model = adapted(tiny_policy, lora_target_modules=["lm_head"])
    policy = PolicyModel(model, temperature=1.0)
    group = make_group(random.Random(0), role=REFINE, prompt=30, lengths=[9])
    batch = collate(credit([group], AlgoConfig()), roles=[REFINE])
    own = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert len(own) == 2 and all("lm_head.lora_" in name for name in own)
    logprobs, _, _ = policy(batch)
    ids = torch.tensor([[*group.prompt_ids, *group.samples[0].call.completion_ids]])
    plain = model(ids).logits[0, 29:-1].log_softmax(-1).gather(1, ids[0, 30:, None]).squeeze(1)
    torch.testing.assert_close(logprobs, plain, atol=1e-5, rtol=1e-5)
    gradients = torch.autograd.grad(logprobs.square().sum(), list(own.values()))
    expected = torch.autograd.grad(plain.square().sum(), list(own.values()))
    for mine, theirs in zip(gradients, expected, strict=True):
        assert theirs.any()
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    with adapters_off(model), torch.no_grad():
        bare = PolicyModel(load_model(ModelConfig(path=str(tiny_policy), dtype="float32")), temperature=1.0)
        torch.testing.assert_close(policy(batch)[0], bare(batch)[0], atol=1e-5, rtol=1e-5)


def test_adapters_are_on_again_after_an_error(tiny_policy):
    model = adapted(tiny_policy)
    before = logits(model)
    with pytest.raises(KeyError), adapters_off(model):
        raise KeyError
    assert torch.equal(logits(model), before)


def test_gradient_checkpointing_leaves_the_gradient_of_adapters_as_it_is(tiny_policy):
    group = make_group(random.Random(0), role=REFINE, prompt=30, lengths=[5, 9, 2])
    batch = collate(credit([group], AlgoConfig()), roles=[REFINE])
    gradients = []
    for recomputes in RECOMPUTATIONS:
        model = adapted(tiny_policy, gradient_checkpointing=recomputes).train()
        PolicyModel(model, temperature=1.0)(batch)[0].sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert gradients[0].norm() > 0
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], atol=1e-6, rtol=1e-5)


def test_only_the_named_layers_get_adapters_and_a_name_that_fits_none_is_refused(tiny_policy):
    model = adapted(tiny_policy, lora_target_modules=["q_proj"])
    assert [name.rsplit(".", 1)[1] for name in lora_layers(model)] == ["q_proj", "q_proj"]
    with pytest.raises(ValueError, match=r"model\.lora_target_modules is \['query'\]"):
        adapted(tiny_policy, lora_target_modules=["query"])


@pytest.mark.parametrize("critic", ["own_backbone", "policy_trunk"])
@pytest.mark.component
def test_a_run_with_adapters_has_its_start_as_reference_and_publishes_them_merged(
    critic, tiny_policy, tmp_path
):
    algo = {"loss_type": "ppo", "critic": critic, "epsilon_high": 0.2, "beta": 0.1, "learning_rate": 1e-2}
    config = make_config(
        tmp_path,
        tiny_policy,
        algo=algo,
        model={**LORA, "gradient_checkpointing": "full"},
        train={"max_steps": 2},
    )
    trainer = make_trainer(config, make_accelerator(config))
    trainer.run()
    # The run's own reference is the policy without its adapters: the weights that it started from.
    plain = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
    with adapters_off(trainer.model):
        assert torch.equal(logits(trainer.model), logits(plain))
    (published,) = (tmp_path / "weights").iterdir()
    loaded = AutoModelForCausalLM.from_pretrained(published, dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), logits(trainer.model), atol=1e-5, rtol=0)
    assert not torch.allclose(logits(loaded), logits(plain), atol=1e-2)
    metrics = trainer.learner.learn(credit(make_groups(1), config.algo), step=3)
    assert metrics["ref_kl/trace"] > 1e-4


@pytest.mark.component
def test_a_resumed_run_goes_on_with_its_adapters(tiny_policy, tmp_path):
    def run(name: str, max_steps: int, resume: str = "none") -> PreTrainedModel:
        set_seed(0)
        config = make_config(
            tmp_path / name, tiny_policy, resume=resume, model=LORA, train={"max_steps": max_steps}
        )
        trainer = make_trainer(config, make_accelerator(config))
        trainer.run()
        return trainer.model

    whole = run("whole", 3)
    run("cut", 2)
    resumed = run("cut", 3, resume="auto")
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_an_adapter_that_is_served_alone_is_published_before_the_first_request_names_it(
    tiny_policy, tmp_path
):
    config = make_config(
        tmp_path, tiny_policy, model=LORA, rollout={"max_lora_rank": 8}, train={"max_steps": 2}
    )
    trainer = make_trainer(config, make_accelerator(config))
    trainer.run()
    assert trainer.outside is not None
    assert trainer.outside.publisher.versions == [0, 1, 2]  # type: ignore[attr-defined]
    (last,) = (tmp_path / "weights").iterdir()
    assert {path.name for path in last.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (last / "model.safetensors").exists()
