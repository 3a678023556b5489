"""Where calls are sampled: the seam between operators and endpoints."""

from collections.abc import Collection, Sequence
from typing import Protocol

from rollout.records import Completion, Prompt, Sampling


class CallFailed(RuntimeError):
    """A call got no answer after all retries. It fails its problem, with this message as the reason."""


class RequestRefused(CallFailed):
    """An endpoint refused a request (4xx): sending it again would not help."""


class Sampler(Protocol):
    """A pool of vLLM workers, or an endpoint that chats."""

    @property
    def continues(self) -> bool:
        """Whether it works on ids: takes a prompt with a part of its completion, stops at ids, aborts.

        Budget forcing, a draft quorum and training need that; an endpoint that chats cannot.
        """
        ...

    async def generate(
        self, prompt: Prompt, sampling: Sampling, n: int = 1, request_id: str | None = None
    ) -> Sequence[Completion]:
        """``n`` completions of one context; ``request_id`` names the request for ``abort``.

        Raises:
            RequestRefused: If the endpoint refuses it, e.g. since the prompt is too long.
            CallFailed: If no endpoint answered.
        """
        ...

    async def abort(self, request_ids: Collection[str]) -> None:
        """Ends requests early: their ``generate`` returns what was sampled so far, with finish ``abort``.

        Ids that are not under way are passed over.
        """
        ...
