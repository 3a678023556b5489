"""A study: what it runs, in which order, what it leaves alone, and its table."""

import json
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from evaluation_fakes import open_journal
from fakes import ScriptedPolicy, operator, roll

from configs.schema import ArmConfig, StudyConfig
from configs.thinking import ThinkingMarks
from rollout.evaluation.outcomes import reduce
from train.study import __main__ as study
from train.study.__main__ import stages, trained
from train.study.table import COLD_START, Trained, study_table


def _study(folder: Path, **changes) -> StudyConfig:
    options = {
        "output_dir": str(folder),
        "seeds": [0, 1],
        "training": ["experiment=demo"],
        "evaluation": ["data=reasoning_gym"],
        "arms": [
            ArmConfig(name="one", overrides=["algo.operator_fraction=0"]),
            ArmConfig(name="one more", start="one"),
        ],
        "differences": [["one", COLD_START], ["one more", "one"]],
    }
    return StudyConfig(**(options | changes))


def test_an_arm_starts_from_the_policy_of_the_arm_before_it_with_the_same_seed(tmp_path: Path):
    made = {stage.name: stage for stage in stages(_study(tmp_path))}
    assert list(made) == [
        "cold start",
        "evaluation of the cold start",
        *(
            f"{arm}, seed {seed}{part}"
            for seed in (0, 1)
            for arm in ("one", "one more")
            for part in ("", ": export", ": evaluation")
        ),
    ]
    assert f"model.path={tmp_path}/cold_start/policy" in made["one, seed 1"].command
    assert f"model.path={tmp_path}/seed_1/one/policy" in made["one more, seed 1"].command
    assert {"seed=1", "resume=auto", "experiment=demo"} <= set(made["one more, seed 1"].command)
    assert "algo.operator_fraction=0" not in made["one more, seed 1"].command
    assert made["one more, seed 0: evaluation"].made == tmp_path / "seed_0/one_more/evaluation/report.json"


def test_what_is_done_is_not_done_again_and_a_failure_shows_the_log(tmp_path: Path, capsys):
    config = _study(tmp_path)
    first, second, *_ = stages(config)
    first.made.parent.mkdir(parents=True)
    first.made.touch()
    broken = replace(
        second, command=[study.sys.executable, "-c", "print('all is lost'); raise SystemExit(3)"]
    )
    with pytest.raises(SystemExit, match=r"(?s)ended with status 3\. .*all is lost.*Start the study again"):
        study._run(broken, 60.0)
    assert broken.log.read_text() == "all is lost\n"


def test_what_was_made_with_other_options_is_not_taken_for_done(tmp_path: Path, monkeypatch, capsys):
    ran: list[str] = []

    def make(stage: study.Stage, _seconds: float) -> None:
        ran.append(stage.name)
        stage.log.parent.mkdir(parents=True, exist_ok=True)
        if "export" in stage.name or "evaluation" in stage.name or stage.name == "cold start":
            stage.made.parent.mkdir(parents=True, exist_ok=True)
            stage.made.touch()

    monkeypatch.setattr(study, "_run", make)
    monkeypatch.setattr(study, "study_table", lambda *_: "table")
    study.main(_study(tmp_path), [])
    assert ran == [stage.name for stage in stages(_study(tmp_path))]
    ran.clear()
    study.main(_study(tmp_path), [])
    assert ran == []
    other = _study(tmp_path, evaluation=["data=reasoning_gym", "samples=2"])
    with pytest.raises(SystemExit, match=r"'evaluation of the cold start' was made .* now it has samples=2"):
        study.main(other, [])
    for record in tmp_path.rglob("rollout.arguments"):
        record.unlink()
    with pytest.raises(SystemExit, match="by an earlier version, which does not tell how"):
        study.main(_study(tmp_path), [])
    assert ran == []


def test_a_stage_that_hangs_is_ended_with_all_its_processes(tmp_path: Path):
    first, *_ = stages(_study(tmp_path))
    child = "import time; time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    hanging = replace(first, command=[study.sys.executable, "-c", code])
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(SystemExit, match=r"took longer than stage_timeout_seconds = 2\."):
        study._run(hanging, 2.0)
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.component
def test_a_request_to_stop_asks_the_running_stage_and_ends_the_study_with_its_own_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    first, *_ = stages(_study(tmp_path))
    code = (
        "import signal, time\ntime.sleep(1)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('saved') or exit(75))\ntime.sleep(60)"
    )
    listening = replace(first, command=[study.sys.executable, "-u", "-c", code])
    monkeypatch.setattr(study.STOP, "name", "SIGTERM")
    with pytest.raises(SystemExit) as ended:
        study._run(listening, 30.0)
    assert ended.value.code == 75 and listening.log.read_text() == "saved\n"
    said = capsys.readouterr().out
    assert said.startswith("study: stopped by SIGTERM in 'cold start'; resume with: python -m train.study")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": []}, "arms is empty: choose a study"),
        ({"seeds": []}, "the number of seeds must be at least 1"),
        (
            {"arms": [ArmConfig(name="a", start="b")], "differences": []},
            "'a' starts from 'b', which is not among the arms",
        ),
        ({"arms": [ArmConfig(name="a"), ArmConfig(name="a")], "differences": []}, "Two arms are called 'a'"),
        ({"differences": [["one", "two"]]}, "differences holds .* a pair of arms was expected"),
    ],
)
def test_a_study_that_cannot_run_is_refused(tmp_path: Path, changes, message: str):
    with pytest.raises(ValueError, match=message):
        _study(tmp_path, **changes)


def _evaluated(folder: Path, seed: int) -> dict[str, float]:
    """Writes an evaluation whose vote is right on every fourth problem; returns its accuracies."""
    right = {}
    with open_journal(folder / "rollouts.jsonl") as journal:
        for name, schedule in (("trace", (1,)), ("pdr", (4, 1))):
            made = []
            for problem in range(20):
                rollout = roll(ScriptedPolicy(), operator(schedule, name=name), seed=seed, name=f"p{problem}")
                outcome = reduce(rollout, 0, ThinkingMarks())
                journal.add(outcome, rollout)
                made.append(outcome.correct)
            right[name] = 100 * sum(made) / len(made)
    by_problem = {f"p{problem}": float(problem % 4 == seed) for problem in range(20)}
    vote = {"operator": "majority@5", "matched_to": ["pdr"], "by_problem": by_problem}
    (folder / "report.json").write_text(json.dumps({"rows": [{"accuracy": 0.9}, vote]}))
    return right


def test_the_table_holds_means_over_seeds_and_paired_differences(tmp_path: Path):
    config = _study(tmp_path)
    policies = list(trained(config))
    assert policies[0] == Trained(arm=COLD_START, folder=tmp_path / "cold_start" / "evaluation")
    right = {(each.arm, i): _evaluated(each.folder, i) for i, each in enumerate(policies)}
    lines = study_table(config, policies).splitlines()
    assert lines[0] == "| arm | trace | pdr | majority at the cost of pdr | pdr - majority |"
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| cold start", "| one", "| one more"]
    ones = [right["one", 1]["pdr"], right["one", 2]["pdr"]]
    cell = lines[3].split(" | ")[2]
    assert cell.startswith(f"{sum(ones) / 2:.1f} [")
    assert cell.endswith(f"({ones[0]:.1f}, {ones[1]:.1f})")
    vote, gain = lines[3].removesuffix(" |").split(" | ")[3:]
    assert vote.startswith("25.0 [") and vote.endswith("(25.0, 25.0)")
    assert gain.startswith(f"{sum(ones) / 2 - 25:+.1f} [")
    gained = sum(ones) / 2 - right[COLD_START, 0]["pdr"]
    assert lines[8].split(" | ")[0] == "| one - cold start"
    assert lines[8].split(" | ")[2].startswith(f"{gained:+.1f} [")


def test_a_report_that_does_not_tell_where_its_vote_was_right_is_refused(tmp_path: Path):
    config = _study(tmp_path)
    policies = list(trained(config))
    for i, each in enumerate(policies):
        _evaluated(each.folder, i)
    file = policies[-1].folder / "report.json"
    content = json.loads(file.read_text())
    del content["rows"][1]["by_problem"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"report\.json does not tell .* majority@5 was right"):
        study_table(config, policies)
    file.write_text(json.dumps({"rows": content["rows"][:1]}))
    assert study_table(config, policies).splitlines()[4].endswith("| - | - |")


def test_a_vote_is_compared_on_the_problems_that_it_has_in_every_seed(tmp_path: Path):
    config = _study(tmp_path)
    policies = list(trained(config))
    for i, each in enumerate(policies):
        _evaluated(each.folder, i)
    for each, lost in zip(policies[1:3], ("p1", "p3"), strict=True):  # the seeds of one arm
        file = each.folder / "report.json"
        content = json.loads(file.read_text())
        del content["rows"][1]["by_problem"][lost]
        file.write_text(json.dumps(content))
    vote = study_table(config, policies).splitlines()[3].removesuffix(" |").split(" | ")[3]
    assert vote.endswith("(22.2, 27.8)")  # 4 and 5 of 18
