"""Budget forcing: what is forced, what is sampled, what is paid."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fakes import CODEC, END, prompt_of
from hypothesis import given
from hypothesis import strategies as st

from configs.thinking import UNCLOSED, ThinkingMarks
from rollout.forcing import Sampled, ThinkingLimit, sample
from rollout.records import Completion, Prompt, Sampling, Usage, VersionSpan
from rollout.thinking import split

PROMPT = prompt_of(7, 8, 9)
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=999, seed=5)
MARKS = ThinkingMarks()
CLOSE = CODEC.encode("</think>")
FORCE = CODEC.encode("time is up</think>")
LIMIT = ThinkingLimit(
    thinking_tokens=20,
    answer_tokens=16,
    close_ids=CLOSE,
    force_ids=FORCE,
    is_open=lambda ids: split(CODEC.decode(ids), finish="stop", marks=MARKS).label == UNCLOSED,
)


@dataclass(slots=True)
class Writer:
    """Writes ``text`` from where the prompt left off, as a worker would: to a limit, a stop id or its end."""

    texts: Sequence[str]
    after_force: str = " so \\boxed{1}"
    version: int = 0
    requests: list[tuple[Prompt, Sampling, int]] = field(default_factory=list)

    async def generate(
        self, prompt: Prompt, sampling: Sampling, n: int = 1, request_id: str | None = None
    ) -> list[Completion]:
        self.requests.append((prompt, sampling, n))
        return [self._completion(prompt, sampling, self._rest(prompt, index)) for index in range(n)]

    async def abort(self, request_ids) -> None:
        raise AssertionError("nothing is aborted here")

    def _rest(self, prompt: Prompt, index: int) -> tuple[int, ...]:
        written = prompt.ids[len(PROMPT.ids) :]
        if written[-len(FORCE) :] == FORCE:
            return (*CODEC.encode(self.after_force), END)
        whole = [(*CODEC.encode(text), END) for text in self.texts]
        going_on = [ids[len(written) :] for ids in whole if written and ids[: len(written)] == written]
        return going_on[0] if going_on else whole[index]

    def _completion(self, prompt: Prompt, sampling: Sampling, rest: tuple[int, ...]) -> Completion:
        stops = [i for i, token in enumerate(rest) if token in (END, *sampling.stop_token_ids)]
        end = min([stops[0] + 1 if stops else len(rest), sampling.max_tokens])
        ids = rest[:end]
        stopped = bool(ids) and ids[-1] in (END, *sampling.stop_token_ids)
        return Completion(
            token_ids=ids,
            logprobs=tuple(-float(token) for token in ids),
            finish="stop" if stopped else "length",
            versions=(VersionSpan(version=self.version, start=0, end=len(ids)),),
            usage=Usage(prompt_tokens=len(prompt.ids), completion_tokens=len(ids)),
        )


def _sampled(text: str, limit: ThinkingLimit | None = LIMIT) -> tuple[Sampled, Writer]:
    writer = Writer([text])
    (sampled,) = asyncio.run(sample(writer, PROMPT, SAMPLING, 1, limit))
    return sampled, writer


def _text(sampled: Sampled) -> str:
    return CODEC.decode(sampled.completion.token_ids)


def test_without_a_limit_a_call_is_one_request_as_it_is():
    sampled, writer = _sampled("<think>" + "long " * 40 + "</think>\\boxed{2}", None)
    assert writer.requests == [(PROMPT, SAMPLING, 1)]
    assert all(sampled.train_mask)


def test_thinking_that_ends_in_time_is_followed_by_an_answer_with_a_budget_of_its_own():
    sampled, writer = _sampled("<think>short</think>\\boxed{2}")
    assert _text(sampled) == "<think>short</think>\\boxed{2}"
    assert all(sampled.train_mask)
    (first, asked, _), (second, granted, _) = writer.requests
    assert (asked.max_tokens, asked.stop_token_ids) == (20, CLOSE)
    assert (granted.max_tokens, granted.stop_token_ids) == (16, ())
    assert second.ids == first.ids + CODEC.encode("<think>short</think>")
    assert second.context == first.context


def test_a_turn_of_the_models_own_end_ends_a_call_within_its_thinking_and_its_answer():
    limit = replace(LIMIT, thinking_tokens=40)
    writer = Writer(["<think>short</think>so <pad>\\boxed{2}", "hm<pad>and on"])
    work = sample(writer, PROMPT, replace(SAMPLING, stop_token_ids=(0,)), 2, limit)
    answered, ended = asyncio.run(work)
    assert [sampling.stop_token_ids for _, sampling, _ in writer.requests] == [(0, *CLOSE), (0,)]
    assert CODEC.tokenizer.decode(answered.completion.token_ids) == "<think>short</think>so <pad>"
    assert CODEC.tokenizer.decode(ended.completion.token_ids) == "hm<pad>"
    assert ended.completion.finish == "stop"


def test_thinking_at_its_limit_is_closed_by_forced_tokens_that_are_not_trained():
    sampled, _ = _sampled("<think>" + "x" * 100 + "</think>\\boxed{2}")
    text = _text(sampled)
    assert text == "<think>" + "x" * 19 + "time is up</think> so \\boxed{1}"
    completion = sampled.completion
    forced = [i for i, trained in enumerate(sampled.train_mask) if not trained]
    assert tuple(completion.token_ids[i] for i in forced) == FORCE
    assert forced == list(range(20, 20 + len(FORCE)))
    assert all(completion.logprobs[i] == 0.0 for i in forced)
    sampled_ones = [i for i, trained in enumerate(sampled.train_mask) if trained]
    assert all(completion.logprobs[i] == -completion.token_ids[i] for i in sampled_ones)


def test_an_answer_that_exceeds_its_reserve_is_cut():
    sampled, _ = _sampled("<think>a</think>" + "y" * 50)
    assert _text(sampled) == "<think>a</think>" + "y" * 16
    assert sampled.completion.finish == "length"


def test_a_sequence_that_ends_before_the_limit_takes_one_request():
    sampled, writer = _sampled("\\boxed{2}")
    assert _text(sampled) == "\\boxed{2}"
    assert len(writer.requests) == 1


def test_a_policy_that_does_not_think_goes_on_without_forced_tokens():
    sampled, _ = _sampled("z" * 26)
    assert _text(sampled) == "z" * 26
    assert all(sampled.train_mask)
    assert sampled.completion.finish == "stop"


def test_a_closing_mark_of_several_tokens_is_found_at_the_limit():
    marks = ThinkingMarks(open="[T]", close="[/T]")
    limit = replace(
        LIMIT,
        close_ids=(),
        force_ids=CODEC.encode("..[/T]"),
        is_open=lambda ids: split(CODEC.decode(ids), finish="stop", marks=marks).label == UNCLOSED,
    )
    closed, _ = _sampled("[T]short[/T]" + "w" * 15, limit)
    assert _text(closed) == "[T]short[/T]" + "w" * 15
    assert all(closed.train_mask)
    opened, _ = _sampled("[T]" + "t" * 40, limit)
    assert sum(not trained for trained in opened.train_mask) == len(limit.force_ids)


def test_samples_of_one_context_are_asked_for_at_once_and_go_on_apart():
    writer = Writer(["<think>a</think>\\boxed{1}", "\\boxed{2}", "<think>" + "b" * 60])
    results = asyncio.run(sample(writer, PROMPT, SAMPLING, 3, LIMIT))
    assert [n for _, _, n in writer.requests] == [3, 1, 1]
    seeds = [sampling.seed for _, sampling, _ in writer.requests]
    assert len(set(seeds)) == 3
    assert [CODEC.decode(r.completion.token_ids)[:9] for r in results] == [
        "<think>a<",
        "\\boxed{2}",
        "<think>bb",
    ]


def test_a_call_that_was_aborted_between_its_two_requests_does_not_go_on():
    writer = Writer(["<think>a</think>\\boxed{1}"])
    work = sample(writer, PROMPT, SAMPLING, 1, LIMIT, "late", aborted={"late"})
    (sampled,) = asyncio.run(work)
    assert len(writer.requests) == 1
    assert sampled.completion.finish == "abort"
    assert _text(sampled) == "<think>a</think>"


@given(thinking=st.integers(0, 30), answer=st.integers(0, 20), thinks=st.booleans())
def test_ids_log_probs_mask_versions_and_usage_agree(thinking: int, answer: int, thinks: bool):
    text = ("<think>" + "t" * thinking + "</think>" if thinks else "t" * thinking) + "a" * answer
    sampled, _ = _sampled(text)
    completion = sampled.completion
    assert len(completion.token_ids) == len(completion.logprobs) == len(sampled.train_mask)
    assert completion.usage == Usage(prompt_tokens=3, completion_tokens=len(completion.token_ids))
    covered = [i for span in completion.versions for i in range(span.start, span.end)]
    assert covered == [i for i, trained in enumerate(sampled.train_mask) if trained]
    assert sum(sampled.train_mask) <= LIMIT.thinking_tokens + LIMIT.answer_tokens
