"""``python -m rollout`` from config to files, over HTTP to a stand-in for a worker."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPO
from safetensors.torch import save_file
from stub_server import StubOptions, stub_process
from tiny import byte_tokenizer

from configs.compose import load
from rollout.command import main
from rollout.engine import RolloutEngine

pytestmark = pytest.mark.component

ANSWERS = [7, 7, 7, 3, 5]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A worker that boxes 7 three times in five."""
    tokenizer = byte_tokenizer()
    tails = [[*tokenizer(f" \\boxed{{{answer}}}").input_ids, 1] for answer in ANSWERS]
    with stub_process(StubOptions(median_tokens=30, sigma=0.5, tails=tails)) as found:
        yield found


@pytest.fixture
def needed(tmp_path: Path) -> list[str]:
    """Four problems whose answer is 7, and a tokenizer."""
    data = tmp_path / "problems.jsonl"
    lines = [{"id": f"p{i}", "question": f"{i} + {7 - i} =", "answer": "7"} for i in range(4)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    byte_tokenizer().save_pretrained(tmp_path / "policy")
    return [
        f"model.path={tmp_path / 'policy'}",
        f"data.path={data}",
        f"output_dir={tmp_path / 'out'}",
        "rollout.max_retries=0",
        "samples=3",
    ]


def _run(*overrides: str) -> None:
    main(load("evaluation", list(overrides)), [])


def _report(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out" / "report.json").read_text())


def test_a_comparison_writes_its_files_and_started_again_asks_for_nothing(
    url: str, needed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    compared = [*needed, "operators=[trace,sr,pdr,majority,best_of_n]"]
    _run(*compared, f"rollout.urls=[{url}]")
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    assert names >= {"rollouts.jsonl", "report.json", "report.md", "pareto.png", "config.yaml", "page.html"}
    assert "machine " in (out / "versions.txt").read_text()
    first = _report(tmp_path)
    final = [row["operator"] for row in first["rows"] if row["final"]]
    assert final[:5] == ["trace", "sr", "pdr", "majority", "best_of_n"]
    assert final[5:] and all(name.startswith("majority@") for name in final[5:])
    assert {row["problems"] for row in first["rows"]} == {4}
    by_name = {row["operator"]: row for row in first["rows"] if row["final"]}
    assert by_name["majority"]["accuracy"] >= by_name["trace"]["accuracy"] > 0
    assert by_name["majority"]["majority_follow_rate"] == 1.0
    before = (out / "rollouts.jsonl").read_bytes()
    # No endpoint is there any more: it is all on disk.
    _run(*compared, "rollout.urls=[http://127.0.0.1:9]")
    assert _report(tmp_path) == first
    assert (out / "rollouts.jsonl").read_bytes() == before
    assert capsys.readouterr().out.strip().endswith((out / "report.md").read_text().strip()[-40:])


def test_usage_and_budgets_in_the_file_add_up(url: str, needed: list[str], tmp_path: Path):
    _run(*needed, "operator.schedule=[3,1]", f"rollout.urls=[{url}]")
    lines = [json.loads(line) for line in (tmp_path / "out" / "rollouts.jsonl").read_text().splitlines()[1:]]
    for line in lines:
        total = sum(sum(call["usage"].values()) for call in line["calls"])
        assert line["budgets"]["b_total"] == line["outcome"]["rounds"][-1]["b_total"] == total
        for call in line["calls"]:
            assert call["usage"]["prompt_tokens"] == len(call["prompt_ids"])
            assert call["usage"]["completion_tokens"] == len(call["completion_ids"])
    pdr = [line for line in lines if line["outcome"]["operator"] == "pdr"]
    assert len(pdr) == 12
    (row,) = [row for row in _report(tmp_path)["rows"] if row["operator"] == "pdr" and row["final"]]
    assert row["b_total"] == pytest.approx(sum(line["budgets"]["b_total"] for line in pdr) / 12)
    assert row["b_seq"] == pytest.approx(sum(line["budgets"]["b_seq"] for line in pdr) / 12)


def test_a_folder_with_another_evaluation_is_refused_but_another_endpoint_is_not(
    url: str, needed: list[str], tmp_path: Path
):
    _run(*needed, "operator=trace", f"rollout.urls=[{url}]")
    with pytest.raises(
        SystemExit, match=r"rollout\.temperature was 1\.0 and is 0\.5; seed was 0 and is 1\. "
    ):
        _run(*needed, "operator=trace", f"rollout.urls=[{url}]", "seed=1", "rollout.temperature=0.5")
    _run(*needed, "operator=trace", "rollout.urls=[http://127.0.0.1:9]", "rollout.max_concurrency=3")


def test_a_folder_in_which_nothing_was_evaluated_holds_no_evaluation(
    url: str, needed: list[str], tmp_path: Path
):
    with pytest.raises(SystemExit):
        _run(*needed, "operator=trace", "rollout.urls=[http://127.0.0.1:9]")
    _run(*needed, "operator=trace", f"rollout.urls=[{url}]", "seed=1")
    assert (tmp_path / "out" / "report.json").exists()


def test_a_limit_evaluates_the_first_problems_of_the_set(url: str, needed: list[str], tmp_path: Path):
    _run(*needed, "operator=trace", f"rollout.urls=[{url}]", "data.limit=2")
    lines = (tmp_path / "out" / "rollouts.jsonl").read_text().splitlines()[1:]
    assert {json.loads(line)["outcome"]["problem_id"] for line in lines} == {"p0", "p1"}


def test_an_evaluation_as_a_whole_has_no_limit(url: str, needed: list[str], monkeypatch: pytest.MonkeyPatch):
    limits = []
    run = RolloutEngine.run

    def recorded(
        engine: RolloutEngine, work: Coroutine[Any, Any, Any], timeout_seconds: float | None, *, what: str
    ):
        if what == "the evaluation":
            limits.append(timeout_seconds)
        return run(engine, work, timeout_seconds, what=what)

    monkeypatch.setattr(RolloutEngine, "run", recorded)
    _run(*needed, f"rollout.urls=[{url}]")
    # That each request has its own limit is tested further down.
    assert limits == [None]


def test_an_operator_that_does_not_exist_names_those_that_do(needed: list[str]):
    with pytest.raises(
        SystemExit, match=r"no operator 'tracee'; choose one of adaptive, .* Did you mean 'trace'"
    ):
        _run(*needed, "operators=[tracee]")


def test_an_endpoint_that_is_not_there_ends_the_command(needed: list[str], tmp_path: Path):
    with pytest.raises(SystemExit, match=r"rollout: .*127\.0\.0\.1:9"):
        _run(*needed, "operator=trace", "rollout.urls=[http://127.0.0.1:9]")
    assert not (tmp_path / "out" / "report.json").exists()


def test_a_run_without_one_answer_ends_with_the_reason_and_can_be_gone_on_with(
    url: str, needed: list[str], tmp_path: Path
):
    options = StubOptions(seconds_per_token=10.0)
    with stub_process(options) as slow, pytest.raises(SystemExit, match=r"Not one of 12 rollouts got an"):
        _run(*needed, "operator=trace", f"rollout.urls=[{slow}]", "rollout.request_timeout_seconds=0.2")
    assert not (tmp_path / "out" / "report.json").exists()
    lines = (tmp_path / "out" / "rollouts.jsonl").read_text().splitlines()[1:]
    assert len(lines) == 12 and all(json.loads(line)["failure"]["reason"] for line in lines)
    _run(*needed, "operator=trace", f"rollout.urls=[{url}]")
    assert _report(tmp_path)["run"]["failed"] == 0


def test_an_evaluation_of_a_broken_policy_ends_in_an_error_and_without_a_report(
    needed: list[str], tmp_path: Path
):
    with (
        stub_process(StubOptions(median_tokens=5, logprob="-9999.0")) as broken,
        pytest.raises(SystemExit, match=r"Not one of \d+ rollouts got an answer.*weights .* are broken"),
    ):
        _run(*needed, f"rollout.urls=[{broken}]")
    assert not (tmp_path / "out" / "report.json").exists()


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("policy/tokenizer.json", "<think>", "<thonk>", r"tokenizer of model\.path was '\w+' and is '\w+'"),
        ("problems.jsonl", '"2 + 5 ="', '"5 + 2 ="', r"question of problem 'p2' was '2 \+ 5 =' and is"),
        (
            "problems.jsonl",
            '"answer": "7"',
            '"answer": "7.0"',
            r"answer of problem 'p0' was '7' and is '7\.0'",
        ),
        (
            "mine/operator/own.yaml",
            "[3, 1]",
            "[2, 1]",
            r"operators\.own\.schedule was \[3, 1\] and is \[2, 1\]",
        ),
    ],
)
def test_a_folder_is_refused_after_what_made_it_changed_under_the_same_names(
    url: str, needed: list[str], tmp_path: Path, file: str, old: str, new: str, message: str
):
    (tmp_path / "mine" / "operator").mkdir(parents=True)
    own = "defaults: [prompts: default, thinking: think, _self_]\nname: own\nkind: pdr\nschedule: [3, 1]\n"
    (tmp_path / "mine" / "operator" / "own.yaml").write_text(own)
    command = [*needed, f"hydra.searchpath=[file://{tmp_path / 'mine'}]", "operator=own"]
    _run(*command, f"rollout.urls=[{url}]")
    report = (tmp_path / "out" / "report.json").read_bytes()
    _edit(tmp_path / file, old, new)
    # No endpoint is there: it is refused before any is asked for.
    with pytest.raises(SystemExit, match=rf"{message}.*Set output_dir to a new folder, or delete"):
        _run(*command, "rollout.urls=[http://127.0.0.1:9]")
    assert (tmp_path / "out" / "report.json").read_bytes() == report
    _edit(tmp_path / file, new, old)
    _run(*command, "rollout.urls=[http://127.0.0.1:9]")


def test_other_weights_under_the_same_path_are_refused(url: str, needed: list[str], tmp_path: Path):
    weights = tmp_path / "policy" / "model.safetensors"
    save_file({"a": torch.zeros(8)}, weights)
    _run(*needed, "operator=trace", f"rollout.urls=[{url}]")
    save_file({"a": torch.ones(8)}, weights)
    with pytest.raises(SystemExit, match=r"weights of model\.path was '\w+' and is '\w+'\."):
        _run(*needed, "operator=trace", f"rollout.urls=[{url}]")


def test_more_samples_problems_and_operators_are_added_and_fewer_are_reported_alone(
    url: str, needed: list[str], tmp_path: Path
):
    def final(*overrides: str) -> dict[str, tuple[int, int]]:
        _run(*needed, *overrides)
        rows = [row for row in _report(tmp_path)["rows"] if row["final"]]
        return {
            row["operator"]: (row["problems"], row["samples"]) for row in rows if "@" not in row["operator"]
        }

    first = [f"rollout.urls=[{url}]", "samples=1", "data.limit=2"]
    assert final(*first, "operators=[trace]") == {"trace": (2, 1)}
    made = (tmp_path / "out" / "rollouts.jsonl").read_text()
    grown = final(f"rollout.urls=[{url}]", "samples=2", "operators=[trace,pdr,sr]")
    assert grown == {"trace": (4, 2), "pdr": (4, 2), "sr": (4, 2)}
    assert (tmp_path / "out" / "rollouts.jsonl").read_text().startswith(made)
    offline = ["rollout.urls=[http://127.0.0.1:9]", "samples=1", "operators=[pdr,trace]"]
    assert final(*offline) == {"pdr": (4, 1), "trace": (4, 1)}


def test_ctrl_c_ends_an_evaluation_with_what_is_finished_and_the_command_that_resumes(
    needed: list[str], tmp_path: Path
):
    journal = tmp_path / "out" / "rollouts.jsonl"
    tails = [[*byte_tokenizer()(" \\boxed{7}").input_ids, 1]]
    slow = StubOptions(median_tokens=30, sigma=1.0, tails=tails, slots=1, seconds_per_token=0.02)
    with stub_process(slow) as url:
        given = [*needed, f"rollout.urls=[{url}]", "operators=[trace]"]
        process = subprocess.Popen(
            [sys.executable, "-m", "rollout", *given],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPO)},
        )
        while not (journal.exists() and journal.read_text().count("\n") >= 2):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 75
        line = errors.strip().splitlines()[-1]
        assert line == (
            f"rollout: stopped by SIGINT; finished rollouts are in {journal}; resume with: "
            f"python -m rollout {shlex.join(given)}"
        )
        assert "Traceback" not in errors
        finished = journal.read_text()
        assert 2 <= finished.count("\n") < 12 and finished.endswith("\n")
        _run(*given)
    assert (
        journal.read_text().startswith(finished) and journal.read_text().count("\n") == 1 + 12
    )  # the identity, the rollouts
