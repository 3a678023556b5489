"""Which worker gets a request."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

CONTEXTS_REMEMBERED = 16_384
COOL_DOWN_SECONDS = 2.0
"""For which a worker is avoided after a failure."""
OVERLOAD_RATIO = 1.25
OVERLOAD_SEQUENCES = 8


@dataclass(slots=True, eq=False)
class Endpoint:
    """One worker as the pool sees it. ``restart`` starts it anew, or waits until somebody else did.

    Times are those of the event loop's clock.
    """

    url: str
    restart: Callable[[], Awaitable[str]] | None = None
    """Gives the URL of the new process."""
    in_flight: int = 0
    """Sequences asked for and not answered yet."""
    version: int = 0
    """The policy version that it said last it serves."""
    avoid_until: float = 0.0
    """It failed: others are preferred until then."""
    closed_until: float = 0.0
    """It asked for a pause (Retry-After): nothing is sent until then."""
    is_down: bool = False
    """Being checked or restarted: nothing is sent."""
    lost: str = ""
    """Why it cannot be restarted; empty if it is not lost."""

    def failed(self, now: float, retry_after: float) -> None:
        """Notes a failure, and the pause that the worker asked for."""
        self.avoid_until = max(self.avoid_until, now + COOL_DOWN_SECONDS)
        self.closed_until = max(self.closed_until, now + retry_after)


class Router:
    """Sends calls of one context to the worker that holds its prefix, others to the least loaded.

    In order: a worker that is up; one that failed this request least often; one that neither failed in
    the last ``COOL_DOWN_SECONDS`` nor asked for a pause; the holder of the prefix, unless it is
    overloaded, which is to have more than 1.25 times the sequences of the least loaded one plus 8 (a
    prefix saves one prefill, a longer queue costs more); the least loaded.
    """

    def __init__(self, capacity: int = CONTEXTS_REMEMBERED) -> None:
        self._capacity = capacity
        self._holders: OrderedDict[str, Endpoint] = OrderedDict()

    def choose(
        self,
        endpoints: Sequence[Endpoint],
        context: str,
        failures: Mapping[Endpoint, int],
        now: float,
    ) -> Endpoint | None:
        """The worker for a call of ``context``, remembered as holder of its prefix; None if none is up.

        Args:
            endpoints: All workers.
            context: ``Prompt.context``.
            failures: Times that each worker failed this very request.
            now: The event loop's time.
        """

        def trouble(endpoint: Endpoint) -> tuple[int, bool]:
            return failures.get(endpoint, 0), now < max(endpoint.avoid_until, endpoint.closed_until)

        up = [endpoint for endpoint in endpoints if not (endpoint.is_down or endpoint.lost)]
        if not up:
            return None
        least = min(map(trouble, up))
        best = [endpoint for endpoint in up if trouble(endpoint) == least]
        chosen = min(best, key=lambda endpoint: endpoint.in_flight)
        holder = self._holders.get(context)
        if holder in best and not _is_overloaded(holder, chosen):
            chosen = holder
        self._holders[context] = chosen
        self._holders.move_to_end(context)
        if len(self._holders) > self._capacity:
            self._holders.popitem(last=False)
        return chosen


def _is_overloaded(endpoint: Endpoint, least: Endpoint) -> bool:
    return endpoint.in_flight > OVERLOAD_RATIO * least.in_flight + OVERLOAD_SEQUENCES
