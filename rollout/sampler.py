"""Interface between operators and the endpoints that sample their calls."""

from collections.abc import Collection, Sequence
from typing import Protocol

from rollout.records import Completion, Prompt, Sampling


class CallFailed(RuntimeError):
    """A call got no answer after all retries. Its problem fails with this message as the reason."""


class RequestRefused(CallFailed):
    """An endpoint refused a request (4xx), which is not retried."""


class Sampler(Protocol):
    """A pool of vLLM workers, or a chat endpoint."""

    @property
    def continues(self) -> bool:
        """True if it works on ids: continues a partial completion, stops at token ids, aborts requests.

        Budget forcing, a draft quorum and training need this; chat endpoints do not support it.
        """
        ...

    async def generate(
        self, prompt: Prompt, sampling: Sampling, n: int = 1, request_id: str | None = None
    ) -> Sequence[Completion]:
        """Returns ``n`` completions of one context; ``request_id`` names the request for ``abort``.

        Raises:
            RequestRefused: If the endpoint refuses it, e.g. because the prompt is too long.
            CallFailed: If no endpoint answered.
        """
        ...

    async def abort(self, request_ids: Collection[str]) -> None:
        """Ends requests early: their ``generate`` returns the tokens sampled so far, with finish ``abort``.

        Ids of requests that are not in flight are ignored.
        """
        ...
