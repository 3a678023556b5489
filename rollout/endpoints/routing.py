"""Choice of the worker for a request: by failures, prefix cache and load."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

CONTEXTS_REMEMBERED = 16_384
COOL_DOWN_SECONDS = 2.0
"""Time for which a worker is avoided after a failure."""
OVERLOAD_RATIO = 1.25
OVERLOAD_SEQUENCES = 8


@dataclass(slots=True, eq=False)
class Endpoint:
    """The pool's view of one worker.

    ``restart`` restarts the worker, or waits until its owner has. Times are on the event loop's clock.
    """

    url: str
    restart: Callable[[], Awaitable[str]] | None = None
    """Returns the URL of the new process."""
    in_flight: int = 0
    """Sequences requested and not yet returned."""
    version: int = 0
    """Policy version that the worker reported last."""
    avoid_until: float = 0.0
    """End of the cool-down after a failure: other workers are preferred until then."""
    closed_until: float = 0.0
    """End of a pause that the worker asked for (``Retry-After``): nothing is sent until then."""
    is_down: bool = False
    """True while the worker is checked or restarted: nothing is sent."""
    lost: str = ""
    """Reason why the worker was given up; empty otherwise."""

    def failed(self, now: float, retry_after: float) -> None:
        """Records a failure at ``now`` and the pause in seconds that the worker asked for."""
        self.avoid_until = max(self.avoid_until, now + COOL_DOWN_SECONDS)
        self.closed_until = max(self.closed_until, now + retry_after)


class Router:
    """Routes calls of one context to the worker that holds its prefix, and others to the least loaded worker.

    The criteria, in order: the worker is up; it failed this request least often; it neither failed in the
    last ``COOL_DOWN_SECONDS`` nor asked for a pause; it holds the prefix and is not overloaded; it is the
    least loaded. A worker is overloaded with more than 1.25 times the sequences of the least loaded worker
    plus 8: a cached prefix saves one prefill, and a longer queue costs more than that.
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
        """Returns the worker for a call of ``context`` and stores it as the holder; None if none is up.

        Args:
            endpoints: All workers.
            context: ``Prompt.context``.
            failures: Number of times that each worker failed this request.
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
        # Bounds the memory of a long run: drops the least recently used context.
        if len(self._holders) > self._capacity:
            self._holders.popitem(last=False)
        return chosen


def _is_overloaded(endpoint: Endpoint, least: Endpoint) -> bool:
    return endpoint.in_flight > OVERLOAD_RATIO * least.in_flight + OVERLOAD_SEQUENCES
