"""When a failed request is sent again."""

import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from rollout.endpoints.client import (
    LONGEST_BACKOFF_SECONDS,
    backoff_seconds,
    is_fault_of_request,
    retry_after_seconds,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_waits_double_up_to_a_bound_less_up_to_half():
    rng = random.Random(0)
    for attempt in range(20):
        longest = min(0.5 * 2**attempt, LONGEST_BACKOFF_SECONDS)
        waits = [backoff_seconds(attempt, rng) for _ in range(200)]
        assert all(longest / 2 <= wait <= longest for wait in waits)
        assert max(waits) - min(waits) > 0.3 * longest


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_is_blamed_for_what_it_says(status: int):
    assert is_fault_of_request(status)


@pytest.mark.parametrize("status", [301, 401, 403, 404, 405, 408, 429, 500, 502, 503, 504])
def test_an_endpoint_is_blamed_for_everything_else(status: int):
    assert not is_fault_of_request(status)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0.0),
        ("", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("-3", 0.0),
        ("nan", 0.0),
        ("soon", 0.0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0.0),
    ],
)
def test_a_wish_to_wait_is_read_from_seconds_and_from_a_date(header: str | None, seconds: float):
    assert retry_after_seconds(header, NOW) == seconds
