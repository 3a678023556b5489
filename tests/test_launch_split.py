"""The GPUs of one machine: the plan's best split, unless the user has chosen another."""

from conftest import config_with

from launch.job import job_processes
from launch.plan.planning import make_plan
from launch.split import choose_split
from rollout.build import training_calls

BASE = ["experiment=qwen3_8b_pdr", "data.path=x", "gpus=8"]


def _chosen(*overrides: str):
    config = config_with("job", BASE, overrides)
    return config, choose_split(config, [*BASE, *overrides], training_calls)


def test_a_user_who_names_no_number_gets_the_split_that_the_plan_calls_best():
    config, line = _chosen()
    best = make_plan(config_with("job", BASE, []), training_calls).best
    assert config.rollout.num_workers == best.workers > 1
    assert line is not None
    assert f"{best.workers} GPUs sample and {best.trainer} train" in line
    assert f"the plan expects {best.seconds.total:.0f} s a step instead of" in line
    workers, trainer = job_processes(config, BASE, {}, port=8000)
    assert workers.environment["CUDA_VISIBLE_DEVICES"].count(",") == best.workers - 1
    assert trainer.command[trainer.command.index("--num_processes") + 1] == str(best.trainer)


def test_a_number_that_the_user_names_holds_and_its_cost_is_told():
    best = make_plan(config_with("job", BASE, []), training_calls).best.workers
    config, line = _chosen("rollout.num_workers=2")
    assert config.rollout.num_workers == 2 != best
    assert line is not None and "2 GPUs sample and 6 train" in line
    assert "instead of" in line and f"with rollout.num_workers={best} " in line
    config, line = _chosen(f"rollout.num_workers={best}")
    assert (config.rollout.num_workers, line) == (best, None)


def test_without_a_plan_the_split_is_the_default_and_the_reason_is_told():
    config, line = _chosen("model.path=nowhere")
    assert config.rollout.num_workers == 1
    assert line is not None and "no plan could be made: model.path is 'nowhere'" in line


def test_nothing_is_split_on_a_cpu_or_between_turns_on_the_same_gpus_or_with_workers_elsewhere():
    for overrides in (
        ["gpus=0"],
        ["rollout.enable_sleep_mode=true"],
        ["rollout.urls=[http://a:1]"],
    ):
        config, line = _chosen(*overrides)
        assert (config.rollout.num_workers, line) == (1, None)
