"""What the pool and the publisher ask of an inference engine, whichever it is.

An engine is two files: one that speaks HTTP to it (``vllm_api``, the only one that knows its paths and
bodies), and one that starts it (``rollout.workers.local_worker``, the only one that knows its command line
and environment).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rollout.records import Completion, Prompt, Sampling


class Answer(Protocol):
    """An engine's answer to one request. Tokens are counted by the engine."""

    @property
    def prompt_tokens(self) -> int:
        """A prompt that ``n`` samples share counts once."""
        ...

    @property
    def completion_tokens(self) -> int:
        """Sum over the samples."""
        ...

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the engine had in its prefix cache; 0 if it does not report them."""
        ...

    @property
    def is_aborted(self) -> bool:
        """Whether a sample was ended early, by ``EngineApi.abort`` or since the engine stops."""
        ...

    def completions(self, prompt_tokens: int, version: int) -> list[Completion]:
        """The samples in the order of their index, with the ids and log-probs that were sampled.

        Args:
            prompt_tokens: Tokens in, for the usage of each sample.
            version: The policy version of a sample without tokens, which carries none of its own.
        """
        ...


class EngineApi(Protocol):
    """One engine's HTTP. Stateless: ``url`` is the worker's, without a path.

    Every method but ``request_body``, ``generate`` and ``is_healthy`` raises ``RuntimeError`` if the worker
    refuses, breaks, or does not answer within ``timeout_seconds``; the message names the URL.
    """

    def request_body(self, prompt: Prompt, sampling: Sampling, n: int, request_id: str | None) -> bytes:
        """The body of a request for ``n`` completions with log-probs: encoded once, however often it is sent.

        ``request_id`` names it for ``abort``; None leaves it without a name.
        """
        ...

    async def generate(self, url: str, body: bytes) -> Answer:
        """Sends what ``request_body`` made; limited by the client's own ``timeout_seconds``.

        Raises:
            Unavailable: If another attempt, here or on another worker, may help.
            RequestRefused: If the worker refuses the request, or its answer is not this engine's.
        """
        ...

    async def abort(self, url: str, request_ids: Sequence[str], timeout_seconds: float) -> None:
        """Ends requests early: the ``generate`` of each returns what was sampled so far.

        Ids that the worker does not have, or not yet, are passed over.
        """
        ...

    async def weight_version(self, url: str, timeout_seconds: float) -> int:
        """The policy version that the worker serves: that of the last ``set_version``, 0 before the first."""
        ...

    async def check_key(self, url: str, timeout_seconds: float) -> None:
        """Returns if the worker accepts our key, or asks for none. Has no other effect."""
        ...

    async def is_healthy(self, url: str, timeout_seconds: float) -> bool:
        """Whether the worker answers, and its engine is alive. Never raises for a worker that does not."""
        ...

    async def pause(self, url: str, mode: str, timeout_seconds: float) -> None:
        """Stops decoding until ``resume``; requests that come meanwhile wait.

        ``keep`` freezes requests in flight, which resume with the weights that are then loaded; ``wait``
        lets them end first.
        """
        ...

    async def resume(self, url: str, timeout_seconds: float) -> None:
        """Ends a pause; no-op if there is none."""
        ...

    async def load(self, url: str, folder: Path, timeout_seconds: float) -> None:
        """Has a paused worker load the safetensors in a folder that it can read; returns when it has them."""
        ...

    async def receive(
        self,
        url: str,
        meeting: Mapping[str, Any],
        entries: Sequence[Mapping[str, Any]],
        timeout_seconds: float,
    ) -> None:
        """Has a paused worker load what ``rollout.weights.transfer.send`` sends; returns when it has it.

        Args:
            url: The worker's.
            meeting: A ``transfer.Meeting`` as a mapping.
            entries: A ``transfer.WeightEntry`` for each weight, as mappings, in the order of sending.
            timeout_seconds: Of the whole transfer.
        """
        ...

    async def reset_prefix_cache(self, url: str, timeout_seconds: float) -> None:
        """Forgets cached prefixes, which other weights computed."""
        ...

    async def set_version(self, url: str, version: int, timeout_seconds: float) -> None:
        """Labels the weights that the worker has; tokens sampled from then on carry ``version``."""
        ...

    async def sleep(self, url: str, timeout_seconds: float) -> None:
        """Frees the GPU's memory once requests in flight have ended; the weights can be woken."""
        ...

    async def wake(self, url: str, timeout_seconds: float) -> None:
        """Takes the memory back, with the weights from before the sleep; no-op if already awake."""
        ...
