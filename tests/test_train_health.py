"""The alarms on a run's metrics: recorded runs, each rule at its threshold, and the response to them."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from conftest import REPO
from training_fakes import make_config

from configs.schema.train import ALARMS
from train.evaluation import write_run_report
from train.health.rollbacks import (
    Rollback,
    forget_rollbacks,
    last_healthy,
    rate_scale,
    read_rollbacks,
    record_rollback,
)
from train.health.rules import RULES, Alarm, alarm_metrics, alarms_of
from train.metrics_file import METRICS_FILE, read_metrics
from train.report import Reporter

RECORDED = json.loads((REPO / "tests" / "recorded_runs.json").read_text())
"""The watched metrics of two real runs: the collapse of a 0.5B instruct model, and the demo."""
COLLAPSE = REPO.parent / "shared" / "gpu" / "gsm8k_lr1e-5_metrics.jsonl"
COLLAPSED = [
    (4, "length_halved", "completion_tokens/refine"),
    (5, "length_halved", "completion_tokens/refine"),
    (5, "length_halved", "completion_tokens/trace"),
]
ROLLBACK = Rollback(
    from_step=4, to_step=2, policy_version=5, alarms=("a", "b"), metrics="metrics_rollback_1.jsonl"
)


def history(columns: dict[str, Sequence[float | None]]) -> list[dict[str, float]]:
    """Columns by metric -> lines by step; None: the step lacks the metric."""
    lines = zip(*columns.values(), strict=True)
    return [
        {"step": step, **{k: v for k, v in zip(columns, values, strict=True) if v is not None}}
        for step, values in enumerate(lines, start=1)
    ]


def found(alarms: Sequence[Alarm]) -> list[tuple[int, str, str]]:
    return sorted((alarm.step, alarm.rule.name, alarm.metric) for alarm in alarms)


def write_metrics(folder: Path, lines: Sequence[dict[str, float]]) -> Path:
    path = folder / METRICS_FILE
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_recorded_collapse_raises_its_first_alarm_at_step_4():
    assert found(alarms_of(history(RECORDED["collapse"]))) == COLLAPSED


@pytest.mark.skipif(not COLLAPSE.is_file(), reason=f"the full record of the collapse, {COLLAPSE}, is absent")
def test_the_full_record_of_the_collapse_raises_the_same_alarms():
    assert found(alarms_of(read_metrics(COLLAPSE))) == COLLAPSED


def test_the_demo_which_learns_from_39_to_84_percent_raises_no_alarm():
    lines = history(RECORDED["demo"])
    assert len(lines) == 40
    assert alarms_of(lines) == []


@pytest.mark.parametrize(
    ("name", "metric", "healthy", "failed"),
    [
        ("length_halved", "completion_tokens/trace", [200, 190, 210, 101], [200, 190, 210, 99]),
        ("length_halved", "completion_tokens/trace", [200, 101], [200, 99]),
        ("length_doubled", "completion_tokens/refine", [20, 19, 21, 39], [20, 19, 21, 41]),
        ("entropy_rose", "entropy/trace", [0.3, 0.3, 0.3, 1.09], [0.3, 0.3, 0.3, 1.11]),
        ("entropy_vanished", "entropy/trace", [0.3] * 3 + [0.016] * 5, [0.3] * 3 + [0.014] * 5),
        ("far_from_initial", "ref_kl/trace", [0.49], [0.51]),
        ("no_signal", "groups_without_signal/trace", [1.0] * 4 + [0.74], [1.0] * 4 + [0.76]),
        ("truncated", "truncated/trace", [0.1] * 3 + [0.29] * 3, [0.1] * 3 + [0.31] * 3),
        ("accuracy_fell", "accuracy/trace", [0.6] * 5 + [0.26] * 5, [0.6] * 5 + [0.24] * 5),
        ("sampler_mismatch", "mismatch_kl/trace", [0.019], [0.021]),
        ("gradient_grew", "grad_norm", [0.2] * 5 + [0.9, 0.9, 0.9], [0.2] * 5 + [1.1, 1.1, 0.2]),
    ],
)
def test_a_rule_is_broken_beyond_its_threshold_and_nowhere_before(name, metric, healthy, failed):
    assert alarms_of(history({metric: healthy})) == []
    assert found(alarms_of(history({metric: failed}))) == [(len(failed), name, metric)]


@pytest.mark.parametrize(
    ("name", "metric", "values"),
    [
        ("entropy_vanished", "entropy/refine", [0.1] * 3 + [0.004] * 5),
        ("no_signal", "groups_without_signal/refine", [0.5] * 3 + [1.0] * 5),
    ],
)
def test_a_role_that_is_nearly_always_right_may_have_samples_that_are_alike(name, metric, values):
    def raised(accuracy: float, role: str = "refine") -> set[str]:
        accuracies = {f"accuracy/{role}": [0.2] * 3 + [accuracy] * 5}
        return {alarm.rule.name for alarm in alarms_of(history({metric: values, **accuracies}))}

    assert raised(0.91) == set()
    assert raised(0.89) == {name}
    assert raised(0.91, role="trace") == {name}
    # A later batch of few problems may be harder; a lasting fall is another alarm.
    values = [*values, values[-1]]
    lines = history({metric: values, "accuracy/refine": [0.2] * 3 + [0.91] * 5 + [0.7]})
    assert alarms_of(lines) == []


def test_values_that_are_not_finite_are_an_alarm_of_a_solved_role_too():
    lines = history({"entropy/trace": [0.1] * 5 + [math.nan], "accuracy/trace": [0.95] * 6})
    assert "entropy_vanished" in {alarm.rule.name for alarm in alarms_of(lines)}


def test_answers_that_cannot_be_read_count_among_all_that_were_checked():
    def lines(unreadable: int) -> list[dict[str, float]]:
        wrong: list[float | None] = [80, 80, 80, *[100 - unreadable] * 3]
        return history({"verdict/wrong": wrong, "verdict/unparsable": [20, 20, 20, *[unreadable] * 3]})

    assert alarms_of(lines(39)) == []
    assert found(alarms_of(lines(41))) == [(6, "unparsable", "unparsable")]


def test_one_spike_of_the_gradient_and_steps_without_updates_are_no_alarm():
    assert alarms_of(history({"grad_norm": [0.2] * 6 + [50.0] + [0.2] * 3})) == []
    assert alarms_of(history({"grad_norm": [0.2] * 5 + [0.0] * 20 + [0.3] * 3})) == []


def test_a_fast_collapse_does_not_hide_in_its_own_start():
    lengths = [200.0, 8.0, 8.0, 8.0, 8.0]
    assert [alarm.step for alarm in alarms_of(history({"completion_tokens/refine": lengths}))] == [2, 3, 4, 5]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_raises_an_alarm_and_does_not_blind_the_later_ones(value):
    alarms = alarms_of(history({"completion_tokens/trace": [200.0, value, 200.0, 99.0]}))
    halved = [alarm for alarm in alarms if alarm.rule.name == "length_halved"]
    assert [alarm.step for alarm in halved] == [2, 4]
    assert str(halved[0]).endswith(f"completion_tokens/trace is {value}, which is not finite")


def test_an_alarm_says_step_name_metric_value_and_limit():
    (alarm,) = alarms_of(history({"completion_tokens/refine": [204.4, 205.0, 190.2, 42.5]}))
    assert str(alarm) == (
        "step 4: length_halved: completion_tokens/refine is 42.5, below the limit 99.9 (0.5 x start)"
    )


def test_ignored_alarms_are_not_raised():
    lines = history(RECORDED["collapse"])
    assert alarms_of(lines, ["length_halved"]) == []
    assert found(alarms_of(lines, ["no_signal"])) == COLLAPSED


def test_the_metrics_of_alarms_count_them_by_name():
    alarms = alarms_of(history(RECORDED["collapse"]))
    assert alarm_metrics([]) == {"alarms": 0.0}
    assert alarm_metrics(alarms[1:]) == {"alarms": 2.0, "alarm/length_halved": 2.0}


def test_options_and_documentation_have_every_rule_with_its_limit():
    assert tuple(rule.name for rule in RULES) == ALARMS
    text = (REPO / "docs" / "metrics.md").read_text()
    section = text.partition("# Alarms\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| (above|below) [^|]+ \|", section, re.M))
    assert list(rows) == list(ALARMS)
    for rule in RULES:
        beyond = "above" if rule.worse == "higher" else "below"
        metric = rule.metric.replace("/", "/ROLE") if rule.name != "unparsable" else "verdict/unparsable"
        when = f", (mean|median) of {rule.window} steps" if rule.window > 1 else ""
        unless = ", unless solved" if rule.unless_solved else ""
        row = rf"\| `{rule.name}` \| `{metric}`[^|]*{when} \| {beyond} {re.escape(rule.limit)}{unless} \|"
        assert re.search(row, section), row


def test_unknown_alarms_and_responses_are_refused():
    for changes in ({"on_alarm": "panic"}, {"ignored_alarms": ["length"]}, {"max_rollbacks": 0}):
        with pytest.raises(ValueError, match=rf"train\.{next(iter(changes))} "):
            make_config(Path("out"), Path("model"), train=changes)


@pytest.mark.parametrize(
    ("unhealthy", "staleness", "expected"),
    [
        # The policy of checkpoint 6 is first seen in step 7, that of 4 in step 5.
        ({7}, 0, 4),
        ({6, 7}, 0, 4),
        ({5, 7}, 0, 2),
        ({4, 7}, 0, 2),
        # Two versions behind, checkpoint 4 is in every sample only at step 7; checkpoint 2 is at step 5.
        ({7}, 2, 2),
        ({5, 7}, 2, 0),
        ({1, 2, 3, 4, 5, 6, 7}, 0, 0),
    ],
)
def test_a_checkpoint_is_healthy_once_a_later_step_has_shown_it(unhealthy, staleness, expected):
    assert last_healthy([0, 2, 4, 6], unhealthy, step=7, max_staleness=staleness) == expected


def test_without_a_healthy_checkpoint_there_is_none_to_return_to():
    assert last_healthy([6], {7}, step=7, max_staleness=0) is None
    assert last_healthy([], {7}, step=7, max_staleness=0) is None


def test_rollbacks_read_back_and_each_halves_the_rate(tmp_path: Path):
    assert (read_rollbacks(tmp_path), rate_scale([])) == ([], 1.0)
    record_rollback(tmp_path, ROLLBACK)
    record_rollback(tmp_path, ROLLBACK)
    assert read_rollbacks(tmp_path) == [ROLLBACK, ROLLBACK]
    assert rate_scale(read_rollbacks(tmp_path)) == 0.25
    forget_rollbacks(tmp_path)
    assert read_rollbacks(tmp_path) == []


def test_the_report_of_a_run_lists_its_alarms_and_rollbacks(tmp_path: Path):
    config = make_config(tmp_path, Path("model"))
    write_metrics(tmp_path, history(RECORDED["demo"]))
    assert "Alarms" not in write_run_report(config)
    write_metrics(tmp_path, history(RECORDED["collapse"]))
    record_rollback(tmp_path, ROLLBACK)
    lines = [
        "rolled back from step 4 to step 2: a; b",
        "2 steps, first step 4: length_halved: completion_tokens/refine is 42.5, below the limit 99.9 "
        "(0.5 x start)",
        "step 5: length_halved: completion_tokens/trace is 45.8, below the limit 139 (0.5 x start)",
    ]
    assert write_run_report(config).endswith("\n".join(f"* {line}" for line in lines))
    assert json.loads((tmp_path / "report.json").read_text())["alarms"] == lines


def test_the_progress_bar_names_the_alarms_of_the_step(tmp_path: Path, capsys):
    reporter = Reporter(make_config(tmp_path, Path("model")))
    reporter.start(0)
    reporter.log(1, {"reward": 0.5, "alarms": 0.0})
    assert "ALARM" not in capsys.readouterr().err
    reporter.log(2, {"reward": 0.5, "alarms": 1.0, "alarm/length_halved": 1.0})
    reporter.close()
    assert "ALARM=length_halved" in capsys.readouterr().err


def command(*arguments: object) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "train.health", *map(str, arguments)],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.component
def test_the_command_prints_the_alarms_of_a_run_and_its_status_says_whether_there_were_any(tmp_path: Path):
    write_metrics(tmp_path, history(RECORDED["demo"]))
    assert command(tmp_path) == (0, "No alarms.\n", "")
    file = write_metrics(tmp_path, history(RECORDED["collapse"]))
    status, said, _ = command(file)
    assert (status, [line.split(": ")[:2] for line in said.splitlines()]) == (
        1,
        [["step 4", "length_halved"]] + [["step 5", "length_halved"]] * 2,
    )
    assert command(tmp_path, "--ignore", "length_halved")[0] == 0
    record_rollback(tmp_path, ROLLBACK)
    assert command(tmp_path, "--ignore", "length_halved")[:2] == (1, f"{ROLLBACK}\n")


@pytest.mark.component
def test_the_command_refuses_what_is_no_run(tmp_path: Path):
    other = tmp_path / "config.yaml"
    other.write_text(yaml.safe_dump({"a": [1]}))
    for path, why in ((tmp_path, "does not exist"), (other, "is not a file of metrics")):
        status, said, error = command(path)
        assert (status, said) == (2, "")
        assert error.startswith("health: ") and why in error and "Traceback" not in error
    (tmp_path / METRICS_FILE).write_text("")
    assert "has no finished step yet" in command(tmp_path)[2]
