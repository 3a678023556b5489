"""When a failed request is sent again: pure functions of the attempt and of what the endpoint said."""

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

FIRST_SECONDS = 0.5
LONGEST_SECONDS = 30.0


class Unavailable(Exception):
    """A failure that may pass: 408, 429, a 5xx, a broken connection, a request that took too long.

    ``retry_after`` is the wait in seconds that the endpoint asked for, 0 if it asked for none;
    ``is_busy`` says that it answered 429, so it is in good health.
    """

    def __init__(self, message: str, *, retry_after: float = 0.0, is_busy: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.is_busy = is_busy


def is_temporary(status: int) -> bool:
    """Whether an HTTP status is worth another attempt."""
    return status in (408, 429) or status >= 500


def backoff_seconds(attempt: int, rng: random.Random) -> float:
    """The wait after failed attempt ``attempt`` (from 0): doubles each time, less up to half at random.

    The random part keeps requests that failed together from coming back together.
    """
    longest = min(FIRST_SECONDS * 2**attempt, LONGEST_SECONDS)
    return longest * rng.uniform(0.5, 1.0)


def retry_after_seconds(header: str | None, now: datetime | None = None) -> float:
    """Seconds that a ``Retry-After`` header, in seconds or as an HTTP date (RFC 9110, 10.2.3), asks to wait.

    0 without a header, for a date that has passed, or for what is neither.
    """
    if not header:
        return 0.0
    if header.strip().isdecimal():
        return float(header)
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max((date - (now or datetime.now(UTC))).total_seconds(), 0.0)
