"""The operators from Python, over HTTP to a stand-in for a worker."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from stub_server import StubOptions, stub_process
from tiny import byte_tokenizer

import rewards
import rollout
from configs.compose import load
from rollout.command import main
from rollout.operators import Operator
from rollout.records import DRAFT, EMPTY, Answers
from rollout.workers.loopback import free_port

pytestmark = pytest.mark.component

ANSWERS = ["7", "\\frac{14}{2}", "7.0", "3", "3"]
QUESTION = "What is 3 + 4?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A worker that boxes a seven, in one of three ways, three times in five."""
    tails = [[*byte_tokenizer()(f" \\boxed{{{answer}}}").input_ids, 1] for answer in ANSWERS]
    with stub_process(StubOptions(median_tokens=30, sigma=0.5, tails=tails)) as found:
        yield found


@pytest.fixture(scope="module")
def slow_url() -> Iterator[str]:
    """A worker that takes half a second for each of its answers."""
    tail = [*byte_tokenizer()(" \\boxed{7}").input_ids, 1]
    options = StubOptions(median_tokens=50, sigma=0, seconds_per_token=0.01, tails=[tail])
    with stub_process(options) as found:
        yield found


@pytest.fixture(scope="module")
def policy(model: str, url: str) -> Iterator[rollout.OpenPolicy]:
    with rollout.open_policy(model, urls=url, max_retries=0) as opened:
        yield opened


def test_each_operator_answers_with_the_calls_of_its_schedule(policy: rollout.OpenPolicy):
    asked = {
        rollout.pdr: ([4, 2, 1], ["draft"] * 4 + ["refine"] * 3),
        rollout.sr: ([1, 1], ["draft", "refine"]),
        rollout.majority: ([3], ["draft"] * 3),
        rollout.best_of_n: ([2], ["draft"] * 2 + ["verify"] * 2),
    }
    for ask, (schedule, roles) in asked.items():
        result = ask(policy, QUESTION, schedule=schedule)
        assert (result.operator, [call.role for call in result.graph]) == (ask.__name__, roles)
        assert result.answer in ANSWERS and f"\\boxed{{{result.answer}}}" in result.text
        assert 0 < result.b_seq <= result.b_total == sum(call.tokens for call in result.graph)
    assert [call.role for call in rollout.trace(policy, QUESTION).graph] == ["trace"]


def test_a_system_prompt_costs_its_tokens_in_every_call(model: str, url: str, policy: rollout.OpenPolicy):
    with rollout.open_policy(model, urls=url, max_retries=0, system="Careful.") as instructed:
        told, plain = (rollout.pdr(each, QUESTION, schedule=[2, 1]) for each in (instructed, policy))
    turn = byte_tokenizer()("<|im_start|>system\nCareful.<|im_end|>\n", add_special_tokens=False).input_ids
    drafts = zip(told.graph[:2], plain.graph[:2], strict=True)
    assert [a.tokens - b.tokens for a, b in drafts] == [len(turn)] * 2
    with pytest.raises(ValueError, match=r"model\.chat_template_kwargs holds messages"):
        rollout.open_policy(model, urls=url, chat_template_kwargs={"messages": []})


def test_any_operator_of_the_configs_is_run_by_its_name(policy: rollout.OpenPolicy):
    result = rollout.run(policy, QUESTION, operator="sr_error_analysis", schedule=[1, 1])
    assert [call.role for call in result.graph] == ["draft", "analyse", "refine"]
    assert "Errors found in it" in result.graph[2].workspace


def test_an_operator_of_ones_own_needs_no_file(policy: rollout.OpenPolicy):
    class Longest(Operator):
        async def answer(self, policy, rng, num_answers=1):
            drafts = await policy.solve([EMPTY] * self.options.schedule[0], role=DRAFT, round=0)
            best = max(drafts, key=lambda draft: len(policy.solution(draft).text))
            return Answers(calls=(best,), waited_for=drafts)

    result = rollout.run(policy, QUESTION, operator=Longest, schedule=[5])
    assert result.operator == "Longest"
    assert result.text == max((call.text.strip() for call in result.graph), key=len)


def test_equal_seeds_give_equal_samples_and_others_do_not(policy: rollout.OpenPolicy):
    first, again, other = (rollout.pdr(policy, QUESTION, seed=seed) for seed in (5, 5, 6))
    assert str(first) == str(again) != str(other)


def test_votes_are_counted_by_the_real_verifier(policy: rollout.OpenPolicy):
    split_votes = 0
    for seed in range(60):
        result = rollout.majority(policy, QUESTION, schedule=[5], seed=seed)
        answers = [call.answer for call in result.graph]
        sevens = sum(answer != "3" for answer in answers)
        assert (result.answer != "3") == (sevens >= 3)
        split_votes += sevens >= 3 and max(map(answers.count, ANSWERS[:3])) < answers.count("3")
    assert split_votes > 0, "no vote in which equivalence decided"


def test_synchronous_calls_work_inside_a_running_event_loop(policy: rollout.OpenPolicy):
    async def cell() -> rollout.Result:
        return rollout.pdr(policy, QUESTION, schedule=[2, 1])

    assert str(asyncio.run(cell())) == str(rollout.pdr(policy, QUESTION, schedule=[2, 1]))


def test_questions_that_are_awaited_are_under_way_at_once(model: str, slow_url: str):
    seen: list[int] = []

    async def cell(policy: rollout.OpenPolicy) -> list[rollout.Result]:
        async def watch() -> None:
            while True:
                await asyncio.sleep(0.02)
                seen.append(policy._engine.pool.endpoints[0].in_flight)

        watching = asyncio.create_task(watch())
        asked = [rollout.run_async(policy, f"{i} + 1?", operator="trace") for i in range(16)]
        results = await asyncio.gather(*asked)
        watching.cancel()
        return results

    with rollout.open_policy(model, urls=slow_url) as policy:
        results = asyncio.run(cell(policy))
    assert [result.question for result in results] == [f"{i} + 1?" for i in range(16)]
    assert max(seen) == 16, "seen from the caller's own loop, which is not blocked"


def test_awaiting_gives_what_waiting_gives(policy: rollout.OpenPolicy):
    waited = rollout.run(policy, QUESTION, operator="sr", seed=3)
    awaited = asyncio.run(rollout.run_async(policy, QUESTION, operator="sr", seed=3))
    assert str(awaited) == str(waited)


def test_threads_may_ask_one_policy(policy: rollout.OpenPolicy):
    found: dict[str, rollout.Result] = {}
    names = ("trace", "sr", "pdr", "majority", "sr_error_analysis")

    def ask(name: str) -> None:
        found[name] = rollout.run(policy, "?", operator=name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert {name: result.operator for name, result in found.items()} == {name: name for name in names}


ROWS = [{"id": f"p{i}", "question": f"{i} + {7 - i} =", "answer": "7"} for i in range(4)]


def test_an_evaluation_is_that_of_the_command(
    policy: rollout.OpenPolicy, model: str, url: str, tmp_path: Path
):
    data = tmp_path / "problems.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    options = [f"model.path={model}", f"data.path={data}", f"output_dir={tmp_path / 'out'}", "samples=2"]
    main(load("evaluation", [*options, f"rollout.urls=[{url}]", "operators=[trace,pdr]", "seed=4"]), [])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    expected = {row["operator"]: row for row in report["rows"] if row["final"]}
    for problems in (ROWS, data):
        evaluation = rollout.evaluate(policy, problems, operators=["trace", "pdr"], samples=2, seed=4)
        assert list(evaluation.rows) == list(expected)
        for name, row in evaluation.rows.items():
            for field in ("accuracy", "ci_low", "ci_high", "b_seq", "b_total", "problems", "samples"):
                assert getattr(row, field) == expected[name][field], (name, field)
    assert str(evaluation).startswith("| operator | problems x samples | accuracy % [95% interval]")
    assert repr(evaluation).startswith(f"Evaluation(trace {expected['trace']['accuracy']:.3f} [")


def test_an_evaluation_is_awaited_too_and_takes_operators_in_every_form(policy: rollout.OpenPolicy):
    class Plain(Operator):
        async def answer(self, policy, rng, num_answers=1):
            return Answers(calls=await policy.solve([EMPTY], role=DRAFT, round=0))

    wide = {"operator": "pdr", "name": "wide", "schedule": [6, 1], "distiller": "oracle"}
    specs = [Plain, {"operator": "pdr", "schedule": [2, 1]}, wide]
    rows = [{"problem": row["question"], "answer": 7} for row in ROWS]
    work = rollout.evaluate_async(policy, rows, operators=specs, question_field="problem")
    found = asyncio.run(work).rows
    assert {"Plain", "pdr", "wide"} <= found.keys()
    assert found["Plain"].b_total < found["pdr"].b_total < found["wide"].b_total


def test_a_rollout_that_fails_is_counted_and_none_that_succeeds_is_an_error(model: str, slow_url: str):
    options = {"urls": slow_url, "max_retries": 0, "request_timeout_seconds": 0.1}
    with (
        rollout.open_policy(model, **options) as policy,
        pytest.raises(
            RuntimeError, match=r"Not one of 4 rollouts got an answer.*did not answer within 0\.1 s"
        ),
    ):
        rollout.evaluate(policy, ROWS, operators=["trace"])


@pytest.mark.parametrize(
    ("asked", "options", "error"),
    [
        ("", {}, "The question is empty"),
        (" \n", {}, "The question is empty"),
        ("q", {"schedule": [8, 4]}, r"schedule must end in 1, .*Did you mean \[8, 4, 1\]"),
        ("q", {"schedul": [8, 1]}, "'schedul' is not an option of operator. Did you mean 'schedule'"),
        ("q", {"schedule": 8}, r"operator\.schedule is 8: "),
        ("q", {"top_k": "many"}, r"operator\.top_k is 'many': .*Integer"),
        ("q", {"operator": "pdrr"}, "no operator 'pdrr'; choose one of .* Did you mean 'pdr'"),
        ("q", {"distiller": "oracle"}, "no gold answer to judge calls by: use evaluate"),
        ("q", {"prompts": {}}, r"operator\.prompts is the same for all operators of a policy"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_before_any_call(
    policy: rollout.OpenPolicy, asked: str, options: dict, error: str
):
    before = policy._engine.pool.counts.requests
    with pytest.raises(ValueError, match=error):
        rollout.run(policy, asked, **options)
    with pytest.raises(ValueError, match=error):
        asyncio.run(rollout.run_async(policy, asked, **options))
    assert policy._engine.pool.counts.requests == before


def test_what_is_no_operator_is_refused(policy: rollout.OpenPolicy):
    with pytest.raises(TypeError, match=r"operator is <class 'int'>; pass the name of an operator"):
        rollout.run(policy, "q", operator=int)  # type: ignore[arg-type]


def test_an_operator_that_asks_for_a_verdict_is_told_that_there_is_no_gold(policy: rollout.OpenPolicy):
    class Judge(Operator):
        async def answer(self, policy, rng, num_answers=1):
            calls = await policy.solve([EMPTY], role=DRAFT, round=0)
            assert (await policy.verdict(calls[0])).is_correct
            return Answers(calls=calls)

    with pytest.raises(ValueError, match="no gold answer to judge calls by"):
        rollout.run(policy, "q", operator=Judge)


@pytest.mark.parametrize(
    ("rows", "options", "error"),
    [
        ([], {}, "problems contains no problem"),
        ([{"question": "q"}], {}, r"problem 0: It has no field of a known name .*it has \['question'\]"),
        ([{"question": "q", "answer": "\\frac{0}{0}"}], {}, "problem 0: the gold answer .* does not parse"),
        ([{"id": "a", "question": "q", "answer": "1"}] * 2, {}, "problem 1: the id 'a' occurs twice"),
        (ROWS, {"operators": []}, "operators is empty"),
        (ROWS, {"operators": ["trace", "trace"]}, "operators names one twice"),
        (ROWS, {"samples": 0}, "samples must be at least 1, got 0"),
        (ROWS, {"operators": [{"operator": "pdr", "schedule": [4]}]}, r"Did you mean \[4, 1\]"),
    ],
)
def test_an_evaluation_that_makes_no_sense_is_refused(
    policy: rollout.OpenPolicy, rows: list, options: dict, error: str
):
    with pytest.raises(ValueError, match=error):
        rollout.evaluate(policy, rows, **{"operators": ["trace"], **options})


def test_bad_golds_are_dropped_on_demand_and_other_options_are_refused(policy: rollout.OpenPolicy):
    rows = [*ROWS, {"question": "q", "answer": "\\frac{0}{0}"}]
    found = rollout.evaluate(policy, rows, operators=["trace"], on_bad_gold="drop")
    assert found.rows["trace"].problems == 4
    with pytest.raises(TypeError, match=r"no option 'answer_feld'; rows are read by .*answer_field"):
        rollout.evaluate(policy, rows, operators=["trace"], answer_feld="gold")


def test_a_policy_that_cannot_be_opened_is_refused_with_the_reason(model: str, url: str, tmp_path: Path):
    gone = f"http://127.0.0.1:{free_port()}"
    for arguments, options, error in (
        ((str(tmp_path / "no-such"),), {"urls": url}, r"the folder .*no-such does not exist"),
        ((str(tmp_path),), {"urls": url}, "no tokenizer loads"),
        (
            (model,),
            {"urls": url, "temprature": 1.0},
            "'temprature' is not an option of rollout. Did you mean",
        ),
        ((model,), {"urls": "localhost:8000"}, "must start with http:// or https://, got 'localhost:8000'"),
        (
            (model,),
            {"urls": [url], "chat_url": url, "chat_model": "m"},
            "Set either rollout.urls .* or rollout.chat_url",
        ),
        ((model,), {"urls": gone}, f"The rollout worker {gone} does not answer.*enable-scale-out"),
        (
            (model,),
            {"urls": url, "thinking": "thnk"},
            "There is no operator/thinking=thnk; choose one of .* Did you mean .think",
        ),
    ):
        with pytest.raises((ValueError, OSError, RuntimeError), match=error):
            rollout.open_policy(*arguments, **options)


def test_what_an_endpoint_that_chats_cannot_do_is_refused(model: str, url: str):
    with (
        rollout.open_policy(model, chat_url=f"{url}/v1", chat_model="m") as policy,
        pytest.raises(ValueError, match=r"operator\.quorum is 0\.5, but a chat endpoint"),
    ):
        rollout.pdr(policy, "q", quorum=0.5)


def test_a_closed_policy_says_that_it_is_closed(model: str, url: str):
    with rollout.open_policy(model, urls=url) as policy:
        pass
    policy.close()
    for ask in (
        lambda: rollout.pdr(policy, "q"),
        lambda: asyncio.run(rollout.run_async(policy, "q")),
        lambda: rollout.evaluate(policy, ROWS, operators=["trace"]),
    ):
        with pytest.raises(RuntimeError, match="This policy is closed"):
            ask()


def test_closing_ends_what_is_under_way_with_an_error(model: str):
    errors: list[BaseException] = []

    def wait(policy: rollout.OpenPolicy) -> None:
        try:
            rollout.trace(policy, "q")
        except RuntimeError as error:
            errors.append(error)

    async def cell(policy: rollout.OpenPolicy) -> None:
        awaited = asyncio.create_task(rollout.run_async(policy, "q", operator="trace"))
        waiting = threading.Thread(target=wait, args=(policy,))
        waiting.start()
        while policy._engine.pool.endpoints[0].in_flight < 2:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(policy.close)
        with pytest.raises(RuntimeError, match="closed before it had answered"):
            await asyncio.wait_for(awaited, timeout=10)
        waiting.join(timeout=10)

    with stub_process(StubOptions(seconds_per_token=10.0)) as stuck:
        asyncio.run(cell(rollout.open_policy(model, urls=stuck)))
    assert [str(error) for error in errors] == [
        "The policy was closed before it had answered; calls in progress are lost."
    ]


def test_the_tasks_of_a_cancelled_question_end(model: str):
    async def cell(policy: rollout.OpenPolicy) -> None:
        asked = asyncio.create_task(rollout.run_async(policy, "q", operator="trace"))
        endpoint = policy._engine.pool.endpoints[0]
        while endpoint.in_flight == 0:
            await asyncio.sleep(0.01)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        async with asyncio.timeout(10):
            while endpoint.in_flight:
                await asyncio.sleep(0.01)

    with (
        stub_process(StubOptions(seconds_per_token=10.0)) as stuck,
        rollout.open_policy(model, urls=stuck) as p,
    ):
        asyncio.run(cell(p))


def test_an_answer_goes_from_a_result_to_the_verifier(policy: rollout.OpenPolicy):
    results = [rollout.trace(policy, QUESTION, seed=seed) for seed in range(12)]
    right = {result.answer: rewards.score(gold="7", answer=result.answer).is_correct for result in results}
    assert set(right) == set(ANSWERS)
    assert all(is_right == (answer != "3") for answer, is_right in right.items())
