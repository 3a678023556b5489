"""What crosses the wire to and from vLLM's ``/inference/v1/generate`` (vLLM 0.32): token ids and log-probs.

An answer holds about 110 bytes of JSON for each token, so how it is parsed decides what a call costs the
client. msgspec reads only the fields below and skips the rest: a call of 1,000 tokens costs 0.9 ms of CPU,
with json 5.4 ms (tests/bench/client.py).
"""

import msgspec

from rollout.records import Completion, Prompt, Sampling, Usage, VersionSpan

GENERATE = "/inference/v1/generate"
ABORT = "/inference/v1/abort_requests"
START_VERSION = "default"
"""vLLM's label of weights that were never published to; our version 0."""


class _LogProb(msgspec.Struct, gc=False):
    token_id: int
    logprob: float


class _LogProbs(msgspec.Struct):
    content: list[_LogProb] | None = None


class _Span(msgspec.Struct):
    version: str
    start: int
    end: int


class _Choice(msgspec.Struct):
    index: int
    finish_reason: str
    token_ids: list[int]
    logprobs: _LogProbs
    weight_versions: list[_Span] | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _PromptDetails | None = None


class Answer(msgspec.Struct):
    """A worker's answer to one request."""

    choices: list[_Choice]
    usage: _Usage

    @property
    def is_aborted(self) -> bool:
        """Whether a sample was ended early."""
        return any(choice.finish_reason == "abort" for choice in self.choices)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the worker had in its prefix cache."""
        details = self.usage.prompt_tokens_details
        return (details and details.cached_tokens) or 0


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Answer).decode


def parse_version(label: str) -> int:
    """The policy version behind vLLM's weight label."""
    return 0 if label == START_VERSION else int(label)


def request_body(prompt: Prompt, sampling: Sampling, n: int, request_id: str | None) -> bytes:
    """The request for ``n`` completions of one prompt."""
    body = {
        "token_ids": prompt.ids,
        "sampling_params": {
            "n": n,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed,
            "stop_token_ids": sampling.stop_token_ids,
            "logprobs": 0,
            "detokenize": False,
        },
    }
    if request_id is not None:
        body["request_id"] = request_id
    return _encode(body)


def abort_id(request_id: str) -> str:
    """The name under which vLLM can abort what ``request_body`` called ``request_id``."""
    return f"generate-tokens-{request_id}"


def parse_answer(answer: bytes) -> Answer:
    """The answer as records.

    Raises:
        msgspec.MsgspecError: If it is not what vLLM 0.32 sends.
    """
    return _decode(answer)


def completions(answer: Answer, prompt_tokens: int, version: int) -> list[Completion]:
    """The samples of an answer in the order of their index.

    A sample without tokens carries no version of its own; it gets an empty span of ``version``.
    """
    choices = sorted(answer.choices, key=lambda choice: choice.index)
    return [_completion(choice, prompt_tokens, version) for choice in choices]


def never_sent(version: int) -> Completion:
    """What an aborted request gives that no worker had: no tokens in, no tokens out."""
    return Completion(
        token_ids=(),
        logprobs=(),
        finish="abort",
        versions=(VersionSpan(version=version, start=0, end=0),),
        usage=Usage(prompt_tokens=0, completion_tokens=0),
    )


def _completion(choice: _Choice, prompt_tokens: int, version: int) -> Completion:
    content = choice.logprobs.content or []
    ids = tuple(choice.token_ids)
    assert tuple([entry.token_id for entry in content]) == ids, "log-probs belong to the sampled ids"
    spans = [
        VersionSpan(version=parse_version(span.version), start=span.start, end=span.end)
        for span in choice.weight_versions or ()
    ]
    return Completion(
        token_ids=ids,
        logprobs=tuple([entry.logprob for entry in content]),
        finish=choice.finish_reason,
        versions=tuple(spans) or (VersionSpan(version=version, start=0, end=0),),
        usage=Usage(prompt_tokens=prompt_tokens, completion_tokens=len(ids)),
    )
