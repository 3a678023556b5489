import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_fakes import make_config, make_groups, make_trainer, read_metric
from transformers import AutoModelForCausalLM

from train.distributed import from_rank_zero, make_accelerator

pytestmark = pytest.mark.component


def run(config, **collector):
    trainer = make_trainer(config, make_accelerator(config), **collector)
    trainer.run()
    return trainer


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def read_lines(output_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_updates_publishes_reports_evaluates_and_checkpoints(tmp_path, tiny_policy):
    config = make_config(tmp_path, tiny_policy, train={"max_steps": 4, "save_steps": 2, "eval_steps": 1})
    trainer = run(config)
    assert trainer.outside.publisher.versions == [1, 2, 3, 4]
    # Before the first step, when due, and once after the last.
    assert trainer.outside.evaluator.steps == [0, 1, 2, 3, 4]
    lines = read_lines(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line["updates"] == 1 and line["updates_refused"] == 0
        assert line["kl/trace"] >= 0 and line["kl/refine"] >= 0
        for role in ("trace", "refine"):
            assert 0 < line[f"mismatch/{role}"] <= line[f"mismatch_max/{role}"]
            assert line[f"mismatch_kl/{role}"] == pytest.approx(line[f"kl/{role}"])
            assert 0 <= line[f"mismatch_outside/{role}"] <= 1
        assert 0 < line["entropy/trace"] < math.log(261) + 1e-6
        assert line["loss"] == pytest.approx(line["loss/trace"] + line["loss/refine"])
        assert line["reward_parts/outcome/trace"] == line["reward/trace"]
        assert math.isfinite(line["grad_norm"]) and line["grad_norm"] > 0
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_000002",
        "step_000004",
    ]
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_workers_that_share_gpus_sleep_in_every_update_and_wake_at_the_publish(tmp_path, tiny_policy):
    shared = run(make_config(tmp_path / "a", tiny_policy, rollout={"enable_sleep_mode": True}))
    assert shared.outside.publisher.events == ["sleep", "publish"] * 3
    assert shared.outside.publisher.changes == 3  # one update follows on each batch
    assert run(make_config(tmp_path / "b", tiny_policy)).outside.publisher.events == ["publish"] * 3


def test_only_the_published_version_stays_on_disk_and_is_the_policy(tmp_path, tiny_policy):
    trainer = run(make_config(tmp_path, tiny_policy))
    (folder,) = (tmp_path / "weights").iterdir()
    assert folder.name == "version_000003"
    published = weights(folder)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(published[name], parameter.detach())
    start = weights(tiny_policy)
    assert all(not torch.equal(published[name], start[name]) for name, _ in trainer.model.named_parameters())


def test_token_budget_and_packing_do_not_change_the_result(tmp_path, tiny_policy):
    finals = []
    for budget, packing in ((160, "shared"), (4000, "shared"), (90, "padded")):
        config = make_config(
            tmp_path / f"{budget}",
            tiny_policy,
            train={"max_steps": 1, "tokens_per_micro_batch": budget, "packing": packing},
        )
        run(config)
        finals.append(read_lines(tmp_path / f"{budget}")[0])
    for name in ("loss", "grad_norm", "trained_tokens/trace", "trained_tokens/refine", "kl/refine"):
        assert finals[1][name] == pytest.approx(finals[0][name], rel=1e-5), name
        assert finals[2][name] == pytest.approx(finals[0][name], rel=1e-5), name


def test_several_updates_per_batch_each_take_a_step(tmp_path, tiny_policy):
    config = make_config(tmp_path, tiny_policy, algo={"num_updates": 2, "warmup_steps": 8})
    run(config)
    lines = read_lines(tmp_path)
    assert [line["updates"] for line in lines] == [2, 2, 2]
    assert [line["learning_rate"] for line in lines] == pytest.approx([0, 2e-3 / 8, 4e-3 / 8])


@pytest.mark.parametrize(
    "algo", [{"loss_type": "grpo"}, {"loss_type": "ppo"}, {"loss_type": "ppo", "critic": "policy_trunk"}]
)
def test_a_batch_that_is_not_finite_changes_nothing_and_the_third_in_a_row_stops_the_run(
    algo, tmp_path, tiny_policy
):
    config = make_config(tmp_path, tiny_policy, algo={"epsilon_high": 0.28, **algo})
    trainer = make_trainer(config, make_accelerator(config), poison=True)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    with pytest.raises(RuntimeError, match=r"of the policy was not finite 3 times in a row, .* step 3\."):
        trainer.run()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name])
    saved = sorted((tmp_path / "debug").iterdir())
    assert [path.name for path in saved] == [f"step_00000{step}.pt" for step in (1, 2, 3)]
    rows = torch.load(saved[0], weights_only=False)
    assert any(not math.isfinite(row.branches[0].sampler_logprobs[0]) for row in rows)
    assert {row.key.problem_id for row in rows} == {
        branch.call_id[:2] for row in rows for branch in row.branches
    }
    assert [line["updates_refused"] for line in read_lines(tmp_path)] == [1, 1]


def test_a_critic_that_is_not_finite_is_refused_with_the_policy_that_it_would_mislead(tmp_path, tiny_policy):
    config = make_config(tmp_path, tiny_policy, algo={"loss_type": "ppo", "epsilon_high": 0.2})
    trainer = make_trainer(config, make_accelerator(config))
    critic = trainer.learner.critic.model
    with torch.no_grad():
        critic.value_head.weight.fill_(math.inf)
    models = (trainer.model, critic.backbone)
    before = [{name: p.detach().clone() for name, p in model.named_parameters()} for model in models]
    with pytest.raises(RuntimeError, match="of the policy and the critic was not finite 3 times in a row"):
        trainer.run()
    for model, kept in zip(models, before, strict=True):
        assert all(torch.equal(p, kept[name]) for name, p in model.named_parameters())
    assert [line["critic_updates_refused"] for line in read_lines(tmp_path)] == [1, 1]


def test_a_step_without_signal_leaves_the_policy_alone(tmp_path, tiny_policy):
    config = make_config(tmp_path, tiny_policy, train={"max_steps": 2})
    trainer = make_trainer(config, make_accelerator(config))
    collect = trainer.outside.collector.next

    def all_wrong(step, version):
        batch = collect(step, version)
        if step == 1:
            return batch
        samples = [[replace(s, reward=-1.0, is_correct=False) for s in g.samples] for g in make_groups(2)]
        groups = [replace(g, samples=tuple(s)) for g, s in zip(make_groups(2), samples, strict=True)]
        return replace(batch, groups=tuple(groups))

    trainer.outside.collector.next = all_wrong
    trainer.run()
    first, second = (weights(tmp_path / "checkpoints" / f"step_00000{n}" / "policy") for n in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [line["updates"] for line in read_lines(tmp_path)] == [1, 0]


@pytest.mark.parametrize(
    "algo",
    [
        {"loss_type": "ppo", "num_iterations": 2},
        {"loss_type": "ppo", "critic": "policy_trunk", "critic_warmup_steps": 3, "beta": 0.1},
    ],
)
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(algo, tmp_path, tiny_policy):
    def config(name: str, max_steps: int, resume: str = "none"):
        return make_config(
            tmp_path / name, tiny_policy, resume=resume, algo=algo, train={"max_steps": max_steps}
        )

    whole = run(config("whole", 4))
    run(config("cut", 2))
    resumed = run(config("cut", 4, resume="auto"))
    # The workers first get the weights that the checkpoint holds.
    assert resumed.outside.publisher.versions == [2, 3, 4]
    assert read_metric(tmp_path / "cut") == read_metric(tmp_path / "whole")
    final = "checkpoints/step_000004/policy"
    expected, found = weights(tmp_path / "whole" / final), weights(tmp_path / "cut" / final)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for model, other in zip(whole.accelerator._models, resumed.accelerator._models, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_one_rank_needs_no_broadcast(tmp_path, tiny_policy):
    accelerator = make_accelerator(make_config(tmp_path, tiny_policy))
    assert from_rank_zero(accelerator, 7, what="a number") == 7


def test_bfloat16_without_master_weights_is_refused(tmp_path, tiny_policy):
    with pytest.raises(ValueError, match=r"model\.dtype is bfloat16, which needs DeepSpeed"):
        make_accelerator(make_config(tmp_path, tiny_policy, model={"dtype": "bfloat16"}))


def test_a_step_without_groups_changes_nothing_and_the_run_goes_on(tmp_path, tiny_policy):
    trainer = run(make_config(tmp_path, tiny_policy), empty=True)
    assert [line["updates"] for line in read_lines(tmp_path)] == [0, 0, 0]
    start = weights(tiny_policy)
    assert all(torch.equal(start[name], p.detach()) for name, p in trainer.model.named_parameters())
