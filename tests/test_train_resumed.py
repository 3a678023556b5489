import math
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file
from torch import nn
from training_fakes import make_config, make_trainer, read_metric

from configs.schema import AlgoConfig
from train.deepspeed_zero import DeepSpeedZero
from train.distributed import make_accelerator
from train.optimizer import TrainedModel

COSINE = {"lr_scheduler_type": "cosine", "learning_rate": 1e-4}


def run(folder: Path, path: Path, algo: dict, *, steps: int, resume: str = "none", **changes) -> None:
    config = make_config(folder, path, algo=algo, resume=resume, train={"max_steps": steps}, **changes)
    make_trainer(config, make_accelerator(config)).run()


def rates(folder: Path) -> list[float]:
    return list(read_metric(folder, "learning_rate").values())


def cosine(peak: float, done: int, steps: int) -> float:
    return peak * 0.5 * (1 + math.cos(math.pi * done / steps))


@pytest.mark.component
def test_a_resumed_step_has_the_rate_that_the_schedule_of_the_longer_run_has_there(tmp_path, tiny_policy):
    run(tmp_path, tiny_policy, COSINE, steps=3)
    run(tmp_path, tiny_policy, COSINE, steps=6, resume="auto")
    assert rates(tmp_path)[3:] == pytest.approx([cosine(1e-4, done, 6) for done in (3, 4, 5)])


@pytest.mark.component
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"learning_rate": 3e-4}, cosine(3e-4, 2, 4)),
        ({"lr_scheduler_type": "linear"}, 1e-4 * (4 - 2) / 4),
        ({"lr_scheduler_type": "constant"}, 1e-4),
        ({"warmup_steps": 4, "lr_scheduler_type": "constant_with_warmup"}, 1e-4 * 2 / 4),
        ({"num_iterations": 2}, cosine(1e-4, 4, 8)),
    ],
)
def test_a_changed_rate_schedule_or_warm_up_counts_from_the_first_resumed_step(
    change, expected, tmp_path, tiny_policy
):
    run(tmp_path, tiny_policy, COSINE, steps=2)
    run(tmp_path, tiny_policy, COSINE | change, steps=4, resume="auto")
    assert rates(tmp_path)[2] == pytest.approx(expected)


@pytest.mark.component
def test_a_resume_without_changes_has_the_weights_of_a_run_that_was_not_interrupted(tmp_path, tiny_policy):
    algo = COSINE | {"warmup_steps": 1, "weight_decay": 0.01, "max_grad_norm": 0.5}
    run(tmp_path / "whole", tiny_policy, algo, steps=4)
    config = make_config(tmp_path / "resumed", tiny_policy, algo=algo, train={"max_steps": 4})
    trainer = make_trainer(config, make_accelerator(config))
    collect = trainer.outside.collector.next

    def killed(step: int, version: int):
        if step == 3:
            raise KeyboardInterrupt
        return collect(step, version)

    trainer.outside.collector.next = killed
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    run(tmp_path / "resumed", tiny_policy, algo, steps=4, resume="auto")
    assert rates(tmp_path / "whole") == rates(tmp_path / "resumed")
    saved = "checkpoints/step_000004/policy/model.safetensors"
    whole, resumed = (load_file(tmp_path / name / saved) for name in ("whole", "resumed"))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.component
def test_betas_weight_decay_and_clipping_are_those_of_the_new_config(tmp_path, tiny_policy):
    run(tmp_path, tiny_policy, {}, steps=1)
    change = {"adam_beta1": 0.5, "adam_beta2": 0.6, "weight_decay": 0.3, "max_grad_norm": 0.25}
    config = make_config(tmp_path, tiny_policy, algo=change, resume="auto", train={"max_steps": 1})
    trainer = make_trainer(config, make_accelerator(config))
    trainer.run()
    trained = trainer.learner.policy
    (group,) = trained._optimizer.param_groups
    assert (group["betas"], group["weight_decay"]) == ((0.5, 0.6), 0.3)
    assert trained._engine.max_grad_norm == 0.25


def test_deepspeed_clips_as_the_config_says_and_not_as_the_checkpoint_did(tmp_path, tiny_policy):
    make_accelerator(make_config(tmp_path, tiny_policy))  # AcceleratedOptimizer needs its state

    class Zero(torch.optim.SGD):
        clip_grad = 7.0  # as ZeRO-2 has it after loading

    zero = Zero([nn.Parameter(torch.zeros(1))], lr=0.0)
    engine = DeepSpeedZero(stage=2, config={}, num_processes=2).engine(
        nn.Module(), AcceleratedOptimizer(zero, device_placement=False), max_grad_norm=0.5
    )
    engine.restore_options()
    assert zero.clip_grad == 0.5


def test_the_schedule_reaches_groups_that_loading_made_anew(tmp_path, tiny_policy):
    config = make_config(tmp_path, tiny_policy)
    algo = AlgoConfig(lr_scheduler_type="linear", learning_rate=1.0)
    model = nn.Linear(2, 1)
    trained = TrainedModel(make_accelerator(config), model, algo, learning_rates={"": 1.0}, num_steps=4)
    # As DeepSpeed's CPU Adam leaves it: a second optimizer, whose groups are its own after loading.
    other = torch.optim.AdamW([dict(group) for group in trained._optimizer.param_groups])
    trained._optimizer.optimizer = other
    trained.restore_options()
    trained.backward(model(torch.ones(1, 2)).sum(), is_last=True)
    assert other.param_groups[0]["lr"] == 0.75


@pytest.mark.component
@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ({}, {"model": {"lora_r": 2}}, r"model\.lora_r 0 \(now 2\)"),
        (
            {"model": {"lora_r": 2}},
            {"model": {"lora_r": 2, "lora_target_modules": ["q_proj"]}},
            r"model\.lora_target_modules \[\] \(now \['q_proj'\]\)",
        ),
        ({}, {"algo": {"loss_type": "ppo"}}, r"algo\.loss_type cispo \(now ppo\)"),
        (
            {"algo": {"loss_type": "ppo"}},
            {"algo": {"loss_type": "ppo", "critic": "policy_trunk"}},
            r"algo\.critic own_backbone \(now policy_trunk\)",
        ),
    ],
)
def test_an_option_that_selects_other_parameters_is_refused_by_name(
    before, after, named, tmp_path, tiny_policy
):
    run(tmp_path, tiny_policy, before.get("algo", {}), steps=1, model=before.get("model", {}))
    with pytest.raises(ValueError, match=named):
        run(
            tmp_path,
            tiny_policy,
            after.get("algo", {}),
            steps=2,
            resume="auto",
            model=after.get("model", {}),
        )


@pytest.mark.component
def test_what_changed_is_named_with_both_values(tmp_path, tiny_policy, caplog):
    run(tmp_path, tiny_policy, COSINE, steps=1)
    run(
        tmp_path,
        tiny_policy,
        COSINE | {"learning_rate": 3e-4, "critic": "policy_trunk"},
        steps=2,
        resume="auto",
    )
    assert (
        "algo.critic own_backbone (now policy_trunk), algo.learning_rate 0.0001 (now 0.0003)" in caplog.text
    )
    stored = yaml.safe_load((tmp_path / "checkpoints" / "step_000002" / "config.yaml").read_text())
    assert stored["algo"]["learning_rate"] == 3e-4
