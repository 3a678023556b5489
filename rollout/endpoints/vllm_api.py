"""HTTP interface of vLLM 0.32: the only file that knows its paths, requests and answers.

Token ids go to ``/inference/v1/generate``; token ids and log-probs come back. An answer holds about 110 bytes
of JSON per token, so parsing dominates a call's cost for the client. msgspec reads only the fields below and
skips the rest: a call of 1,000 tokens costs 0.9 ms of CPU, with json 5.4 ms (tests/bench/client.py).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from rollout.endpoints.client import Client, Unavailable
from rollout.endpoints.engine_api import Asked, Receivers
from rollout.endpoints.served_model import ServedModel
from rollout.records import Completion, Prompt, Sampling, Usage, VersionSpan

HEALTH = "/health"
"""Path that answers 200 while the server's engine is alive, with or without a key."""
START_VERSION = "default"
"""vLLM's label of the weights it started with; policy version 0."""
ADAPTER = "adapter"
"""Name of the LoRA adapter that workers serve with ``rollout.max_lora_rank``; requests ask for it."""


Count = Annotated[int, msgspec.Meta(ge=0)]
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
SURE = 1e-4
"""Largest log-prob accepted: rounding can lift that of a certain token above 0."""
NOT_FINITE = -9999.0
"""What vLLM answers for a log-prob that is NaN or minus infinity: no token with it is ever sampled."""


class _LogProb(msgspec.Struct, gc=False):
    token_id: TokenId
    logprob: float


class _LogProbs(msgspec.Struct):
    content: list[_LogProb] | None = None


class _Span(msgspec.Struct):
    version: str
    start: Count
    end: Count


class _Choice(msgspec.Struct):
    index: int
    finish_reason: Literal["stop", "length", "abort"]
    token_ids: list[TokenId]
    logprobs: _LogProbs
    weight_versions: list[_Span] | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: Count
    completion_tokens: Count
    prompt_tokens_details: _PromptDetails | None = None


class _WeightInfo(msgspec.Struct):
    weight_version: str

    @property
    def version(self) -> int:
        return parse_version(self.weight_version)


class VllmAnswer(msgspec.Struct):
    """A vLLM worker's answer to one request (``engine_api.Answer``)."""

    choices: list[_Choice]
    usage: _Usage

    @property
    def prompt_tokens(self) -> int:
        return self.usage.prompt_tokens

    @property
    def completion_tokens(self) -> int:
        return self.usage.completion_tokens

    @property
    def cached_tokens(self) -> int:
        details = self.usage.prompt_tokens_details
        return (details and details.cached_tokens) or 0

    @property
    def is_aborted(self) -> bool:
        return any(choice.finish_reason == "abort" for choice in self.choices)

    def completions(self, asked: Asked) -> list[Completion]:
        choices = sorted(self.choices, key=lambda choice: choice.index)
        indices = [choice.index for choice in choices]
        if indices != list(range(asked.n)):
            raise ValueError(f"choices of index {indices}, and {asked.n} were asked for")
        return [_completion(choice, asked) for choice in choices]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(VllmAnswer).decode


class VllmApi:
    """``engine_api.EngineApi`` for vLLM servers, over a client that the caller opens and closes.

    ``generate`` and ``abort`` need ``--enable-scale-out``; the control paths need ``VLLM_SERVER_DEV_MODE=1``.
    """

    def __init__(self, client: Client, *, has_adapter: bool = False) -> None:
        """``has_adapter``: requests ask for the adapter of ``load_adapter``, which must be loaded first."""
        self._client = client
        self._model = {"model": ADAPTER} if has_adapter else {}

    def request_body(self, prompt: Prompt, sampling: Sampling, n: int, request_id: str | None) -> bytes:
        # ``top_k`` 0 turns the filter off, ``logprobs`` 0 returns that of the sampled token alone. No text is
        # needed: what is trained on are the sampled ids.
        body: dict[str, Any] = {
            **self._model,
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

    async def generate(self, url: str, body: bytes) -> VllmAnswer:
        payload = await self._client.sample(f"{url}/inference/v1/generate", body)
        try:
            return _decode(payload)
        except msgspec.MsgspecError as error:
            raise Unavailable(f"{url} does not answer as vLLM 0.32 does: {error}") from error

    async def abort(self, url: str, request_ids: Sequence[str], timeout_seconds: float) -> None:
        # vLLM prepends this prefix to the id of a request, and an abort must give the full id.
        body = {"request_ids": [f"generate-tokens-{request_id}" for request_id in request_ids]}
        await self._post(f"{url}/inference/v1/abort_requests", timeout_seconds, body)

    async def weight_version(self, url: str, timeout_seconds: float) -> int:
        answer = await self._client.control("GET", f"{url}/weight_info", None, timeout_seconds)
        try:
            return msgspec.convert(answer, _WeightInfo).version
        except ValueError as error:
            raise RuntimeError(
                f"{url}/weight_info answered {answer!r}, which holds no version published from here, "
                f"nor {START_VERSION!r}. Restart the worker."
            ) from error

    async def check_key(self, url: str, timeout_seconds: float) -> None:
        await self._client.control("GET", f"{url}/v1/models", None, timeout_seconds)

    async def served_model(self, url: str, timeout_seconds: float) -> ServedModel:
        answer = await self._client.control("GET", f"{url}/v1/models", None, timeout_seconds)
        try:
            model = next(card for card in answer["data"] if not card.get("parent"))  # adapters have a parent
            return ServedModel(path=model["root"], max_model_len=model["max_model_len"])
        except (AttributeError, KeyError, TypeError, StopIteration) as error:
            raise RuntimeError(f"{url}/v1/models answered {answer!r}, which names no model.") from error

    async def is_healthy(self, url: str, timeout_seconds: float) -> bool:
        try:
            return await self._client.status(url + HEALTH, timeout_seconds) == 200
        except RuntimeError:
            return False

    async def pause(self, url: str, mode: str, timeout_seconds: float, *, clear_cache: bool) -> None:
        cleared = "true" if clear_cache else "false"
        await self._post(f"{url}/pause?mode={mode}&clear_cache={cleared}", timeout_seconds)

    async def resume(self, url: str, timeout_seconds: float) -> None:
        await self._post(f"{url}/resume", timeout_seconds)

    async def load(self, url: str, folder: Path, timeout_seconds: float) -> None:
        await self._call(url, timeout_seconds, "load_published", weights_path=str(folder))

    async def receivers(self, url: str, timeout_seconds: float) -> Receivers:
        answer = await self._call(url, timeout_seconds, "publishing_place")
        try:
            places = sorted(result["place"] for result in answer["results"])
            groups = {result["group"] for result in answer["results"]}
        except (KeyError, TypeError) as error:
            raise RuntimeError(
                f"{url}/collective_rpc answered {answer!r}, which names no process."
            ) from error
        if places != list(range(len(places))) or not places:
            raise RuntimeError(f"{url} has processes numbered {places}; expected 0, 1, ... without gaps.")
        return Receivers(count=len(places), group=groups.pop() if len(groups) == 1 else "")

    async def receive(
        self,
        url: str,
        meeting: Mapping[str, Any],
        entries: Sequence[Mapping[str, Any]],
        timeout_seconds: float,
    ) -> None:
        await self._call(url, timeout_seconds, "receive_published", meeting=meeting, entries=entries)

    async def start_update(self, url: str, timeout_seconds: float) -> None:
        # The same each time: a restarted worker has forgotten it. Packed: one handle a bucket.
        init = {"init_info": {"packed": True}}
        await self._post(f"{url}/init_weight_transfer_engine", timeout_seconds, init)
        await self._post(f"{url}/start_weight_update", timeout_seconds)

    async def update(self, url: str, body: Mapping[str, Any], timeout_seconds: float) -> None:
        await self._post(f"{url}/update_weights", timeout_seconds, {"update_info": body})

    async def finish_update(self, url: str, timeout_seconds: float) -> None:
        await self._post(f"{url}/finish_weight_update", timeout_seconds)

    async def load_adapter(self, url: str, folder: Path, timeout_seconds: float) -> None:
        # One name for all versions, replaced in place: requests in flight go on with the new adapter, as they
        # do with new weights. vLLM's answer is a line of text, not JSON.
        body = {"lora_name": ADAPTER, "lora_path": str(folder), "load_inplace": True}
        path = f"{url}/v1/load_lora_adapter"
        await self._client.control("POST", path, body, timeout_seconds, is_json=False)

    async def reset_prefix_cache(self, url: str, timeout_seconds: float) -> None:
        path = f"{url}/reset_prefix_cache?reset_running_requests=true"
        answer = await self._post(path, timeout_seconds)
        # An older vLLM does not know the parameter: it answers 200 without a body and keeps what is in use.
        if not isinstance(answer, dict) or answer.get("success") is not True:
            raise RuntimeError(
                f"{url}/reset_prefix_cache answered {answer!r} and did not confirm that keys and values of "
                "the previous weights are gone. Start the worker with vLLM 0.32, or set "
                "rollout.pause_mode=keep_cache to sample with them."
            )

    async def set_version(self, url: str, version: int, timeout_seconds: float) -> None:
        await self._post(f"{url}/update_weight_version", timeout_seconds, {"new_version": str(version)})

    async def sleep(self, url: str, timeout_seconds: float) -> None:
        # Level 2 drops weights and KV cache. vLLM keeps the model's buffers, such as rotary frequencies, in
        # host memory and restores them with the weights (v1/worker/gpu_worker.py: ``sleep``, ``wake_up``).
        await self._post(f"{url}/sleep?level=2&mode=wait", timeout_seconds)

    async def wake_weights(self, url: str, timeout_seconds: float) -> None:
        await self._post(f"{url}/wake_up?tags=weights", timeout_seconds)

    async def wake_cache(self, url: str, timeout_seconds: float) -> None:
        await self._post(f"{url}/wake_up?tags=kv_cache", timeout_seconds)

    async def _call(self, url: str, timeout_seconds: float, method: str, **arguments: Any) -> Any:
        """Makes every process of a worker call a method of ``rollout.weights.vllm_extension``."""
        body = {"method": method, "kwargs": arguments}
        return await self._post(f"{url}/collective_rpc", timeout_seconds, body)

    async def _post(self, url: str, timeout_seconds: float, body: Any = None) -> Any:
        return await self._client.control("POST", url, body, timeout_seconds)


def parse_version(label: str) -> int:
    """Returns the policy version that a weight label of vLLM stands for.

    Raises:
        ValueError: If the label is neither vLLM's initial one nor a number.
    """
    return 0 if label == START_VERSION else int(label)


def _completion(choice: _Choice, asked: Asked) -> Completion:
    # A sample without tokens (aborted before its first) may have neither log-probs nor version spans.
    content = choice.logprobs.content or []
    ids = tuple(choice.token_ids)
    logprobs = tuple([entry.logprob for entry in content])
    if len(ids) > asked.max_tokens:
        raise ValueError(f"{len(ids)} token_ids for max_tokens {asked.max_tokens}")
    if tuple([entry.token_id for entry in content]) != ids:
        raise ValueError(f"logprobs of other tokens than its {len(ids)} token_ids")
    # One pass in C for the common case; NaN fails both comparisons.
    if logprobs and not (
        max(logprobs) <= SURE and min(logprobs) > NOT_FINITE and not math.isnan(sum(logprobs))
    ):
        wrong = next(value for value in logprobs if not NOT_FINITE < value <= SURE)
        broken = " (vLLM's number for NaN): the weights that it serves are broken" * (wrong <= NOT_FINITE)
        raise ValueError(f"a logprob of {wrong}{broken}")
    spans = tuple(_span(span, len(ids), asked.newest_version) for span in choice.weight_versions or ())
    return Completion(
        token_ids=ids,
        logprobs=logprobs,
        finish=choice.finish_reason,
        versions=spans or (VersionSpan(version=asked.version, start=0, end=0),),
        usage=Usage(prompt_tokens=asked.prompt_tokens, completion_tokens=len(ids)),
    )


def _span(span: _Span, num_tokens: int, newest: int) -> VersionSpan:
    version = parse_version(span.version)
    if not span.start <= span.end <= num_tokens:
        raise ValueError(f"weight_versions {span.start} to {span.end} of {num_tokens} tokens")
    if not 0 <= version <= newest:
        raise ValueError(f"weight version {version}, and {newest} is the newest that was published")
    return VersionSpan(version=version, start=span.start, end=span.end)
