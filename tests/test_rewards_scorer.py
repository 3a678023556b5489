"""The scorer: limits that hold, faults that cost nothing, callers of every kind."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest

from rewards.answers.extract import MAX_COMPLETION_CHARS
from rewards.processes import pool
from rewards.processes.fork_server import ForkServer, shared_fork_server
from rewards.processes.pool import Gate, _Worker
from rewards.processes.worker import read_message
from rewards.scorer import Scorer
from rewards.verdict import STATUSES

pytestmark = pytest.mark.component

REPOSITORY = Path(__file__).parents[1]
HARD_ANSWER = r"\boxed{\prod_{k=1}^{50}\cos(\frac{x}{2^k})}"


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer(limit_seconds=60.0, max_failure_share=1.0) as shared:
        yield shared


def test_gold_and_completion_cannot_be_swapped_by_position(scorer: Scorer) -> None:
    with pytest.raises(TypeError):
        scorer.score_sync("42", "42")  # type: ignore[misc]


def test_plain_answers_start_no_process() -> None:
    with Scorer() as fresh:
        assert fresh.score_sync(gold="1/2", completion=r"\boxed{0.5}").is_correct
        assert fresh.score_sync(gold="(1,2)", completion=r"\boxed{(1,3)}").status == "wrong"
        assert fresh.worker_pids() == []


def test_a_verdict_names_the_answer_and_how_it_was_found(scorer: Scorer) -> None:
    verdict = scorer.score_sync(gold=r"2\sqrt{2}", completion=r"<think>3</think>So $\boxed{\sqrt8}$.")
    assert (verdict.status, verdict.answer, verdict.found_by) == ("correct", r"\sqrt8", "box")
    assert verdict.seconds > 0


def test_a_check_that_hangs_is_killed_at_the_limit_and_the_next_is_served() -> None:
    with Scorer(num_workers=1, limit_seconds=2.0, max_failure_share=1.0) as fresh:
        assert fresh.score_sync(gold=r"\sqrt{8}", completion=r"\boxed{2\sqrt{2}}").is_correct
        (hanging,) = fresh.worker_pids()
        fresh._pool.limit_seconds = 1e-4  # no answer is known that takes longer than the usual limit
        verdict = fresh.score_sync(gold="42", completion=HARD_ANSWER)
        fresh._pool.limit_seconds = 2.0
        assert verdict.status == "timeout" and "0.0001 s" in verdict.reason
        assert fresh.num_replaced_workers == 1 and not is_running(hanging)
        assert fresh.score_sync(gold=r"\sqrt{2}", completion=r"\boxed{\frac{2}{\sqrt{2}}}").is_correct


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie, which may stay until its parent looks."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state in "ZX":
            return False
        time.sleep(0.02)
    return True


def test_a_cold_start_counts_against_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def ask(worker: pool._Worker, request: dict, seconds: float) -> dict:
        asked.append(seconds)
        return {"status": "correct", "reason": ""}

    def fork_slowly(fork_server: ForkServer, memory_limit_mb: int) -> tuple[int, socket.socket]:
        time.sleep(0.5)
        return fork(fork_server, memory_limit_mb)

    fork = ForkServer.fork_worker
    monkeypatch.setattr(pool._Worker, "ask", ask)
    monkeypatch.setattr(ForkServer, "fork_worker", fork_slowly)
    for limit_seconds, most, least in ((60.0, 59.5, 20.0), (0.6, 0.2, 0.19)):
        with Scorer(num_workers=1, limit_seconds=limit_seconds) as fresh:
            fresh.score_sync(gold=r"\sqrt{8}", completion=r"\boxed{2\sqrt{2}}")
        assert least < asked.pop() <= most


def test_scorers_share_the_process_that_workers_are_forked_from() -> None:
    assert shared_fork_server() is shared_fork_server()
    with Scorer(limit_seconds=60.0) as one, Scorer(limit_seconds=60.0) as other:
        for fresh in (one, other):
            assert fresh.score_sync(gold=r"\sqrt{8}", completion=r"\boxed{2\sqrt{2}}").is_correct
        assert parent_of(one.worker_pids()[0]) == parent_of(other.worker_pids()[0])


def test_a_fork_server_that_died_is_started_again() -> None:
    with Scorer(num_workers=1, limit_seconds=60.0) as fresh:
        assert fresh.score_sync(gold=r"\sqrt{8}", completion=r"\boxed{2\sqrt{2}}").is_correct
        (worker,) = fresh.worker_pids()
        os.kill(parent_of(worker), signal.SIGKILL)
        assert not is_running(worker)
        assert fresh.score_sync(gold=r"\sqrt{12}", completion=r"\boxed{2\sqrt{3}}").is_correct


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_check_that_needs_too_much_memory_is_our_error_and_the_worker_lives_on(
    tmp_path, monkeypatch
) -> None:
    (tmp_path / "hungry_rewards.py").write_text(
        "def allocate(*, gold, completion):\n    return len(bytearray(int(completion) * 2**20)) > 0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with Scorer(
        num_workers=1, custom_path="hungry_rewards:allocate", memory_limit_mb=256, limit_seconds=60.0
    ) as small:
        assert small.score_sync(gold="", completion="10").value == 1.0
        pids = small.worker_pids()
        verdict = small.score_sync(gold="", completion="300")
        assert verdict.status == "error" and "memory limit" in verdict.reason
        assert small.score_sync(gold="", completion="11").value == 1.0
        assert small.worker_pids() == pids


def test_a_bad_gold_is_our_error_and_not_a_wrong_answer(scorer: Scorer) -> None:
    verdict = scorer.score_sync(gold="", completion=r"\boxed{42}")
    assert verdict.status == "error" and "empty" in verdict.reason


def test_every_verdict_is_counted_once() -> None:
    with Scorer() as fresh:
        for completion in (r"\boxed{1}", r"\boxed{2}", r"\boxed{}", "<think>"):
            fresh.score_sync(gold="1", completion=completion)
        assert fresh.counts == {"correct": 1, "wrong": 1, "unparsable": 2, "timeout": 0, "error": 0}
        assert tuple(fresh.counts) == STATUSES


def test_a_share_of_failures_above_the_limit_is_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    with Scorer(max_failure_share=0.02) as fresh, caplog.at_level(logging.ERROR):
        for number in range(100):
            fresh.score_sync(gold="" if number % 10 == 0 else "1", completion=r"\boxed{1}")
        assert fresh.failure_share == 0.1
    assert "10.0%" in caplog.text and "rewards.limit_seconds" in caplog.text
    assert "100 answers" in caplog.text and len(caplog.records) == 1


def test_a_start_without_any_readable_answer_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with Scorer(forms=()) as fresh, caplog.at_level(logging.WARNING):
        for _ in range(49):
            fresh.score_sync(gold="1", completion="1")
        assert not caplog.records
        for _ in range(60):
            fresh.score_sync(gold="1", completion="1")
    assert len(caplog.records) == 1
    assert "Not one of the first 50 answers could be parsed (50 of 50 are unparsable" in caplog.text
    assert "rewards.forms" in caplog.text


def test_one_readable_answer_at_the_start_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    with Scorer(forms=()) as fresh, caplog.at_level(logging.WARNING):
        fresh.score_sync(gold="1", completion=r"\boxed{2}")
        for _ in range(60):
            fresh.score_sync(gold="1", completion="1")
    assert not caplog.records


def test_a_completion_longer_than_the_limit_has_no_answer_in_any_kind_of_reward() -> None:
    text = r"\boxed{1}" + " " * MAX_COMPLETION_CHARS
    for path in (None, "builtins:no_such_function"):
        with Scorer(custom_path=path) as fresh:
            verdict = fresh.score_sync(gold="1", completion=text)
            assert (verdict.status, verdict.answer) == ("unparsable", None)
            assert verdict.reason == "The completion has 2000009 characters; 2000000 is the limit."
    with Scorer() as fresh:
        assert fresh.score_sync(gold="1", completion=text[:MAX_COMPLETION_CHARS]).is_correct


def test_a_short_run_that_failed_says_so_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    with Scorer() as fresh:
        fresh.score_sync(gold="", completion=r"\boxed{1}")
        assert not caplog.records
    assert "1 of 1 answers" in caplog.text and "The gold answer is empty." in caplog.text


def test_comparing_answers_for_a_vote_is_no_verdict_of_the_run(scorer: Scorer) -> None:
    before = scorer.counts
    assert scorer.equivalent_sync(gold=r"\sqrt8", answer=r"2\sqrt{2}").is_correct
    assert scorer.equivalent_sync(gold="", answer="1").status == "unparsable"
    assert scorer.equivalent_sync(gold="1", answer="").status == "unparsable"
    assert scorer.counts == before


def test_the_answer_of_a_completion_needs_no_gold(scorer: Scorer) -> None:
    assert scorer.extract_answer(r"<think>\boxed{1}</think>So \boxed{\frac12}.") == r"\frac12"
    assert scorer.extract_answer(r"<think>\boxed{1}") is None


def test_it_serves_threads_and_event_loops_at_the_same_time(scorer: Scorer) -> None:
    verdicts: dict[str, bool] = {}

    def in_thread(name: str) -> None:
        answer = rf"\boxed{{\sqrt{{{4 * int(name)}}}}}"
        verdicts[name] = scorer.score_sync(gold=rf"2\sqrt{{{name}}}", completion=answer).is_correct

    async def in_loop(name: str) -> None:
        answer = rf"\boxed{{\sqrt{{{9 * int(name)}}}}}"
        verdict = await scorer.score(gold=rf"3\sqrt{{{name}}}", completion=answer)
        verdicts["loop" + name] = verdict.is_correct

    def loop_thread(name: str) -> None:
        asyncio.run(in_loop(name))

    threads = [threading.Thread(target=in_thread, args=(str(n),)) for n in (2, 3, 5, 7, 11, 13)]
    threads += [threading.Thread(target=loop_thread, args=(str(n),)) for n in (2, 3, 5, 7, 11, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(verdicts) == 12 and all(verdicts.values())


def test_one_result_is_computed_for_equal_pairs_even_if_asked_at_once() -> None:
    async def run() -> int:
        async with Scorer(num_workers=2, limit_seconds=60.0) as fresh:
            pair = {"gold": r"\sqrt{12}", "completion": r"\boxed{2\sqrt{3}}"}
            verdicts = await asyncio.gather(*(fresh.score(**pair) for _ in range(50)))
            assert all(verdict.is_correct for verdict in verdicts)
            return len(fresh.worker_pids())

    assert asyncio.run(run()) == 1


def test_a_cancelled_caller_does_not_spoil_the_result_of_another() -> None:
    async def run() -> bool:
        async with Scorer(num_workers=1, limit_seconds=60.0) as fresh:
            pair = {"gold": r"\sqrt{12}", "completion": r"\boxed{2\sqrt{3}}"}
            first = asyncio.create_task(fresh.score(**pair))
            second = asyncio.create_task(fresh.score(**pair))
            await asyncio.sleep(0)
            first.cancel()
            return (await second).is_correct

    assert asyncio.run(run())


def test_the_gate_admits_in_order_and_no_more_than_its_limit() -> None:
    gate = Gate(2)
    tickets = [gate.enter() for _ in range(4)]
    assert [ticket.done() for ticket in tickets] == [True, True, False, False]
    gate.leave()
    assert [ticket.done() for ticket in tickets] == [True, True, True, False]


def _checks_under_fire(num_checks: int, checks_per_kill: int) -> None:
    """Kills a worker after every so many checks; each check gets its own verdict, in order."""
    finished = kills = 0
    # Few at once: of many, the loop would learn in one burst, and strike the same check several times.
    slots = asyncio.Semaphore(8)
    with Scorer(num_workers=2, limit_seconds=60.0) as fresh:

        async def check(number: int) -> tuple[int, str]:
            nonlocal finished, kills
            factor = number + 2
            answer = f"{factor}x" if number % 3 else f"{factor + 1}x"
            completion = rf"\boxed{{{answer}+\sqrt{{4}}-2}}"
            async with slots:
                verdict = await fresh.score(gold=f"{factor}x", completion=completion)
            finished += 1
            if finished % checks_per_kill == 0:
                # The oldest: a check given to a new one is not struck again, and for the third time given up.
                for pid in fresh.worker_pids()[:1]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        kills += 1
            return number, verdict.status

        async def run() -> list[tuple[int, str]]:
            return await asyncio.gather(*(check(number) for number in range(num_checks)))

        results = asyncio.run(run())
        assert kills >= num_checks // checks_per_kill // 2
        assert results == [(n, "correct" if n % 3 else "wrong") for n in range(num_checks)]
        assert sum(fresh.counts.values()) == num_checks


def test_killed_workers_cost_no_verdict() -> None:
    _checks_under_fire(num_checks=200, checks_per_kill=20)


@pytest.mark.slow
def test_killed_workers_cost_no_verdict_in_five_thousand_checks() -> None:
    _checks_under_fire(num_checks=5000, checks_per_kill=50)


CALLER = """
import sys, time
print("main runs", flush=True)
from rewards.scorer import Scorer
if __name__ == "__main__":
    scorer = Scorer(num_workers=2)
    scorer.score_sync(gold="x+1", completion=r"\\boxed{1+x}")
    print(*scorer.worker_pids(), "torch" in sys.modules, flush=True)
    time.sleep(60)
"""


def _start_caller(tmp_path: Path) -> tuple["subprocess.Popen[str]", list[int]]:
    script = tmp_path / "caller.py"
    script.write_text(CALLER)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "main runs\n"
    *pids, has_torch = process.stdout.readline().split()
    assert has_torch == "False"
    return process, [int(pid) for pid in pids]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_worker_outlives_a_killed_parent_and_main_runs_once(tmp_path: Path) -> None:
    process, pids = _start_caller(tmp_path)
    fork_server = parent_of(pids[0])
    process.kill()
    rest = process.communicate(timeout=60)[0]
    assert rest == ""  # neither a second "main runs" nor noise
    assert not any(is_running(pid) for pid in [*pids, fork_server])


def test_killing_a_worker_ends_its_owners_wait_and_keeps_the_number_of_its_socket() -> None:
    process = subprocess.Popen(["sleep", "60"])
    ours, theirs = socket.socketpair()  # the other end stays open: only the kill can end the wait
    worker = _Worker(process.pid, ours)
    number = ours.fileno()
    with theirs, ThreadPoolExecutor(1) as owner:
        waiting = owner.submit(worker.ask, {"number": 1}, 30.0)
        assert read_message(theirs) == {"number": 1}
        worker.kill()
        with pytest.raises(ConnectionError):
            waiting.result(timeout=10)
        assert ours.fileno() == number  # a new file cannot take its place under the owner's eyes
        worker.close()
        assert ours.fileno() == -1
    assert process.wait(timeout=10) == -signal.SIGKILL


def test_closing_ends_checks_under_way_with_an_error(tmp_path, monkeypatch) -> None:
    (tmp_path / "slow_rewards.py").write_text("import time\ndef wait(*, gold, completion): time.sleep(60)\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    async def run() -> str:
        fresh = Scorer(limit_seconds=30.0, custom_path="slow_rewards:wait")
        waiting = asyncio.create_task(fresh.score(gold="42", completion="42"))
        while not fresh.worker_pids():
            await asyncio.sleep(0.01)
        await fresh.aclose()
        return (await waiting).status

    assert asyncio.run(run()) == "error"


def test_a_custom_reward_runs_in_the_workers_and_its_number_comes_back(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "import os, time\n"
        "def by_length(*, gold, completion):\n"
        "    if completion == 'hang': time.sleep(60)\n"
        "    if completion == 'raise': raise KeyError('oops')\n"
        "    if completion == 'nan': return float('nan')\n"
        "    print('noise')\n"
        "    return len(completion) / len(gold)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with Scorer(custom_path="my_rewards:by_length", limit_seconds=2.0, max_failure_share=1.0) as custom:
        verdict = custom.score_sync(gold="ab", completion="abc")
        assert (verdict.status, verdict.value) == ("correct", 1.5)
        assert custom.score_sync(gold="ab", completion="hang").status == "timeout"
        verdict = custom.score_sync(gold="ab", completion="raise")
        assert verdict.status == "error" and "KeyError" in verdict.reason
        assert "finite number" in custom.score_sync(gold="ab", completion="nan").reason


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_workers", 0),
        ("limit_seconds", 0),
        ("memory_limit_mb", 10),
        ("forms", ["boxes"]),
        ("custom_path", "x"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"`{option}`"):
        Scorer(**{option: value})


def test_verdicts_are_plain_data(scorer: Scorer) -> None:
    verdict = scorer.equivalent_sync(gold="1", answer="1")
    assert json.loads(json.dumps(asdict(verdict)))["found_by"] == "given"
