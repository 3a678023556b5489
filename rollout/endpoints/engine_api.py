"""Protocols that an inference engine implements for the pool and the publisher.

vLLM's support consists of ``vllm_api`` (HTTP: the only file that knows its paths and bodies),
``rollout.workers.local_worker`` (the only file that knows its command line and environment) and
``rollout.weights.vllm_extension`` (loading, inside the engine). CONTRIBUTING
lists what a second engine needs.

What the trainer relies on, beyond the signatures below:

* The ``n`` samples of a request are independent: sample i is that of a request for one sample with the seed
  plus i, so that the pool may split a request; the same seed and body yield the same samples.
* A sample that ended by itself keeps its stop token as its last id, and ``finish`` is then "stop"; "length"
  means that it ran into ``max_tokens``, "abort" that it was ended early.
* A log-prob is that of the distribution the token was drawn from, after temperature (and top-p, top-k where
  the engine renormalises), in nats.
* The version spans of a sample cover its tokens without a gap, in order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rollout.endpoints.served_model import ServedModel
from rollout.records import Completion, Prompt, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Properties of a request that its answer is checked against."""

    prompt_tokens: int
    n: int
    """Number of samples."""
    max_tokens: int
    """Token limit of one sample."""
    version: int
    """Policy version of a sample without tokens, which carries none of its own."""
    newest_version: int
    """The newest version that was published or that a worker reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receivers:
    """The processes of a worker that receive weights."""

    count: int
    group: str
    """Name of the process group that all have kept since the last transfer; empty if they have none."""


class Answer(Protocol):
    """An engine's answer to one request. Token counts are the engine's own."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens in; a prompt that ``n`` samples share counts once."""
        ...

    @property
    def completion_tokens(self) -> int:
        """Tokens out, summed over the samples."""
        ...

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in the engine's prefix cache; 0 if the engine does not report them."""
        ...

    @property
    def is_aborted(self) -> bool:
        """True if a sample was ended early, by ``EngineApi.abort`` or because the engine stops."""
        ...

    def completions(self, asked: Asked) -> list[Completion]:
        """Returns the samples in the order of their index, with the sampled ids and log-probs.

        Raises:
            ValueError: If the answer does not fit ``asked``: the number of samples, a length, an id, a
                log-prob or a version is impossible. The message names the field and its value.
        """
        ...


class EngineApi(Protocol):
    """HTTP interface of one engine. Stateless: ``url`` is that of the worker, without a path.

    Every method but ``request_body``, ``generate`` and ``is_healthy`` raises ``RuntimeError`` if the worker
    refuses, breaks, or does not answer within ``timeout_seconds``; the message names the URL.
    """

    def request_body(self, prompt: Prompt, sampling: Sampling, n: int, request_id: str | None) -> bytes:
        """Encodes a request for ``n`` completions with log-probs; retries send the same body again.

        ``request_id`` names the request for ``abort``; a request with None cannot be aborted.
        """
        ...

    async def generate(self, url: str, body: bytes) -> Answer:
        """Sends a body made by ``request_body``; limited by the client's own ``timeout_seconds``.

        Raises:
            Unavailable: If another attempt, on this worker or another, may help.
            RequestRefused: If the worker refuses the request, or the answer is not in this engine's format.
        """
        ...

    async def abort(self, url: str, request_ids: Sequence[str], timeout_seconds: float) -> None:
        """Ends requests early: the ``generate`` of each returns what was sampled so far.

        Ids that the worker does not have, or not yet, are ignored.
        """
        ...

    async def weight_version(self, url: str, timeout_seconds: float) -> int:
        """Returns the policy version that the worker serves: the last ``set_version``, 0 before the first."""
        ...

    async def check_key(self, url: str, timeout_seconds: float) -> None:
        """Checks that the worker accepts the client's key or requires none; changes nothing on the worker."""
        ...

    async def served_model(self, url: str, timeout_seconds: float) -> ServedModel:
        """Returns the model that the worker was started with; needs the key as ``check_key`` does."""
        ...

    async def is_healthy(self, url: str, timeout_seconds: float) -> bool:
        """Returns True if the worker answers and its engine is alive; returns False instead of raising."""
        ...

    async def pause(self, url: str, mode: str, timeout_seconds: float, *, clear_cache: bool) -> None:
        """Stops decoding until ``resume``; requests that arrive meanwhile wait.

        Mode ``keep`` freezes requests in flight, which resume with the weights loaded by then; ``wait`` lets
        them end first. With ``clear_cache`` their keys and values are dropped, and computed again when they
        resume; otherwise they stay those of the previous weights.
        """
        ...

    async def resume(self, url: str, timeout_seconds: float) -> None:
        """Ends a pause; no-op if there is none."""
        ...

    async def load(self, url: str, folder: Path, timeout_seconds: float) -> None:
        """Makes a paused worker load the safetensors in a folder that it can read; returns once loaded.

        The folder holds the weights alone, under the parameter names of the HF checkpoint.
        """
        ...

    async def receivers(self, url: str, timeout_seconds: float) -> Receivers:
        """Returns the worker's processes that each receive weights in ``receive``."""
        ...

    async def receive(
        self,
        url: str,
        meeting: Mapping[str, Any],
        entries: Sequence[Mapping[str, Any]],
        timeout_seconds: float,
    ) -> None:
        """Makes a paused worker load what ``rollout.weights.transfer.send`` sends; returns once loaded.

        Args:
            url: URL of the worker.
            meeting: A ``meeting.Meeting`` as a mapping.
            entries: A ``buckets.WeightEntry`` for each weight, as mappings, in the order of sending.
            timeout_seconds: Limit of the whole transfer.
        """
        ...

    async def start_update(self, url: str, timeout_seconds: float) -> None:
        """Prepares a paused worker on this process's GPU for ``update``."""
        ...

    async def update(self, url: str, body: Mapping[str, Any], timeout_seconds: float) -> None:
        """Makes the worker copy some weights from this process's GPU memory: ``weights.ipc.update_body``."""
        ...

    async def finish_update(self, url: str, timeout_seconds: float) -> None:
        """Is called after the last ``update``; returns once all weights are in use."""
        ...

    async def load_adapter(self, url: str, folder: Path, timeout_seconds: float) -> None:
        """Makes a paused worker load the LoRA adapter in a folder that it can read, in place of the last."""
        ...

    async def reset_prefix_cache(self, url: str, timeout_seconds: float) -> None:
        """Drops all keys and values, also those of requests in flight, which compute them again.

        Raises ``RuntimeError`` also if the worker does not confirm it: tokens sampled after a publish would
        be those of no policy.
        """
        ...

    async def set_version(self, url: str, version: int, timeout_seconds: float) -> None:
        """Labels the worker's current weights; tokens sampled from then on carry ``version``."""
        ...

    async def sleep(self, url: str, timeout_seconds: float) -> None:
        """Frees the GPU's memory once requests in flight have ended. The weights are lost, not copied."""
        ...

    async def wake_weights(self, url: str, timeout_seconds: float) -> None:
        """Reallocates the memory of the weights, which must be loaded next; no-op if already awake."""
        ...

    async def wake_cache(self, url: str, timeout_seconds: float) -> None:
        """Reallocates the KV cache of a worker whose weights are loaded; no-op if already awake."""
        ...
