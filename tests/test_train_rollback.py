"""A run that answers its alarms: it stops, or returns to a healthy checkpoint at half the learning rate."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_fakes import make_config, make_trainer, read_metric
from transformers import AutoModelForCausalLM

from configs.schema.train import ALARMS
from train.checkpoint_files import finished_checkpoints, read_state
from train.distributed import make_accelerator
from train.health.response import UnhealthyRun
from train.health.rollbacks import read_rollbacks
from train.metrics_file import METRICS_FILE, read_metrics

pytestmark = pytest.mark.component

OTHERS = [name for name in ALARMS if name != "length_halved"]
"""Of random samples nothing but the length is steady."""


def config_of(folder: Path, model: Path, on_alarm: str, **changes: Any):
    train = {"max_steps": 6, "keep_last": 1, "on_alarm": on_alarm, "ignored_alarms": OTHERS}
    train |= changes.pop("train", {})
    return make_config(folder, model, train=train, **changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def steps_of(folder: Path) -> list[int]:
    return [read_state(path).step for path in finished_checkpoints(folder / "checkpoints")]


def test_a_warned_run_goes_on_and_records_its_alarms(tmp_path, tiny_policy, capsys):
    config = config_of(tmp_path, tiny_policy, "warn", train={"max_steps": 5})
    trainer = make_trainer(config, make_accelerator(config), short_at=[3, 4])
    assert trainer.run()
    assert read_metric(tmp_path, "alarms") == {1: 0, 2: 0, 3: 0, 4: 2, 5: 2}
    assert read_metric(tmp_path, "alarm/length_halved") == {4: 2, 5: 2}
    said = capsys.readouterr().out
    # One line when it is new, for each of the two roles; none in the step after.
    assert said.count("Alarm: step 4: length_halved: completion_tokens/") == 2
    assert "Alarm: step 5" not in said


def test_a_stopped_run_ends_with_the_reason_and_without_a_checkpoint_of_the_failed_step(
    tmp_path, tiny_policy
):
    config = config_of(tmp_path, tiny_policy, "stop", train={"keep_last": 3})
    with pytest.raises(UnhealthyRun, match=r"step 4: length_halved: completion_tokens/.*on_alarm=warn"):
        make_trainer(config, make_accelerator(config), short_at=[3]).run()
    assert steps_of(tmp_path) == [1, 2, 3]
    assert read_metric(tmp_path, "alarms")[4] == 2
    resumed = config_of(tmp_path, tiny_policy, "warn", resume="auto")
    assert make_trainer(resumed, make_accelerator(resumed)).run()


def test_a_rollback_returns_to_the_policy_that_was_seen_healthy_at_half_the_rate(tmp_path, tiny_policy):
    folder = tmp_path / "run"
    config = config_of(folder, tiny_policy, "rollback", algo={"loss_type": "ppo"})
    trainer = make_trainer(config, make_accelerator(config), short_at=[3])
    publish, published = trainer.outside.publisher.publish, {}

    def keep(made, version):
        host = made.to_host()  # weights are read once
        published[version] = {name: value.clone() for name, value in host.state.items()}
        publish(SimpleNamespace(to_host=lambda: host), version)

    trainer.outside.publisher.publish = keep
    assert trainer.run()
    # Step 4 saw version 3 fail; version 2 was seen healthy by step 3, and is published as 5.
    assert list(published) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert all(torch.equal(published[5][name], value) for name, value in published[2].items())
    assert [line["step"] for line in read_metrics(folder / METRICS_FILE)] == [1, 2, 3, 4, 5, 6]
    assert read_metric(folder, "policy_version") == {1: 1, 2: 2, 3: 6, 4: 7, 5: 8, 6: 9}
    # Every step draws its own data once more: the position went back, too.
    assert read_metric(folder, "position") == {step: step for step in range(1, 7)}
    rates = {1: 1e-3, 2: 1e-3, 3: 5e-4, 4: 5e-4, 5: 5e-4, 6: 5e-4}
    assert read_metric(folder, "learning_rate") == rates
    assert read_metric(folder, "critic_learning_rate")[3] == config.algo.critic_learning_rate / 2
    assert read_metric(folder, "alarms") == dict.fromkeys(range(1, 7), 0.0)
    (made,) = read_rollbacks(folder)
    assert (made.from_step, made.to_step, made.policy_version) == (4, 2, 5)
    assert all("step 4: length_halved" in alarm for alarm in made.alarms)
    given_up = read_metrics(folder / made.metrics)
    assert [line["step"] for line in given_up] == [1, 2, 3, 4] and given_up[-1]["alarms"] == 2
    # The newest checkpoint, and the newest that a later step has shown to be healthy.
    assert steps_of(folder) == [5, 6]


def test_a_run_killed_after_a_rollback_resumes_at_half_the_rate_with_the_same_result(tmp_path, tiny_policy):
    algo = {"lr_scheduler_type": "cosine", "warmup_steps": 2}
    config = config_of(tmp_path / "whole", tiny_policy, "rollback", algo=algo)
    trainer = make_trainer(config, make_accelerator(config), short_at=[3])
    publish = trainer.outside.publisher.publish

    def copy_the_folder(made, version):
        if version == 5:  # the rollback is recorded, and not one step is made after it
            shutil.copytree(tmp_path / "whole", tmp_path / "killed")
        publish(made, version)

    trainer.outside.publisher.publish = copy_the_folder
    trainer.run()
    assert steps_of(tmp_path / "killed") == [2]
    again = config_of(tmp_path / "killed", tiny_policy, "rollback", algo=algo, resume="auto")
    resumed = make_trainer(again, make_accelerator(again))
    resumed.run()
    assert resumed.outside.publisher.versions == [5, 6, 7, 8, 9]
    for name in ("loss", "learning_rate", "policy_version"):
        assert read_metric(tmp_path / "killed", name) == read_metric(tmp_path / "whole", name)
    halved = read_metric(tmp_path / "whole", "learning_rate")[3]
    whole = make_config(tmp_path / "plain", tiny_policy, algo=algo, train={"max_steps": 6})
    make_trainer(whole, make_accelerator(whole)).run()
    assert halved == pytest.approx(read_metric(tmp_path / "plain", "learning_rate")[3] / 2)
    final = "checkpoints/step_000006/policy"
    expected, found = weights(tmp_path / "whole" / final), weights(tmp_path / "killed" / final)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_an_alarm_before_the_first_checkpoint_returns_to_the_initial_policy(tmp_path, tiny_policy):
    config = config_of(tmp_path, tiny_policy, "rollback", train={"save_steps": 20, "max_steps": 3})
    trainer = make_trainer(config, make_accelerator(config), short_at=[1])
    assert trainer.run()
    assert [(made.from_step, made.to_step) for made in read_rollbacks(tmp_path)] == [(2, 0)]
    assert read_metric(tmp_path, "learning_rate") == {1: 5e-4, 2: 5e-4, 3: 5e-4}


def test_after_the_last_rollback_the_next_alarm_stops_the_run(tmp_path, tiny_policy):
    config = config_of(tmp_path, tiny_policy, "rollback", train={"max_rollbacks": 2})
    # Back at step 2, version 5 is published, then 8: step 4 fails again, and then step 3 at once.
    trainer = make_trainer(config, make_accelerator(config), short_at=[3, 6, 7, 8, 9])
    with pytest.raises(UnhealthyRun, match="all 2 rollbacks were made"):
        trainer.run()
    assert [made.from_step for made in read_rollbacks(tmp_path)] == [4, 4]
    assert read_metric(tmp_path, "learning_rate")[3] == 2.5e-4


def test_while_samples_are_stale_the_checkpoints_that_they_will_show_are_kept(tmp_path, tiny_policy):
    config = config_of(tmp_path, tiny_policy, "rollback")
    config.collect.max_staleness = 2
    make_trainer(config, make_accelerator(config)).run()
    # Step 5 = 2 + 1 + 2 was the first whose samples are all of policy 2 or later; step 7 will be that of 4.
    assert steps_of(tmp_path) == [2, 4, 6]
